"""Paired differences: by hand on a few cases, blind to what both runs share, and strict about what may be compared."""

from __future__ import annotations

import json

import pytest

from lpm_jax.bench import compare
from lpm_jax.bench.runs import open_run
from lpm_jax.errors import InputError
from tests.bench.fake_run import change, write_run
from tests.bench.test_report import read, text_of


def put(folder, name, scores):
    def edit(data):
        for case, score in zip(data["cases"], scores, strict=True):
            case["scores"][name] = score

    change(folder, edit)


@pytest.fixture
def folders(tmp_path):
    a = write_run(tmp_path / "a", 10, videos=False)
    b = write_run(tmp_path / "b", 10, videos=False, shift=0.2)
    put(a, "lip_r", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, None, 0.8, 0.9])
    put(b, "lip_r", [0.2, 0.3, 0.4, 0.4, 0.6, 0.7, 0.8, 0.9, None, 0.4])
    return a, b


def test_one_metric_by_hand(folders):
    found = compare.compare(*map(open_run, folders))["metrics"]["lip_r"]
    # differences: six times +0.1, once 0, once -0.5; two cases lack one side
    assert found["n"] == 8 and found["difference"]["value"] == pytest.approx((6 * 0.1 - 0.5) / 8)
    assert found["a"] == pytest.approx(3.7 / 8) and found["b"] == pytest.approx(3.8 / 8)
    assert found["cases"] == {"better": 6, "worse": 1, "same": 1}
    assert found["p"] == pytest.approx(2 * (1 + 7) / 2**7)
    assert found["verdict"] == "undecided" and found["difference"]["low"] < 0 < found["difference"]["high"]
    first = found["largest"][0]
    assert first["case"] == "generalisation-009" and first["difference"] == pytest.approx(-0.5)
    assert (first["a"], first["b"]) == (0.9, 0.4)


def test_a_planted_improvement_is_found_both_ways(folders):
    a, b = map(open_run, folders)
    there, back = compare.compare(a, b)["metrics"], compare.compare(b, a)["metrics"]
    for name in ("sync_d", "identity", "drift", "nod_f1"):
        assert there[name]["verdict"] == "better" and back[name]["verdict"] == "worse"
        assert there[name]["difference"]["value"] == pytest.approx(-back[name]["difference"]["value"])
        assert there[name]["cases"]["better"] == there[name]["n"] == (8 if name == "nod_f1" else 10)
    assert there["drift"]["difference"]["high"] < 0 < there["nod_f1"]["difference"]["low"]
    assert there["drift"]["p"] == pytest.approx(2 / 2**10)
    assert there["drift"]["p_holm"] == pytest.approx(5 * 2 / 2**10)  # three share the smallest p of five


def test_a_metric_of_all_cases_together_has_values_and_no_verdict(folders, capsys):
    for folder in folders:
        put(folder, "drift", [None] * 10)
    a, b = map(open_run, folders)
    found = compare.compare(a, b)["metrics"]["drift"]
    assert (found["a"], found["b"]) == tuple(run.metrics["drift"]["result"]["value"] for run in (a, b))
    assert found["n"] == 0 and found["difference"]["value"] is None and found["p"] is None
    compare.main(list(map(str, folders)))
    assert capsys.readouterr().out.splitlines()[-1].endswith("not measured by case")
    assert "not measured by case" in compare.html(compare.compare(a, b))


def test_intervals_are_paired(tmp_path):
    """Cases differ far more than runs do: only pairs can tell the runs apart."""
    a, b = write_run(tmp_path / "a", 10, videos=False), write_run(tmp_path / "b", 10, videos=False)
    put(a, "drift", [10.0 * i for i in range(10)])
    put(b, "drift", [10.0 * i - 1 - 0.1 * (i % 2) for i in range(10)])
    found = compare.compare(open_run(a), open_run(b))["metrics"]["drift"]
    assert found["verdict"] == "better"
    assert -1.1 <= found["difference"]["low"] < -1.05 < found["difference"]["high"] <= -1.0


def test_a_run_against_itself(folders):
    a = open_run(folders[0])
    for entry in compare.compare(a, a)["metrics"].values():
        assert entry["difference"] == {"value": 0, "low": 0, "high": 0} and entry["verdict"] == "undecided"
        assert entry["p"] is None and entry["largest"] == []


def test_only_shared_cases_and_metrics_count(folders):
    change(folders[1], lambda data: data["cases"].pop(0))
    change(folders[1], lambda data: data["metrics"].pop("drift"))
    found = compare.compare(*map(open_run, folders))
    assert found["cases"] == {"shared": 9, "only_a": 1, "only_b": 0}
    assert found["only_one"] == ["drift"] and "drift" not in found["metrics"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(suite="long"), "a and b: expected runs of one suite, found 'small' and 'long'"),
        (lambda d: d.update(seed=1), "a and b: expected runs of one seed, found 0 and 1"),
        (lambda d: d.update(schema=3), "schema: expected 1, found 3"),
        (lambda d: d.update(instruments={"rtmw.onnx": "0" * 16}), "expected runs that the same instruments measured"),
        (lambda d: [c.update(id=f"x{i}") for i, c in enumerate(d["cases"])], "cases in common, found none"),
        (lambda d: d["metrics"]["lip_r"].update(better="lower"), "lip_r: expected one direction that is better"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(folders, edit, message):
    change(folders[1], edit)
    with pytest.raises(InputError, match=message) as caught:
        compare.main([str(folder) for folder in folders])
    assert "\n" not in str(caught.value)


def test_json_and_table(folders, tmp_path, capsys):
    out = tmp_path / "compare.json"
    assert compare.main([*map(str, folders), "--out", str(out)]) == 0
    data = json.loads(out.read_text())
    assert data["schema"] == 1 and data["a"]["name"] == "a" and data["metrics"]["drift"]["verdict"] == "better"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[0].split()[:3] == ["metric", "A", "B"]
    assert lines[1].startswith("lip_r") and lines[1].endswith("undecided") and "6/1/1" in lines[1]


def test_page(folders, tmp_path):
    change(folders[0], lambda data: data.update(model="<i>a</i>"))
    out = tmp_path / "compare.html"
    compare.main([*map(str, folders), "--out", str(out)])
    html = out.read_text()
    reader = read(html)
    assert all(source.startswith("#") for source in reader.sources) and "i" not in reader.tags
    text = text_of(html)
    assert "b against a" in text and "6 / 1 / 1" in text and "generalisation-009 Mouth follows the speech" in text


def test_bad_output_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(InputError, match="--out: expected a name ending in .json or .html, found 'x.csv'"):
        compare.main(["none", "none", "--out", "x.csv"])
