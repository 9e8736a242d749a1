"""One conversation without a network: what goes in reaches the right chunk, nothing else does."""

from __future__ import annotations

import numpy as np
import pytest

from lpm_jax.errors import InputError
from lpm_jax.serving import session as module
from lpm_jax.serving.session import Ring, Session
from tests.serving.fake_pipeline import FakePipeline

CHUNK = 12_000


@pytest.fixture
def session():
    return Session(FakePipeline(0.0), np.full((128, 128, 3), 90, np.uint8))


def ramp(count: int, start: int = 0) -> np.ndarray:
    return ((np.arange(start, start + count) % 1000 + 1) / 2000).astype(np.float32)


def kinds(block) -> list[str]:
    return [event["type"] for event in block.events]


def test_ring_drops_its_oldest():
    ring = Ring(capacity=100)
    ring.append(np.arange(80, dtype=np.float32))
    ring.append(np.arange(80, 160, dtype=np.float32))
    assert len(ring) == 100
    assert np.array_equal(ring.take(40), np.arange(60, 100))
    assert np.array_equal(ring.take(40), np.arange(100, 140))
    assert np.array_equal(ring.take(40), [*range(140, 160), *[0] * 20])
    assert ring.take(40) is None


def test_ring_catches_up_and_leads():
    ring = Ring(capacity=1000)
    ring.append(np.arange(500, dtype=np.float32))
    assert ring.take(100)[0] == 200  # three takes are kept
    ring = Ring(capacity=1000, lead=10)
    ring.append(np.ones(20, np.float32))
    ring.append(np.ones(5, np.float32))
    assert np.array_equal(ring.take(40), [*[0] * 10, *[1] * 25, *[0] * 5])


def test_idle_goes_on(session):
    blocks = [session.step() for _ in range(4)]
    assert [b.time for b in blocks] == [0.0, 0.5, 1.0, 1.5] and session.time == 2.0
    assert all(b.state == "silence" and not b.audio.any() and len(b.audio) == CHUNK for b in blocks)
    assert session._stream.calls == [(None, None)] * 4


def test_speech_is_heard_whole_and_in_order(session):
    session.step()
    speech = ramp(2 * CHUNK + 5_000)
    session.say(speech)
    blocks = [session.step() for _ in range(4)]
    heard = np.concatenate([b.audio for b in blocks])
    assert np.array_equal(heard[: len(speech)], speech) and not heard[len(speech) :].any()
    assert [b.state for b in blocks] == ["speak", "speak", "speak", "silence"]
    assert kinds(blocks[0]) == ["agent.speak_started"] and blocks[0].events[0]["time"] == 0.5
    (ended,) = blocks[2].events
    assert ended["time"] == pytest.approx(0.5 + len(speech) / 24_000, abs=1e-4)
    assert ended["playback_position"] == pytest.approx(len(speech) / 24_000, abs=1e-4) and not ended["interrupted"]
    # The model saw exactly what the user hears.
    assert np.array_equal(np.concatenate([c[0] for c in session._stream.calls[1:4]]), heard[: 3 * CHUNK])


def test_streamed_speech_is_not_broken(session, monkeypatch):
    session.say(ramp(8_000), ended=False)
    assert session.step().state == "silence"  # less than a chunk so far: wait for more
    session.say(ramp(8_000, 8_000), ended=False)
    first = session.step()
    assert np.array_equal(first.audio, ramp(CHUNK)) and kinds(first) == ["agent.speak_started"]
    assert session.step().state == "silence"
    session.end_speech()
    last = session.step()
    assert np.array_equal(last.audio[:4_000], ramp(4_000, CHUNK)) and kinds(last) == ["agent.speak_ended"]
    monkeypatch.setattr(module, "STARVED_SECONDS", 0.0)  # a client that never says it has ended
    session.say(ramp(3_000), ended=False)
    assert np.array_equal(session.step().audio[:3_000], ramp(3_000))


def test_utterances_follow_each_other(session):
    one, two = session.say(ramp(3_000)), session.say(ramp(4_000))
    assert one != two
    a, b = session.step(), session.step()
    assert a.audio[:3_000].all() and not a.audio[3_000:].any() and b.audio[:4_000].all()
    assert [e["speech"] for e in (*a.events, *b.events)] == [one, one, two, two]


def test_interrupt_fades_within_one_chunk(session):
    session.say(np.full(10 * CHUNK, 0.5, np.float32))
    session.say(np.full(10 * CHUNK, 0.5, np.float32))  # queued: forgotten too
    session.step()
    session.interrupt()
    block = session.step()
    fade = 720  # 30 ms
    assert np.allclose(block.audio[:fade], np.linspace(0.5, 0, fade), atol=1e-3) and not block.audio[fade:].any()
    (ended,) = block.events
    assert ended["interrupted"] and ended["playback_position"] == pytest.approx((CHUNK + fade) / 24_000, abs=1e-4)
    assert session.step().state == "silence"
    session.interrupt()  # nothing to interrupt
    session.say(ramp(3_000))
    assert session.step().state == "speak"


def test_a_chunk_that_was_not_shown_is_dropped_and_made_anew(session):
    """Two chunks made, the first half played: the second goes, and what replaces it begins with the fade."""
    session.say(np.full(10 * CHUNK, 0.5, np.float32))
    session.step()
    session.listen.append(ramp(CHUNK))
    dropped = session.step()
    assert (dropped.time, session.time) == (0.5, 1.0)
    session.interrupt(shown=0.25)
    block = session.step()
    assert kinds(block) == ["playback.dropped", "agent.speak_ended"] and block.events[0]["time"] == 0.5
    assert (block.time, session.time) == (0.5, 1.0)
    fade = 720
    assert np.allclose(block.audio[:fade], np.linspace(0.5, 0, fade), atol=1e-3) and not block.audio[fade:].any()
    assert block.events[1]["playback_position"] == pytest.approx((CHUNK + fade) / 24_000, abs=1e-4)
    first, second, taken, third = session._stream.calls
    assert taken == "taken back" and first[1] is None
    assert np.array_equal(third[1], second[1]) and third[1].any()  # what the user said is not lost
    assert session.step().events == () and session.time == 1.5


def test_a_chunk_that_is_as_good_as_shown_stays(session):
    session.say(np.full(10 * CHUNK, 0.5, np.float32))
    session.step()
    session.step()
    session.interrupt(shown=0.45)  # the second begins in 50 ms
    block = session.step()
    assert kinds(block) == ["agent.speak_ended"] and block.time == 1.0 and "taken back" not in session._stream.calls


def test_speech_that_began_in_the_dropped_chunk_was_never_heard(session):
    session.step()
    session.say(np.full(CHUNK // 2, 0.5, np.float32))
    assert kinds(session.step()) == ["agent.speak_started", "agent.speak_ended"]  # all of it is in this chunk
    session.interrupt(shown=0.1)
    block = session.step()
    assert not block.audio.any() and kinds(block) == ["playback.dropped", "agent.speak_ended"]
    ended = block.events[1]
    assert ended["interrupted"] and ended["playback_position"] == 0 and ended["time"] == 0.5


def test_only_the_last_chunk_is_dropped_and_only_once(session):
    session.say(np.full(10 * CHUNK, 0.5, np.float32))
    for _ in range(3):
        session.step()
    session.interrupt(shown=0.0)
    assert session.step().time == 1.0
    session.say(np.full(CHUNK, 0.5, np.float32))
    session.step()
    session.set_character(np.full((128, 128, 3), 200, np.uint8))
    session.interrupt(shown=0.0)  # the new picture's stream has made nothing yet
    block = session.step()
    assert block.time == 2.0 and "taken back" not in session._stream.calls


def test_interrupt_before_anything_was_heard(session):
    session.say(ramp(CHUNK))
    session.interrupt()
    block = session.step()
    assert block.state == "silence" and block.events == ()


def test_what_is_said_after_an_interruption_is_new_speech(session):
    """Within the same chunk, and though what was interrupted had not ended."""
    session.say(np.full(2 * CHUNK, 0.5, np.float32), ended=False)
    session.step()
    session.interrupt()
    answer = session.say(ramp(3_000))
    faded, told = session.step(), session.step()
    assert kinds(faded) == ["agent.speak_ended"] and faded.events[0]["interrupted"]
    assert not faded.audio[720:].any()
    assert kinds(told) == ["agent.speak_started", "agent.speak_ended"] and told.events[0]["speech"] == answer
    assert np.array_equal(told.audio[:3_000], ramp(3_000))


def test_an_interruption_before_anything_was_heard_leaves_what_comes_after_it(session):
    session.say(np.full(CHUNK, 0.5, np.float32))
    session.interrupt()
    session.say(ramp(3_000))
    session.interrupt()  # again: this too is forgotten
    last = session.say(ramp(4_000))
    block = session.step()
    assert block.events[0]["speech"] == last and np.array_equal(block.audio[:4_000], ramp(4_000))


@pytest.mark.parametrize("shown", [0.2, 0.6])
def test_an_interruption_while_the_last_of_speech_is_made(session, shown):
    """Its queue is empty by then; a chunk that is not shown yet is made anew, one that is, ends."""
    session.step()
    session.say(np.full(CHUNK, 0.5, np.float32))
    stream, send = session._stream, session._stream.send

    def interrupted(*sound, **how):
        session.interrupt(shown)
        return send(*sound, **how)

    stream.send = interrupted
    session.step()
    stream.send = send
    block = session.step()
    assert not block.audio.any()
    dropped = ["playback.dropped", "agent.speak_ended"]
    assert kinds(block) == (dropped if shown < 0.5 else [])
    assert block.time == (0.5 if shown < 0.5 else 1.0)


def test_the_ring_holds_two_long_chunks():
    pipeline = FakePipeline(0.0)
    pipeline.chunk_frames = 96
    session = Session(pipeline, np.zeros((128, 128, 3), np.uint8))
    session.listen.append(ramp(170_000))
    assert len(session.listen) == 170_000 + 2_400


def test_microphone_reaches_listen(session):
    session.step()
    session.listen.append(ramp(CHUNK))
    block = session.step()
    assert block.state == "listen" and not block.audio.any()  # the user is not played back
    heard = session._stream.calls[1][1]
    assert np.array_equal(heard[2_400:], ramp(CHUNK - 2_400))  # after the lead
    session.say(ramp(CHUNK))
    assert session.step().state == "both"


def test_prompt_and_character_change_at_the_next_chunk(session):
    session.step()
    first = session._stream
    session.set_prompt("smiles")
    assert first.prompt == ""
    session.step()
    assert first.prompt == "smiles"
    session.set_character(np.full((128, 128, 3), 200, np.uint8))
    block = session.step()
    assert session._stream is not first and session._stream.prompt == "smiles"
    assert block.time == 1.0 and np.median(block.frames) == 200


def test_bad_character_keeps_the_stream(session):
    session.step()
    session.say(ramp(CHUNK))
    session.set_character("nowhere.png")
    with pytest.raises(InputError):
        session.step()
    assert np.array_equal(session.step().audio, ramp(CHUNK)) and session.time == 1.0


def test_limits(session, monkeypatch):
    with pytest.raises(InputError, match="2,000"):
        session.set_prompt("x" * 3_000)
    monkeypatch.setattr(module, "QUEUED_SECONDS", 1)
    with pytest.raises(InputError, match="at most 1 s"):
        session.say(ramp(30_000))
