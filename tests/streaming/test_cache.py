"""The rolling cache's table: what each chunk sees, where it stands and where it is written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.config import StreamConfig
from lpm_jax.streaming import cache
from tests import tiny

# For chunk n: the chunk that each slot holds (None: not yet), its time, the chunk's own time, and its slot, in chunks.
ONE_ONE = [
    # sink, window     times    own  written to
    ((None, None), (None, None), 0, 0),
    ((0, None), (0, None), 1, 1),
    ((0, 1), (0, 1), 2, 1),
    ((0, 2), (0, 1), 2, 1),
    ((0, 3), (0, 1), 2, 1),
    ((0, 4), (0, 1), 2, 1),
    ((0, 5), (0, 1), 2, 1),
    ((0, 6), (0, 1), 2, 1),
    ((0, 7), (0, 1), 2, 1),
]
TWO_TWO = [
    # sink, sink, ring, ring       times                own  written to
    ((None, None, None, None), (None, None, None, None), 0, 0),
    ((0, None, None, None), (0, None, None, None), 1, 1),
    ((0, 1, None, None), (0, 1, None, None), 2, 2),
    ((0, 1, 2, None), (0, 1, 2, None), 3, 3),
    ((0, 1, 2, 3), (0, 1, 2, 3), 4, 2),
    ((0, 1, 4, 3), (0, 1, 3, 2), 4, 3),
    ((0, 1, 4, 5), (0, 1, 2, 3), 4, 2),
    ((0, 1, 6, 5), (0, 1, 3, 2), 4, 3),
    ((0, 1, 6, 7), (0, 1, 2, 3), 4, 2),
]


@pytest.mark.parametrize("config, table", [
    (StreamConfig(chunk=3, sink=1, window=1), ONE_ONE),
    (StreamConfig(chunk=2, sink=2, window=2), TWO_TWO),
], ids=["1+1", "2+2"])  # fmt: skip
def test_layout_by_hand(config, table):
    c = config.chunk
    written = [None] * (config.sink + config.window)
    for n, (held, at, own, slot) in enumerate(table):
        assert tuple(written) == held  # the table itself is consistent: what was written there before
        times, valid, own_times, write = cache.layout(config, jnp.int32(n))
        assert valid.reshape(-1, c).tolist() == [[chunk is not None] * c for chunk in held], n
        seen = times.reshape(-1, c)[np.array([chunk is not None for chunk in held], bool)]
        assert seen.tolist() == [[t * c + i for i in range(c)] for t in at if t is not None], n
        assert own_times.tolist() == [own * c + i for i in range(c)], n
        assert int(write) == slot * c, n
        written[slot] = n


@pytest.mark.parametrize("sink, window", [(0, 1), (0, 3), (1, 2), (3, 2), (2, 5)])
def test_layout_follows_a_list_of_chunks(sink, window):
    """Against a list: the sink keeps the first chunks, the window the latest; the clock stops where they all fit."""
    config = StreamConfig(chunk=2, sink=sink, window=window)
    layout = jax.jit(cache.layout, static_argnums=0)
    written: dict[int, int] = {}
    for n in range(sink + 4 * window + 1):
        times, valid, own, write = (np.asarray(x) for x in layout(config, jnp.int32(n)))
        want = [c for c in range(n) if c < sink or n - c <= window]
        assert sorted(written[s] for s in range(sink + window) if valid[2 * s]) == want
        assert own.tolist() == [2 * min(n, sink + window), 2 * min(n, sink + window) + 1]
        for s in np.flatnonzero(valid[::2]):
            chunk = written[int(s)]
            assert times[2 * s] == (2 * chunk if chunk < sink else own[0] - 2 * (n - chunk))
            assert times[2 * s + 1] == times[2 * s] + 1 and valid[2 * s + 1]
        written[int(write) // 2] = n


def test_positions_stay_few_for_ever():
    config = StreamConfig(chunk=3, sink=2, window=3)
    layout = jax.jit(cache.layout, static_argnums=0)
    early = layout(config, jnp.int32(config.sink + config.window + 1))
    for n in (0, 1, 4, 5, 6, 7, 1000, config.sink + config.window + 1 + 3 * 10**6, 2**31 - 3):
        times, valid, own, write = layout(config, jnp.int32(n))
        seen = jnp.concatenate([times[valid], own])
        assert seen.min() >= 0 and seen.max() < config.span * config.chunk
        assert len(set(seen.tolist())) == len(seen)  # no two at one place
        assert 0 <= write <= (config.sink + config.window - 1) * config.chunk
    late = layout(config, jnp.int32(config.sink + config.window + 1 + 3 * 10**6))
    for a, b in zip(early, late, strict=True):
        np.testing.assert_array_equal(a, b)


def test_sizes():
    config = StreamConfig(chunk=3, sink=2, window=1)
    assert cache.slots(config, 4) == 4 + 9
    empty = cache.empty(config, tiny.CONFIG.dit, references=4, batch=2, tokens=5, dtype=jnp.bfloat16)
    assert empty.k.shape == empty.v.shape == (2, 2, 2, 13, 5, 2, 16)
    assert empty.k.dtype == jnp.bfloat16 and not empty.k.any()
