"""The count of sessions, on a fake clock's model."""

import json
import sys

import numpy as np
import pytest

from benchmarks import sessions
from lpm_jax.errors import InputError
from lpm_jax.pipeline import Pipeline
from tests import tiny
from tests.serving.fake_pipeline import FakePipeline


class Slow(FakePipeline):
    """A chunk of half a second takes 0.11 s: four fit."""

    params = {"dit": {"embed": {"patch": {"kernel": np.zeros(1, np.float32)}}}}

    def warm_up(self):
        pass


def test_sessions_are_added_until_somebody_waits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *_: Slow(0.11))
    monkeypatch.setattr(sessions, "in_slots", lambda *_: [0.25])
    monkeypatch.setattr(sys, "argv", ["sessions", "--rounds", "2", "--out", str(tmp_path)])
    assert sessions.main() == 0
    figures = {row["figure"]: row["result"] for row in json.loads((tmp_path / "sessions.json").read_text())["figures"]}
    assert 1 <= figures["sessions held at 1.0x"] <= 4
    assert figures["1 sessions: times real time"] < 0.5 / 0.11
    assert figures["4 slots, turns: times real time"] == 2.0
    assert "sessions held" in capsys.readouterr().out


@pytest.mark.slow
def test_slots_play():
    pipe = Pipeline(tiny.CONFIG, tiny.params())
    for way in ("turns", "together"):
        seconds = sessions.in_slots(pipe, tiny.picture(), tiny.sound(24_000), 2, way, 2)
        assert len(seconds) == 2 and all(s > 0 for s in seconds)


def test_bad_numbers(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sessions", "--slots", "0"])
    with pytest.raises((InputError, SystemExit)):
        sessions.main()
