"""What evaluations leave for later chunks, and the Refiner: rollouts through the streaming step equal one masked pass
over whole windows, which knows no cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.config import StreamConfig
from lpm_jax.errors import InputError
from lpm_jax.flow import add_noise, carried
from lpm_jax.models.denoiser import Denoiser
from lpm_jax.streaming import generator
from lpm_jax.training import rollout
from tests import tiny
from tests.training.clips import batch_of

STREAM = StreamConfig(chunk=2, sink=1, window=2)
CHUNKS = 4  # all that one attention sees


SMALL = dataclasses.replace(tiny.CONFIG, dit=dataclasses.replace(tiny.CONFIG.dit, depth=2))


play = jax.jit(rollout.play, static_argnums=(0, 3))


def config(**stream):
    return dataclasses.replace(SMALL, stream=dataclasses.replace(STREAM, **stream))


def masked(config, params, batch, way, key, coarse=None):
    """Chunk after chunk by block-causal passes over the whole window; ``way`` is levels and history."""
    levels, history = way
    frames, size = CHUNKS * STREAM.chunk, STREAM.chunk
    denoise = jax.jit(Denoiser(config, params, batch, frames, size).__call__)
    plain = Denoiser(config, params, batch, frames, size)
    shape = (2, frames, *plain.first.shape[2:])
    shelves = len(levels) if history == "each" else 1
    video, level = [jnp.zeros(shape)] * shelves, [jnp.ones(shape[:2])] * shelves
    near, last, made = jnp.zeros(shape), plain.first, []
    for n in range(CHUNKS):
        at = slice(n * size, (n + 1) * size)
        key, draw = jax.random.split(key)
        near = near.at[:, at].set(carried(last, plain.anchor, STREAM.carry))
        clean = jnp.zeros((2, size, *shape[2:])) if coarse is None else coarse[:, at]
        draft = None if coarse is None else jnp.zeros(shape).at[:, at].set(clean)
        for i, t in enumerate(levels):
            shelf = i if history == "each" else 0
            noise = jax.random.normal(jax.random.fold_in(draw, i), clean.shape)
            noisy = add_noise(clean, noise, jnp.full((2, size), t))
            now, then = video[shelf].at[:, at].set(noisy), level[shelf].at[:, at].set(t)
            clean = denoise(now, then, near, draft)[:, at]
            draft = jnp.zeros(shape).at[:, at].set(clean)
            if history == "each" or history == "last" and i == len(levels) - 1:
                video[shelf], level[shelf] = now, then
        if history == "clean":
            video[0], level[0] = video[0].at[:, at].set(clean), level[0].at[:, at].set(0.0)
        last = clean[:, -1:]
        made.append(clean)
    return jnp.concatenate(made, axis=1)


@pytest.mark.parametrize("history", [pytest.param(x, marks=pytest.mark.slow) for x in ("last", "clean")] + ["each"])
def test_rollout_equals_masked_attention(history):
    cfg = config(history=history)
    params, batch, key = tiny.params(cfg), batch_of(cfg, CHUNKS * STREAM.chunk), jax.random.key(3)
    got = play(cfg, params, batch, CHUNKS, key)
    want = masked(cfg, params, batch, (STREAM.levels, history), key)
    assert float(jnp.std(want)) > 0.5
    assert float(jnp.abs(got - want).max()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("history", ["last", "clean"])
def test_refiner_equals_masked_attention(history):
    cfg = config(refine=0.3, refiner_history=history)
    params, batch, key = tiny.params(cfg), batch_of(cfg, CHUNKS * STREAM.chunk), jax.random.key(3)
    got = play(cfg, params, batch, CHUNKS, key)
    coarse = play(config(), params, batch, CHUNKS, key)
    own = params | {"dit": params["refiner"]}
    want = masked(cfg, own, batch, ((0.3,), history), jax.random.fold_in(key, 1), coarse)
    assert float(jnp.abs(got - coarse).max()) > 0.1
    assert float(jnp.abs(got - want).max()) < 1e-4


@pytest.mark.slow
def test_histories_differ():
    """Each is a model of its own: the same weights make other videos."""
    batch, key = batch_of(config(), CHUNKS * STREAM.chunk), jax.random.key(3)
    made = [
        play(config(history=history), tiny.params(config()), batch, CHUNKS, key)
        for history in ("last", "each", "clean")
    ]
    for a, b in zip(made, [*made[1:], made[0]], strict=True):
        np.testing.assert_allclose(a[:, :2], b[:, :2], atol=1e-5)  # the first chunk has no history
        assert tiny.differs(a[:, 2:], b[:, 2:], 1e-3)


def test_a_refined_chunk_is_taken_back_without_a_trace():
    cfg = config(refine=0.3)
    params = tiny.params(cfg)

    def begin():
        pictures = np.stack([tiny.picture(i) for i in (0, 0, 1, 2)])[None]
        kinds, valid = np.array([[0, 1, 2, 7]], np.int32), np.array([[True, True, False, True]])
        ids = np.array([[1, 5, 6, 0, 0, 0, 0, 0]], np.int32)
        return generator.start(cfg, params, pictures, kinds, valid, ids, jax.random.key(0))

    def sound(seed):
        return [tiny.sound(generator.chunk_samples(cfg), seed=seed + i)[None] for i in range(2)]

    state, _ = generator.chunk_step(cfg, params, begin(), *sound(0))
    undo = generator.before(cfg, state)
    state, dropped = generator.chunk_step(cfg, params, state, *sound(1))
    state = generator.rollback(cfg, state, undo)
    other, _ = generator.chunk_step(cfg, params, begin(), *sound(0))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    memory = generator.chunk_step.lower(cfg, params, state, *sound(2)).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= sum(x.nbytes for x in (*state.cache, *state.refiner.cache))
    _, ours = generator.chunk_step(cfg, params, state, *sound(2))
    assert (np.asarray(ours) != np.asarray(dropped)).mean() > 0.05


def test_what_a_stream_may_be():
    assert config(history="each").stream.history == "each"
    wrongs = {"history": "some"}, {"refiner_history": ""}, {"levels": ()}, {"levels": (1.0, 0.0)}, {"refine": 2.0}
    for wrong in wrongs:
        with pytest.raises(InputError, match=f"stream.{next(iter(wrong))}"):
            config(**wrong)
