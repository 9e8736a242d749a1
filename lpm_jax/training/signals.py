"""What a run does about signals: SIGTERM and SIGINT ask it to stop, SIGUSR1 asks for a trace.

The handler only takes a note, which the loop reads between two steps: a checkpoint is never half a step old. A second
request to stop is obeyed at once, as without a handler.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

STOP = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """A context in which signals are notes. Outside the main thread it leaves them alone: only that may set handlers.

    ``stop`` is the name of the signal that asked to stop, or empty.
    """

    def __init__(self) -> None:
        self.stop, self.trace = "", False
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
        elif self.stop:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        else:
            self.stop = signal.Signals(number).name
