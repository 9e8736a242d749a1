"""``python -m lpm_jax.bench cases --suite small --out DIR``: a suite's cases as JSON, sound and pictures.

``cases --recordings FOLDER --out DIR`` makes a case of every MP4 file there instead: its first frame is the picture,
its sound what is spoken, and the recording itself is true.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import av
import numpy as np

from data_pipeline.schema import FPS, SAMPLES_PER_FRAME
from lpm_jax.bench.cases import Case, Recorded, Segment, check_id, write_case
from lpm_jax.bench.suites import SUITES, specs
from lpm_jax.errors import ArgumentParser, InputError, one_line
from lpm_jax.media import load_audio
from lpm_jax.progress import progress


def main(argv: list[str]) -> int:
    parser = ArgumentParser(
        "python -m lpm_jax.bench cases", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the cases (made if missing)")
    parser.add_argument("--suite", default="small", help=f"{', '.join(SUITES)} (default: small)")
    parser.add_argument("--recordings", type=Path, metavar="DIR", help="make cases of these MP4 files instead")
    args = parser.parse_args(argv)
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"--out: expected a folder, found the file {str(args.out)!r}")
    if args.recordings:
        write_recordings(args.recordings, args.out)
    else:
        write_suite(args.suite, args.out)
    print(f"written: {args.out}", file=sys.stderr)
    return 0


def write_suite(suite: str, out: Path) -> list[Path]:
    """Writes the cases that are not there yet; the folders of all, in the suite's order."""
    from lpm_jax.bench.generate import make_case

    for spec in progress(specs(suite), "cases"):
        if not (out / spec.id / "case.json").exists():
            write_case(make_case(spec), out)
    return [out / spec.id for spec in specs(suite)]


def write_recordings(folder: Path, out: Path) -> list[Path]:
    """Writes a case for every MP4 file of a folder.

    Raises:
      InputError: there is none, or one has no picture or a name that a case cannot have.
    """
    paths = sorted(folder.glob("*.mp4"))
    if not paths:
        raise InputError(f"--recordings: expected a folder with MP4 files, found none in {str(folder)!r}")
    return [write_case(recorded_case(path), out) for path in progress(paths, "cases")]


def recorded_case(path: Path) -> Case:
    """See :func:`write_recordings`."""
    check_id(path.stem, f"{path}: name")
    try:
        with av.open(str(path), options={"format_whitelist": "mov,mp4,m4a,matroska,webm"}) as box:
            stream = box.streams.video[0]
            heard = bool(box.streams.audio)
            first = next(box.decode(stream)).to_ndarray(format="rgb24")
            seconds = float(stream.duration * stream.time_base) if stream.duration else box.duration / av.time_base
    except (av.error.FFmpegError, IndexError, StopIteration, TypeError) as error:
        raise InputError(f"{path}: expected a video, found {one_line(error, 80)}") from None
    frames = max(1, int(seconds * FPS + 1e-6))
    speak = load_audio(path)[: frames * SAMPLES_PER_FRAME] if heard else np.zeros(0, np.float32)
    return Case(
        id=path.stem,
        kind="speaking" if heard else "motion",
        character=path.stem,
        style="recorded",
        prompt=(Segment(0.0, frames / FPS, ""),),
        first=first,
        references={},
        speak=np.pad(speak, (0, frames * SAMPLES_PER_FRAME - len(speak))),
        listen=np.zeros(frames * SAMPLES_PER_FRAME, np.float32),
        truth=Recorded(path, frames),
    )
