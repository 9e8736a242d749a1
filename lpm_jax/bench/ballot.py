"""What a rater is asked, and in which order: drawn from the seed and the rater's name, so a reload or a restart asks on
where it stopped.

A screen is a pair of videos, or one video, and the five dimensions are asked of it in turn. Pairs come first, then
single videos; cases come in another order for every rater, and half of each rater's pairs have the first run on the
left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lpm_jax.bench.runs import Run, same_terms, shared_cases
from lpm_jax.bench.schema import KINDS
from lpm_jax.bench.votes import DIMENSIONS, Vote, standing
from lpm_jax.errors import InputError

ASK = ("pairs", "likert", "both")
HINTS = {
    "motion dynamics": "Head, face and body move naturally and enough: neither frozen nor jittery.",
    "identity consistency": "The same character from the first to the last frame: face, hair, clothes, colours.",
    "text controllability": "It does what the text asks for, all of it and in that order.",
    "audio-video sync": "Mouth and voice belong together.",
    "overall": "Everything taken together.",
}
LISTENING_SYNC = "The mouth does not speak while it listens, and reactions are plausible."
CONVERSATION_SYNC = "Mouth and voice belong together; while it listens the mouth rests and reactions are plausible."


@dataclass(frozen=True)
class Screen:
    """Runs by their place in ``Ballot.runs``; ``right`` is None for a single video."""

    case: str
    left: int
    right: int | None


def hint(dimension: str, kind: str) -> str:
    """What the dimension means, for a case of this kind."""
    if dimension == "audio-video sync" and kind in ("listening", "conversation"):
        return LISTENING_SYNC if kind == "listening" else CONVERSATION_SYNC
    return HINTS[dimension]


@dataclass
class Ballot:
    """Two runs, or one (then only grades are asked). ``limit`` cases are drawn, evenly over kinds, the same for all
    raters."""

    runs: Sequence[Run]
    ask: str = "both"
    seed: int = 0
    limit: int | None = None
    cases: list[str] = field(init=False)
    skipped: list[str] = field(init=False)  # cases with a video missing

    def __post_init__(self) -> None:
        first, last = self.runs[0], self.runs[-1]
        if self.ask != "likert" and len(self.runs) < 2:
            raise InputError("--ask: expected likert for a single run; pairs need a second one")
        if len(self.runs) == 2:
            if first.name == last.name:
                raise InputError(f"expected runs in folders of different names, found {first.name!r} twice")
            same_terms(first, last)
        shared = shared_cases(first, last)
        self.cases = [case for case in shared if all(run.video(run.cases[case]) for run in self.runs)]
        self.skipped = [case for case in shared if case not in self.cases]
        if not self.cases:
            raise InputError(f"{' and '.join(run.name for run in self.runs)}: expected videos to rate, found none")
        self._all = list(self.cases)  # sides are drawn for these, so that --cases does not turn them round
        if self.limit is not None:
            self.cases = self._draw(self.limit)

    def kind(self, case: str) -> str:
        return self.runs[0].cases[case]["kind"]

    def _random(self, *words: str) -> np.random.Generator:
        digest = hashlib.sha256("\0".join((str(self.seed), *words)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest))

    def _draw(self, count: int) -> list[str]:
        mixed = [self.cases[i] for i in self._random("cases").permutation(len(self.cases))]
        piles = [[case for case in mixed if self.kind(case) == kind] for kind in KINDS]
        turns = [case for i in range(len(mixed)) for pile in piles for case in pile[i : i + 1]]
        return turns[:count]

    def screens(self, rater: str) -> list[Screen]:
        """All of them, in this rater's order."""
        name, found = rater.casefold(), []
        if self.ask != "likert":
            flips = self._random("sides", name).permutation(np.arange(len(self._all)) % 2)
            side = dict(zip(self._all, flips.tolist(), strict=True))
            order = self._random("pairs", name).permutation(len(self.cases))
            found += [Screen(self.cases[i], side[self.cases[i]], 1 - side[self.cases[i]]) for i in order]
        if self.ask != "pairs":
            singles = [Screen(case, run, None) for case in self.cases for run in range(len(self.runs))]
            found += [singles[i] for i in self._random("likert", name).permutation(len(singles))]
        return found

    def questions(self, rater: str) -> list[tuple[Screen, str]]:
        """Every screen with every dimension."""
        return [(screen, dimension) for screen in self.screens(rater) for dimension in DIMENSIONS]

    def vote(self, rater: str, time: str, screen: Screen, dimension: str, choice: str) -> Vote:
        """The row that an answer becomes."""
        left = self.runs[screen.left].name
        right = "" if screen.right is None else self.runs[screen.right].name
        return Vote(rater, time, screen.case, self.kind(screen.case), left, right, dimension, choice)

    def concerning(self, votes: Sequence[Vote]) -> list[Vote]:
        """The standing votes on these runs: of the pair, or grades of one of the two. A file may hold others too."""
        names = {run.name for run in self.runs}
        return [v for v in standing(votes) if {v.left, v.right} - {""} <= names]
