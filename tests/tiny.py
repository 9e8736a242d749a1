"""A model small enough to compile in seconds: 32 x 32 pixels, 4 x 4 latent cells, 2 x 2 tokens a frame."""

from __future__ import annotations

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from lpm_jax import pretrained
from lpm_jax.config import (
    AudioConfig,
    Config,
    DiTConfig,
    StreamConfig,
    TextConfig,
    TrainConfig,
    UMT5Config,
    VAEConfig,
    WanVAEConfig,
    Wav2VecConfig,
)

CONFIG = Config(
    name="tiny",
    size=32,
    vae=VAEConfig(channels=8, width=16, encoder_blocks=1, decoder_blocks=1),
    audio=AudioConfig(bands=6, width=16, hearing=2, hearing_width=12),
    text=TextConfig(vocabulary=64, tokens=8, width=16),
    dit=DiTConfig(
        depth=4, width=32, heads=2, ffn=64, channels=8, time_width=16, text_width=16, audio_width=16, life=True,
        warp=3,
    ),
    stream=StreamConfig(chunk=3, sink=1, window=1),
    train=TrainConfig(steps=10, batch=4, token_keep=1.0),
)  # fmt: skip
#: The parts of a large model, each as small: Wan's VAE, umT5, wav2vec 2.0, and chunks of whole eighths of a second.
LARGE = Config(
    name="tiny_large",
    size=32,
    vae=WanVAEConfig(
        base_dim=4, z_dim=4, dim_mult=(1, 1, 2, 2), num_res_blocks=1, latents_mean=(0.1, 0.0, -0.2, 0.0),
        latents_std=(1.0, 2.0, 1.0, 0.5),
    ),
    audio=AudioConfig(
        width=16,
        wav2vec=Wav2VecConfig(
            width=16, layers=2, heads=2, ffn=32, channels=8, position_kernel=4, position_groups=2
        ),
    ),
    text=TextConfig(
        width=16, tokens=12, umt5=UMT5Config(vocabulary=40, width=16, head_dim=8, ffn=32, layers=2, heads=2, tokens=12)
    ),
    dit=DiTConfig(
        depth=4, width=32, heads=2, ffn=64, channels=4, time_width=16, text_width=16, audio_width=16,
        prediction="velocity",
    ),
    stream=StreamConfig(chunk=3, sink=1, window=1, references=1),
)  # fmt: skip
FEATURES = CONFIG.audio.bands * CONFIG.audio.hops_per_frame


def fill(shapes, seed: int = 0):
    """Random values for a tree of shapes, with the scales a trained model might have; nothing is zero."""

    def leaf(path, x):
        name = path[-1].key
        own = zlib.crc32(jax.tree_util.keystr(path).encode())  # a leaf more leaves the others as they are
        value = np.random.default_rng([seed, own]).normal(size=x.shape)
        if name == "kernel":
            value /= np.sqrt(np.prod(x.shape[-2:-1] if x.ndim < 5 else x.shape[:-1]))
        elif name in ("gain", "scale", "std", "variance", "weight"):
            value = 1 + 0.2 * np.abs(value)
        elif name in ("bias", "mean", "centre", "base"):
            value *= 0.1
        elif name == "basis":
            value = np.linalg.qr(value)[0]
        if any(key.key == "gate" for key in path):  # a trained one hardly amplifies what it carries from chunk to chunk
            value *= 0.1
        return jnp.asarray(value, x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@functools.cache
def params(config: Config = CONFIG, seed: int = 0) -> dict:
    """Random weights of the whole model: ``{"dit", "text", "speak", "listen", "prior", "vae"[, "audio"]}``."""
    shapes = dict(pretrained.parts(config))
    return fill(shapes.pop("model") | shapes, seed)


def letters(prompt: str, tokens: int = 12) -> np.ndarray:
    """Ids for :data:`LARGE`: a letter each, an end mark (1), padded with -1 as umT5's are."""
    ids = [2 + ord(letter) % 38 for letter in prompt[: tokens - 1]] + [1]
    return np.array(ids + [-1] * (tokens - len(ids)), np.int32)


def picture(seed: int = 0, size: int = 32) -> np.ndarray:
    """A random uint8 picture."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def sound(samples: int, seed: int = 0, loudness: float = 0.3) -> np.ndarray:
    """Noise at 24 kHz."""
    return (loudness * np.random.default_rng(seed).standard_normal(samples)).clip(-1, 1).astype(np.float32)


def differs(a, b, least: float = 1e-4) -> bool:
    """Whether two arrays differ by more than ``least`` somewhere."""
    return float(jnp.max(jnp.abs(a - b))) > least
