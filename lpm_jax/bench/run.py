"""``python -m lpm_jax.bench run``: make a model's videos of a suite's cases, measure them, write ``results.json``.

    python -m lpm_jax.bench run --model toy --suite small --out runs/bench
    python -m lpm_jax.bench run --model FOLDER --offline --audio-scale 2 --suite small --out runs/teacher
    python -m lpm_jax.bench run --videos FOLDER --name theirs --suite small --out runs/theirs
    python -m lpm_jax.bench run --cases FOLDER --out runs/mine
    python -m lpm_jax.bench run --videos FOLDER --cases FOLDER --instruments real --weights ONNX --out runs/real

Videos that are already in the folder are kept: a run that was stopped goes on with the same command. ``--model truth``
plays the true video: what the instruments can show at best.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lpm_jax.bench.cases import Case, Cases, Recorded, find_cases
from lpm_jax.bench.schema import SCHEMA
from lpm_jax.bench.suites import SUITES, specs
from lpm_jax.config import StreamConfig
from lpm_jax.errors import ArgumentParser, InputError
from lpm_jax.options import changes, parse_mesh
from lpm_jax.progress import progress


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(
        "python -m lpm_jax.bench run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="the run's folder (made if missing)")
    add("--model", default="toy", help='bundled model, folder of a model, or "truth"')
    add("--videos", type=Path, metavar="DIR", help="score these MP4 files, named after cases, instead of a model's")
    add("--suite", default="small", help=f"{', '.join(SUITES)} (default: small)")
    add("--cases", type=Path, metavar="DIR", help="a folder of cases instead of a suite")
    add("--name", help="what to call the model in results (default: the model's or folder's name)")
    add("--chunk", type=int, help="frames that the system makes at a time (default: what a model streams, else 12)")
    add("--seed", type=int, default=0, help="of the model's noise")
    again = {"action": "append", "default": [], "metavar": "NAME=VALUE"}
    add("--stream", **again, help="stream otherwise than the model says: levels=1 or history=clean; may be repeated")
    add("--mesh", default="", metavar="AXIS=N", help="cut the transformer over N devices: tensor=4, or context, ring")
    add("--decoder", type=int, default=0, metavar="N", help="devices of the VAE's own, beside those")
    add("--offline", action="store_true", help="perform as Base does, segment by segment, instead of streaming")
    add("--text-scale", type=float, help="with --offline: guidance by the prompt (default: the model's; 1 is none)")
    add("--audio-scale", type=float, help="with --offline: guidance by the sound")
    add("--instruments", default="drawn", choices=("drawn", "real"), help="made for drawings or for real faces")
    add("--weights", type=Path, metavar="DIR", help="ONNX files of the instruments for real faces (docs/bench.md)")
    args = parser.parse_args(argv)
    if not 0 <= args.seed < 2**31:
        raise InputError(f"--seed: expected 0 to {2**31 - 1}, found {args.seed}")
    if args.chunk is not None and not 2 <= args.chunk <= 1000:
        raise InputError(f"--chunk: expected 2 to 1,000 frames, found {args.chunk}")
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"--out: expected a folder, found the file {str(args.out)!r}")
    if args.videos is not None and not args.videos.is_dir():
        raise InputError(f"--videos: expected a folder of MP4 files, found none at {str(args.videos)!r}")
    if args.offline and (args.videos is not None or args.model == "truth"):
        raise InputError("--offline: expected a model that performs, found " + ("--videos" if args.videos else "truth"))
    if args.stream and (args.videos is not None or args.model == "truth" or args.offline):
        raise InputError(
            "--stream: expected a model that streams, found " + ("--offline" if args.offline else "videos")
        )
    args.changes = changes(StreamConfig, args.stream, "--stream")
    args.mesh = parse_mesh(args.mesh) if args.mesh else None
    if (args.mesh or args.decoder) and (args.videos is not None or args.model == "truth" or args.offline):
        raise InputError("--mesh: expected a model that streams, found " + ("--offline" if args.offline else "videos"))
    if not args.offline and (args.text_scale, args.audio_scale) != (None, None):
        raise InputError("--text-scale, --audio-scale: expected with --offline, found a model that streams")
    if (args.weights is None) != (args.instruments == "drawn"):
        found = "none" if args.weights is None else "them for drawn ones"
        raise InputError(f"--weights: expected a folder of ONNX files with --instruments real, found {found}")
    specs(args.suite) if args.cases is None else find_cases(args.cases)
    if args.videos is None and args.model != "truth":
        from lpm_jax.pretrained import locate

        locate(args.model)
    return args


def load_cases(suite: str, folder: Path | None, out: Path) -> Cases:
    """The cases of a folder, or of a suite, written into ``out/cases`` unless they are there.

    Raises:
      InputError: there are none, or two have the same name.
    """
    if folder is None:
        from lpm_jax.bench.write_cases import write_suite

        return Cases(write_suite(suite, out / "cases"))
    cases = Cases(find_cases(folder))
    names = collections.Counter(case.id for case in cases)
    double = [name for name, count in names.items() if count > 1]
    if double:
        raise InputError(f"--cases: expected every id once, found {double[0]!r} twice")
    return cases


def main(argv: list[str]) -> int:
    args = parse(argv)
    instruments = load_instruments(args.weights)
    model, chunk, maker = None, args.chunk or 12, {}
    if args.offline:
        model = _base(args.model, args.text_scale, args.audio_scale)
        sample = model.config.sample
        maker = {"offline": {"text_scale": sample.text_scale, "audio_scale": sample.audio_scale, "steps": sample.steps}}
    elif args.videos is None and args.model != "truth":
        model = _pipeline(args.model, args.changes, args.mesh, args.decoder)
        maker = {"stream": args.stream} if args.stream else {}
        chunk = args.chunk or model.chunk_frames
    name = args.name or (args.videos.resolve() if args.videos else Path(args.model)).name
    suite = args.cases.resolve().name if args.cases else args.suite
    if args.videos is None:
        claim(args.out, {"model": name, "weights": fingerprint(args.model), "suite": suite, "seed": args.seed} | maker)
    cases = load_cases(args.suite, args.cases, args.out)
    results = run(args.out, cases, model, args.videos, args.seed, chunk, instruments, args.offline)
    source = f"--videos {name}" if args.videos else f"--model {name}"
    command = f"python -m lpm_jax.bench run {source} --suite {suite} --seed {args.seed}"
    head = {"schema": SCHEMA, "suite": suite, "model": name, "seed": args.seed, "command": command}
    head |= maker
    head["command"] += "".join(f" --stream {words}" for words in args.stream)
    if args.offline:
        given = (("--text-scale", args.text_scale), ("--audio-scale", args.audio_scale))
        head["command"] += " --offline" + "".join(f" {name} {x:g}" for name, x in given if x is not None)
    if args.weights:
        head["command"] += f" --instruments real --weights {args.weights.resolve().name}"
        head["instruments"] = instruments.fingerprints()
    finish(args.out, head, results)
    return 0


def load_instruments(weights: Path | None = None):
    """The bundled instruments, or those for real faces. Raises InputError where there are none."""
    if weights is None:
        from lpm_jax.bench.observe import Instruments

        return Instruments.load()
    from lpm_jax.bench.instruments.real.observe import RealInstruments

    return RealInstruments(weights)


def claim(out: Path, maker: dict[str, Any]) -> None:
    """Notes in ``out`` who makes its videos, so that those of one model are never taken for another's.

    Raises:
      InputError: the folder's videos were made by somebody else.
    """
    from lpm_jax.checkpoint import write_json

    path = out / "videos.json"
    before = json.loads(path.read_text()) if path.is_file() else maker
    different = [f"{key} {before.get(key)}" for key in before | maker if before.get(key) != maker.get(key)]
    if different:
        raise InputError(f"--out: expected a new folder or one of the same run, found videos of {', '.join(different)}")
    write_json(path, maker)


def fingerprint(model: str) -> str:
    """Tells models of the same name apart: sizes, beginnings and ends of the files in a model's folder."""
    if model == "truth":
        return ""
    from lpm_jax.pretrained import locate

    found = hashlib.sha256()
    for path in sorted(path for path in Path(locate(model)).iterdir() if path.suffix in (".json", ".safetensors")):
        with path.open("rb") as file:
            found.update(f"{path.name} {path.stat().st_size}".encode() + file.read(1 << 16))
            file.seek(max(0, path.stat().st_size - (1 << 16)))
            found.update(file.read())
    return found.hexdigest()[:16]


def run(
    out: Path,
    cases: Sequence[Case],
    model: Any,
    videos: Path | None = None,
    seed: int = 0,
    chunk: int = 12,
    instruments: Any = None,
    offline: bool = False,
) -> dict[str, Any]:
    """Makes or finds the videos, writes the true ones beside them and scores all; ``metrics`` and ``cases``.

    ``model`` is a pipeline, or a Base to perform ``offline``. Without one and without ``videos`` the true video plays.
    """
    from lpm_jax.bench.files import copy, read_video, write_video
    from lpm_jax.bench.perform import find_videos, perform, perform_offline
    from lpm_jax.bench.score import score_cases, summary

    instruments = instruments or load_instruments()
    for line in instruments.missing:
        print(f"note: {line}", file=sys.stderr)
    given = find_videos(videos, [case.id for case in cases]) if videos else {}
    if videos and len(given) < len(cases):
        print(f"note: {len(cases) - len(given)} of {len(cases)} cases have no video: left out", file=sys.stderr)
        chosen = [i for i, case in enumerate(cases) if case.id in given]
        cases = Cases([cases.folders[i] for i in chosen]) if isinstance(cases, Cases) else [cases[i] for i in chosen]
    for case in progress(cases, "videos"):
        true, path = out / "truth" / f"{case.id}.mp4", out / "videos" / f"{case.id}.mp4"
        recorded = case.truth.path if isinstance(case.truth, Recorded) else None
        if recorded and not true.exists():
            copy(recorded, true)
        elif case.truth and not true.exists():
            write_video(true, case.truth.video(), case.speak)
        if case.id in given or (recorded and model is None):
            copy(given.get(case.id, recorded), path)
        elif not path.exists():
            by = perform_offline if offline else perform
            blocks = by(model, case, seed) if model else _true_blocks(case)
            write_video(path, blocks, case.speak)

    def opened(folder: str):
        return lambda case: read_video(
            out / folder / f"{case.id}.mp4", case.frames, instruments.block, instruments.size
        )

    scored = score_cases(cases, opened("videos"), opened("truth"), instruments, chunk)
    found = list(progress(_Sized(scored, cases), "scores"))
    return {"metrics": summary(found), "cases": [s.row() for s in found]}


def finish(out: Path, head: dict[str, Any], results: dict[str, Any]) -> None:
    """Writes ``results.json`` and prints the table."""
    from lpm_jax.bench.table import table
    from lpm_jax.checkpoint import write_json
    from lpm_jax.environment import environment

    write_json(out / "results.json", head | environment("av") | results)
    print(table(results["metrics"]))
    print(f"written: {out / 'results.json'}", file=sys.stderr)


class _Sized:
    """An iterator that knows how many come: for the progress bar."""

    def __init__(self, items, like: Sequence):
        self.items, self.count = items, len(like)

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        return iter(self.items)


def _pipeline(model: str, otherwise: dict[str, Any], mesh: Any = None, decoder: int = 0):
    from lpm_jax.compilation import keep_programs
    from lpm_jax.pipeline import Pipeline

    keep_programs()
    pipeline = Pipeline.from_pretrained(model, None, otherwise, mesh, decoder)
    pipeline.warm_up()
    return pipeline


def _base(model: str, text_scale: float | None, audio_scale: float | None):
    from lpm_jax.base.video import Base
    from lpm_jax.compilation import keep_programs

    keep_programs()
    base = Base.from_pretrained(model)
    given = {"text_scale": text_scale, "audio_scale": audio_scale}
    sample = dataclasses.replace(base.config.sample, **{name: x for name, x in given.items() if x is not None})
    return Base(dataclasses.replace(base.config, sample=sample), base.params, base.prompts)


def _true_blocks(case: Case):
    if case.truth is None:
        raise InputError(f"--model truth: expected cases with a truth, found {case.id} without")
    return case.truth.video()
