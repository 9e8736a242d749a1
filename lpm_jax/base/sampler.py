r"""Sampling a window of video from Base: the flow's ordinary differential equation with two guidance scales.

    t_i      = shift s_i / (1 + (shift - 1) s_i),     s_i = 1 - i / steps                     (Wan 2.1's shift)
    x_{i+1}  = x_0 + (t_{i+1} / t_i) (x_i - x_0)      Euler, written with the estimate x_0 of the clean latent

    x_0      = (1 - a) x_0(-, -) + (a - s) x_0(-, audio) + s x_0(text, audio)

with ``a`` the scale of audio and ``s`` that of text: ``x_0(-,-) + a (x_0(-,audio) - x_0(-,-)) + s (x_0(text,audio) -
x_0(-,audio))``, in the order of MultiTalk (arXiv 2505.22647). All terms are one batch; those whose factor is zero are
left out, so equal scales cost two evaluations and scales of one cost one.

Frames may start below ``t = 1``: a long video's next segment begins with the tail of the one before, taken back to
``tail_level``. Such a frame waits until the others have come down to its level, and goes on with them (the base stages
train on frames of different levels).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lpm_jax.config import Config, SampleConfig
from lpm_jax.flow import add_noise, shift_level
from lpm_jax.models import dit
from lpm_jax.models.denoiser import Denoiser

#: What each guidance term is told of (text, audio).
TERMS = {"none": (0.0, 0.0), "audio": (0.0, 1.0), "all": (1.0, 1.0)}


def levels(config: SampleConfig) -> Float[np.ndarray, " steps_and_one"]:
    """The noise levels from 1 to 0."""
    return np.asarray(shift_level(np.linspace(1.0, 0.0, config.steps + 1), config.shift), np.float32)


def guidance(config: SampleConfig) -> dict[str, float]:
    """Factors of the terms that count; they sum to one."""
    text, audio = config.text_scale, config.audio_scale
    factors = {"none": 1.0 - audio, "audio": audio - text, "all": text}
    return {term: factor for term, factor in factors.items() if abs(factor) > 1e-6}


class Guided:
    """A denoiser whose estimate is the guided one. ``batch`` as for :class:`Denoiser`, with ``negative`` besides, as
    ``text``: what stands for no text."""

    def __init__(self, config: Config, params: dict, batch: dict, frames: int):
        self.factors = guidance(config.sample)
        self.batch = b = batch["text"].shape[0]
        n = len(self.factors)
        heard = np.repeat([TERMS[term][1] for term in self.factors], b)
        text = jnp.concatenate([batch["text" if TERMS[term][0] else "negative"] for term in self.factors])
        tiled = {
            name: jnp.concatenate([batch[name]] * n)
            for name in ("speak", "listen", "references", "reference_kinds", "reference_valid", "life")
            if name in batch
        }
        drop = {"audio": jnp.asarray(heard, jnp.float32)}
        self.denoise = Denoiser(config, params, tiled | {"text": text}, frames, drop=drop)
        self.near: Array | None = None  # by default the first frame

    def __call__(self, noisy: Float[Array, "b frames tokens pc"], level: Float[Array, "b frames"]) -> Array:
        n = len(self.factors)
        near = None if self.near is None else jnp.concatenate([self.near] * n)
        clean = self.denoise(jnp.concatenate([noisy] * n), jnp.concatenate([level] * n), near)
        terms = clean.astype(jnp.float32).reshape(n, self.batch, *clean.shape[1:])
        return jnp.tensordot(jnp.asarray(list(self.factors.values())), terms, axes=1)


def integrate(
    denoise: Callable, noise: Array, steps: Float[np.ndarray, " n"], start: Float[Array, "b frames"]
) -> Array:
    """``x`` at the last of ``steps``, from an ``x = noise`` whose frames are at levels ``start``, the first step's at
    most."""

    def step(x, pair):
        now, then = jnp.minimum(pair[0], start), jnp.minimum(pair[1], start)
        clean = denoise(x, now)
        ratio = jnp.where(now > 0, then / jnp.maximum(now, 1e-6), 1.0)[..., None, None]
        return clean + ratio * (x - clean), None

    pairs = jnp.stack([jnp.asarray(steps[:-1]), jnp.asarray(steps[1:])], axis=1)
    return jax.lax.scan(step, noise.astype(jnp.float32), pairs)[0]


@partial(jax.jit, static_argnums=(0, 5))
def sample(
    config: Config,
    params: dict,
    batch: dict,
    tail: Float[Array, "b shared h w c"],
    continues: Array,
    frames: int,
    key: Array,
) -> Float[Array, "b frames h w c"]:
    """Latents of one window of ``frames`` latent frames, float32.

    Args:
      batch: as for :class:`Guided`.
      tail: the last latents of the segment before, for the first frames of this one; read where ``continues``.
      continues: a boolean scalar.
    """
    cfg = config.dit
    b, shared = tail.shape[:2]
    _, _, h, w, _ = batch["references"].shape
    denoise = Guided(config, params, batch, frames)
    shape = (b, frames, (h // cfg.patch) * (w // cfg.patch), cfg.patch**2 * cfg.channels)
    noise = jax.random.normal(key, shape, jnp.float32)
    start = jnp.where(continues & (jnp.arange(frames) < shared), config.sample.tail_level, 1.0)
    start = jnp.broadcast_to(start, (b, frames))
    if shared:
        denoise.near = jnp.where(continues, dit.patchify(cfg, tail[:, :1]), denoise.denoise.first[:b])
    before = jnp.pad(dit.patchify(cfg, tail), ((0, 0), (0, frames - shared), (0, 0), (0, 0)))
    x = integrate(denoise, add_noise(before, noise, start), levels(config.sample), start)
    return dit.unpatchify(cfg, x, h, w)
