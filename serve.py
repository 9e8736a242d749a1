"""A character that speaks, listens and idles: live on a local page, or into an MP4.

uv run serve.py                                                      the page, http://127.0.0.1:8000
uv run serve.py --out talk.mp4 --image me.png --speak a.wav --listen b.wav --prompt "smiles, nods" --seed 0
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from lpm_jax.errors import ArgumentParser, InputError, run_door
from lpm_jax.media import FPS, SAMPLE_RATE, Mp4Writer, check_output, check_prompt, load_audio, load_image
from lpm_jax.serving.library import Library

SIZE = 128  # side of the bundled model's frames; larger models scale what they are given
VIEWS = ("front", "left", "right", "back")
EXPRESSIONS = ("neutral", "happy", "sad", "angry", "surprised", "afraid", "disgusted", "thinking")
REFERENCES = (*(f"view/{v}" for v in VIEWS), *(f"expression/{e}" for e in EXPRESSIONS))
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
    add("--reference", metavar="KIND=FILE", action="append", default=[], help=f"more pictures: {', '.join(REFERENCES)}")
    add("--steps", type=int, metavar="N", help="denoising steps per chunk (default: what the model was trained for)")
    add("--mix-listen", action="store_true", help="let the partner be heard, quietly, in the file")
    add("--silent-seconds", type=float, metavar="S", help="an idle video of S seconds, without speech")
    add("--host", default="127.0.0.1", help="address of the page; other machines may only come in if you change it")
    add("--port", type=int, default=8000)
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    logging.basicConfig(format="serve.py: note: %(message)s", level=logging.WARNING)
    logging.getLogger("lpm_jax.media").setLevel(logging.INFO)
    args.prompt = check_prompt(args.prompt)
    if args.model != "toy" and not Path(args.model).is_dir():
        raise InputError(f"--model: expected 'toy' or the folder of a checkpoint, found {args.model!r}")
    if not 0 <= args.seed < 2**31:
        raise InputError(f"--seed: expected 0 to {2**31 - 1}, found {args.seed}")
    if args.steps is not None and not 1 <= args.steps <= 100:
        raise InputError(f"--steps: expected 1 to 100, found {args.steps}")
    references = [reference(text) for text in args.reference]
    if args.out is None:
        live(args, references)
    else:
        to_file(args, references)


def reference(text: str) -> tuple[str, np.ndarray]:
    """``view/left=me-left.png`` as the kind and its picture."""
    kind, _, path = text.partition("=")
    if kind not in REFERENCES or not path:
        raise InputError(f"--reference: expected KIND=FILE with KIND one of {', '.join(REFERENCES)}, found {text!r}")
    return kind, load_image(path, SIZE)


def tracks(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray | None]:
    """What is said and what is heard, equally long, at 24 kHz."""
    if args.silent_seconds is not None:
        if args.speak or args.listen:
            raise InputError("--silent-seconds: expected without --speak and --listen, found beside them")
        if not 0.05 <= args.silent_seconds <= 24 * 3600:
            raise InputError(f"--silent-seconds: expected 0.05 to 86,400, found {args.silent_seconds:g}")
        return np.zeros(round(args.silent_seconds * SAMPLE_RATE), np.float32), None
    listen = load_audio(args.listen) if args.listen else None
    if args.speak or listen is None:
        speak = load_audio(args.speak or Library().first_sample())
    else:
        speak = np.zeros(len(listen), np.float32)
    length = max(len(speak), 0 if listen is None else len(listen))
    speak = np.pad(speak, (0, length - len(speak)))
    return speak, None if listen is None else np.pad(listen, (0, length - len(listen)))


def load_pipeline(model: str) -> Any:
    from lpm_jax import Pipeline  # JAX starts here, after every input was checked

    return Pipeline.from_pretrained(model)


def to_file(args: argparse.Namespace, references: list[tuple[str, np.ndarray]]) -> None:
    out = check_output(args.out)
    image = load_image(args.image or Library().first_character(), SIZE)
    speak, listen = tracks(args)
    sound = speak if listen is None or not args.mix_listen else np.clip(speak + LISTEN_LEVEL * listen, -1, 1)

    pipe = load_pipeline(args.model)
    if (pipe.fps, pipe.sample_rate) != (FPS, SAMPLE_RATE):
        raise InputError(f"--model: expected {FPS} fps and {SAMPLE_RATE} Hz, found {pipe.fps} and {pipe.sample_rate}")
    print("compiling ...", flush=True)
    pipe.warm_up()
    print(f"compiled in {pipe.compile_seconds:.1f} s", flush=True)

    first = None
    with Mp4Writer(out, pipe.size, pipe.fps, pipe.sample_rate, audio=sound, title=args.prompt) as writer:
        began = time.perf_counter()
        chunks = pipe.stream(
            image, speak, listen, args.prompt, args.seed, references, num_inference_steps=args.steps, chunk_size=None
        )
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


class Progress:
    """Seconds done of seconds in all: a bar on a terminal, a plain line every 5 s elsewhere."""

    def __init__(self, total: float) -> None:
        self.total, self.began, self.shown, self.bar = total, time.monotonic(), time.monotonic(), None
        if sys.stderr.isatty():
            from tqdm import tqdm

            form = "{percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} s of video, {remaining} left"
            self.bar = tqdm(total=total, bar_format=form)

    def show(self, done: float) -> None:
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
        elif now - self.shown > 5 and done:
            left = (now - self.began) * (self.total / done - 1)
            self.shown = now
            print(f"{done:.1f} of {self.total:.1f} s ({done / self.total:.0%}), {left:.0f} s left", flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, or ``InputError``."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port: expected 0 to 65535, found {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(64)
    except (OSError, UnicodeError) as error:
        if isinstance(error, socket.gaierror | UnicodeError):
            raise InputError(f"--host: expected an address of this machine, found {host!r}") from None
        raise InputError(f"--port: expected a free port, found {host}:{port}: {error.strerror}") from None
    return listener


def live(args: argparse.Namespace, references: list[tuple[str, np.ndarray]]) -> None:
    for name, given in {"listen": args.listen, "mix-listen": args.mix_listen, "silent-seconds": args.silent_seconds,
                        "steps": args.steps, "reference": references}.items():  # fmt: skip
        if given:
            raise InputError(f"--{name}: expected together with --out, found without it")
    listener = bind(args.host, args.port)
    library = Library()
    defaults: dict[str, Any] = {"prompt": args.prompt, "seed": args.seed}
    if args.image:
        library.images["yours"] = load_image(args.image, SIZE)
        defaults["character"] = "yours"
    else:
        library.first_character()
    if args.speak:
        library.speech["yours"] = load_audio(args.speak)

    from lpm_jax.serving.live import serve  # the web server, and JAX in its own thread

    serve(lambda: load_pipeline(args.model), listener, args.host, library, defaults)


if __name__ == "__main__":
    run_door(main)
