"""Pictures: what a parameter says must be what is seen."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("cv2")

from data_pipeline.performers.character import HAIR_SHAPES, STYLES, sample_character
from data_pipeline.performers.render import neutral_params, references, regions, render
from data_pipeline.schema import PARAM_INDEX, REFERENCES, REGIONS

SIZE = 128
# Nothing in the way of the features, and no other region in the colours that the tests look for.
PLAIN = {"glasses": "none", "beard": "none", "hat": "none", "snout": 0.0, "freckles": 0.0, "spots": 0.0, "eyes": 2}
PALETTE = {"cloth": (120, 170, 120), "cloth2": (230, 220, 120), "hair": (235, 225, 200), "background": "plain"}
PALETTE |= {"background_colour": (200, 220, 200), "background_colour2": (200, 220, 210)}


def plain(seed, style="flat", **changes):
    return dataclasses.replace(sample_character(seed, style), **{**PLAIN, **PALETTE, **changes})


def pose(frames=1, **values):
    params = neutral_params(frames)
    for name, value in values.items():
        for full in (name,) if name in PARAM_INDEX else (f"{name}_left", f"{name}_right"):
            params[:, PARAM_INDEX[full]] = value
    return params


def crop(frame, box, margin=0.0):
    top, left, bottom, right = (np.array(box) + np.array([-margin, -margin, margin, margin])).clip(0, 1) * SIZE
    return frame[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]


def near(pixels, colour, distance=40):
    return np.abs(pixels.astype(int) - np.array(colour)).sum(-1) < distance


@pytest.mark.parametrize("style", STYLES)
def test_same_input_same_pixels_and_characters_differ(style):
    params = pose(3, yaw=[-10, 0, 10])
    one = render(sample_character(1, style), params)
    assert one.dtype == np.uint8 and one.shape == (3, SIZE, SIZE, 3)
    assert np.array_equal(one, render(sample_character(1, style), params))
    # Frames do not depend on the clip that they are in.
    assert np.array_equal(one[1:2], render(sample_character(1, style), params[1:2]))
    assert np.abs(one[1].astype(int) - render(sample_character(2, style), params)[1]).mean() > 10


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", (0, 1, 2))
def test_aperture_is_the_dark_of_the_mouth(style, seed):
    character = plain(seed, style)
    aperture = np.linspace(0, 1, 11)
    params = pose(11, aperture=aperture)
    boxes = regions(character, params)[:, REGIONS.index("mouth")]
    dark = [near(crop(f, b), character.mouth, 60).sum() for f, b in zip(render(character, params), boxes, strict=True)]
    assert np.corrcoef(aperture, dark)[0, 1] > 0.95
    assert dark[-1] > dark[0] + 60
    height = np.diff(boxes[:, [0, 2]])[:, 0] * SIZE
    assert height[-1] - height[0] > 0.2 * character.head_width * SIZE  # a wide open mouth is big


@pytest.mark.parametrize("style", STYLES)
def test_blink_closes(style):
    character = plain(4, style, iris=(20, 90, 220))
    lids = np.array([1, 0.75, 0.5, 0.25, 0])
    params = pose(5, lid=lids)
    boxes = regions(character, params)[:, REGIONS.index("eyes")]
    blue = [near(crop(f, b), character.iris, 90).sum() for f, b in zip(render(character, params), boxes, strict=True)]
    assert blue[0] > 30 and blue[-1] == 0
    assert all(np.diff(blue) <= 0)


def test_gaze_moves_the_iris():
    character = plain(4, iris=(20, 90, 220))
    frames = render(character, pose(3, gaze_x=[-1, 0, 1]))
    centres = [np.nonzero(near(f[:, :64], character.iris, 90))[1].mean() for f in frames]  # of the left eye
    assert centres[0] + 1.5 < centres[1] < centres[2] - 1.5


@pytest.mark.parametrize("style", STYLES)
def test_nod_moves_the_mouth_down_and_turn_moves_it_across(style):
    character = plain(5, style)
    params = pose(3, pitch=[0, 12, 0], yaw=[0, 0, 20], aperture=0.6)
    rows = []
    for frame in render(character, params):
        y, x = np.nonzero(near(frame[50:], character.mouth, 60))
        rows.append((np.median(y), np.median(x)))
    assert 3 <= rows[1][0] - rows[0][0] <= 9
    assert rows[2][1] - rows[0][1] >= 5
    boxes = regions(character, params)
    assert np.all((boxes[1] - boxes[0])[:2, 0] * SIZE >= 3)  # mouth and eyes follow


def test_far_eye_narrows():
    character = plain(6, iris=(20, 90, 220))
    frame = render(character, pose(yaw=30))[0]
    _, x = np.nonzero(near(frame, character.iris, 90))
    middle = (x.min() + x.max()) / 2
    assert 0 < (x > middle).sum() < (x < middle).sum()


@pytest.mark.parametrize("style", STYLES)
def test_glasses_and_beard_change_their_own_region(style):
    bare = plain(9, style, hair=(40, 30, 60))
    params = pose()
    mouth, eyes, _ = regions(bare, params)[0]
    before = render(bare, params)[0].astype(int)

    def changed(box, **kw):
        after = render(dataclasses.replace(bare, **kw), params)[0].astype(int)
        return (np.abs(crop(after - before, box)).sum(-1) > 40).mean()

    for kind in ("round", "square", "oval", "browline"):
        assert changed(eyes, glasses=kind) > 0.1
        assert changed(mouth, glasses=kind) < 0.02
    for kind in ("stubble", "full", "moustache", "goatee"):
        assert changed(mouth, beard=kind) > 0.1


@pytest.mark.parametrize("seed", range(8))
def test_region_boxes_hold_the_mouth_wherever_the_head_is(seed):
    character = dataclasses.replace(sample_character(seed), beard="none", hair=(240, 240, 240))
    turn = {"yaw": [0, 20, -20, 5], "pitch": [0, -8, 10, 4], "roll": [0, 10, -10, 0]}
    params = pose(4, **turn, shift_x=[0, 0.1, 0, -0.1], scale=[1, 1.1, 0.9, 1], aperture=0.7)
    boxes = regions(character, params)
    assert boxes.shape == (4, 3, 4) and boxes.min() >= 0 and boxes.max() <= 1
    for frame, (mouth, eyes, face) in zip(render(character, params), boxes, strict=True):
        whole = near(crop(frame, face), character.mouth, 60).sum()
        inside = near(crop(frame, mouth), character.mouth, 60).sum()
        assert inside > 40 and inside > 0.6 * whole
        assert mouth[0] > eyes[0] and face[0] <= eyes[0] and face[2] >= mouth[2] - 0.06


@pytest.mark.parametrize("style", STYLES)
def test_every_hair_shape_is_its_own(style):
    frames = [
        render(dataclasses.replace(sample_character(11, style), hair_shape=h, hat="none"), pose())[0].astype(int)
        for h in HAIR_SHAPES
    ]
    for i, one in enumerate(frames):
        assert all(np.abs(one - other).mean() > 0.5 for other in frames[:i])


def test_background_stands_still():
    character = plain(12, background="room")
    frames = render(character, pose(3, yaw=[-20, 0, 20], breath=[0, 0.5, 1], aperture=[0, 1, 0.3]))
    assert np.array_equal(frames[0][:16, :16], frames[2][:16, :16])
    assert not np.array_equal(frames[0], frames[2])


def test_references_are_named_in_slot_order_and_the_back_has_no_face():
    character = plain(13, iris=(20, 90, 220))
    pictures = references(character, seed=3)
    assert tuple(pictures) == REFERENCES
    assert all(p.shape == (SIZE, SIZE, 3) for p in pictures.values())
    blue = {name: near(picture, character.iris, 60).sum() for name, picture in pictures.items()}
    assert blue["view/back"] == 0 and blue["view/front"] > 20 and blue["global"] > 20
    assert np.array_equal(pictures["view/front"], references(character, seed=4)["view/front"])
    assert not np.array_equal(pictures["global"], references(character, seed=4)["global"])


def test_params_of_another_width_are_refused():
    with pytest.raises(ValueError, match="found \\[2, 5\\]"):
        render(sample_character(0), np.zeros((2, 5), np.float32))
