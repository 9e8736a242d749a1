r"""Laws of loss, fitted as Hoffmann et al. (2022, arXiv 2203.15556) do: a Huber loss on the logarithm of the loss.

    L(C)    = E + A C^{-\alpha}                       on the frontier: runs that no cheaper run beats
    L(N, D) = E + A N^{-\alpha} + B D^{-\beta}        on all runs

Both are ``E + sum_j A_j x_j^{-s_j}``, written as a log-sum-exp of ``log E`` and ``a_j - s_j (log x_j - mean)`` and
minimised by Levenberg and Marquardt's method with Huber's weights (iteratively reweighted least squares) from a grid of
starts, all resamples at once.

Huber's threshold is 0.01 where Hoffmann et al. take 0.001: of a handful of runs, each of one seed, a percent of scatter
is no outlier, and the smaller threshold would make three runs decide the law alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

HUBER = 0.01
STEEPEST = 4.0  # bound of the exponents; 0 below
STARTS = ((0.05, 0.2, 0.5, 1.0, 2.0), (0.05, 0.5, 0.9))  # of the exponents; of E as a share of the smallest loss
ITERATIONS = 300
MOST_DAMPING = 1e8
LEAST_E = 1e-4  # of E, as a share of the smallest loss: less cannot be told from none


@dataclasses.dataclass(frozen=True)
class Law:
    """``E + sum_j scales[j] x_j^-exponents[j]``; arrays hold one law for each resample in front."""

    E: Float[np.ndarray, "*b"]
    log_scales: Float[np.ndarray, "*b k"]
    exponents: Float[np.ndarray, "*b k"]

    def __call__(self, x: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "*b n"]:
        """The loss at ``x`` (compute; or parameters and tokens)."""
        terms = self.log_scales[..., None, :] - self.exponents[..., None, :] * np.log(x)
        return self.E[..., None] + np.exp(terms).sum(-1)

    @property
    def scales(self) -> Float[np.ndarray, "*b k"]:
        return np.exp(self.log_scales)


def frontier(compute: Float[np.ndarray, " n"], loss: Float[np.ndarray, "*b n"]) -> Bool[np.ndarray, "*b n"]:
    """Which runs no other run of at most their compute beats."""
    as_cheap = compute <= compute[:, None]
    better = loss[..., None, :] < loss[..., :, None]
    return ~(as_cheap & better).any(-1)


def _model(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log loss ``[b, n]`` and its derivatives ``[b, n, 1 + 2 k]`` for ``theta = (log E, a_1 .. a_k, s_1 .. s_k)``."""
    k = x.shape[1]
    terms = theta[:, None, 1 : 1 + k] - theta[:, None, 1 + k :] * x
    terms = np.concatenate([np.broadcast_to(theta[:, None, :1], (*terms.shape[:2], 1)), terms], axis=2)
    top = terms.max(2, keepdims=True)
    parts = np.exp(terms - top)
    total = parts.sum(2, keepdims=True)
    share = parts / total
    slopes = np.concatenate([share, -share[..., 1:] * x], axis=2)
    return (np.log(total) + top)[..., 0], slopes


def _cost(residual: np.ndarray, weight: np.ndarray) -> np.ndarray:
    size = np.abs(residual)
    huber = np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER))
    return (weight * huber).sum(-1)


def _minimise(theta: np.ndarray, x: np.ndarray, target: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, ...]:
    """The end of every start ``theta [b, p]`` and its cost; ``x [n, k]``, ``target`` and ``weight [b, n]``."""
    k = x.shape[1]
    low = np.concatenate([np.full(1 + k, -np.inf), np.zeros(k)])
    high = np.concatenate([np.full(1 + k, np.inf), np.full(k, STEEPEST)])
    floor = np.log(LEAST_E) + np.where(weight > 0, target, np.inf).min(1)
    damping = np.full(len(theta), 1e-2)
    value, slopes = _model(theta, x)
    cost = _cost(value - target, weight)
    for _ in range(ITERATIONS):
        residual = value - target
        w = weight * np.minimum(1, HUBER / np.maximum(np.abs(residual), 1e-300))
        gradient = np.einsum("bnp,bn->bp", slopes, w * residual)
        hessian = np.einsum("bnp,bn,bnq->bpq", slopes, w, slopes)
        diagonal = np.einsum("bpp->bp", hessian)
        added = damping[:, None] * diagonal + 1e-12
        step = np.linalg.solve(hessian + added[:, :, None] * np.eye(hessian.shape[1]), gradient[..., None])[..., 0]
        new = np.clip(theta - step, low, high)
        new[:, 0] = np.maximum(new[:, 0], floor)
        new_value, new_slopes = _model(new, x)
        new_cost = _cost(new_value - target, weight)
        better = new_cost <= cost
        settled = better & (cost - new_cost <= 1e-13 * cost) | (damping >= MOST_DAMPING)
        theta = np.where(better[:, None], new, theta)
        value = np.where(better[:, None], new_value, value)
        slopes = np.where(better[:, None, None], new_slopes, slopes)
        cost = np.where(better, new_cost, cost)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-12, MOST_DAMPING)
        if settled.all():
            break
    return theta, cost


def fit(
    x: Float[np.ndarray, "n k"],
    loss: Float[np.ndarray, "*b n"],
    weight: Float[np.ndarray, "*b n"],
    near: Law | None = None,
) -> Law:
    """The law of each row of losses; ``weight`` counts every run, 0 leaves it out.

    ``near`` is the one start instead of the grid: for resamples, the law of what was resampled.
    """
    batch, n = loss.shape[:-1], loss.shape[-1]
    loss, weight = loss.reshape(-1, n), weight.reshape(-1, n)
    k, centre = x.shape[1], np.log(x).mean(0)
    smallest, mean = np.where(weight > 0, loss, np.inf).min(1), (weight * loss).sum(1) / weight.sum(1)
    best, lowest = np.zeros((len(loss), 1 + 2 * k)), np.full(len(loss), np.inf)
    for start in _starts(k, smallest, mean) if near is None else [_theta(near, centre)]:
        theta = np.broadcast_to(start, best.shape)
        theta, cost = _minimise(theta, np.log(x) - centre, np.log(loss), weight)
        best, lowest = np.where((cost < lowest)[:, None], theta, best), np.minimum(cost, lowest)
    exponents = best[:, 1 + k :]
    scales = best[:, 1 : 1 + k] + exponents * centre
    return Law(np.exp(best[:, 0]).reshape(batch), scales.reshape(*batch, k), exponents.reshape(*batch, k))


def _starts(k: int, smallest: np.ndarray, mean: np.ndarray) -> Iterator[np.ndarray]:
    """Where to start from: the grid, with scales that give the mean loss."""
    for *slopes, share in itertools.product(*[STARTS[0]] * k, STARTS[1]):
        each = np.log((mean - share * smallest) / k)
        yield np.stack([np.log(share * smallest), *[each] * k, *(np.full_like(each, s) for s in slopes)], axis=1)


def _theta(law: Law, centre: np.ndarray) -> np.ndarray:
    """The minimiser's numbers for ``law``."""
    return np.concatenate([[np.log(law.E)], law.log_scales - law.exponents * centre, law.exponents])
