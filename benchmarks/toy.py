"""The bundled model on held-out characters and voices: ``uv run python -m benchmarks.toy``.

Every figure is read from pixels by ``lpm_jax/bench/instruments/reader.py`` and stands beside its floor (the same figure
with another clip's sound) and its ceiling (the true video through the same reader). ``--model truth`` plays the true
video instead of a model: what the instrument can show at best. ``--minutes 10`` adds the long stream. See ``--help``.

Stream frame ``i`` is frame ``i + 1`` of its clip: a clip's first frame stands alone, and a stream starts after it.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from benchmarks.clips import Clip, build_clips, open_clips, tracks
from benchmarks.long_stream import long_stream
from benchmarks.report import Row, table
from data_pipeline.schema import FPS
from lpm_jax.bench import signals as metrics
from lpm_jax.bench.instruments.reader import Reader, Reading
from lpm_jax.checkpoint import write_json
from lpm_jax.environment import environment
from lpm_jax.errors import ArgumentParser, run_door
from lpm_jax.progress import progress
from lpm_jax.training.sheets import save_sheet

#: Plays a clip's character to the sound of another clip (or its own): frames as many as ``Clip.frames``.
Perform = Callable[[Clip, Clip], UInt8[np.ndarray, "frames h w 3"]]


class Streamer:
    """:data:`Perform` by a pipeline's streaming path; keeps its delays and speed."""

    def __init__(self, pipeline, seed: int = 0):
        self.pipeline, self.seed = pipeline, seed
        self.delays: list[float] = []  # seconds to each stream's first frames
        self.played = self.spent = 0.0  # seconds of video, seconds of computing

    def __call__(self, clip: Clip, heard: Clip) -> UInt8[np.ndarray, "frames h w 3"]:
        speak, listen = (track.astype(np.float32) / 32767 for track in tracks(clip, heard))
        began, frames = time.perf_counter(), []
        for chunk in self.pipeline.stream(
            image=clip.reference, audio=speak, listen=listen, prompt=clip.record["prompt"], seed=self.seed
        ):
            if not frames:
                self.delays.append(time.perf_counter() - began)
            frames.append(chunk.frames)
        self.spent += time.perf_counter() - began
        self.played += sum(map(len, frames)) / FPS
        return np.concatenate(frames)

    def rows(self) -> list[Row]:
        return [
            Row("speed: times real time", self.played / self.spent, target=">= 1.3"),
            Row("speed: seconds to the first frame, warm", float(np.median(self.delays))),
        ]


def play_truth(clip: Clip, heard: Clip) -> UInt8[np.ndarray, "frames h w 3"]:
    """:data:`Perform` of a perfect model: the video that belongs to the sound."""
    return heard.frames


def measure(
    perform: Perform, speak: Sequence[Clip], listen: Sequence[Clip], reader: Reader
) -> tuple[list[Row], list[dict], dict[str, list[np.ndarray]]]:
    """Figures of ``perform``, details of every clip, and the frames it made with their own sound, by kind."""
    clips = {"speak": list(speak), "listen": list(listen)}
    names = {"speak": "aperture", "listen": "pitch"}
    made: dict[str, list[np.ndarray]] = {}
    own, wrong, true = ({} for _ in range(3))  # readings by kind
    turn = {}
    for kind, group in clips.items():
        turn[kind] = metrics.least_alike([c.truth(names[kind]) for c in group])
        made[kind] = [perform(c, c) for c in progress(group, f"{kind}, own sound")]
        other = zip(group, metrics.rotate(group, turn[kind]), strict=True)
        wrong[kind] = [reader.read(perform(*pair)) for pair in progress(list(other), f"{kind}, another's sound")]
        own[kind] = [reader.read(frames) for frames in made[kind]]
        true[kind] = [reader.read(c.frames) for c in group]
    rows = [
        *_motion_rows("mouth", "aperture", clips["speak"], own["speak"], wrong["speak"], true["speak"], turn["speak"]),
        _stillness_row(own, true),
        *_motion_rows("nods", "pitch", clips["listen"], own["listen"], wrong["listen"], true["listen"], turn["listen"]),
    ]
    everybody = [*speak, *listen]
    looks, before = (r["speak"] + r["listen"] for r in (own, true))
    frames = made["speak"] + made["listen"]
    rows += [*_identity_rows(everybody, frames), *_attribute_rows(everybody, looks, before)]
    lids = [c.eyes for c in everybody]
    pairs = zip(frames, everybody, strict=True)
    sharp = [metrics.sharpness(f) / metrics.sharpness(c.frames) for f, c in pairs]
    rows += [
        Row(
            "eyes: blinks, correlation",
            metrics.pooled_correlation([r.eyes for r in looks], lids),
            ceiling=metrics.pooled_correlation([r.eyes for r in before], lids),
        ),
        Row("picture: sharpness against truth", float(np.mean(sharp)), ceiling=1.0),
    ]
    details = [_detail(c, f, r) for c, f, r in zip(everybody, frames, looks, strict=True)]
    return rows, details, made


def _motion_rows(
    part: str, name: str, clips: list[Clip], own: list[Reading], wrong: list[Reading], true: list[Reading], turn: int
) -> list[Row]:
    """Does the motion follow the sound that was given, at once, far enough, and no other sound?"""
    truth = [c.truth(name) for c in clips]
    followed = metrics.rotate(truth, turn)
    own, wrong, true = ([getattr(r, name) for r in readings] for readings in (own, wrong, true))
    (lag, _), (_, score) = metrics.best_lag(own, truth), metrics.best_lag(own, truth, 1)
    (true_lag, _), (_, ceiling) = metrics.best_lag(true, truth), metrics.best_lag(true, truth, 1)
    off = metrics.pooled_correlation(wrong, truth)
    against = metrics.pooled_correlation(metrics.rotate(true, turn), truth)
    mouth = part == "mouth"
    ratio = metrics.amplitude_ratio if mouth else metrics.spread_ratio
    return [
        Row(f"{part}: correlation within one frame", score, off, ceiling, ">= 0.78" if mouth else ">= 0.85"),
        Row(f"{part}: best lag, frames late", lag, ceiling=true_lag),
        Row(f"{part}: best lag, absolute", abs(lag), ceiling=abs(true_lag), target="<= 1"),
        Row(f"{part}: |r|, another's sound", abs(off), ceiling=abs(against), target=f"<= {0.1 if mouth else 0.15}"),
        Row(f"{part}: follows another's sound", metrics.best_lag(wrong, followed, 1)[1], ceiling=ceiling),
        Row(
            f"{part}: amplitude against truth",
            ratio(own, true),
            ceiling=ratio(true, truth),
            target=">= 0.85" if mouth else "",
        ),
    ]


def _stillness_row(own: dict[str, list[Reading]], true: dict[str, list[Reading]]) -> Row:
    still = [metrics.stillness(*([x.aperture for x in r[k]] for k in ("listen", "speak"))) for r in (own, true)]
    return Row("mouth: opening while listening / speaking", still[0], 1.0, still[1], "<= 0.1")


def _identity_rows(clips: list[Clip], frames: list[np.ndarray]) -> list[Row]:
    references = [c.reference for c in clips]
    found = metrics.identity([f.mean(0) for f in frames], references)
    best = metrics.identity([c.frames.mean(0) for c in clips], references)
    posed = metrics.identity([f.mean(0) for f in frames], [c.frames.mean(0) for c in clips])
    return [
        Row(f"identity: nearest to itself, of {len(clips)}", found["nearest"], 1, best["nearest"], f">= {len(clips)}"),
        Row("identity: colour distance, own / others", found["ratio"], 1.0, best["ratio"], "<= 0.1"),
        Row("identity: colour distance, own", found["own"], found["other"], best["own"]),
        Row("identity: colour distance to the true video", posed["own"], posed["other"], 0.0),
    ]


def _attribute_rows(clips: list[Clip], looks: list[Reading], before: list[Reading]) -> list[Row]:
    rows = []
    for name in ("glasses", "beard"):
        has = np.array([c.character[name] != "none" for c in clips])
        (found, false), (best, _) = (metrics.recall([getattr(r, name) for r in rs], has) for rs in (looks, before))
        rows.append(Row(f"{name}: still there, {has.sum()} who have it", found, false, best, ">= 0.9"))
    return rows


def _detail(clip: Clip, frames: np.ndarray, read: Reading) -> dict:
    kind = clip.record["kind"]
    name = "aperture" if kind == "speak" else "pitch"
    distance = metrics.colour_distance(*map(metrics.region_colours, (frames.mean(0), clip.reference)))
    found = {
        "r": metrics.correlation(getattr(read, name), clip.truth(name)),
        "identity": distance,
        "glasses": float(np.mean(read.glasses > 0)),
        "beard": float(np.mean(read.beard > 0)),
    }
    who = {"kind": kind, "seed": clip.record["seed"], "style": clip.character["style"]}
    has = {f"has_{k}": clip.character[k] != "none" for k in ("glasses", "beard")}
    return who | {k: round(v, 4) for k, v in found.items()} | has


def autoencoder_rows(
    roundtrip: Callable[[np.ndarray], np.ndarray], speak: Sequence[Clip], listen: Sequence[Clip], reader: Reader
) -> list[Row]:
    """The autoencoder alone. ``roundtrip``: uint8 ``[1, frames, h, w, 3]`` to float in -1..1 of the same shape."""
    from lpm_jax.training.vae import reconstruction_scores

    apertures: list[np.ndarray] = []

    def watched(video: np.ndarray) -> np.ndarray:
        out = roundtrip(video)
        if len(apertures) < len(speak):
            frames = np.clip(np.round((out[0, 1:] + 1) * 127.5), 0, 255).astype(np.uint8)
            apertures.append(reader.read(frames).aperture)
        return out

    records = [c.record for c in (*speak, *listen)]
    db = reconstruction_scores(watched, records, len(records))
    truth = [c.truth("aperture") for c in speak]
    best = metrics.pooled_correlation([reader.read(c.frames).aperture for c in speak], truth)
    return [
        Row("autoencoder: PSNR, dB", db["psnr_all"], target=">= 33"),
        Row("autoencoder: PSNR of the mouth, dB", db["psnr_mouth"], target=">= 29.5"),
        Row("autoencoder: PSNR of the eyes, dB", db["psnr_eyes"], target=">= 29.5"),
        Row("autoencoder: dB lost in nods", db.get("psnr_still", np.nan) - db.get("psnr_moving", np.nan), None, 0.0,
            "<= 2"),
        Row("autoencoder: mouth correlation", metrics.pooled_correlation(apertures, truth), None, best, ">= 0.93"),
    ]  # fmt: skip


def pipeline_roundtrip(pipeline) -> Callable[[np.ndarray], np.ndarray]:
    """Encode and decode with a pipeline's autoencoder."""
    import jax
    import jax.numpy as jnp

    from lpm_jax.models.vae import toy

    @jax.jit
    def run(params, video):
        z, _ = toy.encode(pipeline.config.vae, params, toy.to_unit(video))
        return jnp.clip(toy.decode(pipeline.config.vae, params, z)[0], -1, 1)

    return lambda video: np.asarray(run(pipeline.params["vae"], video))


def picture(clips: Sequence[Clip], made: Sequence[np.ndarray], columns: int = 8) -> list[np.ndarray]:
    """Rows for :func:`save_sheet`: a clip's reference and truth, under it the result at the same moments."""
    rows = []
    for clip, frames in zip(clips, made, strict=True):
        at = np.linspace(0, len(frames) - 1, columns + 2).astype(int)[1:-1]
        rows.append(np.concatenate([clip.reference[None], clip.frames[at]]))
        rows.append(np.concatenate([np.full_like(clip.reference, 255)[None], frames[at]]))
    return rows


def choose(clips: Sequence[Clip], count: int = 3) -> list[int]:
    """Places of clips worth showing: the first with glasses, with a beard, of a creature, then whoever comes first."""
    wanted = [lambda c: c["glasses"] != "none", lambda c: c["beard"] != "none", lambda c: c["style"] == "creature"]
    chosen: list[int] = []
    for wish in [*wanted, *[lambda c: True] * count]:
        chosen += [i for i, c in enumerate(clips) if i not in chosen and wish(c.character)][:1]
    return chosen[:count]


def main() -> int:
    parser = ArgumentParser(prog="benchmarks.toy", description="Measure a model on held-out characters and voices.")
    parser.add_argument("--model", default="toy", help='bundled model, folder, or "truth" for the true video')
    parser.add_argument("--clips", type=int, default=24, help="clips of each kind (speak, listen)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a clip")
    parser.add_argument("--data", type=Path, help="a data set whose held-out clips take their place: to choose weights")
    parser.add_argument("--minutes", type=int, default=0, help="length of the long stream; 0 leaves it out")
    parser.add_argument("--seed", type=int, default=0, help="of the streams' noise")
    parser.add_argument(
        "--out", type=Path, help="folder for toy.json (default: results beside this file, not with --data)"
    )
    parser.add_argument("--sheet", type=Path, help="PNG of held-out frames: truth above result")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--weights", choices=("int8", "float8"), default="", help="of the transformer, in memory")
    parser.add_argument("--cache", choices=("int8", "float8"), default="", help="likewise")
    parser.add_argument("--chunk", type=int, help="latent frames a step")
    args = parser.parse_args()
    options = {k: v for k, v in (("weights", args.weights), ("cache", args.cache), ("chunk", args.chunk)) if v}
    if args.clips < 2 or args.seconds < 2 or args.minutes < 0:
        parser.error("expected at least 2 clips of at least 2 seconds, and no negative minutes")
    if args.data and not args.out:
        parser.error("expected --out with --data: these figures are not the bundled ones")
    out = args.out or Path(__file__).parent / "results"

    def clips(kind: str) -> list[Clip]:
        if args.data:
            return open_clips(args.data, "held_out", (kind,), args.clips)
        return build_clips(kind, args.clips, args.seconds)

    speak, listen = clips("speak"), clips("listen")
    reader, pipeline, minutes = Reader.load(), None, []
    if args.model != "truth":
        from lpm_jax.pipeline import Pipeline

        pipeline = Pipeline.from_pretrained(args.model, args.dtype, options)
        pipeline.warm_up()
    perform = Streamer(pipeline, args.seed) if pipeline else play_truth
    rows, details, made = measure(perform, speak, listen, reader)
    if pipeline:
        rows += autoencoder_rows(pipeline_roundtrip(pipeline), speak, listen, reader)
        rows += perform.rows()
        if args.minutes:
            order = [c for pair in zip(speak, listen, strict=True) for c in pair]
            more, minutes = long_stream(pipeline, order, args.minutes, reader, args.seed)
            rows += more
    if args.data:  # targets are for the clips that nothing is chosen by
        rows = [dataclasses.replace(row, target="") for row in rows]
    print(table(rows))
    verdicts = [r.passed for r in rows if r.passed is not None]
    if verdicts:
        print(f"\n{sum(verdicts)} of {len(verdicts)} targets met")

    name = Path(args.model).name  # of a folder anywhere: the report names no machine's paths
    command = f"python -m benchmarks.toy --model {name} --clips {args.clips} "
    command += "--data DATA " if args.data else f"--seconds {args.seconds:g} "
    command += f"--minutes {args.minutes} --seed {args.seed} --dtype {args.dtype}"
    command += "".join(f" --{k} {v}" for k, v in options.items())
    half = {"dtype": args.dtype} if args.dtype != "float32" else {}
    name += "".join(f"_{k}_{v}" for k, v in (half | options).items()) + ("_data" if args.data else "")
    result = {"command": command} | environment("opencv-python-headless") | {"figures": [r.to_json() for r in rows]}
    result |= {"clips": details, "minutes": minutes}
    write_json(out / f"{name}.json", result)
    if args.sheet:
        shown = []
        for kind, clips in (("speak", speak), ("listen", listen)):
            places = choose(clips)
            shown += picture([clips[i] for i in places], [made[kind][i] for i in places])
        save_sheet(args.sheet, shown)
    written = [str(out / f"{name}.json"), *([str(args.sheet)] if args.sheet else [])]
    print(f"written: {', '.join(written)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_door(main)
