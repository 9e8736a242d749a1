"""A run as one HTML page: figures with floor and ceiling, plots, contact sheets, worst cases, votes.

python -m lpm_jax.bench report RUN --out report.html
python -m lpm_jax.bench report RUN --votes votes.csv     with what people said

The page holds everything it shows and loads nothing: it can be sent, kept and printed.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

from lpm_jax.bench import plots
from lpm_jax.bench.gallery import contact_sheets, worst_cases
from lpm_jax.bench.markup import check_page, note, page, table, write_page
from lpm_jax.bench.plots import show
from lpm_jax.bench.runs import HEADINGS, Run, number, open_run
from lpm_jax.bench.schema import KINDS
from lpm_jax.bench.statistics import effect_text
from lpm_jax.bench.vote_tables import vote_section
from lpm_jax.bench.votes import read_votes
from lpm_jax.errors import ArgumentParser, InputError

OWN = ("schema", "suite", "model", "seed", "command", "metrics", "cases")  # the rest of results.json is environment
LEGEND = (
    '<p class="legend"><span class="floor"><i></i><b>floor</b></span><span class="result"><i></i><b>result</b></span>'
    '<span class="ceiling"><i></i><b>ceiling: the true video</b></span></p>'
)


def stat(value: Any) -> dict[str, float | None] | None:
    """One of the file's intervals with what could not be measured as None."""
    if not isinstance(value, dict) or number(value.get("value")) is None:
        return None
    return {key: number(value.get(key)) for key in ("value", "low", "high", "n")}


def way(result: float, floor: float, ceiling: float) -> float | None:
    """How far the result is on the way from floor to ceiling: 0 at the floor, 1 at the ceiling."""
    return None if ceiling == floor else (result - floor) / (ceiling - floor)


def _interval(s: dict[str, float | None] | None) -> str:
    if s is None:
        return "–"
    low, high = s["low"], s["high"]
    return show(s["value"]) + ("" if low is None or high is None else f" <small>{show(low)} to {show(high)}</small>")


def dimension_table(run: Run, names: list[str]) -> str:
    rows = []
    for name in names:
        metric = run.metrics[name]
        result, floor, ceiling = (stat(metric.get(key)) for key in ("result", "floor", "ceiling"))
        share = way(result["value"], floor["value"], ceiling["value"]) if result and floor and ceiling else None
        unit = f", {metric['unit']}" if metric.get("unit") else ""
        arrow = "↑" if metric["better"] == "higher" else "↓"
        rows.append(
            (
                f"{escape(str(metric.get('title') or name))} <small>{arrow}{escape(unit)}</small>",
                show(floor["value"]) if floor else "–",
                _interval(result),
                show(ceiling["value"]) if ceiling else "–",
                "–" if share is None else f"{share:.0%}",
                plots.between(result, floor, ceiling, metric["better"]) or "–",
                effect_text(number(metric.get("effect"))),
                f"{result['n']:.0f}" if result and result["n"] is not None else "–",
            )
        )
    heads = ("metric", "floor", "result, 95 % interval", "ceiling", "of the way", "floor to ceiling", "d", "n")
    return table(heads, rows, numbers=(1, 2, 3, 4, 6, 7))


def dimension_plots(run: Run, names: list[str]) -> str:
    cases = list(run.cases.values())
    seconds = [number(case.get("seconds")) or 0.0 for case in cases]
    figures = []
    for name in names:
        title = str(run.metrics[name].get("title") or name)
        scores = {
            "floor": [number((case.get("floor") or {}).get(name)) for case in cases],
            "result": [number(case["scores"].get(name)) for case in cases],
            "ceiling": [number((case.get("ceiling") or {}).get(name)) for case in cases],
        }
        known = [(kind, label, [v for v in scores[kind] if v is not None]) for kind, label in
                 (("floor", "floor"), ("result", "result"), ("ceiling", "true video"))]  # fmt: skip
        dots = plots.distributions(known, title)
        over = plots.over_length(seconds, [("floor", scores["floor"]), ("result", scores["result"])], title)
        if dots:
            figures.append(f"<figure><figcaption>{escape(title)}</figcaption>{dots}{over}</figure>")
    return f'<h3>Case by case</h3>{LEGEND}<div class="plots">{"".join(figures)}</div>' if figures else ""


def dimensions(run: Run) -> list[tuple[str, str, str]]:
    """A section per dimension that has metrics."""
    found = []
    for key, heading in HEADINGS.items():
        names = [name for name, metric in run.metrics.items() if metric["dimension"] == key]
        if names:
            found.append((key, heading, dimension_table(run, names) + dimension_plots(run, names)))
    return found


def environment(run: Run) -> str:
    """Command, seed and what it ran on."""
    rows = {"suite": run.data["suite"], "model": run.data["model"], "seed": run.data.get("seed")}
    rows |= {key: value for key, value in run.data.items() if key not in OWN}
    plain = lambda v: ", ".join(f"{k} {x}" for k, x in v.items()) if isinstance(v, dict) else v  # noqa: E731
    text = lambda v: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)  # noqa: E731
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(text(plain(value)))}</dd>" for key, value in rows.items())
    command = f"<pre>{escape(str(run.data['command']))}</pre>" if run.data.get("command") else ""
    return f"<dl>{items}</dl>{command}"


def lead(run: Run) -> str:
    kinds = Counter(case["kind"] for case in run.cases.values())
    told = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])
    minutes = sum(number(case.get("seconds")) or 0.0 for case in run.cases.values()) / 60
    facts = [f"suite {run.data['suite']}", f"seed {run.data.get('seed')}"]
    facts += [str(run.data[key]) for key in ("date", "commit") if run.data.get(key)]
    return (
        f"<p>{escape(' · '.join(facts))}</p><p>{len(run.cases)} cases, {minutes:.1f} minutes: {escape(told)}.</p>"
        "<p>Intervals are 95 % bootstrap intervals over cases. The ceiling is the true video through the same "
        "instruments, the floor what a model that misses the point would get; ‘of the way’ is how far the result has "
        "come from one to the other, d the effect size between the two.</p>"
    )


def build(
    run: Run, votes: str | Path | None = None, raters: int = 3, worst: int = 1, megabytes: float = 8.0, sheets: int = 2
) -> str:
    """The page's HTML."""
    people = vote_section(read_votes(votes), run.name, raters, str(votes)) if votes is not None else ""
    sections = [
        *dimensions(run),
        ("votes", "Votes", people),
        ("sheets", "Contact sheets", contact_sheets(run, sheets) if sheets else ""),
        ("worst", "Worst cases", worst_cases(run, worst, megabytes) if worst else ""),
        ("environment", "Environment", environment(run)),
    ]
    sections[0] = (sections[0][0], sections[0][1], _arrows() + sections[0][2])
    return page(f"LPM-Bench: {run.data['model']}", lead(run), sections)


def _arrows() -> str:
    return note("↑ higher is better, ↓ lower is better. In the small plots the better end is always on the right.")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        "lpm_jax.bench report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run")
    add("--out", metavar="HTML", help="default: report.html in the run's folder")
    add("--votes", metavar="CSV", help="what `rate` wrote")
    add("--raters", type=int, default=3, metavar="N", help="how many people rate: a majority is more than half (3)")
    add("--worst", type=int, default=1, metavar="N", help="worst cases a dimension (1; 0: none)")
    add("--sheets", type=int, default=2, metavar="N", help="contact sheets a kind of case (2; 0: none)")
    add("--clip-megabytes", type=float, default=8.0, metavar="MB", help="all clips together (8)")
    args = parser.parse_args(argv)
    for name, least, most in (("raters", 1, 99), ("worst", 0, 20), ("sheets", 0, 50), ("clip_megabytes", 0, 500)):
        if not least <= getattr(args, name) <= most:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option}: expected {least} to {most}, found {getattr(args, name)}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    run = open_run(args.run)
    out = check_page(args.out if args.out is not None else str(run.folder / "report.html"))
    write_page(out, build(run, args.votes, args.raters, args.worst, args.clip_megabytes, args.sheets))
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0
