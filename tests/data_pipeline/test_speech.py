"""Speech: exact phoneme times, voices, resampling."""

import subprocess
import sys

import numpy as np
import pytest

from data_pipeline.performers import speech
from data_pipeline.performers.scripts import SCRIPTS, sentence
from data_pipeline.performers.speech import LANGUAGES, Voice, resample, room, sample_voice, say
from data_pipeline.schema import SAMPLE_RATE


@pytest.fixture(scope="module")
def spoken():
    return say("My mother bought apples, and we baked a big pie.", Voice("en-us", "f2", 150, 60))


def test_phonemes_are_in_order_and_cover_the_sound(spoken):
    times = np.array([(a, b) for a, b, _ in spoken.phonemes])
    assert (times[:, 1] > times[:, 0]).all()
    assert (np.diff(times[:, 0]) >= 0).all()
    power = np.square(spoken.samples)
    t = np.arange(len(power)) / SAMPLE_RATE
    voiced = np.zeros(len(power), bool)
    for a, b, ipa in spoken.phonemes:
        if ipa:
            voiced |= (t >= a) & (t < b)
    assert power[voiced].sum() > 0.97 * power.sum()


def test_phonemes_name_what_is_said(spoken):
    text = "".join(ipa for _, _, ipa in spoken.phonemes)
    assert text.startswith("maɪmˈʌð")  # "my moth..."
    assert sum(ipa in ("b", "p", "m") for _, _, ipa in spoken.phonemes) == 7  # my mother bought apples baked big pie
    assert len(spoken.words) == 10


def test_a_pause_is_silent_and_a_vowel_is_not(spoken):
    start, end, _ = next(p for p in spoken.phonemes if p[2] == "" and p[1] - p[0] > 0.1)
    silent = spoken.samples[int((start + 0.03) * SAMPLE_RATE) : int((end - 0.03) * SAMPLE_RATE)]
    start, end, _ = max((p for p in spoken.phonemes if "ɔ" in p[2]), key=lambda p: p[1] - p[0])
    vowel = spoken.samples[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]
    assert np.sqrt(np.mean(silent**2)) < 0.02 * np.sqrt(np.mean(vowel**2))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_speaks_its_own_texts(language):
    rng = np.random.default_rng(0)
    for held_out in (False, True):
        said = say(sentence(rng, language, held_out), sample_voice(rng, held_out, language))
        assert 0.6 < said.seconds < 6
        assert np.abs(said.samples).max() <= 1


def test_what_was_said_before_changes_nothing(spoken):
    say("Ganz etwas anderes.", Voice("de", "m3", 200, 30))
    again = say("My mother bought apples, and we baked a big pie.", Voice("en-us", "f2", 150, 60))
    np.testing.assert_array_equal(again.samples, spoken.samples)
    assert again.phonemes == spoken.phonemes


def test_rate_and_pitch_do_what_they_say():
    slow, fast = (say("We bought some bread and a lamp.", Voice(rate=r)) for r in (120, 220))
    assert slow.seconds > 1.3 * fast.seconds

    def pitch(said):
        spectrum = np.fft.rfft(said.samples, 2 * len(said.samples))
        spectrum[int(350 * 2 * len(said.samples) / SAMPLE_RATE) :] = 0  # the voice's first harmonics alone
        correlation = np.fft.irfft(np.abs(spectrum) ** 2)
        low, high = SAMPLE_RATE // 350, SAMPLE_RATE // 60
        return SAMPLE_RATE / (low + np.argmax(correlation[low:high]))

    low, high = (pitch(say("ma ma ma ma", Voice(pitch=p))) for p in (20, 80))
    assert high > 1.2 * low


def test_cutting_keeps_the_beginning_and_ends_in_silence(spoken):
    cut = spoken.cut(1.0)
    assert len(cut.samples) == SAMPLE_RATE
    np.testing.assert_array_equal(cut.samples[: SAMPLE_RATE // 2], spoken.samples[: SAMPLE_RATE // 2])
    assert abs(cut.samples[-1]) < 1e-6
    assert max(b for _, b, _ in cut.phonemes) <= 1.0


@pytest.mark.parametrize("hertz", [200.0, 3000.0, 8000.0])
def test_resampling_keeps_a_tone(hertz):
    t = np.arange(22050) / 22050
    y = resample(np.sin(2 * np.pi * hertz * t).astype(np.float32), 22050, 24000)
    truth = np.sin(2 * np.pi * hertz * np.arange(len(y)) / 24000)
    assert len(y) == 24000
    assert np.abs(y - truth)[200:-200].max() < 0.01


def test_room_applies_gain_and_noise():
    tone = (0.1 * np.sin(np.arange(24000) * 0.1)).astype(np.float32)
    np.testing.assert_allclose(room(tone, Voice(gain=0.5)), 0.5 * tone, atol=1e-6)
    noise = room(np.zeros(24000, np.float32), Voice(noise=1e-3, seed=3))
    assert 0.9e-3 < noise.std() < 1.1e-3
    np.testing.assert_array_equal(noise, room(np.zeros(24000, np.float32), Voice(noise=1e-3, seed=3)))


def test_held_out_voices_and_scripts_are_apart():
    assert not set(speech.VARIANTS) & set(speech.HELD_OUT_VARIANTS)
    assert not set(speech.RATES) & set(speech.HELD_OUT_RATES)
    assert not set(speech.PITCHES) & set(speech.HELD_OUT_PITCHES)
    for training, held_out, _ in SCRIPTS.values():
        assert not set(training) & set(held_out)
    rng = np.random.default_rng(1)
    drawn = {(v.variant, v.rate, v.pitch) for v in (sample_voice(rng) for _ in range(300))}
    apart = {(v.variant, v.rate, v.pitch) for v in (sample_voice(rng, held_out=True) for _ in range(300))}
    for i in range(3):
        assert not {d[i] for d in drawn} & {a[i] for a in apart}


def test_errors_are_one_line():
    with pytest.raises(ValueError, match="no voice 'xx-yy'"):
        say("hello", Voice("xx-yy"))
    with pytest.raises(ValueError, match="no sound for the text"):
        say("", Voice())


def test_without_the_extra_the_message_says_what_to_install():
    code = (
        "import sys; sys.modules['espeakng_loader'] = None\n"
        "from data_pipeline.performers.speech import Voice, say\n"
        "try: say('hello', Voice())\n"
        "except ImportError as e: print(e)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "speech needs the 'data' extra: uv sync --extra data"
