"""Speech with exact phoneme times: eSpeak NG through ctypes, from the wheel ``espeakng-loader``.

eSpeak NG (GPL-3.0-or-later) is loaded only when something is said; the ``data`` extra brings it. Its event interface
reports every phoneme with the sample at which it starts (``espeak_EVENT``, speak_lib.h), which ``--pho`` does not.
"""

from __future__ import annotations

import _ctypes
import ctypes
from dataclasses import asdict, dataclass, replace
from functools import cache

import numpy as np
from jaxtyping import Float

from data_pipeline.schema import SAMPLE_RATE

Phoneme = tuple[float, float, str]  # start and end in seconds, IPA symbol ("" is a pause)

LOUDNESS = 0.1  # RMS of voiced parts, full scale 1: -20 dBFS
LANGUAGES = ("en-us", "en-gb-x-rp", "de", "fr", "es", "it", "pt-br", "nl")
# Variants, speaking rates (words a minute) and pitches of held-out voices never occur in training.
VARIANTS = ("", "f1", "f2", "f3", "f4", "m1", "m2", "m3", "m4", "m5", "m6", "Alicia", "Andy", "Annie", "Lee", "Mario")
HELD_OUT_VARIANTS = ("f5", "m7", "m8", "linda", "david")
RATES = (*range(120, 160, 5), *range(180, 221, 5))
HELD_OUT_RATES = tuple(range(162, 177, 2))
PITCHES = (*range(20, 44, 2), *range(58, 81, 2))
HELD_OUT_PITCHES = tuple(range(46, 56))


@dataclass(frozen=True)
class Voice:
    """A speaker and its microphone. ``rate`` in words a minute (120-220), ``pitch`` 20-80 (eSpeak's scale)."""

    language: str = "en-us"
    variant: str = ""
    rate: int = 165
    pitch: int = 50
    tilt: float = 0.0  # spectral tilt, -1 dark .. 1 bright
    noise: float = 0.0  # RMS of the room's noise, full scale 1
    reverb: float = 0.0  # reflected part, 0 .. 0.3
    gain: float = 1.0
    seed: int = 0  # of the noise

    def to_json(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Speech:
    """Mono sound at 24 kHz, full scale 1, with its phonemes and words in seconds from the first sample."""

    samples: Float[np.ndarray, " samples"]
    phonemes: tuple[Phoneme, ...]
    words: tuple[tuple[float, int, int], ...] = ()  # time, first character in the text, length

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    def cut(self, seconds: float) -> Speech:
        """The speech broken off after ``seconds``, faded over 40 ms."""
        n = min(len(self.samples), round(seconds * SAMPLE_RATE))
        samples = self.samples[:n].copy()
        fade = min(n, SAMPLE_RATE // 25)
        samples[n - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
        phonemes = tuple((a, min(b, seconds), ipa) for a, b, ipa in self.phonemes if a < seconds)
        return replace(self, samples=samples, phonemes=phonemes, words=tuple(w for w in self.words if w[0] < seconds))


def sample_voice(rng: np.random.Generator, held_out: bool = False, language: str | None = None) -> Voice:
    """A random voice; held-out voices share no variant, rate or pitch with the others."""
    variants, rates, pitches = (
        (HELD_OUT_VARIANTS, HELD_OUT_RATES, HELD_OUT_PITCHES) if held_out else (VARIANTS, RATES, PITCHES)
    )
    if language is None:
        language = str(rng.choice(LANGUAGES, p=[0.4, 0.18, *[0.07] * 6]))
    return Voice(
        language=language,
        variant=str(rng.choice(variants)),
        rate=int(rng.choice(rates)),
        pitch=int(rng.choice(pitches)),
        tilt=float(rng.uniform(-0.5, 0.5)),
        noise=float(10 ** rng.uniform(-4.5, -3.0)),
        reverb=float(rng.choice([0.0, rng.uniform(0.03, 0.15)])),
        gain=float(10 ** (rng.uniform(-3, 3) / 20)),
        seed=int(rng.integers(2**31)),
    )


# --- eSpeak NG ---------------------------------------------------------------------------------------------------


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_END_OF_LIST, _WORD, _PHONEME = 0, 1, 7


class _Espeak:
    """One loaded library. eSpeak NG keeps its state in globals, which make the sound depend on what was said before:
    ``close`` unloads the library, so that the next instance starts from nothing (0.6 ms)."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise ImportError("speech needs the 'data' extra: uv sync --extra data") from None
        self.lib = ctypes.CDLL(espeakng_loader.get_library_path())
        self.path = str(espeakng_loader.get_data_path()).encode()
        self.voice = None
        self.chunks: list[np.ndarray] = []
        self.events: list[tuple[int, int, int, int, bytes]] = []
        self.callback = _CALLBACK(self._receive)  # the library keeps the pointer: so must we
        self.lib.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
            ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        # Synchronous output; phoneme events (1) whose names are IPA (2).
        self.rate = self.lib.espeak_Initialize(2, 0, self.path, 1 | 2)
        if self.rate <= 0:
            raise RuntimeError("eSpeak NG did not start: its data folder could not be read")
        self.lib.espeak_ng_SetRandSeed(ctypes.c_long(1))  # it would be the time of day
        self.lib.espeak_SetSynthCallback(self.callback)

    def _receive(self, wav, count, events) -> int:
        if wav and count > 0:
            self.chunks.append(np.ctypeslib.as_array(wav, (count,)).copy())
        i = 0
        while events[i].type != _END_OF_LIST:
            e = events[i]
            if e.type in (_WORD, _PHONEME):
                name = ctypes.string_at(ctypes.addressof(e.id), 8).split(b"\0")[0] if e.type == _PHONEME else b""
                self.events.append((e.type, e.sample, e.text_position, e.length, name))
            i += 1
        return 0

    def close(self) -> None:
        self.lib.espeak_Terminate()
        if hasattr(_ctypes, "dlclose"):  # POSIX
            _ctypes.dlclose(self.lib._handle)

    def synth(self, text: str, voice: Voice) -> tuple[np.ndarray, list]:
        self.chunks, self.events = [], []
        name = voice.language + (f"+{voice.variant}" if voice.variant else "")
        if self.lib.espeak_SetVoiceByName(name.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice {name!r}")
        self.lib.espeak_SetParameter(1, voice.rate, 0)
        self.lib.espeak_SetParameter(3, voice.pitch, 0)
        raw = text.encode()
        self.lib.espeak_Synth(raw, len(raw) + 1, 0, 1, 0, 1, None, None)
        self.lib.espeak_Synchronize()
        samples = np.concatenate(self.chunks) if self.chunks else np.zeros(0, np.int16)
        return samples.astype(np.float32) / 32768, self.events


def say(text: str, voice: Voice) -> Speech:
    """Speak ``text`` with ``voice``, trimmed to the sound, at a fixed loudness (no room, no gain: see ``room``).

    Raises ImportError without the ``data`` extra and ValueError for an unknown voice or a text without sound.
    """
    engine = _Espeak()
    try:
        raw, events = engine.synth(text, voice)
    finally:
        engine.close()
    loud = np.flatnonzero(np.abs(raw) > 0.01)
    if not len(loud):
        raise ValueError(f"no sound for the text {text!r} in {voice.language}")
    first, last = max(0, loud[0] - engine.rate // 100), min(len(raw), loud[-1] + engine.rate // 50)
    samples = resample(raw[first:last], engine.rate, SAMPLE_RATE)
    voiced = np.abs(samples) > 0.02
    samples *= LOUDNESS / np.sqrt(np.mean(samples[voiced] ** 2))
    end = len(samples) / SAMPLE_RATE
    starts = [
        ((s - first) / engine.rate, name.decode("utf-8", "ignore")) for k, s, _, _, name in events if k == _PHONEME
    ]
    starts = [(min(max(t, 0.0), end), ipa) for t, ipa in starts]
    stops = [t for t, _ in starts[1:]] + [end]
    phonemes = tuple((t, stop, ipa) for (t, ipa), stop in zip(starts, stops, strict=True) if stop > t)
    words = tuple(((s - first) / engine.rate, p - 1, n) for k, s, p, n, _ in events if k == _WORD)
    return Speech(np.clip(samples, -1, 1).astype(np.float32), phonemes, words)


# --- sound -------------------------------------------------------------------------------------------------------


@cache
def _polyphase(up: int, down: int, half: int = 16) -> np.ndarray:
    """Kaiser-windowed sinc, one row of ``2 * half`` taps for each of the ``up`` phases."""
    cutoff = min(1.0, up / down) * 0.95
    x = np.arange(2 * half)[None] - (half - 1) - np.arange(up)[:, None] / up
    window = np.i0(8 * np.sqrt(np.clip(1 - (x / half) ** 2, 0, 1))) / np.i0(8)
    taps = cutoff * np.sinc(cutoff * x) * window
    return (taps / taps.sum(1, keepdims=True)).astype(np.float32)


def resample(x: Float[np.ndarray, " samples"], source: int, target: int) -> Float[np.ndarray, " resampled"]:
    """Polyphase resampling with a 32-tap Kaiser-windowed sinc (22,050 to 24,000 Hz is 160/147)."""
    if source == target or not len(x):
        return np.array(x, np.float32)
    g = np.gcd(source, target)
    up, down, half = target // g, source // g, 16
    position = np.arange(len(x) * up // down) * down
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x.astype(np.float32), half), 2 * half)
    return np.einsum("nk,nk->n", windows[position // up + 1], _polyphase(up, down)[position % up])


def room(track: Float[np.ndarray, " samples"], voice: Voice) -> Float[np.ndarray, " samples"]:
    """The track as the voice's microphone hears it: tilt, reflections, gain and noise, all given by ``voice``."""
    y = track.astype(np.float32)
    if voice.tilt:
        high = np.diff(y, prepend=y[:1])  # bright: add the slope; dark: take a part of it away
        y = y + voice.tilt * (high if voice.tilt > 0 else 0.6 * high)
    rng = np.random.default_rng(voice.seed)
    if voice.reverb:
        wet = np.zeros_like(y)
        for delay in rng.uniform(0.006, 0.05, 6):
            d = int(delay * SAMPLE_RATE)
            wet[d:] += y[: len(y) - d] * np.float32(np.exp(-delay / 0.02))
        y = y + voice.reverb * wet
    y = voice.gain * y + voice.noise * rng.standard_normal(len(y), dtype=np.float32)
    return np.clip(y, -1, 1).astype(np.float32)
