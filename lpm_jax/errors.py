"""Errors a user caused, and how the command-line doors report them.

Exit status: 0 done, 2 bad input, 1 any other failure, 75 stopped by a signal and saved (the same command goes on), 130
interrupted from the keyboard. Either way one line on stderr; ``LPM_DEBUG=1`` in the environment adds the traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

PAUSED = 75  # EX_TEMPFAIL: "temporary failure; the user is invited to retry"


class InputError(ValueError):
    """Bad input. The message is one line: the file or option, what was expected and what was found."""


class Paused(Exception):
    """Work that was asked to stop, saved itself and goes on when the same command is given again."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose complaints are one line: no usage block in front of the error."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of ``error`` without line breaks, cut after ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def run_door(main: Callable[[], int | None]) -> NoReturn:
    """Run the ``main`` of a command-line door and leave the process with the right exit status."""
    door = Path(sys.argv[0]).name
    try:
        status = main() or 0
    except InputError as error:
        _debug()
        print(f"{door}: error: {one_line(error)}", file=sys.stderr)
        status = 2
    except Paused as pause:
        print(f"{door}: {one_line(pause)}", file=sys.stderr)
        status = PAUSED
    except KeyboardInterrupt:
        print(f"{door}: interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader of our output has gone, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except Exception as error:
        _debug()
        hint = "" if _debugging() else " (LPM_DEBUG=1 shows where)"
        print(f"{door}: failed: {type(error).__name__}: {one_line(error)}{hint}", file=sys.stderr)
        status = 1
    sys.exit(status)


def _debugging() -> bool:
    return os.environ.get("LPM_DEBUG", "") not in ("", "0")


def _debug() -> None:
    if _debugging():
        traceback.print_exc()
