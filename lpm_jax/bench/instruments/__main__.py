"""``python -m lpm_jax.bench.instruments reader | expressions | sync | identity``: train one and measure it."""

from __future__ import annotations

import importlib
import sys

from lpm_jax.errors import InputError, run_door

NAMES = {"reader": "train_reader", "expressions": "expressions", "sync": "sync", "identity": "identity"}


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] not in NAMES:
        found = repr(words[0]) if words else "nothing"
        raise InputError(f"instruments: expected one of {', '.join(NAMES)}, found {found}")
    return importlib.import_module(f"lpm_jax.bench.instruments.{NAMES[words[0]]}").main(words[1:])


if __name__ == "__main__":
    run_door(main)
