"""Whole videos and runs with instruments for real faces, on stand-ins; what is said of wrong and missing files."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from data_pipeline.schema import PARAM_INDEX
from lpm_jax.bench import run as bench
from lpm_jax.bench import write_cases
from lpm_jax.bench.cases import Recorded, read_case
from lpm_jax.bench.files import write_video
from lpm_jax.bench.instruments.real.observe import RealInstruments, overlapping, shrunk
from lpm_jax.bench.schema import read_results
from lpm_jax.errors import InputError, run_door
from tests.bench import standins
from tests.bench.real_faces import SIZE, loudness, noise, spoken_video, write_weights


@pytest.fixture(scope="module", autouse=True)
def half_size():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RealInstruments, "size", SIZE)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def instruments(weights):
    return RealInstruments(weights)


# --- whole videos ------------------------------------------------------------------------------------------------


def test_blocks_of_any_length_give_the_same_observation(instruments):
    levels = loudness(40)
    frames = spoken_video(levels, poses=np.arange(40) // 3 % 3)
    whole = instruments.observe([frames])
    parts = instruments.observe([frames[:3], frames[3:20], frames[20:21], frames[21:]])
    assert whole.lips.shape == (40, 5) and whole.looks.shape == (7, 15) and whole.faces == 1
    assert whole.thumbs.shape == (40, 8, 8, 3) and whole.change.shape == (39,) and whole.features is None
    assert all(np.array_equal(whole.read[name], parts.read[name]) for name in whole.read)
    for name in ("thumbs", "change", "detail", "lips", "looks"):
        assert np.allclose(getattr(whole, name), getattr(parts, name), atol=1e-5), name
    assert whole.take(np.zeros(13, int)).looks.shape == (3, 15)
    items = [(np.arange(a, b),) for a, b in ((0, 2), (2, 11), (11, 12), (12, 30))]
    seen = [(held[own], held[max(own.start - 4, 0) : own.stop + 4]) for (held,), own in overlapping(items, 4)]
    assert np.concatenate([own for own, _ in seen]).tolist() == list(range(30))
    assert all(around[0] == max(own[0] - 4, 0) and around[-1] == min(own[-1] + 4, 29) for own, around in seen)


def test_pictures_are_shrunk_by_their_means():
    frames = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    assert shrunk(frames)[1, 5, 7].tolist() == frames[1, 10:12, 14:16].mean((0, 1)).round().tolist()


def test_a_video_without_a_face_is_nobody(instruments):
    seen = instruments.observe([np.full((14, SIZE, SIZE, 3), 60, np.uint8)])
    assert seen.faces == 0 and seen.lips is None and not seen.looks.any() and "pitch" in seen.read
    first = np.full((SIZE, SIZE, 3), 60, np.uint8)
    small, looks = instruments.introduce([first, spoken_video(loudness(1))[0]])
    assert np.isnan(looks[0]).all() and np.linalg.norm(looks[1]) == pytest.approx(1)
    assert [picture.shape for picture in small] == [(128, 128, 3)] * 2
    with pytest.raises(ValueError, match="found no frames"):
        instruments.observe([])


NODS = [0] * 30 + [2, 3, 4, 3, 2] + [0] * 25 + [2, 3, 4, 3, 2] + [0] * 7
WHO = {"ada": (200, 200), "bob": (0, 250), "eve": (0, 0)}
SPEECH = (np.random.default_rng(5).integers(0, 3, 24) > 0).repeat(3).astype(int)  # 72 frames, open or closed


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Three clips of three seconds: two speak, one has another face and other words."""
    folder = tmp_path_factory.mktemp("recordings")
    for name, seed, poses in (("ada", 0, SPEECH), ("bob", 3, SPEECH[::-1]), ("eve", 4, np.array(NODS))):
        levels = loudness(72, seed)
        write_video(folder / f"{name}.mp4", [spoken_video(levels, 0, poses, WHO[name])], noise(levels))
    return folder


@pytest.fixture(scope="module")
def cases(recordings, tmp_path_factory):
    out = tmp_path_factory.mktemp("cases")
    assert write_cases.main(["--recordings", str(recordings), "--out", str(out)]) == 0
    eve = json.loads((out / "eve" / "case.json").read_text())
    (out / "eve" / "case.json").write_text(
        json.dumps(eve | {"speak": None, "listen": "speak.flac", "kind": "listening"})
    )
    return out


def test_recordings_become_cases(recordings, cases):
    case = read_case(cases / "ada")
    assert case.frames == 72 and case.kind == "speaking" and isinstance(case.truth, Recorded)
    assert case.first.shape == (SIZE, SIZE, 3) and case.truth.path.read_bytes() == (recordings / "ada.mp4").read_bytes()
    assert np.abs(case.speak).max() > 0.1
    truth = case.truth.as_read({"aperture": np.ones(72), "brow": np.full(72, 0.5), "eyes": np.zeros(72)})
    assert truth["aperture"].all() and truth["brow_outer_left"][3] == 0.5 and not truth["pitch"].any()
    assert len(truth.params) == 72 and PARAM_INDEX["aperture"] < truth.params.shape[1]
    assert sum(len(part) for part in case.truth.video()) == 72


@pytest.mark.slow
def test_foreign_videos_are_scored_with_real_instruments(weights, cases, recordings, tmp_path, capsys):
    """Ada's lips come three frames late, Bob is as recorded, Eve nods only once."""
    theirs = tmp_path / "theirs"
    levels = loudness(72)
    late = spoken_video(levels, 3, SPEECH[np.maximum(np.arange(72) - 3, 0)], WHO["ada"])
    write_video(theirs / "ada.mp4", [late], noise(levels))
    (theirs / "bob.mp4").write_bytes((recordings / "bob.mp4").read_bytes())
    once = spoken_video(loudness(72, 4), 0, np.array(NODS[:50] + [0] * 22), WHO["bob"])  # and turns into Bob
    write_video(theirs / "eve.mp4", [once], noise(loudness(72, 4)))
    words = ["--videos", str(theirs), "--cases", str(cases), "--instruments", "real", "--weights", str(weights)]
    assert bench.main([*words, "--out", str(tmp_path / "out")]) == 0
    found = read_results(tmp_path / "out")
    assert set(found["instruments"]) == {path.name for path in weights.iterdir()}
    ada, bob, eve = found["cases"]
    assert bob["scores"] == bob["ceiling"] and bob["scores"]["lip_r"] == pytest.approx(1)
    assert ada["scores"]["lip_lag"] == 3 and abs(ada["scores"]["sync_offset"] - 3) <= 1
    assert ada["ceiling"]["sync_offset"] <= 1 and ada["scores"]["lip_r"] < 0.9
    assert bob["scores"]["sync_c"] > bob["floor"]["sync_c"] and bob["scores"]["sync_d"] < bob["floor"]["sync_d"]
    assert eve["scores"]["nod_f1"] == pytest.approx(2 / 3, abs=1e-4) and eve["ceiling"]["nod_f1"] == 1
    assert bob["scores"]["identity_similarity"] > 0.95 > eve["scores"]["identity_similarity"]
    assert bob["scores"]["identity_auc"] == 1 and bob["floor"]["identity_auc"] < 0.6
    assert eve["scores"]["identity_auc"] < 0.6 and eve["ceiling"]["identity_auc"] == 1
    assert "frechet_picture" not in found["metrics"] and "stop_delay" not in found["metrics"]
    said = capsys.readouterr().err
    assert "note: no network for Frechet distances of real pictures" in said and "no det_10g" not in said


# --- files that are missing or wrong -----------------------------------------------------------------------------


def test_each_missing_file_is_told_with_where_to_get_it(weights, tmp_path):
    for name in ("det_10g.onnx", "rtmw.onnx"):
        (tmp_path / name).write_bytes((weights / name).read_bytes())
    some = RealInstruments(tmp_path)
    assert some.looks is some.sync is None and len(some.missing) == 4
    assert some.missing[0] == (
        f"no w600k_r50.onnx in {str(tmp_path)!r}: identity_similarity and identity_auc are left out "
        "(from InsightFace, github.com/deepinsight/insightface, model pack buffalo_l)"
    )
    seen = some.observe([spoken_video(loudness(13))])
    assert seen.lips is seen.looks is None and len(seen.read["aperture"]) == 13
    (tmp_path / "det_10g.onnx").unlink()
    (tmp_path / "w600k_r50.onnx").write_bytes((weights / "w600k_r50.onnx").read_bytes())
    poses = RealInstruments(tmp_path)
    assert poses.looks is poses.faces is None and "which need to know where the face is" in poses.missing[0]
    assert poses.observe([spoken_video(loudness(13))]).faces is None


def test_without_points_metrics_of_mouths_are_absent(weights, cases, recordings, tmp_path):
    for name in ("det_10g.onnx", "w600k_r50.onnx"):
        (tmp_path / name).write_bytes((weights / name).read_bytes())
    words = ["--videos", str(recordings), "--cases", str(cases), "--instruments", "real", "--weights", str(tmp_path)]
    assert bench.main([*words, "--out", str(tmp_path / "out")]) == 0
    metrics = read_results(tmp_path / "out")["metrics"]
    assert not {"lip_r", "nod_f1", "mouth_still", "stop_delay", "prompt_recall", "sync_c"} & set(metrics)
    assert {"identity_similarity", "identity_auc", "identity_colour", "frozen", "flicker", "drift"} <= set(metrics)
    assert metrics["identity_auc"]["result"]["value"] == 1


@pytest.mark.parametrize(
    "build, complaint",
    [
        (lambda d: standins.embedding(d, 224), "w600k_r50.onnx: input: expected [any, 3, 112, 112], found [any, 3, 22"),
        (lambda d: standins.detector(d, outputs=6), "det_10g.onnx: expected 1 input and 9 outputs, found 1 and 6"),
        (lambda d: (d / "rtmw.onnx").write_bytes(b"nothing"), "rtmw.onnx: expected an ONNX model, found"),
        (lambda d: standins.poses(d, np.zeros((1, 17, 2), int), points=17), "expected rows [n, 133, 576], found [1, 1"),
        (lambda d: standins.blue_and_loud(d, 4), "syncnet_lips.onnx: output: expected vectors as long as those of"),
    ],
)  # fmt: skip
def test_files_that_are_not_what_was_expected_are_refused(weights, tmp_path, build, complaint):
    for path in weights.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    build(tmp_path)
    with pytest.raises(InputError) as error:
        RealInstruments(tmp_path)
    assert complaint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--instruments", "real"], "--weights: expected a folder of ONNX files with --instruments real, found none"),
        (["--weights", "DIR"], "found them for drawn ones"),
        (
            ["--instruments", "real", "--weights", "DIR/none"],
            "--weights: expected a folder of ONNX files, found none at",
        ),
        (["--instruments", "real", "--weights", "DIR"], "expected det_10g.onnx or rtmw.onnx (docs/bench.md says where"),
        (["--instruments", "eyes"], "invalid choice: 'eyes'"),
    ],
)
def test_bad_input_ends_with_status_two(words, complaint, tmp_path, capsys):
    words = [word.replace("DIR", str(tmp_path)) for word in words]
    with pytest.raises(SystemExit) as ended:
        run_door(lambda: bench.main(["--out", str(tmp_path / "out"), "--suite", "tiny", "--model", "truth", *words]))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and complaint in said and said.count("\n") == 1


def test_without_the_extra_one_line_says_how_to_get_it(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"expected the extra 'real' \(uv sync --extra real\), found no onnxruntime"):
        RealInstruments(weights)


def test_recordings_that_are_none_are_told(tmp_path):
    with pytest.raises(InputError, match="--recordings: expected a folder with MP4 files, found none"):
        write_cases.main(["--recordings", str(tmp_path), "--out", str(tmp_path / "out")])
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="a.mp4: expected a video"):
        write_cases.main(["--recordings", str(tmp_path), "--out", str(tmp_path / "out")])
