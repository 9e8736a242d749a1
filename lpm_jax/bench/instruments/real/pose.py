"""Points of the face: RTMPose and RTMW for whole bodies (Jiang et al., "RTMPose", 2023; "RTMW", 2024).

As MMPose publishes them: the person's box, widened by a quarter and brought to the input's shape, RGB; for each of the
133 points of COCO-WholeBody a row of scores along x and along y, with two bins for each pixel (SimCC). Points 23 to 90
are the 68 of the face in the usual order (jaw, brows, nose, eyes, lips).

The person's box is the whole picture: the benchmark's videos are portraits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from lpm_jax.bench.instruments.real.align import box_to, warp
from lpm_jax.bench.instruments.real.onnx import Network, Spec
from lpm_jax.errors import InputError

SPEC = Spec(
    file="rtmw.onnx",
    source="MMPose, github.com/open-mmlab/mmpose, projects/rtmpose, a whole-body model (RTMW or RTMPose) for ONNX: "
    "end2end.onnx of its archive, renamed",
    feeds="mouths, nods, smiles, brows and prompts",
    shape=(None, 3, None, None),
    outputs=2,  # rows along x, rows along y
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
)
POINTS, FACE = 133, slice(23, 91)
BINS = 2  # for each pixel
PADDING = 1.25
WIDTH, HEIGHT = 288, 384  # of the input, where the file takes any


class Pose:
    """The network. Raises InputError where the file is not as described."""

    def __init__(self, folder: str | Path):
        self.network = Network(folder, SPEC)
        height, width = self.network.shape[2:]
        self.width, self.height = width or WIDTH, height or HEIGHT
        self.find(np.zeros((1, HEIGHT, WIDTH, 3), np.uint8))  # what does not fit is told before there is work to lose

    def find(
        self, frames: UInt8[np.ndarray, "n h w 3"]
    ) -> tuple[Float[np.ndarray, "n 68 2"], Float[np.ndarray, "n 68"]]:
        """The face's points in pixels of the frames, and how sure each is."""
        box = self.box(*frames.shape[1:3])
        matrix = box_to(box, self.width, self.height)
        cuts = np.stack([warp(frame, matrix, self.width, self.height) for frame in frames])
        x, y = self.network.run(self.network.pixels(cuts))
        for rows, size in ((x, self.width), (y, self.height)):
            if rows.shape[1:] != (POINTS, BINS * size):
                raise InputError(
                    f"{self.network.path}: outputs: expected rows [n, {POINTS}, {BINS * size}], "
                    f"found {list(rows.shape)}"
                )
        points, sure = decode(x[:, FACE], y[:, FACE])
        scale = (box[2:] - box[:2]) / (self.width, self.height)
        return points * scale + box[:2], sure

    def box(self, height: int, width: int) -> Float[np.ndarray, " 4"]:
        """The picture, widened and brought to the input's shape (the outside is black)."""
        w = PADDING * max(width, height * self.width / self.height)
        h = w * self.height / self.width
        return np.array([width - w, height - h, width + w, height + h]) / 2


def decode(
    x: Float[np.ndarray, "n points across"], y: Float[np.ndarray, "n points down"]
) -> tuple[Float[np.ndarray, "n points 2"], Float[np.ndarray, "n points"]]:
    """SimCC: the bins of the highest scores, in pixels of the input, and the lower of the two scores."""
    points = np.stack([x.argmax(-1), y.argmax(-1)], -1) / BINS
    return points, np.minimum(x.max(-1), y.max(-1))
