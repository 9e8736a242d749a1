"""The mesh, and where arrays live on it. The only file that names mesh axes.

    replica   whole copies, across slices or hosts: only gradients pass
    fsdp      the batch; and weights are stored in shards and gathered layer by layer, where they are used
    ring      patches of a frame; keys and values go around (nn/attention/context_parallel.py)
    context   patches of a frame; exchanged for heads in attention (Ulysses), so for the fast domain
    tensor    heads and hidden units

Every parameter declares its *logical* axes once, beside its shape (:func:`declare`); :data:`RULES` says which mesh axes
they mean. Shardings of weights, averages, optimiser and gradients derive from that declaration.

Axes are of JAX's ``Auto`` kind with constraints (docs/architecture.md has the reasons): :func:`constrain` pins
activations, :func:`gather` is FSDP's all-gather, whose gradient is scattered back to the stored layout. Both act on the
mesh of ``jax.set_mesh`` and do nothing without one, so that single-device programs are the same as ever.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from lpm_jax.config import DiTConfig, MeshConfig
from lpm_jax.errors import InputError

AXES = ("replica", "fsdp", "ring", "context", "tensor")
#: Logical axis -> mesh axes, in the order of importance: where a size does not divide, the last are left out.
RULES: dict[str | None, tuple[str, ...]] = {
    None: (),
    "batch": ("replica", "fsdp"),
    "tokens": ("ring", "context"),  # patches of a frame
    "embed": ("fsdp", "ring", "context"),  # of a stored weight: an input or output of the model's width
    "heads": ("tensor",),
    "hidden": ("tensor",),
}
AnyMesh = Mesh | AbstractMesh
STORED = ("embed",)  # logical axes that are gathered before use


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Axes:
    """The logical axes of a parameter; a tree of them has a model's structure and no arrays."""

    names: tuple[str | None, ...]


def declare(module: nn.Module, name: str, *names: str | None) -> None:
    """Notes, while ``module`` is initialised, the logical axes of its parameter ``name``."""
    if module.is_initializing():
        module.put_variable("axes", name, Axes(names))


# ---- meshes ----------------------------------------------------------------------------------------------------------


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, ...]:
    """Sizes along :data:`AXES` for this many devices.

    Raises:
      InputError: they do not multiply to ``devices``.
    """
    sizes = [getattr(config, name) for name in AXES]
    known = math.prod(size for size in sizes if size > 0)
    if -1 in sizes:
        sizes[sizes.index(-1)] = devices // known
    if math.prod(sizes) != devices:
        found = " x ".join(f"{name} {getattr(config, name)}" for name in AXES if getattr(config, name) != 1)
        raise InputError(f"mesh: expected axes whose product is {devices} devices, found {found or 'one device'}")
    return tuple(sizes)


def make_mesh(config: MeshConfig = MeshConfig(), devices: list | None = None) -> Mesh:  # noqa: B008
    """A mesh of all ``devices``, neighbours on the network next to each other, replicas on different slices."""
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(config, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        if shape[0] % slices:
            raise InputError(f"mesh.replica: expected a multiple of the {slices} slices, found {shape[0]}")
        inner, outer = (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1, 1)
        array = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    else:
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check(mesh: AnyMesh, dit: DiTConfig, batch: int, tokens: int) -> None:
    """Complains in one line where a model or batch does not divide over ``mesh``; ``tokens`` are patches of a frame.

    Raises:
      InputError: naming the axis, what it must divide and the size found.
    """
    size = dict(mesh.shape)
    wanted = [
        ("replica x fsdp", size["replica"] * size["fsdp"], "train.batch (a microbatch)", batch),
        ("ring x context", size["ring"] * size["context"], "a frame's patches", tokens),
        ("tensor x context", size["tensor"] * size["context"], "dit.heads", dit.heads),
        ("tensor", size["tensor"], "dit.ffn", dit.ffn),
    ]
    for axis, parts, what, found in wanted:
        if found % parts:
            raise InputError(f"mesh: {axis} is {parts}: expected a divisor of {what}, {found}")


# ---- layouts ---------------------------------------------------------------------------------------------------------


def spec(names: tuple[str | None, ...], shape: tuple[int, ...], sizes: dict[str, int]) -> PartitionSpec:
    """Mesh axes of an array with these logical axes on a mesh of these ``sizes``."""
    parts = []
    for name, size in zip(names, shape, strict=True):
        axes = RULES[name]
        while axes and size % math.prod(sizes[axis] for axis in axes):
            axes = axes[:-1]
        parts.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*parts)


def sharding(mesh: AnyMesh, names: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    """Where an array with these logical axes lives."""
    return NamedSharding(mesh, spec(names, shape, dict(mesh.shape)))


def axes_of(axes: Any, path: tuple, ndim: int) -> tuple[str | None, ...]:
    """The declared axes of the leaf at ``path``; leading axes that a declaration lacks (stacked layers) are whole, and
    so is a leaf that nobody declared."""
    for key in path:
        if isinstance(key, jax.tree_util.DictKey):  # not the parts of a quantised leaf
            axes = axes.get(key.key) if isinstance(axes, dict) else None
    names = axes.names if isinstance(axes, Axes) else ()
    return (None,) * (ndim - len(names)) + names


def shardings(mesh: AnyMesh, axes: Any, tree: Any) -> Any:
    """A tree of shardings for ``tree``, which has arrays or abstract arrays, with the declared ``axes``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: sharding(mesh, axes_of(axes, path, len(x.shape)), tuple(x.shape)), tree
    )


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """The leading axis over the batch's mesh axes."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: AnyMesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


# ---- inside a program ------------------------------------------------------------------------------------------------


def sizes() -> dict[str, int]:
    """Axis sizes of the mesh in force, empty without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return {} if mesh is None or mesh.empty else dict(mesh.shape)


def parts(name: str) -> int:
    """Into how many parts a logical axis is cut."""
    found = sizes()
    return math.prod(found[axis] for axis in RULES[name]) if found else 1


def constrain(x: Array, *names: str | None) -> Array:
    """``x`` laid out by its logical axes."""
    found = sizes()
    return jax.lax.with_sharding_constraint(x, spec(names, x.shape, found)) if found else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(x: Array, names: tuple[str | None, ...]) -> Array:
    return constrain(x, *(None if name in STORED else name for name in names))


_gather.defvjp(lambda x, names: (_gather(x, names), None), lambda names, _, g: (constrain(g, *names),))


def gather(axes: Any, tree: Any) -> Any:
    """Weights in the layout of their use: whole but for ``tensor``. Their gradients return to the stored layout."""
    if not sizes():
        return tree
    return jax.tree_util.tree_map_with_path(lambda path, x: _gather(x, axes_of(axes, path, x.ndim)), tree)


def scatter(axes: Any, tree: Any) -> Any:
    """Arrays shaped like weights (gradients) in the stored layout."""
    if not sizes():
        return tree
    return jax.tree_util.tree_map_with_path(lambda path, x: constrain(x, *axes_of(axes, path, x.ndim)), tree)


def on(mesh: Mesh):
    """A context in which programs are traced for ``mesh``. One device is no mesh."""
    return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()
