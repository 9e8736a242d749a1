"""The adversary beside a regression: whose gradient goes where, how long the pull is, and that it ends in a sample."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lpm_jax.models import dit
from lpm_jax.training import adversary, on_policy
from tests import tiny
from tests.training.test_on_policy import BATCH, CONFIG, PARAMS

SHARE = 0.7
PULLED = dataclasses.replace(CONFIG, distill=dataclasses.replace(CONFIG.distill, adversary=SHARE))
NOVICE = adversary.init(PULLED, jax.random.key(5))
TRUTH = dit.patchify(CONFIG.dit, BATCH["latents"].astype(jnp.float32))
MADE = TRUTH + jax.random.normal(jax.random.key(2), TRUTH.shape) * jnp.array([0.3, 2.0])[:, None, None, None]


def losses(params: dict, made: jax.Array, scale: float = 1.0, config=PULLED):
    others = lambda x: scale * jnp.mean(jnp.square(x - TRUTH))  # noqa: E731
    return adversary.losses(config, params, made, BATCH, others, jax.random.key(1))


@pytest.fixture(scope="module")
def judge() -> dict:
    """An adversary that tells the two apart."""
    rule = optax.adam(0.003)

    def step(carry, _):
        params, state = carry
        updates, state = rule.update(jax.grad(lambda p: losses(p, MADE)[0])(params), state)
        return (optax.apply_updates(params, updates), state), None

    params = jax.jit(lambda p: jax.lax.scan(step, (p, rule.init(p)), length=80))(NOVICE)[0][0]
    metrics = losses(params, MADE)[1]
    assert metrics["adversary/real"] - metrics["adversary/fake"] > 2
    return params


def length(x: jax.Array) -> np.ndarray:
    """Of each patch."""
    return np.sqrt(np.square(x).sum(-1))


def test_the_pull_of_each_patch_is_a_share_of_the_other_gradients(judge):
    for scale in (1.0, 50.0):
        pull = jax.grad(lambda x, scale=scale: losses(judge, x, scale)[0])(MADE)
        beside = scale * jax.grad(lambda x: jnp.mean(jnp.square(x - TRUTH)))(MADE)
        np.testing.assert_allclose(length(pull), SHARE * length(beside), rtol=1e-3)
    value, metrics = losses(judge, MADE)
    steady = adversary.STEADY * metrics["adversary/unsteady"]
    assert value == pytest.approx(float(metrics["adversary/loss"] + steady), rel=1e-5)  # the pull itself has no value


def test_who_cannot_tell_does_not_pull(judge):
    """Where clips and rollouts look alike to it, and where they are."""
    backwards = jax.tree.map(lambda x: -x, judge["out"])
    assert not jax.grad(lambda x: losses(judge | {"out": backwards}, x)[0])(MADE).any()
    assert not jax.grad(lambda x: losses(judge, x)[0])(TRUTH).any()


def test_the_pull_leads_to_where_the_adversary_takes_it_for_a_clip(judge):
    direction = jax.grad(lambda x: losses(judge, x)[0])(MADE)
    fakes = [float(losses(judge, MADE - step * direction)[1]["adversary/fake"]) for step in (0.0, 10.0)]
    assert fakes[1] > fakes[0]


def test_the_adversary_learns_from_its_own_loss_alone():
    """Its gradient has nothing of the pull: it is the same however hard it pulls, and lowers its loss."""
    harder = dataclasses.replace(PULLED, distill=dataclasses.replace(PULLED.distill, adversary=9.0))
    grads = [jax.grad(lambda p, c=c: losses(p, MADE, config=c)[0])(NOVICE) for c in (PULLED, harder)]
    for a, b in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_array_equal(a, b)
    better = jax.tree.map(lambda p, g: p - 0.01 * g, NOVICE, grads[0])
    assert losses(better, MADE)[1]["adversary/loss"] < losses(NOVICE, MADE)[1]["adversary/loss"]


@pytest.mark.slow
def test_in_a_rollouts_loss_both_learn(judge):
    params = PARAMS | {"adversary": judge}
    key = jax.random.key(0)
    (value, metrics), grads = jax.jit(jax.value_and_grad(on_policy.make_loss(PULLED), has_aux=True))(params, BATCH, key)
    plain = jax.jit(jax.grad(on_policy.make_loss(CONFIG), has_aux=True))(PARAMS, BATCH, key)[0]
    assert np.isfinite(float(value)) and {"adversary/real", "adversary/fake", "x0_at_0.5"} <= set(metrics)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads["adversary"]["out"]["kernel"]))
    assert tiny.differs(
        grads["dit"]["head"]["projection"]["kernel"], plain["dit"]["head"]["projection"]["kernel"], 1e-6
    )


def test_regression_ends_at_the_mean_and_with_an_adversary_at_a_sample():
    """Clips are one of two pictures, by chance. Their mean is none of them."""
    picture = jnp.sign(jax.random.normal(jax.random.key(3), (1, *TRUTH.shape[2:])))

    def run(share: float) -> float:
        config = dataclasses.replace(PULLED, distill=dataclasses.replace(PULLED.distill, adversary=share))
        params = {"made": 0.05 * picture, "adversary": NOVICE}
        rates = {"made": optax.adam(0.02), "adversary": optax.adam(0.002)}
        rule = optax.multi_transform(rates, {name: name for name in rates})

        def loss(params: dict, key: jax.Array) -> jax.Array:
            k_side, key = jax.random.split(key)
            side = jax.random.rademacher(k_side, (2, 1, 1, 1), jnp.float32)
            truth = side * jnp.broadcast_to(picture, TRUTH.shape)
            made = jnp.broadcast_to(params["made"], TRUTH.shape)
            window = {
                "latents": dit.unpatchify(config.dit, truth, *config.cells),
                "references": jnp.zeros_like(BATCH["references"], jnp.float32),
            }
            others = lambda x: jnp.mean(jnp.square(x - truth))  # noqa: E731
            value = others(made)
            return value + (adversary.losses(config, params["adversary"], made, window, others, key)[0] if share else 0)

        @jax.jit
        def step(carry, key):
            params, state = carry
            updates, state = rule.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(4), 300)
        params = jax.lax.scan(step, (params, rule.init(params)), keys)[0][0]
        return float(jnp.mean(params["made"] * picture))

    assert abs(run(0.0)) < 0.25
    assert abs(run(1.0)) > 0.5


def test_a_pull_below_none_is_refused():
    with pytest.raises(Exception, match="distill.adversary: expected 0 or more"):
        dataclasses.replace(CONFIG.distill, adversary=-1.0)
