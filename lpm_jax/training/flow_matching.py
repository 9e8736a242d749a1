"""Flow matching of the diffusion transformer: the base stages and the first causal student.

``base.speak``, ``base.listen`` and ``base.identity`` train the bidirectional teacher, each on its mixture: speaking and
silence first, then everything, then further references.

``online.causal`` trains the streaming student with the block-causal mask at the two noise levels that it will run at
(``passes.py``).
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from data_pipeline.loader import RegionWeights, Window, latent_batches
from lpm_jax import flops
from lpm_jax.checkpoint import load_weights
from lpm_jax.config import Config
from lpm_jax.errors import InputError
from lpm_jax.flow import add_noise, sample_levels, weighted_loss
from lpm_jax.models import conditions, dit, vae, warp
from lpm_jax.models.audio import STRIDE
from lpm_jax.models.denoiser import Denoiser, take
from lpm_jax.training import encoders, latents, passes
from lpm_jax.training import lips as mouths
from lpm_jax.training.loop import Stage
from lpm_jax.training.resume import load_average
from lpm_jax.training.voices import as_other_voices

CAUSAL = ("online.causal",)
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)  # noise levels between which the teacher's error is told apart
FAR = 2.0  # pixels: errors of a displacement count by their squares up to here
NEAR_NOISE = 0.1  # standard deviation of what is added to the truth's near latents; the latent's is one


def keep_patches(key: Array, weights: Float[Array, "b frames tokens"], share: float) -> Int[Array, "b kept"] | None:
    """Patches that a step computes: all where the loss weighs more than 1, the rest at random up to ``share``."""
    b, _, n = weights.shape
    if share >= 1:
        return None
    important = weights.max(axis=1)
    score = jax.random.uniform(key, (b, n)) + 2.0 * (important > 1.01) * jnp.minimum(important, 1.6)
    return jnp.sort(jax.lax.top_k(score, int(share * n))[1], axis=1)


def make_loss(config: Config, causal: bool, share: float, reader: dict | None = None):
    """``loss(params, batch, key)`` of a stage that computes ``share`` of each frame's patches; ``reader`` is stage
    ``lips``' network, where ``train.lips`` weighs what it reads."""
    train, flow = config.train, config.flow

    def lips(clean, batch, keep, counts):
        return mouths.difference(config, reader, clean, batch, keep, counts) if reader else 0.0

    dtype = jnp.dtype(train.dtype)

    def loss(params, batch, key):
        k_keep, k_text, k_audio, k_level, k_noise, k_noise2, k_near = jax.random.split(key, 7)
        params = jax.tree.map(lambda p: p.astype(dtype), params)
        batch = as_other_voices(config, batch, jax.random.fold_in(key, 1))
        b, frames = batch["latents"].shape[:2]
        weight = patch_weights(config, batch["weights"])
        keep = keep_patches(k_keep, weight, share)
        dropout = (flow.text_dropout, 0.0 if causal else flow.audio_dropout)
        drop = {
            name: jax.random.bernoulli(k, 1 - p, (b,)).astype(jnp.float32)
            for name, k, p in zip(("text", "audio"), (k_text, k_audio), dropout, strict=True)
        }
        denoise = Denoiser(config, params, batch, frames, config.stream.chunk if causal else None, keep, drop)
        weight = take(weight, keep)
        truth = take(dit.patchify(config.dit, batch["latents"].astype(dtype)), keep)
        channels = params["prior"]["weight"]
        noise = jax.random.normal(k_noise, truth.shape, dtype)
        if not causal:
            level = sample_levels(k_level, (b, frames), flow)
            clean, moves = denoise.look(add_noise(truth, noise, level), level)
            value, error = weighted_loss(clean, truth, level, weight, channels, flow)
            read = lips(clean, batch, keep, jnp.ones((b, frames)))
            metrics = by_level(error, level, LEVELS) | by_kind(error, batch)
            value, metrics = follow(config, value, metrics, params, moves, batch, level >= 1)
            return value + train.lips * read, metrics | ({"lips": read} if reader else {})
        guessed = passes.choose(k_level, b, frames, config.stream)
        later = add_noise(truth, noise, jnp.full((b, frames), config.stream.levels[1]))
        off = NEAR_NOISE * jax.random.normal(k_near, truth.shape, dtype)  # the truth's near latents, a little off
        made = passes.two_passes(denoise, config.stream, truth, (noise, later), guessed, k_noise2, truth + off)
        value, error = passes.loss(made, truth, guessed, weight, channels, flow)
        read = 0.5 * lips(made.first, batch, keep, guessed) + lips(made.second, batch, keep, jnp.ones((b, frames)))
        metrics = by_level(error, made.level) | by_kind(error, batch)
        value, metrics = follow(config, value, metrics, params, made.moves, batch, jnp.ones((b, frames), bool))
        return value + train.lips * read, metrics | ({"lips": read} if reader else {})

    return loss


def follow(
    config: Config,
    value: Float[Array, ""],
    metrics: dict,
    params: dict,
    moves: Float[Array, "b frames tokens values"] | None,
    batch: dict,
    counts: Bool[Array, "b frames"],
) -> tuple[Float[Array, ""], dict]:
    """A loss and its metrics with the error of what the network says has moved in the frames that count, where
    ``train.moves`` weighs it."""
    if moves is None or not config.train.moves:
        return value, metrics
    want = batch["moves"].astype(jnp.float32)
    off = optax.huber_loss((warp.field(params["warp"], moves).reshape(want.shape) - want) / FAR)
    found = _mean(off.mean((2, 3, 4, 5)), counts & (batch["moves_known"] > 0)[:, None])
    return value + config.train.moves * found[0] / jnp.maximum(found[1], 1), metrics | {"moves": found}


def _mean(error: Array, where: Array) -> Float[Array, "2"]:
    """Sum and count over the chosen places: what the loop averages, since a batch may have none (``observe``)."""
    where = jnp.broadcast_to(where, error.shape)
    return jnp.stack([jnp.sum(jnp.where(where, error, 0.0)), jnp.sum(where, dtype=jnp.float32)])


def by_level(
    error: Float[Array, "b frames"], level: Float[Array, "b frames"], edges: tuple[float, ...] = ()
) -> dict[str, Float[Array, "2"]]:
    """The plain ``x_0`` error among pure-noise frames and among the others, the latter also between ``edges``."""
    pure = level > 0.99
    between = {
        f"x0/level_{low:g}_{high:g}": _mean(error, ~pure & (level >= low) & (level < high))
        for low, high in zip(edges, edges[1:], strict=False)
    }
    return {"x0_pure": _mean(error, pure), "x0_noisy": _mean(error, ~pure)} | between


def by_kind(error: Float[Array, "b frames"], batch: dict) -> dict[str, Float[Array, "2"]]:
    """The plain ``x_0`` error by what the clip shows: speaking, listening, conversation, idling."""
    if "kind" not in batch:
        return {}
    return {f"x0/{name}": _mean(error, (batch["kind"] == i)[:, None]) for i, name in enumerate(latents.KINDS)}


def patch_weights(config: Config, weights: Float[Array, "b f h w"]) -> Float[Array, "b f tokens"]:
    """Cell weights to patches: a patch weighs as its heaviest cell."""
    p = config.dit.patch
    b, f, h, w = weights.shape
    return weights.reshape(b, f, h // p, p, w // p, p).max(axis=(3, 5)).reshape(b, f, -1)


def step_flops(config: Config, causal: bool) -> float:
    """Operations of one training step of the transformer: a pass counts three times, for itself and its gradients.

    Encoders and the autoencoder, small beside it or frozen, are not counted; nor is what is computed twice to save
    memory, so that the share of the peak speed says what the model got.
    """
    train, (height, width) = config.train, config.grid
    work = flops.Workload(
        batch=train.batch,
        frames=train.latents,
        height=height,
        width=width,
        references=3 if train.extra_references else 2,
        text=(config.text.umt5 or config.text).tokens,
        audio=conditions.history_tokens(config.audio) + STRIDE * train.latents,
    )
    whole = 1.0 if train.token_keep >= 1 else 1 / train.whole_every if train.whole_every else 0.0
    kept = dataclasses.replace(work, height=1, width=max(int(train.token_keep * height * width), 1))
    each = whole * flops.total(flops.costs(config.dit, work)).flops
    each += (1 - whole) * flops.total(flops.costs(config.dit, kept)).flops
    return 3.0 * (2 if causal else 1) * each


def frozen(params: dict) -> dict:
    """Which parameters a diffusion stage leaves as they are: the measured ones of ``prior`` and ``warp``, an audio
    encoder, and what stage ``audio`` trained."""
    return {
        name: jax.tree_util.tree_map_with_path(
            lambda path, _, n=name: n in ("prior", "audio", "warp") or _hears(path), p
        )
        for name, p in params.items()
    }


def _hears(path: tuple) -> bool:
    return getattr(path[0], "key", None) == "hearing" if path else False


def starting_weights(workdir: Path, stage: str, like: dict) -> dict:
    """The weights that ``stage`` ended with, or with ``STAGE@STEP`` the average in one of its checkpoints.

    Raises:
      InputError: there are none, or they are another model's.
    """
    name, _, step = stage.partition("@")
    if step:
        return load_average(workdir / name / "checkpoints", step, like)
    if not (workdir / name / "weights").is_dir():
        raise InputError(f"{workdir}: expected the finished weights of {name}, found none")
    return load_weights(workdir / name / "weights", "model", like)


def with_hearing(params: dict, workdir: Path) -> dict:
    """``params`` with what stage ``audio`` trained in ``workdir`` in place of their own."""
    like = {name: params[name]["hearing"] for name in ("speak", "listen")}
    heard = load_weights(workdir / "audio" / "weights", "model", like)
    return params | {name: params[name] | {"hearing": heard[name]} for name in like}


def with_motions(config: Config, params: dict, coder: dict, source: latents.LatentSource) -> dict:
    """``params`` with the motions by which their model moves the picture, measured where there are none yet."""
    if not config.dit.warp or np.any(params["warp"]["motions"]):
        return params
    everything = latents.LatentSource(source.directory)  # not only the kinds of this stage
    motions = latents.principal_motions(everything, config.dit.warp)
    return params | {"warp": jax.tree.map(jnp.asarray, warp.measured(coder, motions))}


def make_stage(stage: str, before: str, config: Config, workdir: Path) -> Stage:
    """Assembles a diffusion stage that starts from ``before`` (a stage's name, or ``scratch``)."""
    train = config.train
    causal = stage in CAUSAL
    params = conditions.init(config, jax.random.key(train.seed))
    if before != "scratch":
        params = starting_weights(workdir, before, params)
    coder = load_weights(workdir / "vae" / "weights", "model", vae.abstract(config.vae))
    window = Window(
        latents=train.latents,
        history=conditions.history_tokens(config.audio),
        weights=RegionWeights(train.mouth, train.eyes, train.face),
        first_frame=0.7,
        extra=train.extra_references,
        picture=train.from_picture,
        mouth=bool(train.lips),
        no_text=config.flow.text_dropout,
    )
    reader = mouths.load(config, workdir)
    source = latents.LatentSource(latents.build(config, coder, "train", workdir), train.kinds)
    held_out = latents.LatentSource(latents.build(config, coder, "held_out", workdir))
    if before == "scratch":
        if encoders.is_large(config):
            raise InputError(
                "--train.init: expected a converted model's weights (from_model), found none to start from"
            )
        if config.audio.hearing:
            params = with_hearing(params, workdir)
        variance = latents.variance_around_reference(source)
        # Errors count as in pixels through the autoencoder's linear part, scaled to one for a still character.
        weight = 1 / np.square(np.asarray(coder["scale"]))
        weight /= np.mean(weight * variance)
        params["prior"] = {"variance": jnp.asarray(variance), "weight": jnp.asarray(weight, jnp.float32)}
    params = with_motions(config, params, coder, source)
    from lpm_jax.training.validation import Validator

    def data(rows):
        return latent_batches(source, window, batch=train.batch, rows=rows, seed=train.seed, threads=train.data_threads)

    return Stage(
        name=stage,
        params=params,
        data=data,
        batch=train.batch,
        fingerprint=repr(source),
        flops=step_flops(config, causal),
        loss=make_loss(config, causal, train.token_keep, reader),
        # Now and then all patches, as streaming computes them.
        other_loss=make_loss(config, causal, 1.0, reader) if train.token_keep < 1 and train.whole_every else None,
        other_every=train.whole_every,
        validate=Validator(config, causal, coder, held_out, window),
        finish=lambda weights: weights,
        axes=conditions.axes(config),
        tokens=math.prod(config.grid),
        frozen=frozen,
    )
