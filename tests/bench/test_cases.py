"""Cases: always the same, held out, and the same again from their files."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("espeakng_loader")

from lpm_jax.bench import __main__ as door
from lpm_jax.bench.cases import find_cases, read_case, write_case
from lpm_jax.bench.files import write_flac, write_picture
from lpm_jax.bench.generate import make_case
from lpm_jax.bench.metrics.turns import stops_of
from lpm_jax.bench.suites import FIRST_SEED, specs
from lpm_jax.errors import InputError
from tests.bench.drawn import case


def test_the_full_suite_has_the_papers_composition():
    full = specs("full")
    kinds = collections.Counter(spec.kind for spec in full)
    assert kinds == {"speaking": 400, "listening": 200, "conversation": 200, "motion": 100, "generalisation": 100}
    seconds = np.array([spec.seconds for spec in full])
    assert (seconds > 180).sum() == 95 and (seconds >= 180).sum() == 105  # each kind's longest ends where long begins
    assert seconds.min() == 5 and seconds.max() == 3600
    assert 40 * 3600 < seconds.sum() < 50 * 3600


@pytest.mark.parametrize("suite, count", [("tiny", 4), ("small", 50), ("full", 1000), ("long", 3)])
def test_suites_are_the_same_every_time_and_share_no_seed(suite, count):
    found = specs(suite)
    assert found == specs(suite)
    assert len(found) == len({spec.id for spec in found}) == len({spec.seed for spec in found}) == count
    assert all(spec.seed >= FIRST_SEED and (spec.seconds * 6).is_integer() for spec in found)
    others = {spec.seed for name in ("tiny", "small", "full", "long") if name != suite for spec in specs(name)}
    assert not others & {spec.seed for spec in found}


def test_a_case_has_the_same_bytes_twice(tmp_path):
    spec = specs("tiny")[0]
    for name in ("one", "two"):
        write_case(make_case(spec), tmp_path / name)
    one, two = (sorted((tmp_path / name / spec.id).iterdir()) for name in ("one", "two"))
    assert [p.name for p in one] == [p.name for p in two] and len(one) == 17
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))


def test_a_case_is_what_it_was_when_this_test_was_written():
    made = case("speaking")
    assert (made.id, made.frames, made.style) == ("speaking-000", VALUES["frames"], VALUES["style"])
    assert made.text == VALUES["text"]
    assert np.isclose(np.abs(made.speak).mean(), VALUES["loudness"], rtol=1e-3)
    assert np.isclose(made.truth["aperture"].mean(), VALUES["aperture"], rtol=1e-3)
    assert np.abs(made.first.mean((0, 1)) - VALUES["colour"]).max() < 1


def test_files_give_the_case_back(tmp_path):
    for kind in ("speaking", "motion"):
        made = case(kind)
        read = read_case(write_case(made, tmp_path))
        for name in ("id", "kind", "character", "style", "prompt", "text", "frames", "seconds"):
            assert getattr(read, name) == getattr(made, name)
        for name in ("speak", "listen", "first"):
            assert np.array_equal(getattr(read, name), getattr(made, name))
        assert made.references.keys() == read.references.keys()
        assert all(np.array_equal(made.references[k], read.references[k]) for k in made.references)
        assert np.array_equal(read.truth.params, made.truth.params)
        assert (read.truth.phonemes, read.truth.events) == (made.truth.phonemes, made.truth.events)
        assert json.dumps(read.truth.character) == json.dumps(made.truth.character)
    assert [p.name for p in find_cases(tmp_path)] == ["motion-000", "speaking-000"]


def test_performers_are_held_out():
    from data_pipeline.performers import character

    known = [json.loads(character.sample_character(k).to_json()) for k in (0, specs("small")[0].seed)]
    made = case("speaking").truth.character
    assert all(made["head_width"] != other["head_width"] for other in known)
    assert case("generalisation").style == character.HELD_OUT_STYLE
    assert case("speaking").style != character.HELD_OUT_STYLE


def test_sound_and_truth_start_together():
    """The mouth opens where the sound is, and truth and sound are equally long."""
    made = case("speaking")
    loud = np.sqrt(np.mean(made.speak.reshape(-1, 1000) ** 2, axis=1))
    opening = made.truth["aperture"]
    assert len(loud) == len(opening) == made.frames
    lags = {lag: np.corrcoef(loud[3 + lag : len(loud) - 3 + lag], opening[3:-3])[0, 1] for lag in range(-3, 4)}
    assert max(lags, key=lags.get) in (0, 1)  # lips lead a little


def test_cases_hold_what_they_are_for():
    assert any(name == "nod" for name, *_ in case("listening").truth.events)
    talk = [case("conversation", i) for i in range(2)]
    interrupted = [c for c in talk if any(name == "interrupted" for name, *_ in c.truth.events)]
    assert interrupted and all(stops_of(c) for c in interrupted)
    motion = case("motion")
    assert len(motion.prompt) >= 2 and all(s.action and s.text for s in motion.prompt)
    assert not any(s.action for s in case("speaking").prompt)


def test_own_pictures_and_sound_make_a_case(tmp_path):
    here = tmp_path / "mine"
    here.mkdir()
    write_picture(here / "me.png", np.full((200, 150, 3), 90, np.uint8))
    write_flac(here / "hello.flac", np.sin(np.arange(30_500) / 9).astype(np.float32) / 4)
    (here / "case.json").write_text('{"first": "me.png", "speak": "hello.flac", "prompt": "smiles"}')
    made = read_case(here)
    assert (made.id, made.kind, made.frames, made.truth) == ("mine", "speaking", 31, None)
    assert len(made.speak) == len(made.listen) == 31_000 and not made.listen.any()
    assert made.first.shape == (200, 150, 3) and made.text == "smiles"


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("{", "case.json: expected JSON"),
        ("{}", "expected an object with 'first'"),
        ('{"first": "me.png"}', "expected speak, listen or seconds, found none"),
        ('{"id": "../up", "first": "me.png", "seconds": 1}', "id: expected letters, digits"),
        ('{"id": "..", "first": "me.png", "seconds": 1}', "id: expected letters, digits"),
        ('{"first": "me.png", "seconds": -1}', "seconds: expected 0.1 to 86,400, found -1"),
        ('{"first": "no.png", "seconds": 1}', "no.png: expected a file"),
        ('{"first": "me.png", "seconds": 1, "speak": "no.wav"}', "no.wav: expected a file"),
        ('{"first": "me.png", "seconds": 1, "kind": "dance"}', "kind: expected one of speaking"),
        ('{"first": "me.png", "seconds": 1, "references": {"view/up": "me.png"}}', "found 'view/up'"),
        ('{"first": "me.png", "seconds": 1, "prompt": [{"start": 0.5, "text": "a"}]}', "the first at 0"),
        ('{"first": "me.png", "seconds": 1, "prompt": [{"begin": 0}]}', "expected text or segments"),
        ('{"first": "me.png", "seconds": 1, "truth": {"params": "no.npy"}}', "no.npy: expected a truth"),
    ],
)
def test_bad_cases_are_told_in_a_line(tmp_path, text, complaint):
    write_picture(tmp_path / "me.png", np.full((64, 64, 3), 90, np.uint8))
    (tmp_path / "case.json").write_text(text)
    with pytest.raises(InputError, match=complaint) as error:
        read_case(tmp_path)
    assert "\n" not in str(error.value)


def test_cases_door(tmp_path, capsys):
    assert door.main(["cases", "--suite", "tiny", "--out", str(tmp_path)]) == 0
    assert len(find_cases(tmp_path)) == 4
    with pytest.raises(InputError, match="--suite: expected one of tiny, small, full, long, found 'huge'"):
        door.main(["cases", "--suite", "huge", "--out", str(tmp_path)])
    with pytest.raises(InputError, match="expected one of run, .*, compare, prefer, rate, found 'walk'"):
        door.main(["walk"])
    with pytest.raises(InputError, match="expected a folder of cases"):
        find_cases(tmp_path / "none")


#: From the first speaking case of the small suite.
VALUES = {
    "frames": 136,
    "style": "creature",
    "text": "The character has a slightly sad face.",
    "loudness": 0.056405,
    "aperture": 0.305209,
    "colour": (149.0, 153.3, 171.9),
}
