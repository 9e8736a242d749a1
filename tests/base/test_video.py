"""Long video in segments: lengths, what each segment is told, the blend, determinism, refusals, and the file."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import av
import jax
import numpy as np
import pytest
from PIL import Image

from lpm_jax import pretrained
from lpm_jax.base import Base, sampler, video
from lpm_jax.config import SampleConfig
from lpm_jax.errors import InputError
from lpm_jax.models import conditions
from tests import tiny
from tests.test_media import write_wav

QUICK = SampleConfig(steps=2, shift=1.0, text_scale=1.0, audio_scale=1.0, segment=25, overlap=2)  # 6 latents


@pytest.fixture(scope="module")
def base() -> Base:
    return Base(tiny.CONFIG, tiny.params())


def play(base: Base, **inputs) -> np.ndarray:
    return np.concatenate(list(base.generate(tiny.picture(), **{"sample": QUICK} | inputs)))


@pytest.mark.parametrize("frames", [1, 2, 5, 25, 26, 41, 60])
def test_video_lasts_as_long_as_asked(base, frames):
    out = play(base, seconds=frames / 24)
    assert out.shape == (frames, 32, 32, 3) and out.dtype == np.uint8


def test_the_longer_sound_counts_and_chance_is_seeded(base):
    out = play(base, audio=tiny.sound(30_000), listen=tiny.sound(36_500), seed=3)
    assert len(out) == 37
    np.testing.assert_array_equal(out, play(base, audio=tiny.sound(30_000), listen=tiny.sound(36_500), seed=3))
    other = play(base, audio=tiny.sound(30_000), listen=tiny.sound(36_500), seed=4)
    np.testing.assert_array_equal(out[0], other[0])  # the picture
    assert np.abs(out[1:].astype(int) - other[1:]).mean() > 1


def spy(monkeypatch) -> list[dict]:
    calls, real = [], sampler.sample

    def sample(config, params, batch, tail, continues, frames, key):
        out = real(config, params, batch, tail, continues, frames, key)
        calls.append({"batch": batch, "tail": np.asarray(tail), "continues": bool(continues), "out": np.asarray(out)})
        return out

    monkeypatch.setattr(sampler, "sample", sample)
    return calls


def test_segments(base, monkeypatch):
    """Each begins with the tail of the one before, hears its own sound and reads its own prompt."""
    calls = spy(monkeypatch)
    sound = tiny.sound(70_000)
    play(base, audio=sound, prompt=["smiles", "nods", "blinks"])
    assert [c["continues"] for c in calls] == [False, True, True, True]  # 70 frames: 18 latents, 6 + 4 + 4 + 4
    ids = [base.prompts(p) for p in ("smiles", "nods", "blinks", "blinks")]
    features, history = (f(base.config.audio) for f in (conditions.audio_features, conditions.history_tokens))
    padded = np.pad(sound, (100_000, 100_000))
    for k, call in enumerate(calls):
        np.testing.assert_array_equal(call["batch"]["text"][0], ids[k])
        first = call["batch"]["reference_kinds"] == conditions.FIRST_FRAME
        assert call["batch"]["reference_valid"][first].all() == (k == 0)
        begin = (1 + 16 * k - history) * 1000 - features.history  # frame 0 is the picture
        heard = padded[None, 100_000 + begin : 100_000 + (1 + 16 * k + 24) * 1000]
        np.testing.assert_allclose(call["batch"]["speak"], features({}, heard), atol=1e-5)
        if k:
            np.testing.assert_allclose(call["tail"], calls[k - 1]["out"][:, 4:], atol=1e-6)


def test_the_overlap_is_blended():
    old, new = np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32)
    np.testing.assert_allclose(video.blend(old, new)[:, 0], [0.25, 0.5, 0.75])
    assert video.blend(old[:0], new[:0]).shape == (0, 2)


def test_final_latents_join_the_segments(base, monkeypatch):
    calls = spy(monkeypatch)
    config = dataclasses.replace(base.config, sample=QUICK)
    ids = base.prompts("")[None]
    silence = np.zeros(0, np.float32)
    pictures, kinds, valid = base._pictures(tiny.picture(), {}, (32, 32))
    references = video._encode(config, base.params, pictures)
    runner = video._Segments(config, base.params, [silence, silence], [ids], ids)
    parts = list(runner.latents(references, kinds, valid, 10, jax.random.key(0)))
    assert [len(p) for p in parts] == [4, 6]
    joined = np.concatenate(parts)
    first, second = (c["out"][0] for c in calls)
    np.testing.assert_allclose(joined[:4], first[:4], atol=1e-6)
    np.testing.assert_allclose(joined[4:6], video.blend(first[4:], second[:2]), atol=1e-6)
    np.testing.assert_allclose(joined[6:], second[2:], atol=1e-6)


def test_references_and_shapes(base):
    plain = play(base, seconds=0.5)
    shown = play(base, seconds=0.5, references={"view/left": tiny.picture(1), "expression/sad": tiny.picture(2)})
    assert np.abs(plain[1:].astype(int) - shown[1:]).mean() > 0.5
    assert play(base, seconds=0.3, size=(32, 48)).shape == (8, 32, 48, 3)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "audio: expected speech"),
        ({"seconds": 0}, "seconds: expected a positive length"),
        ({"seconds": 1, "prompt": []}, "prompt: expected at least one"),
        ({"seconds": 1, "prompt": "x" * 2001}, "2,000 characters"),
        ({"seconds": 1, "size": (32, 40)}, "size: expected multiples of 16, found 32 x 40"),
        ({"seconds": 1, "references": {"global": tiny.picture()}}, "reference 'global'"),
        (
            {"seconds": 1, "references": dict.fromkeys(["view/left", "view/right", "view/back"], 0)},
            "at most 2, found 3",
        ),
        ({"seconds": 1, "sample": dataclasses.replace(QUICK, segment=24)}, r"segment: expected 4 k \+ 1 frames"),
        ({"seconds": 1, "sample": dataclasses.replace(QUICK, overlap=6)}, "overlap: expected 0 to 5"),
        ({"seconds": 1, "sample": dataclasses.replace(QUICK, tail_level=1.5)}, "tail_level"),
        ({"seconds": 1, "sample": dataclasses.replace(QUICK, steps=0)}, "steps: expected at least 1"),
    ],
)
def test_refusals(base, inputs, message):
    with pytest.raises(InputError, match=message):
        play(base, **inputs)


@pytest.mark.slow
def test_the_door_writes_a_file(base, tmp_path):
    pretrained.save(tmp_path / "model", base.config, base.params)
    Image.fromarray(tiny.picture(size=64)).save(tmp_path / "me.png")
    write_wav(tmp_path / "a.wav", [tiny.sound(24_000)], 24_000)
    command = [sys.executable, "-m", "lpm_jax.base", "--model", "model", "--image", "me.png", "--out", "x.mp4"]
    quick = ["--steps", "2", "--segment", "13", "--overlap", "1", "--prompt", "smiles", "--prompt", "nods"]

    def door(*more):
        path = str(Path(__file__).parents[2])
        return subprocess.run(
            [*command, *more],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    done = door("--speak", "a.wav", *quick, "--resolution", "48x32")
    assert done.returncode == 0, done.stderr
    assert "x.mp4: 1.00 s of 48 x 32" in done.stdout
    with av.open(str(tmp_path / "x.mp4")) as box:
        frames = [f for f in box.decode(video=0)]
        assert len(frames) == 24 and (frames[0].width, frames[0].height) == (48, 32)
    for more, words in (
        ((), "--speak: expected a sound"),
        (("--seconds", "1", "--resolution", "1k"), "resolution: expected 480p"),
        (("--seconds", "0"), "--seconds"),
        (("--seconds", "1", "--steps", "0"), "steps: expected at least 1"),
    ):
        bad = door(*more)
        assert bad.returncode == 2 and words in bad.stderr and bad.stderr.count("\n") == 1, bad.stderr
