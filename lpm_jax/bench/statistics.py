"""Intervals, effect sizes and Frechet distances."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

DRAWS = 1000  # resamplings of the cases


def bootstrap(values: Sequence[float | None], draws: int = DRAWS) -> dict[str, float | int] | None:
    """The mean of the values that are there with its 95 % percentile interval; None where there is none."""
    x = np.array([v for v in values if v is not None], np.float64)
    if not len(x):
        return None
    pick = np.random.default_rng(0).integers(0, len(x), (draws, len(x)))
    return stat(x.mean(), x[pick].mean(1), len(x))


def stat(value: float, drawn: Float[np.ndarray, " draws"], n: int) -> dict[str, float | int]:
    """A figure as results have it."""
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {"value": round(float(value), 5), "low": round(float(low), 5), "high": round(float(high), 5), "n": n}


def effect(ceiling: Sequence[float | None], floor: Sequence[float | None], better: str) -> float | None:
    """Cohen's d of the true video against the floor; positive where the truth is better. At most 999 (no spread)."""
    a, b = (np.array([v for v in side if v is not None], np.float64) for side in (ceiling, floor))
    if len(a) < 2 or len(b) < 2:
        return None
    gap = (a.mean() - b.mean()) * (1 if better == "higher" else -1)
    spread = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    return round(float(np.clip(gap / max(spread, 1e-12), -999, 999)), 3)


def effect_text(value: float | None) -> str:
    """``value`` as tables show it: two groups without spread are infinitely many standard deviations apart."""
    return "-" if value is None else "no spread" if abs(value) > 500 else f"{value:.1f}"


# --- Frechet distances -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, sum and sum of outer products of some features: enough for their mean and covariance."""

    count: int
    total: Float[np.ndarray, " d"]
    outer: Float[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> Moments:
        x = np.asarray(features, np.float64)
        return cls(len(x), x.sum(0), x.T @ x)

    @classmethod
    def sum(cls, parts: Sequence[Moments], pick: Int[np.ndarray, " n"] | None = None) -> Moments:
        chosen = parts if pick is None else [parts[i] for i in pick]
        return cls(sum(p.count for p in chosen), sum(p.total for p in chosen), sum(p.outer for p in chosen))

    def normal(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance."""
        mean = self.total / self.count
        return mean, self.outer / self.count - np.outer(mean, mean)


def frechet(a: Moments, b: Moments) -> float:
    """Squared Frechet distance of two normal distributions (Dowson and Landau, 1982; FID: Heusel et al., 2017):
    ``|m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2))``, the root's trace as that of ``(A^(1/2) B A^(1/2))^(1/2)``."""
    (mean_a, cov_a), (mean_b, cov_b) = a.normal(), b.normal()
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return max(float(distance), 0.0)  # rounding may leave a little less


def frechet_stat(a: Sequence[Moments], b: Sequence[Moments], draws: int = 100) -> dict[str, float | int]:
    """The distance of all of ``a`` from all of ``b`` with its interval over resampled cases.

    Few cases look further apart than many: the distance of a finite sample is too large, and its resamplings' more so.
    The interval is moved by what resampling adds.
    """
    value = frechet(Moments.sum(a), Moments.sum(b))
    picks = np.random.default_rng(0).integers(0, len(a), (draws, len(a)))
    drawn = np.array([frechet(Moments.sum(a, p), Moments.sum(b, p)) for p in picks])
    return stat(value, (drawn - drawn.mean() + value).clip(0), len(a))
