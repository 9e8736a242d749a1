"""Instruments for real faces, on stand-ins for the published networks: every step's values, and what is said of
files that are missing or wrong."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from data_pipeline.schema import PARAM_INDEX
from lpm_jax.bench import run as bench
from lpm_jax.bench import write_cases
from lpm_jax.bench.cases import Recorded, read_case
from lpm_jax.bench.files import write_video
from lpm_jax.bench.instruments.real import align, faces, identity, landmarks, pose, sync
from lpm_jax.bench.instruments.real.observe import RealInstruments, overlapping, shrunk
from lpm_jax.bench.metrics.speaking import synchrony
from lpm_jax.bench.schema import read_results
from lpm_jax.errors import InputError, run_door
from tests.bench import standins

SIZE = 256  # pixels of frames here: half of the instruments' own, for speed


@pytest.fixture(scope="module", autouse=True)
def half_size():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RealInstruments, "size", SIZE)
        yield


def face_points(yaw=0.0, pitch=0.0, roll=0.0, opening=0.0, smile=0.0, brow=0.0, lid=0.3, scale=1.5) -> np.ndarray:
    """The 68 points of a face of average proportions, in the middle of a frame; expressions in millimetres."""
    model = np.zeros((68, 3))
    for index, place in landmarks.AVERAGE.items():
        model[index] = place
    for a, (x, y, z) in ((36, (-30.5, -33.5, 23.5)), (42, (30.5, -33.5, 23.5))):
        for k, dx, dy in ((1, -5, -1), (2, 5, -1), (4, 5, 1), (5, -5, 1)):
            model[a + k] = x + dx, y + dy * lid * np.hypot(29, 1) / 2, z
    eyes = [model[36:42, 1].mean(), model[42:48, 1].mean()]
    for at, x, y in ((17, -30, eyes[0]), (22, 30, eyes[1])):
        model[at : at + 5] = [(x + dx, y - landmarks.BROW - brow, 20) for dx in (-10, -5, 0, 5, 10)]
    wide = landmarks.MOUTH / 2 + smile / 2
    model[48], model[54] = (-wide, 35, 20), (wide, 35, 20)
    model[60], model[64] = (-wide + 4, 35, 20), (wide - 4, 35, 20)
    for upper, lower, x in ((61, 67, -10), (62, 66, 0), (63, 65, 10)):
        model[upper], model[lower] = (x, 35 - opening / 2, 15), (x, 35 + opening / 2, 15)
    seen = model @ landmarks.rotation(float(yaw), float(pitch), float(roll)).T
    return SIZE / 2 + scale * seen[:, :2]


def bins(points: np.ndarray) -> np.ndarray:
    """Points of frames as bins of the pose network's answers."""
    left, top, right, bottom = pose.Pose.box(type("", (), {"width": 288, "height": 384})(), SIZE, SIZE)
    scale = np.array([288 / (right - left), 384 / (bottom - top)])
    return np.round((points - (left, top)) * scale * pose.BINS).astype(int)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """All five files. Poses: closed, open, three steps of a nod, a smile, raised brows, shut eyes."""
    folder = tmp_path_factory.mktemp("weights")
    shown = [{}, {"opening": 16}, {"pitch": 4}, {"pitch": 8}, {"pitch": 12}, {"smile": 12}, {"brow": 8}, {"lid": 0.1}]
    standins.detector(folder, side=320)
    standins.embedding(folder)
    standins.poses(folder, np.stack([bins(face_points(**how)) for how in shown]))
    standins.blue_and_loud(folder)
    return folder


@pytest.fixture(scope="module")
def instruments(weights):
    return RealInstruments(weights)


# --- faces and identity ------------------------------------------------------------------------------------------


def marked(cells: list[tuple[int, int]], side: int = 640) -> np.ndarray:
    """A picture whose cells of 8 x 8 pixels (column, row) are red."""
    picture = np.full((side, side, 3), 90, np.uint8)
    for x, y in cells:
        picture[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 255, 0, 0
    return picture


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """One that takes pictures of any size, as the published file does."""
    folder = tmp_path_factory.mktemp("detector")
    standins.detector(folder)
    return faces.Faces(folder)


def test_boxes_and_points_lie_around_the_anchor(detector):
    found = detector.find(marked([(30, 40)]))
    assert found.box == pytest.approx([8 * (30 - 7), 8 * (40 - 8), 8 * (30 + 9), 8 * (40 + 10)])
    assert found.points == pytest.approx(8 * (standins.DOTS + (30, 40)))
    assert found.score == pytest.approx(255 / 256, abs=0.01)
    assert detector.find(marked([])) is None


def test_smaller_and_oblong_pictures_are_scaled_into_the_corner(detector):
    small = np.full((160, 320, 3), 90, np.uint8)
    small[80:84, 160:164] = 255, 0, 0  # twice as large in the network's eyes: the cell at 40, 20
    found = detector.find(small)
    assert found.box == pytest.approx([4 * (40 - 7), 4 * (20 - 8), 4 * (40 + 9), 4 * (20 + 10)])
    assert found.points == pytest.approx(4 * (standins.DOTS + (40, 20)))


def test_of_several_faces_the_middle_one_is_taken_and_doubles_are_dropped(detector):
    found = detector.find(marked([(5, 5), (38, 41), (70, 70)]))
    assert found.box[:2] == pytest.approx([8 * (38 - 7), 8 * (41 - 8)])
    boxes = np.array([(0, 0, 10, 10), (1, 0, 11, 10), (0, 0, 10, 3), (20, 20, 30, 30)], float)
    assert faces.apart(boxes, np.array([0.6, 0.9, 0.8, 0.7])) == [1, 2, 3]


def test_a_face_that_is_lost_stays_where_it_was(detector):
    frames = np.stack([marked([]), marked([(30, 40)]), marked([]), marked([(32, 40)])])
    track, last = detector.follow(frames, None)
    assert track.found.tolist() == [False, True, False, True]
    assert track.boxes[0] == pytest.approx([0, 0, 640, 640])
    assert track.boxes[2] == pytest.approx(track.boxes[1]) and track.boxes[3, 0] == track.boxes[1, 0] + 16
    again, _ = detector.follow(frames[:1], last)
    assert again.boxes[0] == pytest.approx(track.boxes[3]) and not again.found[0]


def test_similarities_are_those_of_scikit_image():
    transform = pytest.importorskip("skimage.transform")
    source = identity.PLACES * 2.3 + np.random.default_rng(0).normal(0, 4, (5, 2)) + (100, 40)
    expected = transform.SimilarityTransform.from_estimate(source, identity.PLACES)
    assert align.similarity(source, identity.PLACES) == pytest.approx(expected.params[:2], abs=1e-6)


def test_pictures_are_cut_as_opencv_cuts_them():
    cv2 = pytest.importorskip("cv2")
    y, x = np.mgrid[:200, :240]
    picture = np.stack([x, y, 127 + 100 * np.sin(x / 9) * np.cos(y / 7)], -1).astype(np.uint8)
    matrix = align.similarity(
        identity.PLACES + np.array([[0, 0], [9, 7], [2, 0], [0, 0], [3, 9]]) + 60, identity.PLACES
    )
    expected = cv2.warpAffine(picture, matrix, (112, 112), borderValue=0)
    assert np.abs(align.warp(picture, matrix, 112, 112).astype(int) - expected).max() <= 3
    resized = align.warp(picture, align.box_to(np.array([40.0, 20, 140, 160]), 224, 224, edges=True), 224, 224)
    expected = cv2.resize(picture[20:160, 40:140], (224, 224))
    assert np.abs(resized.astype(int) - expected)[3:-3, 3:-3].max() <= 3


def test_a_turned_face_is_brought_upright_before_it_is_embedded(instruments):
    """Five colours around the places of a face that is turned by 25 degrees: the embedding has just these."""
    turn = 1.4 * np.exp(1j * np.radians(25))
    z = (identity.PLACES - 56) @ (1, 1j) * turn + 120 + 130j
    points = np.stack([z.real, z.imag], 1)
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (10, 200, 100)], np.uint8)
    y, x = np.mgrid[:SIZE, :SIZE]
    nearest = ((x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2).argmin(-1)
    found = instruments.looks.embed(colours[nearest][None], points[None])[0]
    expected = (colours.astype(float) / 127.5 - 1).ravel()
    assert found == pytest.approx(expected / np.linalg.norm(expected), abs=2e-3)
    mirrored = instruments.looks.embed(colours[nearest][None, :, ::-1], points[None])[0]
    assert found @ mirrored < 0.9


# --- points of the face ------------------------------------------------------------------------------------------


def test_simcc_is_decoded_to_half_pixels():
    x, y = np.zeros((1, 2, 576)), np.zeros((1, 2, 768))
    x[0, 0, 301], x[0, 1, 4], y[0, 0, 17], y[0, 1, 767] = 0.9, 0.5, 0.7, 0.6
    points, sure = pose.decode(x, y)
    assert points[0].tolist() == [[150.5, 8.5], [2.0, 383.5]] and sure[0].tolist() == [0.7, 0.5]


def test_points_come_back_to_where_they_were_in_the_frame(instruments):
    frames = np.zeros((3, SIZE, SIZE, 3), np.uint8)
    frames[..., 0] = 10 * np.array([0, 1, 4])[:, None, None]  # the number of a pose is in the red
    points, sure = instruments.pose.find(frames)
    assert points.shape == (3, 68, 2) and (sure == np.float32(0.8)).all()
    for found, how in zip(points, ({}, {"opening": 16}, {"pitch": 12}), strict=True):
        # Widened by a quarter, 320 pixels on 288 with two bins each.
        assert np.abs(found - face_points(**how)).max() <= 320 / 288 / 4 + 1e-6
    assert instruments.pose.box(SIZE, SIZE).tolist() == pytest.approx([-32, 128 - 640 / 3, 288, 128 + 640 / 3])
    tall = instruments.pose.box(2000, 500)
    assert tall[3] - tall[1] == pytest.approx(2500) and tall[2] - tall[0] == pytest.approx(1875)


def test_a_file_that_takes_one_picture_at_a_time_gives_the_same(instruments, tmp_path):
    standins.poses(tmp_path, np.stack([bins(face_points(pitch=p)) for p in (0, 5, 9)]), batch=1)
    frames = np.full((5, SIZE, SIZE, 3), 10, np.uint8) * np.array([0, 1, 2, 1, 0], np.uint8)[:, None, None, None]
    points, _ = pose.Pose(tmp_path).find(frames)
    assert np.array_equal(points[1], points[3]) and not np.array_equal(points[1], points[2])


@pytest.mark.parametrize("yaw, pitch, roll", [(0, 0, 0), (20, 0, 0), (0, 12, 0), (0, 0, -8), (-15, 10, 6)])
def test_head_angles_are_read_exactly(yaw, pitch, roll):
    found = landmarks.angles(face_points(yaw, pitch, roll)[None])
    assert {name: x[0] for name, x in found.items()} == pytest.approx(
        {"yaw": yaw, "pitch": pitch, "roll": roll}, abs=1e-6
    )


def test_positive_angles_go_right_down_and_clockwise():
    straight, right, down, tilted = (face_points(**how) for how in ({}, {"yaw": 10}, {"pitch": 10}, {"roll": 10}))
    assert right[30, 0] - right[27, 0] > 3 + straight[30, 0] - straight[27, 0]
    assert down[30, 1] - down[33, 1] > 3 + straight[30, 1] - straight[33, 1]
    assert tilted[45, 1] > tilted[36, 1] + 10


def test_expressions_are_in_the_parameters_units():
    def read(**how):
        return {name: x[0] for name, x in landmarks.signals(face_points(**how)[None]).items()}

    rest = read()
    assert rest == pytest.approx(dict.fromkeys(("yaw", "pitch", "roll", "aperture", "smile", "brow"), 0) | {"eyes": 1},
                                 abs=1e-6)  # fmt: skip
    nose = np.hypot(landmarks.NOSE, 4) / landmarks.NOSE  # the ridge also leads forward, which is not seen from ahead
    assert nose < 1.004
    full = landmarks.FULL_OPEN * landmarks.MOUTH
    assert read(opening=full)["aperture"] == pytest.approx(1, abs=0.01)
    assert read(opening=full / 2)["aperture"] == pytest.approx(0.5, abs=0.005)
    assert read(opening=full / 2, scale=0.6)["aperture"] == pytest.approx(0.5, abs=0.005)  # further away
    assert read(opening=full / 2, pitch=12)["aperture"] == pytest.approx(0.5, abs=0.04)  # while nodding
    assert read(opening=-4)["aperture"] == 0
    assert read(smile=6)["smile"] == pytest.approx(0.5) and read(smile=-8)["smile"] == 0
    assert read(brow=4)["brow"] == pytest.approx(0.5, abs=0.01) and read(brow=-8)["brow"] == pytest.approx(-1, abs=0.02)
    assert read(lid=0.2)["eyes"] == pytest.approx(0.5, abs=0.01) and read(lid=0.05)["eyes"] == 0
    turned = read(yaw=20, roll=10, opening=full / 2)
    assert turned["aperture"] == pytest.approx(0.5, abs=0.04) and turned["smile"] < 0.1


def test_an_open_mouth_is_as_open_as_a_drawn_one():
    pytest.importorskip("cv2")
    from data_pipeline.performers.draw_rig import FULL_OPEN

    assert landmarks.FULL_OPEN == FULL_OPEN


def test_frames_without_sure_points_are_bridged():
    read = {"pitch": np.array([1.0, 99, 99, 4, 5])}
    assert landmarks.bridged(read, np.array([0.9, 0.1, 0, 0.3, 0.9]), 0.3)["pitch"].tolist() == [1, 2, 3, 4, 5]
    assert landmarks.bridged(read, np.zeros(5), 0.3) == {}


# --- synchrony ---------------------------------------------------------------------------------------------------


def test_cepstra_are_those_of_python_speech_features():
    """Steps 0, 10 and 19 as version 0.6 gives them for these whole numbers."""
    n = np.arange(sync.WINDOW)
    sound = np.round(8000 * np.sin(n * n / 9000) + (n * 7919) % 401 - 200)
    emphasised = np.append(sound[0], sound[1:] - 0.97 * sound[:-1])
    expected = """
        17.1373 6.0887 45.6759 29.5612 -6.793 23.6747 -1.3555 -19.4536 21.976 -38.1782 6.905 -10.5826 -19.382
        20.7195 13.4093 -20.4052 -34.164 -17.7382 32.7641 24.2353 -10.6541 -9.6889 -40.8559 14.7702 11.6941 -0.9136
        21.8562 -0.6793 -36.1673 3.7897 31.1922 -1.8427 -34.9011 6.7273 35.7965 -19.4068 -14.0341 6.3949 11.7647
    """
    found = sync.mfcc(emphasised[None])[0, [0, 10, 19]]
    assert found == pytest.approx(np.array(expected.split(), float).reshape(3, 13), abs=1e-4)


def test_faces_are_cut_with_their_chins():
    frame = np.zeros((400, 400, 3), np.uint8)
    frame[150:250] = 255  # the box's rows
    cut = sync.crop(frame, np.array([200.0, 200.0, 50.0]))
    white = cut[:, 112, 0] > 127
    # 140 pixels from the box's upper edge onto 224; the box's 100 first.
    assert white[: 224 * 100 // 140].all() and not white[224 * 100 // 140 :].any()
    outside = sync.crop(frame, np.array([0.0, 0.0, 50.0]))
    assert (outside[:70, :70] == 110).all()
    boxes = np.tile([10.0, 20, 30, 60], (20, 1))
    boxes[7] = 300, 300, 301, 301
    assert sync.smoothed(boxes) == pytest.approx(np.tile([20.0, 40, 20], (20, 1)))


def loudness(frames: int, seed: int = 0) -> np.ndarray:
    """A level for each frame, each lasting three."""
    return np.repeat(np.random.default_rng(seed).choice([0.02, 0.1, 0.5], -(-frames // 3)), 3)[:frames]


def noise(levels: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (np.repeat(levels, 1000) * rng.uniform(-1, 1, 1000 * len(levels))).astype(np.float32)


def energies(levels: np.ndarray) -> np.ndarray:
    """What the sound network answers in steady noise of a level: log of its energy per frame of 400 samples."""
    white = (0.97**2 + 1) / 3 * 32768**2 * 400 * 257 / 512  # half of the spectrum, pre-emphasised, at level 1
    return np.log(white * levels**2)


def test_sound_windows_lie_around_their_frames(instruments):
    levels = loudness(60)
    heard = instruments.sync.hear(noise(levels))
    assert heard.shape == (60, 5)
    # The middle one of the five moments is the frame's own, the others one and two frames away.
    steady = [i for i in range(3, 57) if levels[i - 2] == levels[i - 1] == levels[i]]
    assert heard[steady, 1] == pytest.approx(energies(levels[steady]), abs=1.0)
    inside = np.corrcoef(heard[3:-3, 2], np.log(levels[3:-3]))[0, 1]
    assert inside > 0.9
    for k, column in ((-2, 0), (2, 4)):
        assert np.corrcoef(heard[3:-3, column], np.log(np.roll(levels, -k)[3:-3]))[0, 1] > 0.9


def spoken_video(
    levels: np.ndarray, late: int = 0, poses: np.ndarray | None = None, who: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Frames of the loudness in blue, as the networks' distance wants it, with a face's mark, the pose's number and
    the red and green of who it is."""
    blue = (10 * energies(levels)).clip(0, 255)
    blue = blue[np.maximum(np.arange(len(levels)) - late, 0)]
    frames = np.zeros((len(levels), SIZE, SIZE, 3), np.uint8)
    frames[..., 2] = blue[:, None, None].round()
    frames[:, 146:154, 128:136] = 255, 0, 0
    frames[:, 172:184, 100:160, :2] = who
    if poses is not None:
        frames[:, 118:133, 118:133] = (standins.LEVEL * poses)[:, None, None, None]
    return frames


@pytest.mark.parametrize("late", [3, -4])
def test_late_lips_are_told_by_the_distance(instruments, late):
    levels = loudness(72)
    frames = spoken_video(levels, max(late, 0))
    lips = instruments.observe([frames]).lips
    sound = noise(levels if late >= 0 else levels[np.maximum(np.arange(72) + late, 0)])
    confidence, distance, lag = synchrony(lips, instruments.sync.hear(sound))
    assert abs(lag - late) <= 1 and confidence > 1.0 and distance < 4.0


def test_lips_are_blue_green_red_and_five_frames_around(instruments):
    frames = np.zeros((9, SIZE, SIZE, 3), np.uint8)
    frames[..., 2] = 10 * np.arange(9)[:, None, None]
    frames[..., 0] = 200
    lips = instruments.sync.see(frames, np.tile([50.0, 50, 150, 150], (9, 1)), slice(2, 9))
    assert lips[0] == pytest.approx([0, 1, 2, 3, 4], abs=1e-4)
    assert lips[-1] == pytest.approx([6, 7, 8, 8, 8], abs=1e-4)


# --- whole videos ------------------------------------------------------------------------------------------------


def test_blocks_of_any_length_give_the_same_observation(instruments):
    levels = loudness(40)
    frames = spoken_video(levels, poses=np.arange(40) // 3 % 3)
    whole = instruments.observe([frames])
    parts = instruments.observe([frames[:3], frames[3:20], frames[20:21], frames[21:]])
    assert whole.lips.shape == (40, 5) and whole.looks.shape == (7, 15) and whole.faces == 1
    assert whole.thumbs.shape == (40, 8, 8, 3) and whole.change.shape == (39,) and whole.features is None
    assert all(np.array_equal(whole.read[name], parts.read[name]) for name in whole.read)
    for name in ("thumbs", "change", "detail", "lips", "looks"):
        assert np.allclose(getattr(whole, name), getattr(parts, name), atol=1e-5), name
    assert whole.take(np.zeros(13, int)).looks.shape == (3, 15)
    items = [(np.arange(a, b),) for a, b in ((0, 2), (2, 11), (11, 12), (12, 30))]
    seen = [(held[own], held[max(own.start - 4, 0) : own.stop + 4]) for (held,), own in overlapping(items, 4)]
    assert np.concatenate([own for own, _ in seen]).tolist() == list(range(30))
    assert all(around[0] == max(own[0] - 4, 0) and around[-1] == min(own[-1] + 4, 29) for own, around in seen)


def test_pictures_are_shrunk_by_their_means():
    frames = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    assert shrunk(frames)[1, 5, 7].tolist() == frames[1, 10:12, 14:16].mean((0, 1)).round().tolist()


def test_a_video_without_a_face_is_nobody(instruments):
    seen = instruments.observe([np.full((14, SIZE, SIZE, 3), 60, np.uint8)])
    assert seen.faces == 0 and seen.lips is None and not seen.looks.any() and "pitch" in seen.read
    first = np.full((SIZE, SIZE, 3), 60, np.uint8)
    small, looks = instruments.introduce([first, spoken_video(loudness(1))[0]])
    assert np.isnan(looks[0]).all() and np.linalg.norm(looks[1]) == pytest.approx(1)
    assert [picture.shape for picture in small] == [(128, 128, 3)] * 2
    with pytest.raises(ValueError, match="found no frames"):
        instruments.observe([])


NODS = [0] * 30 + [2, 3, 4, 3, 2] + [0] * 25 + [2, 3, 4, 3, 2] + [0] * 7
WHO = {"ada": (200, 200), "bob": (0, 250), "eve": (0, 0)}
SPEECH = (np.random.default_rng(5).integers(0, 3, 24) > 0).repeat(3).astype(int)  # 72 frames, open or closed


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Three clips of three seconds: two speak, one has another face and other words."""
    folder = tmp_path_factory.mktemp("recordings")
    for name, seed, poses in (("ada", 0, SPEECH), ("bob", 3, SPEECH[::-1]), ("eve", 4, np.array(NODS))):
        levels = loudness(72, seed)
        write_video(folder / f"{name}.mp4", [spoken_video(levels, 0, poses, WHO[name])], noise(levels))
    return folder


@pytest.fixture(scope="module")
def cases(recordings, tmp_path_factory):
    out = tmp_path_factory.mktemp("cases")
    assert write_cases.main(["--recordings", str(recordings), "--out", str(out)]) == 0
    eve = json.loads((out / "eve" / "case.json").read_text())
    (out / "eve" / "case.json").write_text(
        json.dumps(eve | {"speak": None, "listen": "speak.flac", "kind": "listening"})
    )
    return out


def test_recordings_become_cases(recordings, cases):
    case = read_case(cases / "ada")
    assert case.frames == 72 and case.kind == "speaking" and isinstance(case.truth, Recorded)
    assert case.first.shape == (SIZE, SIZE, 3) and case.truth.path.read_bytes() == (recordings / "ada.mp4").read_bytes()
    assert np.abs(case.speak).max() > 0.1
    truth = case.truth.as_read({"aperture": np.ones(72), "brow": np.full(72, 0.5), "eyes": np.zeros(72)})
    assert truth["aperture"].all() and truth["brow_outer_left"][3] == 0.5 and not truth["pitch"].any()
    assert len(truth.params) == 72 and PARAM_INDEX["aperture"] < truth.params.shape[1]
    assert sum(len(part) for part in case.truth.video()) == 72


def test_foreign_videos_are_scored_with_real_instruments(weights, cases, recordings, tmp_path, capsys):
    """Ada's lips come three frames late, Bob is as recorded, Eve nods only once."""
    theirs = tmp_path / "theirs"
    levels = loudness(72)
    late = spoken_video(levels, 3, SPEECH[np.maximum(np.arange(72) - 3, 0)], WHO["ada"])
    write_video(theirs / "ada.mp4", [late], noise(levels))
    (theirs / "bob.mp4").write_bytes((recordings / "bob.mp4").read_bytes())
    once = spoken_video(loudness(72, 4), 0, np.array(NODS[:50] + [0] * 22), WHO["bob"])  # and turns into Bob
    write_video(theirs / "eve.mp4", [once], noise(loudness(72, 4)))
    words = ["--videos", str(theirs), "--cases", str(cases), "--instruments", "real", "--weights", str(weights)]
    assert bench.main([*words, "--out", str(tmp_path / "out")]) == 0
    found = read_results(tmp_path / "out")
    assert set(found["instruments"]) == {path.name for path in weights.iterdir()}
    ada, bob, eve = found["cases"]
    assert bob["scores"] == bob["ceiling"] and bob["scores"]["lip_r"] == pytest.approx(1)
    assert ada["scores"]["lip_lag"] == 3 and abs(ada["scores"]["sync_offset"] - 3) <= 1
    assert ada["ceiling"]["sync_offset"] <= 1 and ada["scores"]["lip_r"] < 0.9
    assert bob["scores"]["sync_c"] > bob["floor"]["sync_c"] and bob["scores"]["sync_d"] < bob["floor"]["sync_d"]
    assert eve["scores"]["nod_f1"] == pytest.approx(2 / 3, abs=1e-4) and eve["ceiling"]["nod_f1"] == 1
    assert bob["scores"]["identity_similarity"] > 0.95 > eve["scores"]["identity_similarity"]
    assert bob["scores"]["identity_auc"] == 1 and bob["floor"]["identity_auc"] < 0.6
    assert eve["scores"]["identity_auc"] < 0.6 and eve["ceiling"]["identity_auc"] == 1
    assert "frechet_picture" not in found["metrics"] and "stop_delay" not in found["metrics"]
    said = capsys.readouterr().err
    assert "note: no network for Frechet distances of real pictures" in said and "no det_10g" not in said


# --- files that are missing or wrong -----------------------------------------------------------------------------


def test_each_missing_file_is_told_with_where_to_get_it(weights, tmp_path):
    for name in ("det_10g.onnx", "rtmw.onnx"):
        (tmp_path / name).write_bytes((weights / name).read_bytes())
    some = RealInstruments(tmp_path)
    assert some.looks is some.sync is None and len(some.missing) == 4
    assert some.missing[0] == (
        f"no w600k_r50.onnx in {str(tmp_path)!r}: identity_similarity and identity_auc are left out "
        "(from InsightFace, github.com/deepinsight/insightface, model pack buffalo_l)"
    )
    seen = some.observe([spoken_video(loudness(13))])
    assert seen.lips is seen.looks is None and len(seen.read["aperture"]) == 13
    (tmp_path / "det_10g.onnx").unlink()
    (tmp_path / "w600k_r50.onnx").write_bytes((weights / "w600k_r50.onnx").read_bytes())
    poses = RealInstruments(tmp_path)
    assert poses.looks is poses.faces is None and "which need to know where the face is" in poses.missing[0]
    assert poses.observe([spoken_video(loudness(13))]).faces is None


def test_without_points_metrics_of_mouths_are_absent(weights, cases, recordings, tmp_path):
    for name in ("det_10g.onnx", "w600k_r50.onnx"):
        (tmp_path / name).write_bytes((weights / name).read_bytes())
    words = ["--videos", str(recordings), "--cases", str(cases), "--instruments", "real", "--weights", str(tmp_path)]
    assert bench.main([*words, "--out", str(tmp_path / "out")]) == 0
    metrics = read_results(tmp_path / "out")["metrics"]
    assert not {"lip_r", "nod_f1", "mouth_still", "stop_delay", "prompt_recall", "sync_c"} & set(metrics)
    assert {"identity_similarity", "identity_auc", "identity_colour", "frozen", "flicker", "drift"} <= set(metrics)
    assert metrics["identity_auc"]["result"]["value"] == 1


@pytest.mark.parametrize(
    "build, complaint",
    [
        (lambda d: standins.embedding(d, 224), "w600k_r50.onnx: input: expected [any, 3, 112, 112], found [any, 3, 22"),
        (lambda d: standins.detector(d, outputs=6), "det_10g.onnx: expected 1 input and 9 outputs, found 1 and 6"),
        (lambda d: (d / "rtmw.onnx").write_bytes(b"nothing"), "rtmw.onnx: expected an ONNX model, found"),
        (lambda d: standins.poses(d, np.zeros((1, 17, 2), int), points=17), "expected rows [n, 133, 576], found [1, 1"),
        (lambda d: standins.blue_and_loud(d, 4), "syncnet_lips.onnx: output: expected vectors as long as those of"),
    ],
)  # fmt: skip
def test_files_that_are_not_what_was_expected_are_refused(weights, tmp_path, build, complaint):
    for path in weights.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    build(tmp_path)
    with pytest.raises(InputError) as error:
        RealInstruments(tmp_path)
    assert complaint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--instruments", "real"], "--weights: expected a folder of ONNX files with --instruments real, found none"),
        (["--weights", "DIR"], "found them for drawn ones"),
        (
            ["--instruments", "real", "--weights", "DIR/none"],
            "--weights: expected a folder of ONNX files, found none at",
        ),
        (["--instruments", "real", "--weights", "DIR"], "expected det_10g.onnx or rtmw.onnx (docs/bench.md says where"),
        (["--instruments", "eyes"], "invalid choice: 'eyes'"),
    ],
)
def test_bad_input_ends_with_status_two(words, complaint, tmp_path, capsys):
    words = [word.replace("DIR", str(tmp_path)) for word in words]
    with pytest.raises(SystemExit) as ended:
        run_door(lambda: bench.main(["--out", str(tmp_path / "out"), "--suite", "tiny", "--model", "truth", *words]))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and complaint in said and said.count("\n") == 1


def test_without_the_extra_one_line_says_how_to_get_it(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"expected the extra 'real' \(uv sync --extra real\), found no onnxruntime"):
        RealInstruments(weights)


def test_recordings_that_are_none_are_told(tmp_path):
    with pytest.raises(InputError, match="--recordings: expected a folder with MP4 files, found none"):
        write_cases.main(["--recordings", str(tmp_path), "--out", str(tmp_path / "out")])
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="a.mp4: expected a video"):
        write_cases.main(["--recordings", str(tmp_path), "--out", str(tmp_path / "out")])
