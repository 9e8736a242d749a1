"""Distribution matching stages: from the teacher to the student that streams.

* ``online.dmd_off``: the student's estimates of the teacher's samples (``trajectories.py``), their history given,
  matched to the teacher's distribution, with a perceptual distance from the sample against mode collapse.
* ``online.dmd_on``: the same of the student's own rollouts through the streaming step (``rollout.py``).
* ``online.refine``: the Refiner's chunks, made of a fixed Backbone's rollouts.

The critic begins as the teacher, and both see windows as the teacher was trained on them, past and future at once; a
window from the middle of a rollout has no first frame.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lpm_jax.base.sampler import Guided
from lpm_jax.config import Config
from lpm_jax.flow import add_noise, sample_levels, weighted_loss
from lpm_jax.models import dit, vae
from lpm_jax.models.denoiser import Denoiser
from lpm_jax.models.text import tokenize
from lpm_jax.training import dmd, passes, rollout
from lpm_jax.training.duel import Duel
from lpm_jax.training.flow_matching import patch_weights
from lpm_jax.training.lora import whole

OFF, ON, REFINE, STREAM_AUDIO = "online.dmd_off", "online.dmd_on", "online.refine", "online.stream_audio"
STAGES = (OFF, ON, REFINE)


class Made(NamedTuple):
    """What a student made, and the window that judges read with it."""

    patches: Float[Array, "b frames tokens pc"]
    window: dict
    target: Float[Array, "b frames tokens pc"] | None = None  # the teacher's own sample, off policy


MEASURED = ("prior", "warp")


def in_dtype(config: Config, params: dict) -> dict:
    """Weights as a step computes with them, but for what was measured and belongs to the latents, not the network."""
    cast = lambda p: p.astype(config.train.dtype)  # noqa: E731
    return {name: part if name in MEASURED else jax.tree.map(cast, part) for name, part in params.items()}


def student_config(stage: str, config: Config) -> Config:
    """Without a Refiner where the Backbone alone is trained."""
    return config if stage in (REFINE, STREAM_AUDIO) else rollout.backbone_only(config)


def make_on_policy(config: Config) -> Callable[[dict, dict, Array], Made]:
    """``make(params, batch, key)``: the end of a rollout of random length."""
    distill = config.distill

    def make(params: dict, batch: dict, key: Array) -> Made:
        k_warm, k_exit, k_switch, k_roll = jax.random.split(key, 4)
        b = batch["text"].shape[0]
        warm = jax.random.randint(k_warm, (), 0, distill.rollout - distill.gradient + 1)
        count = len(config.stream.levels)
        exits = jax.random.randint(k_exit, (b,), 0, count)
        if config.stream.refine:  # the Refiner's result, which comes after the Backbone's estimates
            exits = jnp.full((b,), count)
        before = None
        if distill.switch:
            change = jax.random.bernoulli(k_switch, distill.switch, (b,))
            batch, before = switched(config, batch, warm, change)
        player = rollout.Player(config, batch, before, warm)
        patches = rollout.roll(player, params, warm, distill.gradient, exits, k_roll)
        return Made(patches, rollout.cut(config, batch, warm, distill.gradient))

    return make


def switched(config: Config, batch: dict, at: Array, change: Array) -> tuple[dict, Array]:
    """The batch with another clip's sound until chunk ``at`` where ``change``, and the prompts until then: what comes
    from there on is the batch's own."""
    from lpm_jax.models.audio import STRIDE, TOKEN
    from lpm_jax.models.conditions import history_tokens
    from lpm_jax.streaming.generator import history_samples

    tokens = STRIDE * config.stream.chunk * at
    until = {"": history_tokens(config.audio) + tokens, "_sound": history_samples(config) + TOKEN * tokens}
    mixed = dict(batch)
    for track, kind in itertools.product(("speak", "listen"), until):
        own = batch.get(track + kind)
        if own is not None:
            early = change[:, None] & (jnp.arange(own.shape[1]) < until[kind])
            early = early.reshape(*own.shape[:2], *[1] * (own.ndim - 2))
            mixed[track + kind] = jnp.where(early, jnp.roll(own, 1, axis=0), own)
    before = jnp.where(
        change.reshape(-1, *[1] * (batch["text"].ndim - 1)), jnp.roll(batch["text"], 1, 0), batch["text"]
    )
    return mixed, before


def make_off_policy(config: Config) -> Callable[[dict, dict, Array], Made]:
    """``make(params, batch, key)``: block-causal estimates of the teacher's samples, each chunk at one of the student's
    noise levels, the history at such levels too (``passes.py``)."""
    stream = config.stream

    def make(params: dict, batch: dict, key: Array) -> Made:
        k_chunks, k_noise, k_later, k_own = jax.random.split(key, 4)
        truth = dit.patchify(config.dit, batch["latents"].astype(jnp.float32))
        b, frames = truth.shape[:2]
        noise, later = (jax.random.normal(k, truth.shape) for k in (k_noise, k_later))
        later = add_noise(truth, later, jnp.full((b, frames), stream.levels[1]))
        denoise = Denoiser(config, params, batch, frames, stream.chunk)
        guessed = passes.choose(k_chunks, b, frames, stream)
        made = passes.two_passes(denoise, stream, truth, (noise, later), guessed, k_own)
        return Made(made.second, batch, truth)

    return make


def guided(config: Config) -> Config:
    """``config`` whose sampler has the teacher's guidance."""
    scales = {"text_scale": config.distill.text_scale, "audio_scale": config.distill.audio_scale}
    return dataclasses.replace(config, sample=dataclasses.replace(config.sample, **scales))


def judge_window(config: Config, batch: dict) -> dict:
    """``batch`` with the ids that stand for no text."""
    text = batch["text"]
    if jnp.issubdtype(text.dtype, jnp.floating):  # encoded already: zeros, as beyond a text's end
        return batch | {"negative": jnp.zeros_like(text)}
    empty = jnp.asarray(tokenize(config.text, ""))
    return batch | {"negative": jnp.broadcast_to(empty, text.shape)}


def make_duel(config: Config, stage: str, both: bool) -> Duel:
    """The two objectives of ``stage``. ``fixed`` has the networks that do not change: ``teacher``, and where the stage
    has them ``backbone`` (the Refiner's), ``student`` (what a LoRA changes) and ``vae`` (the perceptual distance's)."""
    config = student_config(stage, config)
    distill = config.distill
    make = make_off_policy(config) if stage == OFF else make_on_policy(config)

    def networks(params: dict, fixed: dict) -> dict:
        full = whole(fixed.get("student"), params)
        return in_dtype(config, fixed.get("backbone", {}) | full)

    def weights(params: dict, window: dict) -> Array:
        """What a value counts: its region's weight times its channel's, one on average."""
        place = patch_weights(config, window["weights"])[..., None]
        channels = params["prior"]["weight"].astype(jnp.float32)
        weight = place * jnp.tile(channels, config.dit.patch**2)
        return weight / jnp.mean(weight)

    def student(params: dict, critic: dict, fixed: dict, batch: dict, key: Array):
        k_make, k_level, k_noise = jax.random.split(key, 3)
        params = networks(params, fixed)
        made = make(params, batch, k_make)
        x, window = made.patches.astype(jnp.float32), judge_window(config, made.window)
        b, frames = x.shape[:2]
        level = dmd.sample_level(k_level, b, distill.low, distill.high, config.flow.shift)
        level = jnp.broadcast_to(level[:, None], (b, frames))
        stopped = jax.lax.stop_gradient(x)
        noisy = add_noise(stopped, jax.random.normal(k_noise, x.shape), level)
        critic = in_dtype(config, whole(fixed.get("teacher"), critic))
        fake = Denoiser(config, critic, window, frames)(noisy, level)
        real = Guided(guided(config), in_dtype(config, fixed["teacher"]), window, frames)(noisy, level)
        fake, real = jax.lax.stop_gradient((fake, real))
        loss = dmd.matching_loss(x, real, fake, weights(params, made.window))
        metrics = {"apart": jnp.mean(jnp.abs(fake - real)), "from_teacher": jnp.mean(jnp.abs(stopped - real))}
        if distill.perceptual and made.target is not None:
            metrics["perceptual"] = perceptual(config, fixed["vae"], x, made.target)
            loss += distill.perceptual * metrics["perceptual"]
        return loss, metrics

    def critic(params: dict, student: dict, fixed: dict, batch: dict, key: Array):
        k_make, k_level, k_noise = jax.random.split(key, 3)
        networks_of_student = jax.lax.stop_gradient(networks(student, fixed))
        made = jax.lax.stop_gradient(make(networks_of_student, batch, k_make))
        x = made.patches.astype(jnp.float32)
        level = sample_levels(k_level, x.shape[:2], config.flow)
        params = in_dtype(config, whole(fixed.get("teacher"), params))
        noisy = add_noise(x, jax.random.normal(k_noise, x.shape), level)
        clean = Denoiser(config, params, made.window, x.shape[1])(noisy, level)
        place, channels = patch_weights(config, made.window["weights"]), params["prior"]["weight"]
        loss, error = weighted_loss(clean, x, level, place, channels, config.flow)
        return loss, {"x0": jnp.mean(error)}

    return Duel(student, critic, both)


def perceptual(config: Config, coder: dict, a: Array, b: Array) -> Float[Array, ""]:
    """The distance of two latents in the autoencoder's decoder, on its layers' normalised features, as LPIPS on a
    network's (Zhang et al. 2018) and as Berrada et al., "Boosting Latent Diffusion with Perceptual Objectives"
    (arXiv 2411.04873), on a decoder's: a feature network that every model brings along."""
    rows, columns = config.cells
    seen = [vae.features(config.vae, coder, dit.unpatchify(config.dit, x, rows, columns)) for x in (a, b)]

    def unit(x: Array) -> Array:
        return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)

    apart = [jnp.mean(jnp.sum(jnp.square(unit(x) - unit(y)), axis=-1)) for x, y in zip(*seen, strict=True)]
    return jnp.mean(jnp.stack(apart))
