"""Two networks that learn against each other, on numbers small enough to follow by hand."""

import dataclasses

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.loader import Rows
from lpm_jax import sharding
from lpm_jax.config import Config, DistillConfig, TrainConfig
from lpm_jax.training import duel
from lpm_jax.training.loop import Stage, run_stage
from lpm_jax.training.state import make_optimizer
from tests.training.toy_stage import Points

BATCH = 4
TRAIN = TrainConfig(
    steps=8, batch=BATCH, learning_rate=0.1, warmup=0, optimizer="adamw", beta1=0.0, beta2=0.9, weight_decay=0.0,
    clip=1e9, ema=0.5, log_every=1, save_every=3, validate_every=100,
)  # fmt: skip
CONFIG = Config(name="duel", train=TRAIN, distill=DistillConfig(generator_every=2, critic_learning_rate=0.03))
PARAMS = {"student": {"s": jnp.array([1.0, -2.0]), "prior": jnp.ones(2)}, "critic": {"c": jnp.array([0.5, 0.5])}}
FIXED = {"teacher": {"t": jnp.array([3.0, 4.0])}}
FROZEN = {"student": {"s": False, "prior": True}, "critic": {"c": False}}


def student(params, other, fixed, batch, key):
    """Pulled to the teacher and pushed from the critic; the frozen part has a gradient too."""
    x = params["s"] * params["prior"] + 0.01 * jax.random.normal(key, (2,))
    loss = jnp.sum((x - fixed["teacher"]["t"]) ** 2) + jnp.sum(other["c"] * x) + jnp.mean(batch["x"])
    return loss, {"x": jnp.sum(x)}


def critic(params, other, fixed, batch, key):
    """Pulled to the student."""
    return jnp.sum((params["c"] - other["s"]) ** 2 * batch["x"].mean()), {}


def program(config=CONFIG) -> duel.Program:
    mesh = sharding.make_mesh(config.mesh)
    return duel.make_program(config, mesh, {}, {}, PARAMS, FROZEN, FIXED)


def batch(value: float = 1.0) -> dict:
    return {"x": jnp.full((BATCH, 2), value)}


def test_one_step_by_hand():
    """The student meets the critic as it was, the critic the student as it now is."""
    run, key = program(), jax.random.key(0)
    state = run.start(PARAMS)
    state, metrics = run.step(duel.Duel(student, critic, both=True))(state, batch(), key)
    own = jax.random.fold_in(jax.random.fold_in(key, 0), 1)
    grad = jax.grad(lambda s: student(s, PARAMS["critic"], FIXED, batch(), own)[0])(PARAMS["student"])
    rule = make_optimizer(dataclasses.replace(TRAIN, steps=4))
    update, _ = rule.update(grad["s"], rule.init(PARAMS["student"]["s"]), PARAMS["student"]["s"])
    s = PARAMS["student"]["s"] + update
    np.testing.assert_allclose(state.params["s"], s, rtol=1e-6)
    np.testing.assert_array_equal(state.params["prior"], PARAMS["student"]["prior"])
    grad = jax.grad(lambda c: critic(c, {"s": s}, FIXED, batch(), key)[0])(PARAMS["critic"])
    rule = make_optimizer(dataclasses.replace(TRAIN, learning_rate=0.03))
    update, _ = rule.update(grad["c"], rule.init(PARAMS["critic"]["c"]), PARAMS["critic"]["c"])
    np.testing.assert_allclose(state.critic.params["c"], PARAMS["critic"]["c"] + update, rtol=1e-6)
    np.testing.assert_allclose(metrics["critic/gradient_norm"], jnp.linalg.norm(grad["c"]), rtol=1e-6)
    assert float(metrics["loss"]) == float(metrics["critic/loss"]) and float(metrics["skipped"]) == 0
    assert int(state.step) == 1
    np.testing.assert_allclose(state.ema["s"], 0.1 * PARAMS["student"]["s"] + 0.9 * s, rtol=1e-6)  # its first update
    assert not FIXED["teacher"]["t"].is_deleted() and not run.fixed["teacher"]["t"].is_deleted()


def test_the_critic_learns_alone():
    run = program()
    state = run.start(PARAMS)
    state, metrics = run.step(duel.Duel(student, critic, both=False))(state, batch(), jax.random.key(0))
    for name in ("params", "ema"):
        np.testing.assert_array_equal(getattr(state, name)["s"], PARAMS["student"]["s"])
    assert np.abs(state.critic.params["c"] - PARAMS["critic"]["c"]).max() > 0.01
    assert not any(name.startswith("student/") for name in metrics)


@pytest.mark.parametrize("both", [False, True])
def test_parked_networks_wait_in_the_hosts_memory_and_change_nothing(both):
    parked = program(dataclasses.replace(CONFIG, distill=dataclasses.replace(CONFIG.distill, park=True)))
    assert parked.fixed["teacher"]["t"].sharding.memory_kind == "pinned_host"
    assert program().fixed["teacher"]["t"].sharding.memory_kind != "pinned_host"
    steps = [run.step(duel.Duel(student, critic, both)) for run in (program(), parked)]
    (a, _), (b, _) = (step(program().start(PARAMS), batch(), jax.random.key(0)) for step in steps)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert parked.fixed["teacher"]["t"].sharding.memory_kind == "pinned_host"


@pytest.mark.parametrize("both", [False, True])
def test_what_is_not_finite_changes_nothing(both):
    run = program()
    state = jax.tree.map(np.asarray, run.start(PARAMS))
    after, metrics = run.step(duel.Duel(student, critic, both))(run.start(PARAMS), batch(np.nan), jax.random.key(0))
    assert float(metrics["skipped"]) == 1 and int(after.step) == 1
    for a, b in zip(jax.tree.leaves(after._replace(step=0)), jax.tree.leaves(state._replace(step=0)), strict=True):
        np.testing.assert_array_equal(a, b)


def make(validate=lambda params, directory: {}) -> Stage:
    def data(rows):
        stream = Rows(grain.MapDataset.source(Points()).seed(3).shuffle().repeat(10**6), BATCH, rows)
        return stream.batch(len(rows)).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))

    return Stage(
        name="duel", params=PARAMS, data=data, batch=BATCH, validate=validate, finish=lambda x: x,
        loss=duel.Duel(student, critic, False), other_loss=duel.Duel(student, critic, True), other_every=2,
        program=lambda config, mesh: duel.make_program(config, mesh, {}, {}, PARAMS, FROZEN, FIXED),
    )  # fmt: skip


def test_a_resumed_run_equals_one_that_was_not_stopped(tmp_path):
    straight = run_stage(make(), CONFIG, tmp_path / "straight")

    class Stop(Exception):
        pass

    def stop(params, directory):
        raise Stop

    early = dataclasses.replace(CONFIG, train=dataclasses.replace(TRAIN, validate_every=7))
    with pytest.raises(Stop):
        run_stage(make(stop), early, tmp_path / "resumed")
    assert sorted(p.name for p in (tmp_path / "resumed/duel/checkpoints").iterdir() if p.name.isdigit()) == ["3", "6"]
    resumed = run_stage(make(), CONFIG, tmp_path / "resumed")
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(straight), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(straight["s"] - np.asarray(PARAMS["student"]["s"])).max() > 0.05
