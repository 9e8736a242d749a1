"""Mesh shapes, declared axes and the layouts that follow, by hand; programs on meshes are in tests/sharding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from lpm_jax import sharding
from lpm_jax.config import DiTConfig, MeshConfig
from lpm_jax.errors import InputError
from lpm_jax.models import conditions, dit
from lpm_jax.options import load_config

SIZES = {"replica": 2, "fsdp": 4, "ring": 1, "context": 2, "tensor": 2}


@pytest.mark.parametrize(
    "config, devices, shape",
    [
        (MeshConfig(), 8, (1, 8, 1, 1, 1)),
        (MeshConfig(context=4), 64, (1, 16, 1, 4, 1)),
        (MeshConfig(fsdp=2, tensor=-1), 8, (1, 2, 1, 1, 4)),
        (MeshConfig(replica=2, fsdp=2, ring=2), 8, (2, 2, 2, 1, 1)),
        (MeshConfig(), 1, (1, 1, 1, 1, 1)),
    ],
)
def test_mesh_shapes(config, devices, shape):
    assert sharding.mesh_shape(config, devices) == shape


@pytest.mark.parametrize(
    "config, message",
    [
        (MeshConfig(fsdp=3), "mesh: expected axes whose product is 8 devices, found fsdp 3"),
        (MeshConfig(context=3), "mesh: expected axes whose product is 8 devices, found fsdp -1 x context 3"),
        (MeshConfig(tensor=16), "product is 8 devices, found fsdp -1 x tensor 16"),
        (MeshConfig(fsdp=1), "product is 8 devices, found one device"),
    ],
)
def test_meshes_that_do_not_fit(config, message):
    with pytest.raises(InputError, match=message):
        sharding.mesh_shape(config, 8)


@pytest.mark.parametrize("sizes, message", [({"ring": 0}, "mesh.ring: expected at least 1"), ({"ring": -1}, "one -1")])
def test_bad_sizes(sizes, message):
    with pytest.raises(InputError, match=message):
        MeshConfig(**sizes)


def test_a_spec_leaves_out_what_does_not_divide():
    spec = lambda *args: sharding.spec(*args, SIZES)  # noqa: E731
    assert spec(("embed", "heads"), (64, 32)) == PartitionSpec(("fsdp", "ring", "context"), "tensor")
    assert spec(("embed", None), (4, 3)) == PartitionSpec(("fsdp", "ring"), None)  # 4 does not divide by 8
    assert spec(("embed",), (6,)) == PartitionSpec(None)
    assert spec(("batch", None, "tokens"), (8, 5, 16)) == PartitionSpec(("replica", "fsdp"), None, ("ring", "context"))


def test_every_large_weight_of_the_transformer_is_cut():
    """From the declarations alone: what is left whole on each of 64 devices is a thousandth of the model."""
    config = load_config("configs/lpm_17b.py")
    shapes = conditions.abstract(config)
    mesh = AbstractMesh((1, 16, 1, 4, 1), sharding.AXES)
    specs = sharding.shardings(mesh, conditions.axes(config), shapes)
    whole = total = 0
    for leaf, where in zip(jax.tree.leaves(shapes["dit"]), jax.tree.leaves(specs["dit"]), strict=True):
        size = int(np.prod(leaf.shape))
        total += size
        whole += size if not any(where.spec) else 0
        if size > 1e7:
            assert size == 64 * np.prod(where.shard_shape(leaf.shape)), where.spec
    assert whole < 1e-3 * total
    q = specs["dit"]["blocks"]["speak"]["q"]["kernel"]
    assert q.spec == PartitionSpec(None, ("fsdp", "ring", "context"), "tensor")  # stacked layers stay whole
    o = specs["dit"]["blocks"]["listen"]["audio_o"]["kernel"]
    assert o.spec == PartitionSpec(None, "tensor", ("fsdp", "ring", "context"))


def test_axes_are_declared_for_what_exists():
    config = DiTConfig(depth=2, width=32, heads=2, ffn=64, channels=8)
    shapes = jax.eval_shape(lambda: dit.init(config, jax.random.key(0)))
    declared = dit.axes(config)

    def walk(axes, tree, path=()):
        for name, found in axes.items():
            assert name in tree, (*path, name)
            if isinstance(found, sharding.Axes):
                stacked = path[0] == "blocks"
                assert len(found.names) == tree[name].ndim - stacked, (*path, name)
                assert set(found.names) <= set(sharding.RULES)
            else:
                walk(found, tree[name], (*path, name))

    walk(declared, shapes)
    kernels = [path for path, _ in jax.tree_util.tree_leaves_with_path(shapes) if path[-1].key == "kernel"]
    for path in kernels:
        assert any(sharding.axes_of(declared, path, 2)), path


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch": 6}, r"mesh: replica x fsdp is 8: expected a divisor of train.batch \(a microbatch\), 6"),
        ({"tokens": 15}, "mesh: ring x context is 2: expected a divisor of a frame's patches, 15"),
        ({"heads": 6}, "mesh: tensor x context is 4: expected a divisor of dit.heads, 6"),
        ({"ffn": 63}, "mesh: tensor is 2: expected a divisor of dit.ffn, 63"),
    ],
)
def test_what_does_not_divide_is_named(change, message):
    sizes = {"batch": 16, "tokens": 16, "heads": 8, "ffn": 64} | change
    mesh = AbstractMesh(tuple(SIZES.values()), tuple(SIZES))
    model = dataclasses.replace(DiTConfig(), heads=sizes["heads"], width=64 * sizes["heads"], ffn=sizes["ffn"])
    with pytest.raises(InputError, match=message):
        sharding.check(mesh, model, sizes["batch"], sizes["tokens"])


def test_without_a_mesh_nothing_is_constrained():
    x = jnp.ones((2, 3))
    assert sharding.constrain(x, "batch", "embed") is x
    assert sharding.gather({}, {"a": x})["a"] is x
    assert sharding.sizes() == {} and sharding.parts("tokens") == 1
