"""The programs that a plan is made of: a stage's training step and the streaming step, from shapes alone.

Nothing is allocated: arguments are ``ShapeDtypeStruct`` with shardings, weights of 17 B included.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from lpm_jax import flops
from lpm_jax.config import Config
from lpm_jax.errors import InputError
from lpm_jax.flops import Workload

DUELS = ("online.dmd_off", "online.dmd_on", "online.refine")  # stages in which a critic learns as well
ROLLOUT, STREAM_AUDIO = "online.rollout", "online.stream_audio"
CHUNK = "chunk"  # the "stage" that is the streaming step
KERNELS = {"tpu": "splash", "cpu": "xla"}  # self-attention, by compiler


class Program(NamedTuple):
    """What to compile: ``fn.lower(*args)`` within ``sharding.on(mesh)``."""

    fn: Any
    args: tuple
    labels: tuple[str, ...]  # what each argument is, where its fields do not say


def stage_config(config: Config, stage: str, compiler: str) -> Config:
    """The config that ``stage`` trains or streams with, its attention backend named.

    Raises:
      InputError: the config has no such stage.
    """
    if stage != CHUNK:
        if stage not in config.stages:
            raise InputError(f"--stage: expected {CHUNK} or one of {', '.join(config.stages)}, found {stage!r}")
        config = config.for_stage(stage)
    if stage in ("vae", "audio", "lips", "faces"):
        raise InputError(f"--stage {stage}: expected {CHUNK} or a diffusion stage: it is not sharded")
    train = dataclasses.replace(config.train, attention=config.train.attention or KERNELS[compiler])
    stream = dataclasses.replace(config.stream, attention=config.stream.attention or KERNELS[compiler])
    return dataclasses.replace(config, train=train, stream=stream)


def build(config: Config, stage: str, mesh: Any) -> Program:
    """The step of ``stage`` on ``mesh``, which may be abstract where nothing is to be compiled.

    Raises:
      InputError: something does not divide over the mesh.
    """
    if stage == CHUNK:
        from lpm_jax.streaming.layout import latent_program

        fn, args = latent_program(config, mesh)
        return Program(fn, args, ("weights", "stream", "sound", "sound"))
    from lpm_jax.training.abstract import train_program

    fn, args = train_program(config, stage, mesh)
    return Program(fn, args, ("state", "fixed", "batch", "batch") if len(args) == 4 else ("state", "batch", "batch"))


def workload(config: Config, stage: str) -> Workload:
    """One pass of the transformer, as ``lpm_jax.flops`` counts it."""
    rows, columns = config.grid
    text = config.text.umt5.tokens if config.text.umt5 else config.text.tokens
    if stage == CHUNK:
        from lpm_jax.models.conditions import history_tokens

        stream, references = config.stream, 2 + config.stream.references
        context = references + (stream.sink + stream.window) * stream.chunk
        sounds = history_tokens(config.audio) + 4 * stream.chunk
        return Workload(1, stream.chunk, rows, columns, 0, context, text, sounds)
    from lpm_jax.models.conditions import history_tokens

    train = config.train
    references = 3 if train.extra_references else 2
    return Workload(
        train.batch, train.latents, rows, columns, references, 0, text, history_tokens(config.audio) + 4 * train.latents
    )


def model_flops(config: Config, stage: str) -> int:
    """Operations that a step needs, on all devices: forward passes, and twice as much for gradients; recomputing is not
    counted, and attention is counted where it is allowed (references see only references)."""
    if stage in DUELS:
        return duel_flops(config, stage)
    if stage in (ROLLOUT, STREAM_AUDIO):  # each chunk is evaluated as in a stream, those that count with gradients
        distill, stream, chunk = config.distill, config.stream, config.train.batch * pass_flops(config, CHUNK)
        refines = stage == STREAM_AUDIO and stream.refine > 0
        learning = len(stream.levels) + refines
        passes = learning + (stream.history == "clean") + (refines and stream.refiner_history == "clean")
        return round(chunk * (passes * (distill.rollout + distill.gradient) / 2 + 2 * learning * distill.gradient))
    passes = len(config.stream.levels) if stage == CHUNK else 6 if causal(stage) else 3
    return passes * pass_flops(config, stage)


def turns(config: Config, stage: str) -> int:
    """How often a loop runs on average whose length a step is told: the chunks of a rollout without gradients."""
    on_policy = stage in (ROLLOUT, STREAM_AUDIO, *DUELS) and stage != "online.dmd_off"
    return max(1, round((config.distill.rollout - config.distill.gradient) / 2)) if on_policy else 1


def pass_flops(config: Config, stage: str) -> int:
    """Of one forward pass."""
    work = workload(config, stage)
    tokens, frames = work.height * work.width, work.frames + work.references
    dense = 4 * work.batch * frames * (frames + work.context) * tokens**2 * config.dit.width * config.dit.depth
    return flops.total(flops.costs(config.dit, work)).flops - dense + attention_flops(config, stage)


def duel_flops(config: Config, stage: str) -> int:
    """Of a distillation step in which student and critic learn. Each makes its own samples: on policy a rollout of mean
    length through the streaming step, off policy a causal window. The student's is then judged once by the critic, and
    by the teacher once for each term of its guidance; the critic learns its own."""
    from lpm_jax.base.sampler import guidance
    from lpm_jax.training.distill import guided

    distill, stream, b = config.distill, config.stream, config.train.batch
    terms = len(guidance(guided(config).sample))

    if stage == "online.dmd_off":
        window = pass_flops(config, "base.identity")
        return window * (1 + 3 + 1 + terms) + window * (2 + 3)  # a sample is two passes, gradients through the second
    short = dataclasses.replace(config.train, latents=distill.gradient * stream.chunk)
    window = pass_flops(dataclasses.replace(config, train=short), "base.identity")
    backbone = len(stream.levels) + (stream.history == "clean")
    refiner = 1 + (stream.refiner_history == "clean") if stage == "online.refine" else 0
    chunks = (distill.rollout + distill.gradient) / 2
    chunk = b * pass_flops(config, CHUNK)
    gradients = 2 * distill.gradient * (1 if refiner else len(stream.levels))
    made = chunk * (2 * chunks * (backbone + refiner) + gradients)
    return round(made) + window * (1 + terms + 3)


def causal(stage: str) -> bool:
    """Whether a stage is block-causal and passes twice with gradients, at both noise levels of a stream."""
    return stage in ("online.causal", "online.ode")


def attention_flops(config: Config, stage: str) -> int:
    """Operations of self-attention in one forward pass, where frames see each other."""
    work = workload(config, stage)
    seen = work.frames * (work.frames + work.context)
    if causal(stage):
        chunks = math.ceil(work.frames / config.stream.chunk)
        seen = round(seen * (chunks + 1) / (2 * chunks))
    pairs = seen + work.frames * work.references + work.references**2
    return 4 * work.batch * pairs * (work.height * work.width) ** 2 * config.dit.width * config.dit.depth
