"""The report's tables of what people said: preference and grades, by dimension and by kind of case."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lpm_jax.bench import plots
from lpm_jax.bench.markup import note, table
from lpm_jax.bench.plots import show
from lpm_jax.bench.schema import KINDS
from lpm_jax.bench.tally import Grade, Preference, by_rater, dimensions, grades, pairs
from lpm_jax.bench.votes import Vote
from lpm_jax.errors import InputError

LEGEND = (
    '<p class="legend"><span class="good"><i></i><b>good: this run is better</b></span>'
    '<span class="same"><i></i><b>same</b></span><span class="bad"><i></i><b>bad: the other is better</b></span></p>'
)


def vote_section(votes: Sequence[Vote], run: str, raters: int, name: str) -> str:
    """HTML of all tables; ``InputError`` when nobody has voted on ``run``."""
    concerned = [vote for vote in votes if run in (vote.left, vote.right)]
    preferred, graded = pairs(concerned, run, raters), grades(concerned, run)
    if not preferred and not graded:
        others = sorted({n for vote in votes for n in (vote.left, vote.right) if n})
        raise InputError(f"{name}: expected votes on {run!r}, found votes on {', '.join(others) or 'nothing'}")
    count = by_rater(concerned)
    told = ", ".join(f"{escape(rater)} {n}" for rater, n in count.items() if n)
    parts = [note(f"{sum(count.values())} votes stand. By rater: {told}.")]
    for opponent, cells in preferred.items():
        parts += _against(opponent, cells, raters)
    if graded:
        parts += _graded(graded)
    return "".join(parts)


def _percent(x: float | None) -> str:
    return "–" if x is None else f"{100 * x:.1f} %"


def _kinds(cells: dict[tuple[str, str], object]) -> list[str]:
    present = {kind for kind, _ in cells}
    return [kind for kind in KINDS if kind in present]


def _against(opponent: str, cells: dict[tuple[str, str], Preference], raters: int) -> list[str]:
    heads = ("dimension", "good", "same", "bad", "shares", "good − bad, 95 % interval", "cases", "Fleiss’ κ")
    rows = [_preference_row(dimension, cells["all", dimension]) for dimension in dimensions(cells)]
    every = [cells["all", dimension] for dimension in dimensions(cells)]
    split, waiting = sum(p.split for p in every), sum(p.waiting for p in every)
    parts = [
        f"<h3>Against {escape(opponent)}</h3>{LEGEND}",
        table(heads, rows, numbers=(1, 2, 3, 5, 6, 7)),
        note(
            f"A case counts as what more than half of {raters} rater{'s' * (raters != 1)} said. {split} with all votes "
            f"and no majority count as same; {waiting} still lack votes and are left out (of all dimensions together). "
            "κ is of the cases that all rated: 1 is agreement, 0 what chance gives; a dash where it is not defined "
            "(one rater, or all votes the same)."
        ),
    ]
    kinds = _kinds(cells)
    if len(kinds) > 1:
        three = lambda p: "–" if p is None or p.good is None else f"{p.good:.0%} / {p.same:.0%} / {p.bad:.0%}"  # noqa: E731
        rows = [(kind, *(three(cells.get((kind, d))) for d in dimensions(cells))) for kind in kinds]
        caption = f"Good / same / bad against {escape(opponent)}, by kind of case"
        parts.append(table(("kind", *dimensions(cells)), rows, caption, range(1, 9)))
    return parts


def _preference_row(dimension: str, p: Preference) -> tuple[str, ...]:
    net, low, high = p.net
    interval = "" if low is None or high is None else f" <small>{100 * low:+.0f} to {100 * high:+.0f}</small>"
    bar = "" if p.good is None else plots.shares(p.good, p.same, p.bad)
    difference = "–" if net is None else f"{100 * net:+.1f}{interval}"
    shares = tuple(_percent(x) for x in (p.good, p.same, p.bad))
    return (escape(dimension), *shares, bar, difference, str(p.decided), _coefficient(p.kappa))


def _coefficient(x: float | None) -> str:
    return "–" if x is None else f"{x:.2f}".replace("-0.00", "0.00")


def _graded(cells: dict[tuple[str, str], Grade]) -> list[str]:
    asked = dimensions(cells)
    rows = [(kind, *(_mean(cells.get((kind, d))) for d in asked)) for kind in _kinds(cells)]
    rows.append(("<b>all</b>", *(_mean(cells["all", d]) for d in asked)))
    rows.append(("Krippendorff’s α", *(_coefficient(cells["all", d].alpha) for d in asked)))
    rows.append(("votes", *(str(cells["all", d].votes) for d in asked)))
    return [
        "<h3>Grades, 1 to 5</h3>",
        table(("kind", *asked), rows, "Mean over cases and its 95 % bootstrap interval", range(1, 9)),
        note("Of each case first the mean over its raters. α is ordinal, over all cases with two grades or more."),
    ]


def _mean(g: Grade | None) -> str:
    if g is None or g.mean is None:
        return "–"
    return f"{g.mean:.2f}" + ("" if g.low is None else f" <small>{show(g.low)} to {show(g.high)}</small>")
