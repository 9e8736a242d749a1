"""Trains the tiny model on meshes of 8 simulated devices.

``python -m tests.sharding.train_on STAGE STEPS OPTION... -- MESH...`` prints a line of JSON for one device's run, then
one for each mesh such as ``fsdp=2,context=4``: losses, distances of the parameters and of their change from those of
one device, layouts that are not as declared, and the step's collectives.
"""

from __future__ import annotations

import os

from tests.cheap import EIGHT

os.environ["XLA_FLAGS"] = EIGHT

import dataclasses
import json
import math
import sys

import jax
import numpy as np

from lpm_jax import sharding
from lpm_jax.config import Config, MeshConfig, TrainConfig
from lpm_jax.models import conditions
from lpm_jax.options import override
from lpm_jax.planning.hlo import analyse
from lpm_jax.training.flow_matching import CAUSAL, frozen, make_loss
from lpm_jax.training.step import accumulated, make_program
from tests import tiny

jax.config.update("jax_default_matmul_precision", "highest")
FRAMES, CELLS, CLIPS = 6, 8, 8
CONFIG = dataclasses.replace(
    tiny.CONFIG,
    size=64,
    audio=dataclasses.replace(tiny.CONFIG.audio, hearing=0),  # as in the large models; duel_on.py has it
    dit=dataclasses.replace(tiny.CONFIG.dit, depth=4, heads=4, width=64, ffn=128, warp=0),
    train=TrainConfig(steps=40, batch=CLIPS, latents=FRAMES, warmup=5, learning_rate=3e-3, token_keep=1.0),
)


def batch(seed: int, config: Config) -> dict:
    rng = np.random.default_rng(seed)
    tokens = conditions.history_tokens(config.audio) + 4 * FRAMES
    draw = lambda *shape: rng.normal(size=(CLIPS, *shape)).astype(np.float32)  # noqa: E731
    return {
        "latents": draw(FRAMES, CELLS, CELLS, config.dit.channels),
        "references": draw(2, CELLS, CELLS, config.dit.channels),
        "reference_kinds": np.array([[0, 1]] * CLIPS, np.int32),
        "reference_valid": rng.random((CLIPS, 2)) < [0.5, 2],
        "text": np.tile(np.array([[1, 5, 6, 0, 0, 0, 0, 0]], np.int32), (CLIPS, 1)),
        "weights": rng.uniform(1, 4, (CLIPS, FRAMES, CELLS, CELLS)).astype(np.float32),
        "speak": draw(tokens, tiny.FEATURES),
        "listen": draw(tokens, tiny.FEATURES),
    }


def distance(a, b) -> float:
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def laid_out_otherwise(found, expected) -> list[str]:
    """Paths of arrays that do not live where they should."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    return [
        f"{jax.tree_util.keystr(path)}: {x.sharding.spec} instead of {want.sharding.spec}"
        for (path, x), want in pairs
        if not x.sharding.is_equivalent_to(want.sharding, x.ndim)
    ]


def train(config: Config, stage: str, mesh, steps: int) -> dict:
    params = {k: v for k, v in tiny.params(config).items() if k != "vae"}
    program = make_program(config.train, mesh, conditions.axes(config), params, frozen(params))
    loss = make_loss(config, stage in CAUSAL, 1.0)
    state, step, losses = program.start(params), program.step(loss), []
    root = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
    with sharding.on(mesh):
        first = jax.device_put(batch(0, config), sharding.batch_sharding(mesh))
        compiled = step.lower(state, first, root).compile()
        gradient = jax.jit(lambda p, b: accumulated(loss, p, b, root, config.train.accumulate, program.axes)[2])
        wrong = laid_out_otherwise(gradient(state.params, first), program.state.params)
        for i in range(steps):
            state, metrics = compiled(state, jax.device_put(batch(i, config), sharding.batch_sharding(mesh)), root)
            losses.append(float(metrics["loss"]))
    wrong += laid_out_otherwise(state, program.state)
    cut = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.optimizer))
    count = analyse(compiled.as_text(), dict(mesh.shape))
    return {
        "losses": losses,
        "params": jax.device_get(state.params),
        "ema": jax.device_get(state.ema),
        "start": params,
        "wrong": wrong,
        "cut": cut,
        "collectives": collectives(count),
    }


def collectives(count) -> dict[str, list[int]]:
    """``kind over axes`` to how often it runs in a step and the bytes that it handles, as every device sees them."""
    found: dict[str, list[int]] = {}
    for one, times in sorted(count.collectives.items()):
        entry = found.setdefault(f"{one.kind} over {' x '.join(one.axes)}", [0, 0])
        entry[0] += times
        entry[1] += times * one.bytes
    return found


def main() -> None:
    at = sys.argv.index("--", 1)
    stage, steps, *options = sys.argv[1:at]
    config = override(CONFIG, options)
    one = None
    for text in ["fsdp=1", *sys.argv[at + 1 :]]:
        named = {name: int(size) for name, size in (item.split("=") for item in text.split(","))}
        mesh = sharding.make_mesh(MeshConfig(**({"fsdp": 1} | named)), jax.devices()[: math.prod(named.values())])
        run = train(config, stage, mesh, int(steps))
        one = one or run
        moved = jax.tree.map(np.subtract, run["params"], jax.device_get(one["start"]))
        moved_one = jax.tree.map(np.subtract, one["params"], jax.device_get(one["start"]))
        print(
            json.dumps(
                {
                    "mesh": text,
                    "losses": run["losses"],
                    "params": distance(run["params"], one["params"]),
                    "change": distance(moved, moved_one),
                    "ema": distance(run["ema"], one["ema"]),
                    "wrong": run["wrong"],
                    "cut": run["cut"],
                    "collectives": run["collectives"],
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
