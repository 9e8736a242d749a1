"""Planted defects: trials are counted right, and what is planted is there."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("espeakng_loader")

from lpm_jax.bench import check
from lpm_jax.bench.metrics import listening
from lpm_jax.bench.observe import Instruments
from tests.bench.drawn import case, instruments, true


def test_a_trial_is_right_where_the_metric_gets_worse():
    assert check._worse([1.0, 0.5, 0.7], "higher") == [True, False]
    assert check._worse([1.0, 0.5, 0.5], "lower") == [False, False]
    assert check._worse([1.0, None], "higher") == []


def test_nods_are_taken_out_one_by_one():
    pitch = case("listening").truth["pitch"]
    nods = listening.events(pitch, listening.NOD)
    for count in range(len(nods) + 1):
        left = listening.events(check.without(pitch, nods[:count]), listening.NOD)
        assert left == pytest.approx(nods[count:], abs=0.05)


def test_defects_are_told_in_a_few_cases(monkeypatch):
    cases = [case("speaking"), case("listening"), case("speaking", 1)]
    right = check.check(cases, instruments())
    assert set(right) == {
        "late: lip_lag", "blended: identity_colour", "frozen: frozen", "frozen: motion_amount", "nods removed: nod_f1"
    }  # fmt: skip
    assert len(right["late: lip_lag"]) == 6 and len(right["blended: identity_colour"]) == 12
    assert np.mean([ok for trials in right.values() for ok in trials]) >= 0.95


def test_the_door_writes_what_it_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Instruments, "load", classmethod(lambda cls: instruments()))
    monkeypatch.setattr(check, "check", lambda cases, found: {"late: lip_lag": [True] * 3 + [False]})
    assert check.main(["--suite", "tiny", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "check.json").read_text())["trials"] == {
        "late: lip_lag": {"right": 3, "trials": 4, "share": 0.75}
    }
    assert "3 of    4 trials  75.0 %" in capsys.readouterr().out


def test_the_truth_stays_as_it_is_without_a_defect():
    seen = true("speaking")
    same = seen.take(np.arange(len(seen)))
    assert np.array_equal(same.change, seen.change) and np.array_equal(same.thumbs, seen.thumbs)
