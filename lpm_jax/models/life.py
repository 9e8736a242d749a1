"""A little life: small motion of a performer that neither sound nor prompt foretells, so it is drawn.

A network that learns from clips in which heads sway and eyes blink when they like learns the mean of all that may be,
and a mean is blurred. So in training it is told what the clip does (``data_pipeline.schema.LIFE``), and in a stream it
is told this:

* *sway* (yaw, roll, pitch): oscillators with a period of six seconds, which small pushes keep going and lead astray,
  ``z <- r e^{i w} z + i s n``, ``n ~ N(0, 1)``, told ``2 tanh(Re z / 2)``;
* *glances* (gaze to the side and down) and *blinks*: now and then, as long as those of rendered performers.

All at rest when the stream begins. The state is the stream's, not the clock's. Others draw the head's motion from a
learned prior (SadTalker's PoseVAE, arXiv 2211.12194).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from data_pipeline.schema import FPS, LATENT_STRIDE, LIFE

SWAYS, GAZE = 3, (1.5, 1.5)  # how far a glance goes, in the units of LIFE
PERIOD, MEMORY = 6.0, 12.0  # seconds: of a sway to and fro, and until its phase is forgotten
_DECAY, _TURN = math.exp(-1 / FPS / MEMORY), 2 * math.pi / FPS / PERIOD  # in a video frame
_PUSH = math.sqrt(2 * (1 - _DECAY**2))  # keeps values at a variance of about one
GLANCES, BLINKS = (3.0, 6.0), (3.5, 6.0)  # seconds from one to the next
HOLDS, GLANCE_EASE = (0.5, 1.1), (0.1, 0.12)  # of a glance: how long it stays; to and back
BLINK_HOLD, BLINK_EASE = 0.18, (0.12, 0.2)


def begin(key: Array, batch: int) -> Float[Array, "b state"]:
    """At rest, sways on their way: their real and their imaginary parts; seconds since and until a glance, its hold, x
    and y; seconds since and until a blink."""
    k_sway, k_glance, k_blink = jax.random.split(key, 3)
    still, long_ago = jnp.zeros((batch, SWAYS)), jnp.full((batch, 1), 100.0)
    speed = math.sqrt(2) * jax.random.normal(k_sway, (batch, SWAYS))
    glance, blink = (jax.random.uniform(k, (batch, 1), minval=0.8, maxval=4.0) for k in (k_glance, k_blink))
    nowhere = jnp.zeros((batch, 3))
    return jnp.concatenate([still, speed, long_ago, glance, nowhere, long_ago, blink], axis=1)


def onward(
    state: Float[Array, "b state"], frames: int, key: Array
) -> tuple[Float[Array, "b state"], Float[Array, "b frames life"]]:
    """The state after ``frames`` latent frames, and what each of them is told: the mean of its video frames."""
    b, step = len(state), 1 / FPS
    cos, sin = _DECAY * math.cos(_TURN), _DECAY * math.sin(_TURN)
    k_push, k_draw = jax.random.split(key)
    pushes = _PUSH * jax.random.normal(k_push, (frames * LATENT_STRIDE, b, SWAYS))
    draws = jax.random.uniform(k_draw, (frames * LATENT_STRIDE, b, 5))

    def onward_one(state: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        push, draw = given
        x, y = state[:, :SWAYS], state[:, SWAYS : 2 * SWAYS]
        x, y = cos * x + sin * y, cos * y - sin * x + push
        since, until, hold, *to, closed_for, open_for = state[:, 2 * SWAYS :].T
        since, until, closed_for, open_for = since + step, until - step, closed_for + step, open_for - step
        now, shut = until <= 0, open_for <= 0
        fresh = [low + (high - low) * u for (low, high), u in zip((GLANCES, HOLDS), draw.T[:2], strict=True)]
        since, until, hold = (jnp.where(now, a, old) for a, old in ((0.0, since), (fresh[0], until), (fresh[1], hold)))
        to = [jnp.where(now, far * (2 * u - 1), old) for far, u, old in zip(GAZE, draw.T[2:4], to, strict=True)]
        closed_for = jnp.where(shut, 0.0, closed_for)
        open_for = jnp.where(shut, BLINKS[0] + (BLINKS[1] - BLINKS[0]) * draw[:, 4], open_for)
        there = plateau(since, hold, *GLANCE_EASE)
        told = [2 * jnp.tanh(x / 2), *(a * there for a in to), plateau(closed_for, BLINK_HOLD, *BLINK_EASE)]
        told = jnp.concatenate([a.reshape(b, -1) for a in told], axis=1)
        rest = jnp.stack([since, until, hold, *to, closed_for, open_for], axis=1)
        return jnp.concatenate([x, y, rest], axis=1), told

    state, told = jax.lax.scan(onward_one, state, (pushes, draws))
    return state, told.reshape(frames, LATENT_STRIDE, b, len(LIFE)).mean(axis=1).swapaxes(0, 1)


def plateau(since: Array, end: Array | float, rise: float, fall: float) -> Array:
    """Up within ``rise`` seconds and, from ``end`` on, down again within ``fall``."""
    ease = lambda x: 0.5 - 0.5 * jnp.cos(jnp.pi * jnp.clip(x, 0, 1))  # noqa: E731
    return ease(since / rise) * (1 - ease((since - end) / fall))
