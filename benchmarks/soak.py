"""A conversation that does not end: memory, pace, compilations and interruptions over a long stream.

    python -m benchmarks.soak --minutes 45 --real-minutes 10 --out benchmarks/results

A partner talks now and then, the agent speaks the bundled samples, prompts change and speech is interrupted at random
(fixed by seed), through ``serving.session.Session`` as on the page, without a network. First ``--minutes`` of stream at
full speed, then ``--real-minutes`` on the wall clock, a chunk ahead of what is shown. At full speed an interruption
finds the playhead at a random point of the chunk before the last. A last part jumps the clock by 24 hours of chunks.

Memory is the process's resident set at the end of each minute of stream; its slope, per hour of stream, is a
least-squares line after two minutes. Chunk times are those of ``Session.step``. Compilations are XLA's own events.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Row, table
from lpm_jax.checkpoint import write_json
from lpm_jax.environment import environment
from lpm_jax.errors import ArgumentParser, InputError, run_door
from lpm_jax.progress import progress
from lpm_jax.serving.library import Library
from lpm_jax.serving.memory import keep_room, one_heap
from lpm_jax.serving.session import Session

PROMPTS = ("", "smiles", "looks very surprised", "nods along", "looks to the left")
DAY = 24 * 3600  # seconds


@dataclasses.dataclass
class Record:
    """What happened, a value a chunk."""

    seconds: array[float] = dataclasses.field(default_factory=lambda: array("d"))  # to make it
    stream: array[float] = dataclasses.field(default_factory=lambda: array("d"))  # when it begins
    silences: list[float] = dataclasses.field(default_factory=list)  # from an interruption to the end of speech
    memory: list[tuple[float, float]] = dataclasses.field(default_factory=list)  # (hours of stream, MB)
    late: int = 0  # chunks that came after they were to be shown


def resident() -> float:
    """This process's resident memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


class Compilations:
    """Counts what XLA compiles, or loads from its cache, from now on."""

    def __init__(self) -> None:
        import jax

        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, seconds: float, **_: Any) -> None:
        self.count += "backend_compile" in event


class Play:
    """Both sides of the conversation."""

    def __init__(self, session: Session, seed: int):
        from lpm_jax.media import load_audio

        self.session, self.rng = session, np.random.default_rng(seed)
        self.speech = [load_audio(path) for path in Library().samples().values()]
        self.asked: float | None = None  # the playhead when an interruption was asked for

    def before(self, shown: float) -> None:
        """Something may happen before the next chunk."""
        session, rng = self.session, self.rng
        if rng.random() < 0.15:
            session.say(self.speech[rng.integers(len(self.speech))])
        if rng.random() < 0.3:
            session.listen.append(self.speech[rng.integers(len(self.speech))][: session.samples])
        if rng.random() < 0.05:
            session.set_prompt(PROMPTS[rng.integers(len(PROMPTS))])
        if session._speaking is not None and rng.random() < 0.1:
            session.interrupt(shown)
            self.asked = shown

    def after(self, block: Any, record: Record) -> None:
        for event in block.events:
            if event["type"] == "agent.speak_ended" and event["interrupted"] and self.asked is not None:
                record.silences.append(event["time"] - self.asked)
                self.asked = None
        record.seconds.append(block.seconds)
        record.stream.append(block.time)


def run(session: Session, minutes: float, real: bool, seed: int) -> Record:
    """``minutes`` of stream, on the wall clock or as fast as it goes."""
    play, record = Play(session, seed), Record()
    first, began, minute = session.time, time.perf_counter(), 0
    for _ in progress(range(round(60 * minutes / session.chunk_seconds)), "real time" if real else "full speed"):
        if real:
            shown = first + max(0.0, time.perf_counter() - began - session.chunk_seconds)
            while session.time - shown > session.chunk_seconds:  # one chunk plays, one waits
                time.sleep(0.005)
                shown = first + max(0.0, time.perf_counter() - began - session.chunk_seconds)
        else:
            shown = max(first, session.time - session.chunk_seconds * (1 + play.rng.random()))
        play.before(shown)
        block = session.step()
        if real:
            due = began + session.chunk_seconds + block.time - first
            record.late += time.perf_counter() > due and block.time > first
        play.after(block, record)
        if (session.time - first) // 60 > minute:
            minute += 1
            record.memory.append((minute / 60, resident()))
    return record


def slope(memory: list[tuple[float, float]]) -> float:
    """MB an hour of stream after the first two minutes."""
    points = np.array(memory[2:])
    return float(np.polyfit(points[:, 0], points[:, 1], 1)[0]) if len(points) > 1 else float("nan")


def figures(name: str, record: Record, chunk: float, compiled: int) -> list[Row]:
    seconds = np.array(record.seconds)
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99]).tolist()
    per_minute = round(60 / chunk)
    rows = [
        Row(f"{name}: chunk time p50, ms", 1000 * p50),
        Row(f"{name}: chunk time p95, ms", 1000 * p95),
        Row(f"{name}: chunk time p99 / p50", p99 / p50, target="<= 1.5"),
        Row(f"{name}: real-time factor", chunk / float(seconds.mean()), target=">= 1.5"),
        Row(f"{name}: resident memory, MB an hour of stream", slope(record.memory), target="<= 1"),
        Row(f"{name}: compilations", compiled, target="<= 0"),
    ]
    if len(seconds) >= 2 * per_minute:
        last, first = np.median(seconds[-per_minute:]), np.median(seconds[:per_minute])
        rows.append(Row(f"{name}: last minute / first minute", float(last / first), target="<= 1.05"))
    if record.silences:
        limit = f"<= {chunk + 0.1:g}"
        worst, count = max(record.silences), len(record.silences)
        rows.append(Row(f"{name}: interruption to silence, worst of {count}, s", worst, target=limit))
    return rows


def a_day_later(session: Session) -> bool:
    """Whether the next chunks are the same after the clock jumped by a day's worth of chunks."""
    stream = session._stream
    window = stream.pipeline.config.stream.window
    day = round(DAY / session.chunk_seconds) // window * window
    chunks = []
    for jump in (0, day):
        stream._state = stream._state._replace(chunk=stream._state.chunk + jump)
        chunks.append(stream.step(None, None).frames)
        stream.take_back()
        stream._state = stream._state._replace(chunk=stream._state.chunk - jump)
    return bool(np.array_equal(*chunks)) and bool(np.isfinite(np.asarray(stream._state.near)).all())


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="toy")
    parser.add_argument("--minutes", type=float, default=45.0, help="of stream at full speed")
    parser.add_argument("--real-minutes", type=float, default=10.0, help="of stream on the wall clock")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    for name in ("minutes", "real_minutes"):
        if not 0 <= getattr(args, name) <= 1440:
            raise InputError(f"--{name.replace('_', '-')}: expected 0 to 1,440, found {getattr(args, name):g}")
    from lpm_jax import Pipeline

    one_heap()  # as the live page has it
    pipe = Pipeline.from_pretrained(args.model)
    pipe.warm_up()
    keep_room()
    session = Session(pipe, Library().image(Library().first_character().stem))
    session.step()
    compilations = Compilations()
    rows: list[Row] = []
    memory: dict[str, list[float]] = {}
    for name, minutes, real in (("full speed", args.minutes, False), ("real time", args.real_minutes, True)):
        if minutes:
            before = compilations.count
            record = run(session, minutes, real, args.seed)
            rows += figures(name, record, session.chunk_seconds, compilations.count - before)
            memory[name] = [round(megabytes, 1) for _, megabytes in record.memory]
            if real:
                rows.append(Row("real time: chunks that came late", record.late, target="<= 0"))
    rows.append(Row("a day later: the same frames", float(a_day_later(session)), target=">= 1"))
    print(table(rows))
    command = f"python -m benchmarks.soak --minutes {args.minutes:g} --real-minutes {args.real_minutes:g}"
    result = {"command": command} | environment() | {"figures": [r.to_json() for r in rows]}
    write_json(args.out / "soak.json", result | {"megabytes_by_minute_of_stream": memory})
    print(f"written: {args.out / 'soak.json'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_door(main)
