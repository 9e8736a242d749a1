"""Stage ``audio``: networks that hear, trained on sound alone before there is any picture.

A clip of sound with its performance is made in a fraction of its video's time and trained on in a hundredth of it, and
what a mouth does follows from the sound. On the sound of the toy's 1,600 videos alone a two-layer network learns the
voices by heart: r = 0.86 with the true opening of the lips on the clips it was given, 0.73 on held-out voices. On 6,000
clips of sound this stage's network reaches 0.79 there at once and 0.89 two frames later. The large models read wav2vec
2.0, trained on 960 hours of speech, for the same reason; :class:`lpm_jax.models.audio.Hearing` is the toy's.

Each branch regresses what its sound causes (:data:`CAUSED`), for its own video frame and for earlier ones
(:data:`BEFORE`): a token comes to know what later sound told about an earlier frame, and the transformer, which reads
tokens up to the end of its chunk, finds it there. ``train.voices`` says how many clips are heard as other voices and
microphones (``voices.py``). With ``train.init`` it goes on from what that stage's model hears with.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data_pipeline.loader import SILENCE, clip_batches
from data_pipeline.performers.builder import in_workers, told
from data_pipeline.performers.clip import clip_seed, sound_job
from data_pipeline.schema import PARAM_INDEX, PARAMS
from lpm_jax.config import AudioConfig, Config
from lpm_jax.distributed import barrier, fetch, primary
from lpm_jax.errors import InputError
from lpm_jax.models import conditions
from lpm_jax.models.audio import FFT, Hearing, hearing_reach, log_mel
from lpm_jax.training.flow_matching import starting_weights
from lpm_jax.training.latents import KINDS, LatentSource, store
from lpm_jax.training.loop import Stage
from lpm_jax.training.voices import as_other_voices

#: The columns of ``PARAMS`` that a branch's sound causes; the first is what validation tells.
CAUSED = {
    "speak": ("aperture", "lip_width", "lip_pucker", "lip_upper", "lip_lower", "jaw_open", "tongue", "teeth"),
    "listen": ("pitch", "brow_inner_left", "smile", "cheek", "lean", "lid_left", "scale"),
}
BEFORE = (0, 2, 4)  # frames before a token's own that it also tells about
SECONDS = 4.0  # of a clip
HELD_OUT = 200  # clips for validation
FIRST_SEED = 1_000_003  # added to the run's seed: other clips than those of a data set of video


def build(config: Config, split: str, clips: int, workdir: Path) -> Path:
    """The sounds of ``split``: log-mel and parameters as arrays, one row a clip; made by process 0 if not there."""
    audio = config.audio
    code = hashlib.sha256(repr((split, clips, config.train.seed, audio.bands, audio.hops_per_frame)).encode())
    directory = Path(workdir) / "sounds" / f"{split}-{code.hexdigest()[:10]}"
    if primary() and not directory.is_dir():
        _make(config, split, clips, directory)
    barrier(f"sounds of {split}")
    return directory


def _make(config: Config, split: str, clips: int, directory: Path) -> None:
    seed = config.train.seed + FIRST_SEED
    jobs = [(clip_seed(seed, split, i), SECONDS, split == "held_out") for i in range(clips)]
    store(directory, told(_rows(config.audio, jobs), clips, f"sounds of {split}"), clips)


def _rows(config: AudioConfig, jobs: list) -> Iterator[dict[str, np.ndarray]]:
    for record in in_workers(sound_job, jobs, os.cpu_count() or 1):
        row = {"params": record["params"].astype(np.float16), "kind": np.int32(KINDS.index(record["kind"]))}
        for name in CAUSED:
            sound = np.pad(record[name].astype(np.float32) / 32768, (FFT, 0))
            row[name] = log_mel(config, sound, np).astype(np.float16)
        yield row


def init(config: AudioConfig, key: Array, features: int) -> dict:
    """Fresh networks and the heads that read them, by branch."""
    params = {}
    for name, columns in CAUSED.items():
        key, k1, k2 = jax.random.split(key, 3)
        net = Hearing(config).init(k1, jnp.zeros((1, 1, features)))["params"]
        head = nn.initializers.lecun_normal()(k2, (config.hearing_width, len(BEFORE) * len(columns)))
        params[name] = {"hearing": net, "head": head}
    return params


def init_from(config: Config, workdir: Path, key: Array, features: int) -> dict:
    """The networks of ``train.init``'s model, and heads that say nothing yet: so they teach nothing wrong."""
    model = starting_weights(workdir, config.train.init, conditions.abstract(config))
    fresh = init(config.audio, key, features)
    return {name: {"hearing": model[name]["hearing"], "head": jnp.zeros_like(fresh[name]["head"])} for name in fresh}


def hear(
    config: AudioConfig, params: dict, mel: Float[Array, "b tokens features"], columns: int
) -> Float[Array, "b tokens before columns"]:
    """What a branch tells of each frame and those before it, in standard deviations; silence precedes the sound."""
    reach = hearing_reach(config)
    silence = jnp.full((mel.shape[0], reach, mel.shape[2]), SILENCE, mel.dtype)
    heard = Hearing(config).apply({"params": params["hearing"]}, jnp.concatenate([silence, mel], axis=1))
    out = heard[:, reach:] @ params["head"].astype(mel.dtype)
    return out.reshape(*mel.shape[:2], len(BEFORE), columns)


def make_loss(config: Config, scales: dict[str, tuple[np.ndarray, np.ndarray]]):
    """``loss(params, batch, key)``; ``scales`` holds means and deviations of each branch's columns."""
    dtype = jnp.dtype(config.train.dtype)

    def loss(params, batch, key):
        total, metrics = 0.0, {}
        batch = as_other_voices(config, batch, key)
        for name, columns in CAUSED.items():
            mel = batch[name].astype(dtype)
            nets = jax.tree.map(lambda p: p.astype(dtype), params[name])
            told_of = hear(config.audio, nets, mel, len(columns)).astype(jnp.float32)
            mean, deviation = scales[name]
            truth = (batch["params"][..., indices(name)].astype(jnp.float32) - mean) / deviation
            frames = truth.shape[1]
            parts = [jnp.mean(jnp.square(told_of[:, b:, i] - truth[:, : frames - b])) for i, b in enumerate(BEFORE)]
            metrics[name] = sum(parts) / len(parts)
            total = total + metrics[name]
        return total, metrics

    return loss


def indices(name: str) -> list[int]:
    """A branch's columns of ``params``."""
    return [PARAM_INDEX[column] for column in CAUSED[name]]


def scales_of(source: LatentSource, clips: int = 500) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of each branch's columns over up to ``clips`` clips."""
    seen = source.arrays["params"][:clips].astype(np.float32).reshape(-1, len(PARAMS))
    return {name: (seen[:, indices(name)].mean(0), seen[:, indices(name)].std(0) + 1e-3) for name in CAUSED}


def make_stage(config: Config, workdir: Path) -> Stage:
    """Assembles stage ``audio``. Its weights are each branch's ``hearing``, which :func:`lpm_jax.training.flow_matching
    .make_stage` puts into a new model.

    Raises:
      InputError: the config's audio has no such network.
    """
    audio, train = config.audio, config.train
    if not audio.hearing or audio.wav2vec is not None:
        raise InputError("--stage audio: expected a config with log-mel and audio.hearing above 0, found none")
    source = LatentSource(build(config, "train", train.sounds, workdir))
    held_out = LatentSource(build(config, "held_out", min(HELD_OUT, train.sounds), workdir))
    features = source.arrays["speak"].shape[-1]
    scales = scales_of(source)
    key = jax.random.key(train.seed)
    fresh = train.init in ("", "scratch")
    params = init(audio, key, features) if fresh else init_from(config, workdir, key, features)

    @jax.jit
    def run(params, batch):
        return {name: hear(audio, params[name], batch[name].astype(jnp.float32), len(CAUSED[name])) for name in CAUSED}

    def validate(params, directory: Path) -> dict[str, float]:
        """Correlation, over held-out clips where somebody speaks or listens, of a branch's first column with what was
        told at once and later."""
        told_of = fetch(run(params, dict(held_out.arrays)))
        scores = {}
        for name in CAUSED:
            there = held_out.arrays["kind"] == KINDS.index(name)
            if not there.any():
                continue
            truth = held_out.arrays["params"][there][..., indices(name)[0]].astype(np.float32)
            for i, before in enumerate(BEFORE):
                late = np.asarray(told_of[name])[there, before:, i, 0]
                r = np.corrcoef(late.ravel(), truth[:, : truth.shape[1] - before].ravel())[0, 1]
                scores[f"{name}_{CAUSED[name][0]}_{before}"] = float(r)
        return scores

    def data(rows):
        return clip_batches(source, batch=train.batch, rows=rows, seed=train.seed, threads=train.data_threads)

    return Stage(
        name="audio",
        params=params,
        data=data,
        batch=train.batch,
        fingerprint=repr(source),
        loss=make_loss(config, scales),
        validate=validate,
        finish=lambda params: {name: params[name]["hearing"] for name in CAUSED},
    )
