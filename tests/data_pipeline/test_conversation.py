"""Conversations: two tracks that are never mixed, states, kinds, interruptions."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.performers.conversation import KINDS, _track, make_scene, states_of
from data_pipeline.schema import FPS, SAMPLES_PER_FRAME, STATES

FRAMES = 97


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(seed, FRAMES) for seed in range(120)]


def test_kinds_come_in_their_shares(scenes):
    count = Counter(s.kind for s in scenes)
    assert set(count) == set(KINDS)
    for kind, share in KINDS.items():
        assert abs(count[kind] / len(scenes) - share) < 0.15


def test_tracks_have_the_clip_length_and_are_never_mixed(scenes):
    for scene in scenes:
        assert scene.speak.shape == scene.listen.shape == (FRAMES * SAMPLES_PER_FRAME,)
        assert scene.speak.dtype == scene.listen.dtype == np.float32
        middle = (np.arange(len(scene.speak)) + 0.5) / 24000
        for track, sound in ((0, scene.speak), (1, scene.listen)):
            own = np.zeros(len(sound), bool)
            for turn in scene.turns:
                if turn.track == track:
                    own |= (middle > turn.start - 0.01) & (middle < turn.end + 0.1)  # reflections last 50 ms
            assert np.abs(sound[~own]).max(initial=0) < 0.008  # nothing but the room's noise


def test_a_partner_who_changes_leaves_the_other_track_alone(scenes):
    scene = next(s for s in scenes if s.kind == "conversation" and {t.track for t in s.turns} == {0, 1})
    alone = _track([t for t in scene.turns if t.track == 0], 0, len(scene.speak))
    np.testing.assert_array_equal(alone.samples, scene.dry.samples)
    assert alone.phonemes == scene.dry.phonemes


def test_states_agree_with_the_sound(scenes):
    seen = Counter()
    for scene in scenes:
        power = [np.square(x.reshape(FRAMES, -1)).mean(1) > 1e-3 for x in (scene.speak, scene.listen)]
        names = [STATES[i] for i in scene.states]
        seen.update(names)
        for i, (speaks, listens) in enumerate(zip(*power, strict=True)):
            near = set(names[max(0, i - 1) : i + 2])  # a turn may begin or end within the frame
            assert not speaks or near & {"speak", "both"}
            assert not listens or near & {"listen", "both"}
    assert set(seen) == set(STATES)


def test_states_of_two_overlapping_turns(scenes):
    turns = [t for s in scenes for t in s.turns if t.speech.seconds > 0.5][:2]
    a = replace(turns[0], track=0, start=0.5, speech=turns[0].speech.cut(0.5))
    b = replace(turns[1], track=1, start=0.75, speech=turns[1].speech.cut(0.5))
    names = [STATES[i] for i in states_of([a, b], 48)]
    expected = ["silence"] * 12 + ["speak"] * 6 + ["both"] * 6 + ["listen"] * 6 + ["silence"] * 18
    assert names == expected
    assert FPS == 24


def test_who_is_interrupted_stops_within_400_ms():
    seen = turns = 0
    for seed in range(150):
        scene = make_scene(seed, 24 * 10 + 1, kind="conversation")
        turns += len(scene.turns)
        for name, at, latency in scene.events:
            if name in ("interrupted", "interrupts"):
                seen += 1
                assert 0.15 <= latency <= 0.4
                track = 0 if name == "interrupted" else 1
                ends = [t.end for t in scene.turns if t.track == track and t.text.endswith("(broken off)")]
                assert any(abs(end - at) < 0.01 for end in ends)
    assert 0.03 < seen / turns < 0.12


def test_same_seed_same_scene_and_held_out_differs():
    one, two = make_scene(7, FRAMES), make_scene(7, FRAMES)
    np.testing.assert_array_equal(one.speak, two.speak)
    np.testing.assert_array_equal(one.listen, two.listen)
    assert one.dry.phonemes == two.dry.phonemes
    said = {t.text for s in range(60) for t in make_scene(s, FRAMES).turns}
    apart = {t.text for s in range(30) for t in make_scene(s, FRAMES, held_out=True).turns}
    assert {t for t in said & apart if len(t.split()) > 2} == set()
