"""How much time a training run spends outside its compiled step: waiting for data, copying, logging, checkpoints.

    uv run python -m benchmarks.step_overhead --data runs/performers --workdir runs/toy --out benchmarks/results

The real loop trains a stage of the toy for a few steps. Every few of them it stops and the same compiled step is run as
many times on one batch that is already on the device, with nothing in between: what remains of the loop's time is the
loop's own. Both kinds of blocks alternate, so that a machine that others use too is equally slow in both. One block
holds a checkpoint; its cost is spread over ``--save_every`` steps. ``--workdir`` needs the autoencoder's weights (stage
``vae``); nothing is written there but the latents, if they are missing.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax

from lpm_jax.checkpoint import write_json
from lpm_jax.config import load_config
from lpm_jax.errors import ArgumentParser, run_door
from lpm_jax.training.flow_matching import make_stage
from lpm_jax.training.loop import run_stage

BLOCK = 3  # steps


class Probe:
    """Wraps a compiled step and, before every :data:`BLOCK` steps of the loop, runs it as often without the loop.

    ``loop`` and ``alone`` hold the seconds of the blocks, in their order.
    """

    def __init__(self) -> None:
        self.calls, self.loop, self.alone = 0, [], []
        self.since = 0.0

    def __call__(self, step):
        def probed(state, batch, root):
            self.calls += 1
            if self.calls > 1 and (self.calls - 2) % BLOCK == 0:  # the first call compiles
                state = self.measure(step, state, batch, root)
            return step(state, batch, root)

        return probed

    def measure(self, step, state, batch, root):
        """The loop's block ends when its last step does; then the step runs alone; then the loop's next begins."""
        jax.block_until_ready(state)
        if self.since:
            self.loop.append(time.perf_counter() - self.since)
        jax.block_until_ready(batch)
        before = time.perf_counter()
        for _ in range(BLOCK):
            state, _ = step(state, batch, root)
        jax.block_until_ready(state)
        self.alone.append(time.perf_counter() - before)
        self.since = time.perf_counter()
        return state


def measure(config, stage: str, workdir: Path, blocks: int, save_every: int) -> dict:
    """Runs ``blocks`` pairs of blocks of ``stage`` and returns the figures."""
    saved_block = blocks // 2
    steps = 2 + BLOCK * blocks
    changes = {"steps": steps, "save_every": 2 + BLOCK * saved_block, "validate_every": 10**9, "log_every": BLOCK}
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))
    made = make_stage(stage, "scratch", config, workdir)
    made = dataclasses.replace(made, validate=lambda params, directory: {})
    probe = Probe()
    with tempfile.TemporaryDirectory() as scratch:
        run_stage(made, config, Path(scratch), around=probe)
        lines = (Path(scratch) / stage / "metrics.jsonl").read_text().splitlines()
    parts = host_parts([json.loads(line) for line in lines])
    with_save, without = probe.loop[saved_block], [t for i, t in enumerate(probe.loop) if i != saved_block]
    alone = [t for i, t in enumerate(probe.alone[: len(probe.loop)]) if i != saved_block]
    ratios = [loop / step - 1 for loop, step in zip(without, alone, strict=True)]
    step = statistics.median(alone) / BLOCK
    checkpoint = with_save - statistics.median(without)
    return {
        "stage": stage,
        "device": jax.devices()[0].device_kind,
        "compiled_step_seconds": step,
        "loop_step_seconds": statistics.median(without) / BLOCK,
        "outside_share": statistics.median(ratios),
        "outside_share_of_blocks": ratios,
        "checkpoint_seconds": checkpoint,
        "checkpoint_stall_seconds": parts.pop("save"),
        "checkpoint_share": checkpoint / (save_every * step),
        "host_milliseconds_per_step": {name: 1000 * seconds for name, seconds in parts.items()},
    }


def host_parts(lines: list[dict]) -> dict[str, float]:
    """Seconds of the loop's thread per step by part, the first window (which compiles) left out; of ``save`` the
    longest."""
    windows = [line for line in lines if "speed/seconds_per_step" in line][1:]
    totals, saves, steps = {}, [0.0], 0
    for line in windows:
        seconds = BLOCK * line["speed/seconds_per_step"] / (1 - line["speed/save"] - line["speed/validate"])
        for name in ("data_wait", "put", "log"):
            totals[name] = totals.get(name, 0.0) + seconds * line[f"speed/{name}"]
        saves.append(seconds * line["speed/save"])
        steps += BLOCK
    return {name: total / steps for name, total in totals.items()} | {"save": max(saves)}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/toy.py")
    parser.add_argument("--data", required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--stage", default="base.speak")
    parser.add_argument("--blocks", type=int, default=8, help="pairs of blocks of three steps")
    parser.add_argument("--save_every", type=int, default=250, help="steps that a checkpoint's cost is spread over")
    parser.add_argument("--out", type=Path, help="folder for step_overhead.json")
    args = parser.parse_args()
    config = dataclasses.replace(load_config(args.config).for_stage(args.stage), data=args.data)
    found = measure(config, args.stage, args.workdir, args.blocks, args.save_every)
    print(json.dumps(found, indent=2))
    if args.out:
        write_json(args.out / "step_overhead.json", found)


if __name__ == "__main__":
    run_door(main)
