"""Where a stream's state and a model's weights live on a mesh, and the streaming step from shapes alone.

A serving mesh has ``tensor`` (heads) and ``context`` (patches): the cache is cut over both and never moves. Weights are
cut over ``tensor`` and whole otherwise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from lpm_jax import pretrained, sharding
from lpm_jax.config import Config, MeshConfig
from lpm_jax.errors import InputError
from lpm_jax.models import conditions
from lpm_jax.streaming import generator
from lpm_jax.streaming.generator import StreamState

SPACE = "space"  # the axis of the VAE's devices: columns of the picture
CACHE = (None, None, "batch", None, "tokens", "heads", None)


def state_shardings(mesh: Mesh, state: StreamState) -> StreamState:
    """The cache by patches and heads; everything else is small and whole on every device."""
    refiner = None if state.refiner is None else track_shardings(mesh, state.refiner)
    return track_shardings(mesh, state)._replace(refiner=refiner)


def track_shardings(mesh: Mesh, track: Any) -> Any:
    """The same of a Refiner's state (or any other :class:`lpm_jax.streaming.denoise.Track`)."""
    everywhere = jax.tree.map(lambda _: sharding.replicated(mesh), track)
    return everywhere._replace(cache=jax.tree.map(lambda x: sharding.sharding(mesh, CACHE, x.shape), track.cache))


def param_shardings(mesh: Mesh, config: Config, params: dict) -> dict:
    """Weights as a serving step uses them: by heads and hidden units, whole otherwise."""
    return sharding.shardings(mesh, used(config), params)


def used(config: Config) -> dict:
    """The logical axes of a serving step's weights."""
    return jax.tree.map(
        lambda axes: sharding.Axes(tuple(None if name in sharding.STORED else name for name in axes.names)),
        conditions.axes(config), is_leaf=lambda x: isinstance(x, sharding.Axes),
    )  # fmt: skip


def abstract_params(config: Config, mesh: Mesh, dtype: Any) -> dict:
    """Shapes of what :func:`lpm_jax.pretrained.load` returns, in their layout, without the text encoder."""
    shapes = dict(pretrained.parts(config))
    shapes.pop("text", None)  # prompts are encoded when they change, not in the step
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes.pop("model") | shapes)
    params = jax.eval_shape(partial(generator.stored, config), params)
    where = param_shardings(mesh, config, params)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, where)


def abstract_state(config: Config, mesh: Mesh, dtype: Any, batch: int = 1) -> StreamState:
    """A stream's state in its layout, its cache in ``dtype``."""
    refs = 2 + config.stream.references
    words, width = config.text.tokens, config.dit.text_width
    pictures = jax.ShapeDtypeStruct((batch, refs, *config.pixels, 3), jnp.uint8)
    kinds, valid = (jax.ShapeDtypeStruct((batch, refs), d) for d in (jnp.int32, jnp.bool_))
    text = jax.ShapeDtypeStruct((batch, words, width), dtype)
    if config.text.umt5 is None:
        text = jax.ShapeDtypeStruct((batch, words), jnp.int32)
    params = abstract_params(config, mesh, dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(partial(generator.start, config), params, pictures, kinds, valid, text, key)
    where = state_shardings(mesh, state)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where)


def latent_program(config: Config, mesh: Mesh, dtype: Any = jnp.bfloat16) -> tuple[Callable, tuple]:
    """The Generator's jitted step (sound in, latents out, state donated) and its abstract arguments. Lower it within
    ``sharding.on(mesh)``."""
    state = abstract_state(config, mesh, dtype)
    sound = jax.ShapeDtypeStruct((1, generator.chunk_samples(config)), jnp.float32, sharding=sharding.replicated(mesh))
    out = (jax.tree.map(lambda x: x.sharding, state), sharding.replicated(mesh))
    step = jax.jit(partial(generator.latent_step, config), donate_argnums=1, out_shardings=out)
    return step, (abstract_params(config, mesh, dtype), state, sound, sound)


class Spread(NamedTuple):
    """The devices of each lane."""

    generator: list
    refiner: list | None  # None: the Generator's
    decoder: list


def spread(config: Config, devices: list, mesh: MeshConfig, decoder: int = 0) -> Spread:
    """The Generator's devices, as many as ``mesh`` names, are the first; then as many for the Refiner, if the model has
    one and so many are left; the VAE's, ``decoder`` of them, the last (0: the Generator's first).

    Raises:
      InputError: there are fewer.
    """
    count = math.prod(dataclasses.astuple(mesh))
    if mesh.replica != 1 or mesh.fsdp != 1:
        raise InputError("--mesh: expected axes tensor, context and ring, for a stream has one clip, found another")
    if count < 1 or decoder < 0 or count + decoder > len(devices):
        found = f"{count} and {decoder}"
        raise InputError(f"--mesh, --decoder: expected at most the {len(devices)} devices there are, found {found}")
    rest = devices[count : len(devices) - decoder]
    refiner = rest[:count] if config.stream.refine and len(rest) >= count else None
    return Spread(devices[:count], refiner, devices[len(devices) - decoder :] if decoder else devices[:1])


def loading(config: Config, to: Spread, mesh: MeshConfig) -> Callable[[str, tuple[int, ...]], Sharding]:
    """For :func:`lpm_jax.pretrained.load`: weights go to their lane's devices, in the layout that they have there."""
    where = {"": sharding.make_mesh(mesh, to.generator), "vae": Mesh(np.array(to.decoder), (SPACE,))}
    where["refiner"] = sharding.make_mesh(mesh, to.refiner) if to.refiner else where[""]
    axes = used(config)

    def place(path: str, shape: tuple[int, ...]) -> Sharding:
        keys = tuple(jax.tree_util.DictKey(name) for name in path.split("/"))
        on = where.get(keys[0].key, where[""])
        if keys[0].key == "vae":
            return NamedSharding(on, PartitionSpec())
        return sharding.sharding(on, sharding.axes_of(axes, keys, len(shape)), shape)

    return place
