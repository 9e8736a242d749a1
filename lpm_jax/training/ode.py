"""``online.ode``: the student regresses the teacher's clean latents from the states of its trajectories.

Chunks at T0 are as the teacher's flow began, with histories as it passed through T1: the causal student's ODE
initialisation (Yin et al., "From Slow Bidirectional to Fast Autoregressive Video Diffusion Models", arXiv 2412.07772).
Published follow-ups find it harmful where the teacher looks ahead, since a causal student cannot know which of the
futures it was (Causal-Forcing); ``online.causal`` is there to compare with. At T1 it starts from the student's own
estimate, re-noised (``passes.py``), as a stream does, where the original has the teacher's state.

The noise of a trajectory decides every detail of its end, a weak teacher's grain too, and the student learns to make
that of it again. With ``distill.fresh`` so many windows start from noise of their own instead, mixed with the teacher's
sample: what the noise alone decided is averaged away, and what the teacher makes of sound and prompt stays.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lpm_jax.config import Config
from lpm_jax.flow import add_noise
from lpm_jax.models import dit
from lpm_jax.models.denoiser import Denoiser
from lpm_jax.training import passes
from lpm_jax.training.distill import in_dtype
from lpm_jax.training.flow_matching import by_kind, by_level, patch_weights


def make_loss(config: Config):
    """``loss(params, batch, key)`` of batches of trajectories."""
    stream = config.stream

    def loss(params: dict, batch: dict, key: Array):
        params = in_dtype(config, params)
        truth = dit.patchify(config.dit, batch["latents"].astype(jnp.float32))
        b, frames = truth.shape[:2]
        k_chunks, k_fresh, k_noise, k_own = jax.random.split(key, 4)
        states = [dit.patchify(config.dit, batch["states"][:, i].astype(jnp.float32)) for i in range(2)]
        if config.distill.fresh:
            fresh = jax.random.bernoulli(k_fresh, config.distill.fresh, (b, 1, 1, 1))
            noise = jax.random.normal(k_noise, truth.shape)
            for i, level in enumerate(stream.levels):
                own = add_noise(truth, noise, jnp.full((b, frames), level))
                states[i] = jnp.where(fresh, own, states[i])
        guessed = passes.choose(k_chunks, b, frames, stream)
        denoise = Denoiser(config, params, batch, frames, stream.chunk)
        made = passes.two_passes(denoise, stream, truth, tuple(states), guessed, k_own)
        weight = patch_weights(config, batch["weights"])
        value, error = passes.loss(made, truth, guessed, weight, params["prior"]["weight"], config.flow)
        return value, by_level(error, made.level) | by_kind(error, batch)

    return loss
