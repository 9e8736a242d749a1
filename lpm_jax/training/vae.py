"""Stage ``vae``: the toy autoencoder on crops of rendered video, plain MSE weighted by picture region."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.loader import RegionWeights, group_max, pixel_batches, weight_map
from data_pipeline.schema import PARAM_INDEX, REGIONS
from data_pipeline.video import decode_mp4
from lpm_jax.config import Config
from lpm_jax.distributed import fetch, primary
from lpm_jax.errors import InputError
from lpm_jax.models.vae import toy
from lpm_jax.training.latents import fingerprint, open_clips
from lpm_jax.training.loop import Stage
from lpm_jax.training.sheets import save_sheet

CROP_LATENTS = 4  # latent frames of a crop: one picture and three groups


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error on the -1..1 scale."""
    return float(10 * np.log10(4.0 / max(error, 1e-12)))


def make_stage(config: Config) -> Stage:
    cfg, train = config.vae, config.train
    source, held_out = (open_clips(config, split) for split in ("train", "held_out"))
    weights = RegionWeights(train.mouth, train.eyes, train.face)

    def loss(params, batch, key):
        cells = toy.pack(toy.group_frames(toy.to_unit(batch["video"])))
        nets = {k: jax.tree.map(lambda p: p.astype(train.dtype), params[k]) for k in ("encoder", "decoder")}
        params = params | nets
        z = toy.encode_cells(cfg, params, cells, {})
        noisy = z + cfg.noise * jax.random.normal(key, z.shape)
        error = jnp.mean(jnp.square(toy.decode_cells(cfg, params, noisy, {}) - cells), axis=-1)
        weighted = jnp.sum(error * batch["weights"]) / jnp.sum(batch["weights"])
        square = jnp.mean(jnp.square(z))
        return weighted + 0.5 * cfg.kl * square, {"mse": jnp.mean(error), "latent_rms": jnp.sqrt(square)}

    @jax.jit
    def roundtrip(params, video):
        z, _ = toy.encode(cfg, params, toy.to_unit(video))
        return jnp.clip(toy.decode(cfg, params, z)[0], -1, 1)

    def validate(params, directory: Path):
        scores = reconstruction_scores(lambda video: fetch(roundtrip(params, video)), held_out, clips=8)
        truth = decode_mp4(held_out[0]["video"])
        result = toy.to_pixels(fetch(roundtrip(params, truth[None])))[0]
        if primary():
            picks = np.linspace(0, len(truth) - 1, 8).astype(int)
            save_sheet(directory / "sheet.png", [truth[picks], np.asarray(result)[picks]])
        return scores

    def finish(params):
        """Measures the latent's mean and scale over training clips and stores them with the weights."""
        encode = jax.jit(lambda params, video: toy.encode(cfg, params, toy.to_unit(video))[0])
        total, square, n = 0.0, 0.0, 0
        for i in np.linspace(0, len(source) - 1, min(64, len(source))).astype(int):
            z = np.asarray(encode(params, decode_mp4(source[int(i)]["video"])[None]), np.float64).reshape(
                -1, cfg.channels
            )
            total, square, n = total + z.sum(0), square + (z**2).sum(0), n + len(z)
        mean = total / n
        std = np.full_like(mean, np.sqrt(np.mean(square / n - mean**2)))  # one for all: channels keep proportions
        return params | {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}

    def data(rows):
        if len(rows) != train.crops_per_clip * len({row // train.crops_per_clip for row in rows}):
            raise InputError(
                f"--train.batch: expected whole clips of --train.crops_per_clip {train.crops_per_clip} crops in every "
                f"process, found {len(rows)} rows"
            )
        return pixel_batches(
            source,
            batch=train.batch,
            rows=rows,
            count=train.crops_per_clip,
            side=train.crop,
            latents=CROP_LATENTS,
            weights=weights,
            seed=train.seed,
            threads=train.data_threads,
        )

    return Stage(
        name="vae",
        params=toy.with_basis(toy.init(cfg, jax.random.key(train.seed)), *cell_statistics(source, weights)),
        data=data,
        batch=max(train.batch // train.crops_per_clip, 1) * train.crops_per_clip,
        fingerprint=fingerprint(config, {}, source),
        loss=loss,
        validate=validate,
        finish=finish,
        frozen=lambda params: {name: jax.tree.map(lambda _, n=name: n in toy.FIXED, p) for name, p in params.items()},
    )


def cell_statistics(source, weights: RegionWeights, clips: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the cells of ``clips`` clips, cells weighted by their region as in the loss."""
    total, outer, n = 0.0, 0.0, 0.0
    for i in np.linspace(0, len(source) - 1, min(clips, len(source))).astype(int):
        record = source[int(i)]
        frames = decode_mp4(record["video"])
        cells = np.asarray(toy.pack(toy.group_frames(toy.to_unit(frames[None]))))[0]
        weight = group_max(weight_map(record["regions"], cells.shape[1:3], weights)).reshape(-1, 1)
        cells = cells.reshape(-1, toy.CELL)
        total, outer, n = total + (weight * cells).sum(0), outer + cells.T @ (weight * cells), n + weight.sum()
    mean = total / n
    return mean, outer / n - np.outer(mean, mean)


def reconstruction_scores(roundtrip, source, clips: int) -> dict[str, float]:
    """PSNR in dB over all pixels, in the mouth and eye boxes, and over frames with moving against still heads.

    ``roundtrip`` maps uint8 ``[1, frames, h, w, 3]`` to float ``[1, frames, h, w, 3]`` in -1..1.
    """
    sums = {name: [0.0, 0] for name in ("all", "mouth", "eyes", "moving", "still")}

    def add(name, values):
        sums[name][0] += float(values.sum())
        sums[name][1] += values.size

    for i in range(min(clips, len(source))):
        record = source[i]
        truth = decode_mp4(record["video"])
        error = np.square(roundtrip(truth[None])[0] - (truth / 127.5 - 1.0))
        add("all", error)
        size = truth.shape[1]
        for name in ("mouth", "eyes"):
            boxes = np.clip(record["regions"][:, REGIONS.index(name)] * size, 0, size).astype(int)
            for frame, (top, left, bottom, right) in zip(error, boxes, strict=True):
                add(name, frame[top:bottom, left:right])
        speed = np.abs(np.gradient(record["params"][:, PARAM_INDEX["pitch"]])) * 24  # degrees per second
        add("moving", error[speed > 12])
        add("still", error[speed < 2])
    return {f"psnr_{name}": psnr(total / max(n, 1)) for name, (total, n) in sums.items() if n}
