"""Streams the tiny model on 8 simulated devices, laid out in several ways.

``python -m tests.streaming.lanes_on`` prints a line of JSON for each: distances from one device, whether a chunk was
taken back bit for bit, how often the lanes were compiled, and when they ran. With ``pipelines`` after it the same of
:class:`lpm_jax.Pipeline`.
"""

from __future__ import annotations

import os

from tests.cheap import EIGHT

os.environ["XLA_FLAGS"] = EIGHT

import dataclasses
import json
import math
import sys
import tempfile

import jax
import numpy as np

from lpm_jax import Pipeline, pretrained
from lpm_jax.config import MeshConfig
from lpm_jax.models.text import tokenize
from lpm_jax.streaming import generator
from lpm_jax.streaming.lanes import Lanes
from tests import tiny

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
    if sys.argv[1:] == ["pipelines"]:
        pipelines(CONFIG, {"tensor": 2, "context": 2}, 4)
        pipelines(fine, {"tensor": 2}, 2)
        return
    for config, ways in ((CONFIG, WAYS), (fine, REFINED)):
        one_config(config, ways)


def pipelines(config, mesh: dict, decoder: int) -> None:
    """The same through the door: a model's folder, a file's worth of chunks, and a prompt and a chunk taken back."""
    with tempfile.TemporaryDirectory() as folder:
        pretrained.save(folder, config, tiny.params(config), jax.numpy.float32)
        one = Pipeline.from_pretrained(folder, "float32")
        many = Pipeline.from_pretrained(folder, "float32", mesh=MeshConfig(**({"fsdp": 1} | mesh)), decoder=decoder)
    asked = {"image": tiny.picture(0, 64), "audio": tiny.sound(70_000), "prompt": "smiles", "seed": 3}
    whole, cut = (np.concatenate([chunk.frames for chunk in pipe.stream(**asked)]).astype(int) for pipe in (one, many))
    live = [pipe.open(tiny.picture(1, 64), references={"view/left": tiny.picture(2, 64)}) for pipe in (one, many)]
    made = []
    for stream in live:
        speak = sounds(3)[0][0]
        frames = [stream.step(speak).frames]
        stream.set_prompt("is sad")
        frames.append(stream.step(speak).frames)
        stream.take_back()
        frames.append(stream.step(speak).frames)
        made.append(np.stack(frames).astype(int))
    kernel = many.params["dit"]["blocks"]["speak"]["ffn_in"]["kernel"]
    print(
        json.dumps(
            {
                "refiner": bool(config.stream.refine),
                "file": int(np.abs(whole - cut).max()),
                "frames": list(whole.shape),
                "live": int(np.abs(made[0] - made[1]).max()),
                "again": bool((made[1][1] == made[1][2]).all()),
                "prompt heard": bool((made[1][0] != made[1][1]).any()),
                "sharded": not kernel.sharding.is_fully_replicated,
                "devices": len({d for x in jax.tree.leaves(many.params) for d in x.devices()}),
            }
        ),
        flush=True,
    )


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
