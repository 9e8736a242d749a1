"""``python -m data_pipeline.performers --out DIR --clips N --seed S``: render a data set of synthetic performers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.performers", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set (made if missing)")
    parser.add_argument("--clips", type=int, required=True, help="number of training clips")
    parser.add_argument("--held-out", type=int, default=0, help="clips of held-out characters, voices and scripts")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same clips (default 0)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a clip (default 4)")
    parser.add_argument("--from-rest", action="store_true", help="clips ease into what their prompts ask for")
    parser.add_argument("--workers", type=int, default=2, help="processes that render (default 2)")
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet of the first clips to this PNG")
    return parser


def _problem(args: argparse.Namespace) -> str | None:
    for name, low in (("clips", 1), ("held_out", 0), ("seed", 0), ("workers", 1)):
        if getattr(args, name) < low:
            return f"--{name.replace('_', '-')}: expected at least {low}, found {getattr(args, name)}"
    if not 0.2 <= args.seconds <= 600:
        return f"--seconds: expected 0.2 to 600, found {args.seconds:g}"
    if args.out.exists() and not args.out.is_dir():
        return f"--out: expected a folder, found the file {args.out}"
    if args.sheet and args.sheet.suffix.lower() != ".png":
        return f"--sheet: expected a name that ends in .png, found {args.sheet}"
    return None


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, 2 for a bad option, 1 for a failure."""
    args = _parser().parse_args(argv)
    problem = _problem(args)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    try:
        import cv2
        import espeakng_loader  # noqa: F401
    except ImportError as error:
        print(f"rendering performers needs the 'data' extra ({error.name}): uv sync --extra data", file=sys.stderr)
        return 1
    from data_pipeline.performers.builder import build, contact_sheet, open_split

    try:
        target = build(args.out, args.clips, args.held_out, args.seed, args.seconds, args.workers, args.from_rest)
        if args.sheet:
            source = open_split(args.out)
            sheet = contact_sheet([source[i] for i in range(min(12, len(source)))])
            args.sheet.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(args.sheet), sheet[..., ::-1])
    except FileExistsError as error:
        print(f"--out: {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError, RuntimeError) as error:
        print(f"rendering failed: {error}".splitlines()[0], file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 1
    print(f"{args.clips} training and {args.held_out} held-out clips in {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
