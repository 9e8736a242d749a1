"""One conversation, without any network: what was said and heard goes in, chunks of picture and sound come out.

``Session.step``, or its first half ``begin``, and ``close`` run in the model's own thread; everything else may be
called from any thread and takes effect at the next chunk boundary. The user's sound waits in a ring of 3 s, or two
chunks, that drops its oldest part; the agent's speech waits in a queue of utterances that drops nothing but what is
interrupted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from lpm_jax.errors import InputError
from lpm_jax.media import check_prompt

LISTEN_SECONDS = 3.0  # the microphone's ring, or two chunks where they are longer
LISTEN_LEAD = 0.1  # seconds of silence put before a microphone's first sound, so that late packets leave no holes
FADE_SECONDS = 0.03  # of interrupted speech
DROP_MARGIN = 0.07  # seconds: a chunk that begins sooner is as good as shown; with the fade, 0.1 s after it
QUEUED_SECONDS = 900  # of speech may wait
STARVED_SECONDS = 1.0  # after so long without new audio, speech without an end is played as far as it goes


class Ring:
    """Samples that wait to be heard: at most ``capacity`` of them, the oldest are dropped."""

    def __init__(self, capacity: int, lead: int = 0) -> None:
        self.capacity, self.lead = capacity, lead
        self._samples = np.zeros(0, np.float32)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._samples)

    def append(self, samples: Float[np.ndarray, " samples"]) -> None:
        with self._lock:
            lead = [np.zeros(self.lead, np.float32)] if not len(self._samples) else []
            self._samples = np.concatenate([*lead, self._samples, samples.astype(np.float32)])[-self.capacity :]

    def take(self, count: int) -> Float[np.ndarray, " samples"] | None:
        """The oldest ``count`` samples, silence after the last one; None when there are none. What is more than
        three takes late is dropped."""
        with self._lock:
            if not len(self._samples):
                return None
            late = len(self._samples) - 3 * count
            if late > 0:
                self._samples = self._samples[late:]
            out = np.zeros(count, np.float32)
            head = self._samples[:count]
            out[: len(head)] = head
            self._samples = self._samples[count:]
            return out

    def clear(self) -> None:
        with self._lock:
            self._samples = np.zeros(0, np.float32)


@dataclass
class Utterance:
    """Something the agent says; ``ended`` when no more audio will come."""

    id: str
    parts: deque[np.ndarray] = field(default_factory=deque)
    waiting: int = 0  # samples
    played: int = 0  # samples
    ended: bool = False
    fed: float = field(default_factory=time.monotonic)

    def put_back(self, samples: Float[np.ndarray, " samples"]) -> None:
        """What was taken last is to be played after all."""
        self.parts.appendleft(samples)
        self.waiting += len(samples)
        self.played -= len(samples)

    def append(self, samples: Float[np.ndarray, " samples"]) -> None:
        self.parts.append(samples)
        self.waiting += len(samples)
        self.fed = time.monotonic()

    def take(self, count: int) -> Float[np.ndarray, " samples"]:
        """At most ``count`` samples."""
        out = []
        while count and self.parts:
            part = self.parts.popleft()
            if len(part) > count:
                self.parts.appendleft(part[count:])
                part = part[:count]
            out.append(part)
            count -= len(part)
        taken = np.concatenate(out) if out else np.zeros(0, np.float32)
        self.waiting -= len(taken)
        self.played += len(taken)
        return taken


@dataclass
class Made:
    """The last chunk, while it can be taken back."""

    begin: float  # seconds
    frames: int
    listen: np.ndarray | None  # what it heard
    speaking: Utterance | None  # what was being spoken before it
    spoken: np.ndarray  # of the utterance that it speaks
    utterance: Utterance | None


@dataclass(frozen=True)
class Block:
    """One chunk to play: frames and sound of the same moment, and the events that happen in it."""

    time: float  # seconds from the session's start to the first frame
    frames: UInt8[np.ndarray, "frames height width 3"]
    audio: Float[np.ndarray, " samples"]
    state: str  # silence, speak, listen, both
    seconds: float  # to compute it
    events: tuple[dict[str, Any], ...] = ()


class Session:
    """A live performer with its ears, its speech queue and its clock. ``pipeline`` is a warm ``lpm_jax.Pipeline``."""

    def __init__(self, pipeline: Any, image: Any, prompt: str = "", seed: int = 0) -> None:
        self.pipeline = pipeline
        self.samples = pipeline.chunk_frames * pipeline.sample_rate // pipeline.fps  # of one chunk
        self.chunk_seconds = pipeline.chunk_frames / pipeline.fps
        capacity = max(round(LISTEN_SECONDS * pipeline.sample_rate), 2 * self.samples)
        self.listen = Ring(capacity, round(LISTEN_LEAD * pipeline.sample_rate))
        self.frames = 0  # generated so far
        self.seed = seed
        self.prompt = check_prompt(prompt)
        self._image: Any = image  # to open at the next step
        self._stream: Any = None
        self._prompt: str | None = None  # to set at the next step
        self._queue: deque[Utterance] = deque()
        self._speaking: Utterance | None = None
        self._interrupted = False
        self._shown = float("inf")  # seconds, when the interruption was asked for
        self._made: Made | None = None
        self._taken: tuple[np.ndarray, Utterance | None] = (np.zeros(0, np.float32), None)  # by the chunk being made
        self._count = 0
        self._lock = threading.Lock()

    @property
    def time(self) -> float:
        """Seconds generated so far."""
        return self.frames / self.pipeline.fps

    # What a conversation asks for, from any thread.

    def say(self, samples: Float[np.ndarray, " samples"], *, ended: bool = True) -> str:
        """Speak these samples (24 kHz mono) after what is queued, or as the rest of speech that has not ended."""
        with self._lock:
            waiting = (sum(u.waiting for u in self._queue) + len(samples)) / self.pipeline.sample_rate
            if waiting > QUEUED_SECONDS:
                raise InputError(
                    f"speech: expected at most {QUEUED_SECONDS} s waiting to be spoken, found {waiting:.0f} s"
                )
            if not self._queue or self._queue[-1].ended:
                self._count += 1
                self._queue.append(Utterance(f"speech-{self._count}"))
            self._queue[-1].append(samples)
            self._queue[-1].ended = ended
            return self._queue[-1].id

    def end_speech(self) -> None:
        """No more audio will come for the speech now arriving."""
        with self._lock:
            if self._queue:
                self._queue[-1].ended = True

    def interrupt(self, shown: float = float("inf")) -> None:
        """Stop speaking at the next chunk, faded, and forget what is queued; what is said from now on is new speech.
        ``shown`` is what has been played by now, in seconds: a chunk that begins later is dropped and made anew (the
        event ``playback.dropped``)."""
        with self._lock:
            # The samples of the last chunk, or of the one that is being made.
            self._interrupted = self._interrupted or bool(self._queue or len(self._taken[0]))
            self._queue = deque()
            self._shown = shown

    def set_prompt(self, prompt: str) -> None:
        prompt = check_prompt(prompt)
        with self._lock:
            self.prompt = self._prompt = prompt

    def set_character(self, image: Any, seed: int | None = None) -> None:
        """Continue with another picture; the clock and the queues go on."""
        with self._lock:
            self._image = image
            self.seed = self.seed if seed is None else seed

    # What the model's thread does.

    def step(self) -> Block:
        """Generate the next chunk (blocking)."""
        return self.begin()()

    def begin(self) -> Callable[[], Block]:
        """Ask for the next chunk; what comes back waits for it. Sessions that ask before any of them waits may be
        computed at once (``Pipeline.together``)."""
        started = time.perf_counter()
        with self._lock:
            image, self._image = self._image, None
            prompt, self._prompt = self._prompt, None
        if image is not None:  # a picture that cannot be opened leaves the stream as it was
            before, self._stream = self._stream, self.pipeline.open(image, prompt=self.prompt, seed=self.seed)
            if before is not None:
                before.close()
        elif prompt is not None:
            self._stream.set_prompt(prompt)
        with self._lock:
            dropped = self._drop() if image is None else None
            speaking = self._speaking
            speak, events = self._next_speech()
            made = Made(self.time, 0, None, speaking, *self._taken)
        if dropped is None:
            made.listen = self.listen.take(self.samples)
        else:
            made.listen = dropped.listen
            events.insert(0, {"type": "playback.dropped", "time": round(dropped.begin, 4)})
            begun = dropped.utterance
            if begun is not None and begun is not dropped.speaking:  # its beginning was told, and is not heard now
                events.append(_ended(begun, dropped.begin, self.pipeline.sample_rate, interrupted=True))
        sent = self._stream.send(speak, made.listen, undo=True)

        def finish() -> Block:
            chunk = sent.get()
            begin, made.frames = self.time, len(chunk.frames)
            self.frames, self._made = self.frames + made.frames, made
            sound = np.zeros(self.samples, np.float32) if speak is None else speak
            return Block(begin, chunk.frames, sound, chunk.state, time.perf_counter() - started, tuple(events))

        return finish

    def close(self) -> None:
        """The conversation is over."""
        if self._stream is not None:
            self._stream.close()

    def _drop(self) -> Made | None:
        """On an interruption, the last chunk taken back if it is not shown yet. The lock is held."""
        made, self._made = self._made, None
        if not self._interrupted or made is None or made.begin < self._shown + DROP_MARGIN:
            return None
        self._stream.take_back()
        self.frames -= made.frames
        if made.utterance is not None:
            made.utterance.put_back(made.spoken)
        self._speaking = made.speaking
        return made

    def _next_speech(self) -> tuple[np.ndarray | None, list[dict[str, Any]]]:
        """The next chunk of speech, padded with silence, and what it starts or ends. The lock is held."""
        events: list[dict[str, Any]] = []
        rate, now = self.pipeline.sample_rate, self.time
        self._taken = (np.zeros(0, np.float32), None)
        if self._interrupted:
            self._interrupted = False
            current, self._speaking = self._speaking, None
            if current is not None:  # else nothing of it is heard
                tail = current.take(round(FADE_SECONDS * rate))
                events.append(_ended(current, now + len(tail) / rate, rate, interrupted=True))
                if len(tail):
                    return self._pad(tail * np.linspace(1, 0, len(tail), dtype=np.float32)), events
        if not self._queue:
            return None, events
        head = self._queue[0]
        if not head.ended and head.waiting < self.samples and time.monotonic() - head.fed < STARVED_SECONDS:
            return None, events  # more is about to come: do not break words apart
        samples = head.take(self.samples)
        self._taken = (samples, head)
        if self._speaking is not head and len(samples):
            self._speaking = head
            events.append({"type": "agent.speak_started", "speech": head.id, "time": round(now, 4)})
        if head.ended and not head.waiting:
            self._queue.popleft()
            if self._speaking is head:
                events.append(_ended(head, now + len(samples) / rate, rate, interrupted=False))
            self._speaking = None
        return (self._pad(samples) if len(samples) else None), events

    def _pad(self, samples: np.ndarray) -> np.ndarray:
        return np.pad(samples.astype(np.float32), (0, self.samples - len(samples)))


def _ended(speech: Utterance, at: float, rate: int, *, interrupted: bool) -> dict[str, Any]:
    return {
        "type": "agent.speak_ended",
        "speech": speech.id,
        "time": round(at, 4),
        "playback_position": round(speech.played / rate, 4),
        "interrupted": interrupted,
    }
