"""Several sessions in one compiled program: ``S`` static slots, joined and left at chunk boundaries.

A slot's numbers never depend on what the others hold, so a session is bit-equal to itself alone in the same program.
All are one batch; idle slots are computed and thrown away (``shared.py``). Sessions that take turns need no slots.
"""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from lpm_jax.config import Config
from lpm_jax.streaming import generator
from lpm_jax.streaming.generator import StreamState

Tree = TypeVar("Tree")


def empty(state: StreamState, slots: int) -> StreamState:
    """``slots`` idle slots for streams of the shapes of ``state``: a leading axis on every array."""

    def stacked(x: Array) -> Array:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), slots)
        return jnp.zeros((slots, *x.shape), x.dtype)

    return jax.tree.map(stacked, state)


@partial(jax.jit, donate_argnums=0)
def join(states: Tree, slot: Int[Array, ""] | int, state: Tree) -> Tree:
    """``state``, a single stream's or a part of it, in a slot. ``states`` is donated."""
    return jax.tree.map(lambda all, one: all.at[slot].set(one), states, state)


@jax.jit
def take(states: StreamState, slot: Int[Array, ""] | int) -> StreamState:
    """A slot's stream."""
    return jax.tree.map(lambda all: all[slot], states)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def slots_step(
    config: Config,
    params: dict,
    states: StreamState,
    active: Bool[Array, " slots"],
    speak: Float[Array, "slots samples"],
    listen: Float[Array, "slots samples"],
) -> tuple[StreamState, UInt8[Array, "slots frames h w 3"]]:
    """The next chunk of every active slot; the others stay as they are and their frames are black. ``states`` is
    donated."""

    def one(state: StreamState, speak: Array, listen: Array) -> tuple[StreamState, Array]:
        state, frames = generator.step(config, params, state, speak[None], listen[None])
        return state, frames[0]

    undo = jax.vmap(partial(generator.before, config))(states)
    undo, states = jax.lax.optimization_barrier((undo, states))  # read before the caches change: no second copy
    states, frames = jax.vmap(one)(states, speak, listen)
    states = jax.vmap(partial(generator.unless, config))(active, states, undo)
    return states, jnp.where(active[:, None, None, None, None], frames, 0)
