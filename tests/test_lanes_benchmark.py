"""The timeline of lanes."""

import sys

import pytest

from benchmarks import lanes
from lpm_jax.errors import InputError


def test_overlap_by_hand():
    runs = [("generator", 0, 0.0, 2.0), ("vae", 0, 2.0, 3.0), ("generator", 1, 2.0, 4.0), ("vae", 1, 4.0, 5.0)]
    assert lanes.overlap(runs) == pytest.approx(1 / 5)  # from 2 to 3
    assert lanes.overlap([("generator", 0, 0.0, 1.0), ("vae", 0, 1.0, 2.0)]) == 0
    assert lanes.overlap([("generator", 0, 0.0, 1.0), ("vae", 0, 0.0, 1.0)]) == 1


def test_three_lanes():
    runs = [("generator", 1, 0.0, 2.0), ("refiner", 0, 1.0, 2.0), ("vae", 0, 2.0, 4.0)]
    assert lanes.overlap(runs) == pytest.approx(1 / 4)  # two are enough
    assert lanes.lanes_of(runs[::-1]) == ["generator", "refiner", "vae"]
    assert lanes.lanes_of(runs[::2]) == ["generator", "vae"]


def test_a_plot_is_written(tmp_path):
    lanes.plot([("generator", 0, 0.0, 2.0), ("vae", 0, 2.0, 3.0)], tmp_path / "plots" / "lanes.png")
    assert (tmp_path / "plots" / "lanes.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("arguments", [["--decoder", "0"], ["--decoder", "9"], ["--chunks", "2"]])
def test_bad_sizes_are_one_line(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lanes", *arguments])
    with pytest.raises(InputError, match="expected 1 <= decoder <= devices <= 64"):
        lanes.main()
