"""Motion dynamics: does it move as much, and into poses as different, as the truth; does it ever freeze?"""

from __future__ import annotations

import numpy as np

from lpm_jax.bench.cases import Case
from lpm_jax.bench.metrics import Context, Scores
from lpm_jax.bench.metrics.speaking import closeness
from lpm_jax.bench.observe import Observation
from lpm_jax.bench.signals import lab

FROZEN = 0.02  # mean change of a pixel, of 255, below which a frame repeats the one before


def scores(case: Case, seen: Observation, context: Context) -> Scores:
    out: Scores = dict.fromkeys(("motion_amount", "motion_diversity", "frozen", "sharpness"))
    if len(seen.change):
        out["frozen"] = np.mean(seen.change < FROZEN)
    truth = context.truth
    if truth is not None:
        out["motion_amount"] = closeness(seen.change.mean() / max(truth.change.mean(), 1e-9))
        out["motion_diversity"] = closeness(diversity(seen) / max(diversity(truth), 1e-9))
        out["sharpness"] = closeness(seen.detail.mean() / max(truth.detail.mean(), 1e-9))
    return out


def diversity(seen: Observation) -> float:
    """Root of the summed variance of what each of the regions shows, in CIELAB: how far apart a video's poses are."""
    return float(np.sqrt(lab(seen.thumbs).var(0).sum(-1).mean()))
