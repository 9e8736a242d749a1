"""Who is it? ArcFace (Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", 2019).

As InsightFace publishes it: the face is turned, scaled and shifted so that the detector's five points come nearest to
fixed places of a picture of 112 x 112 pixels; the cosine of two answers is their similarity.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from lpm_jax.bench.instruments.real.align import similarity, warp
from lpm_jax.bench.instruments.real.onnx import Network, Spec
from lpm_jax.errors import InputError

SIDE = 112
SPEC = Spec(
    file="w600k_r50.onnx",
    source="InsightFace, github.com/deepinsight/insightface, model pack buffalo_l",
    feeds="identity_similarity and identity_auc",
    shape=(None, 3, SIDE, SIDE),
    outputs=1,  # an embedding of 512 numbers
    mean=(127.5,) * 3,
    std=(127.5,) * 3,
)
#: Where the eyes, the nose and the corners of the mouth belong.
PLACES = np.array([(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)])


class Looks:
    """The network. Raises InputError where the file is not as described."""

    def __init__(self, folder: str | Path):
        self.network = Network(folder, SPEC)
        self.width = self.embed(np.zeros((1, SIDE, SIDE, 3), np.uint8), PLACES[None]).shape[1]

    def embed(
        self, pictures: UInt8[np.ndarray, "n h w 3"], points: Float[np.ndarray, "n 5 2"]
    ) -> Float[np.ndarray, "n e"]:
        """Unit vectors of the faces at ``points``."""
        cuts = np.stack([face(picture, five) for picture, five in zip(pictures, points, strict=True)])
        (out,) = self.network.run(self.network.pixels(cuts))
        if out.ndim != 2:
            raise InputError(f"{self.network.path}: output: expected [n, size], found {list(out.shape)}")
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def face(picture: UInt8[np.ndarray, "h w 3"], points: Float[np.ndarray, "5 2"]) -> UInt8[np.ndarray, "112 112 3"]:
    """The face upright, at its place."""
    return warp(picture, similarity(points, PLACES), SIDE, SIDE)
