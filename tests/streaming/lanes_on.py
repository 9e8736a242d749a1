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
#: The same with a Refiner on as many devices of its own; without VAE devices all lanes share the first.
REFINED = [({}, 0), ({}, 1), ({"tensor": 2}, 1), ({"tensor": 2, "context": 2}, 0)]


def begin(config) -> generator.StreamState:
    pictures = np.stack([tiny.picture(i, 64) for i in (0, 0, 1, 2)])[None]
    kinds, valid = np.array([[0, 1, 2, 7]], np.int32), np.array([[True, True, False, True]])
    ids = tokenize(config.text, "smiles")[None]
    return generator.start(config, tiny.params(config), pictures, kinds, valid, ids, jax.random.key(0))


def sounds(n: int) -> list[np.ndarray]:
    return [tiny.sound(generator.chunk_samples(CONFIG), seed=10 * n + i, loudness=0.2)[None] for i in range(2)]


def main() -> None:
    fine = dataclasses.replace(CONFIG, stream=dataclasses.replace(CONFIG.stream, refine=0.4))
    for config, ways in ((CONFIG, WAYS), (fine, REFINED)):
        one_config(config, ways)


def caches(state, fine) -> np.ndarray:
    """Keys of all networks."""
    return np.concatenate([np.asarray(x.cache.k).ravel() for x in (state, fine) if x is not None])


def one_config(config, ways: list) -> None:
    params, want, state = tiny.params(config), [], begin(config)
    for n in range(CHUNKS):
        state, frames = generator.chunk_step(config, params, state, *sounds(n))
        want.append(np.asarray(frames).astype(int))
    cache = caches(state, state.refiner)
    for mesh, own in ways:
        count = math.prod(mesh.values())
        devices = jax.devices()
        refiner = None
        rest = count
        if config.stream.refine and own:
            refiner, rest = devices[count : 2 * count], 2 * count
        decoder = devices[rest : rest + own] or None
        lanes = Lanes(config, params, devices[:count], MeshConfig(**({"fsdp": 1} | mesh)), decoder, refiner=refiner)
        other = lanes.open(begin(config))  # compiles, and shares the programs with the stream that counts
        other.step(*sounds(50)).get()
        stream = lanes.open(begin(config), watch=True)
        chunks = [stream.step(*sounds(n)) for n in range(CHUNKS)]
        worst = max(float(np.abs(c.get().astype(int) - w).max()) for c, w in zip(chunks, want, strict=True))
        undo = stream.before()
        own_cache = caches(stream.parts["generator"], stream.parts["refiner"])
        stream.step(*sounds(70))
        stream.take_back(undo)
        again = caches(stream.parts["generator"], stream.parts["refiner"])
        stream.close()
        programs = [lanes._generate, lanes._decode] + ([lanes._refine] if config.stream.refine else [])
        print(
            json.dumps(
                {
                    "mesh": mesh,
                    "own": own,
                    "refiner": bool(config.stream.refine),
                    "frames": worst,
                    "cache": float(np.abs(own_cache - cache).max()),
                    "scale": float(np.abs(cache).max()),
                    "taken back": bool((again == own_cache).all()),
                    "compiled": [program._cache_size() for program in programs],
                    "sharded": not stream.parts["generator"].cache.k.sharding.is_fully_replicated,
                    "runs": [list(run) for run in lanes.runs],
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
