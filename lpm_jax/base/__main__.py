"""Offline video from a Base model: one picture and sound become an MP4 of any length.

python -m lpm_jax.base --model DIR --image me.png --speak a.wav --listen b.wav --prompt "smiles" --out talk.mp4

With several --prompt options each belongs to a segment (five seconds in the large models); the last goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import time

import numpy as np

from lpm_jax.errors import ArgumentParser, InputError, run_door
from lpm_jax.media import FPS, SAMPLE_RATE, Mp4Writer, check_output, check_prompt, load_audio
from lpm_jax.pictures import bucket, load_image, read_references
from lpm_jax.progress import Progress


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        "python -m lpm_jax.base", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="the folder of a model")
    add("--out", required=True, metavar="MP4")
    add("--image", required=True, metavar="FILE", help="the character's picture, which is the video's first frame")
    add("--speak", metavar="FILE", help="what the character says")
    add("--listen", metavar="FILE", help="what its partner says")
    add("--seconds", type=float, help="length of the video (default: that of the longer sound)")
    add("--prompt", action="append", help="how it behaves; repeat it for later segments")
    add("--negative", default="", help="what guidance leads away from (default: nothing)")
    add(
        "--reference",
        metavar="KIND=FILE",
        action="append",
        default=[],
        help="further pictures, such as view/left=a.png",
    )
    add("--seed", type=int, default=0)
    add("--resolution", help="480p, 720p (the shape follows the picture) or WIDTHxHEIGHT (default: the model's)")
    add("--steps", type=int, help="evaluations a segment")
    add("--shift", type=float, help="of the noise levels: 1 leaves them even, more spends steps on high noise")
    add("--text-scale", type=float, help="guidance by the prompt, 1 is none")
    add("--audio-scale", type=float, help="guidance by the sound, 1 is none")
    add("--segment", type=int, metavar="FRAMES", help="frames of a segment, 4 k + 1")
    add("--overlap", type=int, metavar="N", help="latent frames shared by neighbouring segments")
    add("--tail-level", type=float, help="noise that shared frames start from: 0 keeps them, 1 draws them anew")
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    logging.basicConfig(format="note: %(message)s", stream=sys.stdout)
    logging.getLogger("lpm_jax").setLevel(logging.INFO)
    out = check_output(args.out)
    prompts = [check_prompt(text) for text in args.prompt or [""]]
    speak, listen = (None if path is None else load_audio(path) for path in (args.speak, args.listen))
    load_image(args.image)  # refuse what is bad before the model is read
    references = read_references(args.reference)
    if args.seconds is not None and not 0.05 <= args.seconds <= 24 * 3600:
        raise InputError(f"--seconds: expected 0.05 to 86,400, found {args.seconds:g}")
    if args.seconds is None and speak is None and listen is None:
        raise InputError("--speak: expected a sound, --listen or --seconds, found none of them")
    size = bucket(args.image, args.resolution) if args.resolution else None

    from lpm_jax.base.video import Base  # JAX starts here
    from lpm_jax.compilation import keep_programs

    keep_programs()
    base = Base.from_pretrained(args.model)
    config = base.config
    if size is None and config.size >= 480:
        size = bucket(args.image, "480p")
    names = ("steps", "shift", "text_scale", "audio_scale", "segment", "overlap", "tail_level")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    frames = base.generate(
        args.image, speak, listen, prompts, args.negative, args.seed, references,
        seconds=args.seconds, size=size, sample=dataclasses.replace(config.sample, **given),
    )  # fmt: skip
    seconds = args.seconds or max(len(x) for x in (speak, listen) if x is not None) / SAMPLE_RATE
    sound = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    if speak is not None:
        sound[: len(speak)] = speak[: len(sound)]
    began = time.perf_counter()
    shape = size or config.pixels
    with Mp4Writer(out, shape, audio=sound, title=prompts[0]) as writer, Progress(writer.seconds) as progress:
        for part in frames:
            writer.write(part)
            progress.show(writer.written / FPS)
    took = time.perf_counter() - began
    height, width = shape
    print(f"{out}: {writer.seconds:.2f} s of {width} x {height} in {took:.1f} s, compilation included")


if __name__ == "__main__":
    run_door(main)
