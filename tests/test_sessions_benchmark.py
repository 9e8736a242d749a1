"""The count of sessions, on a fake clock's model."""

import json
import sys

import numpy as np
import pytest

from benchmarks import sessions
from lpm_jax.errors import InputError
from lpm_jax.pipeline import Pipeline
from lpm_jax.serving.session import Session
from tests import tiny
from tests.serving.fake_pipeline import FakePipeline


class Slow(FakePipeline):
    """A chunk of half a second takes 0.11 s: four fit."""

    params = {"dit": {"embed": {"patch": {"kernel": np.zeros(1, np.float32)}}}}

    def warm_up(self):
        pass


class Together(Slow):
    """Its streams are free to ask; the first answer takes the time of all."""

    together = True

    def open(self, image, prompt="", seed=0, references=()):
        stream = FakePipeline(0.0).open(image, prompt)
        if not self.streams:
            self.streams.append(stream)
            stream.pipeline.delay = self.delay
        return stream


def test_sessions_are_added_until_somebody_waits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *_, slots=0: Together(0.05) if slots else Slow(0.11))
    monkeypatch.setattr(sys, "argv", ["sessions", "--rounds", "2", "--out", str(tmp_path)])
    assert sessions.main() == 0
    figures = {row["figure"]: row["result"] for row in json.loads((tmp_path / "sessions.json").read_text())["figures"]}
    assert 1 <= figures["sessions held at 1.0x"] <= 4
    assert figures["1 sessions: times real time"] < 0.5 / 0.11
    for count in (4, 1):
        assert (
            1.5 * figures["4 sessions: times real time"] < figures[f"{count} of 4 slots together: times real time"] < 10
        )
    assert "sessions held" in capsys.readouterr().out


@pytest.mark.slow
def test_rounds_of_sessions_that_share():
    pipe = Pipeline(tiny.CONFIG, tiny.params(), slots=2)
    both = [Session(pipe, tiny.picture(n), seed=n) for n in range(2)]
    seconds = sessions.rounds_of(both, tiny.sound(24_000), 2)
    assert len(seconds) == 2 and all(s > 0 for s in seconds)
    assert [session.frames for session in both] == [2 * pipe.chunk_frames] * 2
    assert len(pipe.machine.seated) == 2


def test_bad_numbers(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sessions", "--slots", "0"])
    with pytest.raises((InputError, SystemExit)):
        sessions.main()
