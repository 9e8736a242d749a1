"""``online.ode``: the student regresses the teacher's clean latents from the states of its trajectories.

Each chunk of a window is at one of the noise levels that the student runs at, as the teacher's flow passed through it,
and looks back at chunks at such levels: the causal student's ODE initialisation (Yin et al., "From Slow Bidirectional
to Fast Autoregressive Video Diffusion Models", arXiv 2412.07772). Published follow-ups find it harmful where the
teacher looks ahead, since a causal student cannot know which of the futures it was (Causal-Forcing); ``online.causal``
is there to compare with.

The noise of a trajectory decides every detail of its end, a weak teacher's grain too, and the student learns to make
that of it again. With ``distill.fresh`` so many windows start from noise of their own instead, mixed with the teacher's
sample: what the noise alone decided is averaged away, and what the teacher makes of sound and prompt stays.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lpm_jax.config import Config
from lpm_jax.flow import add_noise, weighted_loss
from lpm_jax.models import dit
from lpm_jax.models.denoiser import Denoiser, previous
from lpm_jax.training.distill import in_dtype
from lpm_jax.training.flow_matching import by_kind, by_level, patch_weights
from lpm_jax.training.trajectories import kept_levels


def make_loss(config: Config):
    """``loss(params, batch, key)`` of batches of trajectories."""
    levels, stream = kept_levels(config), config.stream

    def loss(params: dict, batch: dict, key: Array):
        params = in_dtype(config, params)
        truth = dit.patchify(config.dit, batch["latents"].astype(jnp.float32))
        b, frames = truth.shape[:2]
        k_level, k_fresh, k_noise = jax.random.split(key, 3)
        which = jax.random.randint(k_level, (b, frames // stream.chunk), 0, len(levels))
        which = jnp.repeat(which, stream.chunk, axis=1)
        level = jnp.asarray(levels)[which]
        chosen = which[:, None, :, None, None, None]
        states = jnp.take_along_axis(batch["states"].astype(jnp.float32), chosen, axis=1)[:, 0]
        states = dit.patchify(config.dit, states)
        if config.distill.fresh:
            fresh = jax.random.bernoulli(k_fresh, config.distill.fresh, (b, 1, 1, 1))
            states = jnp.where(fresh, add_noise(truth, jax.random.normal(k_noise, truth.shape), level), states)
        denoise = Denoiser(config, params, batch, frames, stream.chunk)
        near = previous(truth, denoise.first, denoise.anchor, stream)
        clean = denoise(states, level, near)
        weight = patch_weights(config, batch["weights"])
        value, error = weighted_loss(clean, truth, level, weight, params["prior"]["weight"], config.flow)
        return value, by_level(error, level) | by_kind(error, batch)

    return loss
