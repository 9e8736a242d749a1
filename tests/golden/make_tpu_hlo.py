"""Makes ``tpu_*.hlo.gz``: optimised HLO of a small sharded gradient as libtpu writes it, for machines without libtpu.

    python tests/golden/make_tpu_hlo.py

Run once, outside the project's environment, with ``jax[tpu]`` (0.10.2, libtpu 0.0.42.1); no TPU is needed. The text is
libtpu's own, less what nothing here reads: source locations, and of ``backend_config`` all but the notes on collectives
that are spread over several fusions.
"""

import gzip
import os
import re
from functools import partial
from pathlib import Path

os.environ |= {
    "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

HERE = Path(__file__).parent
LAYERS, WIDTH, HOPS = 6, 512, 3
TOKENS = P("fsdp", "context", None)


def program(mesh: Mesh):
    """Gradient of six layers: ``x + mix(x w1)``, ``x + tanh(x w2) w3``; weights cut over fsdp and gathered, tokens over
    context; ``mix`` trades tokens for features, goes around three times and trades back."""
    put = lambda x, spec: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))  # noqa: E731
    abstract = lambda shape, spec: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))  # noqa: E731
    stored = P(None, None, "fsdp", None)
    weights = abstract((LAYERS, 3, WIDTH, WIDTH), stored)
    x = abstract((8, 1024, WIDTH), TOKENS)

    @jax.custom_vjp
    def gather(w):
        return put(w, P(None, None))

    gather.defvjp(lambda w: (gather(w), None), lambda _, g: (put(g, P("fsdp", None)),))

    @partial(jax.shard_map, mesh=mesh, in_specs=TOKENS, out_specs=TOKENS, check_vma=False)
    def mix(y):
        y = jax.lax.all_to_all(y, "context", 2, 1, tiled=True)
        hop = lambda y, _: (jax.lax.ppermute(jnp.tanh(y), "context", [(0, 1), (1, 0)]), None)  # noqa: E731
        y, _ = jax.lax.scan(hop, y, None, length=HOPS)
        return jax.lax.all_to_all(y, "context", 1, 2, tiled=True)

    def loss(weights, x):
        def layer(x, w):
            x = put(x + mix(x @ gather(w[0])), TOKENS)
            return put(x + jnp.tanh(x @ gather(w[1])) @ gather(w[2]), TOKENS), None

        y, _ = jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, weights)
        return jnp.sum(y.astype(jnp.float32))

    return jax.jit(jax.grad(loss), out_shardings=weights.sharding).lower(weights, x)


def trimmed(text: str) -> str:
    lines, inside = [], False
    for line in text.splitlines():
        if line.startswith("HloModule"):
            lines.append(re.sub(r", entry_computation_layout=.*", "", line))
        inside = inside and not line.startswith("File") or bool(re.match(r"(ENTRY )?%\S+ \(", line))
        if inside:
            lines.append(line)

    def notes(found: re.Match) -> str:
        kept = re.search(r'"async_collective_fusion_config":\{[^}]*\}', found[0])
        return f", backend_config={{{kept[0]}}}" if kept else ""

    text = re.sub(r", backend_config=\{.*\}$", notes, "\n".join(lines), flags=re.M)
    text = re.sub(r', metadata=\{(op_name="[^"]*")?[^}]*\}', lambda m: f", metadata={{{m[1]}}}" if m[1] else "", text)
    return re.sub(r"/\*index=\d+\*/", "", text) + "\n"


def main() -> None:
    for name, shape in (("v5e:4x4", (8, 2)), ("tpu7x:2x2x1", (4, 2))):
        devices = topologies.get_topology_desc(name, platform="tpu").devices
        mesh = Mesh(np.array(devices).reshape(shape), ("fsdp", "context"), axis_types=(AxisType.Auto,) * 2)
        text = trimmed(program(mesh).compile().as_text())
        path = HERE / f"tpu_{name.partition(':')[0].removeprefix('tpu')}.hlo.gz"
        path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
        print(path.name, len(text), path.stat().st_size)


if __name__ == "__main__":
    main()
