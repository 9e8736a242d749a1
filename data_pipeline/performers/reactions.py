"""What a listener does: nods, brow flashes, smiles, blinks, attention. A pure, causal function of the sound it hears.

Nothing here is random and nothing looks ahead: changing the sound after a moment changes no frame before it, so a
streaming model that hears the same sound can learn every reaction. The catalogue follows the backchannels of
conversation analysis (nod at the partner's phrase end, brow flash at its onset, smile at laughter).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data_pipeline.performers.visemes import STEP, envelope
from data_pipeline.schema import FPS

VOICED = -40.0  # decibels of full scale: above it somebody speaks
PAUSE = 0.2  # seconds of silence that end a phrase
PHRASE = 0.5  # seconds from onset to end that make sound a phrase
NOD_DELAY, FLASH_DELAY, SMILE_DELAY = 0.25, 0.15, 0.35
BLINK_DELAY = 0.22  # after a phrase end that is heard; one's own end is known earlier
Event = tuple[str, float, float]  # kind, time of the reaction in seconds, latency after its cause


@dataclass(frozen=True)
class Phrase:
    """Start and end in seconds; ``end`` is None while the sound lasts. Loudness in decibels of full scale."""

    start: float
    end: float | None
    loudness: float


def phrases(sound: Float[np.ndarray, " samples"]) -> list[Phrase]:
    """Stretches of voice between pauses of at least 0.2 s; clicks shorter than 60 ms are ignored."""
    level = envelope(sound)
    voiced = np.flatnonzero(level > VOICED)
    if not len(voiced):
        return []
    out = []
    pause = round(PAUSE / STEP)
    for run in np.split(voiced, np.flatnonzero(np.diff(voiced) > pause) + 1):
        begins = np.flatnonzero(run[5:] - run[:-5] <= 10)  # 60 ms of voice within 110 ms, known before the flash
        if not len(begins):
            continue
        run = run[begins[0] :]
        end = (run[-1] + 1) * STEP if run[-1] + pause < len(level) else None
        out.append(Phrase(run[0] * STEP, end, float(10 * np.log10(np.mean(10 ** (level[run] / 10))))))
    return out


def laughs(sound: Float[np.ndarray, " samples"]) -> list[float]:
    """Times at which laughter is recognised: the third of three short bursts in a row, 0.15-0.32 s apart."""
    voiced = envelope(sound) > VOICED
    edges = np.flatnonzero(np.diff(np.concatenate([[False], voiced, [False]]).astype(int)))
    bursts = [(a, b) for a, b in edges.reshape(-1, 2) if b - a >= 4]
    out: list[float] = []
    for first, second, third in zip(bursts, bursts[1:], bursts[2:], strict=False):
        short = all(b - a <= 17 for a, b in (first, second, third))
        gaps = second[0] - first[1] >= 5 and third[0] - second[1] >= 5
        beat = all(15 <= q[0] - p[0] <= 32 for p, q in ((first, second), (second, third)))
        time = (third[1] + 1) * STEP
        if short and gaps and beat and (not out or time - out[-1] > 2.0):
            out.append(float(time))
    return out


def bump(t: np.ndarray, start: float, length: float) -> np.ndarray:
    """A raised cosine from 0 to 1 and back within ``[start, start + length]``."""
    phase = np.clip((t - start) / length, 0, 1)
    return 0.5 - 0.5 * np.cos(2 * np.pi * phase)


def plateau(t: np.ndarray, start: float, end: float, rise: float, fall: float) -> np.ndarray:
    """0 before ``start``, 1 after ``start + rise``, and back to 0 between ``end`` and ``end + fall``."""
    ease = lambda x: 0.5 - 0.5 * np.cos(np.pi * np.clip(x, 0, 1))  # noqa: E731
    return ease((t - start) / rise) * (1 - ease((t - end) / fall))


def blink(t: np.ndarray, start: float) -> np.ndarray:
    """How closed the lids are: shut in 0.12 s, shut for 0.06 s, open again in 0.2 s."""
    return plateau(t, start, start + 0.18, 0.12, 0.2)


def frame_times(frames: int) -> Float[np.ndarray, " frames"]:
    """When each frame appears, in seconds: nothing heard later may change it."""
    return np.arange(frames) / FPS


def reactions(listen: Float[np.ndarray, " samples"], frames: int | None = None) -> dict[str, np.ndarray]:
    """Curves of the listener's performance, float64 ``[frames]`` each, from the sound it hears (24 kHz, full scale 1).

    ``pitch`` in degrees (nods), ``brow`` 0..1, ``smile`` 0..1, ``blink`` 0..1 (how closed), ``attention`` 0..1 (gaze
    to the camera, leaning in) and ``lift`` 0..1 (partner is loud). Use ``reaction_events`` for the same as a list.
    """
    frames = len(listen) // 1000 if frames is None else frames
    t = frame_times(frames)
    out = {name: np.zeros(frames) for name in ("pitch", "brow", "smile", "blink", "attention", "lift")}
    for phrase in phrases(listen):
        out["brow"] = np.maximum(out["brow"], bump(t, phrase.start + FLASH_DELAY, 0.7))
        if phrase.end is None or phrase.end - phrase.start < PHRASE:
            continue
        amplitude, cycles, length = nod(phrase)
        start = phrase.end + NOD_DELAY
        inside = (t >= start) & (t < start + cycles * length)
        wave = np.where(inside, 0.5 - 0.5 * np.cos(2 * np.pi * (t - start) / length), 0.0)
        out["pitch"] = np.maximum(out["pitch"], amplitude * wave)
        out["blink"] = np.maximum(out["blink"], blink(t, phrase.end + BLINK_DELAY))
    for time in laughs(listen):
        start = time + SMILE_DELAY
        out["smile"] = np.maximum(out["smile"], plateau(t, start, start + 1.6, 0.45, 0.8))
    out["attention"], out["lift"] = attention(listen, frames)
    return out


def nod(phrase: Phrase) -> tuple[float, int, float]:
    """Amplitude in degrees, number and length in seconds of the nods that answer a phrase: louder and longer, more."""
    amplitude = 9.0 + 4.0 * float(np.clip((phrase.loudness + 28) / 10, 0, 1))
    return (amplitude, 2, 0.75) if phrase.end - phrase.start > 1.6 else (amplitude, 1, 0.8)


def attention(listen: Float[np.ndarray, " samples"], frames: int) -> tuple[np.ndarray, np.ndarray]:
    """One-pole followers of the heard voice: is somebody speaking (0.35 s up, 1.2 s down), and how loudly."""
    level = envelope(listen)
    voiced = (level > VOICED).astype(float)
    loud = np.clip((level + 32) / 16, 0, 1)
    a = b = 0.0
    curve = np.zeros((len(level) + 1, 2))
    for j in range(len(level)):
        a += (voiced[j] - a) * STEP / (0.35 if voiced[j] > a else 1.2)
        b += (loud[j] - b) * STEP / 0.8
        curve[j + 1] = a, b  # known when step j has ended
    index = np.minimum((frame_times(frames) / STEP + 1e-6).astype(int), len(level))
    return np.clip(1.4 * curve[index, 0], 0, 1), np.clip(curve[index, 1], 0, 1)


def reaction_events(listen: Float[np.ndarray, " samples"]) -> list[Event]:
    """Every reaction with its time and its latency after what caused it, in order of time."""
    out: list[Event] = []
    for phrase in phrases(listen):
        out.append(("brow_flash", phrase.start + FLASH_DELAY, FLASH_DELAY))
        if phrase.end is not None and phrase.end - phrase.start >= PHRASE:
            out.append(("nod", phrase.end + NOD_DELAY, NOD_DELAY))
            out.append(("blink", phrase.end + BLINK_DELAY, BLINK_DELAY))
    out += [("smile", time + SMILE_DELAY, SMILE_DELAY) for time in laughs(listen)]
    return sorted(out, key=lambda e: e[1])
