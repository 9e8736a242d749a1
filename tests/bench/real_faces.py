"""Faces as points, frames that the stand-ins understand, and a folder with all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lpm_jax.bench.instruments.real import landmarks, pose
from tests.bench import standins

SIZE = 256  # pixels of frames here: half of the instruments' own, for speed


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


def write_weights(folder: Path) -> Path:
    """All five files. Poses: closed, open, three steps of a nod, a smile, raised brows, shut eyes."""
    shown = [{}, {"opening": 16}, {"pitch": 4}, {"pitch": 8}, {"pitch": 12}, {"smile": 12}, {"brow": 8}, {"lid": 0.1}]
    standins.detector(folder, side=320)
    standins.embedding(folder)
    standins.poses(folder, np.stack([bins(face_points(**how)) for how in shown]))
    standins.blue_and_loud(folder)
    return folder
