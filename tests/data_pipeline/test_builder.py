"""The data set: deterministic records, a round trip through ArrayRecord, the command line, and no TensorFlow."""

import json
import subprocess
import sys

import numpy as np
import pytest

from data_pipeline.performers import __main__ as command
from data_pipeline.performers.builder import build, contact_sheet, open_split
from data_pipeline.performers.character import sample_held_out_character, sample_training_character
from data_pipeline.performers.clip import clip_seed, frames_for, frames_of, make_clip, references_of
from data_pipeline.performers.render import render
from data_pipeline.schema import PARAMS, REFERENCES
from data_pipeline.video import decode_mp4, encode_mp4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("performers")
    build(out, clips=2, held_out=1, seed=5, seconds=1.0, workers=1)
    return out


def drawn_again(record, held_out):
    seed = int(np.random.SeedSequence(record["seed"]).generate_state(5)[0])
    character = sample_held_out_character(seed) if held_out else sample_training_character(seed)
    return render(character, record["params"])


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean(np.square(a.astype(float) - b.astype(float))))


def test_round_trip(folder):
    for split, count in (("train", 2), ("held_out", 1)):
        source = open_split(folder, split)
        assert len(source) == count
        seeds = {clip_seed(5, split, i) for i in range(count)}
        for record in source:
            assert record["seed"] in seeds
            truth = make_clip(record["seed"], 1.0, split == "held_out")
            for name in ("video", "speak", "listen", "params", "states", "regions"):
                np.testing.assert_array_equal(record[name], truth[name], err_msg=name)
            for name in ("prompt", "kind", "character", "phonemes", "events", "voice", "intention"):
                assert record[name].decode() == truth[name]
            assert list(record["references"]) == truth["references"]
            assert psnr(frames_of(record), drawn_again(record, split == "held_out")) > 38


def test_nothing_but_the_data_set_is_left_behind(folder):
    assert [p.name for p in folder.iterdir()] == ["performers"]
    assert [p.name for p in (folder / "performers").iterdir()] == ["1.1.0"]


def test_tensorflow_is_never_imported(folder):
    code = (
        "import sys\nfrom data_pipeline.performers.builder import open_split\n"
        f"print(len(open_split({str(folder)!r})[0]['video']) > 1000, 'tensorflow' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["True", "False"]
    assert "tensorflow" not in sys.modules


def test_a_record_has_every_field():
    record = make_clip(11, 2.0)
    frames = frames_for(2.0)
    assert frames == 49
    assert record["params"].shape == (frames, len(PARAMS))
    assert record["speak"].dtype == record["listen"].dtype == np.int16
    assert record["speak"].shape == record["listen"].shape == (frames * 1000,)
    assert record["states"].shape == (frames,)
    assert record["regions"].shape == (frames, 3, 4)
    top, left, bottom, right = np.moveaxis(record["regions"], -1, 0)
    assert (bottom > top).all()
    assert (right > left).all()
    assert frames_of(record).shape == (frames, 128, 128, 3)
    assert len(record["references"]) == len(REFERENCES)
    found = references_of(record)
    assert found["global"].shape == (128, 128, 3)
    for name in ("character", "phonemes", "events", "voice", "intention"):
        json.loads(record[name])


def test_any_subset_of_references_may_be_missing():
    have = np.array([[bool(x) for x in make_clip(seed, 0.3)["references"]] for seed in range(12)])
    assert have[:, 0].all()
    assert 0.3 < have[:, 1:].mean() < 0.7
    assert len({tuple(row) for row in have}) > 10


def test_workers_change_nothing(folder, tmp_path):
    build(tmp_path, clips=2, held_out=0, seed=5, seconds=1.0, workers=2)
    one = {r["seed"]: r for r in open_split(folder)}
    two = {r["seed"]: r for r in open_split(tmp_path)}
    assert one.keys() == two.keys()
    for seed, record in one.items():
        assert record["video"] == two[seed]["video"]
        np.testing.assert_array_equal(record["speak"], two[seed]["speak"])
        np.testing.assert_array_equal(record["params"], two[seed]["params"])


def test_frames_are_four_k_plus_one():
    assert [frames_for(s) for s in (0.2, 1, 4, 5.02, 60)] == [5, 25, 97, 121, 1441]


def test_video_bytes_round_trip():
    y, x = np.mgrid[:64, :64]
    frames = np.stack([np.stack([(x * 4) % 256, (y * 4 + 5 * i) % 256, 0 * x + 90], -1) for i in range(5)])
    back = decode_mp4(encode_mp4(frames.astype(np.uint8)))
    assert back.shape == frames.shape
    assert psnr(back, frames) > 34
    with pytest.raises(ValueError, match="expected video bytes"):
        decode_mp4(b"not a video")


def test_sheet(folder):
    assert contact_sheet([open_split(folder)[0]], 4).shape == (128, 512, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clips", "0"], "--clips: expected at least 1, found 0"),
        (["--clips", "1", "--seconds", "0"], "--seconds: expected 0.2 to 600, found 0"),
        (["--clips", "1", "--workers", "0"], "--workers: expected at least 1, found 0"),
        (["--clips", "1", "--held-out", "-1"], "--held-out: expected at least 0, found -1"),
        (["--clips", "1", "--sheet", "a.jpg"], "--sheet: expected a name that ends in .png, found a.jpg"),
    ],
)
def test_bad_options_are_one_line_and_status_2(options, message, tmp_path, capsys):
    assert command.main(["--out", str(tmp_path / "x"), *options]) == 2
    assert capsys.readouterr().err.splitlines() == [message]


def test_an_existing_data_set_is_kept(folder, capsys):
    assert command.main(["--out", str(folder), "--clips", "1"]) == 2
    assert "expected no data set yet" in capsys.readouterr().err
    assert len(open_split(folder)) == 2


def test_opening_nothing_says_how_to_make_it(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a data set of performers, found none"):
        open_split(tmp_path)
    with pytest.raises(ValueError, match=r"expected one of the splits \['held_out', 'train'\], found 'x'"):
        open_split(folder, "x")


def test_clips_from_rest(folder, tmp_path):
    """The same clips, but for how their prompts begin."""
    options = ["--clips", "2", "--seed", "5", "--seconds", "1", "--workers", "1", "--from-rest"]
    assert command.main(["--out", str(tmp_path), *options]) == 0
    eased = {r["seed"]: r for r in open_split(tmp_path)}
    for record in open_split(folder):
        other = eased[record["seed"]]
        assert other["prompt"] == record["prompt"]
        np.testing.assert_array_equal(other["speak"], record["speak"])
        asked = json.loads(record["intention"])
        changed = not np.allclose(other["params"], record["params"], atol=1e-6)
        assert changed == bool(asked["action"] or asked["intensity"])


def test_command_line(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    options = [
        "--out",
        str(tmp_path / "d"),
        "--clips",
        "2",
        "--seconds",
        "0.3",
        "--workers",
        "1",
        "--sheet",
        str(sheet),
    ]
    assert command.main(options) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("2 training and 0 held-out clips in ")
    assert "train: 2/2 clips" in captured.err
    assert sheet.stat().st_size > 1000


def test_large_sets_are_shuffled_through_files(tmp_path, monkeypatch):
    from tensorflow_datasets.core import shuffle

    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1)
    build(tmp_path, clips=3, seed=1, seconds=0.3)
    assert len({record["seed"] for record in open_split(tmp_path)}) == 3
    assert not list(tmp_path.rglob("*.tmp"))
