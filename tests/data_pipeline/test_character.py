"""Characters: the same everywhere, storable, and never shared between training and held-out sets."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipeline.performers.character import (
    HELD_OUT_STYLE,
    STYLES,
    Character,
    colour_distance,
    lab_to_rgb,
    rgb_to_lab,
    sample_character,
    sample_held_out_character,
    sample_training_character,
)

CAST = [sample_training_character(seed) for seed in range(300)]


def test_a_seed_always_makes_the_same_character():
    assert sample_character(7) == sample_character(7)
    assert sample_character(7) != sample_character(8)
    # A value drawn late: every draw before it must have stayed what it was. Datasets depend on it.
    assert sample_character(7, "flat").light == sample_character(7, "shaded").light


def test_json_round_trip_keeps_every_field():
    for character in CAST[:20]:
        text = character.to_json()
        assert Character.from_json(text) == character
        assert len(json.loads(text)) == len(dataclasses.fields(Character)) >= 36


def test_held_out_style_is_never_trained_on_and_seeds_are_disjoint():
    assert {c.style for c in CAST} == set(STYLES) - {HELD_OUT_STYLE}
    held_out = [sample_held_out_character(seed) for seed in range(300)]
    assert HELD_OUT_STYLE in {c.style for c in held_out}
    faces = lambda cast: {(c.head_width, c.head_height, c.jaw, c.skin) for c in cast}  # noqa: E731
    assert not faces(CAST) & faces(held_out)


def test_style_can_be_asked_for_and_a_wrong_one_is_named():
    assert [sample_held_out_character(3, s).style for s in STYLES] == list(STYLES)
    with pytest.raises(ValueError, match="found 'oil'"):
        sample_character(0, "oil")


def test_shares_of_glasses_and_beards():
    people = [c for c in CAST if c.style != "creature"]
    assert 0.27 < np.mean([c.glasses != "none" for c in people]) < 0.43
    assert 0.22 < np.mean([c.beard != "none" for c in people]) < 0.38


def test_neighbouring_regions_differ_in_colour():
    for c in CAST:
        assert colour_distance(c.hair, c.skin) > 25
        assert colour_distance(c.cloth, c.background_colour) > 15
        # The inside of a mouth is what lip sync is judged by: dark on every skin.
        assert rgb_to_lab(c.mouth)[0] < min(rgb_to_lab(c.skin)[0], rgb_to_lab(c.lip)[0]) - 18


def test_lab_of_known_colours():
    assert lab_to_rgb((100, 0, 0)) == (255, 255, 255)
    assert np.allclose(rgb_to_lab((255, 0, 0)), (53.2, 80.1, 67.2), atol=0.2)
    for rgb in ((12, 200, 90), (240, 20, 130), (3, 3, 3)):
        assert np.abs(np.subtract(lab_to_rgb(rgb_to_lab(rgb)), rgb)).max() <= 1
