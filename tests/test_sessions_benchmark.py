"""The count of sessions, on a fake clock's model."""

import json
import sys
import time

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
    """Chunks that were asked for before one is waited for take the time of one."""

    together = True

    def __init__(self, delay):
        super().__init__(0.0)
        self.batch, self.asked = delay, 0

    def open(self, image, prompt="", seed=0, references=()):
        stream, pipe = super().open(image, prompt), self
        send = stream.send

        def ask(*sound, undo=False):
            sent = send(*sound)
            pipe.asked += 1
            get = sent.get

            def wait():
                if pipe.asked:
                    time.sleep(pipe.batch)
                pipe.asked = 0
                return get()

            sent.get = wait
            return sent

        stream.send = ask
        return stream


def test_sessions_are_added_until_somebody_waits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *_, slots=0: Together(0.3) if slots else Slow(0.11))
    monkeypatch.setattr(sys, "argv", ["sessions", "--rounds", "2", "--out", str(tmp_path)])
    assert sessions.main() == 0
    figures = {row["figure"]: row["result"] for row in json.loads((tmp_path / "sessions.json").read_text())["figures"]}
    assert 1 <= figures["sessions held at 1.0x"] <= 4
    assert figures["1 sessions: times real time"] < 0.5 / 0.11
    for count in (4, 1):  # one batch of 0.3 s, whether one or four wait for it
        assert 0.5 < figures[f"{count} of 4 slots together: times real time"] < 0.5 / 0.3
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
