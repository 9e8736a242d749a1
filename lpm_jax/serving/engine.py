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
    """Loads a pipeline in its own thread and runs every call on it there, one after the other: sessions take turns, a
    chunk each.

    ``load`` returns a warm pipeline. The thread is a daemon: leaving the program does not wait for a compilation.
    """

    def __init__(self, load: Callable[[], Any], sessions: int = 1) -> None:
        """``sessions`` may be live at a time."""
        self._load, self.sessions = load, sessions
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
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

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(*args)`` in the model's thread.

        Raises:
          RuntimeError: no answer within :data:`STALL_SECONDS`; the thread may still be at it.
        """
        job: Future = Future()
        self._jobs.put((job, function, args))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job), STALL_SECONDS)
        except TimeoutError:
            if job.done() and not job.cancelled():  # its own
                raise
            raise RuntimeError(f"the model stalled: no chunk within {STALL_SECONDS:g} s") from None

    def _work(self) -> None:
        try:
            self.pipeline = self._load()
        except BaseException as error:
            self.error = error
            return
        finally:
            self.loaded.set()
        while (item := self._jobs.get()) is not None:
            job, function, args = item
            if not job.set_running_or_notify_cancel():
                continue  # whoever asked has gone
            try:
                job.set_result(function(*args))
            except BaseException as error:
                job.set_exception(error)
