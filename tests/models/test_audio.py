"""Sound to tokens: causal, streamable, the same in JAX and NumPy; and the windows that frames read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.loader import SILENCE
from lpm_jax.config import AudioConfig
from lpm_jax.models.audio import (
    FFT,
    TOKEN,
    AudioEncoder,
    Hearing,
    branch,
    hearing_reach,
    log_mel,
    mel_filters,
    two_thirds,
    window_mask,
)
from lpm_jax.nn.rope import angles_1d
from tests import tiny

CFG = AudioConfig(bands=10, width=16)


def with_history(samples: np.ndarray) -> np.ndarray:
    return np.pad(samples, [(0, 0)] * (samples.ndim - 1) + [(FFT, 0)])


def test_chunks_with_history_equal_the_whole():
    samples = with_history(tiny.sound(10 * TOKEN))
    whole = log_mel(CFG, samples, np)
    assert whole.shape == (10, 40)
    parts = [log_mel(CFG, samples[at * TOKEN : (at + 2) * TOKEN + FFT], np) for at in range(0, 10, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    cold = log_mel(CFG, with_history(samples[2 * TOKEN + FFT :]), np)
    assert tiny.differs(cold[0], whole[2], 0.05)  # the history is heard


def test_a_token_never_hears_what_follows_it():
    samples = with_history(tiny.sound(6 * TOKEN))
    whole = log_mel(CFG, samples, np)
    for token in range(6):
        end = FFT + (token + 1) * TOKEN
        later, last = samples.copy(), samples.copy()
        later[end:] = 0.9
        last[end - 200 : end] = 0.9
        np.testing.assert_array_equal(log_mel(CFG, later, np)[: token + 1], whole[: token + 1])
        np.testing.assert_array_equal(log_mel(CFG, last, np)[:token], whole[:token])
        assert tiny.differs(log_mel(CFG, last, np)[token], whole[token], 0.05)


def test_silence_is_the_value_that_the_loader_pads_with():
    silent = log_mel(CFG, np.zeros(FFT + 3 * TOKEN, np.float32), np)
    np.testing.assert_allclose(silent, SILENCE, atol=1e-6)
    loud = log_mel(CFG, with_history(tiny.sound(3 * TOKEN, loudness=0.3)), np)
    assert loud.min() > SILENCE + 0.5


def test_jax_and_numpy_agree():
    samples = with_history(np.stack([tiny.sound(4 * TOKEN, seed) for seed in range(2)]))
    ours = jax.jit(lambda x: log_mel(CFG, x))(samples)
    np.testing.assert_allclose(ours, log_mel(CFG, samples, np), atol=1e-4)


@pytest.mark.parametrize("frequency", [200.0, 1000.0, 5000.0])
def test_a_tone_lands_in_its_band(frequency):
    bands = 40
    time = np.arange(4 * TOKEN) / 24_000
    mel = log_mel(AudioConfig(bands=bands), with_history(0.5 * np.sin(2 * np.pi * frequency * time)), np)
    column = mel.reshape(4, 4, bands)[2, 3]
    top = 2595 * np.log10(1 + 8000 / 700)
    low = 2595 * np.log10(1 + 60 / 700)
    place = (2595 * np.log10(1 + frequency / 700) - low) / (top - low) * (bands + 1) - 1
    assert abs(int(column.argmax()) - place) <= 1.5


def test_filters_weigh_every_band_alike():
    filters = mel_filters(40)
    assert filters.shape == (FFT // 2 + 1, 40)
    assert (filters >= 0).all()
    np.testing.assert_allclose(filters.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("blocks", [1, 3])
def test_hearing_looks_back_as_far_as_it_says_and_never_ahead(blocks):
    config = AudioConfig(bands=10, width=16, hearing=blocks, hearing_width=12)
    net, reach, at = Hearing(config), hearing_reach(config), 20
    mel = jnp.asarray(np.random.default_rng(0).normal(size=(1, 40, 40)), jnp.float32)
    weights = tiny.fill(jax.eval_shape(lambda: net.init(jax.random.key(0), mel)))
    before = net.apply(weights, mel)
    changed = np.abs(net.apply(weights, mel.at[:, at].add(1.0)) - before).max((0, 2)) > 1e-6
    np.testing.assert_array_equal(np.flatnonzero(changed)[[0, -1]], [at, at + reach])


def test_encoder_with_hearing_starts_as_the_one_without():
    """What is heard is added: with a projection of zeros tokens are those of mel columns and phase alone."""
    plain, hearing = AudioConfig(bands=10, width=16), AudioConfig(bands=10, width=16, hearing=1, hearing_width=12)
    mel = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 40)), jnp.float32)
    weights = tiny.fill(jax.eval_shape(lambda: AudioEncoder(hearing).init(jax.random.key(0), mel)))["params"]
    silent = weights | {"heard": jax.tree.map(jnp.zeros_like, weights["heard"])}
    known = {name: weights[name] for name in ("phase", "in", "out")}
    expected = AudioEncoder(plain).apply({"params": known}, mel)
    np.testing.assert_allclose(AudioEncoder(hearing).apply({"params": silent}, mel), expected, atol=1e-6)
    assert tiny.differs(AudioEncoder(hearing).apply({"params": weights}, mel), expected, 1e-2)


def test_encoder_knows_the_phase_within_a_latent_frame():
    encoder = AudioEncoder(CFG)
    mel = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 40)), jnp.float32)
    weights = tiny.fill(jax.eval_shape(lambda: encoder.init(jax.random.key(0), mel)))
    whole = encoder.apply(weights, mel)
    np.testing.assert_allclose(encoder.apply(weights, mel[:, 4:]), whole[:, 4:], atol=1e-6)
    same = encoder.apply(weights, jnp.broadcast_to(mel[:, :1], mel.shape))
    np.testing.assert_allclose(same[:, :4], same[:, 4:], atol=1e-6)
    assert tiny.differs(same[:, 0], same[:, 1], 0.05)


def allowed(mask: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in mask]


def test_window_mask_by_hand():
    # Four tokens of history, then frames of four tokens; two tokens (1/12 s) each side.
    assert allowed(window_mask(2, 4, 2 / 24, None)) == [list(range(2, 10)), list(range(6, 12))]
    # Chunks of one frame: nothing after the frame's own four tokens.
    assert allowed(window_mask(2, 4, 2 / 24, 1)) == [list(range(2, 8)), list(range(6, 12))]
    # Chunks of two frames: the first may look into the second, not into the third.
    assert allowed(window_mask(3, 0, 5 / 24, 2)) == [list(range(0, 8)), list(range(0, 8)), list(range(3, 12))]
    # A window of nothing: a frame reads its own tokens.
    assert allowed(window_mask(2, 4, 0.0, None)) == [[4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("seconds, tokens", [(0.2, 5), (1.5, 36)])
def test_the_configured_windows_in_tokens(seconds, tokens):
    first = allowed(window_mask(30, 40, seconds, None))[0]
    assert first == list(range(40 - tokens, 44 + tokens))


def test_branch_puts_queries_in_the_middle_of_their_frames():
    tokens = jnp.zeros((2, 4 + 8, 16))
    audio = branch(tokens, CFG, 2, 0.2, None, 16)
    np.testing.assert_allclose(audio.query_angles, angles_1d(jnp.array([5.5, 9.5]), 16, 100.0))
    np.testing.assert_allclose(audio.key_angles, angles_1d(jnp.arange(12), 16, 100.0))
    assert audio.mask.shape == (2, 2, 12)
    np.testing.assert_array_equal(audio.mask[1], window_mask(2, 4, 0.2, None))


def test_two_thirds_of_the_rate():
    """Tones below 7 kHz keep their phase and their level within 0.1 dB; what 16 kHz cannot hold is gone."""
    n = 4800
    for hertz in (0.0, 440.0, 3000.0, 6900.0):
        at = lambda rate, count: np.cos(2 * np.pi * hertz * np.arange(count) / rate)  # noqa: B023, E731
        ours = np.asarray(two_thirds(at(24_000, n)[None])[0])
        want = at(16_000, 2 * n // 3)
        assert ours.shape == want.shape
        np.testing.assert_allclose(ours[40:-40], want[40:-40], atol=0.012)
    high = np.cos(2 * np.pi * 9000 * np.arange(n) / 24_000)
    assert np.abs(np.asarray(two_thirds(high[None]))[0, 40:-40]).max() < 0.01
    with pytest.raises(ValueError, match="multiple of 3 samples, found 100"):
        two_thirds(np.zeros((1, 100), np.float32))
