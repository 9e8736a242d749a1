"""A character that speaks, listens and idles: live on a local page, or into an MP4.

uv run serve.py                                                      the page, http://127.0.0.1:8000
uv run serve.py --out talk.mp4 --image me.png --speak a.wav --listen b.wav --prompt "smiles, nods" --seed 0
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.schema import REFERENCES
from lpm_jax.config import Config
from lpm_jax.errors import ArgumentParser, InputError, run_door
from lpm_jax.media import FPS, SAMPLE_RATE, Mp4Writer, check_output, check_prompt, load_audio
from lpm_jax.options import from_dict, parse_mesh
from lpm_jax.pictures import load_image, read_references
from lpm_jax.progress import Progress
from lpm_jax.serving.library import ASSETS, YOURS, Library

LISTEN_LEVEL = 0.4  # of the partner's voice under --mix-listen


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("serve.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", metavar="MP4", help="write this file instead of serving the page")
    add("--image", metavar="FILE", help="the character's picture (default: the first bundled character)")
    add("--speak", metavar="FILE", help="what the character says: wav, mp3, flac, ogg, m4a (default: a bundled sample)")
    add("--listen", metavar="FILE", help="what its partner says; alone, the character only listens")
    add("--prompt", default="", help="how it behaves, at most 2,000 characters")
    add("--seed", type=int, default=0)
    add("--model", default="toy", help="'toy' or the folder of a checkpoint")
    add(
        "--reference",
        metavar="KIND=FILE",
        action="append",
        default=[],
        help=f"more pictures: {', '.join(REFERENCES[1:])}",
    )
    add("--steps", type=int, metavar="N", help="denoising steps per chunk (default: what the model was trained for)")
    add("--dtype", choices=("float32", "bfloat16"), help="of the computation (default: what is fast here)")
    add("--weights", choices=("int8", "float8"), default="", help="keep the transformer's weights in 8 bits")
    add("--cache", choices=("int8", "float8"), default="", help="keep its cache of keys and values in 8 bits")
    add("--chunk", type=int, metavar="N", help="latent frames of a chunk, 4 video frames each (default: the model's)")
    add("--mesh", metavar="AXIS=N", default="", help="cut the transformer over N devices: tensor=4, or context, ring")
    add("--decoder", type=int, default=0, metavar="N", help="devices of the VAE's own, beside those")
    add("--mix-listen", action="store_true", help="let the partner be heard, quietly, in the file")
    add("--silent-seconds", type=float, metavar="S", help="an idle video of S seconds, without speech")
    add("--host", default="127.0.0.1", help="address of the page; other machines may only come in if you change it")
    add("--port", type=int, default=8000)
    add("--sessions", type=int, default=1, metavar="N", help="conversations at a time (default 1)")
    add(
        "--together",
        action="store_true",
        help="compute their chunks in one program, those that wait at the same time as one batch",
    )
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    logging.basicConfig(format="note: %(message)s", stream=sys.stdout)
    logging.getLogger("lpm_jax").setLevel(logging.INFO)
    args.prompt = check_prompt(args.prompt)
    if args.model != "toy" and not Path(args.model).is_dir():
        raise InputError(f"--model: expected 'toy' or the folder of a checkpoint, found {args.model!r}")
    if not 0 <= args.seed < 2**31:
        raise InputError(f"--seed: expected 0 to {2**31 - 1}, found {args.seed}")
    if not 1 <= args.sessions <= 64:
        raise InputError(f"--sessions: expected 1 to 64, found {args.sessions}")
    if args.together and (args.mesh or args.decoder):
        raise InputError("--together: expected on one device, found --mesh or --decoder beside it")
    if args.together and args.out is not None:
        raise InputError("--together: expected without --out, found beside it")
    if args.chunk is not None and not 1 <= args.chunk <= 24:
        raise InputError(f"--chunk: expected 1 to 24, found {args.chunk}")
    args.mesh = parse_mesh(args.mesh) if args.mesh else None
    if args.steps is not None and not 1 <= args.steps <= 100:
        raise InputError(f"--steps: expected 1 to 100, found {args.steps}")
    size = picture_size(args.model)
    references = {kind: load_image(path, size) for kind, path in read_references(args.reference).items()}
    if args.out is None:
        live(args, references, size)
    else:
        to_file(args, references, size)


def picture_size(model: str) -> tuple[int, int]:
    """Height and width of a model's frames, before JAX starts. A config that cannot be read is complained of later."""
    folder = Path(model) if Path(model).is_dir() else ASSETS / model
    try:
        return from_dict(json.loads((folder / "config.json").read_text())).pixels
    except (OSError, ValueError):  # InputError too
        return Config("").pixels


def tracks(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray | None]:
    """What is said and what is heard, equally long, at 24 kHz."""
    if args.silent_seconds is not None:
        if args.speak is not None or args.listen is not None:
            raise InputError("--silent-seconds: expected without --speak and --listen, found beside them")
        if not 0.05 <= args.silent_seconds <= 24 * 3600:
            raise InputError(f"--silent-seconds: expected 0.05 to 86,400, found {args.silent_seconds:g}")
        return np.broadcast_to(np.float32(0), round(args.silent_seconds * SAMPLE_RATE)), None  # a day takes no memory
    listen = load_audio(args.listen) if args.listen is not None else None
    if args.speak is not None or listen is None:
        speak = load_audio(Library().first_sample() if args.speak is None else args.speak)
    else:
        speak = np.zeros(len(listen), np.float32)
    length = max(len(speak), 0 if listen is None else len(listen))
    speak = np.pad(speak, (0, length - len(speak)))
    return speak, None if listen is None else np.pad(listen, (0, length - len(listen)))


def load_pipeline(args: argparse.Namespace) -> Any:
    from lpm_jax import Pipeline  # JAX starts here, after every input was checked
    from lpm_jax.compilation import keep_programs

    keep_programs()
    changes = {"weights": args.weights, "cache": args.cache, "chunk": args.chunk}
    changes = {name: value for name, value in changes.items() if value}
    slots = args.sessions if args.together else 0
    return Pipeline.from_pretrained(args.model, args.dtype, changes, args.mesh, args.decoder, slots)


def to_file(args: argparse.Namespace, references: dict[str, np.ndarray], size: tuple[int, int]) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ^C: what is half-written goes
    out = check_output(args.out)
    image = load_image(Library().first_character() if args.image is None else args.image, size)
    speak, listen = tracks(args)
    sound = speak if listen is None or not args.mix_listen else np.clip(speak + LISTEN_LEVEL * listen, -1, 1)

    pipe = load_pipeline(args)
    if (pipe.fps, pipe.sample_rate) != (FPS, SAMPLE_RATE):
        raise InputError(f"--model: expected {FPS} fps and {SAMPLE_RATE} Hz, found {pipe.fps} and {pipe.sample_rate}")
    print("compiling ...", flush=True)
    pipe.warm_up()
    print(f"compiled in {pipe.compile_seconds:.1f} s", flush=True)

    first = None
    with Mp4Writer(out, pipe.size, pipe.fps, pipe.sample_rate, audio=sound, title=args.prompt) as writer:
        began = time.perf_counter()
        said = (speak, listen) if args.silent_seconds is None else (None, None)
        chunks = pipe.stream(
            image, *said, args.prompt, args.seed, references, seconds=args.silent_seconds,
            num_inference_steps=args.steps,
        )  # fmt: skip
        with Progress(writer.seconds) as progress:
            for chunk in chunks:
                first = first or time.perf_counter() - began
                writer.write(chunk.frames)
                progress.show(writer.written / writer.fps)
                if writer.written == writer.total:
                    break
        took = time.perf_counter() - began
    print(f"time to first frame: {first or 0:.2f} s")
    print(f"real-time factor after compilation: {writer.seconds / took:.1f}x real time")
    print(
        f"{out}: {writer.seconds:.2f} s, {writer.total} frames at {writer.fps} fps, {out.stat().st_size / 1e6:.1f} MB"
    )


def live(args: argparse.Namespace, references: dict[str, np.ndarray], size: tuple[int, int]) -> None:
    only_files = {"listen": args.listen, "silent-seconds": args.silent_seconds, "steps": args.steps}
    only_files |= {"mix-listen": args.mix_listen or None, "reference": references or None}
    for name, given in only_files.items():
        if given is not None:
            raise InputError(f"--{name}: expected together with --out, found without it")
    from lpm_jax.local import bind

    listener = bind(args.host, args.port)
    library = Library()
    defaults: dict[str, Any] = {"prompt": args.prompt, "seed": args.seed}
    if args.image is not None:
        library.images[YOURS] = load_image(args.image, size)
        defaults["character"] = YOURS
    else:
        library.first_character()
    if args.speak is not None:
        library.speech[YOURS] = load_audio(args.speak)

    from lpm_jax.serving.live import serve  # the web server, and JAX in its own thread

    serve(lambda: load_pipeline(args), listener, args.host, library, defaults, args.sessions, size)


if __name__ == "__main__":
    run_door(main)
