"""Traces of a few steps for XProf, at a step named beforehand or when a signal asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

STEPS = 3


class Profiler:
    """Traces :data:`STEPS` steps into ``directory``, one folder a trace; ``say`` is told where.

    A trace begins and ends with an idle device, so that it holds those steps and nothing else.
    """

    def __init__(self, directory: Path, at: int, say: Callable[[str], None]):
        self.directory, self.at, self.say = directory, at, say
        self.first: int | None = None  # step of the running trace that began it
        self.done = 0
        if jax.process_index():
            self.at = 0  # one process is like the others; a signal to it traces it all the same
            self.directory = directory.with_name(f"{directory.name}-process-{jax.process_index()}")

    def before(self, at: int, asked: bool, state: Any) -> None:
        """To be called before step ``at`` is dispatched; ``state`` is what it will start from."""
        if self.first is None and (asked or at == self.at):
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self.directory / f"{at:06d}"))
            self.first = at

    def after(self, at: int, state: Any) -> None:
        """To be called after step ``at`` was dispatched, with the state that it makes."""
        self.done = at
        if self.first is not None and at == self.first + STEPS - 1:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Ends a running trace."""
        if self.first is not None:
            jax.profiler.stop_trace()
            where = self.directory / f"{self.first:06d}"
            self.say(f"steps {self.first} to {self.done} traced: xprof --logdir {where}")
            self.first = None
