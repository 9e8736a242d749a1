"""How many conversations one machine holds in real time.

    uv run python -m benchmarks.sessions --out benchmarks/results

Sessions take turns on one model, a chunk each, as in ``serve.py --sessions``: half of them speak, half listen. A round
makes one chunk for everybody; as long as 95 % of the rounds take no longer than a chunk plays, nobody waits. Sessions
are added until that no longer holds. Beside it stand ``--slots`` sessions whose chunks are computed in one program, as
with ``--together``, and one session in that program, the other slots idle.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Row, table
from lpm_jax.checkpoint import write_json
from lpm_jax.environment import environment
from lpm_jax.errors import ArgumentParser, run_door
from lpm_jax.progress import progress

MOST = 64
ENOUGH = 0.95  # share of rounds that must be in time


def rounds_of(sessions: list[Any], speech: np.ndarray, rounds: int) -> list[float]:
    """Seconds of each round, in which every session makes a chunk."""
    found = []
    for i in range(rounds):
        began = time.perf_counter()
        for n, session in enumerate(sessions):
            samples = np.roll(speech, -i * session.samples)[: session.samples]
            session.say(samples) if n % 2 == 0 else session.listen.append(samples)
        if sessions[0].pipeline.together:
            for finish in [session.begin() for session in sessions]:
                finish()
        else:
            for session in sessions:
                session.step()
        found.append(time.perf_counter() - began)
    return found


def main() -> int:
    parser = ArgumentParser("python -m benchmarks.sessions", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="toy")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: what is fast here")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--slots", type=int, default=4, help="of the programs that hold all sessions")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if args.rounds < 2 or not 1 <= args.slots <= MOST:
        parser.error(f"expected at least 2 rounds, and 1 to {MOST} slots")
    from lpm_jax import Pipeline
    from lpm_jax.media import load_audio
    from lpm_jax.serving.library import Library
    from lpm_jax.serving.session import Session

    pipe = Pipeline.from_pretrained(args.model, args.dtype)
    pipe.warm_up()
    picture, speech = Library().first_character(), load_audio(Library().samples()["story"])
    sessions: list[Session] = []
    rows, held = [], 0
    for count in progress(range(1, MOST + 1), "sessions"):
        sessions.append(Session(pipe, picture, seed=count))
        sessions[-1].step()
        seconds = rounds_of(sessions, speech, args.rounds)
        late = float(np.mean(np.array(seconds) > sessions[0].chunk_seconds))
        if count in (1, 2, 4, 8) or late > 1 - ENOUGH:
            rows.append(Row(f"{count} sessions: times real time", sessions[0].chunk_seconds / float(np.mean(seconds))))
        if late > 1 - ENOUGH:
            break
        held = count
    rows.insert(0, Row("sessions held at 1.0x", held))
    for count in dict.fromkeys((args.slots, 1)):
        together = Pipeline.from_pretrained(args.model, args.dtype, slots=args.slots)
        sessions = [Session(together, picture, seed=n) for n in range(count)]
        rounds_of(sessions, speech, 2)  # compiles
        seconds = rounds_of(sessions, speech, args.rounds)
        name = f"{count} of {args.slots} slots together: times real time"
        rows.append(Row(name, sessions[0].chunk_seconds / float(np.mean(seconds))))
    print(table(rows))
    command = f"python -m benchmarks.sessions --rounds {args.rounds} --slots {args.slots}"
    command += f" --dtype {args.dtype}" if args.dtype else ""
    kept = str(pipe.params["dit"]["embed"]["patch"]["kernel"].dtype)
    result = {"command": command, "dtype": kept} | environment() | {"figures": [row.to_json() for row in rows]}
    write_json(args.out / "sessions.json", result)
    print(f"written: {args.out / 'sessions.json'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_door(main)
