"""The optimiser's view of the real parameter trees, its schedule, and the moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lpm_jax.config import TrainConfig
from lpm_jax.models import conditions
from lpm_jax.models.vae import toy
from lpm_jax.training.state import TrainState, apply_gradients, create_state, make_optimizer, muon_dimensions
from tests import tiny

MODEL = conditions.abstract(tiny.CONFIG)
VAE = jax.eval_shape(lambda: toy.init(tiny.CONFIG.vae, jax.random.key(0)))


@pytest.mark.parametrize("tree", [MODEL, VAE], ids=["model", "vae"])
def test_every_kernel_is_orthogonalised_and_nothing_else(tree):
    is_leaf = lambda x: x is None or hasattr(x, "reduction_axis")  # noqa: E731
    chosen = dict(jax.tree_util.tree_leaves_with_path(muon_dimensions(tree), is_leaf=is_leaf))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    assert len(chosen) == len(leaves) and any(chosen.values())
    for path, leaf in leaves:
        where = chosen[path]
        if path[-1].key != "kernel":
            assert where is None, path
            continue
        assert where is not None, path
        assert where.output_axis == (leaf.ndim - 1,)
        # Whatever is no layer stack is summed over: inputs, taps, rows and columns.
        stacked = 1 if "blocks" in str(path) else 0
        assert where.reduction_axis == tuple(range(stacked, leaf.ndim - 1)), path


def test_biases_gains_and_tables_go_to_adamw():
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(MODEL | {"vae": VAE})}
    assert names == {
        "kernel", "bias", "gain", "scale", "modulation", "phase", "table", "place", "mean", "std", "variance", "basis",
        "centre", "weight", "base", "motions",
    }  # fmt: skip


def test_muon_moves_a_stack_layer_by_layer():
    """Each layer's update is near-orthogonal on its own: a large gradient in one does not shrink the other's."""
    params = {"blocks": {"q": {"kernel": jnp.zeros((2, 8, 8))}}}
    optimizer = make_optimizer(TrainConfig(steps=100, warmup=1, learning_rate=1.0, weight_decay=0.0, clip=1e9))
    grads = jax.random.normal(jax.random.key(0), (2, 8, 8)) * jnp.array([1.0, 1000.0])[:, None, None]
    state = optimizer.init(params)
    for _ in range(2):  # the first step of the warm-up has rate 0
        updates, state = optimizer.update({"blocks": {"q": {"kernel": grads}}}, state, params)
    spectra = [np.linalg.svd(x, compute_uv=False) for x in np.asarray(updates["blocks"]["q"]["kernel"])]
    assert spectra[0].mean() == pytest.approx(spectra[1].mean(), rel=0.2)
    for spectrum in spectra:
        assert spectrum.max() < 2 * spectrum.min()


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_warm_up_clip_and_cosine(name):
    config = TrainConfig(steps=20, warmup=5, learning_rate=0.1, optimizer=name, weight_decay=0.0, clip=1.0)
    optimizer = make_optimizer(config)
    params = {"bias": jnp.zeros(3)}
    state, sizes = optimizer.init(params), []
    for _ in range(20):
        updates, state = optimizer.update({"bias": jnp.array([3e4, -4e4, 0.0])}, state, params)
        sizes.append(float(jnp.abs(updates["bias"]).max()))
        assert updates["bias"][0] <= 0 <= updates["bias"][1]
    assert sizes[0] == 0 and sizes == sorted(sizes[:6]) + sorted(sizes[6:], reverse=True)
    assert max(sizes) == pytest.approx(0.1, rel=0.05)
    assert sizes[-1] < 0.02


def test_gradients_are_clipped_together():
    optimizer = make_optimizer(TrainConfig(steps=10, warmup=1, learning_rate=1.0, optimizer="adamw", clip=1.0))
    clip = optax.clip_by_global_norm(1.0)
    grads = {"a": jnp.array([30.0]), "b": jnp.array([40.0])}
    clipped, _ = clip.update(grads, clip.init(grads))
    one, two = optimizer.init(grads), optimizer.init(grads)
    for _ in range(2):
        ours, one = optimizer.update(grads, one, grads)
        theirs, two = optimizer.update(clipped, two, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)


def test_average_warms_up():
    """keep = min(decay, (1 + step) / (10 + step)), by hand for three steps and late."""
    optimizer = optax.sgd(1.0)
    state = create_state({"w": jnp.array([1.0])}, optimizer)
    grads = {"w": jnp.array([-1.0])}  # the weight counts 2, 3, 4
    average, weight = 1.0, 1.0
    for step in range(3):
        state = apply_gradients(state, grads, optimizer, decay=0.15)
        weight += 1
        keep = min(0.15, (1 + step) / (10 + step))
        average = keep * average + (1 - keep) * weight
        assert int(state.step) == step + 1
        assert float(state.params["w"][0]) == weight
        assert float(state.ema["w"][0]) == pytest.approx(average, rel=1e-6)
    late = TrainState(jnp.int32(10_000), {"w": jnp.array([0.0])}, {"w": jnp.array([1.0])}, state.optimizer)
    late = apply_gradients(late, {"w": jnp.array([0.0])}, optimizer, decay=0.99)
    assert float(late.ema["w"][0]) == pytest.approx(0.99)


def test_average_starts_as_a_copy():
    params = {"w": jnp.array([1.0, 2.0])}
    state = create_state(params, optax.sgd(0.1))
    assert state.ema["w"].unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()  # the step donates both
    np.testing.assert_array_equal(state.ema["w"], params["w"])
