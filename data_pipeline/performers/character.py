"""Who a performer is: one frozen, JSON-serialisable record of looks, sampled from a seed.

Lengths are in head widths unless noted; colours are 8-bit RGB triples sampled in CIELAB, so that neighbouring regions
(hair on skin, skin on background, clothes on background) are always told apart. Training and held-out characters come
from seed sequences with different entropy tags, so no seed can make the same character on both sides.
"""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np

STYLES = ("flat", "shaded", "line_art", "creature")
HELD_OUT_STYLE = "line_art"  # never drawn for training: measures whether the model copes with a new way of drawing
HAIR_SHAPES = ("buzz", "crop", "swoop", "bob", "long", "curly", "bun", "spiky", "pigtails", "wavy")
GLASSES = ("none", "round", "square", "oval", "browline")
BEARDS = ("none", "stubble", "full", "moustache", "goatee")
HATS = ("none", "beanie", "cap", "headband")
CLOTHES = ("crew", "vneck", "collar", "hoodie", "stripes", "dots", "turtleneck", "dungarees")
BACKGROUNDS = ("plain", "gradient", "room", "foliage", "bokeh", "hills")

_TRAINING_TAG, _HELD_OUT_TAG = 0x7472, 0x686F

Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Character:
    """Identity of a performer. Everything but the pose: two renders with the same params show the same person."""

    style: str
    head_width: float  # of the picture's width
    head_height: float  # in head widths
    head_exponent: float  # superellipse: 2 is an ellipse, more is boxier
    jaw: float  # width of the jaw relative to the skull
    chin: float  # 0 round .. 1 pointed
    cheek: float  # 0 hollow .. 1 chubby
    ear_size: float
    nose_length: float
    nose_width: float
    nose_shape: int  # 0 button, 1 wedge, 2 line
    eye_spacing: float  # from the middle to an eye's centre
    eye_size: float  # half width
    eye_aspect: float  # half height over half width
    eye_slant: float  # radians; positive lifts the outer corners
    eye_height: float  # above the head's centre
    iris_size: float  # radius over the eye's half width
    lid_crease: float
    lashes: float
    brow_thickness: float
    brow_length: float
    brow_slant: float
    lip_fullness: float
    mouth_width: float
    mouth_height: float  # below the head's centre, in half head heights
    teeth_size: float
    hair_shape: str
    hair_length: float  # 0 short .. 1 long
    hair_parting: float  # -1 left .. 1 right
    hair_volume: float
    glasses: str
    beard: str
    freckles: float
    blush: float
    hat: str
    earrings: float  # radius, 0 for none
    clothes: str
    body_width: float  # half width of the shoulders
    neck: float  # half width
    eyes: int  # 2; creatures 1 to 3
    snout: float  # creatures: size, 0 for none
    horns: float  # creatures: length, 0 for none
    antennae: float  # creatures: length, 0 for none
    tufts: float  # creatures: length of the fur on the cheeks, 0 for none
    spots: float  # creatures: radius, 0 for none
    background: str
    layout: int  # seed of the background's furniture
    light: float  # radians from straight above, clockwise
    outline: float  # stroke width in pixels of a 128-pixel picture
    skin: Colour
    skin_light: Colour
    skin_dark: Colour
    lip: Colour
    hair: Colour
    iris: Colour
    cloth: Colour
    cloth2: Colour
    glasses_colour: Colour
    hat_colour: Colour
    horn_colour: Colour
    mouth: Colour
    background_colour: Colour
    background_colour2: Colour

    def to_json(self) -> str:
        """One line of JSON with every field."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Character:
        """Inverse of :meth:`to_json`. Raises TypeError where a field is missing or unknown."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()})


def lab_to_rgb(lab: tuple[float, float, float]) -> Colour:
    """CIELAB (D65) to 8-bit sRGB, clipped to the gamut."""
    fy = (lab[0] + 16) / 116
    xyz = [
        white * (f**3 if f > 6 / 29 else 3 * (6 / 29) ** 2 * (f - 4 / 29))
        for white, f in zip((0.9505, 1.0, 1.089), (fy + lab[1] / 500, fy, fy - lab[2] / 200), strict=True)
    ]
    rows = ((3.2406, -1.5372, -0.4986), (-0.9689, 1.8758, 0.0415), (0.0557, -0.2040, 1.0570))
    linear = [min(max(sum(m * v for m, v in zip(row, xyz, strict=True)), 0.0), 1.0) for row in rows]
    r, g, b = (round(255 * (12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055)) for v in linear)
    return r, g, b


def rgb_to_lab(rgb: Colour) -> tuple[float, float, float]:
    """8-bit sRGB to CIELAB (D65)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in rgb)]
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [
        sum(m * v for m, v in zip(row, linear, strict=True)) / white
        for row, white in zip(rows, (0.9505, 1.0, 1.089), strict=True)
    ]
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def colour_distance(a: Colour, b: Colour) -> float:
    """CIE76 distance: about 2 is just visible, 25 is clearly another colour."""
    return math.dist(rgb_to_lab(a), rgb_to_lab(b))


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """``a`` with ``share`` of ``b``."""
    r, g, bl = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return r, g, bl


class _Dice:
    """Draws made of uniform numbers only: NumPy keeps those stable over versions and platforms."""

    def __init__(self, tag: int, seed: int):
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([tag, seed])))

    def number(self, low: float, high: float) -> float:
        return round(low + (high - low) * float(self._rng.random()), 5)

    def chance(self, probability: float) -> bool:
        return float(self._rng.random()) < probability

    def choice(self, options: tuple) -> object:
        return options[int(float(self._rng.random()) * len(options))]

    def colour(self, light: tuple, chroma: tuple, hue: tuple = (0.0, 360.0), away: tuple = ()) -> Colour:
        """A colour of that CIELAB lightness, chroma and hue, away from (colour, distance) pairs where that is possible.

        Always spends the same number of draws, so that one region's constraint never changes the draws after it.
        """
        best, best_margin = (0, 0, 0), -math.inf
        for _ in range(24):
            c, h = self.number(*chroma), math.radians(self.number(*hue))
            rgb = lab_to_rgb((self.number(*light), c * math.cos(h), c * math.sin(h)))
            margin = min((colour_distance(rgb, other) - d for other, d in away), default=0.0)
            if margin > best_margin and best_margin < 0:
                best, best_margin = rgb, margin
        return best


# (lightness, chroma, hue) ranges of natural hair: black, dark brown, chestnut, red, blond, grey; then dyed.
_HAIR_TONES = (
    ((12, 20), (2, 6), (20, 300)),
    ((20, 32), (10, 20), (45, 70)),
    ((32, 45), (22, 34), (48, 66)),
    ((42, 54), (46, 60), (48, 58)),
    ((70, 82), (32, 48), (78, 92)),
    ((62, 88), (0, 5), (200, 280)),
    ((45, 70), (38, 55), (0, 360)),
)


def _colours(dice: _Dice, style: str) -> dict[str, Colour]:
    """The palette of one character, each region apart from its neighbours."""
    lightness = 88 - 52 * dice.number(0, 1) ** 1.25
    if style == "creature":
        skin = dice.colour((52, 80), (28, 52))
    else:
        skin = dice.colour((lightness, lightness + 3), (22, 33), (50, 68))
    level, a, b = rgb_to_lab(skin)
    tone = _HAIR_TONES[int(dice.number(0, 6.99))]
    if style == "creature":
        tone = ((20, 88), (15, 60), (0, 360))
    hair = dice.colour(*tone, away=((skin, 36),))
    if colour_distance(hair, skin) < 30:  # a natural tone too near this skin: black on light skin, grey on dark skin
        hair = lab_to_rgb((16, 2, 4) if level > 50 else (78, 0, 2))
    lip_level = min(max(level - 14, 38), 62)
    lip = lab_to_rgb(
        (lip_level, 40 if style != "creature" else a * 0.5 + 24, 20 if style != "creature" else b * 0.5 + 8)
    )
    back = dice.colour((56, 88), (18, 44), away=((skin, 32), (hair, 30)))
    back2 = dice.colour((50, 92), (14, 42), away=((skin, 28), (hair, 26), (back, 12)))
    cloth = dice.colour((32, 76), (30, 70), away=((back, 32), (skin, 32), (hair, 20)))
    cloth2 = dice.colour((35, 94), (4, 55), away=((cloth, 36), (skin, 25)))
    glasses = dice.colour((12, 40), (2, 55), away=((skin, 38), (hair, 15)))
    if colour_distance(glasses, skin) < 30:
        glasses = lab_to_rgb((88, 4, 12))  # dark frames vanish on dark skin
    colours = {
        "skin": skin,
        "skin_light": lab_to_rgb((min(level + 9, 97), a * 0.9, b * 0.9)),
        "skin_dark": lab_to_rgb((level - 15, a + 6, b + 2)),
        "lip": lip,
        "hair": hair,
        "iris": dice.colour((30, 52), (22, 60), (60, 300)),
        "cloth": cloth,
        "cloth2": cloth2,
        "glasses_colour": glasses,
        "hat_colour": dice.colour((30, 75), (28, 60), away=((hair, 32), (skin, 32), (back, 32))),
        "horn_colour": dice.colour((70, 88), (10, 30), (60, 100), away=((skin, 25), (hair, 25), (back, 20))),
        "mouth": lab_to_rgb((11.5, 23, 11)),
        "background_colour": back,
        "background_colour2": back2,
    }
    if style == "line_art":  # pale washes: the strokes carry the drawing
        pale = {"skin": 0.45, "skin_light": 0.6, "lip": 0.1, "cloth": 0.4, "cloth2": 0.4, "hat_colour": 0.35}
        pale |= {"background_colour": 0.72, "background_colour2": 0.72, "skin_dark": 0.25, "hair": 0.12}
        colours |= {name: mix(colours[name], (255, 252, 246), share) for name, share in pale.items()}
    return colours


def _sample(dice: _Dice, style: str) -> Character:
    creature = style == "creature"
    eyes = (1, 2, 2, 2, 3)[int(dice.number(0, 4.99))] if creature else 2
    hair_shape = dice.choice(HAIR_SHAPES)
    beard = dice.choice(BEARDS[1:]) if dice.chance(0.3) else "none"
    glasses = dice.choice(GLASSES[1:]) if dice.chance(0.35) else "none"
    hat = dice.choice(HATS[1:]) if dice.chance(0.16) else "none"
    snout = dice.number(0.8, 1.1) if dice.chance(0.5) else 0.0
    horns = dice.number(0.16, 0.32) if dice.chance(0.5) else 0.0
    antennae = dice.number(0.2, 0.32) if dice.chance(0.35) else 0.0
    tufts = dice.number(0.06, 0.13) if dice.chance(0.5) else 0.0
    spots = dice.number(0.035, 0.06) if dice.chance(0.4) else 0.0
    freckles = dice.number(0.014, 0.02) if dice.chance(0.2) else 0.0
    earrings = dice.number(0.035, 0.055) if dice.chance(0.3) else 0.0
    light = dice.number(-1.0, 1.0)
    return Character(
        style=style,
        head_width=dice.number(0.46, 0.51),
        head_height=dice.number(1.06, 1.26),
        head_exponent=dice.number(2.0, 2.7),
        jaw=dice.number(0.72, 0.98),
        chin=dice.number(0.0, 0.8),
        cheek=dice.number(0.0, 1.0),
        ear_size=dice.number(0.08, 0.13) * (1.3 if creature else 1.0),
        nose_length=dice.number(0.08, 0.15),
        nose_width=dice.number(0.05, 0.09),
        nose_shape=int(dice.number(0, 2.99)),
        eye_spacing=dice.number(0.19, 0.23),
        eye_size=dice.number(0.105, 0.135) * (1.75 if eyes == 1 else 0.92 if eyes == 3 else 1.0),
        eye_aspect=dice.number(0.78, 1.05),
        eye_slant=dice.number(-0.12, 0.2),
        eye_height=dice.number(0.0, 0.07),
        iris_size=dice.number(0.56, 0.7),
        lid_crease=dice.number(0.0, 1.0),
        lashes=dice.number(0.0, 1.0),
        brow_thickness=dice.number(0.028, 0.06),
        brow_length=dice.number(0.11, 0.155),
        brow_slant=dice.number(-0.15, 0.2),
        lip_fullness=dice.number(0.028, 0.062),
        mouth_width=dice.number(0.31, 0.37),
        mouth_height=dice.number(0.5, 0.56),
        teeth_size=dice.number(0.04, 0.065),
        hair_shape=hair_shape,
        hair_length=dice.number(0.0, 1.0),
        hair_parting=dice.number(-1.0, 1.0),
        hair_volume=dice.number(0.0, 1.0),
        glasses=glasses if eyes == 2 else "none",
        beard=beard if not (creature and snout) else "none",
        freckles=freckles,
        blush=dice.number(0.0, 1.0),
        hat=hat if not (creature and (horns or antennae)) else "none",
        earrings=earrings,
        clothes=dice.choice(CLOTHES),
        body_width=dice.number(0.72, 0.92),
        neck=dice.number(0.15, 0.21),
        eyes=eyes,
        snout=snout if creature else 0.0,
        horns=horns if creature else 0.0,
        antennae=antennae if creature and not horns else 0.0,
        tufts=tufts if creature else 0.0,
        spots=spots if creature else 0.0,
        background=dice.choice(BACKGROUNDS),
        layout=int(dice.number(0, 1e5)),
        light=light,
        outline=dice.number(2.2, 2.6) if style == "line_art" else dice.number(1.6, 2.3),
        **_colours(dice, style),
    )


def _check(style: str | None) -> None:
    if style is not None and style not in STYLES:
        raise ValueError(f"style: expected one of {', '.join(STYLES)}, found {style!r}")


def sample_character(seed: int, style: str | None = None) -> Character:
    """A character of the training seed space, of any style (held-out too, for tests and demos). Deterministic."""
    _check(style)
    dice = _Dice(_TRAINING_TAG, seed)
    drawn = dice.choice(STYLES)
    return _sample(dice, style or drawn)


def sample_training_character(seed: int) -> Character:
    """A character that a model may be trained on: never of :data:`HELD_OUT_STYLE`."""
    dice = _Dice(_TRAINING_TAG, seed)
    return _sample(dice, dice.choice(tuple(s for s in STYLES if s != HELD_OUT_STYLE)))


def sample_held_out_character(seed: int, style: str | None = None) -> Character:
    """A character that no training seed can make; of any style unless one is given."""
    _check(style)
    dice = _Dice(_HELD_OUT_TAG, seed)
    drawn = dice.choice(STYLES)
    return _sample(dice, style or drawn)
