"""Lip sync: does the mouth follow the speech, at once, far enough, and does it shut where it must?"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from data_pipeline.schema import FPS
from lpm_jax.bench.cases import Case, Truth
from lpm_jax.bench.metrics import Context, Scores
from lpm_jax.bench.observe import Observation
from lpm_jax.bench.signals import amplitude_ratio, best_lag, pooled_correlation

REACH = 12  # frames of lag that are tried
SYNC_REACH = 15  # as SyncNet's evaluation has it
NEAR = 2  # frames by which a closure may be early or late


def scores(case: Case, seen: Observation, context: Context) -> Scores:
    out: Scores = dict.fromkeys(("lip_r", "lip_lag", "lip_amplitude", "bilabial_f1", "sync_c", "sync_d", "sync_offset"))
    if np.abs(case.speak).max(initial=0) < 1e-2:
        return out
    if seen.lips is not None and context.heard is not None:
        out["sync_c"], out["sync_d"], lag = synchrony(seen.lips, context.heard)
        out["sync_offset"] = abs(lag)
    if case.truth is None or "aperture" not in seen.read or case.truth["aperture"].std() < 0.05:
        return out
    truth, read = case.truth["aperture"], seen.read["aperture"]
    out["lip_r"] = max(pooled_correlation([read], [truth], lag) for lag in (-1, 0, 1))
    out["lip_lag"] = abs(best_lag([read], [truth], REACH)[0])
    out["lip_amplitude"] = closeness(amplitude_ratio([read], [truth]))
    out["bilabial_f1"] = closures_f1(read, case.truth)
    return out


def closeness(ratio: float) -> float:
    """1 where a ratio is 1, less where it is smaller or larger."""
    return min(ratio, 1 / ratio) if ratio > 1e-6 else 0.0


def near(index: list[int], frames: int, reach: int = NEAR) -> Bool[np.ndarray, " frames"]:
    """Which frames lie within ``reach`` of one of ``index``."""
    out = np.zeros(frames, bool)
    for i in index:
        out[max(0, i - reach) : i + reach + 1] = True
    return out


def lip_sounds(truth: Truth, viseme: str) -> list[int]:
    """Frames of the sounds of a viseme that have other sounds on both sides: lips that shut and open again."""
    from data_pipeline.performers.visemes import visemes_of

    frames = len(truth.params)
    out = []
    for before, (a, b, ipa), after in zip(truth.phonemes, truth.phonemes[1:], truth.phonemes[2:], strict=False):
        inside = before[2] and after[2] and a - before[1] < 0.05 and after[0] - b < 0.05
        if inside and visemes_of(ipa)[0][0] == viseme and 0 <= (at := round(a * FPS + 0.5)) < frames:
            out.append(at)
    return out


def closures(read: Float[np.ndarray, " frames"], level: float) -> list[int]:
    """Moments at which the mouth shuts between two openings: minima below a fifth of ``level``."""
    out = []
    for i in range(1, len(read) - 1):
        around = read[max(0, i - 6) : i].max(), read[i + 1 : i + 7].max()
        lowest = read[i] <= read[i - 1] and read[i] < read[i + 1]
        if lowest and read[i] < 0.2 * level and min(around) > 0.35 * level:
            out.append(i)
    return out


def closures_f1(read: Float[np.ndarray, " frames"], truth: Truth) -> float | None:
    """F1 of the closures on p, b and m. Shutting on f and v, nearly closed as they are, counts neither way."""
    frames = len(read)
    wanted = lip_sounds(truth, "PP")
    if not wanted:
        return None
    level = max(float(np.percentile(read, 90)), 0.05)
    shut = read < 0.2 * level
    opened = read > 0.35 * level
    met = sum(bool(shut[near([i], frames)].any() and opened[near([i], frames, 6)].any()) for i in wanted)
    free = near(lip_sounds(truth, "FF"), frames)
    found = [i for i in closures(read, level) if not free[i] or near(wanted, frames)[i]]
    good = sum(bool(near(wanted, frames)[i]) for i in found)
    recall, precision = met / len(wanted), good / len(found) if found else 0.0
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def synchrony(
    lips: Float[np.ndarray, "frames d"], heard: Float[np.ndarray, "frames d"], reach: int = SYNC_REACH
) -> tuple[float, float, int]:
    """Sync-C, Sync-D and the lips' lag of Chung and Zisserman ("Out of time", 2016): over the mean distances of lips
    and sound at every lag up to ``reach``, the median less the least, the least, and where it lies."""
    n = len(lips)
    reach = min(reach, n - 2)
    lags = range(-reach, reach + 1)
    pairs = [(lips[max(lag, 0) : n + min(lag, 0)], heard[max(-lag, 0) : n - max(lag, 0)]) for lag in lags]
    distance = [float(np.linalg.norm(a - b, axis=1).mean()) for a, b in pairs]
    return float(np.median(distance)) - min(distance), min(distance), lags[int(np.argmin(distance))]
