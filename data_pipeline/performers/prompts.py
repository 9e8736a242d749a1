"""Prompts: what a text may ask of the performance, in simple English, and what it does to the parameters.

An intention is an emotion with an intensity and, maybe, an action. Left and right are the viewer's. A prompt holds for
the whole clip unless its text names a time, so that a streaming model needs no clock to follow it. Clips *from rest*
begin as streams do, with a face at rest, and ease into what the prompt asks for.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from data_pipeline.performers.reactions import frame_times, plateau

MAX_WORDS = 24
EASE = 0.8  # seconds from rest to what a prompt asks for, in clips that begin at rest
INTENSITIES = {"slightly": 0.4, "": 0.7, "very": 1.0}

#: Parameter offsets at full intensity. Mouth opening never belongs to an emotion: lips part for sound alone.
EMOTIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "happy": {"smile": 0.95, "cheek": 0.7, "brow_outer": 0.25, "squint": 0.2},
    "sad": {"frown": 0.9, "brow_inner": 0.8, "brow_outer": -0.4, "lid": -0.2, "pitch": 5.0},
    "angry": {"frown": 0.55, "brow_inner": -1.0, "brow_outer": 0.2, "squint": 0.4, "pitch": 3.0},
    "surprised": {"brow_inner": 0.9, "brow_outer": 0.95, "lid": 0.2, "pupil": 0.2, "pitch": -3.0},
    "afraid": {"brow_inner": 0.95, "brow_outer": 0.2, "frown": 0.4, "lid": 0.2, "lip_width": 0.25, "lean": -0.5},
    "disgusted": {"frown": 0.5, "brow_inner": -0.6, "brow_outer": -0.5, "squint": 0.7, "cheek": 0.5, "lip_upper": 0.5},
    "thinking": {"gaze_x": 0.5, "gaze_y": -0.6, "brow_outer_left": 0.6, "brow_inner_right": -0.3, "roll": 5.0},
}

#: Constant offsets of each action; "nod", "shake" and "sway" move instead (see ``pose``).
ACTIONS: dict[str, dict[str, float]] = {
    "look_left": {"gaze_x": -0.9, "yaw": -8.0},
    "look_right": {"gaze_x": 0.9, "yaw": 8.0},
    "look_up": {"gaze_y": -0.9, "pitch": -6.0},
    "look_down": {"gaze_y": 0.9, "pitch": 8.0, "lid": -0.15},
    "turn_left": {"yaw": -22.0, "gaze_x": -0.3},
    "turn_right": {"yaw": 22.0, "gaze_x": 0.3},
    "tilt_left": {"roll": -10.0},
    "tilt_right": {"roll": 10.0},
    "raise_brows": {"brow_inner": 0.9, "brow_outer": 0.9},
    "close_eyes": {"lid": -1.0},
    "lean_in": {"lean": 1.0, "scale": 0.05},
    "nod": {},
    "shake": {},
    "sway": {},
}

_EMOTION_TEXTS = {
    "happy": ("smiles {very}", "looks {very} happy", "has a {very} happy face", "is {very} cheerful",
              "feels {very} joyful", "beams with a {very} bright smile"),
    "sad": ("looks {very} sad", "is {very} sad", "feels {very} down", "has a {very} sad face", "seems {very} unhappy"),
    "angry": ("looks {very} angry", "is {very} angry", "is {very} cross", "has a {very} angry face",
              "feels {very} mad"),
    "surprised": ("looks {very} surprised", "is {very} surprised", "seems {very} amazed", "has a {very} surprised face",
                  "feels {very} astonished"),
    "afraid": ("looks {very} afraid", "is {very} scared", "feels {very} frightened", "has a {very} fearful face",
               "seems {very} worried"),
    "disgusted": ("looks {very} disgusted", "is {very} disgusted", "has a {very} disgusted face",
                  "feels {very} sick of it", "seems {very} put off"),
    "thinking": ("is thinking {very} hard", "looks {very} thoughtful", "ponders, {very} thoughtful",
                 "seems {very} pensive", "is {very} deep in thought"),
    "neutral": ("looks calm", "has a neutral face", "is relaxed", "keeps a straight face", "stays calm"),
}  # fmt: skip
_EMOTION_HELD_OUT = {
    "happy": "grins in a {very} happy way", "sad": "wears a {very} sorrowful look", "angry": "glares, {very} furious",
    "surprised": "stares, {very} startled", "afraid": "appears {very} anxious",
    "disgusted": "grimaces, {very} repelled",
    "thinking": "reflects, {very} absorbed", "neutral": "remains composed",
}  # fmt: skip
_ACTION_TEXTS = {
    "look_left": ("looks to the left", "looks left", "glances to the left", "keeps the eyes on the left",
                  "watches something on the left"),
    "look_right": ("looks to the right", "looks right", "glances to the right", "keeps the eyes on the right",
                   "watches something on the right"),
    "look_up": ("looks up", "looks to the ceiling", "glances up", "keeps the eyes up", "watches the sky"),
    "look_down": ("looks down", "looks at the floor", "glances down", "keeps the eyes down", "watches the ground"),
    "turn_left": ("turns the head to the left", "turns left", "faces left", "has the head turned left",
                  "turns away to the left"),
    "turn_right": ("turns the head to the right", "turns right", "faces right", "has the head turned right",
                   "turns away to the right"),
    "tilt_left": ("tilts the head to the left", "tilts left", "leans the head left", "holds the head tilted left",
                  "tips the head to the left"),
    "tilt_right": ("tilts the head to the right", "tilts right", "leans the head right", "holds the head tilted right",
                   "tips the head to the right"),
    "raise_brows": ("raises the eyebrows", "lifts the eyebrows", "has raised eyebrows", "lifts both brows",
                    "keeps the eyebrows up"),
    "close_eyes": ("closes the eyes", "keeps the eyes closed", "has closed eyes", "shuts the eyes", "rests the eyes"),
    "lean_in": ("leans in", "leans forward", "comes closer", "leans towards the camera", "moves closer"),
    "nod": ("nods", "nods along", "nods the head", "keeps nodding", "nods in agreement"),
    "shake": ("shakes the head", "shakes the head no", "keeps shaking the head", "shakes the head in doubt",
              "says no with the head"),
    "sway": ("sways gently", "sways from side to side", "rocks from side to side", "moves to a rhythm",
             "dances a little"),
}  # fmt: skip
_ACTION_HELD_OUT = {
    "look_left": "gazes leftwards", "look_right": "gazes rightwards", "look_up": "gazes upwards",
    "look_down": "gazes downwards", "turn_left": "rotates the head leftwards",
    "turn_right": "rotates the head rightwards", "tilt_left": "cocks the head leftwards",
    "tilt_right": "cocks the head rightwards", "raise_brows": "hoists the brows",
    "close_eyes": "holds both eyes shut", "lean_in": "bends towards the viewer", "nod": "bobs the head in approval",
    "shake": "wags the head in denial", "sway": "swings slowly from side to side",
}  # fmt: skip
_TIMES = {"After two seconds": (2.0, 600.0), "For the first two seconds": (0.0, 2.0)}


@dataclass(frozen=True)
class Prompt:
    """A text and the intention behind it. ``start`` and ``end`` in seconds bound the action, not the emotion."""

    text: str = ""
    emotion: str = "neutral"
    intensity: float = 0.0
    action: str = ""
    start: float = 0.0
    end: float = 600.0

    def to_json(self) -> dict:
        return asdict(self)


def sample_prompt(rng: np.random.Generator, held_out: bool = False) -> Prompt:
    """A random intention in random words, or the empty prompt (20 %). Held-out prompts use words kept for them."""
    if rng.random() < 0.2:
        return Prompt()
    who = str(rng.choice(["She", "He", "They", "The person", "The character"]))
    shape = rng.choice(["emotion", "action", "both"], p=[0.4, 0.3, 0.3])
    emotion, action, level, parts = "neutral", "", "", []
    start, end, lead = 0.0, 600.0, ""
    if shape != "action":
        emotion, level = str(rng.choice(list(EMOTIONS))), str(rng.choice(list(INTENSITIES)))
        text = _EMOTION_HELD_OUT[emotion] if held_out else str(rng.choice(_EMOTION_TEXTS[emotion]))
        parts.append(_degree(text, emotion, level))
    if shape != "emotion":
        action = str(rng.choice(list(ACTIONS)))
        parts.append(_ACTION_HELD_OUT[action] if held_out else str(rng.choice(_ACTION_TEXTS[action])))
        if shape == "action" and rng.random() < 0.1:
            lead = str(rng.choice(list(_TIMES)))
            start, end = _TIMES[lead]
            lead, who = f"{lead}, ", who[0].lower() + who[1:]
    text = f"{lead}{who} {' and '.join(parts)}."
    if who.lower() == "they":
        text = f"{lead}{'The performer' if not lead else 'the performer'} {' and '.join(parts)}."
    return Prompt(text, emotion, INTENSITIES[level] if emotion != "neutral" else 0.0, action, start, end)


def _degree(text: str, emotion: str, level: str) -> str:
    if text.startswith("smiles"):
        return {"slightly": "smiles a little", "": "smiles", "very": "smiles broadly"}[level]
    if emotion == "thinking" and "hard" in text:
        return "is thinking " + {"slightly": "a little", "": "hard", "very": "very hard"}[level]
    return " ".join(text.replace("{very}", level).split())


def add(params: dict[str, np.ndarray], offsets: dict[str, float], weight: np.ndarray | float) -> None:
    """Add offsets to curves in place; ``lid``, ``brow_inner`` and ``brow_outer`` mean both sides."""
    for name, value in offsets.items():
        both = name in ("lid", "brow_inner", "brow_outer")
        for column in (f"{name}_left", f"{name}_right") if both else (name,):
            params[column] = params[column] + value * weight


def pose(prompt: Prompt, params: dict[str, np.ndarray], from_rest: bool = False) -> None:
    """Add what ``prompt`` asks for to the curves in ``params`` (float ``[frames]`` each), in place: all of it from the
    first frame on, or eased in from there."""
    frames = len(params["yaw"])
    t = frame_times(frames)
    eased = plateau(t, 0.0, np.inf, EASE, EASE) if from_rest else 1.0
    add(params, EMOTIONS[prompt.emotion], prompt.intensity * eased)
    if not prompt.action:
        return
    begins = prompt.start - 0.5 if prompt.start == 0 else prompt.start  # from the first frame: no easing in
    weight = plateau(t, begins, prompt.end, 0.5, 0.5) * eased
    add(params, ACTIONS[prompt.action], weight)
    since = np.maximum(0, t - prompt.start)
    if prompt.action == "nod":
        params["pitch"] = params["pitch"] + weight * 10 * (0.5 - 0.5 * np.cos(2 * np.pi * since / 1.0))
    elif prompt.action == "shake":
        params["yaw"] = params["yaw"] + weight * 12 * np.sin(2 * np.pi * since / 1.2)
    elif prompt.action == "sway":
        params["roll"] = params["roll"] + weight * 7 * np.sin(2 * np.pi * since / 2.0)
        params["shift_x"] = params["shift_x"] + weight * 0.06 * np.sin(2 * np.pi * since / 2.0)
