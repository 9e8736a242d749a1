"""What is seen of a run: curves, a line every so many steps, where the time went, and which steps were skipped.

A step's metrics are device arrays. They set out for the host when the step is dispatched and are read
:data:`AHEAD` steps later, so that the device always has its next step waiting while the host looks at an earlier one;
a loss is never waited for. A metric is a number, or a pair ``[sum, count]`` where it is about a part of the batch that
may be empty. Names with a slash are whole (``gradient/dit``), others belong to ``train/``.
"""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.typing import ArrayLike

from lpm_jax.planning.chips import CHIPS
from lpm_jax.training.curves import Curves, Progress

AHEAD = 2  # steps that the host may be ahead of the device
SKIPS = 10  # in a row end the run
PAUSES = ("save", "validate")  # not part of a step's time
#: Parts of ``jax.devices()[0].device_kind``, in the order to try them, and the planner's name of the chip.
KINDS = {
    "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v6": "v6e", "TPU7x": "7x", "TPU v7": "7x",
    "H100": "h100", "H200": "h200", "B200": "b200",
}  # fmt: skip


def peak(kind: str) -> float | None:
    """Dense bfloat16 operations a second of a device of this kind; None where they are not known, as on CPU."""
    name = next((chip for part, chip in KINDS.items() if part in kind), None)
    return CHIPS[name].flops if name else None


class Clock:
    """Seconds of the loop's thread by what they went to, since they were last read.

    Parts: ``data`` (waiting for the loader), ``put`` (to the devices), ``dispatch``, ``device`` (waiting for an earlier
    step, which is as it should be), ``log``, ``save`` (until arrays are copied), ``validate``.
    """

    def __init__(self) -> None:
        self.since = time.perf_counter()
        self.parts: collections.defaultdict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        before = time.perf_counter()
        try:
            yield
        finally:
            self.parts[part] += time.perf_counter() - before

    def read(self) -> tuple[float, collections.defaultdict[str, float]]:
        """Seconds since the last reading, and their parts; starts anew."""
        seconds, parts = time.perf_counter() - self.since, self.parts
        self.since, self.parts = time.perf_counter(), collections.defaultdict(float)
        return seconds, parts


class Means:
    """Means over the steps of a window. What is not finite is left out: it belongs to a step that was skipped."""

    def __init__(self) -> None:
        self.steps = 0
        self.sums: dict[str, np.ndarray] = {}

    def add(self, values: dict[str, ArrayLike]) -> None:
        self.steps += 1
        for name, value in values.items():
            pair = np.asarray(value, np.float64) if np.ndim(value) else np.array([value, 1.0])
            if np.isfinite(pair).all():
                self.sums[name] = self.sums.get(name, np.zeros(2)) + pair

    def read(self) -> tuple[int, dict[str, float]]:
        """The number of steps and the means; starts anew."""
        steps, means = self.steps, {k: float(s / n) for k, (s, n) in self.sums.items() if n}
        self.steps, self.sums = 0, {}
        return steps, means


class Observer:
    """Takes every step's metrics and tells of them.

    ``flops`` are those of one step of the whole run, 0 where they are not known. ``last_saved`` names the checkpoint
    that a run which stops for skipped steps can be continued from.
    """

    def __init__(self, name: str, directory: Path, start: int, total: int, every: int, flops: float):
        self.name, self.total, self.every, self.flops = name, total, every, flops
        self.clock = Clock()
        self.means = Means()
        self.waiting: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self.skipped, self.in_a_row = 0, 0
        self.last_saved: int | None = start or None
        self.progress = Progress(name, start, total) if jax.process_index() == 0 else None
        self.curves = Curves(directory, start) if jax.process_index() == 0 else None

    def step(self, at: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step that was just dispatched, and tells of one dispatched earlier.

        Raises FloatingPointError when :data:`SKIPS` steps in a row were skipped: in every process, at the same step.
        """
        for value in metrics.values():
            value.copy_to_host_async()
        self.waiting.append((at, metrics))
        while len(self.waiting) > AHEAD:
            self._read()

    def flush(self) -> None:
        """Tells of every step so far, waiting for the device: before a save, a validation and the end."""
        while self.waiting:
            self._read()

    def _read(self) -> None:
        at, metrics = self.waiting.popleft()
        with self.clock("device"):
            values = {name: np.asarray(value) for name, value in metrics.items()}
        with self.clock("log"):
            self._count_skips(at, values)
            self.means.add(values)
            if at % self.every == 0 or at == self.total:
                self._tell(at)

    def _count_skips(self, at: int, values: dict[str, np.ndarray]) -> None:
        """A skipped step says so; a loss that is not finite counts as one."""
        if not values.pop("skipped", 0) and np.isfinite(values["loss"]):
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        self.say(f"step {at} skipped: its loss or gradients are not finite ({self.skipped} so far)")
        if self.in_a_row == SKIPS:
            saved = f"the last checkpoint is step {self.last_saved}" if self.last_saved else "there is no checkpoint"
            raise FloatingPointError(
                f"{self.name}: loss or gradients are not finite in {SKIPS} steps in a row up to step {at}; {saved}"
            )

    def _tell(self, at: int) -> None:
        """Read when a step is done, the clock tells of steps that are done."""
        steps, means = self.means.read()
        seconds, parts = self.clock.read()
        each = max(seconds - sum(parts[name] for name in PAUSES), 1e-9) / max(steps, 1)
        means |= {"speed/seconds_per_step": each, "speed/steps_per_second": 1 / each}
        means |= {f"speed/{'data_wait' if name == 'data' else name}": parts[name] / seconds
                  for name in ("data", "put", "dispatch", "device", "log", "save", "validate")}  # fmt: skip
        if self.flops:
            speed = self.flops / each / jax.device_count()
            means["speed/tflops"] = speed / 1e12
            best = peak(jax.devices()[0].device_kind)
            means |= {"speed/mfu": speed / best} if best else {}
        if self.skipped:
            means["skipped"] = float(self.skipped)
        if self.curves:
            self.curves.scalars(at, means)
            self.progress.show(at, means)

    def validated(self, at: int, scores: dict[str, float], directory: Path) -> None:
        """Tells of a validation's scores, and shows what it drew into ``directory``."""
        if self.curves:
            self.curves.validation(at, scores, directory)
        self.say(f"step {at} validation: " + "  ".join(f"{k} {v:.4g}" for k, v in scores.items()))

    def knows_validation(self, at: int) -> bool:
        """Whether the curves of an earlier part of this run hold a validation of that step; never but in process 0."""
        return self.curves is not None and at in self.curves.validations

    def say(self, text: str) -> None:
        """A line on the terminal, from process 0."""
        if self.progress:
            self.progress.note(text)

    def close(self) -> None:
        if self.curves:
            self.progress.close()
            self.curves.close()
