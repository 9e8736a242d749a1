"""Background (one still picture per character) and trunk: neck, shoulders, clothes."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from data_pipeline.performers.character import Character, mix
from data_pipeline.performers.draw_rig import Sheet, circle, loop

_WHITE = (255, 255, 255)
_NIGHT = (28, 24, 40)


def background(cv2: object, c: Character, canvas: int) -> UInt8[np.ndarray, "canvas canvas 3"]:
    """The still picture behind the character, softly blurred so that the character stands before it."""
    rng = np.random.Generator(np.random.PCG64(c.layout))
    top, low = np.array(c.background_colour, np.float64), np.array(c.background_colour2, np.float64)
    y, x = np.mgrid[0:canvas, 0:canvas] / canvas
    ramp = (0.15 + 0.35 * y + 0.35 * np.sin(c.light) * (x - 0.5))[..., None].clip(0, 1)
    if c.background == "plain":
        ramp = ramp * 0.25
    elif c.background == "gradient":
        ramp = (2 * ramp - 0.2).clip(0, 1)
    halo = np.exp(-((x - 0.5 - 0.3 * np.sin(c.light)) ** 2 + (y - 0.35) ** 2) / 0.12)[..., None]
    image = (top * (1 - ramp) + low * ramp) * (1 - 0.18 * halo) + 0.18 * halo * 255
    image = np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))
    a, b = c.background_colour, c.background_colour2

    def blob(px: float, py: float, rx: float, ry: float, colour: tuple) -> None:
        at = (round(px * canvas * 16), round(py * canvas * 16)), (round(rx * canvas * 16), round(ry * canvas * 16))
        cv2.ellipse(image, *at, 0, 0, 360, colour, -1, cv2.LINE_AA, 4)

    def box(x0: float, y0: float, x1: float, y1: float, colour: tuple) -> None:
        cv2.rectangle(image, (int(x0 * canvas), int(y0 * canvas)), (int(x1 * canvas), int(y1 * canvas)), colour, -1)

    if c.background == "bokeh":
        for _ in range(9):
            r = 0.05 + 0.07 * rng.random()
            blob(rng.random(), 0.8 * rng.random(), r, r, mix(mix(a, b, rng.random()), _WHITE, 0.1 + 0.3 * rng.random()))
    elif c.background == "foliage":
        for layer in range(3):
            colour = mix(b, _NIGHT if layer < 2 else a, 0.3 - 0.12 * layer)
            for _ in range(5):
                edge = rng.random() * 0.35
                px = edge if rng.random() < 0.5 else 1 - edge
                blob(
                    px,
                    rng.random(),
                    0.07 + 0.06 * rng.random(),
                    0.13 + 0.08 * rng.random(),
                    mix(colour, a, 0.3 * rng.random()),
                )
    elif c.background == "hills":
        blob(0.2 + 0.6 * rng.random(), 0.22, 0.1, 0.1, mix(a, _WHITE, 0.5))
        blob(0.1 + 0.2 * rng.random(), 1.0, 0.6, 0.42, mix(b, _NIGHT, 0.12))
        blob(0.8 + 0.2 * rng.random(), 1.05, 0.65, 0.4, mix(b, _NIGHT, 0.25))
    elif c.background == "room":
        box(0, 0.74, 1, 1, mix(b, _NIGHT, 0.25))
        left = rng.random() < 0.5
        x0 = 0.06 if left else 0.66
        box(x0 - 0.025, 0.1, x0 + 0.305, 0.515, mix(a, _WHITE, 0.55))
        box(x0, 0.125, x0 + 0.28, 0.49, mix(b, _WHITE, 0.35))
        x1 = 0.7 if left else 0.02
        box(x1, 0.34, x1 + 0.28, 0.37, mix(a, _NIGHT, 0.4))
        for k in range(4):
            height = 0.1 + 0.08 * rng.random()
            box(
                x1 + 0.02 + 0.06 * k,
                0.34 - height,
                x1 + 0.07 + 0.06 * k,
                0.34,
                mix(mix(a, b, rng.random()), (210, 90, 70), 0.5 * rng.random()),
            )
    return cv2.GaussianBlur(image, (0, 0), canvas / 170)


def _top(c: Character, half: float, x: np.ndarray) -> np.ndarray:
    """Upper edge of the shoulders, in head widths below the head's centre."""
    far = np.abs(x) / c.body_width
    return half + 0.13 + 0.02 * far + 0.34 * far**3


def neck(sheet: Sheet) -> None:
    rig, c = sheet.rig, sheet.c
    v = np.linspace(-1, 1, 9)
    upper = rig.solid(c.neck * v, 0.55 * rig.half + 0 * v, -0.08)
    lower = rig.body(1.25 * c.neck * v[::-1], rig.half + 0.2 + 0.1 * (1 - v**2))
    polygon = np.concatenate([upper, lower], 1)
    sheet.outlined([polygon], mix(c.skin, c.skin_dark, 0.45), sheet.ink(c.skin_dark, 0.4))


def trunk(sheet: Sheet, behind_view: bool = False) -> None:
    rig, c = sheet.rig, sheet.c
    half, w = rig.half, c.body_width
    x = np.linspace(-1, 1, 33) * w
    top = _top(c, half, x)
    polygon = rig.body(
        np.concatenate([x, [w * 1.04, w * 1.04, -w * 1.04, -w * 1.04]]),
        np.concatenate([top, [half + 0.7, 1.9, 1.9, half + 0.7]]),
    )
    sheet.outlined([polygon], c.cloth)

    def strip(y0: float, y1: float, colour: tuple) -> None:
        """The part of the trunk between two heights; ends where the shoulders fall below it."""
        inside = np.abs(x[_top(c, half, x) + 0.04 < y1])
        v = np.linspace(-1, 1, 33) * min(0.965 * w, inside.max() if len(inside) else 0.0)
        t = _top(c, half, v) + 0.03
        sheet.fill(rig.body(loop(v, v), loop(np.maximum(t, y0), np.maximum(t, y1))), colour)

    if c.style == "shaded":
        for k in range(1, 6):  # light from above, fading downwards
            low = half + 1.1 - 0.17 * k
            strip(-1.0, low, mix(c.cloth, _WHITE, 0.045 * k))

    cx, cy = circle(18)
    n = c.neck * 1.25
    if c.clothes == "stripes":
        for k in range(3):
            strip(half + 0.26 + 0.26 * k, half + 0.38 + 0.26 * k, c.cloth2)
    elif c.clothes == "dots":
        for px, py in (
            (-0.52, 0.42),
            (0.52, 0.42),
            (-0.27, 0.31),
            (0.27, 0.31),
            (0.0, 0.46),
            (-0.72, 0.62),
            (0.72, 0.62),
        ):
            if abs(px) < w - 0.12:
                sheet.fill(rig.body(px + 0.06 * cx, half + py + 0.06 * cy), c.cloth2)
    elif c.clothes == "dungarees":
        for s in (-1, 1):
            px = s * np.array([0.24, 0.36, 0.36, 0.24])
            sheet.fill(rig.body(px, np.concatenate([_top(c, half, px[:2]) + 0.02, [1.9, 1.9]])), c.cloth2)
        sheet.outlined(
            [rig.body(np.array([-0.4, 0.4, 0.46, -0.46]), half + np.array([0.4, 0.4, 1.4, 1.4]))], c.cloth2, width=0.8
        )
        for s in (-1, 1):
            sheet.fill(rig.body(s * 0.3 + 0.04 * cx, half + 0.45 + 0.04 * cy), mix(c.cloth, _WHITE, 0.5))
    if behind_view:
        return
    v = np.linspace(-1, 1, 15)
    bowl = lambda depth: rig.body(1.05 * n * v, half + 0.13 + depth * np.sqrt(1.001 - v**2))  # noqa: E731
    skin = mix(c.skin, c.skin_dark, 0.45)
    if c.clothes in ("vneck", "collar"):
        tri = rig.body(np.array([-n, 0.0, n, 0.5 * n, -0.5 * n]), half + np.array([0.12, 0.36, 0.12, 0.08, 0.08]))
        sheet.fill(tri, skin)
        if c.clothes == "vneck":
            sheet.stroke(rig.body(1.02 * n * v, half + 0.12 + 0.25 * (1 - np.abs(v))), c.cloth2, 0.055, 0.0)
        else:
            for s in (-1, 1):
                flap = s * np.array([0.75 * n, 0.0, 0.55 * n, 1.5 * n])
                sheet.outlined([rig.body(flap, half + np.array([0.06, 0.27, 0.38, 0.13]))], c.cloth2, width=0.8)
    elif c.clothes == "turtleneck":
        band = rig.body(1.02 * n * loop(v, v), loop(half + 0.02 + 0.07 * (1 - v**2), half + 0.16 + 0.07 * (1 - v**2)))
        sheet.outlined([band], c.cloth)
    elif c.clothes == "hoodie":
        hood = rig.body(
            n * loop(2.0 * v, 0.85 * v),
            loop(half + 0.12 + 0.26 * np.sqrt(1.001 - v**2), half + 0.07 + 0.16 * np.sqrt(1.001 - v**2)),
        )
        sheet.outlined([hood], mix(c.cloth, _WHITE, 0.15))
        for s in (-1, 1):
            t = np.linspace(0, 1, 6)
            sheet.stroke(rig.body(s * (0.1 + 0.02 * t), half + 0.33 + 0.18 * t), c.cloth2, 0.04, 0.0)
    else:
        skin_part = np.concatenate([bowl(0.13), rig.body(np.array([0.9, -0.9]) * n, half + np.array([0.05, 0.05]))], 1)
        sheet.fill(skin_part, skin)
        sheet.stroke(bowl(0.14), c.cloth2, 0.055, 0.0)
