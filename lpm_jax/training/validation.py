"""Validation of a diffusion stage on held-out clips: does it listen to its audio, and what does it look like."""

from __future__ import annotations

from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.loader import Window, latent_batches
from data_pipeline.video import encode_mp4
from lpm_jax.base.sampler import integrate
from lpm_jax.config import Config
from lpm_jax.distributed import fetch, primary
from lpm_jax.models import dit, vae
from lpm_jax.models.denoiser import Denoiser
from lpm_jax.training.rollout import play
from lpm_jax.training.sheets import save_sheet

CLIPS = 16
SHOWN = 6
TEACHER_STEPS = 8


class Validator:
    """``validator(params, directory)`` writes ``sheet.png`` and ``clip.mp4`` (truth above result) and returns scores.
    All processes compute, the first one writes.

    ``mouth`` is the latent error (channels weighed as in the loss) of generated mouth patches, ``mouth_wrong`` the same
    when the model is given another clip's sound: the gap is what the sound is worth. ``still`` is the error outside the
    face.
    """

    def __init__(self, config: Config, causal: bool, coder: dict, source, window: Window):
        self.config, self.causal, self.vae = config, causal, coder
        batches = latent_batches(source, window, batch=min(CLIPS, len(source)), seed=1, threads=1)
        iterator = iter(batches)
        self.batch = next(iterator)
        _close(iterator)
        sounds = ("speak", "listen", "speak_sound", "listen_sound")
        other = {k: np.roll(self.batch[k], 1, axis=0) for k in sounds if k in self.batch}
        self.wrong = self.batch | other
        self.run = jax.jit(self._run)
        self.decode = jax.jit(lambda z, params: vae.to_pixels(vae.decode(config.vae, params, z)[0]))

    def _run(self, params, batch, key):
        config = self.config
        truth = dit.patchify(config.dit, jnp.asarray(batch["latents"], jnp.float32))
        if self.causal:
            return play(config, params, batch, truth.shape[1] // config.stream.chunk, key), truth
        denoise = Denoiser(config, params, batch, truth.shape[1])
        noise = jax.random.normal(key, truth.shape)
        return integrate(denoise, noise, np.linspace(1, 0, TEACHER_STEPS + 1), jnp.ones(truth.shape[:2])), truth

    def __call__(self, params, directory: Path) -> dict[str, float]:
        from lpm_jax.training.flow_matching import patch_weights

        config = self.config
        key = jax.random.key(7)
        result, truth = fetch(self.run(params, self.batch, key))
        wrong, _ = fetch(self.run(params, self.wrong, key))
        weight = np.asarray(patch_weights(config, jnp.asarray(self.batch["weights"])))
        mouth, still = weight > weight.max() - 0.01, weight < 1.01
        channels = fetch(params["prior"]["weight"])
        channels = np.tile(channels, truth.shape[-1] // len(channels))
        error = lambda x, where: float(np.mean((np.square(x - truth) * channels)[where]))  # noqa: E731
        scores = {
            "mouth": error(result, mouth),
            "mouth_wrong": error(wrong, mouth),
            "still": error(result, still),
            "all": error(result, np.ones_like(still)),
        }
        if primary():
            self._show(result[:SHOWN], truth[:SHOWN], directory)
        return scores

    def _show(self, result, truth, directory: Path) -> None:
        config = self.config
        first = jnp.asarray(self.batch["references"][:SHOWN, :1], jnp.float32)
        first = first[: len(truth)]
        rows = []
        for x in (truth, result):
            z = dit.unpatchify(config.dit, jnp.asarray(x), *config.cells)
            rows.append(np.asarray(self.decode(jnp.concatenate([first, z.astype(jnp.float32)], axis=1), self.vae)))
        picks = np.linspace(0, rows[0].shape[1] - 1, 9).astype(int)
        save_sheet(directory / "sheet.png", [r[i][picks] for i in range(len(truth)) for r in rows])
        strip = np.concatenate([np.concatenate(list(r), axis=2) for r in rows], axis=1)
        path = directory / "clip.mp4"
        aside = path.with_suffix(".tmp")
        aside.write_bytes(encode_mp4(strip))
        aside.replace(path)


def _close(iterator: grain.DatasetIterator) -> None:
    if hasattr(iterator, "close"):
        iterator.close()
