"""From phonemes to the shape of a mouth: 12 visemes, blended by dominance (Cohen and Massaro, 1993).

Every curve is a deterministic function of the phonemes and the loudness around them, so a network that hears the same
speech can learn it. No speaker-specific or random amplitude enters.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from data_pipeline.performers.speech import Phoneme
from data_pipeline.schema import FPS, SAMPLE_RATE

HOP = SAMPLE_RATE // 100  # the 10 ms grid on which sound is looked at
STEP = HOP / SAMPLE_RATE
ANTICIPATION = 0.05  # seconds by which the lips lead the sound
MOUTH = ("aperture", "lip_width", "lip_pucker", "lip_upper", "lip_lower", "jaw_open", "tongue", "teeth")

#: Targets in MOUTH's order, lip_width as a difference from rest; then dominance (how much a sound insists).
VISEMES = {
    "rest": ((0.00, 0.00, 0.0, 0.0, 0.0, 0.00, 0.0, 0.0), 0.6),
    "PP": ((0.00, -0.05, 0.2, 0.0, 0.0, 0.00, 0.0, 0.0), 1.6),
    "FF": ((0.07, 0.05, 0.0, 0.2, 0.0, 0.10, 0.0, 0.8), 1.3),
    "TH": ((0.18, 0.05, 0.0, 0.2, 0.3, 0.22, 0.9, 0.6), 0.9),
    "DD": ((0.19, 0.08, 0.0, 0.2, 0.3, 0.22, 0.7, 0.6), 0.7),
    "KK": ((0.25, 0.05, 0.0, 0.2, 0.3, 0.30, 0.2, 0.3), 0.6),
    "CH": ((0.20, -0.15, 0.6, 0.5, 0.5, 0.18, 0.2, 0.8), 1.0),
    "SS": ((0.13, 0.20, 0.0, 0.3, 0.4, 0.10, 0.1, 1.0), 0.9),
    "NN": ((0.20, 0.05, 0.0, 0.2, 0.3, 0.20, 0.6, 0.4), 0.6),
    "AA": ((0.78, 0.10, 0.0, 0.4, 0.6, 0.95, 0.3, 0.5), 1.3),
    "EE": ((0.42, 0.45, 0.0, 0.4, 0.4, 0.40, 0.4, 0.8), 1.2),
    "OO": ((0.46, -0.40, 0.9, 0.3, 0.3, 0.45, 0.1, 0.0), 1.3),
}
_GROUPS = {
    "PP": "p b m ɱ",
    "FF": "f v ʋ",
    "TH": "θ ð β",
    "DD": "t d ɾ ʈ ɖ tː dː",
    "KK": "k ɡ g x ɣ h ɦ q ŋ ʁ ʀ χ ç ʔ c ɟ ʝ",
    "CH": "tʃ dʒ ʃ ʒ ɕ ʑ tɕ dʑ",
    "SS": "s z ts dz",
    "NN": "n l ɲ ʎ ɫ r ɹ ɭ ɻ ʌɹ",
    "OO": "o u ɔ ʊ w ø œ y ʏ ɤ ɒ ɥ ɵ ʉ ɯ",
    "EE": "i e ɛ ɪ j ɨ",
    "AA": "a ɑ æ ʌ ɐ ə ɜ ɚ ɝ ᵻ",
}
_OF_SYMBOL = {symbol: viseme for viseme, symbols in _GROUPS.items() for symbol in symbols.split()}
_REDUCED = {"ə": 0.65, "ɐ": 0.75, "ɚ": 0.65, "ɜ": 0.75, "ɪ": 0.85, "ʊ": 0.85, "ᵻ": 0.5}


def visemes_of(ipa: str) -> list[tuple[str, float]]:
    """The visemes of an IPA symbol, in order (a diphthong has two), each with the size of its opening.

    >>> visemes_of("ˈaɪ")
    [('AA', 1.0), ('EE', 0.85)]
    """
    ipa = ipa.translate({ord(c): None for c in "ˈˌːˑ̩̯̃͡ʲʰʷ̪"})
    if not ipa:
        return [("rest", 1.0)]
    if ipa in _OF_SYMBOL:
        return [(_OF_SYMBOL[ipa], _REDUCED.get(ipa, 1.0))]
    found = [(_OF_SYMBOL[c], _REDUCED.get(c, 1.0)) for c in ipa if c in _OF_SYMBOL]
    return found or [("DD", 1.0)]


def envelope(sound: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " steps"]:
    """RMS of the last 20 ms in decibels of full scale, every 10 ms. Step ``j`` ends at ``(j + 1) * 10`` ms: causal."""
    n = len(sound) // HOP
    power = np.mean(np.square(sound[: n * HOP].astype(np.float32).reshape(n, HOP)), axis=1)
    power = 0.5 * (power + np.concatenate([power[:1] * 0, power[:-1]]))
    return (10 * np.log10(power + 1e-9)).astype(np.float32)


def smooth(x: np.ndarray, seconds: float, step: float = STEP) -> np.ndarray:
    """Zero-phase Gaussian low-pass over the first axis; ``seconds`` is the full width at half maximum."""
    sigma = seconds / step / 2.355
    r = max(1, int(3 * sigma + 0.5))
    kernel = np.exp(-0.5 * (np.arange(-r, r + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(x, [(r, r)] + [(0, 0)] * (x.ndim - 1), mode="edge")
    if x.ndim == 1:
        return np.convolve(padded, kernel, "valid")
    return np.stack([np.convolve(c, kernel, "valid") for c in padded.T], axis=1)


def at_frames(x: np.ndarray, frames: int, step: float = STEP) -> np.ndarray:
    """Samples of a curve on the 10 ms grid at the middle of each video frame."""
    t = (np.arange(frames) + 0.5) / FPS / step - 0.5
    grid = np.arange(len(x))
    if x.ndim == 1:
        return np.interp(t, grid, x)
    return np.stack([np.interp(t, grid, c) for c in x.T], axis=1)


def mouth(
    phonemes: tuple[Phoneme, ...], sound: Float[np.ndarray, " samples"], frames: int
) -> Float[np.ndarray, "frames 8"]:
    """MOUTH's columns for each frame: blended targets times loudness, closed on p, b, m and in silence.

    ``sound`` is the dry speech at the standard loudness, ``phonemes`` its times in seconds from the first frame.
    """
    steps = max(frames * 100 // FPS + 8, len(sound) // HOP)
    t = (np.arange(steps) + 0.5) * STEP
    weight, total = np.full(steps, 0.02), np.zeros((steps, len(MOUTH)))
    closed = np.zeros(steps)
    for start, end, ipa in phonemes:
        parts = visemes_of(ipa)
        length = (end - start) / len(parts)
        for i, (name, size) in enumerate(parts):
            target, dominance = VISEMES[name]
            target = np.array(target) * (size if name in ("AA", "EE", "OO") else 1.0)
            a = start + i * length
            centre, width = a + 0.5 * length - 0.4 * ANTICIPATION, 0.5 * length + 0.025
            near = slice(max(0, int((centre - 4 * width) * 100)), max(0, int((centre + 4 * width) * 100) + 1))
            w = dominance * np.exp(-(np.abs((t[near] - centre) / width) ** 2.5))
            weight[near] += w
            total[near] += w[:, None] * target
            if name == "PP":  # lips meet in the stop's first part and stay together for at least a frame
                a, b = start - 0.01, max(start + 0.045, min(end, start + 0.09))
                ramp = np.minimum(t - (a - 0.08), (b + 0.08) - t) / 0.08
                closed = np.maximum(closed, 0.5 - 0.5 * np.cos(np.pi * np.clip(ramp, 0, 1)))
    level = np.zeros(steps)
    loud = np.clip((envelope(sound) + 44) / 18, 0, 1) if len(sound) else np.zeros(0)
    level[: min(steps, len(loud))] = loud[:steps]
    level = smooth(np.concatenate([level[2:], [0, 0]]), 0.07)  # the window looked back; the lips lead a little
    curves = smooth(total / weight[:, None] * level[:, None], 0.075)
    curves[:, 0] *= 1 - closed
    curves[:, [3, 4, 5, 6, 7]] *= (1 - 0.85 * closed)[:, None]
    curves[:, 0] = np.clip(curves[:, 0] * 1.45 - 0.012, 0, 1)  # what the smoothing took; and silence is exactly shut
    return at_frames(curves, frames).astype(np.float32)
