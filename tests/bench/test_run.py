"""A run end to end: a pipeline's videos, another system's, one's own cases; and what is said of bad input."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("espeakng_loader")

from lpm_jax.base.video import Base
from lpm_jax.bench import run as bench
from lpm_jax.bench.cases import Case, write_case
from lpm_jax.bench.files import read_video, write_flac, write_picture, write_video
from lpm_jax.bench.perform import perform, perform_offline
from lpm_jax.bench.schema import METRICS, read_results
from lpm_jax.bench.suites import specs
from lpm_jax.config import SampleConfig
from lpm_jax.errors import InputError
from tests import tiny
from tests.bench.drawn import TruePipeline, case, instruments, video


@pytest.fixture(autouse=True)
def only_the_reader(monkeypatch):
    """The same figures whatever other weights there are."""
    from lpm_jax.bench.observe import Instruments

    monkeypatch.setattr(Instruments, "load", classmethod(lambda cls: instruments()))


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    from lpm_jax.bench.generate import make_case

    return [make_case(spec) for spec in specs("tiny")]


@pytest.fixture(scope="module")
def folder(cases, tmp_path_factory):
    """A run of the pipeline that plays the truth."""
    out = tmp_path_factory.mktemp("run")
    from lpm_jax.bench.observe import Instruments

    before = Instruments.load
    Instruments.load = classmethod(lambda cls: instruments())
    try:
        results = bench.run(out, cases, TruePipeline(cases))
    finally:
        Instruments.load = before
    bench.finish(out, {"schema": 1, "suite": "tiny", "model": "fake", "seed": 0, "command": "test"}, results)
    return out


def test_results_have_the_form_that_reports_read(folder, cases):
    found = read_results(folder)
    assert {"schema", "suite", "model", "seed", "command", "date", "commit", "metrics", "cases"} <= found.keys()
    for name, metric in found["metrics"].items():
        assert metric.keys() == {*METRICS[name].to_json(), "result", "floor", "ceiling", "effect"}
        for stat in (metric["result"], metric["floor"], metric["ceiling"]):
            assert stat is None or (stat.keys() == {"value", "low", "high", "n"} and stat["low"] <= stat["high"])
    for row, made in zip(found["cases"], cases, strict=True):
        assert (row["id"], row["kind"], row["seconds"]) == (made.id, made.kind, 3.0)
        assert (folder / row["video"]).is_file() and (folder / row["truth"]).is_file()
        for part in ("scores", "floor", "ceiling"):
            assert all(x is None or np.isfinite(x) for x in row[part].values()) and set(row[part]) <= set(METRICS)


def test_the_true_video_scores_as_its_ceiling(folder):
    found = read_results(folder)
    for row in found["cases"]:
        assert row["scores"] == row["ceiling"]
    metrics = found["metrics"]
    assert metrics["lip_r"]["result"]["value"] > 0.95 > metrics["lip_r"]["floor"]["value"]
    assert metrics["frechet_picture"]["result"]["value"] < 0.01 < metrics["frechet_picture"]["floor"]["value"]


def test_another_systems_videos_give_the_same_figures(folder, cases, tmp_path):
    found = bench.run(tmp_path, cases, None, folder / "videos")
    again = read_results(folder)
    assert json.dumps(found["cases"]) == json.dumps(again["cases"])
    assert found["metrics"] == again["metrics"]


def test_a_few_videos_are_scored_alone(folder, cases, tmp_path, capsys):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "speaking-000.mp4").write_bytes((folder / "videos" / "speaking-000.mp4").read_bytes())
    found = bench.run(tmp_path / "out", cases, None, tmp_path / "theirs")
    assert [row["id"] for row in found["cases"]] == ["speaking-000"]
    assert "3 of 4 cases have no video" in capsys.readouterr().err


def test_a_run_goes_on_where_it_stopped(folder, cases, tmp_path):
    (tmp_path / "videos").mkdir()
    for made in cases[:3]:
        (tmp_path / "videos" / f"{made.id}.mp4").write_bytes((folder / "videos" / f"{made.id}.mp4").read_bytes())
    pipeline = TruePipeline(cases)
    assert bench.run(tmp_path, cases, pipeline)["cases"] == read_results(folder)["cases"]
    assert [at for at, _ in pipeline.prompts] == [0]  # only the one that was missing


def test_prompts_change_at_the_chunk_that_begins_in_their_segment():
    made = case("motion")
    pipeline = TruePipeline([made])
    frames = np.concatenate(list(perform(pipeline, made)))
    assert np.array_equal(frames, video("motion"))
    assert [text for _, text in pipeline.prompts] == [segment.text for segment in made.prompt]
    starts = [12 * -(-round(segment.start * 24) // 12) for segment in made.prompt]
    assert [at for at, _ in pipeline.prompts] == starts


def test_a_teacher_performs_offline_from_the_first_frame_on():
    """Base's first frame is the picture, a frame before the case begins; segments ask for the prompts of their time."""
    made, asked = case("motion"), {}

    class Recorder:
        config = dataclasses.replace(tiny.CONFIG, sample=SampleConfig(segment=25, overlap=2))  # 16 frames further each

        def generate(self, image, speak, listen, prompts, **given):
            asked.update(image=image, speak=speak, listen=listen, prompts=prompts, **given)
            total = round(given["seconds"] * 24)
            return iter([np.zeros((1, 2, 2, 3), np.uint8), np.ones((total - 1, 2, 2, 3), np.uint8)])

    frames = np.concatenate(list(perform_offline(Recorder(), made, 3)))
    assert len(frames) == made.frames and frames.all()
    for name in ("speak", "listen"):
        assert not asked[name][:1000].any() and np.array_equal(asked[name][1000:], getattr(made, name))
    want = [next(s for s in reversed(made.prompt) if 24 * s.start <= at).text for at in range(0, made.frames, 16)]
    assert asked["prompts"] == want and len(set(want)) == len({s.text for s in made.prompt}) > 1
    assert asked["seed"] == 3 and len(asked["references"]) == tiny.CONFIG.stream.references


def test_base_performs_a_case():
    made = case("speaking")
    base = Base(dataclasses.replace(tiny.CONFIG, sample=SampleConfig(2, 1.0, 1.0, 1.0, 37)), tiny.params())
    frames = np.concatenate(list(perform_offline(base, made)))
    assert frames.shape == (made.frames, 32, 32, 3) and frames.std() > 1


def test_videos_of_other_rates_and_sizes_are_brought_to_ours(tmp_path):
    import av

    frames = np.zeros((50, 96, 160, 3), np.uint8)
    frames[:] = (np.arange(50) * 5)[:, None, None, None]
    with av.open(str(tmp_path / "a.mp4"), "w") as box:
        stream = box.add_stream("libx264", rate=50, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 96, 160, "yuv444p"
        for frame in frames:
            box.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        box.mux(stream.encode(None))
    read = np.concatenate(list(read_video(tmp_path / "a.mp4", 24, block=7)))
    assert read.shape == (24, 128, 128, 3)
    expected = 5 * np.floor((np.arange(24) + 0.5) / 24 * 50)
    assert np.abs(read.mean((1, 2, 3)) - expected).max() < 4
    assert len(np.concatenate(list(read_video(tmp_path / "a.mp4", 40)))) == 40  # the last frame stays
    with pytest.raises(InputError, match="a.mp4: expected 3.00 s of video, found 1.00 s"):
        list(read_video(tmp_path / "a.mp4", 72))
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="b.mp4: expected a video, found"):
        list(read_video(tmp_path / "b.mp4", 72))


def test_own_cases_without_truth_are_scored_as_far_as_can_be(tmp_path, monkeypatch, capsys):
    mine = tmp_path / "cases" / "mine"
    mine.mkdir(parents=True)
    write_picture(mine / "me.png", case("speaking").first)
    write_flac(mine / "a.flac", case("speaking").speak)
    (mine / "case.json").write_text('{"first": "me.png", "speak": "a.flac"}')
    write_case(case("listening"), tmp_path / "cases")
    for name, who in (("mine", "speaking"), ("listening-000", "listening")):
        write_video(tmp_path / "theirs" / f"{name}.mp4", [video(who)], case(who).speak)
    words = ["--cases", str(tmp_path / "cases"), "--videos", str(tmp_path / "theirs"), "--out", str(tmp_path / "out")]
    assert bench.main(words) == 0
    found = read_results(tmp_path / "out")
    assert found["model"] == "theirs" and found["suite"] == "cases"
    row = next(row for row in found["cases"] if row["id"] == "mine")
    assert row["truth"] is None and row["floor"] == row["ceiling"] == {}
    assert row["scores"]["lip_r"] is None and row["scores"]["frozen"] < 0.05 and row["scores"]["identity_colour"] < 0.3
    assert "lip_r" not in found["metrics"] and "nod_f1" in found["metrics"]
    assert "identity: identity_colour (-)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--out", "DIR", "--suite", "huge"], "--suite: expected one of tiny, small, full, long, found 'huge'"),
        (["--out", "DIR", "--model", "nobody"], "nobody"),
        (["--out", "DIR", "--seed", "-1"], "--seed: expected 0 to 2147483647, found -1"),
        (["--out", "DIR", "--model", "truth", "--offline"], "--offline: expected a model that performs, found truth"),
        (["--out", "DIR", "--audio-scale", "2"], "--audio-scale: expected with --offline, found a model that streams"),
        (["--out", "DIR", "--model", "truth", "--stream", "chunk=6"], "--stream: expected a model that streams"),
        (["--out", "DIR", "--stream", "steps=6"], "--stream: expected NAME=VALUE with one of chunk, sink"),
        (["--out", "DIR", "--stream", "sink=many"], "--stream sink: expected int, found 'many'"),
        (["--out", "DIR", "--chunk", "1"], "--chunk: expected 2 to 1,000 frames, found 1"),
        (["--out", "DIR", "--cases", "DIR/none", "--model", "truth"], "expected a folder of cases"),
        (["--out", "DIR", "--suite", "tiny", "--videos", "DIR/none"], "--videos: expected a folder of MP4 files"),
        (["--out", "DIR", "--suite", "tiny", "--videos", "DIR"], "such as speaking-000.mp4"),
        (["--suite", "tiny"], "--out"),
    ],
)
def test_bad_input_is_told_in_a_line(tmp_path, words, complaint):
    with pytest.raises(InputError) as error:
        bench.main([word.replace("DIR", str(tmp_path)) for word in words])
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_videos_of_one_model_are_not_taken_for_anothers(tmp_path):
    bench.claim(tmp_path, {"model": "toy", "seed": 0})
    bench.claim(tmp_path, {"model": "toy", "seed": 0})
    with pytest.raises(InputError, match="expected a new folder or one of the same run, found videos of seed 0"):
        bench.claim(tmp_path, {"model": "toy", "seed": 1})
    bench.claim(tmp_path / "one", {"model": "toy", "stream": ["levels=1"]})
    with pytest.raises(InputError, match=r"found videos of stream \['levels=1'\]$"):
        bench.claim(tmp_path / "one", {"model": "toy"})
    assert len(bench.fingerprint("toy")) == 16 and bench.fingerprint("toy") == bench.fingerprint("toy")


def test_results_of_another_kind_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected the folder of a run with results.json, found none"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text('{"schema": 9}')
    with pytest.raises(InputError, match="expected results of schema 1 with metrics and cases, found schema 9"):
        read_results(tmp_path)


@pytest.mark.slow
def test_the_toy_runs_the_tiny_suite_the_same_twice(tmp_path):
    """The real model: a minute."""
    found = []
    for name in ("one", "two"):
        assert bench.main(["--suite", "tiny", "--out", str(tmp_path / name)]) == 0
        results = read_results(tmp_path / name)
        found.append({k: results[k] for k in ("metrics", "cases")})
    assert found[0] == found[1]
    for path in (tmp_path / "one" / "videos").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "videos" / path.name).read_bytes()
