"""A study small enough for a test: the tiny model, an autoencoder of random weights and a cache of random latents."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from data_pipeline.schema import LIFE
from lpm_jax.checkpoint import save_weights
from lpm_jax.config import Config
from lpm_jax.training import latents
from tests import tiny

CLIPS, LATENTS = 6, 13


def config(name: str = "tiny", **train) -> Config:
    """The tiny model in two blocks, with a ``base.speak`` of two windows a step."""
    base = dataclasses.replace(tiny.CONFIG, name=name, dit=dataclasses.replace(tiny.CONFIG.dit, depth=2), data=".")
    return dataclasses.replace(base, stages={"base.speak": {"batch": 2, "latents": 6, "warmup": 1, **train}})


def cache(folder: Path) -> Path:
    """Clips that are their reference and a little noise; every other one is of kind ``idle``."""
    rng = np.random.default_rng(0)
    still = rng.normal(size=(CLIPS, 1, 4, 4, 8))
    near = lambda count: (still + 0.3 * rng.normal(size=(CLIPS, count, 4, 4, 8))).astype(np.float16)  # noqa: E731
    heard = lambda: rng.normal(size=(CLIPS, 4 * LATENTS - 3, tiny.FEATURES)).astype(np.float16)  # noqa: E731
    arrays = {
        "latents": near(LATENTS), "stills": near(4), "references": near(5),
        "reference_kinds": np.tile(np.array([1, -1, -1, -1, -1], np.int32), (CLIPS, 1)),
        "text": rng.integers(1, 64, (CLIPS, 8)).astype(np.int32),
        "kind": np.array([latents.KINDS.index("speak"), latents.KINDS.index("idle")] * (CLIPS // 2), np.int32),
        "speak": heard(), "listen": heard(),
        **{name: rng.random((CLIPS, LATENTS, 4, 4)) < 0.2 for name in ("mouth", "eyes", "face")},
        "life": rng.normal(size=(CLIPS, 4 * LATENTS - 3, len(LIFE))).astype(np.float32),
    }  # fmt: skip
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def workdir(folder: Path) -> Path:
    """A workdir with a finished autoencoder in it."""
    save_weights(folder / "vae" / "weights", "model", tiny.params()["vae"])
    return folder
