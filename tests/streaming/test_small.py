"""Streams whose weights, cache or numbers are smaller than float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from lpm_jax.config import StreamConfig
from lpm_jax.errors import InputError
from lpm_jax.nn.quantized import quantized_rows, quantized_weights, restored, stored_like
from lpm_jax.pipeline import Pipeline
from lpm_jax.streaming import generator, slots
from tests import tiny


def with_stream(**changes):
    return dataclasses.replace(tiny.CONFIG, stream=dataclasses.replace(tiny.CONFIG.stream, **changes))


def play(config, params, chunks: int = 5) -> np.ndarray:
    """Frames past the window's slide."""
    stream = Pipeline(config, params).open(tiny.picture())
    sound = tiny.sound(12_000 * chunks, 1)
    return np.concatenate([stream.step(sound[12_000 * i : 12_000 * (i + 1)], None).frames for i in range(chunks)])


def test_scales_by_hand():
    x = jnp.array([[127.5, -1.0], [0.0, 255.0]])  # qwix: the largest is 127.5 steps, of which 127 are kept
    small = quantized_weights({"kernel": x, "bias": x[0]}, "int8")
    np.testing.assert_array_equal(small["kernel"].scale, [[1.0, 2.0]])  # of each output
    np.testing.assert_allclose(restored(small)["kernel"], [[127.0, 0.0], [0.0, 254.0]])  # -1 / 2 is rounded to even
    np.testing.assert_array_equal(small["bias"], x[0])
    rows = quantized_rows(x, "int8")
    np.testing.assert_array_equal(rows.scale, [[1.0], [2.0]])
    twice = quantized_weights(small, "int8")["kernel"]
    assert isinstance(twice, qwix.QArray) and twice.qvalue is small["kernel"].qvalue


@pytest.mark.parametrize("kind, error", [("int8", 1 / 127 / 2), ("float8", 1 / 16)])
def test_what_is_stored_is_within_rounding(kind, error):
    x = jax.random.normal(jax.random.key(0), (3, 4, 64))
    old = quantized_rows(jnp.zeros((3, 4, 64)), kind)
    back = restored(stored_like(old, x))
    largest = jnp.abs(x).max(-1, keepdims=True)
    assert 0 < float((jnp.abs(back - x) / largest).max()) <= error * 1.01
    assert stored_like(old, x).qvalue.nbytes == x.nbytes / 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes, worst, share",
    [
        ({"cache": "int8"}, 4, 0.25), ({"weights": "int8"}, 10, 0.25), ({"cache": "float8"}, 16, 0.25),
        ({"weights": "float8"}, 40, 0.5),
    ],
)  # fmt: skip
def test_frames_stay_close(changes, worst, share):
    # Without a life, for whose random weights the limits were not set.
    plain, small = (dataclasses.replace(c, dit=dataclasses.replace(c.dit, life=False)) for c in (
        tiny.CONFIG, with_stream(**changes)
    ))  # fmt: skip
    params = tiny.params(plain)
    full, found = play(plain, params).astype(int), play(small, params).astype(int)
    off = np.abs(found - full)
    assert 0 < off.max() <= worst  # something was rounded, and little
    # Another seed differs by far more: rounding does not change who moves how. (By twice as much for float8 weights: a
    # seed changes a third of what it did before drafts kept its noise out.)
    other = np.concatenate([c.frames for c in Pipeline(plain, params).stream(
        tiny.picture(), tiny.sound(60_000, 1), seed=1)]).astype(int)  # fmt: skip
    assert off.mean() < share * np.abs(other - full).mean()


def test_memory_is_what_it_should_be():
    params = tiny.params()
    config = with_stream(cache="int8", weights="int8")
    pipeline = Pipeline(config, params)
    cache, plain = (Pipeline(c, params).open(tiny.picture())._state.cache for c in (config, tiny.CONFIG))
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
    dim = config.dit.head_dim
    assert size(cache) == size(plain) * (dim + 4) / (4 * dim)  # a byte a number, a float32 scale a row
    blocks, before = pipeline.params["dit"]["blocks"], params["dit"]["blocks"]
    kernel, was = blocks["speak"]["ffn_in"]["kernel"], before["speak"]["ffn_in"]["kernel"]
    assert size(kernel) == was.size + 4 * was.shape[0] * was.shape[-1]
    assert size(blocks) < 0.4 * size(before)


def test_a_chunk_taken_back_leaves_no_trace():
    stream = Pipeline(with_stream(cache="int8"), tiny.params()).open(tiny.picture())
    sound = tiny.sound(60_000, 2)
    for i in range(3):
        stream.step(sound[12_000 * i : 12_000 * (i + 1)], None)
    first = stream.step(sound[:12_000], None).frames
    stream.take_back()
    stream.step(sound[24_000:36_000], None)
    stream.take_back()
    np.testing.assert_array_equal(stream.step(sound[:12_000], None).frames, first)


def test_slots_hold_them():
    config, params = with_stream(cache="int8"), tiny.params()
    pipeline = Pipeline(config, params)
    sound = tiny.sound(12_000, 3)[None]
    state, alone = (pipeline.open(tiny.picture())._state for _ in range(2))
    states = slots.join(slots.empty(state, 2), jnp.int32(1), state)
    _, expected = generator.chunk_step(config, pipeline.params, alone, sound, sound)
    both = np.repeat(sound, 2, axis=0)
    _, frames = slots.slots_step(config, pipeline.params, states, jnp.array([False, True]), both, both)
    assert np.abs(np.asarray(frames[1]).astype(int) - np.asarray(expected[0])).max() <= 1


@pytest.mark.slow
def test_half_precision_draws_the_same_noise():
    params = tiny.params()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    full, found = play(tiny.CONFIG, params).astype(int), play(tiny.CONFIG, half).astype(int)
    assert 0 < np.abs(full - found).mean() < 3
    state = Pipeline(tiny.CONFIG, half).open(tiny.picture())._state
    assert state.near.dtype == state.anchor.dtype == jnp.float32 and state.cache.k.dtype == jnp.bfloat16


@pytest.mark.slow
def test_options_of_a_pipeline(tmp_path):
    Pipeline(tiny.CONFIG, tiny.params()).save(tmp_path / "model", jnp.float32)
    made = Pipeline.from_pretrained(tmp_path / "model", "float32", {"cache": "int8", "weights": "int8", "chunk": 6})
    assert made.chunk_frames == 24
    stream = made.open(tiny.picture())
    assert stream.step(None, None).frames.shape == (24, 32, 32, 3)
    with pytest.raises(InputError, match="chunk_size: this model was distilled for 24, found 12"):
        made.stream(tiny.picture(), tiny.sound(100), chunk_size=12)
    made.save(tmp_path / "again", jnp.float32)  # in full, whatever it was kept in
    again = Pipeline.from_pretrained(tmp_path / "again", "float32", {"weights": "", "cache": ""})
    kernel = again.params["dit"]["blocks"]["listen"]["q"]["kernel"]
    full = tiny.params()["dit"]["blocks"]["listen"]["q"]["kernel"]
    assert kernel.dtype == jnp.float32 and 0 < float(jnp.abs(kernel - full).max()) < 0.02


@pytest.mark.parametrize("changes", [{"cache": "int4"}, {"weights": "half"}])
def test_unknown_kinds(changes):
    with pytest.raises(InputError, match=r"stream\.(cache|weights): expected int8, float8 or nothing, found"):
        StreamConfig(**changes)
