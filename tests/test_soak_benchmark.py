"""The soak, short: what it counts is counted right."""

import numpy as np
import pytest

from benchmarks import soak
from benchmarks.soak import Record, figures, slope
from lpm_jax.serving.session import Session
from tests.serving.fake_pipeline import FakePipeline


def session() -> Session:
    made = Session(FakePipeline(0.0), np.full((128, 128, 3), 90, np.uint8))
    made.step()
    return made


def test_a_conversation_with_interruptions():
    record = soak.run(session(), 6.0, False, seed=0)
    steps = np.diff(record.stream)  # a chunk that was dropped is made anew: the same time twice
    assert len(record.seconds) == 720 and set(np.round(steps, 6)) == {0.0, 0.5}
    assert len(record.silences) >= 3 and min(record.silences) > 0 and max(record.silences) <= 0.6
    assert len(record.memory) == 5 and all(mb > 10 for _, mb in record.memory)


def test_on_the_wall_clock():
    import time

    began = time.perf_counter()
    record = soak.run(session(), 3 / 60, True, seed=0)
    assert 1.5 < time.perf_counter() - began < 6 and len(record.seconds) == 6


def test_slope_leaves_out_the_warm_up():
    line = [(0.1 * i, 500 + 7 * 0.1 * i) for i in range(10)]
    assert slope([(0.0, 100.0), (0.05, 300.0), *line]) == pytest.approx(7)
    assert np.isnan(slope(line[:2]))


def test_figures():
    record = Record(seconds=[0.1] * 119 + [0.4] + [0.12] * 120, stream=[], silences=[0.3, 0.55])
    rows = {row.name.split(": ")[1]: row for row in figures("x", record, 0.5, 2)}
    assert (
        rows["last minute / first minute"].result == pytest.approx(1.2)
        and not rows["last minute / first minute"].passed
    )
    assert rows["compilations"].result == 2 and not rows["compilations"].passed
    worst = rows["interruption to silence, worst of 2, s"]
    assert worst.result == 0.55 and worst.passed
