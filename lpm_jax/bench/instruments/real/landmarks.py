"""From the 68 points of a face to what the benchmark compares, in the units of the drawn performers' parameters.

The head's turn comes from a weak-perspective fit of points that no expression moves to a face of average proportions
(after POS: DeMenthon and Davis, "Model-based object pose in 25 lines of code", 1995). Lengths along the face are taken
over the nose's, from bridge to base, lengths across it over the distance of the eyes' outer corners: no expression
changes those, and a nod or a turn shortens both alike.

Average proportions are rounded from Farkas, "Anthropometry of the Head and Face", 1994. A person who differs reads a
little higher or lower throughout; events and correlations do not depend on that, thresholds do.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

#: Millimetres from the tip of the nose: to the viewer's right, down, and away from the viewer.
AVERAGE = {
    36: (-45, -34, 27), 39: (-16, -33, 20), 42: (16, -33, 20), 45: (45, -34, 27),  # corners of the eyes
    27: (0, -41, 18), 28: (0, -28, 12), 29: (0, -14, 6), 30: (0, 0, 0),  # ridge of the nose
    31: (-16, 6, 15), 33: (0, 10, 14), 35: (16, 6, 15),  # base of the nose
}  # fmt: skip
NOSE, EYES, MOUTH = 51.0, 90.0, 50.0  # bridge to base; outer corners of the eyes; corners of the mouth
FULL_OPEN = 0.65  # opening at an aperture of 1, in widths of the mouth, as drawn performers have it
SMILE = 12.0  # by how much a full smile widens the mouth
BROW, RAISE = 22.0, 8.0  # from the eye up to the brow, and by how much a full raise lifts it
LID_SHUT, LID_OPEN = 0.1, 0.3  # eye aspect ratio of a shut and of an open eye

_RIGID = list(AVERAGE)
_MODEL = np.array(list(AVERAGE.values()), np.float64)


def signals(points: Float[np.ndarray, "n 68 2"]) -> dict[str, Float[np.ndarray, " n"]]:
    """Aperture, head angles in degrees, eyes, smile and brow. Gaze and frowns cannot be read from these points."""
    nose = points[:, 33] - points[:, 27]
    length = np.maximum(np.linalg.norm(nose, axis=1), 1e-6)
    down = nose / length[:, None]
    along = lambda a, b: ((points[:, b].mean(1) - points[:, a].mean(1)) * down).sum(1) / length * NOSE  # noqa: E731
    across = np.maximum(_distance(points, 36, 45), 1e-6)
    gap = along([61, 62, 63], [67, 66, 65])
    brows = (along([17, 18, 19, 20, 21], [36, 37, 38, 39, 40, 41]) + along([22, 23, 24, 25, 26], range(42, 48))) / 2
    wide = _distance(points, 48, 54) / across * EYES
    return angles(points) | {
        "aperture": (gap / (MOUTH * FULL_OPEN)).clip(0, 1),
        "eyes": ((eye_aspect(points) - LID_SHUT) / (LID_OPEN - LID_SHUT)).clip(0, 1),
        "smile": ((wide - MOUTH) / SMILE).clip(0, 1),
        "brow": ((brows - BROW) / RAISE).clip(-1, 1),
    }


def angles(points: Float[np.ndarray, "n 68 2"]) -> dict[str, Float[np.ndarray, " n"]]:
    """Yaw (to the viewer's right), pitch (chin down) and roll (clockwise) in degrees: turned, then nodded, then
    tilted."""
    model = _MODEL - _MODEL.mean(0)
    seen = points[:, _RIGID] - points[:, _RIGID].mean(1, keepdims=True)
    affine = np.einsum("pk,npc->nck", np.linalg.pinv(model).T, seen)  # least squares: seen = model @ affine^T
    u, _, v = np.linalg.svd(affine, full_matrices=False)
    rows = u @ v  # the nearest two rows of a rotation
    third = np.cross(rows[:, 0], rows[:, 1])
    degrees = {
        "yaw": np.arctan2(third[:, 0], third[:, 2]),
        "pitch": np.arcsin(third[:, 1].clip(-1, 1)),
        "roll": np.arctan2(-rows[:, 0, 1], rows[:, 1, 1]),
    }
    return {name: np.degrees(angle) for name, angle in degrees.items()}


def rotation(yaw: float, pitch: float, roll: float) -> Float[np.ndarray, "3 3"]:
    """The rotation that :func:`angles` reads as these degrees."""
    (cy, cp, cr), (sy, sp, sr) = (f(np.radians([yaw, pitch, roll])) for f in (np.cos, np.sin))
    turn = np.array([(cy, 0, -sy), (0, 1, 0), (sy, 0, cy)])
    nod = np.array([(1, 0, 0), (0, cp, -sp), (0, sp, cp)])
    return np.array([(cr, -sr, 0), (sr, cr, 0), (0, 0, 1)]) @ nod @ turn


def eye_aspect(points: Float[np.ndarray, "n 68 2"]) -> Float[np.ndarray, " n"]:
    """Height over width, mean of both eyes (Soukupova and Cech, "Real-Time Eye Blink Detection", 2016)."""
    ratios = []
    for a in (36, 42):
        height = _distance(points, a + 1, a + 5) + _distance(points, a + 2, a + 4)
        ratios.append(height / (2 * np.maximum(_distance(points, a, a + 3), 1e-6)))
    return (ratios[0] + ratios[1]) / 2


def bridged(
    read: dict[str, Float[np.ndarray, " n"]], sure: Float[np.ndarray, " n"], least: float
) -> dict[str, Float[np.ndarray, " n"]]:
    """The signals with straight lines over frames whose points are not ``sure`` enough; none where no frame is."""
    good = np.flatnonzero(sure >= least)
    if not len(good):
        return {}
    return {name: np.interp(np.arange(len(sure)), good, values[good]) for name, values in read.items()}


def _distance(points: Float[np.ndarray, "n 68 2"], a: int, b: int) -> Float[np.ndarray, " n"]:
    return np.linalg.norm(points[:, a] - points[:, b], axis=1)
