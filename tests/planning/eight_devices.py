"""Small programs compiled for eight simulated devices: ``python -m tests.planning.eight_devices FOLDER``.

The number of devices is fixed when JAX starts, so this runs in a process of its own. Each program's optimised HLO is
written to FOLDER as NAME.hlo; what it must count is in ``test_hlo.py``.
"""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MESH = {"replica": 1, "fsdp": 2, "ring": 2, "context": 1, "tensor": 2}


def made() -> Mesh:
    shape = tuple(MESH.values())
    return Mesh(np.array(jax.devices()).reshape(shape), tuple(MESH), axis_types=(AxisType.Auto,) * len(shape))


def abstract(shape, spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(made(), spec))


def put(x, spec):
    return jax.lax.with_sharding_constraint(x, NamedSharding(made(), spec))


def layers():
    """A scan of five layers: weights gathered over fsdp, a product cut over tensor and summed."""
    weights = abstract((5, 64, 128), P(None, "fsdp", "tensor")), abstract((5, 128, 64), P(None, "tensor", "fsdp"))

    def layer(x, w):
        up, down = put(w[0], P(None, "tensor")), put(w[1], P("tensor", None))
        return put(x + jnp.tanh(x @ up) @ down, P("fsdp", None)), None

    run = jax.jit(lambda w, x: jax.lax.scan(layer, x, w)[0])
    return run, (weights, abstract((32, 64), P("fsdp", None)))


def nested():
    """Three rounds of four hops around the ring."""
    mesh = made()

    @partial(jax.shard_map, mesh=mesh, in_specs=P("ring"), out_specs=P("ring"), check_vma=False)
    def run(x):
        hop = lambda x, _: (jax.lax.ppermute(jnp.sin(x), "ring", [(0, 1), (1, 0)]), None)  # noqa: E731
        go = lambda x, _: (jnp.cos(jax.lax.scan(hop, x, None, length=4)[0]), None)  # noqa: E731
        return jax.lax.scan(go, x, None, length=3)[0]

    return jax.jit(run), (abstract((16, 128), P("ring")),)


def exchanged():
    """All-to-all over tensor, reduce-scatter over fsdp, a sum over fsdp and ring together; in bfloat16."""
    mesh = made()

    @partial(jax.shard_map, mesh=mesh, in_specs=P(("fsdp", "ring"), "tensor"), out_specs=P(), check_vma=False)
    def run(x):
        x = jax.lax.all_to_all(x, "tensor", 0, 1, tiled=True)
        x = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=1, tiled=True)
        return jax.lax.psum(x, ("fsdp", "ring"))

    return jax.jit(run), (abstract((64, 128), P(("fsdp", "ring"), "tensor"), jnp.bfloat16),)


def branches():
    """A conditional with a product of 64 and one of 8 columns, and a loop of unknown length with one of 16."""
    x, w = abstract((64, 64), P()), abstract((64, 64), P())

    def run(x, w, which, times):
        y = jax.lax.cond(which, lambda: (x @ w).sum(), lambda: (x @ w[:, :8]).sum())
        go = lambda i, z: jnp.tanh(x @ z)  # noqa: E731
        return y, jax.lax.fori_loop(0, times, go, w[:, :16])

    return jax.jit(run), (x, w, abstract((), P(), jnp.bool_), abstract((), P(), jnp.int32))


def products():
    """A batched product with two contracted axes and a strided convolution with padding."""
    a, b = abstract((4, 6, 8, 10), P()), abstract((4, 8, 10, 12), P())
    image, kernel = abstract((2, 9, 9, 3), P()), abstract((3, 3, 3, 5), P())

    def run(a, b, image, kernel):
        y = jnp.einsum("bmij,bijn->bmn", a, b)
        conv = jax.lax.conv_general_dilated(
            image, kernel, (2, 2), ((1, 1), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y, conv

    return jax.jit(run), (a, b, image, kernel)


def sliced():
    """A loop that reads one of 64 rows of a stack and writes one of another."""
    stack, out = abstract((64, 1024), P()), abstract((64, 1024), P())

    def run(stack, out):
        def go(i, out):
            row = jax.lax.dynamic_index_in_dim(stack, i, 0, keepdims=True)
            return jax.lax.dynamic_update_slice(out, jnp.tanh(row), (i, 0))

        return jax.lax.fori_loop(0, 64, go, out)

    return jax.jit(run, donate_argnums=1), (stack, out)


PROGRAMS = {f.__name__: f for f in (layers, nested, exchanged, branches, products, sliced)}


def main() -> None:
    folder = Path(sys.argv[1])
    for name, make in PROGRAMS.items():
        fn, args = make()
        (folder / f"{name}.hlo").write_text(fn.lower(*args).compile().as_text())


if __name__ == "__main__":
    main()
