"""Weights that need no file: every element is a hash of its tensor's name and its index.

The scripts that make golden tensors and the tests that read them draw the same weights, so a golden file holds inputs,
intermediate values and outputs only, and the networks may be wide enough to have several heads of 128.
"""

from __future__ import annotations

import zlib

import numpy as np


def uniform(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float64 values in [-1, 1): splitmix64 of ``crc32(key) * 2**32 + index``."""
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):
        x = np.uint64(zlib.crc32(key.encode())) * np.uint64(2**32) + np.arange(n, dtype=np.uint64)
        x = x * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return ((x >> np.uint64(11)).astype(np.float64) / 2**52 - 1).reshape(shape)


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 tensor with the scale that a trained network might have there; ``shape`` as PyTorch has it."""
    value = uniform(key, shape)
    if key.endswith("bias"):
        value = 0.1 * value
    elif len(shape) == 1:  # gains of norms
        value = 1 + 0.3 * value
    elif key.endswith(("modulation", "scale_shift_table")):
        value = 0.5 * value
    else:
        value = value * np.sqrt(3 / np.prod(shape[1:]))
    return value.astype(np.float32)
