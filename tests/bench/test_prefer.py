"""Two takes of one model are the same in nearly every case; a better model is preferred, a worse one is not."""

from __future__ import annotations

import json

import pytest

from lpm_jax.bench import prefer
from lpm_jax.bench.runs import open_run
from lpm_jax.errors import InputError
from tests.bench.fake_run import change, write_run

CASES = 120


def take(folder, number: int, **options):
    """A run whose noise is drawn anew."""
    write_run(folder, CASES, seed=number, videos=False, **options)
    change(folder, lambda data: data.update(seed=number))
    return folder


@pytest.fixture
def folders(tmp_path):
    return take(tmp_path / "base", 0), take(tmp_path / "again", 1)


def shares(*folders) -> dict:
    return prefer.prefer(*map(open_run, folders))["shares"]


def test_another_take_is_indistinguishable(folders, tmp_path):
    found = shares(*folders, take(tmp_path / "student", 2))
    assert list(found) == ["overall", "speaking", "listening", "identity", "stability"]
    for entry in found.values():
        assert entry["a"] + entry["same"] + entry["b"] == pytest.approx(1) and entry["same"] >= 0.85
        assert abs(entry["step"]["value"]) < 0.5


def test_better_and_worse_are_told(folders, tmp_path):
    better = shares(*folders, take(tmp_path / "better", 2, shift=0.3))["overall"]
    worse = shares(*folders, take(tmp_path / "worse", 3, shift=-0.3))["overall"]
    assert better["b"] > 0.95 and better["a"] == 0 and better["p"] < 1e-6
    assert worse["a"] > 0.95 and worse["b"] == 0 and worse["step"]["value"] < -2


def test_by_hand(folders, tmp_path):
    """One metric, four cases: the seed moves it by 0.1, so 0.3 is three units and 0.05 half a one."""
    student = take(tmp_path / "student", 2)
    values = {"base": [0.5] * 4, "again": [0.6, 0.4, 0.6, 0.4], "student": [0.8, 0.2, 0.55, None]}
    for folder, numbers in zip((*folders, student), values.values(), strict=True):

        def edit(data, numbers=numbers):
            data["cases"] = data["cases"][:4]
            data["metrics"] = {"lip_r": data["metrics"]["lip_r"]}
            for case, number in zip(data["cases"], numbers, strict=True):
                case["scores"] = {"lip_r": number}

        change(folder, edit)
    result = prefer.prefer(*map(open_run, (*folders, student)))
    assert result["units"]["lip_r"] == pytest.approx(0.1)
    assert result["steps"]["overall"] == pytest.approx(
        {"speaking-000": 3.0, "listening-001": -3.0, "conversation-002": 0.5}
    )
    told = result["shares"]["overall"]
    assert (told["a"], told["same"], told["b"]) == pytest.approx((1 / 3, 1 / 3, 1 / 3)) and told["p"] == 1.0


def test_the_command(folders, tmp_path, capsys):
    student, out = take(tmp_path / "student", 2, shift=0.3), tmp_path / "prefer.json"
    assert prefer.main([*map(str, (*folders, student)), "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "indistinguishable" in printed[0] and printed[1].startswith("Overall") and " 120 " in printed[1]
    assert json.loads(out.read_text())["shares"]["overall"]["b"] > 0.95


def test_bad_input(folders, tmp_path):
    base, again = folders
    with pytest.raises(InputError, match="^base: expected the model of base with another seed, found toy with seed 0"):
        shares(base, base, again)
    other = take(tmp_path / "other", 3)
    change(other, lambda data: data.update(suite="long"))
    with pytest.raises(InputError, match="^base, again and other: expected runs of one suite, found several"):
        shares(base, again, other)
    with pytest.raises(InputError, match="--out"):
        prefer.main([str(base), str(again), str(base), "--out", "x.png"])
