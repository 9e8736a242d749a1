"""The stages of distillation put together: who teaches, who learns, from what, and what stays as it is."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from data_pipeline.loader import RegionWeights, Window, latent_batches
from lpm_jax import pretrained
from lpm_jax.checkpoint import digest, load_weights
from lpm_jax.config import Config
from lpm_jax.errors import InputError
from lpm_jax.models import conditions, vae
from lpm_jax.streaming import generator
from lpm_jax.training import distill, duel, encoders, faces, latents, lips, lora, ode, on_policy, trajectories
from lpm_jax.training.flow_matching import frozen, starting_weights, with_motions
from lpm_jax.training.loop import Stage
from lpm_jax.training.validation import Validator

ODE = "online.ode"
STAGES = (on_policy.ROLLOUT, ODE, *distill.STAGES, on_policy.STREAM_AUDIO)


def check(config: Config, stage: str, frames: int) -> None:
    """Complains in one line where a stage's settings do not fit each other or the clips' ``frames`` latents.

    Raises:
      InputError: naming the setting.
    """
    wanted = window_latents(config, stage)
    if wanted > frames:
        name = "train.latents" if stage in (ODE, distill.OFF) else "distill.rollout"
        raise InputError(f"--{name}: expected windows of up to {frames} latent frames, the clips', found {wanted}")
    check_refiner(config, stage)
    if stage == on_policy.STREAM_AUDIO and config.train.voices:
        raise InputError(
            f"--train.voices: expected 0, for samples are heard as they are, found {config.train.voices:g}"
        )
    if stage in (ODE, distill.OFF) and config.train.latents % config.stream.chunk:
        raise InputError(
            f"--train.latents: expected whole chunks of {config.stream.chunk}, found {config.train.latents}"
        )


def check_refiner(config: Config, stage: str) -> None:
    """Raises InputError where ``stage`` trains a Refiner that the model has not."""
    if stage == distill.REFINE and not config.stream.refine:
        raise InputError("--stream.refine: expected T2, the noise level that the Refiner starts from, found 0")


def window_latents(config: Config, stage: str) -> int:
    """Latent frames of a batch's windows: a whole rollout, or one window."""
    return config.train.latents if stage in (ODE, distill.OFF) else config.distill.rollout * config.stream.chunk


def make_stage(stage: str, before: str, config: Config, workdir: Path) -> Stage:
    """Assembles ``stage``; ``before`` names the stage whose weights the student starts from.

    Raises:
      InputError: weights are missing, or settings do not fit.
    """
    train = config.train
    hears = stage == on_policy.STREAM_AUDIO
    shapes = conditions.abstract(config)
    coder = load_weights(workdir / "vae" / "weights", "model", vae.abstract(config.vae))
    student = starting_pair(config, workdir, before) if hears else starting_weights(workdir, before, shapes)
    source = latents.LatentSource(latents.build(config, coder, "train", workdir), train.kinds)
    held_out = latents.LatentSource(latents.build(config, coder, "held_out", workdir))
    check(config, stage, len(source[0]["latents"]) - 1)
    student = with_motions(config, student, coder, source)
    if hears and config.audio.wav2vec is not None:
        student |= pretrained.load(encoders.folder(config), jnp.float32, only=("audio",))[1]
    if hears:
        source, held_out = (
            latents.WithSound(clips, latents.open_clips(config, split))
            for clips, split in ((source, "train"), (held_out, "held_out"))
        )

    window = Window(
        latents=window_latents(config, stage),
        history=conditions.history_tokens(config.audio),
        weights=RegionWeights(train.mouth, train.eyes, train.face),
        first_frame=0.7 if stage in (ODE, distill.OFF) else 1.0,  # a stream has its picture
        extra=train.extra_references,
        picture=train.from_picture,
        mouth=stage in on_policy.STAGES and bool(train.lips or config.distill.guidance),
        sound=generator.history_samples(config) if hears else 0,
    )
    axes = conditions.axes(config)

    def clips(rows):
        return latent_batches(source, window, batch=train.batch, rows=rows, seed=train.seed, threads=train.data_threads)

    data, fingerprint = clips, repr(source)
    if stage not in on_policy.STAGES:
        teacher = starting_weights(workdir, config.distill.teacher, shapes)
    if stage in (ODE, distill.OFF):
        folder = trajectories.build(config, teacher, axes, clips, repr((source, window)), workdir)
        samples = trajectories.TrajectorySource(folder)
        fingerprint = repr(samples)

        def data(rows):
            return trajectories.batches(
                samples, batch=train.batch, rows=rows, seed=train.seed, threads=train.data_threads
            )

    own = distill.student_config(stage, config)
    validator = Validator(own, True, coder, held_out, window)
    common = {
        "name": stage, "data": data, "batch": train.batch, "fingerprint": fingerprint, "axes": axes,
        "tokens": math.prod(config.grid),
    }  # fmt: skip
    if stage in (ODE, *on_policy.STAGES):
        loss = ode.make_loss(config)
        if stage in on_policy.STAGES:
            loss = on_policy.make_loss(own, lips.load(config, workdir), faces.load(config, workdir))
        return Stage(**common, params=student, loss=loss, validate=validator, finish=without_encoder, frozen=frozen)
    players = Players(stage, config, student, teacher, coder)
    # What stays as it is was saved in no checkpoint: a run goes on beside the same networks, or not at all.
    common |= {"fingerprint": f"{fingerprint} beside {digest(players.fixed)}"}
    return Stage(
        **common,
        params=players.learning,
        loss=distill.make_duel(config, stage, both=False),
        other_loss=distill.make_duel(config, stage, both=True),
        other_every=config.distill.generator_every,
        validate=lambda params, directory: validator(players.whole(params), directory),
        finish=players.whole,
        program=functools.partial(players.program, axes),
    )


def starting_pair(config: Config, workdir: Path, stage: str) -> dict:
    """The weights that ``stage`` ended with; where the model has a Refiner and they have none, with one that is the
    Backbone's copy."""
    folder = workdir / stage / "weights"
    refined = folder.is_dir() and "refiner" in load_weights(folder, "model")
    student = starting_weights(workdir, stage, refined_shapes(config) if refined else conditions.abstract(config))
    if config.stream.refine and not refined:
        student["refiner"] = jax.tree.map(jnp.array, student["dit"])
    return student


def without_encoder(params: dict) -> dict:
    """A model's own weights; an audio encoder that it hears with is another's, and as it was."""
    return {name: part for name, part in params.items() if name != "audio"}


class Players:
    """The networks of a distillation: which learn and which stay. Arrays, or their shapes where nothing is trained."""

    def __init__(self, stage: str, config: Config, student: Any, teacher: Any, coder: Any = None):
        rank = config.distill.lora
        self.config = config
        self.fixed: dict[str, Any] = {"teacher": teacher}
        learner = student
        if stage == distill.REFINE:
            refiner = student.get("refiner", student["dit"])
            self.fixed["backbone"] = {name: x for name, x in student.items() if name != "refiner"}
            learner = {"refiner": refiner}
        if stage == distill.OFF and config.distill.perceptual:
            self.fixed["vae"] = coder
        critic = teacher
        if rank:
            self.fixed["student"] = learner
            keys = jax.random.split(jax.random.key(config.train.seed), 2)
            learner, critic = (
                jax.eval_shape(functools.partial(lora.init, rank=rank, key=key), base)
                if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(base))
                else lora.init(base, rank, key)
                for base, key in zip((learner, critic), keys, strict=True)
            )
        self.learning = {"student": learner, "critic": critic}

    def whole(self, params: Any) -> Any:
        """A model's parameters from what learned of it."""
        full = lora.whole(self.fixed.get("student"), params)
        return self.fixed.get("backbone", {}) | full

    def program(self, axes: dict, config: Config, mesh: jax.sharding.Mesh) -> duel.Program:
        """The step on ``mesh``."""
        still = {name: frozen(params) for name, params in self.learning.items()}
        declared = lora.axes(axes, self.learning["student"] | self.learning["critic"]) if config.distill.lora else axes
        return duel.make_program(config, mesh, declared, axes, self.learning, still, self.resting())

    def resting(self) -> dict:
        """The networks that stay, in ``train.dtype``: what a step computes with. The autoencoder and what is measured
        of latents stay in float32."""
        dtype = jnp.dtype(self.config.train.dtype)

        def cast(x: Any) -> Any:
            return jax.ShapeDtypeStruct(x.shape, dtype) if isinstance(x, jax.ShapeDtypeStruct) else x.astype(dtype)

        def lighter(tree: dict) -> dict:
            return {name: part if name in distill.MEASURED else jax.tree.map(cast, part) for name, part in tree.items()}

        return {name: tree if name == "vae" else lighter(tree) for name, tree in self.fixed.items()}


def refined_shapes(config: Config) -> dict:
    """Shapes of a model's parameters, its Refiner's among them where it has one."""
    shapes = conditions.abstract(config)
    return shapes | {"refiner": shapes["dit"]} if config.stream.refine else shapes
