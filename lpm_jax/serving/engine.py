"""The model and the one thread it lives in: the event loop never waits for JAX."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

STALL_SECONDS = 60.0  # a chunk that takes so long never comes


class Engine:
    """Loads a pipeline in its own thread and runs every chunk on it there: sessions take turns, a chunk each. Where a
    pipeline computes chunks together, those that wait for their turn are asked for first, and then waited for.

    ``load`` returns a warm pipeline. The thread is a daemon: leaving the program does not wait for a compilation.
    """

    def __init__(self, load: Callable[[], Any], sessions: int = 1) -> None:
        """``sessions`` may be live at a time."""
        self._load, self.sessions = load, sessions
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()  # of futures and functions that begin their work
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self.pipeline: Any = None
        self.error: BaseException | None = None
        self.loaded = threading.Event()  # set when loading ended, well or not
        self.live = 0  # sessions; touched by the event loop only
        self.watched: list[Any] = []  # the conversations that are live, likewise

    @property
    def ready(self) -> bool:
        return self.pipeline is not None

    @property
    def occupied(self) -> bool:
        return self.live >= self.sessions

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end after what it is doing."""
        self._jobs.put(None)

    async def wait(self) -> Any:
        """The warm pipeline; raises what loading raised."""
        while not self.loaded.is_set():
            await asyncio.sleep(0.02)
        if self.error is not None:
            raise RuntimeError(f"the model did not load: {self.error}")
        return self.pipeline

    async def chunk(self, session: Any) -> Any:
        """The session's next chunk: ``session.begin()`` and what that returns, in the model's thread.

        Raises:
          RuntimeError: no answer within :data:`STALL_SECONDS`; the thread may still be at it.
        """
        job: Future = Future()
        self._jobs.put((job, session.begin))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job), STALL_SECONDS)
        except TimeoutError:
            if job.done() and not job.cancelled():  # its own
                raise
            raise RuntimeError(f"the model stalled: no chunk within {STALL_SECONDS:g} s") from None

    def post(self, function: Callable[[], Any]) -> None:
        """``function()`` in the model's thread, after what was asked for before; what it raises is lost."""
        self._jobs.put((Future(), function))

    def _work(self) -> None:
        try:
            self.pipeline = self._load()
        except BaseException as error:
            self.error = error
            return
        finally:
            self.loaded.set()
        together = self.pipeline.together
        while (item := self._jobs.get()) is not None:
            items = [item]
            while together and not self._jobs.empty() and (item := self._jobs.get()) is not None:
                items.append(item)
            begun = [(job, attempt(job, begin)) for job, begin in items if job.set_running_or_notify_cancel()]
            for job, finish in begun:
                if finish is not None:
                    attempt(job, lambda job=job, finish=finish: job.set_result(finish()))
            if item is None:
                return


def attempt(job: Future, function: Callable[[], Any]) -> Any:
    """``function()``; what it raises is the job's answer."""
    try:
        return function()
    except BaseException as error:
        job.set_exception(error)
        return None
