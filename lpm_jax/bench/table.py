"""The figures as text."""

from __future__ import annotations

from typing import Any

from lpm_jax.bench.schema import DIMENSIONS, METRICS
from lpm_jax.bench.statistics import effect_text


def table(metrics: dict[str, dict[str, Any]]) -> str:
    """A line for each metric, by dimension: floor, result with its interval, ceiling, effect size, cases."""

    def number(x: float | None) -> str:
        return "-" if x is None else f"{x:.3f}" if abs(x) < 100 else f"{x:.0f}"

    lines = [("", "floor", "result", "95 % interval", "ceiling", "d", "n")]
    for dimension in DIMENSIONS:
        for name in [name for name in METRICS if name in metrics and METRICS[name].dimension == dimension]:
            m = metrics[name]
            floor, ceiling = (m[k]["value"] if m[k] else None for k in ("floor", "ceiling"))
            r = m["result"]
            between = f"{number(r['low'])} to {number(r['high'])}"
            arrow = "+" if m["better"] == "higher" else "-"
            effect = effect_text(m["effect"])
            cells = (number(floor), number(r["value"]), between, number(ceiling), effect, str(r["n"]))
            lines.append((f"{dimension}: {name} ({arrow})", *cells))
    widths = [max(len(line[i]) for line in lines) for i in range(7)]
    out = [
        [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))] for line in lines
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in out)
