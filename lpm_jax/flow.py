r"""Flow matching: the forward process, what the network predicts, and the loss.

    x_t = (1 - t) x_0 + t \epsilon,        t in [0, 1],   \epsilon ~ N(0, I)
    v   = dx_t / dt = \epsilon - x_0

(Lipman et al. 2023; Wan 2.1's convention.) The network's output F is read as

    "velocity":  v = F(x_t)                  x_0 = x_t - t F
    "clean":     x_0 = a + (1 + G) (m - a) + H (n - a) + F    v   = (x_t - x_0) / t

where ``m = a + k (x_t - (1 - t) a)``, ``k = (1 - t) s / ((1 - t)^2 s + t^2)``, is what is best without a network if
``x_0`` were Gaussian with variance ``s`` (per channel, measured) around the anchor ``a``, the clean global reference
(preconditioning as in Karras et al. 2022, with the reference for a mean). A character that does not move is right from
the first step, and at ``t = 1`` the network looks at the character instead of at noise that says nothing: without that,
one as narrow as the toy's cannot even learn a single batch at ``t = 1``. ``G`` and ``H``, one number each a token and
channel, do what ``F`` could not, a token having more values than the network is wide: ``G`` is what the network knows
about the variance *here*, and takes the noise out where nothing moves (``G = -1``); ``H`` carries over the *near*
latent ``n``, the last one known before a chunk, so that a pose once taken is kept without being drawn anew (``H = 1``,
its bound; below one, mistakes fade towards the reference). Large models use "velocity" and none of this.

Where ``x_t`` is the network's own estimate, re-noised, as in every evaluation of a chunk but the first, that *draft*
takes the place of ``m``: what is best when the noise is known, and none of it comes through.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lpm_jax.config import FlowConfig


def _beside(level: Array, x: Array) -> Array:
    """Noise levels ``[b, frames]`` that broadcast against ``x`` from the left, in its dtype."""
    return level.reshape(*level.shape, *(1,) * (x.ndim - level.ndim)).astype(x.dtype)


def add_noise(clean: Array, noise: Array, level: Array) -> Array:
    """``x_t`` for noise levels that broadcast against the data from the left (``[b, frames]``)."""
    t = _beside(level, clean)
    return (1 - t) * clean + t * noise


def gaussian_estimate(noisy: Array, level: Float[Array, "b frames"], anchor: Array, variance: Array) -> Array:
    """``m`` above; ``variance`` belongs to the last axis, or to equal parts of it."""
    t = _beside(level, noisy)
    s = jnp.tile(variance.astype(noisy.dtype), noisy.shape[-1] // variance.shape[-1])
    gain = (1 - t) * s / (jnp.square(1 - t) * s + jnp.square(t))
    return anchor + gain * (noisy - (1 - t) * anchor)


def network_input(
    prediction: str, noisy: Array, level: Float[Array, "b frames"], anchor: Array, variance: Array
) -> Array:
    """What the network is shown of ``x_t``."""
    return gaussian_estimate(noisy, level, anchor, variance) if prediction == "clean" else noisy


def carried(last: Array, anchor: Array, share: float) -> Array:
    """The near latent that a chunk starts from: ``share`` of what the last one known differs from the anchor."""
    return anchor + share * (last - anchor)


def clean_from_output(
    prediction: str,
    output: Array,
    shown: Array,
    level: Float[Array, "b frames"],
    anchor: Array,
    near: Array,
    draft: Array | None = None,
    moved: Array | None = None,
) -> Array:
    """The network's estimate of ``x_0`` from its output and what it was shown (:func:`network_input`).

    In ``"clean"`` the output's last axis holds ``F``, then ``G`` and ``H``, which belong to equal parts of it.
    ``draft`` is the estimate that was re-noised, where ``x_t`` is one. ``moved`` is what the anchor changes by when it
    is moved as the network says (``models/warp.py``): it counts at level 1, for below it ``x_t`` shows what has moved.
    """
    if prediction == "clean":
        shown = shown if draft is None else draft
        change, gates = jnp.split(output, [shown.shape[-1]], axis=-1)
        repeats = 2 * shown.shape[-1] // gates.shape[-1]
        noise, carry = (jnp.tile(gate, repeats) for gate in jnp.split(gates, 2, axis=-1))
        clean = shown + noise * (shown - anchor) + jnp.clip(carry, -1, 1) * (near - anchor) + change
        if moved is not None:
            clean += jnp.where(_beside(level, moved) < 1, 0, moved)
        return clean
    return shown - _beside(level, shown) * output


def shift_level(level: ArrayLike, shift: float) -> ArrayLike:
    """Wan's timestep shift: ``shift t / (1 + (shift - 1) t)``; 1 leaves the level as it is."""
    return shift * level / (1 + (shift - 1) * level)


def sample_levels(key: Array, shape: tuple[int, int], config: FlowConfig) -> Float[Array, "b frames"]:
    """Training levels: a quarter pure noise; the rest uniform, half of them one level a clip, half one a frame."""
    k1, k2, k3, k4 = jax.random.split(key, 4)
    b = shape[0]
    each = jax.random.uniform(k1, shape)
    one = jax.random.uniform(k2, (b, 1))
    level = jnp.where(jax.random.bernoulli(k3, 0.5, (b, 1)), each, one)
    pure = jax.random.bernoulli(k4, 0.25, (b, 1))
    return shift_level(jnp.where(pure, 1.0, level), config.shift)


def weighted_loss(
    clean: Float[Array, "b frames tokens d"],
    truth: Float[Array, "b frames tokens d"],
    level: Float[Array, "b frames"],
    weight: Float[Array, "b frames tokens"],
    channels: Float[Array, " c"],
    config: FlowConfig,
) -> tuple[Array, Array]:
    """The velocity loss written in ``x_0``, ``|x_0 - truth|^2 / max(t, floor)^2``, and the error per frame without the
    noise level's and the tokens' weights. ``channels`` weighs the last axis, or equal parts of it."""
    square = jnp.square(clean.astype(jnp.float32) - truth.astype(jnp.float32))
    error = jnp.mean(square * jnp.tile(channels.astype(jnp.float32), square.shape[-1] // channels.shape[-1]), axis=-1)
    scale = 1.0 / jnp.square(jnp.maximum(level, config.loss_floor))
    loss = jnp.sum(error * weight * scale[..., None]) / jnp.maximum(jnp.sum(weight), 1e-6)  # nothing counts: no loss
    return loss, jnp.mean(error, axis=-1)
