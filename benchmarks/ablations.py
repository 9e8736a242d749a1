"""How a student streams, one thing changed at a time: LPM-Bench of each way, one table.

    uv run python -m benchmarks.ablations --model toy --out runs/ablations

Nothing is trained anew: a student is asked to stream otherwise than it was taught to, so a way that does worse may
still be the better one to train for. What is there already is kept (``lpm_jax.bench run``), so a stopped run goes on
with the same command.

Sink and window count in chunks. With chunks of one latent frame they are as long as before; with longer chunks they are
longer too, since neither can be less than one chunk. A larger sink also shows the first frame for longer.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lpm_jax.bench import run as bench
from lpm_jax.checkpoint import write_json
from lpm_jax.config import StreamConfig
from lpm_jax.environment import environment
from lpm_jax.errors import ArgumentParser, InputError, run_door
from lpm_jax.options import changes
from lpm_jax.pretrained import locate, read_config

SHOWN = (
    "lip_r", "lip_amplitude", "bilabial_f1", "sync_c", "nod_f1", "listen_r", "identity_auc", "frechet_picture",
    "frechet_motion", "motion_amount", "sharpness", "flicker", "drift", "seam",
)  # fmt: skip


def ways(taught: StreamConfig) -> dict[str, tuple[str, ...]]:
    """What ``--stream`` is given for each way that is not ``taught``'s own."""
    n = taught.chunk
    found = {
        "as it was taught": (),
        "one evaluation": ("levels=1",),
        "two evaluations": ("levels=1,0.5",),
        "four evaluations": ("levels=1,0.75,0.5,0.25",),
        "last history": ("history=last",),
        "clean history": ("history=clean",),
        "history of each": ("history=each",),
        "chunks of 1": ("chunk=1", f"sink={taught.sink * n}", f"window={taught.window * n}"),
        "chunks of 3": ("chunk=3",),
        "chunks of 6": ("chunk=6",),
        "no sink": ("sink=0",),
        "sink of 1": ("sink=1",),
        "sink of 3": ("sink=3",),
    }
    return {name: words for name, words in found.items() if not words or streams(taught, words) != taught}


def streams(taught: StreamConfig, words: Sequence[str]) -> StreamConfig:
    return dataclasses.replace(taught, **changes(StreamConfig, list(words), "--stream"))


def passes(stream: StreamConfig) -> float:
    """Of the Backbone through its transformer, per second of video (six latent frames)."""
    return (len(stream.levels) + (stream.history == "clean")) * 6 / stream.chunk


def share(first: Path, folder: Path) -> None:
    """Cases and true videos are the same for all ways: those of ``first`` stand in ``folder`` too."""
    if folder == first:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("cases", "truth"):
        (first / name).mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            (folder / name).symlink_to((first / name).resolve(), target_is_directory=True)


def result(folder: Path, name: str, taught: StreamConfig, words: Sequence[str]) -> dict[str, Any]:
    """What a way's run has measured."""
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    figures = {key: metric["result"] for key, metric in metrics.items()}
    return {"way": name, "stream": list(words), "passes": passes(streams(taught, words)), "figures": figures}


def slug(name: str) -> str:
    return name.replace(" ", "_")


def table(found: Sequence[dict[str, Any]]) -> str:
    """A column for each way, a row for each figure that all have."""
    names = [name for name in SHOWN if all(name in way["figures"] for way in found)]
    lines = [["", *[way["way"] for way in found]], ["---"] * (len(found) + 1)]
    lines += [["passes a second of video", *[f"{way['passes']:g}" for way in found]]]
    lines += [[name.replace("_", " "), *[f"{way['figures'][name]['value']:.3f}" for way in found]] for name in names]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = ArgumentParser(prog="benchmarks.ablations", description="LPM-Bench of other ways to stream.")
    parser.add_argument("--model", default="toy", help="bundled model or folder")
    parser.add_argument("--suite", default="small", help="of LPM-Bench")
    parser.add_argument("--only", nargs="+", metavar="WAY", help='some ways, such as "one evaluation" "no sink"')
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and ablations.json")
    args = parser.parse_args()
    taught, found = read_config(locate(args.model)).stream, []
    every = ways(taught)
    for name in args.only or ():
        if name not in every:
            raise InputError(f"--only: expected some of {'; '.join(every)}, found {name!r}")
    first = args.out / slug(next(iter(every)))
    for name in every:
        folder = args.out / slug(name)
        if args.only and name not in args.only:
            if (folder / "results.json").exists():  # of an earlier command: still in the table
                found.append(result(folder, name, taught, every[name]))
            continue
        share(first, folder)
        words = [word for change in every[name] for word in ("--stream", change)]
        bench.main(["--model", args.model, "--suite", args.suite, "--out", str(folder), *words])
        found.append(result(folder, name, taught, every[name]))
    command = f"python -m benchmarks.ablations --model {Path(args.model).name} --suite {args.suite}"
    write_json(args.out / "ablations.json", {"command": command} | environment("av") | {"ways": found})
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(run_door(main))
