"""Are voices and faces learnt by heart? Characters of one split with the speech of another.

    uv run python -m benchmarks.voices --data runs/performers --model toy

A clip's lips against what its sound asks for, mean and standard error of ``--clips`` correlations: training characters
and held-out ones, each with speech of the training split and of the held-out one, never their own. A model that loses
with held-out characters has learnt faces by heart, one that loses with held-out sound, voices. The data set is the one
it was trained on, so weights and settings may be chosen by this, unlike by ``benchmarks/toy.py`` and LPM-Bench.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from benchmarks.clips import open_clips
from benchmarks.report import Row, table
from benchmarks.toy import Perform, Streamer, play_truth
from lpm_jax.bench import signals
from lpm_jax.bench.instruments.reader import Reader
from lpm_jax.checkpoint import write_json
from lpm_jax.environment import environment
from lpm_jax.errors import ArgumentParser, run_door
from lpm_jax.progress import progress

SPLITS = {"train": "training", "held_out": "held-out"}
KINDS = ("speak", "conversation")


def cross(perform: Perform, clips: dict[str, list], reader: Reader) -> list[dict]:
    """Correlations of lips with what each clip's sound asks for, for each split of faces and of sounds."""
    found = []
    for faces, sounds in ((a, b) for b in clips for a in clips):
        heard = clips[sounds][1:] + clips[sounds][:1]  # never a character's own clip
        pairs = [them._replace(reference=who.reference) for who, them in zip(clips[faces], heard, strict=True)]
        values, ceiling = [], []
        for clip in progress(pairs, f"{SPLITS[faces]} characters, {SPLITS[sounds]} sound"):
            truth = clip.truth("aperture")
            values.append(signals.correlation(reader.read(perform(clip, clip)).aperture, truth))
            ceiling.append(signals.correlation(reader.read(clip.frames).aperture, truth))
        error = float(np.std(values, ddof=1) / len(values) ** 0.5)
        each = {"faces": faces, "sounds": sounds, "error": round(error, 4)}
        found.append(each | {"r": round(float(np.mean(values)), 4), "true": round(float(np.mean(ceiling)), 4)})
    return found


def main() -> int:
    parser = ArgumentParser(prog="benchmarks.voices", description="Characters of one split with speech of another.")
    parser.add_argument("--data", type=Path, required=True, help="the data set that the model was trained on")
    parser.add_argument("--model", default="toy", help='bundled model, folder, or "truth" for the true video')
    parser.add_argument("--clips", type=int, default=16, help="of each split")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--out", type=Path, help="folder for voices.json")
    args = parser.parse_args()
    if args.clips < 2:
        parser.error(f"--clips: expected at least 2, found {args.clips}")
    clips = {split: open_clips(args.data, split, KINDS, args.clips) for split in SPLITS}
    perform: Perform = play_truth
    if args.model != "truth":
        from lpm_jax.pipeline import Pipeline

        pipeline = Pipeline.from_pretrained(args.model, args.dtype)
        pipeline.warm_up()
        perform = Streamer(pipeline)
    found = cross(perform, clips, Reader.load())
    names = [f"{SPLITS[x['faces']]} characters, {SPLITS[x['sounds']]} sound (+- {x['error']:.2f})" for x in found]
    print(table([Row(name, x["r"], ceiling=x["true"]) for name, x in zip(names, found, strict=True)]))
    if args.out:
        name = Path(args.model).name
        command = f"python -m benchmarks.voices --data DATA --model {name} --clips {args.clips} --dtype {args.dtype}"
        write_json(args.out / "voices.json", {"command": command} | environment() | {"lips": found})
    return 0


if __name__ == "__main__":
    sys.exit(run_door(main))
