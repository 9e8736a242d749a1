"""Rollouts: what they read, where their gradients end, what is changed on purpose. That they equal masked attention is
shown in tests/streaming/test_histories.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.config import DistillConfig, StreamConfig
from lpm_jax.models.audio import STRIDE, TOKEN
from lpm_jax.models.conditions import history_tokens
from lpm_jax.streaming import generator
from lpm_jax.training import distill, rollout
from tests import tiny
from tests.training.clips import batch_of

CONFIG = dataclasses.replace(
    tiny.CONFIG,
    dit=dataclasses.replace(tiny.CONFIG.dit, depth=2),
    stream=StreamConfig(chunk=1, sink=1, window=1),
    distill=DistillConfig(rollout=5, gradient=2),
)
PARAMS = {name: x for name, x in tiny.params(CONFIG).items() if name != "vae"}
BATCH = batch_of(CONFIG, 5)
HISTORY = history_tokens(CONFIG.audio)


def test_a_window_is_cut_from_a_batch():
    window = rollout.cut(CONFIG, BATCH, jnp.int32(2), 3)
    np.testing.assert_array_equal(window["speak"], BATCH["speak"][:, 8 : 8 + HISTORY + 12])
    np.testing.assert_array_equal(window["weights"], BATCH["weights"][:, 2:5])
    assert not window["reference_valid"][:, 0].any() and window["reference_valid"][:, 1].all()
    first = rollout.cut(CONFIG, BATCH, 0, 3)
    np.testing.assert_array_equal(first["reference_valid"], BATCH["reference_valid"])


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_gradients_are_cut_between_chunks(remat):
    """Those of a rollout are the sum of its last chunks' own, each from a state that is given."""
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, remat=remat))
    player, key, exits = rollout.Player(config, BATCH), jax.random.key(1), jnp.array([1, 0])
    warm, count = 2, 2
    pull = jax.random.normal(jax.random.key(2), (2, count, 4, 32))

    @jax.jit
    def whole(params, warm):
        return jax.grad(lambda p: jnp.sum(pull * rollout.roll(player, p, warm, count, exits, key)))(params)

    @jax.jit
    def alone(params, state, n, pull):
        def loss(p):
            made = jnp.stack(player.step(p, state, n)[1].estimates)
            return jnp.sum(pull * made[exits, jnp.arange(2)])

        return jax.grad(loss)(params)

    state, want = player.start(PARAMS, jax.random.split(key)[0]), None
    step = jax.jit(lambda state, n: player.step(PARAMS, state, n)[0])
    for n in range(warm + count):
        if n >= warm:
            grad = alone(PARAMS, state, n, pull[:, n - warm : n - warm + 1])
            want = grad if want is None else jax.tree.map(jnp.add, want, grad)
        state = step(state, n)
    got = whole(PARAMS, jnp.int32(warm))
    for path, a in jax.tree_util.tree_leaves_with_path(got):
        b = want
        for part in path:
            b = b[part.key]
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * float(jnp.abs(b).max() + 1e-6), err_msg=str(path))
    assert float(jnp.abs(got["dit"]["embed"]["patch"]["kernel"]).max()) > 1e-3
    assert float(jnp.abs(got["speak"][next(iter(got["speak"]))]["kernel"]).max()) > 0  # sound learns too


@pytest.mark.slow
def test_a_clips_result_is_its_own_exits():
    """Only what a clip exits with is its result; what it leaves for later chunks is the same."""
    player, key = rollout.Player(CONFIG, BATCH), jax.random.key(1)
    run = jax.jit(lambda exits: rollout.roll(player, PARAMS, 1, 2, exits, key))
    early, late, mixed = (run(jnp.array(exits)) for exits in ([0, 0], [1, 1], [0, 1]))
    assert tiny.differs(early, late, 1e-2)
    np.testing.assert_allclose(mixed[0], early[0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], late[1], atol=1e-5)
    whole = jax.jit(rollout.play, static_argnums=(0, 3))(CONFIG, PARAMS, BATCH, 3, jax.random.split(key)[0])
    np.testing.assert_allclose(late, whole[:, 1:], atol=1e-4)


def test_corruption_reaches_what_is_left_and_nothing_else():
    config = dataclasses.replace(CONFIG, distill=dataclasses.replace(CONFIG.distill, corrupt=0.2))
    player = rollout.Player(config, BATCH)
    state = jax.jit(player.start)(PARAMS, jax.random.key(0))
    step = jax.jit(lambda state, n: player.step(PARAMS, state, n)[0])
    for n in range(3):
        state = step(state, n)
    off = rollout.corrupted(config, state, jax.random.key(5))
    at = int(generator.written(config, state, state.chunk - 1))
    change = np.abs(off.cache.k - state.cache.k).max(axis=(0, 1, 2, 4, 5, 6))
    assert change[at] > 0.1 and np.delete(change, at).max() == 0
    spread = np.std(np.asarray(off.near - state.near)) / np.std(np.asarray(state.near))
    assert 0.15 < spread < 0.25
    assert rollout.corrupted(CONFIG, state, jax.random.key(5)) is state


def test_a_switch_changes_what_came_before():
    change = jnp.array([True, False])
    mixed, before = distill.switched(CONFIG, BATCH, jnp.int32(2), change)
    cut = HISTORY + 8
    np.testing.assert_array_equal(mixed["speak"][0, :cut], BATCH["speak"][1, :cut])
    np.testing.assert_array_equal(mixed["speak"][0, cut:], BATCH["speak"][0, cut:])
    np.testing.assert_array_equal(mixed["speak"][1], BATCH["speak"][1])
    np.testing.assert_array_equal(before, np.stack([BATCH["text"][1], BATCH["text"][1]]))
    past, chunk = generator.history_samples(CONFIG), STRIDE * TOKEN
    sound = jnp.arange(2 * (past + 5 * chunk)).reshape(2, -1)
    mixed, _ = distill.switched(CONFIG, BATCH | {"listen_sound": sound}, jnp.int32(2), change)
    switched = np.concatenate([sound[1, : past + 2 * chunk], sound[0, past + 2 * chunk :]])
    np.testing.assert_array_equal(mixed["listen_sound"], np.stack([switched, sound[1]]))
    player = rollout.Player(CONFIG, BATCH, before, 2)
    plain = rollout.Player(CONFIG, BATCH)
    np.testing.assert_array_equal(player.told(PARAMS, 2).text, plain.told(PARAMS, 2).text)
    assert tiny.differs(player.told(PARAMS, 1).text[0], plain.told(PARAMS, 1).text[0], 1e-3)
    np.testing.assert_array_equal(player.told(PARAMS, 1).text[1], plain.told(PARAMS, 1).text[1])
