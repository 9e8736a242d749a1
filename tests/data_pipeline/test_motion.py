"""Motion: the mouth follows the speech, the listener reacts causally, the prompt poses."""

import numpy as np
import pytest

from data_pipeline.performers.conversation import laughter, make_scene
from data_pipeline.performers.motion import articulation, perform
from data_pipeline.performers.prompts import ACTIONS, EASE, EMOTIONS, MAX_WORDS, Prompt, sample_prompt
from data_pipeline.performers.reactions import laughs, phrases, reaction_events, reactions
from data_pipeline.performers.speech import Speech, Voice, say
from data_pipeline.performers.visemes import VISEMES, envelope, visemes_of
from data_pipeline.schema import FPS, PARAM_INDEX, PARAMS, SAMPLE_RATE, SAMPLES_PER_FRAME

FRAMES = 97


def column(params, name):
    return params[:, PARAM_INDEX[name]]


def tone(*spans, seconds=4.0, level=0.1):
    """A sound that is loud within the spans and silent elsewhere."""
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    on = np.zeros(len(t), bool)
    for a, b in spans:
        on |= (t >= a) & (t < b)
    return (level * np.sqrt(2) * np.sin(2 * np.pi * 220 * t) * on).astype(np.float32)


def loudness(sound, frames=FRAMES):
    level = np.clip(envelope(sound) + 44, 0, 30)
    return np.interp((np.arange(frames) + 0.5) / FPS, (np.arange(len(level)) + 0.5) / 100, level)


def test_visemes_cover_the_symbols_of_every_language():
    assert len(VISEMES) == 12
    assert visemes_of("p") == [("PP", 1.0)]
    assert [v for v, _ in visemes_of("ˈaɪ")] == ["AA", "EE"]
    assert visemes_of("uː") == [("OO", 1.0)]
    assert visemes_of("tʃ") == [("CH", 1.0)]
    assert visemes_of("") == [("rest", 1.0)]


def test_aperture_follows_loudness_and_closes_on_bilabials():
    seen, dips = [], []
    for seed in range(12):
        scene = make_scene(seed, FRAMES, kind="speak")
        aperture = articulation(scene.dry, FRAMES)["aperture"]
        seen.append(np.corrcoef(aperture, loudness(scene.dry.samples))[0, 1])
        for start, end, ipa in scene.dry.phonemes:
            if ipa in ("p", "b", "m") and start > 0.1 and end < 3.9:
                dips.append(aperture[int(start * FPS) - 1 : int(end * FPS) + 2].min())
    assert np.mean(seen) > 0.4
    assert len(dips) > 20
    assert np.mean(np.array(dips) <= 0.02) > 0.97


def test_mouth_is_shut_in_silence_and_opens_wide_for_an_open_vowel():
    said = say("Papa", Voice())
    samples = np.zeros(FRAMES * SAMPLES_PER_FRAME, np.float32)
    samples[SAMPLE_RATE : SAMPLE_RATE + len(said.samples)] = said.samples
    speech = Speech(samples, tuple((a + 1, b + 1, ipa) for a, b, ipa in said.phonemes))
    mouth = articulation(speech, FRAMES)
    end = int((1 + said.seconds + 0.15) * FPS) + 1
    assert mouth["aperture"][: int(0.85 * FPS)].max() <= 0.02
    assert mouth["aperture"][end:].max() <= 0.02
    assert mouth["aperture"].max() > 0.35


def test_rounded_and_spread_vowels_shape_the_lips():
    # Whole phrases of one vowel each.
    oo, ee = (articulation(say(text, Voice(rate=130)), 40) for text in ("oh do you too", "he eats these beets"))
    assert oo["lip_pucker"].max() > 0.5 > ee["lip_pucker"].max()
    assert ee["lip_width"].max() > 0.2 > oo["lip_width"].max()


def test_articulation_ignores_the_future_beyond_a_quarter_second():
    scene = make_scene(4, FRAMES, kind="speak")
    cut = 2.0
    phonemes = tuple(p for p in scene.dry.phonemes if p[0] < cut)
    samples = scene.dry.samples.copy()
    samples[int(cut * SAMPLE_RATE) :] = 0
    short = articulation(Speech(samples, phonemes), FRAMES)
    whole = articulation(scene.dry, FRAMES)
    before = int((cut - 0.25) * FPS)
    np.testing.assert_allclose(short["aperture"][:before], whole["aperture"][:before], atol=0.02)


@pytest.mark.parametrize("seed", range(6))
def test_reactions_are_causal(seed):
    listen = make_scene(seed, FRAMES, kind="listen").listen
    rng = np.random.default_rng(seed)
    for cut in rng.uniform(0.3, 3.8, 5):
        changed = listen.copy()
        sample = int(cut * SAMPLE_RATE)
        changed[sample:] = rng.choice([0.0, 0.2]) * rng.standard_normal(len(listen) - sample)
        before = int(cut * FPS)
        for name, curve in reactions(listen).items():
            np.testing.assert_array_equal(reactions(changed)[name][:before], curve[:before], err_msg=name)


@pytest.mark.parametrize("end", [0.9, 1.37, 2.05])
def test_a_nod_begins_soon_after_a_phrase_end(end):
    sound = tone((0.2, end))
    found = phrases(sound)
    assert [round(p.end, 2) for p in found] == [pytest.approx(end, abs=0.03)]
    pitch = reactions(sound)["pitch"]
    begins = (np.flatnonzero(pitch > 0.05)[0] - 1) / FPS  # the last frame at rest
    assert 0.2 - 1 / FPS <= begins - end <= 0.35
    assert 9 <= pitch.max() <= 13
    assert pitch[-1] == 0
    nods = [e for e in reaction_events(sound) if e[0] == "nod"]
    assert [0.2 <= at - end <= 0.35 for _, at, _ in nods] == [True]


def test_no_nod_for_short_sounds_or_silence():
    assert reactions(tone((0.5, 0.8)))["pitch"].max() == 0
    assert all(curve.max() == 0 for curve in reactions(np.zeros(96000, np.float32)).values())


def test_louder_and_longer_phrases_get_larger_and_more_nods():
    quiet, loud = (reactions(tone((0.2, 1.2), level=x))["pitch"].max() for x in (0.03, 0.3))
    assert loud > quiet + 2
    long = reactions(tone((0.1, 2.0)))["pitch"]
    peaks = np.flatnonzero((long[1:-1] > long[:-2]) & (long[1:-1] >= long[2:]) & (long[1:-1] > 6))
    assert len(peaks) == 2


def test_laughter_is_recognised_and_smiled_at():
    laugh = laughter(np.random.default_rng(0), Voice(variant="f2"))
    sound = np.zeros(96000, np.float32)
    sound[24000 : 24000 + len(laugh.samples)] = laugh.samples
    times = laughs(sound)
    assert len(times) == 1
    assert 1.5 < times[0] < 1.9
    smile = reactions(sound)["smile"]
    assert smile[: int((times[0] + 0.3) * FPS)].max() == 0
    assert smile.max() > 0.95
    assert laughs(say("My mother bought apples and we baked a big pie.", Voice()).samples) == []


def test_performance_is_bounded_smooth_and_seeded():
    for seed in range(8):
        scene = make_scene(seed, FRAMES)
        prompt = sample_prompt(np.random.default_rng(seed))
        params, events, _ = perform(scene.dry, scene.speak, scene.listen, prompt, FRAMES, seed)
        again, *_ = perform(scene.dry, scene.speak, scene.listen, prompt, FRAMES, seed)
        np.testing.assert_array_equal(params, again)
        assert params.shape == (FRAMES, len(PARAMS))
        assert params.dtype == np.float32
        step = np.abs(np.diff(params, axis=0)).max(0)
        assert step[PARAM_INDEX["pitch"]] < 5
        assert step[PARAM_INDEX["yaw"]] < 4
        assert step[PARAM_INDEX["lid_left"]] < 0.6
        assert [at for _, at, _ in events] == sorted(at for _, at, _ in events)


def test_the_seed_moves_little():
    scene = make_scene(3, FRAMES, kind="speak")
    one, two = (perform(scene.dry, scene.speak, scene.listen, Prompt(), FRAMES, s)[0] for s in (1, 2))
    for name, most in (("yaw", 5), ("pitch", 2), ("roll", 3.5), ("aperture", 0), ("smile", 0)):
        assert np.abs(column(one, name) - column(two, name)).max() <= most, name


def test_blinks_last_a_third_of_a_second():
    scene = make_scene(5, FRAMES, kind="listen")
    params, events, _ = perform(scene.dry, scene.speak, scene.listen, Prompt(), FRAMES, 0)
    at = next(t for name, t, _ in events if name == "blink" and 0.2 < t < 3.4)
    lid = column(params, "lid_left")
    moving = lid[int(at * FPS) : int((at + 0.5) * FPS)] < 0.89
    assert moving.sum() / FPS >= 0.29  # frames strictly between open and open again
    assert lid.min() < 0.1


def test_while_only_listening_the_mouth_is_shut():
    for seed in range(6):
        scene = make_scene(seed, FRAMES, kind="listen")
        params, *_ = perform(scene.dry, scene.speak, scene.listen, Prompt(), FRAMES, seed)
        assert column(params, "aperture").max() <= 0.02


def silent(prompt, from_rest=False):
    nothing = np.zeros(FRAMES * SAMPLES_PER_FRAME, np.float32)
    return perform(Speech(nothing, ()), nothing, nothing, prompt, FRAMES, 0, from_rest)[0]


def test_prompts_pose_from_the_first_frame():
    happy = silent(Prompt("", "happy", 1.0))
    assert column(happy, "smile").min() > 0.9
    left = silent(Prompt("", action="look_left"))
    assert column(left, "gaze_x")[0] < -0.8
    assert column(silent(Prompt("", action="tilt_right")), "roll").min() > 7
    assert column(silent(Prompt("", action="close_eyes")), "lid_left").max() < 0.05
    assert np.ptp(column(silent(Prompt("", action="nod")), "pitch")) > 8
    for emotion in EMOTIONS:
        assert column(silent(Prompt("", emotion, 1.0)), "aperture").max() == 0
    levels = [column(silent(Prompt("", "sad", x)), "frown")[0] for x in (0.4, 0.7, 1.0)]
    assert levels == sorted(levels)


@pytest.mark.parametrize(
    "prompt", [Prompt("", "happy", 1.0, "nod"), Prompt("", action="turn_left"), Prompt("", "sad", 0.4)]
)
def test_from_rest_the_prompt_is_eased_in(prompt):
    """Its first frame is that of no prompt at all, and after the ease nothing is missing."""
    eased, whole, nothing = silent(prompt, True), silent(prompt), silent(Prompt())
    np.testing.assert_allclose(eased[0], nothing[0], atol=1e-6)
    end = round(EASE * FPS) + 1
    np.testing.assert_allclose(eased[end:], whole[end:], atol=1e-6)
    change = np.abs(eased - nothing)[:end].max(axis=1)
    assert change[end // 4] < 0.4 * change.max() and (np.diff(change[: end // 2]) > 0).all()


def test_a_timed_action_waits_for_its_time():
    params = silent(Prompt("", action="turn_right", start=2.0))
    assert np.abs(column(params, "yaw")[: 2 * FPS]).max() < 4
    assert column(params, "yaw")[-12:].min() > 16


def test_prompt_words():
    rng = np.random.default_rng(0)
    drawn = [sample_prompt(rng) for _ in range(3000)]
    assert max(len(p.text.split()) for p in drawn) <= MAX_WORDS
    assert 0.16 < np.mean([p.text == "" for p in drawn]) < 0.24
    assert {p.emotion for p in drawn} == set(EMOTIONS)
    assert {p.action for p in drawn} == {"", *ACTIONS}
    for action in ACTIONS:
        texts = {
            p.text.split(" ", 1)[1] for p in drawn if p.action == action and p.emotion == "neutral" and not p.start
        }
        assert len(texts) >= 5, action
    held_out = {sample_prompt(rng, held_out=True).text for _ in range(500)} - {""}
    assert not held_out & {p.text for p in drawn}
    assert not any("{" in p.text or "  " in p.text for p in drawn)
