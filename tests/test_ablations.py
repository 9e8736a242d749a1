"""``benchmarks/ablations.py``: every way is asked for, shares what is the same, and ends up in the table."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import ablations
from lpm_jax.bench import run as bench
from lpm_jax.config import StreamConfig
from lpm_jax.errors import InputError


def test_ways_are_those_that_a_model_does_not_have_already():
    """And cost what their evaluations, their clean pass and their chunk say."""

    def cost(taught):
        return {name: ablations.passes(ablations.streams(taught, w)) for name, w in ablations.ways(taught).items()}

    assert cost(StreamConfig()) == {
        "as it was taught": 4, "one evaluation": 2, "four evaluations": 8, "clean history": 6, "history of each": 4,
        "chunks of 1": 12, "chunks of 6": 2, "no sink": 4, "sink of 3": 4,
    }  # fmt: skip
    large = StreamConfig(chunk=6, sink=3, window=2, history="each")
    assert cost(large) == {
        "as it was taught": 2, "one evaluation": 1, "four evaluations": 4, "last history": 2, "clean history": 3,
        "chunks of 1": 12, "chunks of 3": 4, "no sink": 2, "sink of 1": 2,
    }  # fmt: skip
    short = ablations.streams(large, ablations.ways(large)["chunks of 1"])
    assert (short.chunk, short.sink, short.window) == (1, 18, 12)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command with a benchmark that only notes what it was asked; returns that and the results."""
    asked = []

    def fake(words):
        asked.append(words)
        folder = Path(words[words.index("--out") + 1])
        for name in ("cases", "truth"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{len(asked)}.txt").write_text("")
        value = {"value": len(asked) / 8, "low": 0.0, "high": 1.0, "n": 2}
        metrics = {"lip_r": {"result": value}} | ({"seam": {"result": value}} if len(asked) == 1 else {})
        (folder / "results.json").write_text(json.dumps({"metrics": metrics}))

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["ablations", "--out", str(tmp_path), *words])
        assert ablations.main() == 0
        return asked, json.loads((tmp_path / "ablations.json").read_text())["ways"]

    monkeypatch.setattr(bench, "main", fake)
    return command


def test_runs_share_cases_and_truth(run, tmp_path, capsys):
    asked, found = run("--only", "as it was taught", "chunks of 1")
    first, second = tmp_path / "as_it_was_taught", tmp_path / "chunks_of_1"
    assert [x.name for x in sorted((first / "truth").iterdir())] == ["1.txt", "2.txt"]  # the second wrote there too
    assert (second / "cases").resolve() == (first / "cases").resolve()
    assert "--stream" not in asked[0]
    assert asked[1][-6:] == ["--stream", "chunk=1", "--stream", "sink=3", "--stream", "window=3"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "|  | as it was taught | chunks of 1 |"
    assert lines[2:] == ["| passes a second of video | 4 | 12 |", "| lip r | 0.125 | 0.250 |"]  # only what all have
    assert [way["figures"]["lip_r"]["value"] for way in found] == [0.125, 0.25]
    assert found[1]["stream"] == ["chunk=1", "sink=3", "window=3"]


def test_what_an_earlier_command_measured_stays(run):
    run("--only", "no sink")
    asked, found = run("--only", "one evaluation")
    assert len(asked) == 2
    assert [(way["way"], way["figures"]["lip_r"]["value"]) for way in found] == [
        ("one evaluation", 0.25), ("no sink", 0.125)
    ]  # fmt: skip


def test_another_way_is_refused(run):
    with pytest.raises(InputError, match="--only: expected some of as it was taught; .*, found 'backwards'"):
        run("--only", "backwards")
