"""A stream of the tiny model, for the tests of this folder."""

from __future__ import annotations

import jax
import numpy as np

from lpm_jax.models import dit
from lpm_jax.models.text import tokenize
from lpm_jax.streaming import generator
from tests import tiny

CONFIG = tiny.CONFIG  # chunks of 3, a sink of 1, a window of 1


def begin(seed: int = 0, prompt: str = "smiles", picture: int = 0) -> generator.StreamState:
    pictures = np.stack([tiny.picture(picture)] * 2 + [tiny.picture(picture + 1)] * CONFIG.stream.references)[None]
    kinds = np.array([[0, 1, 2, 7]], np.int32)
    ids = tokenize(CONFIG.text, prompt)[None]
    valid = np.array([[True, True, False, True]])
    return generator.start(CONFIG, tiny.params(), pictures, kinds, valid, ids, jax.random.key(seed))


def sounds(n: int, seed: int = 0) -> list[np.ndarray]:
    """Both tracks of chunk ``n``."""
    count = generator.chunk_samples(CONFIG)
    return [tiny.sound(count, seed=1000 * seed + 10 * n + i, loudness=0.2)[None] for i, _ in enumerate(dit.KINDS)]


def step(state, n: int, seed: int = 0):
    state, frames = generator.chunk_step(CONFIG, tiny.params(), state, *sounds(n, seed))
    return state, np.asarray(frames)


def same(a, b) -> None:
    """Two states, bit for bit."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)
