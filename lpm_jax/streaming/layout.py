"""Where a stream's state and a model's weights live on a mesh, and the streaming step from shapes alone.

A serving mesh has ``tensor`` (heads) and ``context`` (patches): the cache is cut over both and never moves. Weights are
cut over ``tensor`` and whole otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lpm_jax import pretrained, sharding
from lpm_jax.config import Config
from lpm_jax.models import conditions
from lpm_jax.streaming import generator
from lpm_jax.streaming.generator import StreamState

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
    used = jax.tree.map(
        lambda axes: sharding.Axes(tuple(None if name in sharding.STORED else name for name in axes.names)),
        conditions.axes(config), is_leaf=lambda x: isinstance(x, sharding.Axes),
    )  # fmt: skip
    return sharding.shardings(mesh, used, params)


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
