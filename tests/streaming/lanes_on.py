"""Streams the tiny model on 8 simulated devices, laid out in several ways.

``python -m tests.streaming.lanes_on`` prints a line of JSON for each: distances from one device, whether a chunk was
taken back bit for bit, how often the lanes were compiled, and when they ran.
"""

from __future__ import annotations

import os

FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1"
os.environ["XLA_FLAGS"] = f"{FLAGS} --xla_llvm_disable_expensive_passes=true"

import dataclasses  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from lpm_jax.config import MeshConfig  # noqa: E402
from lpm_jax.models.text import tokenize  # noqa: E402
from lpm_jax.streaming import generator  # noqa: E402
from lpm_jax.streaming.lanes import Lanes  # noqa: E402
from tests import tiny  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")
CONFIG = dataclasses.replace(tiny.CONFIG, size=64, dit=dataclasses.replace(tiny.CONFIG.dit, heads=4, width=64))
CHUNKS = 5
#: The Generator's mesh, and how many devices of their own the VAE has (0: it shares the Generator's first).
WAYS = [
    ({}, 0), ({}, 1), ({"tensor": 2}, 1), ({"context": 4}, 2), ({"tensor": 2, "context": 2}, 2), ({"tensor": 4}, 4),
    ({"ring": 2, "tensor": 2}, 1),
]  # fmt: skip


def begin() -> generator.StreamState:
    pictures = np.stack([tiny.picture(i, 64) for i in (0, 0, 1, 2)])[None]
    kinds, valid = np.array([[0, 1, 2, 7]], np.int32), np.array([[True, True, False, True]])
    ids = tokenize(CONFIG.text, "smiles")[None]
    return generator.start(CONFIG, tiny.params(CONFIG), pictures, kinds, valid, ids, jax.random.key(0))


def sounds(n: int) -> list[np.ndarray]:
    return [tiny.sound(generator.chunk_samples(CONFIG), seed=10 * n + i, loudness=0.2)[None] for i in range(2)]


def main() -> None:
    params, want, state = tiny.params(CONFIG), [], begin()
    for n in range(CHUNKS):
        state, frames = generator.chunk_step(CONFIG, params, state, *sounds(n))
        want.append(np.asarray(frames).astype(int))
    cache = np.asarray(state.cache.k)
    for mesh, own in WAYS:
        count = math.prod(mesh.values())
        devices = jax.devices()
        decoder = devices[count : count + own] or None
        lanes = Lanes(CONFIG, params, devices[:count], MeshConfig(**({"fsdp": 1} | mesh)), decoder)
        other = lanes.open(begin())  # compiles, and shares the programs with the stream that counts
        other.step(*sounds(50)).get()
        stream = lanes.open(begin(), watch=True)
        chunks = [stream.step(*sounds(n)) for n in range(CHUNKS)]
        worst = max(float(np.abs(c.get().astype(int) - w).max()) for c, w in zip(chunks, want, strict=True))
        own_cache = np.asarray(stream.state.cache.k)
        undo = stream.before()
        stream.step(*sounds(70)).get()
        stream.take_back(undo)
        again = np.asarray(stream.state.cache.k)
        stream.close()
        print(
            json.dumps(
                {
                    "mesh": mesh,
                    "own": own,
                    "frames": worst,
                    "cache": float(np.abs(own_cache - cache).max()),
                    "scale": float(np.abs(cache).max()),
                    "taken back": bool((again == own_cache).all()),
                    "compiled": [lanes._generate._cache_size(), lanes._decode._cache_size()],
                    "sharded": not stream.state.cache.k.sharding.is_fully_replicated,
                    "runs": [list(run) for run in lanes.runs],
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
