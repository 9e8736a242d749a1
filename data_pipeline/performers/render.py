"""Pictures of performers: a character and performance parameters in, RGB frames out.

Polygons of all frames are computed at once (``draw_*.py``); only their filling, by OpenCV, runs frame by frame.
Canvases are twice the asked size with sub-pixel corners and shrink by area, so that edges stay smooth.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from data_pipeline.performers import draw_face, draw_hair, draw_scene
from data_pipeline.performers.character import Character, mix
from data_pipeline.performers.draw_rig import Rig, Sheet, circle
from data_pipeline.schema import EXPRESSIONS, PARAM_INDEX, PARAMS, REGIONS

_SUPERSAMPLING = 2
_FRACTION_BITS = 4  # OpenCV takes corners as fixed-point numbers


def opencv() -> object:
    """OpenCV, imported when it is needed: reading characters and clips works without it."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError("drawing and optical flow need the 'data' extra: uv sync --extra data") from error
    cv2.setNumThreads(1)  # workers are processes; threads inside them only fight
    return cv2


def neutral_params(frames: int = 1) -> Float[np.ndarray, "frames params"]:
    """The resting pose, float32: eyes open, lips closed and at their resting width (0.5), scale 1, all else 0."""
    params = np.zeros((frames, len(PARAMS)), np.float32)
    for name, value in (("scale", 1), ("lid_left", 1), ("lid_right", 1), ("pupil", 0.5), ("lip_width", 0.5)):
        params[:, PARAM_INDEX[name]] = value
    return params


def _ears(sheet: Sheet) -> None:
    """Behind the head: the far ear slides out of sight, the near one turns towards the viewer."""
    rig, c = sheet.rig, sheet.c
    cx, cy = circle(24)
    for s in (-1, 1):
        near = (-s * rig.turn).clip(-1, 1)
        x = s * (0.5 + 0.1 * near) + (0.075 + 0.06 * near.clip(0, 1)) * cx
        y = 0.04 + c.ear_size * (1.05 * cy + 0.12 * s * cx)
        if c.style == "creature":  # pointed
            x, y = x + s * 0.1 * (cy < -0.5), y - 0.09 * (-cy).clip(0, 1) ** 2
        ear = rig.solid(x, y, -0.02 - 0.10 * near)
        sheet.outlined([ear], c.skin, sheet.ink(c.skin_dark, 0.45))
        inner = rig.solid(
            s * (0.5 + 0.1 * near) + s * 0.01 + 0.04 * cx, 0.05 + 0.55 * c.ear_size * cy, -0.02 - 0.1 * near
        )
        sheet.fill(inner, mix(c.skin, c.skin_dark, 0.55))
        if c.earrings:
            ring = rig.solid(
                s * (0.51 + 0.1 * near) + c.earrings * cx, 0.06 + c.ear_size + c.earrings * cy, -0.02 - 0.1 * near
            )
            sheet.outlined([ring], c.horn_colour, width=0.7)


def _head(sheet: Sheet, behind_view: bool) -> None:
    rig, c = sheet.rig, sheet.c
    x, y = rig.skull(np.linspace(0, 2 * np.pi, 72, endpoint=False))
    outline = rig.silhouette(x, y)
    sheet.outlined([outline], c.skin if not behind_view else c.skin_dark, sheet.ink(c.skin_dark, 0.45))
    if c.style == "shaded" and not behind_view:
        reach = -0.5 * c.outline * sheet.pixel
        inner = outline + (outline.mean(1, keepdims=True) - outline) * (-reach / (rig.unit[..., None] * 0.5))
        sheet.fill(inner, mix(c.skin, c.skin_dark, 0.32))
        sheet.glow(inner, c.skin_light, mix(c.skin, c.skin_dark, 0.3), (0.4 * float(np.sin(c.light)), -0.25), 10)


def _shapes(character: Character, params: np.ndarray, canvas: int, behind_view: bool = False) -> list:
    """Every polygon of a clip in painting order."""
    rig = Rig(character, params, canvas)
    sheet = Sheet(rig)
    if not behind_view:
        draw_hair.back_hair(sheet)
    draw_hair.tails(sheet)
    draw_scene.neck(sheet)
    draw_scene.trunk(sheet, behind_view)
    draw_hair.tufts(sheet)
    _ears(sheet)
    _head(sheet, behind_view)
    if behind_view:
        draw_hair.back_hair(sheet, behind_view)
        draw_hair.hat(sheet, behind_view)
        draw_hair.horns(sheet)
        return sheet.shapes
    draw_face.skin_marks(sheet)
    draw_hair.beard(sheet)
    draw_face.snout(sheet)
    draw_face.mouth(sheet)
    draw_face.nose(sheet)
    draw_face.eyes(sheet)
    draw_hair.front_hair(sheet)
    draw_hair.horns(sheet)
    draw_face.brows(sheet)
    draw_hair.glasses(sheet)
    draw_hair.hat(sheet)
    return sheet.shapes


def _paint(character: Character, params: np.ndarray, size: int, behind_view: bool = False) -> np.ndarray:
    cv2 = opencv()
    canvas = size * _SUPERSAMPLING
    shapes = _shapes(character, params, canvas, behind_view)
    fixed = [
        ([np.round(contour * 2**_FRACTION_BITS).astype(np.int32) for contour in shape.contours], shape.fill)
        for shape in shapes
    ]
    still = draw_scene.background(cv2, character, canvas)
    frames = np.empty((len(params), size, size, 3), np.uint8)
    picture = np.empty_like(still)
    for i in range(len(params)):
        np.copyto(picture, still)
        for contours, colour in fixed:
            cv2.fillPoly(picture, [contour[i] for contour in contours], colour, cv2.LINE_AA, _FRACTION_BITS)
        cv2.resize(picture, (size, size), dst=frames[i], interpolation=cv2.INTER_AREA)
    return frames


def render(
    character: Character, params: Float[np.ndarray, "frames params"], size: int = 128
) -> UInt8[np.ndarray, "frames size size 3"]:
    """RGB frames of a performance. ``params`` follow :data:`schema.PARAMS`; ``size`` is in pixels.

    Raises ValueError for params of another width, ImportError where OpenCV is missing.
    """
    params = np.asarray(params, np.float32)
    if params.ndim != 2 or params.shape[1] != len(PARAMS):
        raise ValueError(f"params: expected [frames, {len(PARAMS)}], found {list(params.shape)}")
    return _paint(character, params, size)


def regions(character: Character, params: Float[np.ndarray, "frames params"]) -> Float[np.ndarray, "frames 3 4"]:
    """Boxes (top, left, bottom, right) in 0..1 of the picture, in the order of :data:`schema.REGIONS`."""
    rig = Rig(character, np.asarray(params, np.float32), 1)
    half = draw_face.mouth_half_width(rig)
    cx, cy = circle(24)
    cx, cy = cx * 1.25, cy * 1.25  # a little air around each
    lift = 0.02 + 0.17 * character.snout
    lips = character.lip_fullness * 1.6
    top, low = rig.mouth_y - 0.32 * rig.opening - lips, rig.mouth_y + 0.68 * rig.opening + lips
    mouth = rig.face(half * cx, (top + low) / 2 + (low - top) / 2 * cy, lift)
    sites = draw_face.eye_sites(rig)
    tall = character.eye_size * max(character.eye_aspect, 1.0) + 0.03
    eyes = np.concatenate([rig.face(x + character.eye_size * cx, y + tall * cy, 0.01) for x, y, _ in sites], 1)
    face = rig.silhouette(*rig.skull(np.linspace(0, 2 * np.pi, 36, endpoint=False)))
    named = {"mouth": mouth, "eyes": eyes, "face": face}
    boxes = [np.concatenate([named[r].min(1)[:, ::-1], named[r].max(1)[:, ::-1]], -1) for r in REGIONS]
    return np.stack(boxes, 1).clip(0, 1).astype(np.float32)


#: How far a reference strays from its pose: nobody sits for every picture alike.
_VARIATION = {"yaw": 3, "pitch": 2, "roll": 2, "shift_x": 0.02, "shift_y": 0.015, "scale": 0.02, "gaze_x": 0.1}

_FACES = {
    "neutral": {},
    "happy": {"smile": 1, "cheek": 0.8, "squint": 0.25, "brow_outer": 0.3, "aperture": 0.28, "teeth": 1},
    "sad": {"frown": 1, "brow_inner": 0.9, "brow_outer": -0.6, "lid": 0.75, "gaze_y": 0.4, "pitch": 5},
    "angry": {"frown": 0.6, "brow_inner": -1, "brow_outer": 0.4, "squint": 0.4, "aperture": 0.16, "teeth": 1},
    "surprised": {"brow_inner": 1, "brow_outer": 1, "lid": 1.2, "aperture": 0.75, "lip_pucker": 0.5, "jaw_open": 1},
    "afraid": {
        "brow_inner": 1,
        "brow_outer": 0.2,
        "lid": 1.2,
        "frown": 0.5,
        "aperture": 0.35,
        "lip_width": 0.9,
        "pupil": 0.1,
    },
    "disgusted": {
        "frown": 0.7,
        "brow_inner": -0.7,
        "squint": 0.7,
        "lip_upper": 1,
        "aperture": 0.1,
        "roll": -4,
        "cheek": 0.6,
    },
    "thinking": {
        "gaze_x": 0.7,
        "gaze_y": -0.8,
        "brow_outer_left": 0.8,
        "brow_inner_right": -0.4,
        "lip_pucker": 0.4,
        "roll": 6,
        "yaw": 8,
    },
}


def expression_params(name: str, strength: float = 1.0) -> Float[np.ndarray, "1 params"]:
    """The pose of one of :data:`schema.EXPRESSIONS`, ``strength`` of the way from the resting pose."""
    params = neutral_params()
    for key, value in _FACES[name].items():
        names = (key,) if key in PARAM_INDEX else (f"{key}_left", f"{key}_right")
        for full in names:
            i = PARAM_INDEX[full]
            params[:, i] += strength * (value - params[:, i])
    return params


def references(character: Character, seed: int, size: int = 128) -> dict[str, UInt8[np.ndarray, "size size 3"]]:
    """The pictures a model is told a character's looks by, one for each of :data:`schema.REFERENCES`."""
    rng = np.random.Generator(np.random.PCG64(seed))

    def vary(params: np.ndarray) -> np.ndarray:
        for name, spread in _VARIATION.items():
            params[:, PARAM_INDEX[name]] += spread * (2 * rng.random() - 1)
        return params

    poses = {"global": vary(neutral_params())}
    for view, yaw in (("front", 0), ("left", -30), ("right", 30)):
        poses[f"view/{view}"] = neutral_params()
        poses[f"view/{view}"][:, PARAM_INDEX["yaw"]] = yaw
    poses |= {f"expression/{name}": vary(expression_params(name)) for name in EXPRESSIONS}
    frames = dict(zip(poses, _paint(character, np.concatenate(list(poses.values())), size), strict=True))
    frames["view/back"] = _paint(character, neutral_params(), size, behind_view=True)[0]
    names = ["global", "view/front", "view/left", "view/right", "view/back"]
    return {name: frames[name] for name in [*names, *(f"expression/{e}" for e in EXPRESSIONS)]}
