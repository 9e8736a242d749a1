"""From videos to results: every case's scores, its floor and ceiling, and the table over cases.

Floors come from the true videos: the videos of the next cases of its kind (another's sound, another's looks; the mean
over three, since two short performances may move alike by chance), of a case that speaks, a first frame that stays,
frames or chunks in a random order, a change into somebody else, thumbnails.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lpm_jax.bench.cases import Case, Recorded
from lpm_jax.bench.metrics import Context, Scores, scores
from lpm_jax.bench.metrics.identity import picture_colours
from lpm_jax.bench.observe import STRIDE, WINDOW, Observation, Observer
from lpm_jax.bench.schema import METRICS
from lpm_jax.bench.statistics import Moments, bootstrap, effect, frechet_stat

#: Which planted defect is each metric's floor.
FLOORS = {
    **dict.fromkeys(("lip_r", "lip_lag", "bilabial_f1", "sync_c", "sync_d", "sync_offset"), "another"),
    **dict.fromkeys(("nod_f1", "nod_error", "listen_r", "smile_f1", "brow_f1"), "another"),
    **dict.fromkeys(("identity_colour", "identity_similarity", "identity_auc", "prompt_recall"), "another"),
    **dict.fromkeys(("mouth_still", "stop_delay"), "speaker"),
    **dict.fromkeys(("lip_amplitude", "motion_amount", "motion_diversity", "frozen", "frechet_motion"), "frozen"),
    **dict.fromkeys(("identity_slope", "drift"), "blended"),
    **dict.fromkeys(("sharpness", "frechet_picture"), "pixelated"),
    "flicker": "shuffled",
    "seam": "chunks",
}

PARTNERS = 3

#: Opens a video of a case: blocks of frames.
Open = Callable[[Case], Iterable[UInt8[np.ndarray, "n 128 128 3"]]]


@dataclasses.dataclass
class Scored:
    """What is known of one case; its sound and pictures are let go."""

    about: dict[str, Any]
    scores: Scores
    floor: Scores
    ceiling: Scores
    moments: dict[str, dict[str, Moments]]  # by video (result, ceiling, floors, halves) and metric

    def row(self) -> dict[str, Any]:
        """The case's entry in the results."""
        parts = {name: getattr(self, name) for name in ("scores", "floor", "ceiling")}
        short = lambda found: {k: None if x is None else round(x, 5) for k, x in found.items()}  # noqa: E731
        return self.about | {name: short(found) for name, found in parts.items()}


def about(case: Case) -> dict[str, Any]:
    """What results say of a case."""
    return {
        "id": case.id,
        "kind": case.kind,
        "seconds": round(case.seconds, 4),
        "character": case.character,
        "style": case.style,
        "prompt": case.text,
        "video": f"videos/{case.id}.mp4",
        "truth": f"truth/{case.id}.mp4" if case.truth else None,
    }


def score_cases(
    cases: Sequence[Case], made: Open, truth: Open, instruments: Observer, chunk: int = 12
) -> Iterator[Scored]:
    """Scores of every case that has a video, in order. ``truth`` is only opened for cases that have one."""
    kinds, known = [], []

    def firsts() -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        for case in cases:
            kinds.append(case.kind)
            known.append(case.truth is not None)
            yield case.first

    pictures, looks = instruments.introduce(firsts())
    colours = np.stack([picture_colours(picture.astype(np.float64)) for picture in pictures])
    somebody = np.ones(len(cases), bool) if looks is None else np.isfinite(looks).all(1)
    partners = partners_of(kinds, known)
    speaker = next((i for i in range(len(cases)) if kinds[i] == "speaking" and known[i]), None)
    kept: dict[int, Observation] = {}

    def true_video(i: int, keep: Sequence[int]) -> Observation:
        if i not in kept:
            kept[i] = instruments.observe(truth(cases[i]))
        for j in [j for j in kept if j not in keep]:
            del kept[j]
        return kept[i]

    for i, case in enumerate(cases):
        others = np.arange(len(cases)) != i
        context = Context(
            truth=None,
            colours=colours[i],
            others=colours[others],
            look=looks[i] if looks is not None and somebody[i] else None,
            other_looks=None if looks is None else looks[others & somebody],
            heard=instruments.sync.hear(case.speak) if instruments.sync else None,
            chunk=chunk,
        )
        seen = instruments.observe(made(case))
        if seen.faces is not None and seen.faces < 0.5:
            print(f"note: {case.id}: a face in only {100 * seen.faces:.0f} % of the frames", file=sys.stderr)
        if case.truth is None:
            yield Scored(about(case), scores(case, seen, context), {}, {}, {})
            continue
        around = [j for j, kind in enumerate(kinds) if kind == case.kind][:PARTNERS]  # the last cases' partners
        keep = [i, *partners[i], *around, *([] if speaker is None else [speaker])]
        true = true_video(i, keep)
        if isinstance(case.truth, Recorded):
            case = dataclasses.replace(case, truth=case.truth.as_read(true.read))
        context = dataclasses.replace(context, truth=true)
        strangers = [true_video(j, keep) for j in partners[i]]
        another = strangers[0] if strangers else None
        talking = true_video(speaker, keep) if speaker is not None and speaker != i else another
        floors = defects(true, another, talking, chunk, instruments)
        found = {name: scores(case, video, context) for name, video in floors.items()}
        if len(strangers) > 1:
            more = [scores(case, video.fitted(len(true)), context) for video in strangers[1:]]
            found["another"] = _mean([found["another"], *more])
        floor = {name: found[FLOORS[name]].get(name) for name in FLOORS if FLOORS[name] in found}
        videos = {"result": seen, "ceiling": true} | {k: floors[k] for k in ("pixelated", "frozen")}
        moments = {name: moments_of(video) for name, video in videos.items()}
        moments |= {"even": moments_of(true, 0), "odd": moments_of(true, 1)}
        yield Scored(about(case), scores(case, seen, context), floor, scores(case, true, context), moments)


def _mean(found: Sequence[Scores]) -> Scores:
    """Each metric's mean over the videos that have it."""
    by = {name: [f[name] for f in found if f[name] is not None] for name in found[0]}
    return {name: float(np.mean(values)) if values else None for name, values in by.items()}


def partners_of(kinds: Sequence[str], known: Sequence[bool]) -> list[list[int]]:
    """For each case the next :data:`PARTNERS` of its kind that have a truth, around the end; of any kind where there is
    no other of its own; none where there is none at all."""
    out = []
    for i, kind in enumerate(kinds):
        able = [j for j in range(len(kinds)) if known[j] or j == i]
        same = [j for j in able if kinds[j] == kind]
        group = same if len(same) > 1 else able
        at = group.index(i)
        out.append([group[(at + k) % len(group)] for k in range(1, min(PARTNERS, len(group) - 1) + 1)])
    return out


def defects(
    true: Observation, another: Observation | None, speaker: Observation | None, chunk: int, instruments: Observer
) -> dict[str, Observation]:
    """The true video with each of the planted defects."""
    n = len(true)
    rng = np.random.default_rng(n)
    whole = np.arange(n)
    blocks = [whole[at : at + chunk] for at in range(0, n, chunk)]
    full = [block for block in blocks if len(block) == chunk]
    order = rng.permutation(len(full))
    if len(full) > 1 and (order == np.arange(len(full))).all():
        order = order[::-1]
    chunks = np.concatenate([*[full[k] for k in order], *blocks[len(full) :]]) if full else whole
    out = {
        "frozen": true.take(np.zeros(n, int)),
        "shuffled": true.take(np.concatenate([rng.permutation(block) for block in blocks])),
        "chunks": true.take(chunks),
        "pixelated": instruments.pixelated(true),
    }
    if another is not None:
        out |= {"another": another.fitted(n), "blended": true.blended(another)}
    if speaker is not None:
        out["speaker"] = speaker.fitted(n)
    return out


def moments_of(seen: Observation, half: int | None = None) -> dict[str, Moments]:
    """Of single pictures: the reader's features. Of half seconds: their mean, and how much they change. ``half`` (0 or
    1) takes every other half second. Nothing where there are no features."""
    if seen.features is None:
        return {}
    count = len(seen) // WINDOW
    windows = seen.features[: count * WINDOW].reshape(count, WINDOW, -1)
    windows = windows if half is None else windows[half::2]
    moving = np.abs(np.diff(windows, axis=1)).mean(1) * WINDOW
    return {
        "frechet_picture": Moments.of(windows[:, ::STRIDE].reshape(-1, windows.shape[-1])),
        "frechet_motion": Moments.of(np.concatenate([windows.mean(1), moving], 1)),
    }


def summary(scored: Sequence[Scored]) -> dict[str, dict[str, Any]]:
    """``metrics`` of the results: every metric that some case has."""
    out = {}
    for name, metric in METRICS.items():
        result, floor, ceiling = ([getattr(s, k).get(name) for s in scored] for k in ("scores", "floor", "ceiling"))
        if name.startswith("frechet"):
            stats = _distances([s.moments for s in scored if name in s.moments.get("result", {})], name)
            difference = None
        else:
            stats = {"result": bootstrap(result), "floor": bootstrap(floor), "ceiling": bootstrap(ceiling)}
            difference = effect(ceiling, floor, metric.better)
        if stats["result"] is not None:
            out[name] = metric.to_json() | stats | {"effect": difference}
    return out


def _distances(moments: Sequence[dict[str, dict[str, Moments]]], name: str) -> dict[str, Any]:
    """Distances from the true videos. The ceiling is that of every other half second of the true videos
    from those between."""
    if len(moments) < 2:
        return {"result": None}
    by = {side: [m[side][name] for m in moments] for side in moments[0]}
    return {
        "result": frechet_stat(by["result"], by["ceiling"]),
        "floor": frechet_stat(by[FLOORS[name]], by["ceiling"]),
        "ceiling": frechet_stat(by["even"], by["odd"]),
    }
