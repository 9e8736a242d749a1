"""A game of turns with a peer in another process: how it is spoken to, and what is made of the times."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Protocol

import numpy as np

from lpm_jax.errors import InputError, one_line
from lpm_jax.progress import progress

PAUSE = 0.02  # seconds before a turn, in which the other side's threads go to sleep
NEEDS = "numpy, safetensors.torch, torch"
Turns = dict[str, list[dict]]  # by side and round: {"seconds": of each chunk, "cpu": the same[, "parts": by part]}


class Side(Protocol):
    def go(self) -> dict:
        """One turn."""


class Peer:
    """The other process. ``command`` starts it; it answers each line with one JSON object."""

    def __init__(self, command: list[str], environment: dict[str, str] | None = None):
        """Waits until it is ready: ``{"modes": [...], "failed": {mode: why}, "torch": version}``."""
        pipe, repository = subprocess.PIPE, Path(__file__).parents[1]
        self.process = subprocess.Popen(command, cwd=repository, env=environment, stdin=pipe, stdout=pipe, text=True)
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise

    def go(self, mode: str) -> dict:
        """One turn in ``mode``.

        Raises:
          RuntimeError: the peer has ended, or says something else.
        """
        with contextlib.suppress(BrokenPipeError):  # what it answers, or does not, says more
            self.process.stdin.write(f"go {mode}\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended with status {self.process.wait()}; its last words are above")
        try:
            found = json.loads(line)
        except ValueError:
            raise RuntimeError(f"the peer: expected JSON, found {line.strip()[:100]!r}") from None
        if "error" in found:
            raise RuntimeError(f"the peer: {found['error']}")
        return found

    def close(self) -> None:
        """The peer leaves when its input ends."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def find_torch(python: str) -> str:
    """The absolute path of an interpreter that the peer can run in.

    Raises:
      InputError: it cannot be run, or lacks what the peer needs.
    """
    expected = f"--torch-python {python}: expected a Python with torch, numpy and safetensors, found"
    path = shutil.which(python)
    if path is None:
        raise InputError(f"{expected} no program")
    path = os.path.abspath(path)  # noqa: PTH100  # as it is called: a virtual environment's is a link
    try:
        done = subprocess.run(
            [path, "-c", f"import {NEEDS}; print('all there')"], capture_output=True, text=True, timeout=300
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{expected} {one_line(error, 100)}") from None
    if done.returncode or done.stdout.strip() != "all there":
        last = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        raise InputError(f"{expected} {last[-1][:100]}")
    return path


def cores() -> int:
    """Cores that this process, and those it starts, may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_to(count: int) -> None:
    """Keeps this process and those it starts to ``count`` cores.

    Raises:
      InputError: there are fewer, or the system cannot do it.
    """
    there = cores()
    if not hasattr(os, "sched_setaffinity"):
        raise InputError(f"--cores {count}: expected a system that can keep a process to some cores, found none")
    if not 1 <= count <= there:
        raise InputError(f"--cores: expected 1 to {there}, found {count}")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def play(ours: Side, peer: Peer, rounds: int) -> Turns:
    """Turns of all sides, ``"ours"`` and the peer's modes, forth in one round and back in the next."""
    turns: Turns = {side: [] for side in ("ours", *peer.ready["modes"])}
    for i in progress(range(rounds), "rounds"):
        for side in list(turns)[:: -1 if i % 2 else 1]:
            time.sleep(PAUSE)
            turns[side].append(ours.go() if side == "ours" else peer.go(side))
    return turns


def summary(turns: Turns, chunk_seconds: float, by: str = "seconds") -> dict:
    """Milliseconds a chunk (median over all chunks of all rounds) and how the peer's modes compare with ours.

    ``result`` is the ratio of the peer's faster mode, ``peer``, by the clock (``"seconds"``) or the processor's time
    (``"cpu"``); ``ratio_within_rounds`` holds the quartiles of the clock's ratio of both sides' means in a round.
    """
    seconds, cpu = ({side: np.array([t[k] for t in x]) for side, x in turns.items()} for k in ("seconds", "cpu"))
    clock, busy = ({side: float(np.median(x)) for side, x in found.items()} for found in (seconds, cpu))
    modes = [side for side in turns if side != "ours"]
    ratio, cpu_ratio = ({mode: round(found[mode] / found["ours"], 3) for mode in modes} for found in (clock, busy))
    judged = cpu_ratio if by == "cpu" else ratio
    best = min(modes, key=judged.get)
    within = {mode: seconds[mode].mean(1) / seconds["ours"].mean(1) for mode in modes}

    def milliseconds(found: dict[str, float]) -> dict[str, float]:
        return {name: round(1000 * float(x), 2) for name, x in found.items()}

    def parts(rounds: list[dict]) -> dict[str, float]:
        return milliseconds({k: np.median([t["parts"][k] for t in rounds]) for k in rounds[0]["parts"]})

    return {
        "milliseconds": milliseconds(clock),
        "cpu_milliseconds": milliseconds(busy),
        "times_real_time": {side: round(chunk_seconds / x, 3) for side, x in clock.items()},
        "ratio": ratio,
        "ratio_within_rounds": {mode: np.percentile(x, [25, 50, 75]).round(3).tolist() for mode, x in within.items()},
        "cpu_ratio": cpu_ratio,
        "of": "processor's time" if by == "cpu" else "clock",
        "peer": best,
        "result": judged[best],
        "parts_milliseconds": {mode: parts(turns[mode]) for mode in modes},
        "rounds_milliseconds": {side: (1000 * x.mean(1)).round(1).tolist() for side, x in seconds.items()},
    }
