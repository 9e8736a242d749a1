"""A large model learns from clips: its frozen encoders make the cache, and what was trained goes into a model again."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipeline.loader import RegionWeights, Window, weight_map
from data_pipeline.schema import SAMPLES_PER_FRAME
from lpm_jax import pretrained
from lpm_jax.base import Base
from lpm_jax.checkpoint import load_weights
from lpm_jax.config import SampleConfig
from lpm_jax.errors import InputError
from lpm_jax.models import conditions, vae
from lpm_jax.training import encoders, export, from_model, latents, stages
from tests import tiny
from tests.models.test_umt5 import PIECES, write_tokenizer
from tests.training.test_latents import FRAMES, SIDE, record  # noqa: F401

WORDS = dataclasses.replace(tiny.LARGE.text.umt5, vocabulary=max(40, len(PIECES)))
LARGE = dataclasses.replace(tiny.LARGE, text=dataclasses.replace(tiny.LARGE.text, umt5=WORDS))


@pytest.fixture
def model(tmp_path):
    """A converted model's folder."""
    pretrained.save(tmp_path / "model", LARGE, tiny.params(LARGE), jnp.float32)
    write_tokenizer(tmp_path / "model" / "tokenizer.json")
    return tmp_path / "model"


@pytest.fixture
def config(model):
    train = dataclasses.replace(
        LARGE.train, encoders=str(model), init="seed", steps=2, batch=2, latents=3, warmup=1, log_every=1, save_every=2,
        validate_every=2, mouth=1.0, eyes=1.0, face=1.0, token_keep=1.0, data_threads=1,
    )  # fmt: skip
    stages_ = dict.fromkeys(("base.speak", "base.listen", "online.causal", "online.stream_audio"), {})
    distill = dataclasses.replace(LARGE.distill, rollout=2, gradient=1)
    return dataclasses.replace(LARGE, train=train, distill=distill, stages=stages_, data="clips")


@pytest.fixture
def clips(record, monkeypatch):  # noqa: F811
    """Three clips, the last of which is silent and told nothing."""
    records = [record, record | {"prompt": b"nods", "seed": 6, "kind": "speak"}, record | {"prompt": b"", "seed": 7}]
    records[2] |= {name: np.zeros_like(record[name]) for name in ("speak", "listen")}
    monkeypatch.setattr(latents, "open_clips", lambda *_: records)
    return records


def test_a_row_is_what_the_models_own_encoders_make_of_a_clip(config, clips, model):
    assert config.size == SIDE
    params = tiny.params(LARGE)
    row = latents.encode_clip(config, encoders.of_large(config, params["vae"]), clips[0])
    frames = np.broadcast_to((8 * np.arange(FRAMES, dtype=np.uint8))[:, None, None, None], (FRAMES, SIDE, SIDE, 3))
    video = vae.to_unit(np.asarray(frames))[None].astype(np.float32)
    want = vae.encode(config.vae, params["vae"], video)[0][0]  # at once; the row's, some frames at a time
    np.testing.assert_allclose(row["latents"], want, atol=0.06)  # H.264
    assert np.std(want) > 0.1
    picture = np.full((1, 1, SIDE, SIDE, 3), 40, np.uint8)
    np.testing.assert_allclose(
        row["references"][0], vae.encode(config.vae, params["vae"], vae.to_unit(picture))[0][0, 0], atol=2e-3
    )
    # Prompts: what Base reads, encoded; the empty one has its own code.
    base = Base.from_pretrained(model)
    tell = lambda prompt: conditions.encode_text(LARGE, params, jnp.asarray(base.prompts(prompt))[None])[0][0]  # noqa: E731
    np.testing.assert_allclose(row["text"], tell("smiles"), atol=2e-3)
    # Sound: tokens of silence before it, those of a window that has the history's sound, and no click before its frame.
    features, history = conditions.audio_features(LARGE.audio), conditions.history_tokens(LARGE.audio)
    assert row["speak"].shape == (history + FRAMES, features.features) and row["speak"].dtype == np.float16
    end = -(history + FRAMES) % 3
    silence = np.zeros(history * SAMPLES_PER_FRAME + features.history, np.float32)
    samples = np.concatenate([silence, clips[0]["speak"] / np.float32(32768), np.zeros(end * SAMPLES_PER_FRAME)])
    heard = features(params["audio"], jnp.asarray(samples, jnp.float32)[None])[0, : history + FRAMES]
    np.testing.assert_allclose(row["speak"], heard, atol=2e-3)
    assert tiny.differs(row["speak"], row["listen"], 0.05)


def test_windows_have_the_encoders_history_and_drop_prompts_for_the_encoded_empty_one(config, clips, tmp_path):
    coder = tiny.params(LARGE)["vae"]
    source = latents.LatentSource(latents.build(config, coder, "train", tmp_path))
    history, clip = conditions.history_tokens(LARGE.audio), None
    clip = source[1]
    np.testing.assert_array_equal(clip["empty"], source[2]["text"])  # the clip that is told nothing
    assert tiny.differs(clip["text"], clip["empty"], 0.01)
    window = Window(3, history, RegionWeights(), first_frame=1.0, extra=0.0, no_text=0.5)
    told, rng = [], np.random.default_rng(0)
    for _ in range(40):
        out = window.random_map(clip, rng)
        assert out["speak"].shape == (history + 12, tiny.LARGE.audio.wav2vec.width)
        starts = [i for i in range(5) if np.array_equal(out["latents"], clip["latents"][i + 1 : i + 4])]
        begin = 4 * starts[0] + 1
        np.testing.assert_array_equal(out["speak"], clip["speak"][begin : begin + history + 12])
        told.append(np.array_equal(out["text"], clip["text"]))
        assert told[-1] or np.array_equal(out["text"], clip["empty"])
    assert 10 < sum(told) < 30


def test_no_word_of_an_encoded_prompt_is_masked_in_the_step():
    """It was dropped where it was loaded, as a whole: its first token tells of all the others."""
    params = tiny.params(LARGE)
    text = jnp.ones((2, 12, 16))
    sound = jnp.zeros((2, conditions.history_tokens(LARGE.audio) + 12, 16))
    told = conditions.encode(LARGE, params, text, sound, sound, 3, None, {"text": jnp.array([0.0, 1.0])})
    assert told.text_mask.all()


def test_the_cache_follows_the_encoders(config, clips, model):
    coder = tiny.params(LARGE)["vae"]
    first = latents.fingerprint(config, coder, clips)
    assert latents.fingerprint(config, coder, clips) == first
    other = tiny.params(LARGE) | {"audio": jax.tree.map(lambda x: x + 0.01, tiny.params(LARGE)["audio"])}
    pretrained.save(model, LARGE, other, jnp.float32)
    assert latents.fingerprint(config, coder, clips) != first


def test_weights_of_wide_pictures():
    regions = np.zeros((1, 3, 4), np.float32)
    regions[0, 0] = [0.5, 0.25, 1.0, 0.5]  # top, left, bottom, right of the mouth
    maps = weight_map(regions, (2, 4), RegionWeights(mouth=5.0))
    assert maps[0].tolist() == [[1, 1, 1, 1], [1, 5, 1, 1]]


def test_bad_input(config, clips, model, tmp_path):
    def refused(changed, message: str) -> None:
        with pytest.raises(InputError, match=message):
            latents.build(changed, tiny.params(LARGE)["vae"], "train", tmp_path)

    with_train = lambda **more: dataclasses.replace(config, train=dataclasses.replace(config.train, **more))  # noqa: E731
    refused(with_train(encoders=""), "^--train.encoders: expected the folder of a converted model")
    refused(with_train(encoders=str(tmp_path)), "expected a bundled model")
    refused(dataclasses.replace(config, size=64), "^--data clips: expected clips of 64 x 64 pixels, found 32 x 32")
    other = dataclasses.replace(config.audio, wav2vec=dataclasses.replace(config.audio.wav2vec, layers=3))
    refused(dataclasses.replace(config, audio=other), "expected audio.wav2vec as in the config, found another")
    mixed = dataclasses.replace(config, audio=tiny.CONFIG.audio)
    refused(mixed, "^vae, text, audio: expected the toy's encoders or")
    (model / "tokenizer.json").unlink()
    refused(config, "^--train.encoders .*: expected umT5's tokenizer.json, found none")
    assert not list((tmp_path / "latents").glob("*"))


@pytest.mark.slow
def test_from_a_converted_model_to_a_trained_one(config, clips, model, tmp_path, monkeypatch):
    """from_model, two steps of two stages, export, and a video of what was trained."""
    run = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["from_model", str(model), str(run)])
    from_model.main()
    scratch = dataclasses.replace(config.train, init="scratch")
    with pytest.raises(InputError, match="^--train.init: expected a converted model's weights"):
        stages.run("base.speak", dataclasses.replace(config, train=scratch), run)
    stages.run("base.speak", config.for_stage("base.speak"), run)
    rest = dataclasses.replace(config, train=dataclasses.replace(config.train, init=""))
    stages.run("base.listen", rest.for_stage("base.listen"), run)
    kernel = lambda tree: np.asarray(tree["dit"]["blocks"]["speak"]["ffn_in"]["kernel"])  # noqa: E731
    seed, first, second = (
        kernel(load_weights(run / name / "weights", "model")) for name in ("seed", "base.speak", "base.listen")
    )
    assert 0 < np.abs(first - seed).max() < 0.1 and np.abs(second - first).max() > 0
    assert (run / "base.listen" / "validation" / "000002" / "sheet.png").is_file()
    assert Image.open(run / "base.listen" / "validation" / "000002" / "sheet.png").size[0] >= 9 * SIDE

    for stage in ("online.causal", "online.stream_audio"):  # which hears with wav2vec 2.0 itself, and doesn't keep it
        stages.run(stage, rest.for_stage(stage), run)
    last = load_weights(run / "online.stream_audio" / "weights", "model", conditions.abstract(LARGE))
    assert np.abs(kernel(last) - kernel(load_weights(run / "online.causal" / "weights", "model"))).max() > 0

    changed = tmp_path / "config.py"
    changed.write_text("from tests.training.test_large_cache import LARGE\n\n\ndef get_config():\n    return LARGE\n")
    out = tmp_path / "out"
    words = [str(changed), str(run), str(out), "--stage", "base.listen", "--train.encoders", str(model)]
    monkeypatch.setattr(sys, "argv", ["export", *words])
    export.main()
    loaded, params = pretrained.load(out, jnp.float32)
    assert loaded.train.encoders == ""
    np.testing.assert_allclose(kernel(params), second, atol=0.01)
    quick = SampleConfig(steps=1, segment=13, overlap=1)
    frames = np.concatenate(list(Base.from_pretrained(out).generate(tiny.picture(), tiny.sound(9000), sample=quick)))
    assert frames.shape == (9, SIDE, SIDE, 3) and frames.std() > 5
