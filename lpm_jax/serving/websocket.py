"""A conversation over one WebSocket: JSON events as text, media as binary messages (see ``wire``).

In:  ``session.update`` {character, prompt, seed, video: vp8 | jpeg}, ``input_audio_buffer.append`` {audio} or a binary
message (the user), ``agent.speak`` {audio | sample | speech}, ``agent.speak_end``, ``agent.interrupt``,
``prompt.update`` {prompt}, ``playback`` {time}, ``session.keep_alive``.
Out: ``status``, ``session.created``, ``session.updated``, ``disclosure``, ``agent.speak_started``,
``agent.speak_ended``, ``playback.dropped`` {time} (what was sent from then on is not to be played: it comes anew),
``stats`` (one per chunk), ``error`` {code, message}, ``session.closed`` {reason}.
Audio in events is base64 of PCM16, 24 kHz, mono.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import math
import secrets
import time
from typing import Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from lpm_jax.errors import InputError, one_line
from lpm_jax.media import check_prompt, load_audio
from lpm_jax.serving.engine import Engine
from lpm_jax.serving.library import Library
from lpm_jax.serving.meter import Meter
from lpm_jax.serving.session import Block, Session
from lpm_jax.serving.wire import VideoEncoder, pack_audio

log = logging.getLogger(__name__)

HELLO_SECONDS = 2.0  # a client that has not sent session.update by then gets the defaults
SEND_SECONDS = 10.0  # a client that does not read for so long is gone
BUSY = 1013  # close code: try again later


class Playhead:
    """Where the listener is: real time since the first chunk, corrected by what the client reports, never past what was
    generated."""

    def __init__(self) -> None:
        self._time, self._at = 0.0, 0.0
        self._running = False
        self.underruns = 0  # times that playback had nothing more to show

    def set(self, seconds: float) -> None:
        self._time, self._at, self._running = seconds, time.monotonic(), True

    def get(self, generated: float) -> float:
        if not self._running:
            return 0.0
        now = self._time + time.monotonic() - self._at
        if now > generated:  # an underrun: playback holds its last frame
            self.underruns += 1
            self.set(generated)
        return min(now, generated)


class Conversation:
    """One client and its session, from hello to goodbye."""

    def __init__(self, socket: WebSocket, engine: Engine, library: Library, defaults: dict[str, Any]) -> None:
        self.socket, self.engine, self.library = socket, engine, library
        self.settings = {"character": None, "prompt": "", "seed": 0, "video": "vp8", **defaults}
        self.session: Session | None = None
        self.playhead, self.meter = Playhead(), Meter()
        self.hello = asyncio.Event()
        self.sending = asyncio.Lock()
        self.id = secrets.token_urlsafe(9)

    async def run(self) -> None:
        await self.socket.accept()
        if self.engine.occupied:
            held = "one at a time" if self.engine.sessions == 1 else f"{self.engine.sessions} at a time"
            await self.error("busy", f"another session is live; this service holds {held}, try again later")
            await self.close("busy", BUSY)
            return
        self.engine.live += 1
        self.engine.watched.append(self)
        tasks = [asyncio.create_task(self.receive()), asyncio.create_task(self.perform())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (TimeoutError, WebSocketDisconnect):
            pass
        except Exception as error:
            if self.engine.error is None:  # what loading raised was told when it did
                log.exception("session %s failed", self.id)
            await self.error("internal", one_line(error))
            await self.close("failed", 1011)
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.wait(tasks)
            finally:
                if self.session is not None:
                    self.engine.post(self.session.close)
                self.engine.live -= 1
                self.engine.watched.remove(self)

    # Out.

    async def perform(self) -> None:
        """Generate and send for as long as the client stays."""
        if not self.engine.ready:
            await self.send({"type": "status", "state": "warming_up"})
        pipeline = await self.engine.wait()
        with_hello = asyncio.wait_for(self.hello.wait(), HELLO_SECONDS)
        await asyncio.gather(with_hello, return_exceptions=True)
        began = time.perf_counter()
        try:
            session = self.session = self.new_session(pipeline)
        except InputError as error:  # an upload that is gone by now
            await self.error("bad_input", str(error))
            await self.close("bad_input", 1003)
            return
        encoder = VideoEncoder(self.settings["video"], pipeline.size, pipeline.fps)
        await self.send(
            {
                "type": "session.created",
                "session": self.id,
                "fps": pipeline.fps,
                "size": pipeline.size,
                "sample_rate": pipeline.sample_rate,
                "chunk_seconds": session.chunk_seconds,
                **self.settings,
            }
        )
        await self.send({"type": "disclosure", "ai_generated": True, "text": "AI-generated"})
        first_frame, pace = 0.0, 0.0
        while True:
            ahead = session.time - self.playhead.get(session.time)
            if ahead > session.chunk_seconds:  # one chunk plays, one waits
                await asyncio.sleep(min(ahead - session.chunk_seconds, 0.02))
                continue
            asked = time.perf_counter()
            try:
                block: Block = await self.engine.chunk(session)
            except InputError as error:
                await self.error("bad_input", str(error))
                if session.time == 0:
                    await self.close("bad_input", 1003)
                    return
                continue
            made = time.perf_counter()
            if any(event["type"] == "playback.dropped" for event in block.events):
                encoder.rewind(round(block.time * pipeline.fps))
            messages = await asyncio.to_thread(lambda frames: list(encoder.encode(frames)), block.frames)
            encoded = time.perf_counter()
            first_frame = first_frame or encoded - began
            pace = block.seconds if not pace else 0.8 * pace + 0.2 * block.seconds
            duration = len(block.frames) / pipeline.fps
            stats = {
                "type": "stats",
                "time": round(block.time, 4),
                "duration": duration,
                "state": block.state,
                "compute_ms": round(1000 * block.seconds, 1),
                "realtime_factor": round(duration / max(pace, 1e-6), 2),
                "first_frame_ms": round(1000 * first_frame, 1),
                "ahead_ms": round(1000 * max(ahead, 0.0), 1),
                "listen_ms": round(1000 * len(session.listen) / pipeline.sample_rate, 1),
            }
            for event in (*block.events, stats):
                await self.send(event)
            audio = pack_audio(block.audio, round(block.time * pipeline.sample_rate), block.time)
            for message in (audio, *messages):
                await self.send(message)
            queue = max(made - asked - block.seconds, 0.0)
            self.meter.add(queue=queue, model=block.seconds, encode=encoded - made, send=time.perf_counter() - encoded)
            if block.time == 0:
                self.playhead.set(0.0)

    def figures(self) -> dict[str, Any]:
        """What ``/v1/stats`` tells of this session."""
        seconds = round(self.session.time, 2) if self.session else 0.0
        return {"seconds": seconds, "underruns": self.playhead.underruns, **self.meter.figures()}

    def new_session(self, pipeline: Any) -> Session:
        settings = self.settings
        settings["character"] = settings["character"] or self.library.first_character().stem
        return Session(pipeline, self.library.image(settings["character"]), settings["prompt"], settings["seed"])

    async def send(self, message: dict[str, Any] | bytes) -> None:
        async with self.sending:
            if isinstance(message, bytes):
                await asyncio.wait_for(self.socket.send_bytes(message), SEND_SECONDS)
            else:
                await asyncio.wait_for(self.socket.send_text(json.dumps(message)), SEND_SECONDS)

    async def error(self, code: str, message: str) -> None:
        await self.send({"type": "error", "code": code, "message": message})

    async def close(self, reason: str, code: int) -> None:
        await self.send({"type": "session.closed", "reason": reason})
        await self.socket.close(code)

    # In.

    async def receive(self) -> None:
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code") or 1000)
            try:
                if message.get("bytes") is not None:
                    self.hear(message["bytes"])
                else:
                    await self.handle(json.loads(message.get("text") or ""))
            except InputError as error:
                await self.error("bad_input", str(error))
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
                await self.error("bad_event", f"expected a JSON event, found {one_line(error, 120)}")

    async def handle(self, event: dict[str, Any]) -> None:
        kind, session = event.get("type"), self.session
        if kind == "session.update":
            await self.update(event)
        elif kind == "session.keep_alive":
            pass
        elif session is None:
            raise InputError(f"{kind}: expected after session.created, found before it")
        elif kind == "input_audio_buffer.append":
            self.hear(_base64(event))
        elif kind == "agent.speak":
            await self.speak(session, event)
        elif kind == "agent.speak_end":
            session.end_speech()
        elif kind == "agent.interrupt":
            session.interrupt(self.playhead.get(session.time))
        elif kind == "prompt.update":
            session.set_prompt(event.get("prompt", ""))
        elif kind == "playback":
            at = float(event["time"])
            if not math.isfinite(at):
                raise InputError(f"time: expected seconds, found {at}")
            self.playhead.set(min(max(at, 0.0), session.time))
        else:
            raise InputError(f"type: expected an event this service knows, found {str(kind)[:60]!r}")

    async def update(self, event: dict[str, Any]) -> None:
        """Takes what is asked for and known, though the rest is refused: an upload may be gone, the prompt is not."""
        before, settings, refused = self.settings, dict(self.settings), None
        for name, read in (("character", self.known), ("prompt", check_prompt), ("seed", _seed), ("video", _codec)):
            if event.get(name) is not None and not (name == "video" and self.session):
                try:
                    settings[name] = read(event[name])
                except (InputError, ValueError, TypeError, OverflowError) as error:
                    refused = refused or error
        self.settings = settings
        self.hello.set()
        if self.session is not None:
            await self.change(before, settings)
        if refused is not None:
            raise refused

    async def change(self, before: dict[str, Any], settings: dict[str, Any]) -> None:
        """The live session goes on with other settings."""
        if settings["prompt"] != before["prompt"]:
            self.session.set_prompt(settings["prompt"])
        if (settings["character"], settings["seed"]) != (before["character"], before["seed"]):
            self.session.set_character(self.library.image(settings["character"]), settings["seed"])
        await self.send({"type": "session.updated", **settings})

    def known(self, character: Any) -> str:
        self.library.image(str(character))
        return str(character)

    async def speak(self, session: Session, event: dict[str, Any]) -> None:
        if "audio" in event:
            session.say(_samples(_base64(event)), ended=bool(event.get("end", False)))
            return
        name = event.get("sample") or event.get("speech")
        if not name:
            raise InputError("agent.speak: expected audio, sample or speech, found none of them")
        samples = await asyncio.to_thread(load_audio, self.library.voice(str(name)), session.pipeline.sample_rate)
        session.say(samples)

    def hear(self, pcm: bytes) -> None:
        if self.session is not None:
            self.session.listen.append(_samples(pcm))


def _seed(value: Any) -> int:
    return int(value) & 0x7FFFFFFF


def _codec(value: Any) -> str:
    if value not in ("vp8", "jpeg"):
        raise InputError(f"video: expected vp8 or jpeg, found {str(value)[:60]!r}")
    return value


def _base64(event: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(event["audio"], validate=True)
    except (KeyError, TypeError, binascii.Error):
        raise InputError("audio: expected base64 of PCM16 samples, found something else") from None


def _samples(pcm: bytes) -> np.ndarray:
    if len(pcm) % 2:
        raise InputError(f"audio: expected 16-bit samples, found an odd number of bytes ({len(pcm)})")
    return np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
