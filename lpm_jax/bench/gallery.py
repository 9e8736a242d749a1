"""The report's pictures: contact sheets, and the worst case of each dimension as a clip."""

from __future__ import annotations

import sys
from collections.abc import Callable
from html import escape
from typing import Any

import numpy as np

from lpm_jax.bench.markup import note
from lpm_jax.bench.plots import show
from lpm_jax.bench.runs import HEADINGS, Run, number
from lpm_jax.bench.schema import KINDS
from lpm_jax.bench.stills import clip, data_uri, jpeg, length, strip
from lpm_jax.errors import InputError, one_line

SHOTS = 8  # pictures in a row
CLIP_SECONDS = 4.0
LATE = ("identity", "stability")  # what goes wrong with time is shown at the end of a video, the rest at its beginning


def told(case: dict[str, Any]) -> str:
    """A case in a line of HTML."""
    words = [f"<b>{escape(case['id'])}</b>", f"{number(case.get('seconds')) or 0:.1f} s"]
    words += [escape(str(case[key])) for key in ("character", "style") if case.get(key)]
    prompt = f"<span>“{escape(str(case['prompt'])[:300])}”</span>" if case.get("prompt") else ""
    return f'<span>{", ".join(words)}</span> <span class="soft">{prompt}</span>'


def _readable(make: Callable[[], str], case: str) -> str:
    """A video that cannot be read costs its picture, not the report; it is said on the page and on the terminal."""
    try:
        return make()
    except InputError as error:
        print(f"note: {case}: {one_line(error)}", file=sys.stderr)
        return note(f"{escape(case)}: the video cannot be read.")


def contact_sheets(run: Run, per_kind: int = 2) -> str:
    """Pictures of the first cases of each kind: the model's row, and the true video's below it."""
    parts = []
    for kind in KINDS:
        for case in [c for c in run.cases.values() if c["kind"] == kind][:per_kind]:
            parts.append(_readable(lambda case=case: _sheet(run, case), case["id"]))
    lead = note(
        f"{SHOTS} pictures of a video, evenly spaced from the first to the last: above the model's, below the true "
        f"one's, where there is one. The first {per_kind} cases of each kind, not chosen."
    )
    return lead + "".join(parts) if any(parts) else ""


def _sheet(run: Run, case: dict[str, Any]) -> str:
    rows = []
    for which, name in (("video", "the model's video"), ("truth", "the true video")):
        if (path := run.video(case, which)) is not None:
            uri = data_uri(strip(path, SHOTS, 126), "image/jpeg")
            rows.append(f'<img src="{uri}" alt="{escape(case["id"])}: {name}">')
    return f'<div class="sheet"><p>{told(case)}</p>{"".join(rows)}</div>' if rows else ""


def worst(run: Run, dimension: str, count: int = 1) -> list[tuple[str, dict[str, float]]]:
    """The cases with the lowest mean rank over the dimension's metrics, worst first, with their scores. Ranks, as
    metrics have different units; ties share theirs."""
    names = [name for name, metric in run.metrics.items() if metric["dimension"] == dimension]
    ranks: dict[str, list[float]] = {}
    for name in names:
        scored = {key: number(case["scores"].get(name)) for key, case in run.cases.items()}
        values = {key: value for key, value in scored.items() if value is not None}
        if len(set(values.values())) < 2:
            continue
        sign = 1 if run.metrics[name]["better"] == "higher" else -1
        array = sign * np.array(list(values.values()))
        below = (array[None] < array[:, None]).sum(1) + ((array[None] == array[:, None]).sum(1) - 1) / 2
        for key, rank in zip(values, below / (len(array) - 1), strict=True):
            ranks.setdefault(key, []).append(float(rank))
    order = sorted(ranks, key=lambda key: (np.mean(ranks[key]), key))[:count]
    scores = lambda key: {n: number(run.cases[key]["scores"].get(n)) for n in names}  # noqa: E731
    return [(key, {n: v for n, v in scores(key).items() if v is not None}) for key in order]


def worst_cases(run: Run, count: int, megabytes: float) -> str:
    """Clips of the worst cases, each once though it may be worst in several dimensions, ``megabytes`` in all."""
    found: dict[tuple[str, bool], list[tuple[str, dict[str, float]]]] = {}
    for dimension in HEADINGS:
        for key, scores in worst(run, dimension, count):
            found.setdefault((key, dimension in LATE), []).append((dimension, scores))
    budget, figures, left_out = megabytes * 1e6, [], []
    for (key, late), reasons in found.items():
        case = run.cases[key]
        video, size = "", 0
        if run.video(case) is not None:
            video = _readable(lambda case=case, late=late: _clip(run, case, late), key)
            size = len(video)
        if size > budget:
            left_out.append(key)
            video = ""
        else:
            budget -= size
        items = "".join(f"<li>{_reason(run, dimension, scores)}</li>" for dimension, scores in reasons)
        figures.append(f"<figure>{video}<p>{told(case)}</p><ul>{items}</ul></figure>")
    if not figures:
        return ""
    lead = (
        f"Lowest mean rank over a dimension's metrics. Clips of up to {CLIP_SECONDS:g} s, coded again and smaller, "
        f"from the beginning; for {' and '.join(HEADINGS[d].lower() for d in LATE)} from the end. Left the model's "
        f"video, right the true one. At most {megabytes:g} MB in all."
    )
    if left_out:
        lead += f" Beyond that, without a clip: {escape(', '.join(left_out))}."
    return f'{note(lead)}<div class="clips">{"".join(figures)}</div>'


def _reason(run: Run, dimension: str, scores: dict[str, float]) -> str:
    figures = ", ".join(f"{escape(_title(run, name))} {show(value)}" for name, value in scores.items())
    return f'{HEADINGS[dimension]}: <span class="soft">{figures}</span>'


def _title(run: Run, name: str) -> str:
    return str(run.metrics[name].get("title") or name)


def _clip(run: Run, case: dict[str, Any], late: bool) -> str:
    path, truth = run.video(case), run.video(case, "truth")
    start = max(0.0, length(path) - CLIP_SECONDS) if late else 0.0
    if truth is not None and length(truth) <= start:
        truth = None
    data, first = clip(path, truth, start, CLIP_SECONDS)
    video, poster = data_uri(data, "video/mp4"), data_uri(jpeg(first), "image/jpeg")
    shape = f'width="{first.shape[1]}" height="{first.shape[0]}"'
    name = f'aria-label="{escape(case["id"])}"'
    return (
        f'<video controls loop playsinline preload="metadata" {shape} {name} poster="{poster}" src="{video}"></video>'
    )
