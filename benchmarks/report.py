"""How the benchmarks speak: a table of figures."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure. ``target`` is a comparison such as ``">= 0.78"``; without one there is nothing to pass."""

    name: str
    result: float
    floor: float | None = None  # what chance, or the wrong sound, gives
    ceiling: float | None = None  # what the true video gives
    target: str = ""

    @property
    def passed(self) -> bool | None:
        """None without a target. A figure that could not be measured (NaN) fails."""
        if not self.target:
            return None
        sign, number = self.target.split()
        if math.isnan(self.result):
            return False
        return self.result >= float(number) if sign == ">=" else self.result <= float(number)

    def to_json(self) -> dict[str, Any]:
        """Every field and the verdict, rounded."""
        clean = lambda x: None if x is None or not math.isfinite(x) else round(float(x), 4)  # noqa: E731
        numbers = {k: clean(getattr(self, k)) for k in ("floor", "result", "ceiling")}
        return {"figure": self.name, **numbers, "target": self.target or None, "passed": self.passed}


def table(rows: Sequence[Row]) -> str:
    """The rows as text, columns aligned."""

    def number(x: float | None) -> str:
        if x is None:
            return "-"
        return "?" if math.isnan(x) else f"{x:d}" if isinstance(x, int) else f"{x:.1f}" if abs(x) >= 20 else f"{x:.3f}"

    verdict = {None: "", True: "pass", False: "FAIL"}
    lines = [("figure", "floor", "result", "ceiling", "target", "")]
    lines += [(r.name, number(r.floor), number(r.result), number(r.ceiling), r.target, verdict[r.passed]) for r in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    text = []
    for line in lines:
        cells = [
            c.ljust(w) if i in (0, 4, 5) else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def resident_megabytes() -> float:
    """Memory of this process now; NaN where the system does not tell (outside Linux)."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        return float("nan")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
