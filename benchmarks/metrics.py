"""The benchmark's figures as pure functions of signals and frames."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Pearson's r; 0 where one of them does not move."""
    a, b = (np.asarray(x, np.float64) - np.mean(x) for x in (a, b))
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 1e-9 else 0.0
