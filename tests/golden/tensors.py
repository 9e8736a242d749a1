"""Golden files: PyTorch's weights under ``weights/``, inputs and outputs beside them, its config in the metadata."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open


def read(name: str) -> tuple[dict, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Config, weights by their PyTorch keys, and the other tensors of ``tests/golden/<name>.safetensors``."""
    with safe_open(Path(__file__).with_name(f"{name}.safetensors"), framework="numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        config = json.loads(file.metadata()["config"])
    weights = {key.removeprefix("weights/"): x for key, x in tensors.items() if key.startswith("weights/")}
    return config, weights, {key: x for key, x in tensors.items() if not key.startswith("weights/")}


def gather(names: dict, abstract: dict, weights: dict[str, np.ndarray]) -> tuple[dict, set[str]]:
    """Our parameters from PyTorch's weights, checked against ``abstract``; and the keys that were used."""
    used: set[str] = set()

    def leaf(path: str, expected) -> jnp.ndarray:
        keys, permutation = names[path]
        stacked = "{i}" in keys[0]
        key = next(k for k in keys if k.format(i=0) in weights)
        found = [key.format(i=i) for i in range(expected.shape[0])] if stacked else [key]
        used.update(found)
        parts = [weights[k].transpose(permutation) for k in found]
        value = np.stack(parts) if stacked else parts[0]
        assert value.shape == expected.shape, (path, value.shape, expected.shape)
        return jnp.asarray(value, expected.dtype)

    def walk(tree: dict, prefix: str) -> dict:
        return {k: walk(v, f"{prefix}{k}/") if isinstance(v, dict) else leaf(prefix + k, v) for k, v in tree.items()}

    return walk(abstract, ""), used


def error(ours, theirs) -> float:
    """The largest difference over the largest value, and never less than the root mean squares' ratio."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    largest = np.abs(ours - theirs).max() / np.abs(theirs).max()
    return float(max(largest, np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)))
