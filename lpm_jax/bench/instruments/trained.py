"""What every instrument is: a network's trained parameters, read from their folder, run a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from lpm_jax.checkpoint import load_weights

FOLDER = Path(__file__).parents[1] / "weights"
Kind = TypeVar("Kind", bound="Trained")


class Trained:
    """A trained network. Its folder under ``weights`` is called ``name``."""

    name = ""

    def __init__(self, params: dict):
        self.params = params

    @staticmethod
    def initial(seed: int) -> dict:
        """Fresh parameters."""
        raise NotImplementedError

    @classmethod
    def load(cls: type[Kind], directory: str | Path | None = None) -> Kind:
        """Raises InputError where there are no weights or they do not fit."""
        return cls(load_weights(directory or FOLDER / cls.name, cls.name, jax.eval_shape(lambda: cls.initial(0))))


def in_batches(run: Callable[[np.ndarray], jax.Array], items: np.ndarray, batch: int = 64) -> np.ndarray:
    """``run`` of all ``items``, ``batch`` at a time; the last is filled up with zeros, so that one program does."""
    out = []
    for i in range(0, max(len(items), 1), batch):
        part = items[i : i + batch]
        padded = np.concatenate([part, np.zeros((batch - len(part), *items.shape[1:]), items.dtype)])
        out.append(np.asarray(run(padded))[: len(part)])
    return np.concatenate(out)
