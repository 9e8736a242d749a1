"""Stage ``audio``: networks that hear are trained on sound alone, and put into a new model as they are."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.loader import SILENCE
from data_pipeline.performers.clip import clip_seed, make_clip, make_sound
from data_pipeline.schema import PARAM_INDEX
from lpm_jax.checkpoint import load_weights, save_weights
from lpm_jax.config import StreamConfig, Wav2VecConfig
from lpm_jax.errors import InputError
from lpm_jax.models import conditions
from lpm_jax.training import hearing, stages, voices
from lpm_jax.training.flow_matching import frozen
from lpm_jax.training.latents import LatentSource
from tests import tiny

TRAIN = dataclasses.replace(
    tiny.CONFIG.train, steps=30, batch=4, sounds=6, optimizer="adamw", learning_rate=5e-3, warmup=2, log_every=1,
    validate_every=30, save_every=30, voices=0.5,
)  # fmt: skip
CONFIG = dataclasses.replace(tiny.CONFIG, train=TRAIN)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    stages.run("audio", CONFIG, directory)
    return directory


def test_sounds_are_what_their_seeds_say(workdir):
    source = LatentSource(hearing.build(CONFIG, "train", 6, workdir))
    assert len(source) == 6 and not list((workdir / "sounds").glob("*incomplete*"))
    record = make_sound(clip_seed(TRAIN.seed + hearing.FIRST_SEED, "train", 2))
    np.testing.assert_array_equal(source[2]["params"], record["params"].astype(np.float16))
    assert source[2]["speak"].shape == (97, tiny.FEATURES)


def test_a_clip_is_its_sound_and_a_picture():
    clip, sound = make_clip(7, 0.5), make_sound(7, 0.5)
    assert sound.keys() | {"video", "regions", "references", "character"} == clip.keys()
    for name in sound:
        np.testing.assert_array_equal(clip[name], sound[name])


def test_it_learns_and_tells_how_well(workdir):
    lines = [json.loads(x) for x in (workdir / "audio" / "metrics.jsonl").read_text().splitlines()]
    loss = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(loss[-5:]) < 0.8 * np.mean(loss[:3])
    scores = [line for line in lines if "validation" in line][-1]["validation"]
    assert {f"speak_aperture_{b}" for b in hearing.BEFORE} <= scores.keys() and scores["speak_aperture_2"] > 0.2


def test_a_new_model_gets_what_was_learnt_and_keeps_it(workdir):
    learnt = load_weights(workdir / "audio" / "weights", "model")
    assert learnt.keys() == hearing.CAUSED.keys()
    fixed = frozen(conditions.abstract(CONFIG))
    for name in ("speak", "listen"):
        assert all(jax.tree.leaves(fixed[name]["hearing"])) and not any(jax.tree.leaves(fixed[name]["heard"]))
    assert not any(jax.tree.leaves(fixed["dit"]))


def test_it_goes_on_from_what_a_model_hears_with(tmp_path):
    """Its first loss is that of heads which say nothing: the targets' own variance; and what it had, it starts with."""
    params = {name: x for name, x in tiny.params(CONFIG).items() if name != "vae"}
    save_weights(tmp_path / "seed" / "weights", "model", params)
    train = dataclasses.replace(TRAIN, init="seed", voices=0.0)
    config = dataclasses.replace(CONFIG, train=train)
    stage = hearing.make_stage(config, tmp_path)
    for name in hearing.CAUSED:
        jax.tree.map(np.testing.assert_array_equal, stage.params[name]["hearing"], params[name]["hearing"])
    source = LatentSource(hearing.build(config, "train", TRAIN.sounds, tmp_path))
    batch = {name: np.stack([source[i][name] for i in range(6)]) for name in ("params", *hearing.CAUSED)}
    _, metrics = stage.loss(stage.params, batch, jax.random.key(0))
    for name, (mean, deviation) in hearing.scales_of(source).items():
        scaled = (batch["params"][..., hearing.indices(name)].astype(np.float64) - mean) / deviation
        means = [np.mean(np.square(scaled[:, : 97 - b])) for b in hearing.BEFORE]
        assert float(metrics[name]) == pytest.approx(np.mean(means), rel=1e-3)


def test_what_is_told_of_earlier_frames_is_compared_with_them():
    """Heads that tell the truth of each frame and those before it have no error."""
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(TRAIN, dtype="float32"))
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(2, 12, 29)).astype(np.float32)
    scales = {name: (np.zeros(len(c)), np.ones(len(c))) for name, c in hearing.CAUSED.items()}
    batch = {"params": truth} | {name: np.full((2, 12, tiny.FEATURES), SILENCE, np.float32) for name in hearing.CAUSED}

    def perfect(audio, params, mel, columns):
        name = "speak" if columns == len(hearing.CAUSED["speak"]) else "listen"
        shifted = [jnp.roll(truth[..., hearing.indices(name)], b, axis=1) for b in hearing.BEFORE]
        return jnp.stack(shifted, axis=2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hearing, "hear", perfect)
        value, _ = hearing.make_loss(config, scales)({n: {} for n in hearing.CAUSED}, batch, jax.random.key(0))
    assert float(value) == 0.0


def test_other_voices_say_the_same_in_silence_and_differ_in_speech():
    silent = jnp.full((3, 4, tiny.FEATURES), SILENCE)
    np.testing.assert_allclose(voices.other_voice(jax.random.key(0), silent, 6), SILENCE, atol=1e-3)
    loud = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (3, 4, tiny.FEATURES)), jnp.float32)
    other = voices.other_voice(jax.random.key(0), loud, 6)
    assert other.shape == loud.shape and 0.02 < float(jnp.abs(other - loud).mean()) < 0.3


def test_bad_input(tmp_path):
    deaf = dataclasses.replace(CONFIG, audio=dataclasses.replace(CONFIG.audio, hearing=0))
    with pytest.raises(InputError, match="^--stage audio: expected a config with log-mel and audio.hearing above 0"):
        stages.run("audio", deaf, tmp_path)
    with pytest.raises(
        InputError, match="^--stage base.speak: expected the finished weights of audio in .*, found none"
    ):
        stages.run("base.speak", dataclasses.replace(CONFIG, stream=StreamConfig()), tmp_path)


def test_columns():
    assert [PARAM_INDEX["aperture"], PARAM_INDEX["pitch"]] == [hearing.indices(n)[0] for n in ("speak", "listen")]


def test_the_networks_that_hear_are_trained_on_other_voices_too(monkeypatch):
    """Of a batch that is heard as other voices the networks are shown these, of one that is not its own."""
    rng = np.random.default_rng(0)
    batch = {name: rng.uniform(0, 1, (2, 4, tiny.FEATURES)).astype(np.float32) for name in hearing.CAUSED}
    scales = {name: (np.zeros(len(c)), np.ones(len(c))) for name, c in hearing.CAUSED.items()}
    shown = []

    def hear(audio, params, mel, columns):
        shown.append(np.asarray(mel, np.float32))
        return jnp.zeros((*mel.shape[:2], len(hearing.BEFORE), columns))

    monkeypatch.setattr(hearing, "hear", hear)
    for share in (0.0, 1.0):
        config = dataclasses.replace(CONFIG, train=dataclasses.replace(TRAIN, dtype="float32", voices=share))
        loss = hearing.make_loss(config, scales)
        loss({n: {} for n in hearing.CAUSED}, batch | {"params": np.zeros((2, 4, 29), np.float32)}, jax.random.key(0))
    for i, name in enumerate(hearing.CAUSED):
        np.testing.assert_array_equal(shown[i], batch[name])
        assert all(tiny.differs(a, b, 0.05) for a, b in zip(shown[2 + i], batch[name], strict=True))


def test_a_share_of_clips_is_heard_as_other_voices():
    """Either track by itself; what is not sound, and clips that were not drawn, stay as they are."""
    rng = np.random.default_rng(0)
    sound = {n: jnp.asarray(rng.uniform(0, 1, (60, 4, tiny.FEATURES)), jnp.float16) for n in ("speak", "listen")}
    batch = sound | {"text": jnp.ones((60, 3), jnp.int32)}
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, voices=0.5))
    changed = voices.as_other_voices(config, batch, jax.random.key(0))
    assert changed["text"] is batch["text"] and changed["speak"].dtype == jnp.float16
    apart = {n: np.asarray(jnp.abs(changed[n] - batch[n]).max(axis=(1, 2))) > 0.02 for n in sound}
    assert all(18 <= moved.sum() <= 42 for moved in apart.values())
    assert (apart["speak"] != apart["listen"]).any()
    for name, moved in apart.items():
        np.testing.assert_array_equal(np.asarray(changed[name])[~moved], np.asarray(batch[name])[~moved])
    assert voices.as_other_voices(tiny.CONFIG, batch, jax.random.key(0)) is batch
    wav = dataclasses.replace(config, audio=dataclasses.replace(config.audio, wav2vec=Wav2VecConfig()))
    with pytest.raises(InputError, match="^train.voices: .* log-mel alone, expected 0, found 0.5"):
        voices.as_other_voices(wav, batch, jax.random.key(0))
