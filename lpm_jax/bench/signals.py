"""Figures as pure functions of signals and frames. Signals come as one array per clip.

Correlations pool the frames of all clips after removing each clip's own mean: a nod of ten degrees weighs more than
the sway of a clip without one, and a character whose closed mouth reads high does not count as following the sound.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Real, UInt8

Signals = Sequence[Float[np.ndarray, " _"]]  # of any lengths
#: The picture's regions: 4 x 4 cells, each compared by its mean colour. Smaller cells measure the pose that a prompt
#: asks for: of 8 x 8, the true videos themselves lie at 0.09 of the distance to others, of 4 x 4 at 0.075.
CELLS = 4


def correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Pearson's r; 0 where one of them does not move."""
    a, b = (np.asarray(x, np.float64) - np.mean(x) for x in (a, b))
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 1e-9 else 0.0


def pooled_correlation(results: Signals, truths: Signals, lag: int = 0) -> float:
    """r over the frames of all clips, each clip centred. A positive ``lag`` takes the result as late by so many frames.

    Raises ValueError where a result and its truth differ in length.
    """
    pairs = []
    for result, truth in zip(results, truths, strict=True):
        if len(result) != len(truth):
            raise ValueError(f"expected {len(truth)} frames, found {len(result)}")
        end = len(truth) - abs(lag)
        x, y = np.asarray(result)[max(lag, 0) :][:end], np.asarray(truth)[max(-lag, 0) :][:end]
        pairs.append((x - x.mean(), y - y.mean()))
    return correlation(*(np.concatenate(side) for side in zip(*pairs, strict=True)))


def best_lag(results: Signals, truths: Signals, reach: int = 15) -> tuple[int, float]:
    """The lag within ``reach`` frames at which the pooled correlation is highest, and that correlation."""
    scores = {lag: pooled_correlation(results, truths, lag) for lag in range(-reach, reach + 1)}
    lag = max(scores, key=lambda k: (scores[k], -abs(k)))
    return lag, scores[lag]


def least_alike(truths: Signals) -> int:
    """The rotation of the clips whose truths correlate least with their own: whose sound to use as the wrong one.

    With few clips, two true performances may move alike by chance; a rotation that does would blame the model.
    """
    turns = range(1, len(truths))
    return min(turns, key=lambda k: abs(pooled_correlation(rotate(truths, k), truths)))


def rotate(items: Sequence, turn: int) -> list:
    """``items`` moved so that place ``i`` holds item ``i + turn``."""
    return [items[(i + turn) % len(items)] for i in range(len(items))]


def amplitude_ratio(results: Signals, truths: Signals) -> float:
    """How far the result moves against the truth: 5th to 95th percentile of all frames."""
    low, high = np.percentile(np.concatenate(results), (5, 95))
    true_low, true_high = np.percentile(np.concatenate(truths), (5, 95))
    return float((high - low) / max(true_high - true_low, 1e-9))


def spread_ratio(results: Signals, truths: Signals) -> float:
    """Standard deviation of the result over that of the truth, each clip centred."""
    spread = [np.concatenate([x - np.mean(x) for x in signals]).std() for signals in (results, truths)]
    return float(spread[0] / max(spread[1], 1e-9))


def stillness(quiet: Signals, speaking: Signals) -> float:
    """Mean mouth opening of clips that only listen, over that of clips that speak: 0 is shut."""
    return float(np.concatenate(quiet).mean() / max(np.concatenate(speaking).mean(), 1e-9))


def recall(logits: Signals, present: Bool[np.ndarray, " clips"]) -> tuple[float, float]:
    """Share of frames with an attribute found: over characters that have it, and over those that do not (false)."""
    shares = np.array([np.mean(np.asarray(x) > 0) for x in logits])
    present = np.asarray(present, bool)
    return tuple(float(shares[m].mean()) if m.any() else float("nan") for m in (present, ~present))


def lab(rgb: Real[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """sRGB 0..255 to CIELAB (D65)."""
    value = np.asarray(rgb, np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    rows = np.array([(0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)])
    xyz = linear @ rows.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def region_colours(picture: Real[np.ndarray, "h w 3"], cells: int = CELLS) -> Float[np.ndarray, "cells2 3"]:
    """Mean colour, in CIELAB, of each cell of a picture (for a video: of its temporal mean)."""
    h, w, _ = picture.shape
    blocks = np.asarray(picture, np.float64).reshape(cells, h // cells, cells, w // cells, 3)
    return lab(blocks.mean((1, 3)).reshape(-1, 3))


def colour_distance(a: Float[np.ndarray, "cells2 3"], b: Float[np.ndarray, "cells2 3"]) -> float:
    """Mean CIE76 distance of corresponding regions: about 2 is just visible."""
    return float(np.linalg.norm(a - b, axis=-1).mean())


def identity(
    results: Sequence[Real[np.ndarray, "h w 3"]], references: Sequence[Real[np.ndarray, "h w 3"]]
) -> dict[str, int | float]:
    """Temporal means against everybody's references: how many are ``nearest`` to their own, ``own`` and ``other``
    mean distances, and their ``ratio``."""
    made, known = ([region_colours(x) for x in pictures] for pictures in (results, references))
    table = np.array([[colour_distance(a, b) for b in known] for a in made])
    own, other = np.diag(table).mean(), table[~np.eye(len(table), dtype=bool)].mean()
    nearest = int((table.argmin(1) == np.arange(len(table))).sum())
    return {"nearest": nearest, "own": float(own), "other": float(other), "ratio": float(own / other)}


def drift(distances: Sequence[float]) -> float:
    """Largest departure from the first value, as a share of it."""
    first = distances[0]
    return float(max(abs(d - first) for d in distances) / max(first, 1e-9))


def sharpness(frames: UInt8[np.ndarray, "frames h w 3"]) -> float:
    """Mean squared step between neighbouring pixels: what blur takes away first."""
    x = np.asarray(frames, np.float32)
    return float(np.mean(np.diff(x, axis=1) ** 2) + np.mean(np.diff(x, axis=2) ** 2))
