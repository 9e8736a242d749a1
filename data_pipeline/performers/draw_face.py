"""The face: eyes, brows, nose, mouth, and what sits on the skin.

All curves are functions of u in -1..1, so that irises, teeth and tongue are clipped to their openings by arithmetic
rather than by masks.
"""

from __future__ import annotations

import numpy as np

from data_pipeline.performers.character import Colour, mix
from data_pipeline.performers.draw_rig import Rig, Sheet, circle, loop, ribbon

_U = np.linspace(-1, 1, 17)
_WHITE: Colour = (250, 248, 244)
_TOOTH: Colour = (246, 242, 232)
_TONGUE: Colour = (190, 78, 88)


def eye_sites(rig: Rig) -> list[tuple[float, float, str]]:
    """(x, y, side) of each eye; a third or only eye sits in the middle."""
    c, y = rig.c, rig.eye_y
    pair = [(-c.eye_spacing, y, "left"), (c.eye_spacing, y, "right")]
    return {1: [(0.0, y - 0.02, "mid")], 2: pair, 3: [*pair, (0.0, y - 0.21, "mid")]}[c.eyes]


class _Eye:
    """Geometry of one eye in its own plane: u across in half widths, v down in head widths."""

    def __init__(self, rig: Rig, x: float, y: float, side: str):
        c = rig.c
        self.rig, self.x, self.y = rig, x, y
        self.out = {"left": -1.0, "right": 1.0, "mid": 0.0}[side]
        self.width = c.eye_size * (0.8 if side == "mid" and c.eyes == 3 else 1.0)
        self.height = self.width * c.eye_aspect
        lid = (rig["lid_left"] + rig["lid_right"]) / 2 if side == "mid" else rig[f"lid_{side}"]
        self.open = lid.clip(0, 1.25) * (1 - 0.3 * rig["squint"])
        self.cheer = (0.45 * rig["squint"] + 0.3 * rig["smile"] * rig["cheek"].clip(0.3, 1)).clip(0, 0.7)

    def upper(self, u: np.ndarray) -> np.ndarray:
        dome = (1 - np.abs(u).clip(0, 1) ** 2.4) ** 0.6
        return self.height * dome * (0.35 - self.open * 1.2)

    def lower(self, u: np.ndarray) -> np.ndarray:
        dome = (1 - np.abs(u).clip(0, 1) ** 2.4) ** 0.6
        return self.height * dome * (0.35 + self.open.clip(0, 1) * 0.55 * (1 - self.cheer))

    def place(self, u: np.ndarray, v: np.ndarray, lift: float = 0.012) -> np.ndarray:
        slant = self.rig.c.eye_slant * self.out * u * self.width
        return self.rig.face(self.x + u * self.width, self.y + v - slant, lift)

    def clipped(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        u = u.clip(-0.97, 0.97)
        return self.place(u, np.minimum(np.maximum(v, self.upper(u)), self.lower(u)))


def _eye(sheet: Sheet, x: float, y: float, side: str) -> None:
    rig, c = sheet.rig, sheet.c
    e = _Eye(rig, x, y, side)
    lid = mix(c.skin, c.skin_dark, 0.3)
    dome = (1 - np.abs(_U) ** 2.4) ** 0.6 * e.height
    sheet.fill(e.place(loop(_U, _U) * 1.05, loop(-1.08 * dome, 0.95 * dome)), lid)
    sheet.fill(e.place(loop(_U, _U), loop(e.upper(_U), e.lower(_U))), _WHITE)
    cx, cy = circle(24)
    radius = c.iris_size * e.width
    gx, gy = 0.36 * rig["gaze_x"], 0.42 * e.height * rig["gaze_y"] - 0.03 * e.height
    disc = lambda k, du=0.0, dv=0.0: e.clipped(gx + c.iris_size * (k * cx + du), gy + radius * (k * cy + dv))  # noqa: E731
    sheet.fill(disc(1.0), mix(c.iris, (20, 16, 26), 0.55))
    sheet.fill(disc(0.8), c.iris)
    if c.style == "shaded":
        sheet.fill(disc(0.5, 0.0, 0.25), mix(c.iris, (255, 255, 255), 0.25))
    sheet.fill(disc(0.44 + 0.12 * (rig["pupil"] - 0.5)), (22, 17, 26))
    sheet.fill(disc(0.3, -0.3, -0.28), (255, 255, 255))
    ink = sheet.ink(c.skin_dark, 0.85)
    if c.lid_crease > 0.5:
        sheet.stroke(e.place(_U * 0.85, -1.22 * dome * (0.9 + 0.1 * e.open.clip(0, 1))), c.skin_dark, 0.022)
    sheet.stroke(e.place(_U * 1.06, e.upper(_U) - 0.006), ink, 0.04 + 0.012 * c.lashes, 0.45)
    if c.lashes > 0.6 and side != "mid":
        tip = np.linspace(0, 1, 5)
        lash = e.place(e.out * (0.95 + 0.28 * tip), e.upper(np.array([e.out * 0.9])) * np.ones(5) - 0.05 * tip)
        sheet.stroke(lash, ink, 0.03)


def eyes(sheet: Sheet) -> None:
    for site in eye_sites(sheet.rig):
        _eye(sheet, *site)


def brows(sheet: Sheet) -> None:
    rig, c = sheet.rig, sheet.c
    t = np.linspace(0, 1, 12)  # from the inner to the outer end
    colour = sheet.ink(c.hair, 0.35) if c.style != "line_art" else sheet.ink(c.hair)
    for x, y, side in eye_sites(rig):
        if side == "mid":
            if c.eyes == 3:
                continue
            inner = (rig["brow_inner_left"] + rig["brow_inner_right"]) / 2
            outer = (rig["brow_outer_left"] + rig["brow_outer_right"]) / 2
            lift = 0.085 * (inner + 0 * t) + 0.03 * outer * (2 * t - 1) ** 2
            bx, s = (t - 0.5) * 3.0 * c.brow_length, 0.0
        else:
            s = -1.0 if side == "left" else 1.0
            lift = 0.085 * (rig[f"brow_inner_{side}"] * (1 - t) + rig[f"brow_outer_{side}"] * t)
            bx = x + s * c.brow_length * (2 * t - 1.0) * 0.95
        height = c.eye_size * c.eye_aspect * 1.0 + 0.075
        arch = 0.035 * np.sin(np.pi * t**0.8) + c.brow_slant * 0.12 * (t - 0.5) * abs(s)
        points = rig.face(bx, y - height - arch - lift, 0.03)
        width = c.brow_thickness * (0.75 + 0.35 * np.sin(np.pi * (0.25 + 0.75 * t)))
        side_width = np.broadcast_to(width * rig.unit, points.shape[:2])
        sheet.fill(ribbon(points, side_width), colour)


def nose(sheet: Sheet) -> None:
    rig, c = sheet.rig, sheet.c
    tip_y = rig.eye_y + 0.06 + c.nose_length
    w, cx, cy = c.nose_width, *circle(20)
    ink = sheet.ink(c.skin_dark, 0.35)
    if c.snout:
        w, tip_y = 0.085 * c.snout, rig.mouth_y - 0.17
        sheet.outlined([rig.face(w * cx, tip_y + 0.62 * w * cy, 0.24)], sheet.ink(c.skin_dark, 0.45))
        sheet.fill(
            rig.face(w * (0.35 * cx - 0.15), tip_y + w * (0.16 * cy - 0.25), 0.25), mix(c.skin_dark, _WHITE, 0.5)
        )
        return
    u = np.linspace(-1, 1, 12)
    blob = mix(c.skin, c.skin_dark, 0.35)
    if c.nose_shape == 0:
        sheet.fill(rig.face(w * 0.95 * cx, tip_y + 0.72 * w * cy, 0.08), mix(c.skin, c.lip, 0.3))
        sheet.stroke(rig.face(w * u, tip_y + 0.7 * w * np.sqrt(1.02 - u**2), 0.08), ink, 0.026)
    elif c.nose_shape == 1:
        side = np.concatenate([np.linspace(-0.3, -1, 8), np.linspace(-0.7, 0.7, 8), np.linspace(1, 0.3, 8)])
        drop = np.concatenate(
            [np.linspace(-c.nose_length, 0, 8), 0.32 * w * np.ones(8), np.linspace(0, -c.nose_length, 8)]
        )
        lift = np.concatenate([np.linspace(0.01, 0.05, 8), 0.09 * np.ones(8), np.linspace(0.05, 0.01, 8)])
        sheet.fill(rig.face(w * side, tip_y + drop, lift), blob)
        sheet.stroke(rig.face(w * u, tip_y + 0.3 * w * np.sqrt(1.02 - u**2), 0.07), ink, 0.026)
    else:
        sheet.stroke(rig.face(w * (u * 0.9 + 0.1), tip_y + 0.5 * w * np.sqrt(1.02 - u**2), 0.09), ink, 0.028)
    if c.style == "shaded":
        sheet.fill(rig.face(w * (0.3 * cx - 0.15), tip_y + w * (0.22 * cy - 0.25), 0.1), c.skin_light)


def mouth_half_width(rig: Rig) -> np.ndarray:
    """``[frames, 1]`` head widths. lip_width 0.5 is at rest."""
    stretch = 1 + 0.3 * (rig["lip_width"] - 0.5) + 0.14 * rig["smile"] - 0.42 * rig["lip_pucker"]
    return 0.5 * rig.c.mouth_width * stretch.clip(0.45, 1.4)


def mouth(sheet: Sheet) -> None:
    rig, c = sheet.rig, sheet.c
    half, opening, u = mouth_half_width(rig), rig.opening, np.linspace(-1, 1, 25)
    lift = 0.02 + (0.17 * c.snout)
    curve = (0.1 * rig["frown"] - 0.095 * rig["smile"] - 0.035) * (u**2 - 0.3)  # a resting mouth is a little friendly
    dome = (1 - u**2) ** 0.55
    base = rig.mouth_y + curve
    top = base - 0.32 * opening * dome - 0.012 * rig["lip_upper"] * dome
    bottom = np.maximum(base + 0.68 * opening * dome, top)
    full = c.lip_fullness * (1 + 0.35 * rig["lip_pucker"])
    bow = dome * (1 - 0.25 * np.exp(-((u / 0.16) ** 2)))
    place = lambda v, upper, lower: rig.face(half * loop(v, v), loop(upper, lower), lift)  # noqa: E731
    edge = 1 + 0.1 * (np.abs(u) > 0.99)
    lips = place(
        u * edge,
        top - (0.9 + 0.3 * rig["lip_upper"]) * full * bow,
        bottom + (1.15 + 0.3 * rig["lip_lower"]) * full * dome,
    )
    ink = mix(c.lip, (60, 18, 28), 0.45)
    if c.style == "line_art":
        sheet.outlined([lips], c.lip, sheet.ink(c.lip), 0.8)
    else:
        sheet.outlined([lips], c.lip, ink, 0.5)
    if c.style == "shaded":  # a soft light on the lower lip
        shine = rig.face(half * u[7:18], (bottom + 0.55 * full * dome)[:, 7:18], lift)
        sheet.stroke(shine, mix(c.lip, _WHITE, 0.3), 0.02)
    sheet.fill(place(u, top, bottom), c.mouth)
    v = u * 0.86
    vdome = (1 - v**2) ** 0.55
    at = lambda row: np.stack([np.interp(v, u, r) for r in row])  # noqa: E731
    vtop, vbottom = at(top), at(bottom)
    # Tongue and teeth leave a dark gap at every opening: it is what lip reading sees. Unless a sound needs the
    # tongue, it lies too low to be seen in a small opening.
    floor = (opening - 0.045 * (1 - rig["tongue"])).clip(0)
    tongue = vbottom - (0.36 + 0.3 * rig["tongue"]) * floor * np.clip(1 - (v / 0.62) ** 2, 0, 1) ** 0.6
    sheet.fill(place(v, np.maximum(tongue, vtop), vbottom), _TONGUE)
    teeth = np.minimum(c.teeth_size * (0.55 + 0.6 * rig["teeth"]), (0.3 + 0.25 * rig["teeth"]) * opening)
    sheet.fill(place(v, vtop, np.minimum(vtop + teeth * vdome**0.5, vbottom)), _TOOTH)
    # The line between the lips stays when they open: it is the upper lip's shadow.
    sheet.stroke(rig.face(half * u * 1.04, top, lift), mix(c.mouth, c.lip, 0.15), 0.026, 0.4)


def skin_marks(sheet: Sheet) -> None:
    """Blush, freckles, the fold of a smile."""
    rig, c = sheet.rig, sheet.c
    cx, cy = circle(18)
    rise = 0.035 * rig["smile"] + 0.03 * rig["cheek"]
    y = rig.eye_y + 0.2 - rise
    if c.blush > 0.4 and c.style != "line_art":
        for s in (-1, 1):
            for k, share in ((1.0, 0.14), (0.72, 0.28), (0.45, 0.4)):
                sheet.fill(rig.face(s * 0.3 + 0.085 * k * cx, y + 0.055 * k * cy, 0.005), mix(c.skin, c.lip, share))
    if c.freckles:
        for s in (-1, 1):
            for dx, dy in ((-0.05, 0.0), (0.04, -0.015), (0.0, 0.045)):
                spot = rig.face(s * (0.27 + dx) + c.freckles * cx, y + dy + c.freckles * cy, 0.006)
                sheet.fill(spot, mix(c.skin, c.skin_dark, 0.8))
    if c.spots:
        for x, dy, k in (
            (-0.3, -0.36, 1.0),
            (0.12, -0.43, 1.3),
            (0.33, -0.28, 0.8),
            (-0.36, 0.12, 0.8),
            (0.37, 0.1, 1.0),
        ):
            sheet.fill(rig.face(x + k * c.spots * cx, dy + k * c.spots * cy), mix(c.skin, c.skin_dark, 0.6))


def snout(sheet: Sheet) -> None:
    """A muzzle that carries nose and mouth."""
    rig, c = sheet.rig, sheet.c
    if not c.snout:
        return
    cx, cy = circle(32)
    x = 0.27 * c.snout * np.sign(cx) * np.abs(cx) ** 0.85
    y = rig.mouth_y - 0.03 + 0.5 * rig.opening + (0.19 * c.snout + 0.5 * rig.opening) * cy
    muzzle = rig.face(x, y, 0.15)
    light = mix(c.skin_light, _WHITE, 0.35)
    sheet.outlined([muzzle], light, mix(c.skin, c.skin_dark, 0.6), 0.8)
