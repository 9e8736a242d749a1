"""The service through its front door: events and media of a live session, uploads, and who is refused."""

from __future__ import annotations

import base64
import io
import json
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from lpm_jax.media import load_audio
from lpm_jax.serving import engine
from lpm_jax.serving.app import create_app
from lpm_jax.serving.library import KEPT, YOURS, Library
from lpm_jax.serving.meter import Meter
from lpm_jax.serving.websocket import Playhead
from lpm_jax.serving.wire import HEADER, JPEG, KEY, PCM, VP8
from tests.serving.fake_pipeline import FakePipeline, draw_characters
from tests.test_media import tone, write_wav


class Client:
    """One WebSocket and what came over it."""

    def __init__(self, socket) -> None:
        self.socket, self.events, self.audio, self.video = socket, [], [], []

    def send(self, kind: str, **values) -> None:
        self.socket.send_text(json.dumps({"type": kind, **values}))

    def read(self) -> dict:
        """The next event; media on the way is kept."""
        while True:
            message = self.socket.receive()
            if message["type"] == "websocket.close":
                raise WebSocketDisconnect(message["code"])
            if message.get("text") is not None:
                self.events.append(json.loads(message["text"]))
                return self.events[-1]
            kind, flags, zero, index, seconds = HEADER.unpack(message["bytes"][:16])
            payload = message["bytes"][16:]
            assert zero == 0
            if kind == PCM:
                self.audio.append((seconds, np.frombuffer(payload, "<i2").astype(np.float32) / 32767))
            else:
                self.video.append((kind, flags, index, seconds, payload))

    def until(self, kind: str, limit: int = 60) -> dict:
        for _ in range(limit):
            event = self.read()
            if event["type"] == kind:
                return event
        raise AssertionError(f"no {kind} in {limit} events")


@pytest.fixture
def service(tmp_path):
    draw_characters(tmp_path / "characters")
    (tmp_path / "samples").mkdir()
    write_wav(tmp_path / "samples" / "hello.wav", [tone(1.2, 24_000, level=0.5)], 24_000)
    pipeline = FakePipeline(0.005)
    app = create_app(lambda: pipeline, library=Library(tmp_path), defaults={"seed": 7})
    with TestClient(app) as client:
        while not app.state.engine.ready:
            time.sleep(0.01)
        client.pipeline, client.engine = pipeline, app.state.engine
        yield client


@contextmanager
def conversation(service, **settings):
    with service.websocket_connect("/v1/ws") as socket:
        client = Client(socket)
        client.send("session.update", **settings)
        created = client.until("session.created")
        assert created["fps"] == 24 and created["chunk_seconds"] == 0.5 and created["seed"] == 7
        yield client


def test_starts_idle_and_says_what_it_is(service):
    with conversation(service, prompt="calm") as client:
        assert client.until("disclosure")["ai_generated"] is True
        stats = client.until("stats")
        assert stats["time"] == 0 and stats["state"] == "silence" and stats["compute_ms"] > 0
        assert client.until("stats")["time"] == 0.5
        assert service.pipeline.streams[-1].prompt == "calm"
        assert np.array_equal(client.audio[0][1], np.zeros(12_000))


@pytest.mark.parametrize(("codec", "kind"), [("vp8", VP8), ("jpeg", JPEG)])
def test_video(service, codec, kind):
    with conversation(service, video=codec) as client:
        for _ in range(3):
            client.until("stats")
    assert len(client.video) >= 24 and {v[0] for v in client.video} == {kind}
    assert client.video[0][1] & KEY
    assert [v[2] for v in client.video[:24]] == list(range(24))
    assert np.allclose([v[3] for v in client.video[:24]], np.arange(24) / 24)
    if codec == "jpeg":
        assert Image.open(io.BytesIO(client.video[5][4])).size == (128, 128)
    else:
        import av

        decoder = av.CodecContext.create("vp8", "r")
        pictures = [f for v in client.video for f in decoder.decode(av.Packet(v[4]))]
        truth = service.pipeline.streams[-1].image
        assert len(pictures) == len(client.video)
        assert np.abs(pictures[0].to_ndarray(format="rgb24").astype(int) - truth).mean() < 12


def test_is_paced_like_playback(service):
    with conversation(service) as client:
        began = time.monotonic()
        for _ in range(5):
            client.until("stats")
        took = time.monotonic() - began
    assert 1.2 < took < 10  # five chunks of 0.5 s, the first two at once; how late they are is the machine's affair


def test_sample_is_spoken(service):
    with conversation(service) as client:
        client.send("agent.speak", sample="hello")
        started = client.until("agent.speak_started")
        ended = client.until("agent.speak_ended")
        assert ended["speech"] == started["speech"] and not ended["interrupted"]
        assert ended["time"] - started["time"] == pytest.approx(1.2, abs=0.01)
        client.until("stats")
        client.until("stats")
    sound = np.concatenate([samples for _, samples in sorted(client.audio, key=lambda a: a[0])])
    begin = round(started["time"] * 24_000)
    assert not sound[:begin].any()
    assert np.abs(sound[begin : begin + 28_800] - tone(1.2, 24_000, level=0.5)).max() < 1e-3
    assert {"speak", "silence"} <= {e.get("state") for e in client.events}


def test_streamed_speech_and_interrupt(service):
    with conversation(service) as client:
        speech = (tone(0.25, 24_000) * 32767).astype("<i2").tobytes()
        for _ in range(40):  # 10 s, faster than real time
            client.send("agent.speak", audio=base64.b64encode(speech).decode())
        client.send("agent.speak_end")
        started = client.until("agent.speak_started")
        for _ in range(2):  # one chunk plays, one waits
            last = client.until("stats")
        client.send("playback", time=last["time"] - 0.3)
        client.send("agent.interrupt")
        sent = time.monotonic()
        dropped = client.until("playback.dropped")
        ended = client.until("agent.speak_ended")
        assert ended["interrupted"] and time.monotonic() - sent < 5  # made anew at once, on any machine
        assert dropped["time"] == last["time"] > started["time"]
        assert ended["time"] - (last["time"] - 0.3) <= 0.5 + 0.1  # from the interruption to silence
        client.until("stats")
        assert client.until("stats")["state"] == "silence"
        client.until("stats")  # a chunk's sound follows its stats
    assert not client.audio[-1][1].any()


def test_microphone_reaches_the_model(service):
    with conversation(service) as client:
        client.until("stats")
        block = (tone(0.1, 24_000, 300, 0.4) * 32767).astype("<i2").tobytes()
        for i in range(12):
            if i % 2:
                client.socket.send_bytes(block)
            else:
                client.send("input_audio_buffer.append", audio=base64.b64encode(block).decode())
        for _ in range(4):
            if client.until("stats")["state"] == "listen":
                break
        else:
            raise AssertionError("the character never listened")
    heard = [listen for _, listen in service.pipeline.streams[-1].calls if listen is not None]
    assert 0.35 < max(np.abs(h).max() for h in heard) < 0.45
    assert all(not samples.any() for _, samples in client.audio)  # never echoed


def test_prompt_character_and_picture(service):
    data = io.BytesIO()
    Image.new("RGB", (300, 400), (10, 200, 30)).save(data, "PNG")
    kept = service.post("/v1/images", files={"file": ("me.png", data.getvalue())}).json()
    with conversation(service, character="ada") as client:
        client.until("stats")
        client.send("prompt.update", prompt="nods")
        client.send("session.update", character=kept["id"])
        assert client.until("session.updated")["character"] == kept["id"]
        for _ in range(3):
            client.until("stats")
        assert len(service.pipeline.streams) == 2 and service.pipeline.streams[-1].prompt == "nods"
        assert tuple(service.pipeline.streams[-1].image[5, 5]) == (10, 200, 30)
        assert client.events[-1]["time"] >= 1.0  # the clock went on


def test_a_seed_alone_begins_anew(service):
    with conversation(service) as client:
        client.until("stats")
        client.send("session.update", seed=8)
        assert client.until("session.updated")["seed"] == 8
        for _ in range(3):
            client.until("stats")
        assert len(service.pipeline.streams) == 2


def test_what_is_refused_does_not_take_the_rest_with_it(service):
    """A page that comes back with a picture that the service has forgotten."""
    with service.websocket_connect("/v1/ws") as socket:
        client = Client(socket)
        client.send("session.update", character="gone", prompt="calm", video="jpeg")
        created = client.until("session.created")
        assert (created["character"], created["prompt"], created["video"]) == ("ada", "calm", "jpeg")
        assert any(event["type"] == "error" and "gone" in event["message"] for event in client.events)
        client.until("stats")
        assert service.pipeline.streams[-1].prompt == "calm"


def test_what_the_command_line_gave_stays(service):
    library = service.app.state.library
    library.images[YOURS], library.speech[YOURS] = np.full((128, 128, 3), 9, np.uint8), tone(0.5, 24_000, level=0.5)
    for _ in range(KEPT + 3):
        library.keep(library.images, np.zeros((128, 128, 3), np.uint8))
    assert len(library.images) == KEPT + 1 and library.image(YOURS)[0, 0, 0] == 9
    assert [entry["name"] for entry in service.get("/v1/samples").json()] == [YOURS, "hello"]
    sound = load_audio(io.BytesIO(service.get(f"/v1/samples/{YOURS}").content))
    np.testing.assert_allclose(sound, library.speech[YOURS], atol=1e-3)
    with conversation(service) as client:
        client.send("agent.speak", sample=YOURS)
        client.until("agent.speak_started")


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ("{", "JSON"),
        ("[1]", "JSON"),
        ('"x"', "JSON"),
        ('{"type": "fly"}', "fly"),
        ('{"type": "agent.speak"}', "agent.speak"),
        ('{"type": "agent.speak", "sample": "../../etc/passwd"}', "speech"),
        ('{"type": "session.update", "character": "../x"}', "character"),
        ('{"type": "session.update", "seed": "x"}', "expected"),
        ('{"type": "input_audio_buffer.append", "audio": "#"}', "base64"),
        ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "odd number"),
        ('{"type": "prompt.update", "prompt": 3}', "prompt"),
        (json.dumps({"type": "prompt.update", "prompt": "x" * 3000}), "2,000"),
        ('{"type": "playback"}', "time"),
        ('{"type": "playback", "time": NaN}', "time"),
        ('{"type": "playback", "time": "-inf"}', "time"),
        ('{"type": "session.update", "seed": 1e999}', "infinity"),
    ],
)
def test_bad_events_are_answered_and_survived(service, message, word):
    with conversation(service) as client:
        client.socket.send_text(message)
        error = client.until("error")
        assert word in error["message"] and "\n" not in error["message"]
        client.until("stats")


def test_second_session_is_told_busy_and_the_place_is_freed(service):
    with conversation(service), service.websocket_connect("/v1/ws") as other:
        second = Client(other)
        assert second.read()["code"] == "busy"
        assert second.read() == {"type": "session.closed", "reason": "busy"}
        with pytest.raises(WebSocketDisconnect) as closed:
            second.read()
        assert closed.value.code == 1013
    deadline = time.monotonic() + 5
    while service.engine.occupied and time.monotonic() < deadline:
        time.sleep(0.02)
    with conversation(service) as client:
        client.until("stats")


def test_several_sessions_take_turns(service):
    service.engine.sessions = 2
    with conversation(service) as one, conversation(service, prompt="smiles") as two:
        one.send("agent.speak", sample="hello")
        started = one.until("agent.speak_started")
        assert one.until("stats")["state"] == "speak"
        for client in (one, two):
            for _ in range(3):
                client.until("stats")
        assert all(e.get("state") in (None, "silence") for e in two.events)  # nobody hears the other
        assert started["speech"] not in json.dumps(two.events)
        with service.websocket_connect("/v1/ws") as third:
            assert "2 at a time" in Client(third).read()["message"]
    assert [s.prompt for s in service.pipeline.streams[-2:]] == ["", "smiles"]


def test_a_failing_model_closes_the_session(service, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    with conversation(service) as client:
        client.until("stats")
        monkeypatch.setattr(service.pipeline.streams[-1], "send", fail)
        assert "out of memory" in client.until("error")["message"]
        assert client.until("session.closed")["reason"] == "failed"
    with conversation(service) as client:
        client.until("stats")


def test_other_sites_are_refused(service):
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"host": "evil.example"}):
        with pytest.raises(WebSocketDisconnect), service.websocket_connect("/v1/ws", headers=headers):
            pass
        assert service.get("/v1/characters", headers=headers).status_code == 403
    assert service.get("/v1/characters", headers={"origin": "http://testserver"}).status_code == 200


# --- HTTP


def test_lists_and_health(service):
    assert service.get("/healthz").json() == {"state": "alive"}
    assert service.get("/readyz").status_code == 200
    names = [c["name"] for c in service.get("/v1/characters").json()]
    assert names == ["ada", "bo", "cy"]
    for character in service.get("/v1/characters").json():
        assert service.get(character["image"]).headers["content-type"] == "image/png"
    (sample,) = service.get("/v1/samples").json()
    assert sample["name"] == "hello" and len(service.get(sample["audio"]).content) > 50_000
    assert service.get("/v1/images/none").status_code == 404
    assert service.get("/v1/samples/..%2f..%2fx").status_code == 404
    page = service.get("/")
    assert "<canvas" in page.text and "default-src 'self'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("path", "data", "word"),
    [
        ("/v1/images", b"no picture", "picture"),
        ("/v1/images", b"", "picture"),
        ("/v1/speech", b"no sound", "sound"),
        ("/v1/speech", b"", "sound"),
    ],
)
def test_bad_uploads(service, path, data, word):
    reply = service.post(path, files={"file": ("x.bin", data)})
    assert reply.status_code == 400 and word in reply.json()["error"] and "x.bin" in reply.json()["error"]


def test_large_uploads_are_refused(service):
    reply = service.post("/v1/images", files={"file": ("x.png", bytes(20_100_000))})
    assert reply.status_code == 413 and "20 MB" in reply.json()["error"]


def test_uploaded_speech(service, tmp_path):
    path = write_wav(tmp_path / "u.wav", [tone(0.6, 16_000)], 16_000)
    kept = service.post("/v1/speech", files={"file": ("u.wav", path.read_bytes())}).json()
    assert kept["seconds"] == pytest.approx(0.6, abs=0.01)
    with conversation(service) as client:
        client.send("agent.speak", speech=kept["id"])
        assert client.until("agent.speak_ended")["playback_position"] == pytest.approx(0.6, abs=0.01)


def test_warming_up_and_a_model_that_does_not_load(tmp_path):
    draw_characters(tmp_path / "characters")

    def load():
        time.sleep(0.3)
        raise ValueError("no weights")

    app = create_app(load, library=Library(tmp_path))
    with TestClient(app) as client:
        assert client.get("/readyz").json()["state"] == "warming_up"
        with client.websocket_connect("/v1/ws") as socket:
            talk = Client(socket)
            assert talk.read() == {"type": "status", "state": "warming_up"}
            assert "no weights" in talk.until("error")["message"]
        assert client.get("/readyz").json()["state"] == "failed"


def test_figures_of_a_live_session(service):
    assert service.get("/v1/stats").json()["sessions"] == []
    with conversation(service) as client:
        for _ in range(4):
            client.until("stats")
        told = service.get("/v1/stats").json()
        assert told["sessions_allowed"] == 1 and len(told["sessions"]) == 1
        found = told["sessions"][0]
        assert found["seconds"] >= 1.5 and found["underruns"] == 0
        assert set(told["lanes"]) <= set(found)
        assert 5 <= found["model"]["p50"] <= found["model"]["p95"] <= found["model"]["p99"]  # the fake one sleeps 5 ms
        assert 0 <= found["queue"]["p50"] < 1000 and found["encode"]["p50"] > 0
    for _ in range(100):  # the session ends when its task has noticed
        if not service.get("/v1/stats").json()["sessions"]:
            break
        time.sleep(0.02)
    assert service.get("/v1/stats").json()["sessions"] == []


def test_percentiles_by_hand():
    meter = Meter()
    assert meter.figures() == {}
    for value in range(1, 101):
        meter.add(queue=0.0, model=value / 1000)
    assert meter.figures() == {
        "queue": {"p50": 0.0, "p95": 0.0, "p99": 0.0},
        "model": {"p50": 50.5, "p95": 95.05, "p99": 99.01},
    }
    for _ in range(10_000):
        meter.add(queue=0.001, model=0.002)
    assert meter.figures()["model"] == {"p50": 2.0, "p95": 2.0, "p99": 2.0} and meter.chunks == 10_100


def test_an_underrun_is_counted():
    playhead = Playhead()
    playhead.set(0.0)
    time.sleep(0.02)
    assert playhead.get(0.01) == 0.01 and playhead.underruns == 1  # it holds the last frame
    assert playhead.get(10.0) < 1 and playhead.underruns == 1


def test_a_stalled_model_ends_the_session_and_not_the_service(service, monkeypatch):
    monkeypatch.setattr(engine, "STALL_SECONDS", 0.3)
    service.pipeline.delay = 1.0
    with conversation(service) as client:
        error = client.until("error")
        assert error["code"] == "internal" and "the model stalled: no chunk within 0.3 s" in error["message"]
        assert client.until("session.closed")["reason"] == "failed"
    service.pipeline.delay = 0.005
    time.sleep(1.0)  # the thread comes back
    with conversation(service) as client:
        assert client.until("stats")["time"] == 0
