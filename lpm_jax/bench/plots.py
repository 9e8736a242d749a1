"""Small plots as SVG text for the reports. Colours come from the page's style sheet, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

Stat = dict | None  # {"value", "low", "high", "n"}, of results.json
GOLDEN = 0.6180339887498949


def show(x: float | None) -> str:
    """A figure in few digits; a dash for none."""
    if x is None:
        return "–"
    size = abs(x)
    text = f"{x:,.0f}" if size >= 100 else f"{x:.1f}" if size >= 10 else f"{x:.2f}" if size >= 1 else f"{x:.3f}"
    return "0.000" if text == "-0.000" else text


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers within the range."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _number(x: float) -> str:
    return f"{x:.1f}".removesuffix(".0")


def _svg(width: int, height: int, label: str, parts: Sequence[str], kind: str = "") -> str:
    return (
        f'<svg class="plot {kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _scale(values: Sequence[float], start: float, end: float) -> tuple[Callable[[float], float], float, float]:
    """From data to pixels, with a little air; and the range of the data shown."""
    low, high = min(values), max(values)
    air = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    low, high = low - air, high + air
    return lambda x: start + (x - low) / (high - low) * (end - start), low, high


def _dots(points: Sequence[tuple[float, float]], kind: str) -> str:
    """All of them as one path of round caps: a few bytes a dot."""
    path = "".join(f"M{_number(x)} {_number(y)}h0" for x, y in points)
    return f'<path class="dots {kind}" d="{path}"/>'


def between(result: Stat, floor: Stat, ceiling: Stat, better: str) -> str:
    """Where the result lies between floor (left) and ceiling (right); bars are 95 % intervals."""
    marks = [(kind, s) for kind, s in (("floor", floor), ("ceiling", ceiling), ("result", result)) if _has(s)]
    if not _has(result):
        return ""
    values = [v for _, s in marks for v in (s["value"], s.get("low"), s.get("high")) if v is not None]
    start, end = (6, 214) if better == "higher" else (214, 6)
    x = _scale(values, start, end)[0]
    parts = ['<line class="axis" x1="4" x2="216" y1="14" y2="14"/>']
    for kind, s in marks:
        at = _number(x(s["value"]))
        if s.get("low") is not None and s.get("high") is not None:
            a, b = sorted((x(s["low"]), x(s["high"])))
            parts.append(f'<path class="bar {kind}" d="M{_number(a)} 14H{_number(b)}"/>')
        if kind == "result":
            parts.append(f'<circle class="mark result" cx="{at}" cy="14" r="4"/>')
        else:
            parts.append(f'<path class="mark {kind}" d="M{at} 5V23"/>')
    told = ", ".join(f"{kind} {show(s['value'])}" for kind, s in marks)
    return _svg(220, 28, told, parts, "between")


def _has(s: Stat) -> bool:
    return s is not None and s.get("value") is not None


def distributions(groups: Sequence[tuple[str, str, Sequence[float]]], title: str) -> str:
    """Every case as a dot, a row for each of ``groups`` (class, label, values), the median as a bar."""
    groups = [group for group in groups if len(group[2])]
    everything = [v for _, _, values in groups for v in values]
    if not everything:
        return ""
    x, low, high = _scale(everything, 74, 352)
    bottom = 8 + 26 * len(groups)
    parts = _axis_x(ticks(low, high), x, bottom)
    for row, (kind, label, values) in enumerate(groups):
        middle = 20 + 26 * row
        spread = [(x(v), middle + 14 * ((i * GOLDEN) % 1 - 0.5)) for i, v in enumerate(values)]
        at = _number(x(float(np.median(values))))
        parts += [
            f'<text x="66" y="{middle + 4}" text-anchor="end">{escape(label)}</text>',
            _dots(spread, kind),
            f'<path class="median {kind}" d="M{at} {middle - 10}V{middle + 10}"/>',
        ]
    return _svg(360, bottom + 20, f"{title}: every case; medians as bars", parts)


def _axis_x(
    at: Sequence[float], x: Callable[[float], float], bottom: float, label: Callable[[float], str] = lambda v: f"{v:g}"
) -> list[str]:
    return [
        f'<line class="grid" x1="{_number(x(v))}" x2="{_number(x(v))}" y1="6" y2="{bottom}"/>'
        f'<text x="{_number(x(v))}" y="{bottom + 14}" text-anchor="middle">{escape(label(v))}</text>'
        for v in at
    ]


def over_length(seconds: Sequence[float], groups: Sequence[tuple[str, Sequence[float | None]]], title: str) -> str:
    """Scores over the clips' length (logarithmic); the line is the median of the last of ``groups`` in each of up to
    six bins of equally many clips. Empty where lengths differ by less than a fifth."""
    known = [s for s in seconds if s > 0]
    points = [[(s, v) for s, v in zip(seconds, vs, strict=True) if v is not None and s > 0] for _, vs in groups]
    everything = [v for group in points for _, v in group]
    if not everything or max(known) < 1.2 * min(known):
        return ""
    x = _scale([math.log(s) for s in known], 44, 352)[0]
    y, low, high = _scale(everything, 112, 8)
    lengths = [s for s in (1, 2, 5, 10, 20, 60, 180, 600, 1800, 3600) if min(known) * 0.9 <= s <= max(known) * 1.1]
    parts = [
        f'<line class="grid" x1="44" x2="352" y1="{_number(y(v))}" y2="{_number(y(v))}"/>'
        f'<text x="38" y="{_number(y(v) + 4)}" text-anchor="end">{v:g}</text>'
        for v in ticks(low, high)
    ]
    duration = lambda s: f"{s:g} s" if s < 60 else f"{s / 60:g} min"  # noqa: E731
    parts += _axis_x(lengths or [min(known), max(known)], lambda s: x(math.log(s)), 112, duration)
    for (kind, _), group in zip(groups, points, strict=True):
        parts.append(_dots([(x(math.log(s)), y(v)) for s, v in group], kind))
    bins = np.array_split(np.array(sorted(points[-1])), min(6, max(1, len(points[-1]) // 4))) if points[-1] else []
    line = [(x(math.log(np.median(part[:, 0]))), y(np.median(part[:, 1]))) for part in bins]
    if len(line) > 1:
        path = " ".join(f"{_number(a)},{_number(b)}" for a, b in line)
        parts.append(f'<polyline class="trend {groups[-1][0]}" points="{path}"/>')
    parts.append('<text x="352" y="144" text-anchor="end">length of the clip</text>')
    return _svg(360, 148, f"{title}, over the clip's length", parts)


def shares(good: float, same: float, bad: float) -> str:
    """Good, same and bad as one bar."""
    parts, at = [], 0.0
    for kind, share in (("good", good), ("same", same), ("bad", bad)):
        width = 220 * share
        parts.append(f'<rect class="{kind}" x="{_number(at)}" y="4" width="{_number(width)}" height="20"/>')
        if width > 26:
            parts.append(
                f'<text class="on {kind}" x="{_number(at + width / 2)}" y="18" text-anchor="middle">{share:.0%}</text>'
            )
        at += width
    return _svg(220, 28, f"good {good:.0%}, same {same:.0%}, bad {bad:.0%}", parts, "between")


def change(low: float | None, value: float, high: float | None, reach: float, verdict: str) -> str:
    """A difference and its interval, around zero in the middle; ``reach`` is at the edges."""
    x = lambda v: 110 + 104 * max(-1.0, min(1.0, v / reach)) if reach else 110.0  # noqa: E731
    parts = [
        '<line class="axis" x1="4" x2="216" y1="14" y2="14"/><line class="grid" x1="110" x2="110" y1="2" y2="26"/>'
    ]
    if low is not None and high is not None:
        parts.append(f'<path class="bar {verdict}" d="M{_number(x(low))} 14H{_number(x(high))}"/>')
    parts.append(f'<circle class="mark {verdict}" cx="{_number(x(value))}" cy="14" r="4"/>')
    return _svg(220, 28, f"difference {show(value)}, from {show(low)} to {show(high)}", parts, "between")
