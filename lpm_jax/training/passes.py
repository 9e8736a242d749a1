"""A window in two passes: the student meets its own estimates at T1, without a rollout.

First some chunks are at T0 (pure noise) and the others, truth under noise, at T1, so that a chunk at T0 learns to
continue a history at T1: what the cache holds when it streams. Then the levels change places, and what stood at T0
stands at T1 as the network's *own* estimate, re-noised: it corrects its own mistakes, as in on-policy training
(Self-Forcing, arXiv 2506.08009), with two parallel passes instead of one for each chunk. The truth at T1 is history
only: a stream never estimates a frame from it, and a network that does learns to trust what is under the noise.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lpm_jax.config import FlowConfig, StreamConfig
from lpm_jax.errors import InputError
from lpm_jax.flow import add_noise, weighted_loss
from lpm_jax.models.denoiser import Denoiser, previous


class Passes(NamedTuple):
    """Estimates of both passes, ``[b, frames, tokens, pc]``, the levels of the second, and what the network
    says at T0 of how the picture moves, where it does."""

    first: Array
    second: Array
    level: Float[Array, "b frames"]
    moves: Array | None


def choose(key: Array, batch: int, frames: int, stream: StreamConfig) -> Bool[Array, "b frames"]:
    """Half of the chunks, at random."""
    chosen = jax.random.bernoulli(key, 0.5, (batch, frames // stream.chunk))
    return jnp.repeat(chosen, stream.chunk, axis=1)


def two_passes(
    denoise: Denoiser,
    stream: StreamConfig,
    truth: Float[Array, "b frames tokens pc"],
    states: tuple[Array, Array],
    guessed: Bool[Array, "b frames"],
    key: Array,
    known: Float[Array, "b frames tokens pc"] | None = None,
) -> Passes:
    """``states`` are the window at T0 and at T1, ``guessed`` what the first pass has at T0. Near latents are taken from
    the network's estimates, or from ``known``, by default the truth. No gradient passes from one pass to the other.

    Raises:
      InputError: the student does not run at two levels.
    """
    if len(stream.levels) != 2:
        raise InputError(f"stream.levels: expected two noise levels to train at, found {stream.levels}")
    at_start, at_later = states
    start, later = stream.levels
    known = truth if known is None else known
    where = guessed[..., None, None]
    near = previous(known, denoise.first, denoise.anchor, stream)
    first, moves = denoise.look(jnp.where(where, at_start, at_later), jnp.where(guessed, start, later), near)
    guess = jax.lax.stop_gradient(first)
    level = jnp.where(guessed, later, start)
    own = add_noise(guess, jax.random.normal(key, truth.shape, truth.dtype), level)
    near = previous(jnp.where(where, guess, known), denoise.first, denoise.anchor, stream)
    draft = jnp.where(where, guess, denoise.anchor)
    second, moves_later = denoise.look(jnp.where(where, own, at_start), level, near, draft)
    return Passes(first, second, level, None if moves is None else jnp.where(where, moves, moves_later))


def loss(
    made: Passes,
    truth: Float[Array, "b frames tokens pc"],
    guessed: Bool[Array, "b frames"],
    weight: Float[Array, "b frames tokens"],
    channels: Float[Array, " c"],
    config: FlowConfig,
) -> tuple[Array, Float[Array, "b frames"]]:
    """:func:`lpm_jax.flow.weighted_loss` of all that was estimated as in a stream, and the second pass's errors."""
    counts = weight * guessed[..., None]
    first, _ = weighted_loss(made.first, truth, jnp.ones_like(made.level), counts, channels, config)
    second, error = weighted_loss(made.second, truth, made.level, weight, channels, config)
    share = jnp.sum(counts) / jnp.sum(weight)
    return (share * first + second) / (share + 1), error
