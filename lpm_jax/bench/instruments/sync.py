"""Synchrony of lips and speech: two networks whose unit vectors lie near each other where mouth and sound belong
together (after SyncNet: Chung and Zisserman, "Out of time", 2016).

Trained on training characters' speech against the same speech at other moments and other clips' (InfoNCE in place of
their contrastive loss). Distances lie between 0 and 2, so Sync-C and Sync-D compare runs of this benchmark, not with
figures of the original network, which never saw drawings.

``python -m lpm_jax.bench.instruments sync`` trains it.
"""

from __future__ import annotations

import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from data_pipeline.schema import FPS, SAMPLES_PER_FRAME
from lpm_jax.bench.instruments.fitting import fit, keep, same, unit
from lpm_jax.bench.instruments.trained import FOLDER, Trained, in_batches
from lpm_jax.bench.instruments.trunk import Trunk
from lpm_jax.config import AudioConfig
from lpm_jax.errors import ArgumentParser
from lpm_jax.models.audio import FFT, log_mel
from lpm_jax.progress import progress

FRAMES = 5  # that a vector is of: 0.2 s, as in SyncNet
SIDE = 32  # pixels of the mouth's crop at half size
AUDIO = AudioConfig(bands=32)
WIDTH = 64
_FIRST = 30_000_000  # seeds of training characters; the reader's begin at 10 million
_JUDGES = (1 << 41) + (1 << 32)  # seeds of held-out clips


class Network(nn.Module):
    """Mouths ``[b, 32, 32, 15]`` and mel windows ``[b, 20, 32, 1]`` to unit vectors; one scale is learned."""

    def setup(self) -> None:
        self.video = Trunk((32, 48, 64), WIDTH)
        self.sound = Trunk((32, 48, 64), WIDTH)
        self.scale = self.param("scale", nn.initializers.constant(jnp.log(10.0)), ())

    def __call__(self, mouths: Array, mels: Array) -> tuple[Array, Array, Array]:
        return self.see(mouths), self.hear(mels), jnp.exp(jnp.clip(self.scale, 0, 4))

    def see(self, mouths: Float[Array, "b 32 32 15"]) -> Float[Array, "b 64"]:
        return unit(self.video(mouths))

    def hear(self, mels: Float[Array, "b 20 32 1"]) -> Float[Array, "b 64"]:
        return unit(self.sound(mels))


@jax.jit
def _see(params: dict, windows: Array) -> Array:
    return Network().apply({"params": params}, windows.astype(jnp.float32) / 127.5 - 1, method="see")


@jax.jit
def _hear(params: dict, windows: Array) -> Array:
    return Network().apply({"params": params}, windows, method="hear")


class Sync(Trained):
    """The trained networks."""

    name = "sync"

    @staticmethod
    def initial(seed: int) -> dict:
        shapes = (1, SIDE, SIDE, 3 * FRAMES), (1, FRAMES * AUDIO.hops_per_frame, AUDIO.bands, 1)
        return Network().init(jax.random.key(seed), *map(jnp.zeros, shapes))["params"]

    def crop(self, frames: UInt8[np.ndarray, "n 128 128 3"]) -> UInt8[np.ndarray, "n 32 32 3"]:
        """The lower middle of the frames, where mouths are, at half size."""
        return mouths(frames)

    def see(self, crops: UInt8[np.ndarray, "n 32 32 3"]) -> Float[np.ndarray, "n 64"]:
        """A vector for each frame, of the five around it (at the ends, the outermost repeated)."""
        return in_batches(lambda at: _see(self.params, video_windows(crops, at)), np.arange(len(crops)))

    def hear(self, speak: Float[np.ndarray, " samples"]) -> Float[np.ndarray, "n 64"]:
        """A vector for each frame of the sound."""
        return self.listen(mel(speak))

    def listen(self, mels: Float[np.ndarray, "n hops bands"]) -> Float[np.ndarray, "n 64"]:
        """The same of its log-mel."""
        return in_batches(lambda at: _hear(self.params, mel_windows(mels, at)), np.arange(len(mels)))


def mouths(frames: UInt8[np.ndarray, "n 128 128 3"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    """See :meth:`Sync.crop`."""
    part = frames[:, 60:124, 32:96]
    return part.reshape(-1, SIDE, 2, SIDE, 2, 3).mean((2, 4), dtype=np.float32).round().astype(np.uint8)


def mel(speak: Float[np.ndarray, " samples"], block: int = 2400) -> Float[np.ndarray, "frames hops bands"]:
    """Log-mel of whole frames, a block at a time."""
    padded = np.pad(speak, (FFT, 0))
    size = block * SAMPLES_PER_FRAME
    parts = [log_mel(AUDIO, padded[at : at + size + FFT], np) for at in range(0, len(speak), size)]
    return np.concatenate(parts).astype(np.float32).reshape(-1, AUDIO.hops_per_frame, AUDIO.bands)


def video_windows(crops: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Five neighbouring crops as 15 channels."""
    index = np.clip(at[:, None] + np.arange(FRAMES) - FRAMES // 2, 0, len(crops) - 1)
    return crops[index].transpose(0, 2, 3, 1, 4).reshape(len(at), SIDE, SIDE, 3 * FRAMES)


def mel_windows(mels: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The sound of the same five frames."""
    index = np.clip(at[:, None] + np.arange(FRAMES) - FRAMES // 2, 0, len(mels) - 1)
    return mels[index].reshape(len(at), FRAMES * AUDIO.hops_per_frame, AUDIO.bands, 1)


# --- training ----------------------------------------------------------------------------------------------------


def spoken(seed: int, held_out: bool = False, seconds: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Crops and mels of one clip of speech."""
    from data_pipeline.performers.character import STYLES, sample_character, sample_held_out_character
    from data_pipeline.performers.conversation import make_scene
    from data_pipeline.performers.motion import perform
    from data_pipeline.performers.prompts import sample_prompt
    from data_pipeline.performers.render import render

    sample = sample_held_out_character if held_out else sample_character
    frames = round(seconds * FPS)
    scene = make_scene(seed % 2**32, frames, held_out, "speak")
    prompt = sample_prompt(np.random.default_rng(seed), held_out)
    params, *_ = perform(scene.dry, scene.speak, scene.listen, prompt, frames, seed)
    return mouths(render(sample(seed, STYLES[seed % len(STYLES)]), params)), mel(scene.speak)


def loss(params: dict, batch: tuple[Array, Array], key: Array) -> Array:
    """InfoNCE; mouths are blurred, tinted and quantised as generators and codecs do."""
    from lpm_jax.bench.instruments.drawn import augment

    seen, heard, scale = Network().apply(
        {"params": params}, augment(batch[0].astype(jnp.float32) / 127.5 - 1, key), batch[1]
    )
    return same(seen, heard, scale)


def batches(clips: list[tuple[np.ndarray, np.ndarray]], seed: int, each: int = 8, groups: int = 12):
    """``batch(step)``: ``each`` moments, at least two frames apart, of each of ``groups`` clips."""

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([seed, step])
        seen, heard = [], []
        for i in rng.choice(len(clips), min(groups, len(clips)), replace=False):
            crops, mels = clips[i]
            at = np.sort(rng.choice(len(crops) // 2, each, replace=False) * 2 + rng.integers(2))
            seen.append(video_windows(crops, at))
            heard.append(mel_windows(mels, at))
        return np.concatenate(seen), np.concatenate(heard)

    return batch


def accuracy(sync: Sync, clips: int = 24) -> dict[str, float]:
    """On held-out characters: Sync-C and Sync-D of true pairs and of another clip's sound, and how often the true lag
    is found."""
    from lpm_jax.bench.metrics.speaking import synchrony

    made = (spoken(_JUDGES + i, held_out=True) for i in range(clips))
    views = [(sync.see(crops), sync.listen(mels)) for crops, mels in made]
    true = np.array([synchrony(v, a) for v, a in views])
    wrong = np.array([synchrony(v, views[i - 1][1]) for i, (v, _) in enumerate(views)])
    return {
        "sync_c_true": true[:, 0].mean(),
        "sync_c_another": wrong[:, 0].mean(),
        "sync_d_true": true[:, 1].mean(),
        "sync_d_another": wrong[:, 1].mean(),
        "lag_within_a_frame": np.mean(np.abs(true[:, 2]) <= 1),
    }


def main(argv: list[str]) -> int:
    parser = ArgumentParser("sync", description="Train the synchrony networks and measure them.")
    parser.add_argument("--out", type=Path, default=FOLDER / "sync")
    parser.add_argument("--clips", type=int, default=600, help="of four seconds, to train on")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--judges", type=int, default=24, help="held-out clips to measure on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    began = time.process_time()
    first = _FIRST + args.seed * 1_000_000
    clips = [spoken(first + i) for i in progress(range(args.clips), "rendering")]
    params = fit(loss, Sync.initial(args.seed), batches(clips, args.seed), args.steps, args.rate, args.seed)
    made = {name: getattr(args, name) for name in ("clips", "steps", "rate", "seed")}
    keep(args.out, "sync", params, made, accuracy(Sync(params), args.judges), began)
    return 0
