"""Several sessions in one compiled program: ``S`` static slots, joined and left at chunk boundaries.

A slot's numbers never depend on what the others hold, so a session is bit-equal to itself alone in the same program.
Two ways to compute, the same results up to rounding:

* ``"turns"``: a loop over slots; one that is idle costs nothing.
* ``"together"``: one batch; idle slots are computed and thrown away. For machines that a small batch leaves waiting
  (``shared.py``).
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

WAYS = ("turns", "together")
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


@partial(jax.jit, static_argnums=0, static_argnames="way", donate_argnums=2)
def slots_step(
    config: Config,
    params: dict,
    states: StreamState,
    active: Bool[Array, " slots"],
    speak: Float[Array, "slots samples"],
    listen: Float[Array, "slots samples"],
    *,
    way: str = "turns",
) -> tuple[StreamState, UInt8[Array, "slots frames h w 3"]]:
    """The next chunk of every active slot; the others stay as they are and their frames are black. ``states`` is
    donated."""

    def one(state: StreamState, speak: Array, listen: Array) -> tuple[StreamState, Array]:
        state, frames = generator.step(config, params, state, speak[None], listen[None])
        return state, frames[0]

    if way == "together":
        undo = jax.vmap(partial(generator.before, config))(states)
        undo, states = jax.lax.optimization_barrier((undo, states))  # read before the caches change: no second copy
        states, frames = jax.vmap(one)(states, speak, listen)
        states = jax.vmap(partial(generator.unless, config))(active, states, undo)
        return states, jnp.where(active[:, None, None, None, None], frames, 0)
    if way != "turns":
        raise ValueError(f"way: expected one of {', '.join(WAYS)}, found {way!r}")
    height, width = config.pixels
    black = jnp.zeros((config.stream.chunk * config.vae.group, height, width, 3), jnp.uint8)

    def turn(states: StreamState, slot: Array) -> tuple[StreamState, Array]:
        state = jax.tree.map(lambda all: jax.lax.dynamic_index_in_dim(all, slot, keepdims=False), states)
        state, frames = jax.lax.cond(
            active[slot], one, lambda state, *_: (state, black), state, speak[slot], listen[slot]
        )
        return jax.tree.map(lambda all, new: all.at[slot].set(new), states, state), frames

    return jax.lax.scan(turn, states, jnp.arange(len(speak)))
