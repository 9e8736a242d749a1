"""``python -m lpm_jax.bench check``: do the instruments tell a growing defect? Planted in true videos, case by case.

A trial is a case and two neighbouring amounts of a defect; it is right where the metric is worse at the larger one. The
defects: the video late against the sound by 0, 2, 4, 8 frames; another character faded over the picture by 0 to 100 %;
a growing share of frames frozen; nods taken out of the performance.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from data_pipeline.schema import FPS, PARAM_INDEX
from lpm_jax.bench.cases import Case, Cases, Truth
from lpm_jax.bench.metrics import Context, listening, scores
from lpm_jax.bench.metrics.identity import picture_colours
from lpm_jax.bench.observe import Instruments, Observation
from lpm_jax.bench.schema import METRICS, SCHEMA
from lpm_jax.bench.suites import SUITES, specs
from lpm_jax.errors import ArgumentParser, InputError
from lpm_jax.progress import progress

SHIFTS, SHARES = (0, 2, 4, 8), (0.0, 0.25, 0.5, 0.75, 1.0)
#: Metrics that must fall with each defect. Speech has a rhythm: at 8 frames late it may correlate more than at 4, so
#: it is the lag that tells shifts apart.
TELLS = {
    "late": ("lip_lag", "sync_offset"),
    "blended": ("identity_colour", "identity_similarity"),
    "frozen": ("frozen", "motion_amount"),
    "nods removed": ("nod_f1",),
}
LONGEST = 10 * FPS  # frames of a case that are looked at


def main(argv: list[str]) -> int:
    from lpm_jax.bench.write_cases import write_suite
    from lpm_jax.checkpoint import write_json
    from lpm_jax.environment import environment

    parser = ArgumentParser("python -m lpm_jax.bench check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for check.json and the cases")
    parser.add_argument("--suite", default="small", help=f"{', '.join(SUITES)} (default: small)")
    args = parser.parse_args(argv)
    specs(args.suite)
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"--out: expected a folder, found the file {str(args.out)!r}")
    cases = Cases(write_suite(args.suite, args.out / "cases"))
    right = check(cases, Instruments.load())
    rows = {
        name: {"right": sum(x), "trials": len(x), "share": round(float(np.mean(x)), 4)} for name, x in right.items()
    }
    command = f"python -m lpm_jax.bench check --suite {args.suite}"
    head = {"schema": SCHEMA, "command": command} | environment("av")
    write_json(args.out / "check.json", head | {"trials": rows})
    for name, row in rows.items():
        print(f"{name:32} {row['right']:4} of {row['trials']:4} trials  {100 * row['share']:.1f} %")
    print(f"written: {args.out / 'check.json'}", file=sys.stderr)
    return 0


def check(cases: Cases | list[Case], instruments: Instruments) -> dict[str, list[bool]]:
    """Whether each trial was right, by ``"defect: metric"``."""
    colours = [picture_colours(case.first.astype(np.float64)) for case in cases]
    looks = instruments.looks.embed(np.stack([case.first for case in cases])) if instruments.looks else None
    right: dict[str, list[bool]] = {}
    for i, case in enumerate(progress(cases, "cases")):
        frames = np.concatenate(list(_short(case.truth).video()))
        true = instruments.observe([frames])
        heard = instruments.sync.hear(case.speak[: len(frames) * 1000]) if instruments.sync else None
        look = {} if looks is None else {"look": looks[i], "other_looks": np.delete(looks, i, 0)}
        context = Context(true, colours[i], np.stack(colours[:i] + colours[i + 1 :]), heard=heard, **look)
        other = cases[(i + 1) % len(cases)]
        short = _cut(case, len(frames))
        for defect, videos in {
            "late": [true.take(np.maximum(np.arange(len(true)) - k, 0)) for k in SHIFTS],
            "blended": list(_blended(instruments, frames[:48], other)),
            "frozen": [true.take(_frozen(len(true), share)) for share in SHARES],
            "nods removed": list(_without_nods(instruments, case, true)),
        }.items():
            found = [scores(_cut(short, len(video)), video, _cut_context(context, len(video))) for video in videos]
            for name in TELLS[defect]:
                trials = _worse([f[name] for f in found], METRICS[name].better)
                if trials:
                    right.setdefault(f"{defect}: {name}", []).extend(trials)
    return right


def _worse(values: list[float | None], better: str) -> list[bool]:
    """For each two neighbouring amounts, whether the metric is worse at the larger."""
    if None in values:
        return []
    sign = 1 if better == "higher" else -1
    return [sign * (a - b) > 0 for a, b in zip(values, values[1:], strict=False)]


def _short(truth: Truth) -> Truth:
    return Truth(truth.character, truth.params[:LONGEST], truth.phonemes, truth.events)


def _cut(case: Case, frames: int) -> Case:
    """The first ``frames`` of a case."""

    params = Truth(case.truth.character, case.truth.params[:frames], case.truth.phonemes, case.truth.events)
    cut = {name: getattr(case, name)[: frames * 1000] for name in ("speak", "listen")}
    return dataclasses.replace(case, truth=params, **cut)


def _cut_context(context: Context, frames: int) -> Context:
    heard = None if context.heard is None else context.heard[:frames]
    return dataclasses.replace(context, heard=heard, truth=context.truth.take(np.arange(frames)))


def _frozen(frames: int, share: float) -> np.ndarray:
    index = np.arange(frames)
    index[: round(share * frames)] = 0
    return index


def _blended(instruments: Instruments, frames: UInt8[np.ndarray, "n h w 3"], other: Case) -> Iterator[Observation]:
    """The picture faded into another character's first frames, pixel by pixel."""
    theirs = np.concatenate(list(_short(other.truth).video()))
    theirs = theirs[np.resize(np.arange(len(theirs)), len(frames))].astype(np.float32)
    for share in SHARES:
        yield instruments.observe([np.round((1 - share) * frames + share * theirs).astype(np.uint8)])


def _without_nods(instruments: Instruments, case: Case, true: Observation) -> Iterator[Observation]:
    """The performance with none, half and all of its nods taken out, drawn again."""
    pitch = case.truth["pitch"][: len(true)]
    nods = listening.events(pitch, listening.NOD)
    if len(nods) < 1 or not np.abs(case.listen).max(initial=0) > 1e-2:
        return
    yield true
    for count in sorted({-(-len(nods) // 2), len(nods)}):
        params = case.truth.params[: len(true)].copy()
        params[:, PARAM_INDEX["pitch"]] = without(pitch, nods[:count])
        changed = Truth(case.truth.character, params, (), ())
        yield instruments.observe(changed.video())


def without(pitch: Float[np.ndarray, " n"], nods: list[float], reach: float = 0.55) -> Float[np.ndarray, " n"]:
    """The curve with straight lines in place of the nods that peak at ``nods`` seconds."""
    out = pitch.copy()
    for at in nods:
        a, b = max(0, round((at - reach) * FPS)), min(len(pitch) - 1, round((at + reach) * FPS))
        low = np.percentile(pitch[a : b + 1], 20)
        ends = min(out[a], low), min(out[b], low)
        out[a : b + 1] = np.minimum(out[a : b + 1], np.linspace(*ends, b - a + 1))
    return out
