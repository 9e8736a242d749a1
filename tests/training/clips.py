"""Random batches with everything that a diffusion stage reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.schema import LIFE
from lpm_jax.config import Config
from lpm_jax.models.conditions import audio_features, history_tokens


def batch_of(config: Config, frames: int, clips: int = 2, seed: int = 0) -> dict[str, jax.Array]:
    """``clips`` windows of ``frames`` latent frames; the second clip does not show its first frame."""
    rng = np.random.default_rng(seed)
    rows, columns = config.cells
    cells = (rows, columns, config.dit.channels)
    sound = (clips, history_tokens(config.audio) + 4 * frames, audio_features(config.audio).features)
    valid = np.ones((clips, 2), bool)
    valid[1:, 0] = False
    arrays = {
        "latents": rng.normal(size=(clips, frames, *cells)).astype(np.float16),
        "references": rng.normal(size=(clips, 2, *cells)).astype(np.float16),
        "reference_kinds": np.tile(np.array([0, 1], np.int32), (clips, 1)),
        "reference_valid": valid,
        "text": rng.integers(1, 9, (clips, config.text.tokens)).astype(np.int32),
        "weights": rng.uniform(1, 4, (clips, frames, rows, columns)).astype(np.float32),
        "speak": rng.normal(size=sound).astype(np.float16),
        "listen": rng.normal(size=sound).astype(np.float16),
        "kind": rng.integers(0, 4, clips).astype(np.int32),
        "life": rng.normal(size=(clips, frames, len(LIFE))).astype(np.float32),
    }
    return jax.tree.map(jnp.asarray, arrays)
