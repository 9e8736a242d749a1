"""A model small enough to compile in seconds: 32 x 32 pixels, 4 x 4 latent cells, 2 x 2 tokens a frame."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lpm_jax.config import AudioConfig, Config, DiTConfig, StreamConfig, TextConfig, TrainConfig, VAEConfig
from lpm_jax.models import conditions
from lpm_jax.models.vae import toy

CONFIG = Config(
    name="tiny",
    size=32,
    vae=VAEConfig(channels=8, width=16, encoder_blocks=1, decoder_blocks=1),
    audio=AudioConfig(bands=6, width=16),
    text=TextConfig(vocabulary=64, tokens=8, width=16),
    dit=DiTConfig(
        depth=4, width=32, heads=2, ffn=64, channels=8, time_width=16, text_width=16, audio_width=16
    ),
    stream=StreamConfig(chunk=3, sink=1, window=1),
    train=TrainConfig(steps=10, batch=4, token_keep=1.0),
)  # fmt: skip
FEATURES = CONFIG.audio.bands * CONFIG.audio.hops_per_frame


def fill(shapes, seed: int = 0):
    """Random values for a tree of shapes, with the scales a trained model might have; nothing is zero."""
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        name = path[-1].key
        value = rng.normal(size=x.shape)
        if name == "kernel":
            value /= np.sqrt(np.prod(x.shape[-2:-1] if x.ndim < 5 else x.shape[:-1]))
        elif name in ("gain", "scale", "std", "variance", "weight"):
            value = 1 + 0.2 * np.abs(value)
        elif name in ("bias", "mean", "centre"):
            value *= 0.1
        elif name == "basis":
            value = np.linalg.qr(value)[0]
        return jnp.asarray(value, x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@functools.cache
def params(config: Config = CONFIG, seed: int = 0) -> dict:
    """Random weights of the whole model and its autoencoder: ``{"dit", "text", "speak", "listen", "prior", "vae"}``."""
    vae = jax.eval_shape(lambda: toy.init(config.vae, jax.random.key(0)))
    return fill(conditions.abstract(config) | {"vae": vae}, seed)


def picture(seed: int = 0, size: int = 32) -> np.ndarray:
    """A random uint8 picture."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def sound(samples: int, seed: int = 0, loudness: float = 0.3) -> np.ndarray:
    """Noise at 24 kHz."""
    return (loudness * np.random.default_rng(seed).standard_normal(samples)).clip(-1, 1).astype(np.float32)


def differs(a, b, least: float = 1e-4) -> bool:
    """Whether two arrays differ by more than ``least`` somewhere."""
    return float(jnp.max(jnp.abs(a - b))) > least
