"""Would anybody tell two models apart, and which is better? An automatic two-alternative test, case by case.

python -m lpm_jax.bench prefer A AGAIN B                     a table
python -m lpm_jax.bench prefer A AGAIN B --out prefer.json

``A`` and ``B`` are runs of two models, such as Base and the student distilled from it; ``AGAIN`` is A's model with
another ``--seed``. In every metric a case's difference is counted in units of what a new seed alone changes (the root
mean square of AGAIN - A over cases), a dimension's is the mean over its metrics, and the overall one the mean over
dimensions. B is preferred, or A, where the difference is beyond the 95th percentile of the seed's own, and else the two
are indistinguishable, as two takes of one model are in 95 of 100 cases. The paper reports the same shares from people's
votes (LPM 1.0, Base and Online at 480P: indistinguishable in 42 to 88 % of cases); ``bench rate`` is for those.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from lpm_jax.bench.agreement import mean_interval, sign_test
from lpm_jax.bench.compare import differences
from lpm_jax.bench.markup import check_page
from lpm_jax.bench.runs import HEADINGS, Run, open_run, shared_cases
from lpm_jax.errors import ArgumentParser, InputError

SCHEMA = 1
NOTICED = 95  # percentile of the seed's own differences beyond which two videos are told apart


def units(a: Run, again: Run) -> dict[str, float]:
    """Root mean square of what a new seed changes, for each metric that it changes at all."""
    found = {}
    for name in a.metrics:
        values = list(differences(a, again, name).values())
        size = float(np.sqrt(np.mean(np.square(values)))) if values else 0.0
        if size > 0:
            found[name] = size
    return found


def steps(a: Run, b: Run, unit: dict[str, float]) -> dict[str, dict[str, float]]:
    """How much better B is than A, in units of the seed: per dimension and "overall", by case."""
    parts: dict[str, dict[str, list[float]]] = {}
    for name, size in unit.items():
        sign = 1 if a.metrics[name]["better"] == "higher" else -1
        for case, value in differences(a, b, name).items():
            parts.setdefault(a.metrics[name]["dimension"], {}).setdefault(case, []).append(sign * value / size)
    found = {dim: {case: float(np.mean(v)) for case, v in parts[dim].items()} for dim in HEADINGS if dim in parts}
    cases = {case for dim in found.values() for case in dim}
    overall = {case: float(np.mean([dim[case] for dim in found.values() if case in dim])) for case in sorted(cases)}
    return {"overall": overall, **found}


def prefer(a: Run, again: Run, b: Run) -> dict[str, Any]:
    """What goes into ``prefer.json``. ``InputError`` for runs that did not answer the same questions."""
    for key in ("schema", "suite", "instruments"):
        values = [run.data.get(key) for run in (a, again, b)]
        if any(value != values[0] for value in values):
            raise InputError(f"{a.name}, {again.name} and {b.name}: expected runs of one {key}, found several")
    if again.data.get("model") != a.data.get("model") or again.data.get("seed") == a.data.get("seed"):
        raise InputError(f"{again.name}: expected the model of {a.name} with another seed, found "
                         f"{again.data.get('model')} with seed {again.data.get('seed')}")  # fmt: skip
    shared_cases(a, again), shared_cases(a, b)
    unit = units(a, again)
    own, other = steps(a, again, unit), steps(a, b, unit)
    shares = {}
    for name in other:
        if not own.get(name):
            continue
        limit = float(np.percentile(np.abs(list(own[name].values())), NOTICED))
        values = list(other[name].values())
        better, worse = (sum(sign * value > limit for value in values) for sign in (1, -1))
        mean, low, high = mean_interval(values)
        shares[name] = {
            "cases": len(values), "a": worse / len(values), "same": 1 - (better + worse) / len(values),
            "b": better / len(values), "limit": limit, "step": {"value": mean, "low": low, "high": high},
            "p": sign_test(better, worse) if better + worse else None,
        }  # fmt: skip
    about = ("model", "date", "commit", "command", "seed")
    named = {
        key: {"name": run.name, **{k: run.data.get(k) for k in about}}
        for key, run in {"a": a, "again": again, "b": b}.items()
    }
    return {"schema": SCHEMA, "suite": a.data["suite"], **named, "units": unit, "shares": shares, "steps": other}


def text(result: dict[str, Any]) -> str:
    """The shares for a terminal."""
    a, b = result["a"]["name"], result["b"]["name"]
    lines = [
        ("dimension", "cases", f"{a} better", "indistinguishable", f"{b} better", "mean step of B", "95 % interval")
    ]
    for name, s in result["shares"].items():
        d = s["step"]
        interval = "–" if d["low"] is None else f"{d['low']:+.2f} to {d['high']:+.2f}"
        shares = (f"{100 * s[key]:.0f} %" for key in ("a", "same", "b"))
        lines.append((HEADINGS.get(name, "Overall"), str(s["cases"]), *shares, f"{d['value']:+.2f}", interval))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    align = lambda i, cell: cell.rjust(widths[i]) if i else cell.ljust(widths[i])  # noqa: E731
    return "\n".join("  ".join(align(i, cell) for i, cell in enumerate(line)).rstrip() for line in lines)


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(
        "lpm_jax.bench prefer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="A", help="folder of a run")
    parser.add_argument("again", metavar="AGAIN", help="folder of a run of the same model with another --seed")
    parser.add_argument("b", metavar="B", help="folder of another model's run")
    parser.add_argument("--out", metavar="FILE", help="also write this .json")
    args = parser.parse_args(argv)
    out = check_page(args.out, endings=(".json",)) if args.out is not None else None
    result = prefer(*(open_run(folder) for folder in (args.a, args.again, args.b)))
    print(text(result))
    if out is not None:
        from lpm_jax.checkpoint import write_json  # brings JAX

        write_json(out, result)
    return 0
