"""Taking a chunk back, and sessions in slots: bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.models.text import tokenize
from lpm_jax.streaming import generator, slots
from tests import tiny
from tests.streaming.stream import CONFIG, begin, same, sounds, step

SLOTS, CHUNKS = 4, 8


@pytest.mark.parametrize("at", [0, 1, 2, 3, 5])  # the sink, the window's first chunk, then chunks that overwrite others
def test_a_chunk_taken_back_leaves_no_trace(at):
    state, other = begin(), begin()
    for n in range(at):
        state, _ = step(state, n)
        other, _ = step(other, n)
    undo = generator.before(CONFIG, state)
    state, dropped = step(state, 70)  # never shown
    state = generator.rollback(CONFIG, state, undo)
    same(state, other)
    for n in range(at, at + 2):
        state, ours = step(state, n)
        other, theirs = step(other, n)
        np.testing.assert_array_equal(ours, theirs)
        assert (ours != dropped).mean() > 0.05  # it heard something else
    same(state, other)


def test_an_undo_holds_one_chunk_of_the_cache():
    state = begin()
    undo = generator.before(CONFIG, state)
    share = undo.cache.k.nbytes / state.cache.k.nbytes
    assert share == CONFIG.stream.chunk / state.cache.k.shape[3]
    step(state, 0)  # donates the state, but not what the undo holds
    assert np.isfinite(np.asarray(undo.near)).all() and not undo.speak.is_deleted()


def test_a_new_prompt_survives():
    state = begin()
    undo = generator.before(CONFIG, state)
    state, _ = step(state, 0)
    words = np.asarray(begin(prompt="looks left").text)
    state = generator.set_prompt(CONFIG, tiny.params(), state, tokenize(CONFIG.text, "looks left")[None])
    state = generator.rollback(CONFIG, state, undo)
    np.testing.assert_array_equal(state.text, words)
    assert int(state.chunk) == 0


def plan() -> list[dict[int, int]]:
    """Which session sits in which slot during each chunk: joins and leaves at random, fixed by seed."""
    rng = np.random.default_rng(3)
    seats: dict[int, int] = {}
    out, waiting = [], list(range(1, 7))
    for _ in range(CHUNKS):
        seats = {slot: session for slot, session in seats.items() if rng.random() < 0.75}
        for slot in rng.permutation(SLOTS):
            if slot not in seats and waiting and rng.random() < 0.7:
                seats[int(slot)] = waiting.pop(0)
        out.append(dict(seats))
    return out


def play(seating: list[dict[int, int]]) -> dict[int, list[np.ndarray]]:
    """Frames of each session, chunk by chunk, in one program of four slots."""
    states, before, shown = slots.empty(begin(), SLOTS), {}, {}
    silence = np.zeros((SLOTS, generator.chunk_samples(CONFIG)), np.float32)
    for seats in seating:
        for slot, session in seats.items():
            if before.get(slot) != session:
                states = slots.join(states, slot, begin(seed=session, picture=session))
                shown[session] = []
        speak, listen = silence.copy(), silence.copy()
        for slot, session in seats.items():
            speak[slot], listen[slot] = (x[0] for x in sounds(len(shown[session]), session))
        active = np.isin(np.arange(SLOTS), list(seats))
        states, frames = slots.slots_step(CONFIG, tiny.params(), states, active, speak, listen)
        for slot, session in seats.items():
            shown[session].append(np.asarray(frames[slot]))
        for slot in set(range(SLOTS)) - set(seats):
            assert not np.asarray(frames[slot]).any()
        before = seats
    return shown


def test_sessions_in_slots_are_bit_equal_to_themselves_alone():
    seating = plan()
    assert sum(map(len, seating)) > 2 * CHUNKS and len({s for seats in seating for s in seats.values()}) >= 5
    together = play(seating)
    made = slots.slots_step._cache_size()
    for session, frames in together.items():
        alone = play([{s: n for s, n in seats.items() if n == session} for seats in seating])
        assert len(frames) == len(alone[session]) > 0
        for ours, theirs in zip(frames, alone[session], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert slots.slots_step._cache_size() == made  # joins and leaves compile nothing
    # And up to rounding what a stream of its own shows.
    session = max(together, key=lambda s: len(together[s]))
    state = begin(seed=session, picture=session)
    for n, frames in enumerate(together[session]):
        state, own = step(state, n, session)
        assert np.abs(own[0].astype(int) - frames).max() <= 1


def test_a_slot_can_be_taken_out():
    states = slots.join(slots.empty(begin(), 2), 1, begin(seed=5))
    same(slots.take(states, 1), begin(seed=5))
    assert not np.asarray(slots.take(states, 0).cache.k).any()


def test_donation_of_all_slots():
    states = slots.empty(begin(), 2)
    silence = jnp.zeros((2, generator.chunk_samples(CONFIG)))
    active = jnp.array([True, False])
    cache = sum(x.nbytes for x in states.cache)
    compiled = slots.slots_step.lower(CONFIG, tiny.params(), states, active, silence, silence).compile()
    assert compiled.memory_analysis().alias_size_in_bytes >= cache
    after, _ = slots.slots_step(CONFIG, tiny.params(), states, active, silence, silence)
    assert states.cache.k.is_deleted() and not after.cache.k.is_deleted()


def test_nothing_is_transferred_inside_a_chunk():
    """Inputs are put on the device explicitly and frames fetched explicitly; anything else would raise."""
    state = begin()
    state, _ = step(state, 0)
    speak, listen = (jax.device_put(x) for x in sounds(1))
    with jax.transfer_guard("disallow"):
        state, frames = generator.chunk_step(CONFIG, tiny.params(), state, speak, listen)
        undo = generator.before(CONFIG, state)
        state = generator.rollback(CONFIG, state, undo)
        jax.device_get(frames)
