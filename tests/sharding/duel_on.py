"""Distils the tiny model on its own rollouts, on one device and on meshes of 8 simulated ones.

``python -m tests.sharding.duel_on STEPS MESH...`` prints a line of JSON for one device and then for each mesh: losses,
and how far each network's change is from that on one device.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys

from tests.sharding.train_on import CONFIG, batch, distance, laid_out_otherwise  # isort: skip  # it simulates 8 devices

import jax
import numpy as np

from lpm_jax import sharding
from lpm_jax.config import DistillConfig, MeshConfig, StreamConfig, TrainConfig
from lpm_jax.models import conditions
from lpm_jax.training import distill, online
from tests import tiny

RUN = dataclasses.replace(
    CONFIG,
    dit=dataclasses.replace(CONFIG.dit, depth=2, warp=3),
    stream=StreamConfig(chunk=2, sink=1, window=1),
    distill=DistillConfig(
        rollout=3, gradient=1, generator_every=1, critic_learning_rate=1e-3, text_scale=1.5, switch=0.5
    ),
    train=TrainConfig(
        steps=8, batch=8, latents=6, warmup=0, optimizer="adamw", beta1=0.0, learning_rate=1e-3, ema=0.5
    ),
)  # fmt: skip


def train(mesh, steps: int) -> dict:
    student, teacher = ({k: v for k, v in tiny.params(RUN, seed).items() if k != "vae"} for seed in (0, 1))
    players = online.Players(distill.ON, RUN, student, teacher)
    program = players.program(conditions.axes(RUN), RUN, mesh)
    state, losses = program.start(players.learning), []
    begin = jax.device_get((state.params, state.critic.params))
    root = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
    with sharding.on(mesh):
        step = program.step(distill.make_duel(RUN, distill.ON, both=True))
        for i in range(steps):
            given = jax.device_put(batch(i, RUN), sharding.batch_sharding(mesh))
            state, metrics = step(state, given, root)
            losses.append([float(metrics["student/loss"]), float(metrics["critic/loss"])])
    end = jax.device_get((state.params, state.critic.params))
    moved = [jax.tree.map(np.subtract, a, b) for a, b in zip(end, begin, strict=True)]
    cut = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(program.fixed))
    return {"losses": losses, "moved": moved, "cut": cut, "wrong": laid_out_otherwise(state, program.state)}


def main() -> None:
    steps, one = int(sys.argv[1]), None
    for text in ["fsdp=1", *sys.argv[2:]]:
        named = {name: int(size) for name, size in (item.split("=") for item in text.split(","))}
        mesh = sharding.make_mesh(MeshConfig(**({"fsdp": 1} | named)), jax.devices()[: math.prod(named.values())])
        run = train(mesh, steps)
        one = one or run
        apart = [distance(a, b) for a, b in zip(run["moved"], one["moved"], strict=True)]
        print(json.dumps({"mesh": text, "apart": apart} | {k: run[k] for k in ("losses", "cut", "wrong")}), flush=True)


if __name__ == "__main__":
    main()
