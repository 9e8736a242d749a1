"""Reactions: nods, smiles and brow flashes at the right moments, and a mouth that keeps still without speech.

Brows that rise under hair cannot be seen by anybody: nods, smiles and brows count only where the reader follows them in
the case's own true video.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.signal import find_peaks

from data_pipeline.schema import FPS, SAMPLES_PER_FRAME
from lpm_jax.bench.cases import Case
from lpm_jax.bench.metrics import Context, Scores
from lpm_jax.bench.observe import Observation
from lpm_jax.bench.signals import correlation, pooled_correlation

NOD = 4.5  # degrees by which a nod stands out
RISE = 0.25  # of a smile or of brows within BEAT frames, in units of the parameters: its onset
READ = 0.6  # of which the reader, careful with what is small, shows so much
BEAT = 5
MATCH = 0.3  # seconds within which an event counts as the true one
PARTS = {
    "smile": ("smile",),
    "brow": ("brow_inner_left", "brow_inner_right", "brow_outer_left", "brow_outer_right"),
}
SEARCH = 1.0  # seconds within which the nearest nod is looked for to tell how late it is
LEGIBLE = 0.7  # correlation of reading and truth in the true video from which a reaction counts
QUIET = 7  # frames without speech before and after a frame at which the mouth should be still


def scores(case: Case, seen: Observation, context: Context) -> Scores:
    names = ("nod_f1", "nod_error", "listen_r", "smile_f1", "brow_f1", "mouth_still")
    out: Scores = dict.fromkeys(names)
    still = silent(case)
    if still.sum() >= FPS // 2 and "aperture" in seen.read:
        out["mouth_still"] = seen.read["aperture"][still].mean()
    if case.truth is None or np.abs(case.listen).max(initial=0) < 1e-2:
        return out
    if "pitch" in seen.read:
        truth, read = case.truth["pitch"], seen.read["pitch"]
        wanted, found = events(truth, NOD), events(read, NOD)
        if wanted and legible("pitch", truth, context):
            out["nod_f1"] = f1(wanted, found)
            out["nod_error"] = np.mean([min([abs(w - f) for f in found] + [SEARCH]) for w in wanted])
        if truth.std() > 0.8:
            out["listen_r"] = max(pooled_correlation([read], [truth], lag) for lag in (-1, 0, 1))
    for name in PARTS:
        if name in seen.read:
            out[f"{name}_f1"] = _expression_f1(case, name, seen, context)
    return out


def events(signal: Float[np.ndarray, " frames"], prominence: float) -> list[float]:
    """Seconds at which the signal peaks by at least ``prominence``, no two within a quarter of a second."""
    level = np.convolve(np.pad(signal, 1, mode="edge"), (0.25, 0.5, 0.25), "valid")
    level = np.concatenate([[level.min()], level, [level.min()]])  # a peak may lie at an end
    peaks, _ = find_peaks(level, prominence=prominence, distance=FPS // 4)
    return [float(p - 1) / FPS for p in peaks]


def f1(wanted: list[float], found: list[float], within: float = MATCH) -> float:
    """F1 of events matched one to one, nearest pairs first."""
    pairs = sorted((abs(w - f), i, j) for i, w in enumerate(wanted) for j, f in enumerate(found))
    left, right = set(), set()
    for distance, i, j in pairs:
        if distance <= within and i not in left and j not in right:
            left.add(i)
            right.add(j)
    return 2 * len(left) / max(len(wanted) + len(found), 1)


def onsets(signal: Float[np.ndarray, " frames"], rise: float) -> list[float]:
    """Seconds at which the next :data:`BEAT` frames are higher than the last ones by most, and by at least ``rise``. A
    smile that stays has one onset, but a peak anywhere."""
    total = np.cumsum(np.concatenate([[0.0], np.pad(signal, BEAT, mode="edge")]))
    mean = (total[BEAT:] - total[:-BEAT]) / BEAT
    rises = mean[BEAT:-1] - mean[: -BEAT - 1]
    peaks, _ = find_peaks(np.concatenate([[0.0], rises, [0.0]]), height=rise, distance=2 * BEAT)
    return [float(p - 1) / FPS for p in peaks]


def _expression_f1(case: Case, name: str, seen: Observation, context: Context) -> float | None:
    """None where the truth has no onset, or the reader does not see the true one."""
    truth = np.mean([case.truth[part] for part in PARTS[name]], axis=0)
    wanted = onsets(truth, RISE)
    if not wanted or not legible(name, truth, context):
        return None
    return f1(wanted, onsets(seen.read[name], READ * RISE))


def legible(name: str, truth: Float[np.ndarray, " frames"], context: Context) -> bool:
    """Whether the reader follows the truth in the true video."""
    read = None if context.truth is None else context.truth.read.get(name)
    return read is not None and correlation(read, truth) >= LEGIBLE


def speaks(case: Case) -> Bool[np.ndarray, " frames"]:
    """Frames in which the character's own track is above -40 dB of full scale."""
    power = np.mean(case.speak.reshape(-1, SAMPLES_PER_FRAME) ** 2, axis=1)
    return power > 1e-4


def silent(case: Case) -> Bool[np.ndarray, " frames"]:
    """Frames that are at least :data:`QUIET` frames away from speech."""
    return np.convolve(speaks(case), np.ones(2 * QUIET + 1), "same") < 0.5
