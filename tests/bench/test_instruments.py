"""The instruments that are trained here: a few steps teach something, what is saved is what is read."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("espeakng_loader")

import jax

from lpm_jax.bench.instruments import __main__ as door
from lpm_jax.bench.instruments import expressions, identity, sync, trained
from lpm_jax.bench.instruments.fitting import fit
from lpm_jax.bench.instruments.reader import Reader
from lpm_jax.bench.observe import Instruments
from lpm_jax.errors import InputError
from tests.bench.drawn import case, instruments, video

QUICK = {
    "sync": ["--clips", "3", "--steps", "3", "--judges", "2"],
    "identity": ["--pairs", "4", "--poses", "2", "--steps", "3", "--judges", "2"],
    "expressions": ["--frames", "24", "--steps", "3", "--judges", "3"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("sync", marks=pytest.mark.slow), "identity", "expressions"])
def test_training_writes_weights_that_load(name, tmp_path):
    module = {"sync": sync, "identity": identity, "expressions": expressions}[name]
    assert door.main([name, "--out", str(tmp_path), *QUICK[name]]) == 0
    told = json.loads((tmp_path / "accuracy.json").read_text())
    assert told["training"]["steps"] == 3 and all(np.isfinite(x) for x in told["held_out"].values())
    loaded = {"sync": "Sync", "identity": "Looks", "expressions": "Expressions"}[name]
    params = getattr(module, loaded).load(tmp_path).params
    assert sum(x.size for x in jax.tree.leaves(params)) < 400_000
    assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) < 2**20


def test_fit_learns():
    target = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    loss = lambda params, batch, key: ((params["w"] - batch.mean(0)) ** 2).sum()  # noqa: E731
    found = fit(loss, {"w": np.zeros(3, np.float32)}, lambda i: target, 200, 0.05)
    assert np.abs(np.asarray(found["w"]) - target.mean(0)).max() < 0.05


def test_synchrony_sees_the_same_moment_in_both():
    """Windows of picture and sound are of the same five frames, and of as many as there are."""
    made = case("speaking")
    crops, mels = sync.mouths(video("speaking")), sync.mel(made.speak)
    assert len(crops) == len(mels) == made.frames
    assert crops.shape[1:] == (32, 32, 3)
    at = np.array([0, 40, made.frames - 1])
    windows = sync.video_windows(crops, at).reshape(3, 32, 32, 5, 3)
    assert np.array_equal(windows[1, :, :, 2], crops[40]) and np.array_equal(windows[0, :, :, 0], crops[0])
    assert np.array_equal(sync.mel_windows(mels, at)[1, 8:12, :, 0], mels[40])
    assert np.allclose(sync.mel(made.speak, block=7), mels)
    seen, heard = sync.batches([(crops, mels)] * 2, seed=0, each=4)(7)
    assert seen.shape == (8, 32, 32, 15) and heard.shape == (8, 20, 32, 1)
    loud, opening = mels.mean((1, 2)), made.truth["aperture"]
    assert np.corrcoef(loud, opening)[0, 1] > 0.4


def test_twins_differ_in_one_trait():
    rng = np.random.default_rng(0)
    for seed in range(12):
        one, two = identity.twins(seed, rng)
        differing = [t for t in identity.TRAITS if getattr(one, t) != getattr(two, t)]
        assert len(differing) == 1 and one.head_width == two.head_width and one != two


def test_labels_are_in_the_readings_units():
    from data_pipeline.performers.render import neutral_params
    from data_pipeline.schema import PARAM_INDEX

    params = neutral_params(2)
    params[1, PARAM_INDEX["yaw"]] = 10
    params[1, PARAM_INDEX["brow_inner_left"]] = 1
    labels = expressions.labels_of(None, params)
    assert labels[1, 0] == 0.5 and labels[1, 4] == 0.5 and not labels[0].any()


@pytest.mark.slow
def test_untrained_instruments_take_part_in_an_observation():
    """Shapes and names, not accuracy."""
    looks, heard = identity.Looks(identity.Looks.initial(0)), sync.Sync(sync.Sync.initial(0))
    whole = Instruments(instruments().reader, expressions.Expressions(expressions.Expressions.initial(0)), heard, looks)
    frames = video("speaking")[:31]
    seen = whole.observe([frames[:7], frames[7:]])
    assert {"yaw", "brow", "smile", "aperture"} <= seen.read.keys()
    assert all(len(values) == 31 for values in seen.read.values())
    assert seen.lips.shape == (31, 64) and seen.looks.shape == (6, 48)
    once = whole.observe([frames])
    assert np.allclose(once.lips, seen.lips, atol=1e-5) and np.allclose(once.looks, seen.looks, atol=1e-5)
    assert np.allclose(np.linalg.norm(seen.looks, axis=1), 1, atol=1e-3)
    assert heard.hear(case("speaking").speak[:31_000]).shape == (31, 64)
    assert seen.take(np.zeros(13, int)).looks.shape == (3, 48)


def test_missing_weights_are_told_in_a_line_each(monkeypatch, tmp_path):
    reader = Instruments.load().reader
    monkeypatch.setattr(trained, "FOLDER", tmp_path)
    monkeypatch.setattr(Reader, "load", lambda: reader)
    found = Instruments.load()
    assert len(found.missing) == 3 and found.sync is found.looks is found.expressions is None
    assert found.missing[1].startswith("no sync weights: Sync-C and Sync-D are left out (python -m")
    with pytest.raises(InputError, match="expected one of reader, expressions, sync, identity, found 'ears'"):
        door.main(["ears"])
