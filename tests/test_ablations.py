"""``benchmarks/ablations.py``: every way is asked for, shares what is the same, and ends up in the table."""

import json
import sys

import pytest

from benchmarks import ablations
from lpm_jax.bench import run as bench
from lpm_jax.config import StreamConfig
from lpm_jax.errors import InputError
from lpm_jax.options import changes


def test_every_way_is_one_that_a_stream_has():
    """And costs what its evaluations, its clean pass and its chunk say."""
    cost = {}
    for name, words in ablations.WAYS.items():
        cost[name] = ablations.passes(StreamConfig(**changes(StreamConfig, list(words), "--stream")))
    assert cost == {
        "as it was taught": 4, "one evaluation": 2, "four evaluations": 8, "clean history": 6,
        "a history of each evaluation": 4, "chunks of 1": 12, "chunks of 6": 2, "no sink": 4, "sink of 3": 4,
    }  # fmt: skip


def test_runs_share_cases_and_truth(monkeypatch, tmp_path, capsys):
    asked = []

    def run(words):
        asked.append(words)
        folder = ablations.Path(words[words.index("--out") + 1])
        for name in ("cases", "truth"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{len(asked)}.txt").write_text("")
        value = {"value": len(asked) / 8, "low": 0.0, "high": 1.0, "n": 2}
        metrics = {"lip_r": {"result": value}} | ({"seam": {"result": value}} if len(asked) == 1 else {})
        (folder / "results.json").write_text(json.dumps({"metrics": metrics}))

    monkeypatch.setattr(bench, "main", run)
    ways = ["as it was taught", "chunks of 1"]
    monkeypatch.setattr(sys, "argv", ["ablations", "--out", str(tmp_path / "out"), "--only", *ways])
    assert ablations.main() == 0
    first, second = tmp_path / "out" / "as_it_was_taught", tmp_path / "out" / "chunks_of_1"
    assert [x.name for x in sorted((first / "truth").iterdir())] == ["1.txt", "2.txt"]  # the second wrote there too
    assert (second / "cases").resolve() == (first / "cases").resolve()
    assert "--stream" not in asked[0]
    assert asked[1][-6:] == ["--stream", "chunk=1", "--stream", "sink=3", "--stream", "window=3"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "|  | as it was taught | chunks of 1 |"
    assert lines[2:] == ["| passes a second of video | 4 | 12 |", "| lip r | 0.125 | 0.250 |"]  # only what all have
    data = json.loads((tmp_path / "out" / "ablations.json").read_text())
    assert [way["figures"]["lip_r"]["value"] for way in data["ways"]] == [0.125, 0.25]
    assert data["ways"][1]["stream"] == ["chunk=1", "sink=3", "window=3"]


def test_another_way_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["ablations", "--out", str(tmp_path), "--only", "backwards"])
    with pytest.raises(InputError, match="--only: expected some of as it was taught; .*, found 'backwards'"):
        ablations.main()
