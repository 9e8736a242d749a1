"""Turning a character's geometry into polygons on a canvas, for all frames of a clip at once.

Every part is a set of points on or around a head ellipsoid, in head widths from the head's centre (x to the viewer's
right, y down, z towards the viewer). :class:`Rig` projects them by the head pose; :class:`Sheet` collects the polygons
in painting order. Strokes are filled outlines, not drawn lines: they taper, and their width is not a whole number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data_pipeline.performers.character import Character, Colour, mix
from data_pipeline.schema import PARAM_INDEX

CENTRE_Y = 0.47  # of the picture: where the head's centre rests
FULL_OPEN = 0.65  # lip opening at aperture 1, in mouth widths
_PIVOT_Y, _PIVOT_Z = 0.42, -0.12  # the joint between skull and neck, in head widths
_DEPTH = 0.39  # of the head ellipsoid: how far the face stands before the ears
_PERSPECTIVE = 0.14


@dataclass(frozen=True)
class Shape:
    """A filled polygon per frame: ``contours`` are float ``[frames, points, 2]`` in canvas pixels; two make a ring."""

    contours: tuple[np.ndarray, ...]
    fill: Colour


class Rig:
    """Pose of a clip: projects head points (``[points]`` or ``[frames, points]``) to canvas pixels."""

    def __init__(self, character: Character, params: Float[np.ndarray, "frames params"], canvas: int):
        self.c, self.canvas = character, canvas
        self.params = params.astype(np.float64)
        self.frames = len(params)
        self.half = character.head_height / 2
        self.opening = self["aperture"].clip(0, 1) * FULL_OPEN * character.mouth_width  # [frames, 1] head widths
        self.mouth_y = character.mouth_height * self.half
        self.eye_y = -character.eye_height
        self.drop = 0.4 * self.opening + 0.02 * self["jaw_open"]  # how far the chin goes down
        yaw, pitch, roll = (np.radians(self[name]) for name in ("yaw", "pitch", "roll"))
        self._cos = np.cos(yaw), np.cos(pitch), np.cos(roll)
        self._sin = self.turn, self.nod, self.tilt = np.sin(yaw), np.sin(pitch), np.sin(roll)
        self.scale = self["scale"] * (1 + 0.08 * self["lean"])
        self.unit = character.head_width * canvas * self.scale  # [frames, 1] pixels per head width

    def __getitem__(self, name: str) -> np.ndarray:
        """One parameter as ``[frames, 1]``."""
        return self.params[:, PARAM_INDEX[name], None]

    def _place(self, x: np.ndarray, y: np.ndarray, share: float) -> np.ndarray:
        """Head widths around the resting head centre to pixels; ``share`` of the shift params applies."""
        x = 0.5 * self.canvas + self.unit * (x + share * self["shift_x"])
        y = CENTRE_Y * self.canvas + self.unit * (y + share * self["shift_y"] + 0.05 * self["lean"])
        # Growing about a point below the chin keeps the shoulders in the picture.
        y = y + 0.15 * self.canvas * (1 - self.scale)
        return np.stack(np.broadcast_arrays(x, y), -1)

    def solid(self, x: np.ndarray, y: np.ndarray, z: np.ndarray | float) -> np.ndarray:
        """Points of the head at any depth -> ``[frames, points, 2]``."""
        (cy, cp, cr), (sy, sp, sr) = self._cos, self._sin
        y, z = y - _PIVOT_Y, z - _PIVOT_Z
        x, z = x * cy + z * sy, z * cy - x * sy
        y, z = y * cp + z * sp, z * cp - y * sp
        f = 1 + _PERSPECTIVE * (z - 0.2)
        x, y = x * f, y * f
        return self._place(x * cr - y * sr, x * sr + y * cr + _PIVOT_Y, 1.0)

    def face(self, x: np.ndarray, y: np.ndarray, lift: np.ndarray | float = 0.0) -> np.ndarray:
        """Points on the face, ``lift`` before its surface -> ``[frames, points, 2]``."""
        inside = 1 - (np.asarray(x) / 0.52) ** 2 - (np.asarray(y) / (1.05 * self.half)) ** 2
        return self.solid(x, y, _DEPTH * np.sqrt(inside.clip(0.02, 1)) + lift)

    def body(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Points of the trunk, which follows the head a little -> ``[frames, points, 2]``."""
        return self._place(np.asarray(x) * np.ones((self.frames, 1)), np.asarray(y) - 0.025 * self["breath"], 0.6)

    def skull(self, angle: np.ndarray, grow: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Silhouette of the head at angles from the top, clockwise -> x, y ``[frames, points]``."""
        c, power = self.c, 2 / self.c.head_exponent
        s, k = np.sin(angle), np.cos(angle)
        x = 0.5 * np.sign(s) * np.abs(s) ** power
        y = -np.sign(k) * np.abs(k) ** power
        low = y.clip(0, 1)
        width = 1 - (1 - c.jaw) * low**1.3 + 0.07 * (c.cheek - 0.3) * np.exp(-(((y - 0.35) / 0.25) ** 2))
        x = x * width * (1 - 0.22 * c.chin * low**2.5)
        y = self.half * (y + 0.05 * c.chin * low**4 * np.abs(k)) + self.drop * low**1.5
        return x * (1 + grow), y * (1 + grow / (2 * self.half) * 1.0)

    def silhouette(self, x: np.ndarray, y: np.ndarray, z: float = 0.0) -> np.ndarray:
        """Silhouette points to pixels: the chin stands before the skull, so that it swings with yaw."""
        return self.solid(x, y, z + 0.14 * (y / self.half).clip(0, 1.2))


class Sheet:
    """Polygons of a clip in painting order. Widths are in head widths or, for outlines, pixels of a 128 picture."""

    def __init__(self, rig: Rig):
        self.rig, self.c, self.shapes = rig, rig.c, []
        self.pixel = rig.canvas / 128

    def fill(self, points: np.ndarray, colour: Colour) -> None:
        self.shapes.append(Shape((points,), colour))

    def ring(self, outer: np.ndarray, inner: np.ndarray, colour: Colour) -> None:
        self.shapes.append(Shape((outer, inner), colour))

    def ink(self, colour: Colour, share: float = 0.62) -> Colour:
        """Outline colour of a region: near black in line art, else a deep shade of the region itself."""
        dark = (38, 30, 44)
        return dark if self.c.style == "line_art" else mix(colour, dark, share)

    def outlined(self, parts: list[np.ndarray], colour: Colour, ink: Colour | None = None, width: float = 1.0) -> None:
        """Polygons of one colour with one outline around their union (``width`` times the character's)."""
        ink = ink or self.ink(colour)
        reach = 0.5 * width * self.c.outline * self.pixel
        for part in parts:
            self.fill(offset(part, reach), ink)
        for part in parts:
            self.fill(offset(part, -reach), colour)

    def stroke(self, points: np.ndarray, colour: Colour, width: float, taper: float = 0.6) -> None:
        """An open line of ``width`` head widths, thinner by ``taper`` at its ends."""
        u = np.linspace(-1, 1, points.shape[1])
        self.fill(ribbon(points, width * (1 - taper * u**4) * self.rig.unit), colour)

    def glow(self, points: np.ndarray, inner: Colour, outer: Colour, spot: tuple[float, float], steps: int) -> None:
        """Soft gradient in the shaded style: ever smaller copies of a polygon, drawn towards a bright ``spot``.

        The spot is relative to the polygon's centre, in half extents. Steps are small enough to read as smooth.
        """
        low, high = points.min(1, keepdims=True), points.max(1, keepdims=True)
        centre = (low + high) / 2 + (high - low) / 2 * np.array(spot)
        for k in range(1, steps + 1):
            share = k / (steps + 0.0)
            size = 1 - 0.85 * share
            self.fill(centre + (points - centre) * size, mix(outer, inner, share))


def _normals(points: np.ndarray, closed: bool) -> np.ndarray:
    """Unit normals from central differences, outwards for closed clockwise polygons."""
    tangent = np.roll(points, -1, 1) - np.roll(points, 1, 1) if closed else np.gradient(points, axis=1)
    length = np.sqrt((tangent**2).sum(-1, keepdims=True)).clip(1e-6)
    return np.stack([tangent[..., 1], -tangent[..., 0]], -1) / length


def offset(points: np.ndarray, distance: float) -> np.ndarray:
    """A closed polygon grown (or shrunk) by pixels -> ``[frames, points, 2]``."""
    x, y = points[..., 0], points[..., 1]
    area = (x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(1)
    return points + _normals(points, True) * (distance * np.sign(area))[:, None, None]


def ribbon(points: np.ndarray, width: np.ndarray) -> np.ndarray:
    """An open line thickened to ``width`` pixels (``[frames, points]``) -> ``[frames, 2 points, 2]``."""
    side = _normals(points, False) * (np.asarray(width) / 2)[..., None]
    return np.concatenate([points + side, (points - side)[:, ::-1]], 1)


def circle(n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Unit circle -> x, y ``[n]``."""
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.cos(angle), np.sin(angle)


def loop(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Two curves of the same direction -> one closed row of coordinates."""
    upper, lower = np.broadcast_arrays(upper, lower)
    return np.concatenate([upper, lower[..., ::-1]], -1)
