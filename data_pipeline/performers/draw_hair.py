"""Hair, beards, glasses, hats, horns: what is worn on the head."""

from __future__ import annotations

import numpy as np

from data_pipeline.performers.character import mix
from data_pipeline.performers.draw_face import eye_sites
from data_pipeline.performers.draw_rig import Rig, Sheet, circle, loop

# shape: growth of the cap over the skull; the hairline at its highest, in half head heights, and its power towards the
# temples; where the cap ends, in radians below the ears' level
_CAPS = {
    "buzz": (0.03, -0.66, 4.0, 0.0),
    "crop": (0.11, -0.60, 5.0, 0.0),
    "swoop": (0.16, -0.86, 1.3, 0.05),
    "bob": (0.12, -0.54, 7.0, 0.3),
    "long": (0.10, -0.90, 1.5, 0.3),
    "curly": (0.26, -0.62, 4.0, 0.1),
    "bun": (0.08, -0.76, 2.6, 0.05),
    "spiky": (0.12, -0.62, 5.0, 0.0),
    "pigtails": (0.09, -0.86, 1.7, 0.1),
    "wavy": (0.15, -0.86, 1.5, 0.3),
}


def _light(rig: Rig) -> tuple[float, float]:
    return float(np.sin(rig.c.light)) * 0.4, -0.45


def cap(rig: Rig) -> np.ndarray:
    """The hair over the skull: its silhouette outside, the hairline on the face's surface inside."""
    c = rig.c
    grow, middle, power, end = _CAPS[c.hair_shape]
    grow = grow * (0.8 + 0.5 * c.hair_volume) + 0.02
    reach = np.pi / 2 + end  # radians from the top where the silhouette ends
    angle = np.linspace(-reach, reach, 61)
    bulge = np.cos(angle / reach * np.pi / 2) ** 0.5
    if c.hair_shape == "curly":
        bulge = bulge + 0.22 * np.abs(np.sin(angle * 5.2)) - 0.1
    elif c.hair_shape == "wavy":
        bulge = bulge + 0.12 * np.abs(np.sin(angle * 3))
    elif c.hair_shape == "spiky":
        saw = np.abs((angle / reach * 3.5 + 0.5) % 1 - 0.5) * 2
        bulge = 0.3 + (1.9 + c.hair_volume) * (1 - saw) * np.cos(angle / reach * np.pi / 2) ** 0.5
    grown = grow * bulge
    if c.hat in ("beanie", "cap"):  # pressed flat where the hat sits
        grown = np.where(np.abs(angle) < 1.1, np.minimum(grown, 0.08), grown)
    x, y = rig.skull(angle, grown)
    outer = rig.solid(x, y - 0.3 * grow * np.cos(angle / 2), -0.03)
    u = np.linspace(1, -1, 41)
    ending = -rig.half * np.cos(reach) * 1.0
    part = 0.55 * c.hair_parting if c.hair_shape in ("swoop", "long", "wavy", "pigtails") else 0.0
    far = np.where(u > part, (u - part) / (1 - part), (part - u) / (1 + part))
    line = rig.half * middle * (1 - far**power) + ending * far**power
    if c.hair_shape in ("crop", "spiky", "buzz"):
        line = line + (0.05 if c.hair_shape != "buzz" else 0.0) * (np.abs((u * 2.5 + 0.25) % 1 - 0.5) - 0.25) * (
            1 - far**6
        )
    if c.hair_shape == "curly":
        line = line + 0.05 * np.abs(np.sin(u * 7)) * (1 - far**6)
    depth = 0.4 * np.sqrt((1 - u**2 - (line / (1.05 * rig.half)) ** 2).clip(0, 1)) + 0.03 * (1 - u**4) - 0.03
    # On a turned head the far end of the hairline would come out beyond the silhouette: it goes out of sight there.
    facing = np.sqrt(1 - rig.turn**2)
    width = (1 - (np.abs(line) / rig.half).clip(0, 1) ** c.head_exponent) ** (1 / c.head_exponent)
    limit = 0.49 * width * facing + 0.09 * np.abs(rig.turn)
    across = (0.485 * u * facing + (depth + 0.12) * rig.turn) * np.sign(rig.turn)
    x = 0.485 * u - np.sign(rig.turn) * (across - limit).clip(0) / facing
    hairline = rig.solid(x, line, depth)
    return np.concatenate([outer, hairline], 1)


def _length(rig: Rig) -> float:
    """Where long hair ends, in head widths below the head's centre."""
    base = {"bob": 0.36, "long": 0.75, "wavy": 0.6, "curly": 0.25, "pigtails": 0.3}.get(rig.c.hair_shape, 0.2)
    return base + 0.22 * rig.c.hair_length


def back_hair(sheet: Sheet, behind_view: bool = False) -> None:
    """Hair behind the neck; seen from behind it covers the whole head."""
    rig, c = sheet.rig, sheet.c
    long = c.hair_shape in ("bob", "long", "wavy", "curly")
    dark = mix(c.hair, (24, 18, 34), 0.28) if not behind_view else c.hair
    if not (long or behind_view):
        return
    angle = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    k, s = np.cos(angle), np.sin(angle)
    length = _length(rig) if long else 0.62 * rig.half
    width = 0.55 + 0.05 * c.hair_volume if long else 0.51
    power = 2 / 3.4 if long and c.hair_shape != "curly" else 0.9
    x = width * np.sign(s) * np.abs(s) ** np.where(k < 0, power, 0.85)
    y = np.where(k < 0, length * np.abs(k) ** power, -rig.half * 1.08 * np.abs(k) ** 0.85)
    if c.hair_shape == "curly":
        lump = 1.06 + 0.1 * c.hair_volume + 0.07 * np.abs(np.sin(angle * 5.5))
        x, y = x * lump, np.where(k < 0, y * lump + 0.1, y * lump)
    if c.hair_shape == "wavy":
        x = x + 0.03 * np.sin(y * 16) * np.sign(x) * (k < 0.2)
    if behind_view:
        sheet.outlined([rig.solid(x, y, -0.1), cap(rig)], c.hair)
    else:
        sheet.outlined([rig.solid(x, y, -0.16)], dark, sheet.ink(c.hair, 0.7))


def tails(sheet: Sheet) -> None:
    """Buns and pigtails, behind the head."""
    rig, c = sheet.rig, sheet.c
    cx, cy = circle(28)
    if c.hair_shape == "bun" and c.hat not in ("beanie", "cap"):
        r = 0.17 + 0.06 * c.hair_length
        sheet.outlined([rig.solid(r * cx, -rig.half - 0.6 * r + r * 0.85 * cy, -0.08)], c.hair)
    if c.hair_shape == "pigtails":
        r = 0.15 + 0.03 * c.hair_volume
        for s in (-1, 1):
            x = s * 0.62 + r * cx * (1 - 0.25 * cy) + s * 0.05 * cy
            y = 0.12 + (0.24 + 0.12 * c.hair_length) * cy
            sheet.outlined([rig.solid(x, y, -0.1)], c.hair)
            tie = 0.055
            sheet.outlined([rig.solid(s * 0.555 + tie * cx, -0.12 + tie * 1.2 * cy, -0.06)], c.cloth2, width=0.8)


def front_hair(sheet: Sheet) -> None:
    """The cap, and the locks that frame the face."""
    rig, c = sheet.rig, sheet.c
    top = cap(rig)
    parts = [top]
    if c.hair_shape in ("long", "wavy"):
        t = np.linspace(0, 1, 16)
        y = -0.05 + (_length(rig) + 0.02) * t
        sway = 0.03 * np.sin(t * 9) if c.hair_shape == "wavy" else 0 * t
        for s in (-1, 1):
            inner = 0.46 - 0.02 * np.sin(np.pi * t) + sway + 0.06 * t**3
            outer = 0.53 + 0.07 * np.sin(np.pi * t * 0.8) + 0.03 * c.hair_volume + sway - 0.05 * t**3
            parts.append(rig.solid(s * loop(inner, outer), loop(y, y), 0.02))
    sheet.outlined(parts, c.hair)
    n = 61  # points of the cap's silhouette; the rest is the hairline
    if c.hair_shape != "buzz" and c.style != "line_art":
        # A sheen: a tapered band between the silhouette and the hairline.
        arc = top[:, 18:42]
        grid = np.linspace(top.shape[1] - 12, n + 12, arc.shape[1]).astype(int)
        band = arc * 0.62 + top[:, grid] * 0.38
        colour = mix(c.hair, (255, 250, 240), 0.26)
        sheet.stroke(band[:, 2:-2], colour, 0.05 if c.style != "shaded" else 0.07, 0.95)
        if c.style == "shaded":
            sheet.stroke(band[:, 5:-5], mix(c.hair, (255, 250, 240), 0.42), 0.03, 0.95)


def beard(sheet: Sheet) -> None:
    rig, c = sheet.rig, sheet.c
    if c.beard == "none":
        return
    colour = mix(c.hair, c.skin, 0.5) if c.beard == "stubble" else mix(c.hair, (24, 18, 34), 0.12)
    u = np.linspace(-1, 1, 33)
    lip = rig.mouth_y
    if c.beard in ("full", "stubble"):
        grow = 0.03 if c.beard == "stubble" else 0.09
        angle = np.linspace(-1.75, 1.75, 41) + np.pi
        x, y = rig.skull(angle, 0.0)
        low = (y / rig.half).clip(0, 1)
        bottom = rig.silhouette(x * (1 + 0.3 * grow * low), y + grow * low**2, 0.01)
        # The upper edge runs from ear to ear just above the moustache.
        far = np.abs(u) ** 1.6
        rise = 0.095 + 0.035 * rig["smile"] * (1 - far)
        edge = (lip - rise) * (1 - far) + 0.05 * far + 0.015 * np.exp(-((u / 0.12) ** 2))
        bottom_first = bottom[:, :1, 0].mean() > bottom[:, -1:, 0].mean()
        top = rig.face(0.47 * (u if not bottom_first else -u)[::-1], edge, 0.012)
        polygon = np.concatenate([bottom, top], 1)
        if c.beard == "stubble":
            sheet.fill(polygon, colour)
        else:
            sheet.outlined([polygon], colour)
        return
    if c.beard == "goatee":
        cx, cy = circle(36)
        y = lip + 0.5 * rig.opening + 0.06 + (0.19 + 0.45 * rig.opening) * cy
        sheet.outlined([rig.face(0.235 * cx, y, 0.03)], colour)
        return
    arch = lip - 0.075 - 0.32 * rig.opening - 0.05 * np.cos(u * np.pi / 2) + 0.012 * np.exp(-((u / 0.12) ** 2))
    low = lip - 0.02 - 0.32 * rig.opening - 0.02 * np.cos(u * 2.4) ** 2 + 0.05 * np.abs(u) ** 2
    sheet.outlined([rig.face(0.24 * loop(u, u), loop(arch + 0.05 * u**2, low), 0.06)], colour)


def glasses(sheet: Sheet) -> None:
    rig, c = sheet.rig, sheet.c
    if c.glasses == "none":
        return
    cx, cy = circle(32)
    w, h = c.eye_spacing - 0.025, c.eye_size * c.eye_aspect + 0.055
    power = {"round": 1.0, "oval": 1.0, "square": 0.5, "browline": 0.62}[c.glasses]
    if c.glasses == "round":
        h = w = max(min(w, h * 1.05), 0.15)
    if c.glasses == "oval":
        h *= 0.9
    bar = 0.04 + (0.012 if c.glasses == "browline" else 0.0)
    shape_x, shape_y = np.sign(cx) * np.abs(cx) ** power, np.sign(cy) * np.abs(cy) ** power
    for x, y, _ in eye_sites(rig):
        ring = lambda k, x=x, y=y: rig.face(x + (w + k) * shape_x, y + 0.01 + (h + k) * shape_y, 0.07)  # noqa: E731
        sheet.ring(ring(bar / 2), ring(-bar / 2), c.glasses_colour)
        if c.glasses == "browline":
            t = np.linspace(-1, 1, 14)
            sheet.stroke(
                rig.face(x + w * t * 1.04, y + 0.01 - h * (1 - 0.12 * t**4), 0.08), c.glasses_colour, 0.07, 0.2
            )
        t = np.linspace(0, 1, 6)
        s = np.sign(x)
        reach = x + s * w
        sheet.stroke(
            rig.solid(reach + (s * 0.5 - reach) * t, y - 0.01 - 0.02 * t, 0.33 - 0.3 * t), c.glasses_colour, bar, 0.0
        )
    gap = c.eye_spacing - w + 0.01
    t = np.linspace(-1, 1, 9)
    sheet.stroke(rig.face(gap * t, rig.eye_y - 0.01 - 0.03 * (1 - t**2), 0.08), c.glasses_colour, bar, 0.0)


def hat(sheet: Sheet, behind_view: bool = False) -> None:
    rig, c = sheet.rig, sheet.c
    if c.hat == "none":
        return
    grow = 0.1 + (0.12 if c.hair_shape == "curly" else 0.04 if c.hair_shape != "buzz" else 0.0)
    u = np.linspace(1, -1, 33)
    brim_y = -0.52 * rig.half
    side = -1.0 if behind_view else 1.0

    def band(low: float, high: float) -> np.ndarray:
        out = 0.5 * (1 + grow * 0.9)
        edge = lambda v, y: rig.solid(v * out, y + 0 * v, side * 0.40 * np.sqrt(1.001 - v**2) - 0.02)  # noqa: E731
        return np.concatenate([edge(-u, high), edge(u, low)], 1)

    if c.hat == "headband":
        sheet.outlined([band(brim_y + 0.01, brim_y - 0.12)], c.hat_colour)
        return
    angle = np.linspace(-1.18, 1.18, 41)
    x, y = rig.skull(angle, grow)
    lower = rig.solid(u * 0.5 * (1 + grow * 0.9), brim_y + 0 * u, side * 0.40 * np.sqrt(1.001 - u**2) - 0.02)
    dome = np.concatenate([rig.solid(x, y - 0.07, -0.03), lower], 1)
    sheet.outlined([dome], c.hat_colour)
    if c.style == "shaded":
        sheet.glow(dome, mix(c.hat_colour, (255, 255, 255), 0.25), c.hat_colour, (_light(rig)[0], -0.3), 5)
    dark = mix(c.hat_colour, (24, 18, 34), 0.25)
    if c.hat == "beanie":
        sheet.outlined([band(brim_y + 0.03, brim_y - 0.11)], mix(c.hat_colour, (255, 255, 255), 0.35))
    elif not behind_view:
        bill = np.concatenate(
            [rig.solid(-u * 0.46, brim_y + 0.01 + 0 * u, 0.4 * np.sqrt(1.001 - u**2)),
             rig.solid(u * 0.44, brim_y + 0.05 + 0 * u, 0.22 + 0.46 * np.sqrt(1.001 - u**2))], 1)  # fmt: skip
        sheet.outlined([bill], dark)


def horns(sheet: Sheet) -> None:
    rig, c = sheet.rig, sheet.c
    t = np.linspace(0, 1, 14)
    for s in (-1, 1):
        if c.horns:
            x, y = s * (0.27 + 0.3 * c.horns * t**1.6), -0.8 * rig.half - (c.horns + 0.1) * t
            width = 0.085 * (1 - t) ** 0.7 + 0.004
            sheet.outlined([rig.solid(loop(x - width, x + width), loop(y, y), 0.02)], c.horn_colour)
        if c.antennae:
            x, y = s * (0.13 + 0.16 * t**2), -0.9 * rig.half - c.antennae * (t - 0.25 * t**3)
            sheet.stroke(rig.solid(x, y, 0.0), sheet.ink(c.skin), 0.05, 0.0)
            cx, cy = circle(18)
            sheet.outlined([rig.solid(x[-1] + 0.065 * cx, y[-1] + 0.065 * cy, 0.0)], c.horn_colour)


def tufts(sheet: Sheet) -> None:
    """Fur that stands out of a creature's cheeks, behind the head."""
    rig, c = sheet.rig, sheet.c
    if not c.tufts:
        return
    for s in (-1, 1):
        angle = np.pi / 2 + np.linspace(-0.1, 0.95, 25)
        saw = 1 - np.abs(np.linspace(0, 3, 25) % 1 - 0.5) * 2
        x, y = rig.skull(angle, c.tufts * 2.2 * saw)
        x2, y2 = rig.skull(angle, -0.3)
        sheet.outlined([rig.silhouette(s * loop(x, x2), loop(y, y2) + 0.02, -0.03)], c.skin)
