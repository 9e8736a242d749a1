"""``python -m lpm_jax.bench WORD``, one of :data:`WORDS`: each is a module with a ``main(argv)``."""

from __future__ import annotations

import importlib
import sys

from lpm_jax.errors import InputError, run_door

#: What each word does; its module is imported only when it is asked for.
WORDS = {
    "run": "make a model's videos of a suite's cases and measure them, or measure a folder of videos",
    "cases": "write a suite's cases as JSON, sound and pictures",
    "check": "plant defects in true videos: do the instruments tell them?",
    "report": "one page of HTML from a run's folder",
    "compare": "two runs, case by case",
    "prefer": "would anybody tell two models apart? shares of better, indistinguishable and worse",
    "rate": "a local page on which people vote",
}


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if words[:1] in ([], ["-h"], ["--help"]):
        print("usage: python -m lpm_jax.bench WORD ..., with WORD one of")
        print("\n".join(f"  {word:8} {text}" for word, text in WORDS.items()))
        return 0
    if words[0] not in WORDS:
        raise InputError(f"bench: expected one of {', '.join(WORDS)}, found {words[0]!r}")
    module = "lpm_jax.bench." + ("write_cases" if words[0] == "cases" else words[0])
    return importlib.import_module(module).main(words[1:]) or 0


if __name__ == "__main__":
    run_door(main)
