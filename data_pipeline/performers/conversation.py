"""Two parties on one clock: who says what when, as two tracks that are never mixed, and a state for every frame.

Turn-taking follows corpora: offsets around +100 ms with overlaps (CANDOR), backchannels at the partner's pauses, and
interruptions on 5-10 % of the turns, after which the first speaker stops within 150-400 ms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from data_pipeline.performers.reactions import Event
from data_pipeline.performers.scripts import BACKCHANNELS, LAUGH, sentence
from data_pipeline.performers.speech import Speech, Voice, room, sample_voice, say
from data_pipeline.schema import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, STATES

KINDS = {"speak": 0.35, "listen": 0.25, "conversation": 0.30, "idle": 0.10}
INTERRUPTION, FAILED, BACKCHANNEL, LAUGHTER = 0.1, 0.02, 0.35, 0.18


@dataclass(frozen=True)
class Turn:
    """One utterance on a track (0 the character's, 1 its partner's), from ``start`` seconds on."""

    track: int
    start: float
    speech: Speech
    text: str

    @property
    def end(self) -> float:
        return self.start + self.speech.seconds


@dataclass(frozen=True)
class Scene:
    """A clip's sound. ``speak`` and ``listen`` as recorded, ``dry`` the character's speech on the clip's clock."""

    kind: str
    speak: Float[np.ndarray, " samples"]
    listen: Float[np.ndarray, " samples"]
    dry: Speech
    states: Int[np.ndarray, " frames"]
    turns: tuple[Turn, ...]
    events: tuple[Event, ...]
    voices: tuple[Voice, Voice]


def laughter(rng: np.random.Generator, voice: Voice) -> Speech:
    """Laughter: four to seven short bursts, 0.21-0.25 s apart, falling in loudness."""
    burst = say(LAUGH, voice)
    loud = np.flatnonzero(np.abs(burst.samples) > 0.05)[0]
    piece = burst.samples[loud : loud + int(0.115 * SAMPLE_RATE)].copy()
    ramp = np.minimum(1, np.minimum(np.arange(len(piece)), np.arange(len(piece))[::-1]) / (0.015 * SAMPLE_RATE))
    piece *= ramp.astype(np.float32)
    beat, count = rng.uniform(0.21, 0.25), int(rng.integers(4, 8))
    samples = np.zeros(int((count * beat + 0.05) * SAMPLE_RATE), np.float32)
    phonemes = []
    for i in range(count):
        a = int(i * beat * SAMPLE_RATE)
        samples[a : a + len(piece)] += piece * 0.93**i
        phonemes.append((i * beat, i * beat + 0.115, "a"))
    return Speech(samples, tuple(phonemes))


def _monologue(
    rng: np.random.Generator, track: int, voice: Voice, held_out: bool, start: float, until: float
) -> list[Turn]:
    """Sentences with pauses of 0.3-0.7 s until ``until``. A negative start puts the clip into the middle of a turn."""
    turns = []
    while start < until - 0.3:
        if turns and track == 1 and rng.random() < LAUGHTER:
            text, speech = "(laughs)", laughter(rng, voice)
        else:
            text = sentence(rng, voice.language, held_out)
            speech = say(text, voice)
        turns.append(Turn(track, start, speech, text))
        start = turns[-1].end + rng.uniform(0.3, 0.7)
    return turns


def _dialogue(
    rng: np.random.Generator, voices: tuple[Voice, Voice], held_out: bool, until: float, events: list[Event]
) -> list[Turn]:
    """Alternating turns with overlaps, interruptions and backchannels."""
    turns: list[Turn] = []
    track = int(rng.integers(2))
    start = float(rng.choice([rng.uniform(0.1, 0.5), rng.uniform(-1.2, -0.2)]))
    while start < until - 0.3:
        voice = voices[track]
        count = int(rng.choice([1, 2], p=[0.7, 0.3]))
        text = " ".join(sentence(rng, voice.language, held_out) for _ in range(count))
        turn = Turn(track, start, say(text, voice), text)
        draw = rng.random()
        if draw < INTERRUPTION:
            begins = start + rng.uniform(0.3, 0.8) * turn.speech.seconds
            stops = rng.uniform(0.15, 0.4)
            turn = replace(turn, speech=turn.speech.cut(begins + stops - start), text=f"{text} (broken off)")
            events.append(("interrupted" if track == 0 else "interrupts", begins + stops, stops))
        elif draw < INTERRUPTION + FAILED:
            begins = turn.end + rng.uniform(0.05, 0.3)
            at = start + rng.uniform(0.3, 0.6) * turn.speech.seconds
            word = sentence(rng, voices[1 - track].language, held_out)
            turns.append(
                Turn(1 - track, at, say(word, voices[1 - track]).cut(rng.uniform(0.25, 0.4)), f"{word} (gave up)")
            )
        else:
            begins = turn.end + float(np.clip(rng.normal(0.15, 0.2), -0.3, 0.7))
            if rng.random() < BACKCHANNEL and begins > start + 0.8:
                word = str(rng.choice(BACKCHANNELS))
                at = start + rng.uniform(0.6, 0.9) * turn.speech.seconds
                turns.append(Turn(1 - track, at, _quiet(say(word, voices[1 - track])), word))
                begins = max(begins, turns[-1].end + 0.15)
                events.append(("backchannel" if track == 1 else "partner_backchannel", at, 0.0))
        turns.append(turn)
        start, track = begins, 1 - track
    return turns


def _quiet(speech: Speech) -> Speech:
    return replace(speech, samples=speech.samples * np.float32(0.5))


def _track(turns: list[Turn], track: int, samples: int) -> Speech:
    """One party's speech on the clip's clock."""
    out, phonemes = np.zeros(samples, np.float32), []
    for turn in turns:
        if turn.track != track:
            continue
        a = round(turn.start * SAMPLE_RATE)
        piece = turn.speech.samples[max(0, -a) : max(0, samples - a)]
        out[max(0, a) : max(0, a) + len(piece)] += piece
        phonemes += [(turn.start + p, turn.start + q, ipa) for p, q, ipa in turn.speech.phonemes]
    seconds = samples / SAMPLE_RATE
    kept = sorted((max(0.0, p), min(q, seconds), ipa) for p, q, ipa in phonemes if q > 0 and p < seconds)
    return Speech(out, tuple(kept))


def states_of(turns: list[Turn], frames: int) -> Int[np.ndarray, " frames"]:
    """An index into ``STATES`` for each frame: whose utterance lasts in the frame's middle."""
    middle = (np.arange(frames) + 0.5) / FPS
    active = np.zeros((2, frames), bool)
    for turn in turns:
        active[turn.track] |= (middle >= turn.start) & (middle < turn.end)
    names = np.array([STATES.index(s) for s in ("silence", "speak", "listen", "both")])
    return names[active[0] + 2 * active[1]].astype(np.int32)


def make_scene(seed: int, frames: int, held_out: bool = False, kind: str | None = None) -> Scene:
    """A clip's conversation of ``frames`` frames; ``kind`` is drawn from ``KINDS`` where it is not given."""
    rng = np.random.default_rng(seed)
    drawn = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    kind = kind or drawn
    own = sample_voice(rng, held_out)
    voices = (own, sample_voice(rng, held_out, own.language))
    until, samples = frames / FPS, frames * SAMPLES_PER_FRAME
    events: list[Event] = []
    turns: list[Turn] = []
    if kind in ("speak", "listen"):
        track = 0 if kind == "speak" else 1
        start = float(rng.choice([rng.uniform(0.1, 0.7), rng.uniform(-1.5, -0.2)]))
        turns = _monologue(rng, track, voices[track], held_out, start, until)
    elif kind == "conversation":
        turns = _dialogue(rng, voices, held_out, until, events)
    turns = sorted((t for t in turns if t.end > 0 and t.start < until), key=lambda t: t.start)
    dry, partner = _track(turns, 0, samples), _track(turns, 1, samples)
    return Scene(
        kind=kind,
        speak=room(dry.samples, voices[0]),
        listen=room(partner.samples, voices[1]),
        dry=dry,
        states=states_of(turns, frames),
        turns=tuple(turns),
        events=tuple(e for e in events if 0 <= e[1] < until),
        voices=voices,
    )
