"""Where is the face? SCRFD (Guo et al., "Sample and Computation Redistribution for Efficient Face Detection", 2021).

As InsightFace publishes it: a square of 640 pixels, the picture in its upper left; for each stride 8, 16 and 32 two
anchors at every cell's corner, each with a score, the distances to the box's four sides and the offsets of five points
(eyes, tip of the nose, corners of the mouth), in units of the stride.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from lpm_jax.bench.instruments.real.align import box_to, warp
from lpm_jax.bench.instruments.real.onnx import Network, Spec
from lpm_jax.errors import InputError

SPEC = Spec(
    file="det_10g.onnx",
    source="InsightFace, github.com/deepinsight/insightface, model pack buffalo_l",
    feeds="identity, Sync-C and Sync-D, which need to know where the face is,",
    shape=(1, 3, None, None),
    outputs=9,  # scores, boxes and points, each for the three strides
    mean=(127.5,) * 3,
    std=(128.0,) * 3,
)
SIDE = 640  # pixels of the network's input, where the file takes any
STRIDES, ANCHORS = (8, 16, 32), 2
SURE, OVERLAP = 0.5, 0.4  # least score of a face; intersection over union from which two boxes are one face


class Face(NamedTuple):
    box: Float[np.ndarray, " 4"]  # left, top, right, bottom
    points: Float[np.ndarray, "5 2"]  # the eyes from left to right, nose, corners of the mouth from left to right
    score: float


class Track(NamedTuple):
    """A face in every frame: where none is found, the last one stays."""

    boxes: Float[np.ndarray, "frames 4"]
    points: Float[np.ndarray, "frames 5 2"]
    found: Bool[np.ndarray, " frames"]


class Faces:
    """The detector. Raises InputError where the file is not as described."""

    def __init__(self, folder: str | Path):
        self.network = Network(folder, SPEC)
        height, width = self.network.shape[2:]
        self.width, self.height = width or SIDE, height or SIDE
        self.find(np.zeros((SIDE, SIDE, 3), np.uint8))  # what does not fit is told before there is work to lose

    def find(self, picture: UInt8[np.ndarray, "h w 3"]) -> Face | None:
        """The face of the picture: large and near the middle, where there are several."""
        h, w, _ = picture.shape
        scale = min(self.width / w, self.height / h)
        matrix = box_to(np.array([0, 0, self.width / scale, self.height / scale]), self.width, self.height, edges=True)
        small = warp(picture, matrix, self.width, self.height)
        boxes, points, scores = self._candidates(self.network.run_one(self.network.pixels(small[None])[0]))
        kept = apart(boxes, scores)
        if not len(kept):
            return None
        boxes, points, scores = boxes[kept] / scale, points[kept] / scale, scores[kept]
        sizes = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        away = ((boxes[:, :2] + boxes[:, 2:] - (w, h)) ** 2).sum(1) / 4
        best = int(np.argmax(sizes - 2 * away))  # as InsightFace weighs them
        return Face(boxes[best], points[best], float(scores[best]))

    def follow(self, frames: UInt8[np.ndarray, "n h w 3"], last: Face | None) -> tuple[Track, Face | None]:
        """The faces of a block, and the last one, for the next block. Before the first face the whole picture is it."""
        seen = [self.find(frame) for frame in frames]
        h, w = frames.shape[1:3]
        nobody = Face(np.array([0.0, 0.0, w, h]), np.zeros((5, 2)), 0.0)
        kept = []
        for face in seen:
            last = face or last
            kept.append(last or nobody)
        found = np.array([face is not None for face in seen], bool)
        return Track(np.stack([face.box for face in kept]), np.stack([face.points for face in kept]), found), last

    def _candidates(self, answers: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, points and scores of everything that may be a face, in pixels of the network's input."""
        out = []
        for i, stride in enumerate(STRIDES):
            rows = (self.height // stride) * (self.width // stride) * ANCHORS
            try:
                score, box, points = (answers[i + 3 * k].reshape(rows, size) for k, size in enumerate((1, 4, 10)))
            except ValueError:
                found = ", ".join(str(list(answers[i + 3 * k].shape)) for k in range(3))
                raise InputError(
                    f"{self.network.path}: outputs of stride {stride}: expected {rows} scores, boxes and points, "
                    f"found {found}"
                ) from None
            y, x = np.mgrid[: self.height // stride, : self.width // stride]
            centre = np.repeat(np.stack([x, y], -1).reshape(-1, 2) * stride, ANCHORS, axis=0)
            sides = np.concatenate([centre - box[:, :2] * stride, centre + box[:, 2:] * stride], 1)
            good = score[:, 0] >= SURE
            dots = centre[:, None] + points.reshape(-1, 5, 2) * stride
            out.append((sides[good], dots[good], score[good, 0]))
        return tuple(np.concatenate(column).astype(np.float64) for column in zip(*out, strict=True))


def apart(boxes: Float[np.ndarray, "n 4"], scores: Float[np.ndarray, " n"], most: float = OVERLAP) -> list[int]:
    """Greedy suppression: the surest first, without those that overlap a surer one by more than ``most``."""
    kept: list[int] = []
    sizes = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for i in np.argsort(-scores, kind="stable"):
        corner = np.maximum(boxes[kept, :2], boxes[i, :2]), np.minimum(boxes[kept, 2:], boxes[i, 2:])
        shared = (corner[1] - corner[0]).clip(0).prod(-1)
        if not (shared > most * (sizes[kept] + sizes[i] - shared)).any():
            kept.append(int(i))
    return kept
