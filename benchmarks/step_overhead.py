"""How much time a training run spends outside its compiled step: waiting for data, copying, logging, checkpoints.

    uv run python -m benchmarks.step_overhead --data runs/performers --workdir runs/toy --out benchmarks/results

The real loop trains a stage of the toy for a few steps. Every few of them it stops and the same compiled step is run as
many times on one batch that is already on the device, with nothing in between: what remains of the loop's time is the
loop's own. Both kinds of blocks alternate, so that a machine that others use too is equally slow in both. Some blocks
hold a checkpoint; the last one's cost (the first compiles) is spread over ``--save_every`` steps.

Beside the clock on the wall the process's own time on the processors is measured. Where these compute the step, work
of the loop and of its threads (loader, checkpoint, TensorBoard) is taken from it, and shows there whatever else the
machine does; on an accelerator most of it is hidden behind the step and only the wall counts. As the difference of two
large numbers is uncertain on a busy machine, the loop is also run *empty*, with a step that returns at once: all that
is left is its own work, hidden behind nothing. ``--workdir`` needs the autoencoder's weights (stage ``vae``); nothing
is written there but the latents, if they are missing.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lpm_jax.checkpoint import write_json
from lpm_jax.config import TrainConfig
from lpm_jax.environment import environment
from lpm_jax.errors import ArgumentParser, run_door
from lpm_jax.options import load_config
from lpm_jax.training.flow_matching import make_stage
from lpm_jax.training.loop import run_stage

BLOCK = 2  # steps


def now() -> np.ndarray:
    """Seconds on the wall, and of this process on all processors."""
    return np.array([time.perf_counter(), time.process_time()])


class Probe:
    """Wraps a compiled step and, before every :data:`BLOCK` steps of the loop, runs it as often without the loop.

    ``loop`` and ``alone`` hold the seconds of the blocks, in their order: on the wall, and of processors. ``dispatch``
    holds those that the loop's calls took to return.
    """

    def __init__(self) -> None:
        self.calls, self.loop, self.alone, self.dispatch = 0, [], [], []
        self.since: np.ndarray | None = None

    def __call__(self, step):
        def probed(state, batch, root):
            self.calls += 1
            if self.calls > 1 and (self.calls - 2) % BLOCK == 0:  # the first call compiles
                state = self.measure(step, state, batch, root)
            before = time.perf_counter()
            result = step(state, batch, root)
            self.dispatch.append(time.perf_counter() - before)
            return result

        return probed

    def measure(self, step, state, batch, root):
        """The loop's block ends when its last step does; then the step runs alone; then the loop's next begins."""
        jax.block_until_ready((state, batch))
        if self.since is not None:
            self.loop.append(now() - self.since)
        before = now()
        for _ in range(BLOCK):
            state, _ = step(state, batch, root)
        jax.block_until_ready(state)
        self.alone.append(now() - before)
        self.since = now()
        return state


class Empty:
    """Instead of a compiled step: the state as it is, and metrics of zeros. ``times`` holds when each call came."""

    def __init__(self) -> None:
        self.times: list[np.ndarray] = []

    def __call__(self, step):
        def stand_in(state, batch, root):
            if not self.times:
                shapes = step.eval_shape(state, batch, root)[1]
                self.metrics = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            self.times.append(now())
            return state, dict(self.metrics)

        return stand_in


def empty_loop(config, stage, scratch: Path) -> np.ndarray:
    """Seconds a step of the loop without a step, on the wall and of processors, as often logged as by default."""
    log_every = TrainConfig().log_every
    never = {"save_every": 10**9, "validate_every": 10**9}
    train = dataclasses.replace(config.train, steps=5 * log_every, log_every=log_every, **never)
    stand_in = Empty()
    run_stage(stage, dataclasses.replace(config, train=train), scratch, around=stand_in)
    return (stand_in.times[-1] - stand_in.times[log_every - 1]) / (4 * log_every)


def measure(config, stage: str, workdir: Path, blocks: int, save_every: int) -> dict:
    """Runs ``blocks`` pairs of blocks of ``stage`` and returns the figures."""
    every = BLOCK * max(blocks // 3, 1)
    saved = [i for i in range(blocks) if (2 + BLOCK * i) % every == 0]  # blocks whose first step is saved
    changes = {"steps": 2 + BLOCK * blocks, "save_every": every, "validate_every": 10**9, "log_every": BLOCK}
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))
    made = make_stage(stage, "scratch", config, workdir)
    made = dataclasses.replace(made, validate=lambda params, directory: {})
    probe = Probe()
    with tempfile.TemporaryDirectory() as scratch:
        run_stage(made, config, Path(scratch), around=probe)
        lines = (Path(scratch) / stage / "metrics.jsonl").read_text().splitlines()
    with tempfile.TemporaryDirectory() as scratch:
        empty = empty_loop(config, made, Path(scratch))
    parts = host_parts([json.loads(line) for line in lines])
    stall = parts.pop("save")
    parts["dispatch"] = float(np.median(probe.dispatch))
    plain = [i for i in range(blocks) if i not in saved]
    loop, alone = np.array(probe.loop)[plain] / BLOCK, np.array(probe.alone)[plain] / BLOCK
    step, checkpoint = np.median(alone, axis=0), probe.loop[saved[-1]] - BLOCK * np.median(loop, axis=0)
    shares = loop / alone - 1
    both = lambda values: dict(zip(("wall", "processors"), np.round(values, 4).tolist(), strict=True))  # noqa: E731
    return {
        "stage": stage,
        "device": jax.devices()[0].device_kind,
        "blocks": len(plain),
        "compiled_step_seconds": both(step),
        "loop_step_seconds": both(np.median(loop, axis=0)),
        "outside_share": both(np.median(shares, axis=0)),
        "outside_share_of_sums": both(loop.sum(axis=0) / alone.sum(axis=0) - 1),
        "outside_share_quartiles": [both(np.quantile(shares, q, axis=0)) for q in (0.25, 0.75)],
        "checkpoint_seconds": both(checkpoint),
        "checkpoint_stall_seconds": stall,
        "checkpoint_share": both(checkpoint / (save_every * step)),
        "empty_loop_seconds": both(empty),
        "empty_loop_share": both(empty / step),
        "host_milliseconds_per_step": {name: 1000 * seconds for name, seconds in parts.items()},
    }


def host_parts(lines: list[dict]) -> dict[str, float]:
    """Seconds of the loop's thread per step by part, the first window (which compiles) left out; of ``save`` those of
    the last."""
    windows = [line for line in lines if "speed/seconds_per_step" in line][1:]
    totals, saves, steps = {}, [0.0], 0
    for line in windows:
        seconds = BLOCK * line["speed/seconds_per_step"] / (1 - line["speed/save"] - line["speed/validate"])
        for name in ("data_wait", "put", "log"):
            totals[name] = totals.get(name, 0.0) + seconds * line[f"speed/{name}"]
        saves += [seconds * line["speed/save"]] if line["speed/save"] else []
        steps += BLOCK
    return {name: total / steps for name, total in totals.items()} | {"save": saves[-1]}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/toy.py")
    parser.add_argument("--data", required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--stage", default="base.speak")
    parser.add_argument("--blocks", type=int, default=12, help="pairs of blocks of two steps")
    parser.add_argument("--save_every", type=int, default=250, help="steps that a checkpoint's cost is spread over")
    parser.add_argument("--out", type=Path, help="folder for step_overhead.json")
    args = parser.parse_args()
    config = dataclasses.replace(load_config(args.config).for_stage(args.stage), data=args.data)
    found = measure(config, args.stage, args.workdir, args.blocks, args.save_every)
    print(json.dumps(found, indent=2))
    if args.out:
        command = f"python -m benchmarks.step_overhead --stage {args.stage} --blocks {args.blocks}"
        write_json(args.out / "step_overhead.json", {"command": command} | environment() | {"figures": found})


if __name__ == "__main__":
    run_door(main)
