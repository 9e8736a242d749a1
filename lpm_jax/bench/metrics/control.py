"""Text control: are the prompted actions and emotions to be seen, segment by segment?

An intention is seen where the readers read most of what it does to the face (:data:`ACTIONS`, :data:`EMOTIONS`), with
thresholds of half of what the true performance does. What no reader reads is left out, not counted as missed, and so is
what the readers do not see in the case's own true video, where there is one.
"""

from __future__ import annotations

import numpy as np

from data_pipeline.schema import FPS
from lpm_jax.bench.cases import Case, Segment
from lpm_jax.bench.metrics import Context, Scores
from lpm_jax.bench.observe import Observation

SETTLE = 0.75  # seconds after a prompt's start before it is judged: the next chunk, and half a second to move

#: Signal, the change that shows the action (its sign is the direction), and whether it is a swing instead of a pose.
ACTIONS = {
    "look_left": ("gaze_x", -0.45, False),
    "look_right": ("gaze_x", 0.45, False),
    "look_up": ("gaze_y", -0.45, False),
    "look_down": ("gaze_y", 0.45, False),
    "turn_left": ("yaw", -11.0, False),
    "turn_right": ("yaw", 11.0, False),
    "tilt_left": ("roll", -5.0, False),
    "tilt_right": ("roll", 5.0, False),
    "raise_brows": ("brow", 0.45, False),
    "close_eyes": ("eyes", 0.3, False),
    "nod": ("pitch", 2.0, True),
    "shake": ("yaw", 5.0, True),
    "sway": ("roll", 2.5, True),
}
#: The same for an emotion at full intensity; its intensity scales the threshold.
EMOTIONS = {
    "happy": ("smile", 0.45),
    "sad": ("frown", 0.45),
    "angry": ("brow", -0.2),
    "surprised": ("brow", 0.45),
    "afraid": ("brow", 0.28),
    "disgusted": ("brow", -0.28),
    "thinking": ("gaze_y", -0.3),
}


def scores(case: Case, seen: Observation, context: Context) -> Scores:
    verdicts = [verdict for segment in case.prompt for verdict in judge(segment, seen, context.truth)]
    return {"prompt_recall": np.mean(verdicts) if verdicts else None}


def judge(segment: Segment, seen: Observation, truth: Observation | None = None) -> list[bool]:
    """Whether the action and the emotion that a segment asks for are seen, where they can be read."""
    found = _verdicts(segment, seen)
    legible = found if truth is None else _verdicts(segment, truth)
    return [verdict for name, verdict in found.items() if truth is None or legible.get(name)]


def _verdicts(segment: Segment, seen: Observation) -> dict[str, bool]:
    """By what is asked for: the action, the emotion."""
    window = slice(round((segment.start + SETTLE) * FPS), round(segment.end * FPS))
    out: dict[str, bool] = {}
    if segment.action in ACTIONS:
        name, least, swings = ACTIONS[segment.action]
        signal = seen.read.get(name, np.zeros(0))[window]
        if len(signal) >= FPS // 2:
            out["action"] = _swings(signal, least) if swings else _poses(name, signal, least)
    if segment.emotion in EMOTIONS and segment.intensity > 0:
        name, least = EMOTIONS[segment.emotion]
        signal = seen.read.get(name, np.zeros(0))[window]
        if len(signal) >= FPS // 2:
            out["emotion"] = _poses(name, signal, least * segment.intensity)
    return out


def _poses(name: str, signal: np.ndarray, least: float) -> bool:
    """Whether most frames are past the threshold; closed eyes are those that are open by less than it."""
    if name == "eyes":
        return bool(np.mean(signal < least) > 0.5)
    return bool(np.median(signal) * np.sign(least) > abs(least))


def _swings(signal: np.ndarray, least: float) -> bool:
    """Whether it moves to and fro: by its standard deviation about a straight line."""
    t = np.arange(len(signal))
    return bool(np.std(signal - np.polyval(np.polyfit(t, signal, 1), t)) > least)
