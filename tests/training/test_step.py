"""One training step: microbatches, the guard against what is not finite, frozen leaves, gradients by component."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax import sharding
from lpm_jax.config import MeshConfig, TrainConfig
from lpm_jax.models import conditions
from lpm_jax.training.step import accumulated, component, component_norms, make_program
from tests import tiny

CONFIG = TrainConfig(steps=10, warmup=1, learning_rate=0.1, optimizer="adamw", ema=0.9)
PARAMS = {"a": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}, "b": {"kernel": jnp.full((2, 1), 0.5)}}
BATCH = {"x": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32), "y": np.ones((4, 1), np.float32)}


def loss(params, batch, key):
    y = (batch["x"] @ params["a"]["kernel"] + params["a"]["bias"]) @ params["b"]["kernel"]
    return jnp.mean(jnp.square(y - batch["y"])), {"first": batch["y"][0, 0]}


def program(**changes):
    frozen = changes.pop("frozen", None)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    return make_program(dataclasses.replace(CONFIG, **changes), mesh, {}, PARAMS, frozen)


def one_step(batch=BATCH, steps=1, **changes):
    it = program(**changes)
    state, step = it.start(PARAMS), it.step(loss)
    for _ in range(steps):
        state, metrics = step(state, batch, jax.random.key(0))
    return state, {k: float(v) for k, v in metrics.items()}


def test_microbatches_add_up_to_the_batch():
    """A mean of means: four microbatches of one clip each take the step that the whole batch takes."""
    whole, metrics = one_step(steps=3)
    parts, metrics4 = one_step(steps=3, accumulate=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole.params, parts.params)
    assert metrics4["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert metrics4["gradient_norm"] == pytest.approx(metrics["gradient_norm"], rel=1e-5)


def test_each_microbatch_has_its_own_noise_and_every_clip_is_seen_once():
    def draw(params, batch, key):
        return jnp.sum(params["w"]) * 0, {"noise": jax.random.normal(key), "clips": jnp.sum(2.0 ** batch["index"])}

    batch = {"index": jnp.arange(6.0)}
    _, metrics, _ = accumulated(draw, {"w": jnp.ones(2)}, batch, jax.random.key(1), 3, {})
    keys = [jax.random.fold_in(jax.random.key(1), i) for i in range(3)]
    assert float(metrics["noise"]) == pytest.approx(np.mean([jax.random.normal(k) for k in keys]), abs=1e-6)
    assert float(metrics["clips"]) == pytest.approx(63 / 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(bad):
    it = program()
    step = it.step(loss)
    state, metrics = step(it.start(PARAMS), BATCH, jax.random.key(0))
    assert metrics["skipped"] == 0
    before = jax.device_get(state)
    poisoned = BATCH | {"x": np.full_like(BATCH["x"], bad)}
    state, metrics = step(state, poisoned, jax.random.key(0))
    assert metrics["skipped"] == 1 and int(state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, before._replace(step=np.int32(2)), jax.device_get(state))
    state, metrics = step(state, BATCH, jax.random.key(0))  # and it goes on
    assert metrics["skipped"] == 0 and not np.array_equal(state.params["b"]["kernel"], before.params["b"]["kernel"])


def test_frozen_leaves_stay_and_count_for_nothing():
    frozen = {"a": {"kernel": True, "bias": True}, "b": {"kernel": False}}
    state, metrics = one_step(steps=2, frozen=frozen)
    np.testing.assert_array_equal(state.params["a"]["kernel"], PARAMS["a"]["kernel"])
    assert tiny.differs(state.params["b"]["kernel"], PARAMS["b"]["kernel"])
    assert metrics["gradient/a"] == 0 and metrics["gradient_norm"] == pytest.approx(metrics["gradient/b"])


def test_components():
    params = {k: v for k, v in tiny.params().items() if k != "vae"}
    found = {component(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert found == {
        "attention", "text_attention", "audio_attention", "ffn", "embed", "head", "speak", "listen", "text", "prior",
        "warp",
    }  # fmt: skip
    norms = component_norms(params)
    whole = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(params)))
    assert np.sqrt(sum(float(x) ** 2 for x in norms.values())) == pytest.approx(whole, rel=1e-5)
    q = params["dit"]["blocks"]["speak"]["q"]["kernel"] * 0 + 1
    only = jax.tree.map(jnp.zeros_like, params)
    only["dit"]["blocks"]["speak"]["q"]["kernel"] = q
    assert float(component_norms(only)["attention"]) == pytest.approx(np.sqrt(q.size))
    assert conditions.axes(tiny.CONFIG)["dit"].keys() == params["dit"].keys()
