"""Cutting pictures for a network: similarity transforms from points, and pictures through them.

Coordinates are as in OpenCV and in the networks' own projects: (x, y), whole numbers at the centres of pixels.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


def similarity(
    source: Float[np.ndarray, "points 2"], target: Float[np.ndarray, "points 2"]
) -> Float[np.ndarray, "2 3"]:
    """Rotation, scale and shift that bring ``source`` nearest to ``target`` (least squares; no reflection)."""
    z, w = (points[:, 0] + 1j * points[:, 1] for points in (source, target))
    zc, wc = z - z.mean(), w - w.mean()
    turn = (zc.conj() @ wc) / max((np.abs(zc) ** 2).sum(), 1e-9)  # scale times rotation, as a complex number
    shift = w.mean() - turn * z.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def box_to(box: Float[np.ndarray, " 4"], width: int, height: int, edges: bool = False) -> Float[np.ndarray, "2 3"]:
    """The scale and shift that put a box (left, top, right, bottom) on a picture of ``width`` x ``height``.

    With ``edges`` the box is of pixels' edges, as when a slice of the picture is resized; else of points.
    """
    left, top, right, bottom = np.asarray(box, np.float64)
    sx, sy = width / (right - left), height / (bottom - top)
    half = 0.5 if edges else 0.0
    return np.array([[sx, 0.0, (half - left) * sx - half], [0.0, sy, (half - top) * sy - half]])


def warp(
    picture: UInt8[np.ndarray, "h w 3"], matrix: Float[np.ndarray, "2 3"], width: int, height: int, fill: int = 0
) -> UInt8[np.ndarray, "height width 3"]:
    """The picture through ``matrix``, bilinear, ``fill`` outside of it."""
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    # Pillow counts from pixels' corners.
    back[:, 2] += 0.5 - back[:, :2] @ (0.5, 0.5)
    image = Image.fromarray(picture).transform(
        (width, height), Image.Transform.AFFINE, tuple(back.ravel()), Image.Resampling.BILINEAR, fillcolor=(fill,) * 3
    )
    return np.asarray(image)
