"""The latent cache's rows, reconstruction scores, and contact sheets."""

import dataclasses
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_pipeline.loader import SILENCE, RegionWeights, Window
from data_pipeline.schema import LIFE, PARAMS, REFERENCES
from data_pipeline.video import encode_mp4
from lpm_jax.errors import InputError
from lpm_jax.training import encoders, latents
from lpm_jax.training.sheets import save_sheet
from lpm_jax.training.vae import psnr, reconstruction_scores
from tests import tiny

FRAMES, SIDE = 29, 32  # 4 k + 1


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def record() -> dict:
    """A clip whose frame ``i`` is grey ``8 i``; speech clicks in frame 9 only, the partner's in frame 20."""
    video = np.broadcast_to((8 * np.arange(FRAMES, dtype=np.uint8))[:, None, None, None], (FRAMES, SIDE, SIDE, 3))
    tracks = {}
    for name, frame in (("speak", 9), ("listen", 20)):
        tracks[name] = np.zeros(1000 * FRAMES, np.int16)
        tracks[name][1000 * frame + 400 : 1000 * frame + 600] = 12_000 * (-1) ** np.arange(200)
    regions = np.zeros((FRAMES, 3, 4), np.float32)
    regions[6, 0] = [0.5, 0.5, 0.7, 0.7]  # a mouth in frame 6 only: latent 2
    references = [b""] * len(REFERENCES)
    references[0], references[REFERENCES.index("view/left")] = png(40), png(80)
    references[REFERENCES.index("expression/sad")] = png(120)
    params = np.zeros((FRAMES, len(PARAMS)), np.float32)
    params[:, PARAMS.index("aperture")] = np.arange(FRAMES)
    life = np.repeat(np.arange(FRAMES, dtype=np.float32)[:, None], len(LIFE), axis=1)
    return {
        "video": encode_mp4(video), "references": references, "seed": 5, "prompt": b"smiles", "kind": "idle",
        "regions": regions, "params": params, "life": life, **tracks,
    }  # fmt: skip


def grey(video: np.ndarray) -> np.ndarray:
    """A stand-in for the encoder: each latent frame is the mean of its first video frame, ``[b, latents, 4, 4, 8]``."""
    first = video[:, [0, *range(1, video.shape[1], 4)]].mean((2, 3, 4))
    return np.broadcast_to(first[..., None, None, None], (*first.shape, 4, 4, 8)).astype(np.float32)


@pytest.fixture
def row(record) -> dict:
    return latents.encode_clip(tiny.CONFIG, encoders.small(tiny.CONFIG, grey), record)


def test_row_of_the_cache(row):
    level = row["latents"][:, 0, 0, 0]
    np.testing.assert_allclose(level, [0, 8, 40, 72, 104, 136, 168, 200], atol=4)  # frames 0, 1, 5, 9, ...
    # Stills are frames 0, 12 and 24: where the windows that follow them start.
    np.testing.assert_allclose(row["stills"][:, 0, 0, 0], [0, 96, 192], atol=4)
    assert row["reference_kinds"][:3].tolist() == [
        1,
        1 + REFERENCES.index("view/left"),
        1 + REFERENCES.index("expression/sad"),
    ]
    assert row["reference_kinds"][3:].tolist() == [-1, -1]
    np.testing.assert_allclose(row["references"][:, 0, 0, 0], [40, 80, 120, 0, 0], atol=1)
    assert row["kind"] == latents.KINDS.index("idle")
    assert row["text"].shape == (8,) and row["aperture"].tolist() == list(range(FRAMES))
    assert np.argwhere(row["mouth"])[:, 0].tolist() == [2] and row["mouth"][2, 2, 2]
    assert not row["eyes"].any() and not row["face"].any()


def test_sound_of_the_cache_is_heard_in_its_frame(row):
    for name, frame in (("speak", 9), ("listen", 20)):
        loud = (row[name].astype(np.float32) > SILENCE + 0.1).any(1)
        # The click's analysis window reaches 512 samples on: within the frame, or into the next one.
        assert loud[frame] and set(np.flatnonzero(loud)) <= {frame, frame + 1}
        quiet = row[name][:frame].astype(np.float32)
        np.testing.assert_allclose(quiet, SILENCE, atol=1e-3)


def test_windows_of_the_cache_line_up(row):
    """From the record to the window: the click lies in the tokens of the latent frame that shows it."""
    window = Window(latents=3, history=8, weights=RegionWeights(mouth=4.0), first_frame=1.0, extra=0.0)
    starts = set()
    for seed in range(20):
        out = window.random_map(row, np.random.default_rng(seed))
        grey_at = out["latents"][:, 0, 0, 0].astype(np.float32)
        first_frames = np.round(grey_at / 8).astype(int)  # of each latent: 4 j + 1
        starts.add(int(first_frames[0]))
        assert np.diff(first_frames).tolist() == [4, 4]
        np.testing.assert_array_equal(out["life"], first_frames[:, None] + np.full(len(LIFE), 1.5))  # mean of four
        assert abs(float(out["references"][0, 0, 0, 0]) - 8 * (first_frames[0] - 1)) < 5
        loud = (out["speak"].astype(np.float32) > SILENCE + 0.1).any(1)
        where = 8 + 9 - first_frames[0]  # frame 9 in tokens of this window
        assert loud[where] if 0 <= where < len(loud) else not loud.any() or where == -1
    assert starts == {1, 13}


def test_latent_source(tmp_path, row):
    for name, value in row.items():
        rows = np.stack([value] * 4)
        if name == "kind":
            rows = np.array([0, 3, 1, 3], np.int32)
        if name == "text":
            rows[:, 1] = np.arange(4)
        np.save(tmp_path / f"{name}.npy", rows)
    everything = latents.LatentSource(tmp_path)
    assert len(everything) == 4 and [int(everything[i]["text"][1]) for i in range(4)] == [0, 1, 2, 3]
    idle = latents.LatentSource(tmp_path, ("idle",))
    assert len(idle) == 2 and [int(idle[i]["text"][1]) for i in range(2)] == [1, 3]
    assert len(latents.LatentSource(tmp_path, ("speak", "listen"))) == 2
    assert idle[0].keys() == row.keys()
    assert repr(idle) != repr(everything)  # a saved iterator of one is not restored into the other


def test_principal_motions_explain_how_clips_have_moved(tmp_path):
    """Of frames that are mixtures of two fields, two motions explain all, as large as they are, and one the larger."""
    rng = np.random.default_rng(0)
    fields = np.linalg.qr(rng.normal(size=(32, 2)))[0].T.reshape(2, 4, 4, 2)
    amounts = rng.normal(size=(3, 6, 4, 2)) * [8.0, 2.0]  # clip, latent, video frame, field
    moves = np.einsum("nltk,khwx->nlthwx", amounts, fields)
    np.save(tmp_path / "moves.npy", moves.astype(np.float32))
    np.save(tmp_path / "kind.npy", np.zeros(3, np.int32))
    source = latents.LatentSource(tmp_path)
    found = latents.principal_motions(source, 2).reshape(2, -1)
    seen = amounts[:, 1:].reshape(-1, 2)  # the first latent frame is a picture
    np.testing.assert_allclose(
        found.T @ found, fields.reshape(2, -1).T @ (seen.T @ seen / len(seen)) @ fields.reshape(2, -1), atol=1e-3
    )
    first = latents.principal_motions(source, 1).reshape(-1)
    assert abs(first @ fields[0].ravel()) > 0.95 * np.linalg.norm(first) and np.linalg.norm(first) > 5
    with pytest.raises(InputError, match="--dit.warp: expected at most 32 motions"):
        latents.principal_motions(source, 33)


def test_fingerprint_follows_weights_and_data(record):
    weights, config = {"a": np.ones(3), "b": np.zeros(2)}, tiny.CONFIG
    name = latents.fingerprint(config, weights, [record])
    assert len(name) == 10 and name == latents.fingerprint(config, weights, [record])
    assert name != latents.fingerprint(config, weights | {"a": np.full(3, 1.1)}, [record])
    assert name != latents.fingerprint(config, weights, [record, record])
    assert name != latents.fingerprint(config, weights, [record | {"video": b"other"}])
    text = dataclasses.replace(config, text=dataclasses.replace(config.text, vocabulary=77))
    bands = dataclasses.replace(config, audio=dataclasses.replace(config.audio, bands=13))
    hearing = dataclasses.replace(config, audio=dataclasses.replace(config.audio, hearing=2))
    found = [latents.fingerprint(c, weights, [record]) for c in (text, bands, hearing)]
    assert len({name, *found}) == 3 and found[2] == name  # words and bands are in the cache, what hears them is not
    still, other = (dataclasses.replace(config, dit=dataclasses.replace(config.dit, warp=count)) for count in (0, 5))
    assert latents.fingerprint(still, weights, [record]) != name == latents.fingerprint(other, weights, [record])


def test_a_data_set_that_is_not_there_is_named(tmp_path):
    config = dataclasses.replace(tiny.CONFIG, data=str(tmp_path / "none"))
    with pytest.raises(
        InputError, match="--data .*none: expected a data set of performers, found none .*--held-out 16"
    ):
        latents.open_clips(config, "train")


def test_psnr():
    assert psnr(4.0) == pytest.approx(0.0)  # the whole range wrong
    assert psnr(0.04) == pytest.approx(20.0)
    assert np.isfinite(psnr(0.0))


def test_reconstruction_scores(record):
    record["params"][10:14, PARAMS.index("pitch")] = [0, 8, 16, 24]  # fast: 8 degrees a frame
    record["regions"][:, 0] = [0.0, 0.0, 0.5, 0.5]

    def roundtrip(video):
        out = video / 127.5 - 1.0
        out[:, :, :16, :16] += 0.2  # the mouth is off by 0.2
        return out

    scores = reconstruction_scores(roundtrip, [record], clips=4)
    assert scores["psnr_mouth"] == pytest.approx(psnr(0.04), abs=1e-3)
    assert scores["psnr_all"] == pytest.approx(psnr(0.01), abs=1e-3)
    assert scores["psnr_moving"] == pytest.approx(psnr(0.01), abs=1e-3)
    assert "psnr_eyes" not in scores  # boxes without area


def test_contact_sheet(tmp_path):
    rows = [np.full((3, 4, 5, 3), 10, np.uint8), np.full((2, 4, 5, 3), 20, np.uint8)]
    rows[0][1] = 99
    save_sheet(tmp_path / "deep" / "sheet.png", rows)
    sheet = np.asarray(Image.open(tmp_path / "deep" / "sheet.png"))
    assert sheet.shape == (8, 15, 3)
    assert (sheet[:4, 5:10] == 99).all() and (sheet[4:, :10] == 20).all() and (sheet[4:, 10:] == 255).all()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["sheet.png"]


def test_pictures_of_longer_clips_are_encoded_sixteen_at_a_time():
    seen = []

    def encode(pictures: np.ndarray) -> np.ndarray:
        seen.append(len(pictures))
        return 2.0 * pictures

    for count, batches in ((3, 1), (16, 1), (17, 2), (33, 3)):
        pictures = np.arange(1, count + 1, dtype=np.float32)[:, None]
        np.testing.assert_array_equal(encoders.by_sixteen(encode, pictures), 2 * pictures)
        assert seen == [16] * batches
        seen.clear()


def test_a_cache_that_was_not_finished_leaves_nothing(tmp_path):
    """What writers left that are gone is removed; those that run keep theirs."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stale, other = (tmp_path / f"cache.incomplete-{pid}" for pid in (gone.pid, os.getppid()))
    for folder in (stale, other):
        folder.mkdir()
        (folder / "latents.npy").write_bytes(b"0")
    latents.store(tmp_path / "cache", iter([{"kind": np.int32(i)} for i in range(3)]), 3)
    assert not stale.exists() and (other / "latents.npy").exists()
    np.testing.assert_array_equal(np.load(tmp_path / "cache" / "kind.npy"), [0, 1, 2])
