"""Every case's scores from what the instruments saw: a module for each dimension, all through :func:`scores`.

A score is None where a case has nothing to measure: no speech, no nod, no truth, no weights.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from lpm_jax.bench.cases import Case
from lpm_jax.bench.observe import Observation

Scores = dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Context:
    """What a case's scores need besides its video."""

    truth: Observation | None  # the true video through the same instruments
    colours: Float[np.ndarray, "cells 3"]  # of the first frame, in CIELAB
    others: Float[np.ndarray, "others cells 3"]  # of the other cases' first frames
    look: Float[np.ndarray, " e"] | None = None  # the first frame's embedding
    other_looks: Float[np.ndarray, "others e"] | None = None
    heard: Float[np.ndarray, "frames d"] | None = None  # the synchrony network's view of the speech
    chunk: int = 12  # frames that a model makes at a time


def scores(case: Case, seen: Observation, context: Context) -> Scores:
    """Every score of one video."""
    from lpm_jax.bench.metrics import control, identity, listening, motion, speaking, stability, turns

    parts = (speaking, listening, identity, control, motion, stability, turns)
    found: Scores = {}
    for part in parts:
        found |= part.scores(case, seen, context)
    return {name: float(x) if x is not None and np.isfinite(x) else None for name, x in found.items()}
