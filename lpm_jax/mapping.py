"""From other libraries' tensors to our trees: a mapping of names, what to read for it, and a way onto devices.

A mapping gives for each of our paths the PyTorch keys and the permutation (:class:`Names`). Our layers are stacked and
PyTorch's are not: :func:`plan` says which tensors make up which of our arrays, and names what does not fit;
:func:`load` fills device arrays layer by layer, in place.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from lpm_jax import tensors
from lpm_jax.errors import InputError
from lpm_jax.tensors import Target, Tensor, flatten, unflatten

Shape = tuple[int, ...]
LARGE = 2**28  # bytes: what is smaller is read as a whole
Fresh = Callable[[int, Shape], np.ndarray]  # of a layer and its shape


class Names(NamedTuple):
    """Alternative PyTorch keys of one of our parameters, the first being diffusers', and how the tensor becomes ours.

    ``ours = theirs.transpose(permutation)``, then reshaped where ``shape`` is given: the PyTorch tensor's. In a key,
    ``{i}`` counts our leading axis, one tensor each; ``{even}`` is ``2 i`` and ``{odd}`` is ``2 i + 1``. Where the
    source is longer than ``shape`` along ``cut``, its first entries are kept.
    """

    keys: tuple[str, ...]
    permutation: tuple[int, ...]
    shape: tuple[int, ...] | None = None
    cut: int | None = None


class Leaf(NamedTuple):
    """One of our parameters, in the parts that it is read in: layers along the leading axis, or the whole."""

    dtype: np.dtype
    shape: tuple[int, ...]
    stacked: bool
    parts: list[Callable[[], np.ndarray]]

    def target(self) -> Target:
        """As something to write."""

        def slices() -> Iterator[np.ndarray]:
            return (part() for part in self.parts)

        return Target(self.dtype, self.shape, slices)


def as_stored(shapes: Mapping[str, Shape]) -> dict[str, Names]:
    """The names of tensors that are stored as they are."""
    return {path: Names((path,), tuple(range(len(shape)))) for path, shape in shapes.items()}


def theirs_shape(name: Names, shape: Shape) -> Shape:
    """The PyTorch tensor's shape for one layer of ours of ``shape``."""
    if name.shape is not None:
        return name.shape
    out = [0] * len(shape)
    for axis, size in zip(name.permutation, shape, strict=True):
        out[axis] = size
    return tuple(out)


def spell(name: Names, layer: int) -> list[str]:
    """The alternative keys of one layer."""
    return [key.format(i=layer, even=2 * layer, odd=2 * layer + 1) for key in name.keys]


def _shaped(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _fits(tensor: Tensor, name: Names, expected: Shape) -> bool:
    have = tensor.shape
    if name.cut is not None and len(have) == len(expected) and have[name.cut] > expected[name.cut]:
        have = (*have[: name.cut], expected[name.cut], *have[name.cut + 1 :])
    return have == expected


def _read(tensor: Tensor, name: Names, shape: Shape) -> np.ndarray:
    value = tensor.read()
    if name.cut is not None:
        value = value[(slice(None),) * name.cut + (slice(name.shape[name.cut]),)]
    return value.transpose(name.permutation).reshape(shape)


def plan(
    where: str | Path,
    source: Mapping[str, Tensor],
    names: Mapping[str, tuple],
    shapes: Mapping[str, Shape],
    fresh: Callable[[str], Fresh | None] = lambda path: None,
    dropped: Callable[[str], Any] = lambda key: False,
    dtype: Any = None,
) -> dict[str, Leaf]:
    """What to read for every path of ``shapes``; nothing is read yet.

    ``names`` holds :class:`Names` or plain ``(keys, permutation)`` tuples. A path for which ``fresh`` gives a function
    is not read but drawn by it, layer by layer. ``dtype`` None keeps the source's.

    Raises:
      InputError: a tensor is missing, has another shape, has another dtype than its fellow layers, or has no place in
        the model (unless ``dropped(key)``). The line names the key, the expected shape and what was found.
    """
    table = {path: Names(*names[path]) for path in shapes}
    # Which alternative the source speaks: missing tensors are named in it.
    votes = [spell(name, 0)[j] in source and j for name in table.values() for j in range(len(name.keys))]
    votes = [vote for vote in votes if vote is not False]
    layout = max(set(votes), key=votes.count, default=0)
    largest = max(source.values(), key=lambda t: math.prod(t.shape) * t.dtype.itemsize, default=None)
    leaves: dict[str, Leaf] = {}
    missing: list[tuple[str, Shape]] = []
    used: set[str] = set()
    for path, shape in shapes.items():
        name = table[path]
        stacked = any("{" in key for key in name.keys)
        layers, inner = (shape[0], shape[1:]) if stacked else (1, shape)
        draw = fresh(path)
        if draw is not None:
            parts = [functools.partial(draw, layer, inner) for layer in range(layers)]
            leaves[path] = Leaf(np.dtype(dtype or largest.dtype), shape, stacked, parts)
            continue
        expected = theirs_shape(name, inner)
        found: list[Tensor] = []
        for layer in range(layers):
            keys = spell(name, layer)
            key = next((key for key in keys if key in source), None)
            if key is None:
                missing.append((keys[min(layout, len(keys) - 1)], expected))
                continue
            tensor = source[key]
            if not _fits(tensor, name, expected):
                raise InputError(f"{where}: {key}: expected {_shaped(expected)}, found {_shaped(tensor.shape)}")
            if found and dtype is None and tensor.dtype != found[0].dtype:
                raise InputError(
                    f"{where}: {key}: expected {found[0].dtype} as before, found {tensor.dtype}; set --dtype"
                )
            found.append(tensor)
            used.add(key)
        if len(found) == layers:
            parts = [functools.partial(_read, tensor, name, inner) for tensor in found]
            leaves[path] = Leaf(np.dtype(dtype or found[0].dtype), shape, stacked, parts)
    if missing:
        key, shape = missing[0]
        more = f" ({len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        raise InputError(f"{where}: {key}: expected {_shaped(shape)}, found no such tensor{more}")
    for key, tensor in source.items():
        if key not in used and not dropped(key):
            raise InputError(f"{where}: {key}: expected no such tensor, found {_shaped(tensor.shape)}")
    return leaves


# ---- onto devices


@functools.cache
def _filler(sharding: Sharding) -> Callable:
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0)
    return jax.jit(put, donate_argnums=0, out_shardings=sharding)


@functools.cache
def _zeros(shape: tuple[int, ...], dtype: Any, sharding: Sharding) -> Callable:
    return jax.jit(functools.partial(jax.numpy.zeros, shape, dtype), out_shardings=sharding)


def _place(value: np.ndarray, dtype: Any, sharding: Sharding) -> jax.Array:
    def part(index: tuple[slice, ...]) -> np.ndarray:
        return np.ascontiguousarray(value[index]).astype(dtype, copy=False)

    return jax.make_array_from_callback(value.shape, sharding, part)


def load(leaves: Mapping[str, Leaf], shardings: Callable[[str, tuple[int, ...]], Sharding] | None = None) -> dict:
    """The tree of ``leaves`` as device arrays, filled layer by layer in place.

    ``shardings(path, shape)`` says where a parameter lives; None: on the first device. Every process of a cluster calls
    this alike and reads for its own devices. The host holds one PyTorch tensor and the device's part of it.
    """
    flat = {}
    for path, leaf in leaves.items():
        sharding = shardings(path, leaf.shape) if shardings else SingleDeviceSharding(jax.devices()[0])
        if not leaf.stacked:
            flat[path] = _place(leaf.parts[0](), leaf.dtype, sharding)
            continue
        inner = sharding
        if isinstance(sharding, NamedSharding):
            inner = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
        array = _zeros(leaf.shape, leaf.dtype, sharding)()
        for i, part in enumerate(leaf.parts):
            array = _filler(sharding)(array, _place(part(), leaf.dtype, inner), i)
            array.block_until_ready()  # else the queue would hold the host copies of many layers
        flat[path] = array
    return unflatten(flat)


def saved_leaves(directory: str | Path, name: str, abstract: Any, dtype: Any = None) -> dict[str, Leaf]:
    """For :func:`load`: a model in our own layout (``name-*.safetensors``), checked against ``abstract``; what is large
    by rows."""
    directory = Path(directory)
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(abstract).items()}
    source = tensors.read_headers(tensors.find_files(directory, name))
    leaves = plan(directory, source, as_stored(shapes), shapes, dtype=dtype)
    for path, leaf in leaves.items():
        if len(leaf.shape) > 2 and leaf.target().nbytes > LARGE:
            rows = [functools.partial(read_row, source[path], i) for i in range(leaf.shape[0])]
            leaves[path] = leaf._replace(stacked=True, parts=rows)
    return leaves


def read_row(tensor: Tensor, i: int) -> np.ndarray:
    """One entry of the leading axis."""
    return tensor.read(slice(i, i + 1))[0]
