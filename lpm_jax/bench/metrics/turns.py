"""Turn-taking: how long the mouth goes on after the character's speech has stopped."""

from __future__ import annotations

import numpy as np

from data_pipeline.schema import FPS
from lpm_jax.bench.cases import Case
from lpm_jax.bench.metrics import Context, Scores
from lpm_jax.bench.metrics.listening import speaks
from lpm_jax.bench.observe import Observation

PAUSE = 0.8  # seconds of silence after which speech has stopped (pauses within a turn are shorter)
SHUT = 0.1  # opening below which a mouth is shut


def scores(case: Case, seen: Observation, context: Context) -> Scores:
    stops = stops_of(case) if "aperture" in seen.read else []
    delays = [delay(seen, stop) for stop in stops]
    return {"stop_delay": np.mean(delays) if delays else None}


def stops_of(case: Case) -> list[int]:
    """The first silent frame after each stretch of speech of half a second or more that silence follows."""
    active = speaks(case)
    window = round(PAUSE * FPS)
    out = []
    for i in range(FPS // 2, len(active) - window + 1):
        if active[i - 1] and not active[i : i + window].any() and active[max(0, i - FPS) : i].sum() >= FPS // 3:
            out.append(i)
    return out


def delay(seen: Observation, stop: int) -> float:
    """Seconds from frame ``stop`` until the mouth is shut for good, at most PAUSE."""
    window = seen.read["aperture"][stop : stop + round(PAUSE * FPS)]
    opened = np.flatnonzero(window > SHUT)
    return (opened[-1] + 1) / FPS if len(opened) else 0.0
