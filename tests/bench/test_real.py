"""Instruments for real faces, on stand-ins for the published networks: every step's values."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from lpm_jax.bench.instruments.real import align, faces, identity, landmarks, pose, sync
from lpm_jax.bench.instruments.real.observe import RealInstruments
from lpm_jax.bench.metrics.speaking import synchrony
from tests.bench import standins
from tests.bench.real_faces import SIZE, bins, energies, face_points, loudness, noise, spoken_video, write_weights


@pytest.fixture(scope="module", autouse=True)
def half_size():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RealInstruments, "size", SIZE)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


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
