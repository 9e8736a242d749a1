"""What a study's runs say together: the laws, how sure they are, and whether they foresee the largest run.

Intervals hold 95 % of the laws of 400 resamples of the held-out clips, the same clips for every run: they tell what
other clips might have given, not what other seeds of training would have. For that there is the range of an exponent
when each run on the frontier is left out in turn. Runs that differ in nothing but the seed count as one, by their mean.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from lpm_jax.scaling.fit import Law, fit, frontier

RESAMPLES = 400
LEAST = 4  # runs on the frontier for the three numbers of L(C)
LEAST_ALL = 7  # runs, of at least three sizes and three amounts of data, for the five of L(N, D)


@dataclasses.dataclass(frozen=True)
class Points:
    """Runs as arrays: ``size`` is parameters of the blocks, ``loss`` the mean over ``clips``."""

    labels: list[str]
    compute: Float[np.ndarray, " n"]
    size: Float[np.ndarray, " n"]
    tokens: Float[np.ndarray, " n"]
    clips: Float[np.ndarray, "n clips"]

    @property
    def loss(self) -> Float[np.ndarray, " n"]:
        return self.clips.mean(1)

    def without(self, index: int) -> Points:
        keep = np.arange(len(self.labels)) != index
        arrays = (getattr(self, name)[keep] for name in ("compute", "size", "tokens", "clips"))
        return Points([label for label, kept in zip(self.labels, keep, strict=True) if kept], *arrays)

    def resampled(self, seed: int = 0) -> Float[np.ndarray, "resamples n"]:
        """Every run's loss on the same clips, drawn with replacement."""
        count = self.clips.shape[1]
        drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
        return self.clips[:, drawn].mean(2).T


def points(runs: list[dict[str, Any]]) -> Points:
    """Runs by rising compute, seeds averaged."""
    groups: dict[str, list[dict]] = {}
    for run in sorted(runs, key=lambda run: run["flops"]):
        groups.setdefault(f"{run['name']} {run['steps']}", []).append(run)
    first = [group[0] for group in groups.values()]
    arrays = [np.array([run[key] for run in first], float) for key in ("flops", "blocks", "tokens")]
    clips = [np.mean([run["clips"] for run in group], axis=0) for group in groups.values()]
    return Points(list(groups), *arrays, np.array(clips))


def compute_law(found: Points) -> tuple[Law, Law]:
    """``L(C)`` on the frontier, and that of every resample with its own frontier.

    Raises:
      ValueError: too few runs are on the frontier; the message is for people.
    """
    x, mask = found.compute[:, None], frontier(found.compute, found.loss)
    if mask.sum() < LEAST:
        raise ValueError(f"expected at least {LEAST} runs on the frontier, found {mask.sum()}")
    losses = found.resampled()
    masks = frontier(found.compute, losses)
    masks = np.where(masks.sum(1, keepdims=True) < LEAST, mask, masks)
    law = fit(x, found.loss, mask.astype(float))
    return law, fit(x, losses, masks.astype(float), near=law)


def size_law(found: Points) -> tuple[Law, Law]:
    """``L(N, D)`` on all runs, and that of every resample.

    Raises:
      ValueError: too few runs, sizes or amounts of data; the message is for people.
    """
    counts = len(found.labels), len(np.unique(found.size)), len(np.unique(found.tokens))
    if counts[0] < LEAST_ALL or min(counts[1:]) < 3:
        sizes = "{} runs of {} sizes and {} amounts of data"
        raise ValueError(f"expected at least {sizes.format(LEAST_ALL, 3, 3)}, found {sizes.format(*counts)}")
    x, losses = np.stack([found.size, found.tokens], axis=1), found.resampled()
    law = fit(x, found.loss, np.ones_like(found.loss))
    return law, fit(x, losses, np.ones_like(losses), near=law)


def interval(values: Float[np.ndarray, " n"]) -> list[float]:
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]


def left_out(found: Points) -> list[float] | None:
    """The least and the largest exponent of ``L(C)`` when each run on the frontier is left out in turn."""
    exponents = []
    for index in np.flatnonzero(frontier(found.compute, found.loss)):
        rest = found.without(int(index))
        mask = frontier(rest.compute, rest.loss)
        if mask.sum() >= LEAST:
            exponents.append(float(fit(rest.compute[:, None], rest.loss, mask.astype(float)).exponents[0]))
    return [min(exponents), max(exponents)] if exponents else None


def _described(law: Law, resamples: Law, names: tuple[str, ...], scales: tuple[str, ...]) -> dict[str, Any]:
    numbers: dict[str, Any] = {"E": float(law.E), "E_interval": interval(resamples.E)}
    for j, (name, scale) in enumerate(zip(names, scales, strict=True)):
        numbers |= {scale: float(law.scales[j]), name: float(law.exponents[j])}
        numbers[f"{name}_interval"] = interval(resamples.exponents[:, j])
    return numbers


def describe_compute(found: Points) -> dict[str, Any]:
    """``E + A C^-alpha`` in numbers, or why there is none."""
    try:
        law, resamples = compute_law(found)
    except ValueError as error:
        return {"missing": str(error)}
    mask = frontier(found.compute, found.loss)
    residual = np.log(found.loss[mask] / law(found.compute[mask, None]))
    return {
        "frontier": [label for label, on in zip(found.labels, mask, strict=True) if on],
        **_described(law, resamples, ("alpha",), ("A",)),
        "alpha_left_out": left_out(found),
        "largest_residual": float(np.abs(residual).max()),
    }


def describe_size(found: Points) -> dict[str, Any]:
    """``E + A N^-alpha + B D^-beta`` in numbers, with the exponent of the best size over compute, or why not."""
    try:
        law, resamples = size_law(found)
    except ValueError as error:
        return {"missing": str(error)}
    numbers = _described(law, resamples, ("alpha", "beta"), ("A", "B"))
    residual = np.log(found.loss / law(np.stack([found.size, found.tokens], axis=1)))
    alpha, beta = law.exponents
    best = float(beta / (alpha + beta)) if alpha + beta else None
    return numbers | {"best_size_exponent": best, "largest_residual": float(np.abs(residual).max())}


def foresee(found: Points) -> dict[str, Any]:
    """The largest run held back and predicted by both laws of the others.

    ``error`` is predicted over measured, less one; its interval compares both on the same resampled clips.
    """
    last = int(np.argmax(found.compute))
    rest, measured = found.without(last), found.loss[last]
    losses = found.resampled()[:, last]
    result: dict[str, Any] = {
        "run": found.labels[last],
        "measured": float(measured),
        "on_frontier": bool(frontier(found.compute, found.loss)[last]),
    }
    asked = {
        "compute": (compute_law, np.array([[found.compute[last]]])),
        "size": (size_law, np.array([[found.size[last], found.tokens[last]]])),
    }
    for name, (law_of, at) in asked.items():
        try:
            law, resamples = law_of(rest)
        except ValueError as error:
            result[name] = {"missing": str(error)}
            continue
        predicted = float(law(at)[0])
        spread = interval(resamples(at)[:, 0] / losses - 1)
        result[name] = {"predicted": predicted, "error": predicted / float(measured) - 1, "error_interval": spread}
    return result


def analyse(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Both laws and the test of them, as numbers for ``results.json``."""
    found = points(runs)
    return {"compute": describe_compute(found), "size": describe_size(found), "held_back": foresee(found)}
