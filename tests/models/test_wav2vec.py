"""wav2vec 2.0 equals transformers' in both layouts; its features stand where they should; a stream is its windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.config import AudioConfig
from lpm_jax.models import wav2vec
from lpm_jax.models.audio import FFT, TOKEN, AudioFeatures, LogMel, log_mel, stream
from lpm_jax.models.wav2vec import BASE, LARGE, SAMPLE_RATE, Wav2Vec, Wav2VecConfig
from tests import tiny
from tests.golden import tensors

CASES = ["wav2vec_base", "wav2vec_large"]
SECOND = SAMPLE_RATE


def load(name: str, dtype=jnp.float32, **changes):
    theirs, weights, rest = tensors.read(name)
    config = Wav2VecConfig(
        width=theirs["hidden_size"],
        layers=theirs["num_hidden_layers"],
        heads=theirs["num_attention_heads"],
        ffn=theirs["intermediate_size"],
        channels=theirs["conv_dim"][0],
        conv_bias=theirs["conv_bias"],
        norm=theirs["feat_extract_norm"],
        position_kernel=theirs["num_conv_pos_embeddings"],
        position_groups=theirs["num_conv_pos_embedding_groups"],
        stable=theirs["do_stable_layer_norm"],
        **changes,
    )
    weights = wav2vec.fold(weights)
    params, used = tensors.gather(wav2vec.names(config), wav2vec.abstract(config, dtype), weights)
    assert used == set(weights)
    return config, params, rest


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype, most", [(jnp.float32, 1e-4), (jnp.bfloat16, 2e-2)], ids=["float32", "bfloat16"])
def test_equals_transformers(name, dtype, most):
    config, params, golden = load(name, dtype)
    # Two utterances of different lengths, padded.
    ours = wav2vec.encode(config, params, golden["samples"], golden["lengths"], stack=True)
    assert ours.dtype == dtype
    ours = np.where(golden["valid"][..., None, None], np.asarray(ours, np.float32), 0)
    for i in range(config.layers + 1):
        assert tensors.error(ours[:, :, i], golden["states"][:, :, i]) <= most, i
    assert tensors.error(ours[:, :, -1], golden["output"]) <= most
    # One utterance, all of it, in its own normalisation.
    ours = wav2vec.encode(config, params, golden["samples"][:1], stack=True)
    assert tensors.error(ours, golden["single_states"]) <= most


@pytest.mark.parametrize("name", CASES)
def test_without_normalisation_and_stack(name):
    config, params, golden = load(name, normalize=False)
    ours = wav2vec.encode(config, params, golden["samples"][:1, :1_999])
    assert ours.shape == (1, 5, config.width)
    assert tensors.error(ours, golden["plain"]) <= 1e-4


def test_normalisation():
    _, _, golden = load(CASES[0])
    ours = wav2vec.normalize(golden["samples"], golden["lengths"])
    np.testing.assert_allclose(ours, golden["normalized"], atol=1e-5)
    np.testing.assert_array_equal(wav2vec.normalize(np.full((1, 500), 0.25, np.float32)), 0)


@pytest.mark.parametrize("name", CASES)
def test_fold_reads_both_spellings(name):
    _, weights, golden = tensors.read(name)
    new = "encoder.pos_conv_embed.conv.parametrizations.weight.original"
    old = "wav2vec2.encoder.pos_conv_embed.conv.weight"
    folded = wav2vec.fold(weights)
    np.testing.assert_allclose(folded["encoder.pos_conv_embed.conv.weight"], golden["position_weight"], rtol=1e-6)
    assert set(folded) == set(weights) - {f"{new}0", f"{new}1"} | {"encoder.pos_conv_embed.conv.weight"}
    renamed = wav2vec.fold({f"{old}_g": weights[f"{new}0"], f"{old}_v": weights[f"{new}1"]})
    assert list(renamed) == [old]
    np.testing.assert_array_equal(renamed[old], folded["encoder.pos_conv_embed.conv.weight"])


def test_models_with_a_head_keep_the_encoder_under_a_prefix():
    config, params, _ = load(CASES[0])
    _, weights, _ = tensors.read(CASES[0])
    prefixed = {f"wav2vec2.{key}": x for key, x in wav2vec.fold(weights).items()}
    again, _ = tensors.gather(wav2vec.names(config), wav2vec.abstract(config), prefixed)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), again, params)))


def test_the_released_layouts():
    count = lambda config: sum(np.prod(x.shape) for x in jax.tree.leaves(wav2vec.abstract(config)))  # noqa: E731
    # As transformers' models, but for the gains that fold() multiplies in (and the training's mask embedding).
    assert count(BASE) == 94_370_944 - 128
    assert count(LARGE) == 315_437_696 - 128
    assert (BASE.hop, BASE.field) == (320, 400)
    assert [BASE.features(n) for n in (400, 719, 720, 16_000, 48_000)] == [1, 1, 2, 49, 149]
    config = Wav2VecConfig(width=8, layers=2, heads=2, ffn=12, channels=4, position_kernel=4, position_groups=2)
    params = wav2vec.init(config, jax.random.key(0), jnp.bfloat16)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), wav2vec.abstract(config, jnp.bfloat16))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == shapes
    with pytest.raises(ValueError, match="expected at least 400 samples, found 399"):
        wav2vec.encode(config, params, np.zeros((1, 399), np.float32))


# ---- to the video's rate


def test_frames_read_the_features_at_their_time():
    # Features that tell their own time: a frame's value is the time of its middle.
    seconds = (320 * np.arange(149) + 199.5) / 16_000
    features = jnp.asarray(seconds, jnp.float32)[None, :, None]
    ours = wav2vec.resample(BASE, features, 72)[0, :, 0]
    middles = (np.arange(72) + 0.5) / 24
    np.testing.assert_allclose(ours[:71], middles[:71].clip(seconds[0]), atol=1e-6)
    assert float(ours[71]) == pytest.approx(2.97247, abs=1e-5)  # held: the last frame's middle is at 2.97917 s
    later = wav2vec.resample(BASE, features, 24, start=1.0)[0, :, 0]
    np.testing.assert_allclose(later, middles[24:48], atol=1e-6)
    # One per latent frame after the first, whose four video frames start at 1/24 s.
    latents = wav2vec.resample(BASE, features, 3, rate=6, start=1 / 24)[0, :, 0]
    np.testing.assert_allclose(latents, [3 / 24, 7 / 24, 11 / 24], atol=1e-6)
    np.testing.assert_array_equal(wav2vec.resample(BASE, features[:, :1], 2)[0, :, 0], features[0, 0].repeat(2))


@pytest.mark.parametrize("name", CASES)
def test_corners_equal_torch(name):
    _, _, golden = load(name)
    ours = wav2vec.resample(BASE, jnp.asarray(golden["corners_of"]), 11, corners=True)
    np.testing.assert_allclose(ours, golden["corners"], atol=1e-5)


# ---- the stream, and what log-mel and wav2vec share


def sound(seconds: int) -> np.ndarray:
    return np.stack([tiny.sound(seconds * SECOND, seed) for seed in range(2)])


def test_a_stream_is_its_windows_in_one_compilation():
    config, params, _ = load(CASES[1])
    encoder = Wav2Vec(config)
    samples = sound(3)
    history = jnp.zeros((2, encoder.history))
    before = stream._cache_size()
    for second in range(3):
        new = samples[:, second * SECOND : (second + 1) * SECOND]
        window = np.concatenate([history, new], 1)
        assert window.shape == (2, 3 * SECOND)
        history, tokens = stream(encoder, params, history, new)
        np.testing.assert_array_equal(history, window[:, SECOND:])
        alone = wav2vec.encode(config, params, window)
        assert alone.shape == (2, 149, config.width)
        np.testing.assert_allclose(tokens, wav2vec.resample(config, alone, 24, start=2.0), atol=2e-5)
        np.testing.assert_allclose(tokens, wav2vec.resample(config, alone, 72)[:, 48:], atol=2e-5)
    assert stream._cache_size() == before + 1


def test_stacked_tokens_and_lengths_that_do_not_fit():
    config, params, _ = load(CASES[0])
    encoder = Wav2Vec(config, history=4_000, stack=True)
    samples = sound(1)[:, : 4_000 + 2_000]
    tokens = encoder(params, samples)
    assert tokens.shape == (2, 3, encoder.features) == (2, 3, 4 * config.width)
    last = Wav2Vec(config, history=4_000)(params, samples)
    np.testing.assert_allclose(tokens[..., -config.width :], last, atol=1e-5)
    with pytest.raises(ValueError, match="expected 4000 samples of history and a multiple of 2,000, found 5999"):
        encoder(params, samples[:, :5_999])
    with pytest.raises(ValueError, match="expected 4000 samples of history, found 3999"):
        stream(encoder, params, samples[:, :3_999], samples[:, :2_000])


def test_sound_at_24_khz_is_brought_to_16():
    config, params, _ = load(CASES[0])
    seconds = np.arange(36_000) / 24_000
    at = lambda t: 0.3 * np.cos(2 * np.pi * 440 * t)[None].astype(np.float32)  # noqa: E731
    ours = Wav2Vec(config, history=12_000, sample_rate=24_000)(params, at(seconds))
    want = Wav2Vec(config, history=8_000)(params, at(np.arange(24_000) / 16_000))
    assert ours.shape == want.shape == (1, 24, config.width)
    assert tensors.error(ours[:, :-1], want[:, :-1]) < 0.05  # the last frame hears the end, which fades
    with pytest.raises(ValueError, match="a multiple of 3,000, found 13000"):
        Wav2Vec(config, history=12_000, sample_rate=24_000)(params, at(seconds)[:, :13_000])


def test_log_mel_streams_the_same_way():
    config = AudioConfig(bands=6)
    encoder = LogMel(config)
    assert isinstance(encoder, AudioFeatures) and isinstance(Wav2Vec(), AudioFeatures)
    assert (encoder.sample_rate, Wav2Vec().sample_rate, encoder.features, Wav2Vec().features) == (
        24_000,
        16_000,
        24,
        768,
    )
    samples = tiny.sound(12 * TOKEN)[None]
    whole = log_mel(config, np.pad(samples, ((0, 0), (FFT, 0))), np)
    history, parts = np.zeros((1, encoder.history), np.float32), []
    for at in range(0, 12, 4):
        history, tokens = stream(encoder, {}, history, samples[:, at * TOKEN : (at + 4) * TOKEN])
        parts.append(tokens)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-4)
