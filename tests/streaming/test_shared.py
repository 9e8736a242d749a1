"""Streams that share a program: each bit-equal to itself alone, computed at once, joined and left as they like."""

import dataclasses

import jax
import numpy as np
import pytest

from lpm_jax.errors import InputError
from lpm_jax.models.text import tokenize
from lpm_jax.pipeline import Pipeline
from lpm_jax.serving.session import Session
from lpm_jax.streaming import generator, slots
from lpm_jax.streaming.shared import Shared
from tests import tiny
from tests.streaming.stream import CONFIG, sounds

SLOTS = 3


def shared() -> Shared:
    return Shared(CONFIG, tiny.params(), SLOTS)


def opened(machine, session: int, prompt: str = "smiles"):
    pictures = np.stack([tiny.picture(session)] * (2 + CONFIG.stream.references))[None]
    kinds, valid = np.array([[0, 1, 2, 7]], np.int32), np.array([[True, True, False, True]])
    return machine.begin(pictures, kinds, valid, tokenize(CONFIG.text, prompt)[None], jax.random.key(session))


def perform(stream, n: int, session: int) -> np.ndarray:
    return stream.step(*sounds(n, session)).get()


def alone(session: int, chunks: int) -> list[np.ndarray]:
    stream = opened(shared(), session)
    return [perform(stream, n, session) for n in range(chunks)]


def test_chunks_asked_for_before_one_is_waited_for_are_computed_at_once(monkeypatch):
    machine, batches, real = shared(), [], slots.slots_step

    def counted(config, params, states, active, *args, **kwargs):
        batches.append(active.tolist())
        return real(config, params, states, active, *args, **kwargs)

    monkeypatch.setattr(slots, "slots_step", counted)
    streams = [opened(machine, session) for session in (1, 2)]
    shown = {1: [], 2: []}
    for n in range(3):
        asked = [stream.step(*sounds(n, session)) for session, stream in enumerate(streams, 1)]
        for session, made in enumerate(asked, 1):
            shown[session].append(made.get())
    assert batches == [[True, True, False]] * 3
    for session in (1, 2):
        np.testing.assert_array_equal(shown[session], alone(session, 3))
    # One goes on alone, the other joins again later.
    third = perform(streams[0], 3, 1)
    assert batches[3] == [True, False, False]
    np.testing.assert_array_equal(third, alone(1, 4)[3])
    np.testing.assert_array_equal(perform(streams[1], 3, 2), alone(2, 4)[3])


def test_asking_again_computes_what_was_asked_for():
    stream = opened(shared(), 4)
    first = stream.step(*sounds(0, 4))
    second = stream.step(*sounds(1, 4))
    np.testing.assert_array_equal([first.get(), second.get()], alone(4, 2))


def test_a_chunk_taken_back_leaves_no_trace_in_any_slot():
    machine = shared()
    one, two = opened(machine, 1), opened(machine, 2)
    perform(one, 0, 1), perform(two, 0, 2)
    undo = one.before()
    one.step(*sounds(70, 1))
    perform(two, 1, 2)  # computes both
    one.take_back(undo)
    np.testing.assert_array_equal([perform(one, n, 1) for n in (1, 2)], alone(1, 3)[1:])
    np.testing.assert_array_equal(perform(two, 2, 2), alone(2, 3)[2])
    three = opened(machine, 3)  # before its first chunk it has no slot
    undo = three.before()
    perform(three, 70, 3)
    three.take_back(undo)
    np.testing.assert_array_equal(perform(three, 0, 3), alone(3, 1)[0])


def test_a_prompt_reaches_one_slot():
    machine = shared()
    one, two, other = opened(machine, 1), opened(machine, 2), opened(shared(), 1)
    for stream, session in ((one, 1), (two, 2), (other, 1)):
        perform(stream, 0, session)
    for stream in (one, other):
        stream.set_prompt(tokenize(CONFIG.text, "looks left")[None])
    told = perform(one, 1, 1)
    np.testing.assert_array_equal(told, perform(other, 1, 1))
    assert (told != alone(1, 2)[1]).any()
    np.testing.assert_array_equal(perform(two, 1, 2), alone(2, 2)[1])
    late = opened(machine, 3)
    late.set_prompt(tokenize(CONFIG.text, "looks left")[None])
    np.testing.assert_array_equal(perform(late, 0, 3), perform(opened(shared(), 3, "looks left"), 0, 3))


def test_slots_are_left_and_taken_without_a_compilation():
    machine = shared()
    streams = [opened(machine, session) for session in range(SLOTS)]
    for session, stream in enumerate(streams):
        perform(stream, 0, session)
    guest = opened(machine, 9)
    with pytest.raises(RuntimeError, match="expected a free slot, found all 3 taken"):
        guest.step(*sounds(0, 9))
    asked = streams[1].step(*sounds(1, 1))
    made = [f._cache_size() for f in (slots.slots_step, slots.join)]
    streams[1].close()
    np.testing.assert_array_equal(asked.get(), alone(1, 2)[1])  # asked for before, seen after
    np.testing.assert_array_equal(perform(guest, 0, 9), alone(9, 1)[0])
    assert [f._cache_size() for f in (slots.slots_step, slots.join)] == made
    with pytest.raises(RuntimeError, match="the stream has ended: it was closed"):
        streams[1].step(*sounds(2, 1))
    np.testing.assert_array_equal(perform(streams[2], 1, 2), alone(2, 2)[1])


def test_a_failure_ends_the_streams_and_not_the_machine(monkeypatch):
    machine = shared()
    stream = opened(machine, 1)
    perform(stream, 0, 1)

    def broken(*args, **kwargs):
        raise ValueError("no memory")

    monkeypatch.setattr(slots, "slots_step", broken)
    with pytest.raises(RuntimeError, match="the stream has ended: no memory"):
        perform(stream, 1, 1)
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="the stream has ended: no memory"):
        stream.step(*sounds(1, 1))
    np.testing.assert_array_equal(perform(opened(machine, 1), 0, 1), alone(1, 1)[0])


@pytest.mark.parametrize("change", [{"cache": "int8"}, {"refine": 0.25}])
def test_small_caches_and_refiners_share(change):
    """A slot that is left idle keeps all of its state."""
    config = dataclasses.replace(CONFIG, stream=dataclasses.replace(CONFIG.stream, **change))
    params = tiny.params(config)
    if "refine" in change:
        params = params | {"refiner": params["dit"]}

    def run(partner: bool) -> list[np.ndarray]:
        machine = Shared(config, params, 2)
        one, two = opened(machine, 1), opened(machine, 2)
        shown = []
        for n in range(4):
            if partner:
                perform(two, n, 2)
            shown.append(perform(one, n, 1))
        return shown

    np.testing.assert_array_equal(run(True), run(False))


def test_sessions_interrupt_and_change_beside_others():
    """Through serving's own surface: what one does leaves the other bit-equal to itself alone."""

    def play(guest: bool) -> list[np.ndarray]:
        pipe = Pipeline(CONFIG, tiny.params(), slots=2)
        host = Session(pipe, tiny.picture(1), seed=1)
        other = Session(pipe, tiny.picture(2), seed=2) if guest else None
        host.say(np.concatenate([sounds(n, 1)[0][0] for n in range(6)]))
        if other is not None:
            other.say(np.concatenate([sounds(n, 2)[0][0] for n in range(6)]))
        shown = []
        for n in range(5):
            finish = [s.begin() for s in (other, host) if s is not None]
            blocks = [f() for f in finish]
            shown.append(blocks[-1].frames)
            if other is not None and n == 1:
                other.interrupt(0.0)  # its last chunk is dropped and made anew
            if other is not None and n == 2:
                assert [e["type"] for e in blocks[0].events] == ["playback.dropped", "agent.speak_ended"]
                other.set_character(tiny.picture(3))
            if other is not None and n == 3:
                other.close()
                other = Session(pipe, tiny.picture(4), seed=4)
        assert len(pipe.machine.seated) == 1 + guest
        return shown

    np.testing.assert_array_equal(play(True), play(False))


def test_pipelines_share():
    """The same frames as a pipeline of its own, to a level; and a stream into a file leaves its slot."""
    params = tiny.params()
    together, turns = Pipeline(CONFIG, params, slots=2), Pipeline(CONFIG, params)
    assert together.together and not turns.together
    sound = np.concatenate([sounds(n, 1)[0][0] for n in range(3)])
    for _ in range(3):  # more often than there are slots
        ours = np.concatenate([c.frames for c in together.stream(tiny.picture(1), sound)])
    theirs = np.concatenate([c.frames for c in turns.stream(tiny.picture(1), sound)])
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    live = together.open(tiny.picture(1))
    first = live.step(sound).frames
    live.take_back()
    np.testing.assert_array_equal(live.step(sound).frames, first)
    assert live.time == generator.chunk_samples(CONFIG) / 24_000
    together.open(tiny.picture(2)).step(sound)
    late = together.open(tiny.picture(3))
    with pytest.raises(RuntimeError, match="free slot"):
        late.step(sound)
    with pytest.raises(RuntimeError, match="take_back: expected a step"):
        late.take_back()  # it would be another's
    with pytest.raises(InputError, match="slots: expected on one device"):
        Pipeline.from_pretrained("toy", decoder=1, slots=2)
