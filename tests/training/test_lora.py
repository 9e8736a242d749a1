"""Low-rank changes of the transformer's kernels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lpm_jax.models import conditions
from lpm_jax.training import lora
from tests import tiny

CONFIG = dataclasses.replace(tiny.CONFIG, dit=dataclasses.replace(tiny.CONFIG.dit, depth=2))
BASE = {name: x for name, x in tiny.params(CONFIG).items() if name != "vae"}


def kernels(tree, path=()):
    for name, leaf in tree.items():
        if isinstance(leaf, dict):
            yield from kernels(leaf, (*path, name))
        elif name == "kernel":
            yield (*path, name), leaf


def at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def test_a_fresh_change_changes_nothing():
    change = lora.init(BASE, 3, jax.random.key(0))
    assert list(change) == ["dit"] and list(change["dit"]) == ["blocks"]
    for a, b in zip(jax.tree.leaves(lora.whole(BASE, change)), jax.tree.leaves(BASE), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_change_is_the_product_of_its_factors():
    change = jax.tree.map(lambda x: x + 0.1, lora.init(BASE, 3, jax.random.key(0)))
    full = lora.whole(BASE, change)
    found = list(kernels(BASE["dit"]["blocks"]))
    # q, k, v, o; text q, k, v, o; audio k, v, o; both of the feed-forward; speak and listen
    assert len(found) == 2 * 13
    for path, kernel in found:
        factors = at(change["dit"]["blocks"], path)
        assert factors["a"].shape[-1] == factors["b"].shape[-2] == 3
        want = np.asarray(kernel) + np.einsum("...ir,...ro->...io", factors["a"], factors["b"])
        np.testing.assert_allclose(at(full["dit"]["blocks"], path), want, rtol=1e-5, atol=1e-5)
    for name in BASE.keys() - {"dit"}:
        assert full[name] is BASE[name]


def test_gradients_reach_the_factors():
    change = lora.init(BASE, 2, jax.random.key(0))
    grad = jax.grad(lambda c: sum(jnp.sum(x**2) for x in jax.tree.leaves(lora.whole(BASE, c)["dit"]["blocks"])))(change)
    for path, _ in kernels(BASE["dit"]["blocks"]):
        factors = at(grad["dit"]["blocks"], path)
        assert not np.asarray(factors["a"]).any() and np.abs(factors["b"]).max() > 1e-3  # a moves once b has


def test_weights_without_a_base_are_themselves():
    assert lora.whole(None, BASE) is BASE and lora.whole(BASE, BASE) is BASE


def test_factors_share_the_kernels_axes():
    change = lora.init(BASE, 2, jax.random.key(0))
    axes = lora.axes(conditions.axes(CONFIG), change)
    declared = conditions.axes(CONFIG)["dit"]["blocks"]["speak"]["ffn_in"]["kernel"].names
    found = axes["dit"]["blocks"]["speak"]["ffn_in"]["kernel"]
    assert declared == ("embed", "hidden")
    assert found["a"].names == ("embed", None) and found["b"].names == (None, "hidden")
