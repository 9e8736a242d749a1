"""Two runs of one suite, case by case.

python -m lpm_jax.bench compare A B                          a table
python -m lpm_jax.bench compare A B --out compare.html       a page, or compare.json

Differences are B minus A over the cases that both could be measured on: their mean with a 95 % bootstrap interval, and
a two-sided exact sign test, corrected for the number of metrics (Holm).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from html import escape
from typing import Any

from lpm_jax.bench import plots
from lpm_jax.bench.agreement import holm, mean_interval, sign_test
from lpm_jax.bench.markup import check_page, note, page, table, write_page
from lpm_jax.bench.plots import show
from lpm_jax.bench.runs import HEADINGS, Run, number, open_run, same_terms, shared_cases
from lpm_jax.errors import ArgumentParser, InputError

SCHEMA = 1
LARGEST = 3  # cases named for each metric


def differences(a: Run, b: Run, name: str) -> dict[str, float]:
    """B minus A for each case that has the metric in both."""
    found = {}
    a_cases, b_cases = a.cases, b.cases
    for key in shared_cases(a, b):
        x, y = number(a_cases[key]["scores"].get(name)), number(b_cases[key]["scores"].get(name))
        if x is not None and y is not None:
            found[key] = y - x
    return found


def paired(a: Run, b: Run, name: str) -> dict[str, Any]:
    """All that is said about one metric. ``verdict`` is B's: better or worse when the interval does not hold zero. A
    metric of all cases together (a Frechet distance) has no pairs: only its two values are told."""
    found = differences(a, b, name)
    metric, values = a.metrics[name], list(found.values())
    sign = 1 if metric["better"] == "higher" else -1
    mean, low, high = mean_interval(values)
    better, worse = sum(sign * v > 0 for v in values), sum(sign * v < 0 for v in values)
    verdict = "undecided"
    if low is not None and high is not None and (low > 0 or high < 0):
        verdict = "better" if sign * low > 0 else "worse"
    whole = lambda run: number((run.metrics[name].get("result") or {}).get("value"))  # noqa: E731
    score = lambda run, key: number(run.cases[key]["scores"].get(name))  # noqa: E731
    largest = sorted((key for key in found if found[key]), key=lambda key: (-abs(found[key]), key))[:LARGEST]
    return {
        "dimension": metric["dimension"],
        "title": str(metric.get("title") or name),
        "unit": str(metric.get("unit") or ""),
        "better": metric["better"],
        "n": len(values),
        "a": _mean([score(a, key) for key in found]) if found else whole(a),
        "b": _mean([score(b, key) for key in found]) if found else whole(b),
        "difference": {"value": mean, "low": low, "high": high},
        "cases": {"better": better, "worse": worse, "same": len(values) - better - worse},
        "p": sign_test(better, worse) if better + worse else None,
        "verdict": verdict,
        "largest": [{"case": k, "a": score(a, k), "b": score(b, k), "difference": found[k]} for k in largest],
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def compare(a: Run, b: Run) -> dict[str, Any]:
    """What goes into ``compare.json``. ``InputError`` for runs that did not answer the same questions."""
    same_terms(a, b)
    if a.data.get("instruments") != b.data.get("instruments"):
        raise InputError(f"{a.name} and {b.name}: expected runs that the same instruments measured, found others")
    shared = shared_cases(a, b)
    for name in a.metrics:
        if name in b.metrics and a.metrics[name]["better"] != b.metrics[name]["better"]:
            raise InputError(f"{a.name} and {b.name}: {name}: expected one direction that is better, found both")
    found = {name: paired(a, b, name) for name in a.metrics if name in b.metrics}
    tested = [entry for entry in found.values() if entry["p"] is not None]
    for entry, corrected in zip(tested, holm([entry["p"] for entry in tested]), strict=True):
        entry["p_holm"] = corrected
    about = ("model", "date", "commit", "command")
    return {
        "schema": SCHEMA,
        "suite": a.data["suite"],
        "seed": a.data.get("seed"),
        "a": {"name": a.name, **{key: a.data.get(key) for key in about}},
        "b": {"name": b.name, **{key: b.data.get(key) for key in about}},
        "cases": {"shared": len(shared), "only_a": len(a.cases) - len(shared), "only_b": len(b.cases) - len(shared)},
        "only_one": sorted(set(a.metrics) ^ set(b.metrics)),
        "metrics": found,
    }


def _p(x: float | None) -> str:
    return "–" if x is None else "<0.001" if x < 0.001 else f"{x:.3f}"


def text(result: dict[str, Any]) -> str:
    """The comparison for a terminal."""
    lines = [("metric", "A", "B", "B - A", "95 % interval", "better/worse/same", "p (Holm)", "B is")]
    for name, m in result["metrics"].items():
        d, cases = m["difference"], m["cases"]
        interval = "–" if d["low"] is None else f"{show(d['low'])} to {show(d['high'])}"
        counts = f"{cases['better']}/{cases['worse']}/{cases['same']}"
        verdict = m["verdict"] if m["n"] else "not measured by case"
        row = (name, show(m["a"]), show(m["b"]), show(d["value"]), interval, counts, _p(m.get("p_holm")), verdict)
        lines.append(row)
    widths = [max(len(line[i]) for line in lines) for i in range(8)]
    align = lambda i, cell: cell.ljust(widths[i]) if i in (0, 7) else cell.rjust(widths[i])  # noqa: E731
    return "\n".join("  ".join(align(i, cell) for i, cell in enumerate(line)).rstrip() for line in lines)


def html(result: dict[str, Any]) -> str:
    """The comparison as a page."""
    sections = []
    for key, heading in HEADINGS.items():
        entries = [m for m in result["metrics"].values() if m["dimension"] == key]
        if entries:
            sections.append((key, heading, _table(entries) + _largest(entries)))
    a, b = result["a"], result["b"]
    facts = [f"suite {result['suite']}", f"seed {result['seed']}", f"{result['cases']['shared']} cases in common"]
    lead = (
        f"<p>{escape(' · '.join(facts))}</p>"
        f"<p>A: {escape(_run(a))}<br>B: {escape(_run(b))}</p>"
        "<p>Differences are B − A over cases that both have, with 95 % bootstrap intervals over cases. p is the "
        "two-sided exact sign test, corrected for the number of metrics (Holm). In the plots B is better on "
        "the right.</p>"
    )
    ends = "".join(f"<h3>{k}</h3><pre>{escape(str(result[k.lower()].get('command') or '–'))}</pre>" for k in "AB")
    missing = result["only_one"]
    gone = note(f"Metrics that only one has: {escape(', '.join(missing))}.") if missing else ""
    sections.append(("commands", "Commands", gone + ends))
    return page(f"{b['name']} against {a['name']}", lead, sections)


def _run(about: dict[str, Any]) -> str:
    words = [about["name"], f"model {about['model']}", about.get("date"), about.get("commit")]
    return ", ".join(str(word) for word in words if word)


def _table(entries: list[dict[str, Any]]) -> str:
    rows = []
    for m in entries:
        d, cases = m["difference"], m["cases"]
        sign = 1 if m["better"] == "higher" else -1
        plot = "–"
        if d["value"] is not None:
            ends = sorted(sign * x for x in (d["low"], d["high"]) if x is not None) or [None, None]
            reach = max(abs(x) for x in (*ends, d["value"]) if x is not None) * 1.1
            shown = {"undecided": "open"}.get(m["verdict"], m["verdict"])
            plot = plots.change(ends[0], sign * d["value"], ends[1], reach, shown)
        interval = "" if d["low"] is None else f" <small>{show(d['low'])} to {show(d['high'])}</small>"
        unit = f", {m['unit']}" if m["unit"] else ""
        arrow = "↑" if sign > 0 else "↓"
        rows.append(
            (
                f"{escape(m['title'])} <small>{arrow}{escape(unit)}</small>",
                show(m["a"]),
                show(m["b"]),
                show(d["value"]) + interval,
                plot,
                f"{cases['better']} / {cases['worse']} / {cases['same']}",
                escape(_p(m.get("p_holm"))),
                f'<b class="{m["verdict"]}">{m["verdict"]}</b>' if m["n"] else "not measured by case",
            )
        )
    heads = ("metric", "A", "B", "B − A, 95 % interval", "worse to better", "better / worse / same", "p", "B is")
    return table(heads, rows, numbers=(1, 2, 3, 5, 6))


def _largest(entries: list[dict[str, Any]]) -> str:
    rows = [
        (escape(case["case"]), escape(m["title"]), show(case["a"]), show(case["b"]), show(case["difference"]))
        for m in entries
        for case in m["largest"]
    ]
    if not rows:
        return ""
    return table(("case", "metric", "A", "B", "B − A"), rows, "Largest changes", (2, 3, 4))


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(
        "lpm_jax.bench compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="A", help="folder of a run")
    parser.add_argument("b", metavar="B", help="folder of another one")
    parser.add_argument("--out", metavar="FILE", help="also write this .json or .html")
    args = parser.parse_args(argv)
    out = check_page(args.out, endings=(".json", ".html")) if args.out is not None else None
    result = compare(open_run(args.a), open_run(args.b))
    print(text(result))
    if out is not None and out.suffix.lower() == ".html":
        write_page(out, html(result))
    elif out is not None:
        from lpm_jax.checkpoint import write_json  # brings JAX

        write_json(out, result)
    return 0
