"""From votes to the paper's tables: shares of good, same and bad after a majority vote, and mean Likert grades."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lpm_jax.bench.agreement import fleiss_kappa, krippendorff_alpha, majority, mean_interval
from lpm_jax.bench.votes import DIMENSIONS, Vote, standing

CHOICES = ("good", "same", "bad")


@dataclass(frozen=True)
class Preference:
    """How often one run was preferred to another in one dimension. Shares are of the ``decided`` cases."""

    good: float | None
    same: float | None
    bad: float | None
    decided: int  # cases
    split: int  # of those, all raters voted and no choice had a majority: counted as same
    waiting: int  # cases without a majority that still lack votes: not counted
    net: tuple[float | None, float | None, float | None]  # good minus bad and its interval
    kappa: float | None  # Fleiss'
    rated_by_all: int  # cases that kappa is of


@dataclass(frozen=True)
class Grade:
    """Likert grades of one run in one dimension. The mean is over cases, of each the mean over its raters."""

    mean: float | None
    low: float | None
    high: float | None
    cases: int
    votes: int
    alpha: float | None  # Krippendorff's, ordinal


def verdict(choices: Sequence[str], raters: int) -> tuple[str | None, bool]:
    """A case's good, same or bad by majority, and whether it was split. None: still open."""
    winner = majority(choices, raters)
    if winner is not None:
        return str(winner), False
    return ("same", True) if len(choices) >= raters else (None, False)


def preference(items: Iterable[Sequence[str]], raters: int) -> Preference:
    """``items`` are the cases: of each, what its raters chose of good, same and bad."""
    items = [list(item) for item in items]
    verdicts = [verdict(item, raters) for item in items]
    decided = [choice for choice, _ in verdicts if choice is not None]
    share = {c: decided.count(c) / len(decided) if decided else None for c in CHOICES}
    full = [[item.count(c) for c in CHOICES] for item in items if len(item) == raters]
    return Preference(
        **share,
        decided=len(decided),
        split=sum(split for _, split in verdicts),
        waiting=len(items) - len(decided),
        net=mean_interval([{"good": 1.0, "same": 0.0, "bad": -1.0}[c] for c in decided]),
        kappa=fleiss_kappa(np.array(full, np.int64).reshape(-1, 3)),
        rated_by_all=len(full),
    )


def grade(items: Iterable[Sequence[int]]) -> Grade:
    """``items`` are the cases: of each, its raters' grades."""
    items = [list(item) for item in items if item]
    mean, low, high = mean_interval([float(np.mean(item)) for item in items])
    return Grade(mean, low, high, len(items), sum(map(len, items)), krippendorff_alpha(items))


def pairs(votes: Iterable[Vote], run: str, raters: int) -> dict[str, dict[tuple[str, str], Preference]]:
    """Per opponent of ``run``, per (kind, dimension); kind "all" is all of them. Good: ``run`` was preferred."""
    cells: dict[str, dict[tuple[str, str], dict[str, list[str]]]] = {}
    for vote in standing(votes):
        if not vote.right or run not in (vote.left, vote.right):
            continue
        opponent = vote.right if vote.left == run else vote.left
        chosen = {"left": vote.left, "right": vote.right}.get(vote.choice)
        choice = "same" if chosen is None else "good" if chosen == run else "bad"
        found = cells.setdefault(opponent, {})
        for kind in ("all", vote.kind):
            found.setdefault((kind, vote.dimension), defaultdict(list))[vote.case].append(choice)
    return {
        opponent: {key: preference(items.values(), raters) for key, items in found.items()}
        for opponent, found in cells.items()
    }


def grades(votes: Iterable[Vote], run: str) -> dict[tuple[str, str], Grade]:
    """Likert grades of ``run`` per (kind, dimension); kind "all" is all of them."""
    cells: dict[tuple[str, str], dict[str, list[int]]] = {}
    for vote in standing(votes):
        if vote.right or vote.left != run:
            continue
        for kind in ("all", vote.kind):
            cells.setdefault((kind, vote.dimension), defaultdict(list))[vote.case].append(int(vote.choice))
    return {key: grade(items.values()) for key, items in cells.items()}


def by_rater(votes: Iterable[Vote]) -> dict[str, int]:
    """How many votes of each rater stand."""
    found = standing(votes)
    return {rater: sum(vote.rater == rater for vote in found) for rater in sorted({vote.rater for vote in found})}


def dimensions(cells: Iterable[tuple[str, str]]) -> list[str]:
    """Those asked for, in the paper's order."""
    asked = {dimension for _, dimension in cells}
    return [d for d in DIMENSIONS if d in asked]
