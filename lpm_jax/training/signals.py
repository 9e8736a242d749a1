"""What a run does about signals: SIGTERM and SIGINT ask it to stop, SIGUSR1 asks for a trace.

The handler only takes a note, which the loop reads between two steps: a checkpoint is never half a step old. A second
request to stop is obeyed at once, as without a handler. One that follows within moments is the same request by another
way: Slurm signals every process of a step, and ``uv run`` among them passes it on.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

STOP = (signal.SIGTERM, signal.SIGINT)
ECHO = 2.0  # seconds within which a request to stop may arrive again


class Signals:
    """A context in which signals are notes. Outside the main thread it leaves them alone: only that may set handlers.

    ``stop`` is the name of the signal that asked to stop, or empty.
    """

    def __init__(self) -> None:
        self.stop, self.trace, self.asked = "", False, 0.0
        self.before: dict[int, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (*STOP, signal.SIGUSR1):
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def trace_asked(self) -> bool:
        """Whether a trace was asked for since the last call."""
        asked, self.trace = self.trace, False
        return asked

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.trace = True
        elif not self.stop:
            self.stop, self.asked = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self.asked > ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
