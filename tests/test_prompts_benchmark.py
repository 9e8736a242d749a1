"""The share of what a prompt asks for, of characters that are drawn doing all, a half and nothing of it."""

import json

import numpy as np
import pytest

from benchmarks import prompts
from benchmarks.clips import Clip
from data_pipeline.performers.character import sample_held_out_character
from lpm_jax.bench.instruments.expressions import Expressions
from lpm_jax.bench.instruments.reader import Reader

SEEN = ("She smiles broadly.", "She looks left.", "She turns the head to the right.", "She tilts the head to the left.")


@pytest.fixture(scope="module")
def clips():
    return [Clip({}, json.loads(sample_held_out_character(seed).to_json()), None, None) for seed in (11, 12, 13)]


@pytest.fixture(scope="module")
def instruments():
    return Reader.load(), Expressions.load()


def test_who_does_as_told_is_seen(clips, instruments):
    found = prompts.shares(prompts.drawn, clips, *instruments)
    for text in (*SEEN, "She closes the eyes.", "She nods."):
        assert 0.7 < np.mean(found[text]) < 1.3, text
    for text in prompts.ASKED:  # brows under hair are seen less
        assert np.mean(found[text]) > 0.25, text


def test_who_does_nothing_or_the_opposite_is_told(clips, instruments):
    other = {"She looks left.": "She turns the head to the right.", "She smiles broadly.": "She looks very sad."}
    still = prompts.shares(lambda clip, _: prompts.drawn(clip, ""), clips, *instruments)
    assert all(share == 0 for values in still.values() for share in values)
    wrong = prompts.shares(lambda clip, text: prompts.drawn(clip, other.get(text, "")), clips, *instruments)
    assert all(np.mean(wrong[text]) < 0.2 for text in other)
