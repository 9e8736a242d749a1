"""The model's thread: who is asked first and who is waited for."""

from __future__ import annotations

import asyncio
import threading

import pytest

from lpm_jax.serving.engine import Engine


class Model:
    def __init__(self, together: bool) -> None:
        self.together = together


class Asker:
    """A session that notes when it is asked for a chunk and when somebody waits for it."""

    def __init__(self, name: str, notes: list[str], gate: threading.Event | None = None, fails: str = "") -> None:
        self.name, self.notes, self.gate, self.fails = name, notes, gate, fails

    def begin(self):
        self.notes.append(f"ask {self.name}")
        if self.fails == "begin":
            raise ValueError(f"{self.name} cannot begin")
        return self.finish

    def finish(self) -> str:
        if self.gate is not None:
            self.gate.wait(10)
        self.notes.append(f"get {self.name}")
        if self.fails == "finish":
            raise ValueError(f"{self.name} cannot finish")
        return f"chunk of {self.name}"


def run(together: bool, fails: dict[str, str] | None = None) -> tuple[list[str], list]:
    """Three sessions ask while the model is busy with a first one."""
    engine, notes, gate = Engine(lambda: Model(together), 4), [], threading.Event()

    async def main() -> list:
        engine.start()
        await engine.wait()
        first = asyncio.create_task(engine.chunk(Asker("first", notes, gate)))
        while not notes:
            await asyncio.sleep(0.005)
        others = [
            asyncio.create_task(engine.chunk(Asker(name, notes, fails=(fails or {}).get(name, "")))) for name in "abc"
        ]
        await asyncio.sleep(0.05)
        gate.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        engine.post(lambda: notes.append("posted"))
        while notes[-1] != "posted":
            await asyncio.sleep(0.005)
        engine.stop()
        return found

    found = asyncio.run(main())
    engine._thread.join(5)
    assert not engine._thread.is_alive()
    return notes[2:-1], found


def test_sessions_take_turns():
    notes, found = run(together=False)
    assert notes == ["ask a", "get a", "ask b", "get b", "ask c", "get c"]
    assert found == ["chunk of first", *(f"chunk of {x}" for x in "abc")]


def test_together_all_that_wait_are_asked_for_first():
    notes, found = run(together=True)
    assert notes == ["ask a", "ask b", "ask c", "get a", "get b", "get c"]
    assert found == ["chunk of first", *(f"chunk of {x}" for x in "abc")]


def test_who_leaves_is_gone_before_who_comes_asks():
    """Both behind a chunk that is being computed."""
    engine, notes, gate = Engine(lambda: Model(together=True), 2), [], threading.Event()

    async def main() -> None:
        engine.start()
        await engine.wait()
        first = asyncio.create_task(engine.chunk(Asker("first", notes, gate)))
        while not notes:
            await asyncio.sleep(0.005)
        engine.post(lambda: notes.append("left"))
        comes = asyncio.create_task(engine.chunk(Asker("comes", notes)))
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(first, comes)
        engine.stop()

    asyncio.run(main())
    assert notes == ["ask first", "get first", "left", "ask comes", "get comes"]


@pytest.mark.parametrize("together", [False, True])
def test_what_fails_is_told_to_whom_it_belongs(together):
    notes, found = run(together, {"a": "begin", "b": "finish"})
    assert [str(x) for x in found] == ["chunk of first", "a cannot begin", "b cannot finish", "chunk of c"]
    assert "get a" not in notes and {"get b", "get c"} <= set(notes)
