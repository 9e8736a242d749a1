"""Do raters agree beyond chance? And what a few numbers say of the many: intervals and tests.

* Fleiss' kappa (J. L. Fleiss, "Measuring nominal scale agreement among many raters", Psychological Bulletin 76, 1971)
  for good / same / bad, where every item has the same number of votes.
* Krippendorff's alpha, ordinal (K. Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011) for Likert grades,
  where votes may be missing.
* The percentile bootstrap of a mean (B. Efron, "Bootstrap methods: another look at the jackknife", Annals of
  Statistics 7, 1979), and the exact sign test.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int

ROUNDS = 4000  # resamples of a bootstrap


def fleiss_kappa(counts: Int[np.ndarray, "items categories"]) -> float | None:
    """Fleiss' kappa from how many raters put each item into each category.

    ``(P - Pe) / (1 - Pe)``: P is the share of pairs of raters that agree, Pe what the categories' frequencies alone
    give. None without items, with one rater, or when all votes are the same (chance agrees perfectly as well).
    """
    counts = np.asarray(counts, np.int64)
    if len(counts) == 0 or len(set(counts.sum(1).tolist())) != 1 or counts[0].sum() < 2:
        return None
    raters = int(counts[0].sum())
    agreeing = ((counts**2).sum(1) - raters) / (raters * (raters - 1))
    chance = float(((counts.sum(0) / counts.sum()) ** 2).sum())
    return None if chance > 1 - 1e-12 else float((agreeing.mean() - chance) / (1 - chance))


def krippendorff_alpha(items: Sequence[Sequence[int]]) -> float | None:
    """Ordinal alpha: ``1 - Do / De``, disagreement observed over disagreement expected. Items with fewer than two
    grades have nothing to pair and are left out. None when no pairs remain or all grades are the same.
    """
    pairable = [list(item) for item in items if len(item) > 1]
    grades = sorted({grade for item in pairable for grade in item})
    if len(grades) < 2:
        return None
    index = {grade: i for i, grade in enumerate(grades)}
    pairs = np.zeros((len(grades), len(grades)))  # the coincidence matrix
    for item in pairable:
        for i, first in enumerate(item):
            for j, second in enumerate(item):
                if i != j:
                    pairs[index[first], index[second]] += 1 / (len(item) - 1)
    totals = pairs.sum(0)
    expected = np.outer(totals, totals) - np.diag(totals)
    distance = _ordinal(totals)
    return float(1 - (totals.sum() - 1) * (pairs * distance).sum() / (expected * distance).sum())


def _ordinal(totals: Float[np.ndarray, " grades"]) -> Float[np.ndarray, "grades grades"]:
    """How far apart two grades are: the number of votes from one to the other, each end counted by half, squared."""
    upto = np.cumsum(totals)
    low, high = np.minimum.outer(upto, upto), np.maximum.outer(upto, upto)
    own = np.add.outer(totals, totals) / 2
    first = np.where(np.greater_equal.outer(upto, upto), totals[None, :], totals[:, None])  # of the lower grade
    return np.where(np.eye(len(totals), dtype=bool), 0.0, (high - low + first - own) ** 2)


def majority(votes: Sequence[Hashable], raters: int) -> Hashable | None:
    """What more than half of ``raters`` chose; None when nothing has, or not yet."""
    choice, count = Counter(votes).most_common(1)[0] if votes else (None, 0)
    return choice if 2 * count > raters else None


def mean_interval(
    values: Sequence[float] | Float[np.ndarray, " n"], seed: int = 0
) -> tuple[float | None, float | None, float | None]:
    """Mean and its 95 % percentile-bootstrap interval; no interval for fewer than two values."""
    values = np.asarray(values, np.float64)
    if len(values) == 0:
        return None, None, None
    if len(values) == 1:
        return float(values[0]), None, None
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=(ROUNDS // 8, len(values)))].mean(1) for _ in range(8)]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def sign_test(ups: int, downs: int) -> float:
    """Two-sided exact p of a sign test: how often a fair coin would be at least this uneven. Ties are left out."""
    n = ups + downs
    tail = sum(math.comb(n, k) for k in range(min(ups, downs) + 1))
    return min(1.0, 2 * tail / 2**n)


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for asking several questions at once (S. Holm, Scandinavian Journal of Statistics 6, 1979)."""
    corrected, highest = [1.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = highest
    return corrected
