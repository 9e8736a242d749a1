"""The whole performance: mouth from speech, reactions from the partner, pose from the prompt, and a little life.

Large motion has a cause that a model is given: the speak sound, the listen sound or the prompt. What is random (sway,
rare glances and blinks) is small and smooth.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from data_pipeline.performers.prompts import Prompt, pose
from data_pipeline.performers.reactions import (
    BLINK_DELAY,
    Event,
    blink,
    bump,
    frame_times,
    phrases,
    plateau,
    reaction_events,
    reactions,
)
from data_pipeline.performers.speech import Speech
from data_pipeline.performers.visemes import MOUTH, STEP, envelope, mouth, smooth
from data_pipeline.schema import LIFE, PARAM_INDEX, PARAMS

OWN_BLINK_DELAY = 0.12  # after the end of one's own phrase
REST = {"scale": 1.0, "lid_left": 0.9, "lid_right": 0.9, "pupil": 0.5, "lip_width": 0.5}
RANGES = {"scale": (0.8, 1.25), "lid_left": (0, 1), "lid_right": (0, 1), "pupil": (0, 1), "aperture": (0, 1)}


def articulation(speech: Speech, frames: int) -> dict[str, Float[np.ndarray, " frames"]]:
    """The mouth's columns as offsets from rest, from a speech that starts with the first frame."""
    return dict(zip(MOUTH, mouth(speech.phonemes, speech.samples, frames).T, strict=True))


def accents(speak: Float[np.ndarray, " samples"], frames: int) -> list[tuple[float, float]]:
    """Stressed moments of a speech: times in seconds and strengths 0..1 of energy peaks at least 0.6 s apart."""
    level = np.clip((envelope(speak) + 44) / 24, 0, 1.3)
    fast, slow = smooth(level, 0.18), smooth(level, 1.2)
    peaks = [j for j in range(1, len(fast) - 1) if fast[j - 1] < fast[j] >= fast[j + 1]]
    peaks = sorted((j for j in peaks if fast[j] > 0.45 and fast[j] > 1.1 * slow[j]), key=lambda j: -fast[j])
    kept: list[int] = []
    for j in peaks:
        if all(abs(j - k) * STEP >= 0.6 for k in kept):
            kept.append(j)
    return [(j * STEP, float(np.clip((fast[j] - 0.45) / 0.5, 0, 1))) for j in sorted(kept)]


def _sway(p: dict[str, np.ndarray], rng: np.random.Generator, t: np.ndarray, life: dict[str, np.ndarray]) -> None:
    """Slow sway and breathing, from rest at the first frame."""
    for name, low, high in (("yaw", 1.0, 2.4), ("roll", 0.6, 1.6), ("pitch", 0.3, 0.8)):
        period = rng.uniform(4.5, 8.0)
        life[name] = rng.choice([-1, 1]) * rng.uniform(low, high) * np.sin(2 * np.pi * t / period)
        p[name] = p[name] + life[name]
    p["shift_x"] = p["shift_x"] + p["yaw"] * 0.0015
    p["breath"] = p["breath"] + 0.5 - 0.5 * np.cos(2 * np.pi * t / 3.8)


def _glances(
    p: dict[str, np.ndarray],
    rng: np.random.Generator,
    t: np.ndarray,
    free: np.ndarray,
    events: list[Event],
    life: dict[str, np.ndarray],
) -> None:
    """Small glances away, only while ``free`` (0..1: not listening)."""
    at = rng.uniform(0.8, 4.0)
    while at < t[-1] - 0.8:
        x, y, hold = rng.uniform(-0.3, 0.3), rng.uniform(-0.15, 0.15), rng.uniform(0.5, 1.1)
        there = plateau(t, at, at + hold, 0.1, 0.12) * free
        if there.max() > 0.5:
            for name, far in (("gaze_x", x), ("gaze_y", y)):
                p[name], life[name] = p[name] + far * there, life[name] + far * there
            events.append(("glance", float(at), 0.0))
        at += rng.uniform(3.0, 6.0)


def perform(
    speech: Speech,
    speak: Float[np.ndarray, " samples"],
    listen: Float[np.ndarray, " samples"],
    prompt: Prompt,
    frames: int,
    seed: int,
    from_rest: bool = False,
) -> tuple[Float[np.ndarray, "frames params"], list[Event], Float[np.ndarray, "frames life"]]:
    """Parameters in the order of ``PARAMS``, the events behind them, and of what the seed moves, ``schema.LIFE``.

    ``speech`` is the dry speech with its phonemes, ``speak`` and ``listen`` the recorded tracks (24 kHz, full scale 1).
    The seed moves only sway, glances and rare blinks. ``from_rest`` eases the prompt in (``prompts.pose``).
    """
    rng = np.random.default_rng(seed)
    t = frame_times(frames)
    p = {name: np.full(frames, REST.get(name, 0.0)) for name in PARAMS}
    events: list[Event] = []
    life = {name: np.zeros(frames) for name in LIFE}
    _sway(p, rng, t, life)

    heard = reactions(listen, frames)
    events += reaction_events(listen)
    p["pitch"] = p["pitch"] + heard["pitch"]
    p["smile"] = p["smile"] + 0.75 * heard["smile"] + 0.12 * heard["attention"]
    p["cheek"] = p["cheek"] + 0.4 * heard["smile"]
    p["lean"] = p["lean"] + 0.35 * heard["attention"]
    p["scale"] = p["scale"] + 0.02 * heard["attention"]
    brow = 0.7 * heard["brow"] + 0.12 * heard["lift"]

    for at, strength in accents(speak, frames):
        p["pitch"] = p["pitch"] + (2.0 + 2.0 * strength) * bump(t, at - 0.3, 0.65)
        brow = np.maximum(brow, (0.25 + 0.3 * strength) * bump(t, at - 0.3, 0.65))
        events.append(("accent", at, 0.0))
    for side in ("left", "right"):
        p[f"brow_inner_{side}"] = p[f"brow_inner_{side}"] + brow
        p[f"brow_outer_{side}"] = p[f"brow_outer_{side}"] + brow

    own = phrases(speak)
    own_blinks: list[float] = []
    for before, phrase in zip([None, *own], own, strict=False):  # at the onset after a long silence, and at each end
        silence = phrase.start - (before.end if before and before.end is not None else 0.0)
        own_blinks += [phrase.start + 0.1] if silence > 0.9 else []
        own_blinks += [phrase.end + OWN_BLINK_DELAY] if phrase.end is not None else []
    caused = own_blinks + [x.end + BLINK_DELAY for x in phrases(listen) if x.end is not None]
    closed = heard["blink"]
    at = rng.uniform(1.0, 5.0)
    free_blinks = []
    while at < t[-1]:
        if all(abs(at - other) > 1.0 for other in caused):
            free_blinks.append(float(at))
        at += rng.uniform(3.5, 6.0)
    for start in free_blinks:
        life["blink"] = np.maximum(life["blink"], blink(t, start))
    for start in own_blinks + free_blinks:
        closed = np.maximum(closed, blink(t, start))
    events += [("blink", start, OWN_BLINK_DELAY if start in own_blinks else 0.0) for start in own_blinks + free_blinks]
    _glances(p, rng, t, 1 - heard["attention"], events, life)

    pose(prompt, p, from_rest)
    if prompt.action.startswith("look") or prompt.emotion == "thinking":
        events.append(("gaze", prompt.start, 0.0))
    for side in ("lid_left", "lid_right"):
        p[side] = np.clip(p[side], 0, 1) * (1 - closed)

    lips = articulation(speech, frames)
    for name, curve in lips.items():
        p[name] = curve if name == "aperture" else p[name] + curve
    lively = np.stack([life[name] / size for name, size in LIFE.items()], axis=1).astype(np.float32)
    return _bounded(p), sorted(events, key=lambda e: e[1]), lively


def _bounded(p: dict[str, np.ndarray]) -> Float[np.ndarray, "frames params"]:
    limits = {"yaw": (-35, 35), "pitch": (-20, 20), "roll": (-15, 15), "shift_x": (-1, 1), "shift_y": (-1, 1)}
    out = np.zeros((len(p["yaw"]), len(PARAMS)), np.float32)
    for name, i in PARAM_INDEX.items():
        signed = name.startswith(("gaze", "brow")) or name == "lean"
        low, high = limits.get(name) or RANGES.get(name) or ((-1, 1) if signed else (0, 1))
        out[:, i] = np.clip(p[name], low, high)
    return out
