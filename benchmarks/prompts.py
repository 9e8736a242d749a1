"""Does a prompt do what it says? Share of the change that each prompt asks for, against the same stream without one.

    uv run python -m benchmarks.prompts --data runs/performers --model toy --out benchmarks/results

Characters of a data set's held-out split stand still, in silence, for two and a half seconds: once without a prompt,
once with each of ``ASKED``. What is read of the last second, less what is read without the prompt, over what the prompt
adds to the performer's parameters (``data_pipeline/performers/prompts.py``): 0 is nothing of it, and the ceiling, which
hair over brows lowers, the same of the character as it is drawn. The wordings are those of training, so that weights
may be chosen by it; LPM-Bench's generalisation cases have other words.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from benchmarks.clips import Clip, open_clips
from benchmarks.report import Row, table
from data_pipeline.performers.prompts import Prompt, pose
from data_pipeline.schema import FPS, PARAMS
from lpm_jax.bench.instruments.expressions import Expressions
from lpm_jax.bench.instruments.reader import Reader
from lpm_jax.checkpoint import write_json
from lpm_jax.environment import environment
from lpm_jax.errors import ArgumentParser, run_door
from lpm_jax.progress import progress

SECONDS, LAST = 2.5, 24  # of a stream; frames that are read
#: Prompts by their texts, with the reading that each changes and by how much. ``nod`` is a standard deviation, degrees.
ASKED = {
    "She smiles broadly.": (Prompt(emotion="happy", intensity=1.0), "smile", 0.95),
    "She looks very sad.": (Prompt(emotion="sad", intensity=1.0), "frown", 0.9),
    "She looks very angry.": (Prompt(emotion="angry", intensity=1.0), "brow_inner", -1.0),
    "He is very surprised.": (Prompt(emotion="surprised", intensity=1.0), "brow", 0.925),
    "She raises the eyebrows.": (Prompt(action="raise_brows"), "brow", 0.9),
    "She looks left.": (Prompt(action="look_left"), "gaze_x", -0.9),
    "She turns the head to the right.": (Prompt(action="turn_right"), "yaw", 22.0),
    "She tilts the head to the left.": (Prompt(action="tilt_left"), "roll", -10.0),
    "She closes the eyes.": (Prompt(action="close_eyes"), "eyes", -1.0),
    "She nods.": (Prompt(action="nod"), "nod", 10 / 8**0.5),
}

Perform = Callable[[Clip, str], UInt8[np.ndarray, "frames h w 3"]]


def readings(frames: UInt8[np.ndarray, "frames h w 3"], reader: Reader, expressions: Expressions) -> dict[str, float]:
    """What is seen of a stream's last second."""
    seen, faces = reader.read(frames[-LAST:]), expressions.read(frames[-LAST:])
    found = {name: float(np.mean(values)) for name, values in faces.items()}
    return found | {"eyes": float(np.mean(seen.eyes)), "nod": float(np.std(seen.pitch))}


def shares(perform: Perform, clips: Sequence[Clip], reader: Reader, expressions: Expressions) -> dict[str, list[float]]:
    """For each prompt, of each character, the share of the asked change."""
    without = [readings(perform(clip, ""), reader, expressions) for clip in progress(clips, "without a prompt")]
    found = {}
    for text, (_, name, asked) in ASKED.items():
        pairs = progress(list(zip(clips, without, strict=True)), text)
        found[text] = [(readings(perform(c, text), reader, expressions)[name] - w[name]) / asked for c, w in pairs]
    return found


def drawn(clip: Clip, text: str) -> UInt8[np.ndarray, "frames h w 3"]:
    """The character as it is drawn when it does what a prompt of ``ASKED`` says, and nothing else."""
    from data_pipeline.performers.character import Character
    from data_pipeline.performers.render import neutral_params, render

    still = np.repeat(neutral_params(), round(SECONDS * FPS), axis=0)
    params = dict(zip(PARAMS, still.T, strict=True))
    if text:
        pose(ASKED[text][0], params)
    return render(Character.from_json(json.dumps(clip.character)), np.stack([params[name] for name in PARAMS], 1))


def main() -> int:
    parser = ArgumentParser(prog="benchmarks.prompts", description="Share of what each prompt asks for that is seen.")
    parser.add_argument("--data", type=Path, required=True, help="a data set with a held-out split")
    parser.add_argument("--model", default="toy", help="bundled model or folder")
    parser.add_argument("--clips", type=int, default=8, help="characters")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--out", type=Path, help="folder for prompts.json")
    args = parser.parse_args()
    if args.clips < 2:
        parser.error(f"--clips: expected at least 2, found {args.clips}")
    clips = open_clips(args.data, "held_out", ("speak", "listen", "conversation"), args.clips)
    from lpm_jax.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(args.model, args.dtype)
    pipeline.warm_up()

    def perform(clip: Clip, text: str) -> UInt8[np.ndarray, "frames h w 3"]:
        return np.concatenate([x.frames for x in pipeline.stream(clip.reference, prompt=text, seconds=SECONDS)])

    instruments = Reader.load(), Expressions.load()
    found, truth = (shares(play, clips, *instruments) for play in (perform, drawn))
    means, ceiling = ({text: round(float(np.mean(x)), 3) for text, x in each.items()} for each in (found, truth))
    errors = {text: round(float(np.std(values, ddof=1) / len(values) ** 0.5), 3) for text, values in found.items()}
    print(table([Row(f"{text} (+- {errors[text]:.2f})", x, 0.0, ceiling[text]) for text, x in means.items()]))
    if args.out:
        name = Path(args.model).name
        command = f"python -m benchmarks.prompts --data DATA --model {name} --clips {args.clips} --dtype {args.dtype}"
        result = {"command": command} | environment() | {"shares": means, "standard errors": errors, "drawn": ceiling}
        write_json(args.out / "prompts.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(run_door(main))
