"""The training loop: the same few lines for every stage.

Precedence of what a run starts from: (1) its own newest checkpoint, (2) the weights of the stage before it (or
``--train.init``), (3) scratch. Randomness is ``fold_in(seed, step)`` and the data iterator is saved with the weights,
so a run that was killed and resumed takes the same steps as one that was not.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import grain
import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from lpm_jax import sharding
from lpm_jax.checkpoint import checkpointer, save_weights, write_json
from lpm_jax.config import Config
from lpm_jax.training.step import make_program


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage brings to the loop.

    ``loss(params, batch, key)`` returns a scalar and a dict of scalars. ``validate(params, directory)`` writes sheets
    and returns scalars. ``finish(params)`` turns the averaged parameters into what the next stage loads.
    """

    name: str
    params: Any
    data: grain.IterDataset
    loss: Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    validate: Callable[[Any, Path], dict[str, float]]
    finish: Callable[[Any], Any]
    other_loss: Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]] | None = None
    other_every: int = 0  # every so many steps take ``other_loss`` instead
    frozen: Callable[[Any], Any] | None = None  # params -> tree of bools: True leaves stay as they are
    axes: Any = dataclasses.field(default_factory=dict)  # declared logical axes of params (sharding.py)
    tokens: int = 0  # patches of a frame, where the model has any: what the mesh must divide


def run_stage(stage: Stage, config: Config, workdir: Path) -> Any:
    """Trains ``stage`` to ``config.train.steps`` and returns the finished weights, also saved in ``workdir``."""
    train = config.train
    directory = workdir / stage.name
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", dataclasses.asdict(config))

    # ---- shard ---------------------------------------------------------------------------------------------------
    mesh = sharding.make_mesh(config.mesh)
    if stage.tokens:
        sharding.check(mesh, config.dit, train.batch // train.accumulate, stage.tokens)
    program = make_program(train, mesh, stage.axes, stage.params, stage.frozen and stage.frozen(stage.params))
    state = program.start(stage.params)
    root = jax.device_put(jax.random.key(train.seed), sharding.replicated(mesh))
    usual = program.step(stage.loss)
    other = program.step(stage.other_loss) if stage.other_loss else usual

    # ---- resume ------------------------------------------------------------------------------------------------
    iterator = iter(stage.data)
    saver = checkpointer(directory / "checkpoints", train.keep)
    if saver.latest is not None:
        loaded = saver.load_checkpointables(abstract_checkpointables={"state": program.state, "data": iterator})
        state = loaded["state"]
        print(f"{stage.name}: resumed at step {int(state.step)}", flush=True)

    # ---- loop --------------------------------------------------------------------------------------------------
    writer = SummaryWriter(str(directory / "tensorboard"))
    start = int(state.step)
    log = open_log(directory / "metrics.jsonl", start)
    progress = Progress(stage.name, start, train.steps)
    waited, since = 0.0, time.perf_counter()
    window: list[dict[str, jax.Array]] = []

    def save(at: int) -> None:
        saver.save_checkpointables(at, {"state": state, "data": iterator}, overwrite=True)

    for at in range(start + 1, train.steps + 1):
        before = time.perf_counter()
        batch = jax.device_put(next(iterator), sharding.batch_sharding(mesh))
        waited += time.perf_counter() - before
        step = other if stage.other_every and at % stage.other_every == 0 else usual
        with sharding.on(mesh):
            state, metrics = step(state, batch, root)
        window.append(metrics)
        if at % train.log_every == 0 or at == train.steps:
            means = {k: float(np.mean([m[k] for m in window])) for k in window[0]}
            elapsed = time.perf_counter() - since
            means |= {"seconds_per_step": elapsed / len(window), "data_wait": waited / elapsed}
            if not np.isfinite(means["loss"]):
                raise FloatingPointError(f"{stage.name}: loss is {means['loss']} at step {at}")
            for name, value in means.items():
                writer.add_scalar(f"train/{name}", value, at)
            log.write(json.dumps({"step": at} | means) + "\n")
            log.flush()
            progress.show(at, means)
            window, waited, since = [], 0.0, time.perf_counter()
        if at % train.validate_every == 0 or at == train.steps:
            scores = stage.validate(state.ema, directory / "validation" / f"{at:06d}")
            for name, value in scores.items():
                writer.add_scalar(f"validation/{name}", value, at)
            log.write(json.dumps({"step": at, "validation": scores}) + "\n")
            log.flush()
            progress.note(f"step {at} validation: " + "  ".join(f"{k} {v:.4g}" for k, v in scores.items()))
            since = time.perf_counter()
        if at % train.save_every == 0 or at == train.steps:
            save(at)
    progress.close()
    writer.close()
    log.close()
    saver.close()
    if hasattr(iterator, "close"):
        iterator.close()

    weights = stage.finish(jax.device_get(state.ema))
    save_weights(directory / "weights", "model", weights)
    return weights


def open_log(path: Path, start: int) -> TextIO:
    """The curves' file, open for more lines. Lines after step ``start``, which a resumed run will write again, and one
    that a kill cut off are dropped."""
    if path.is_file():
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= start:
                    kept.append(line + "\n")
            except ValueError:
                continue
        aside = path.with_suffix(".tmp")
        aside.write_text("".join(kept))
        aside.replace(path)
    return path.open("a")


class Progress:
    """A bar with ETA on a terminal, plain lines elsewhere."""

    def __init__(self, name: str, start: int, total: int):
        self.name, self.total = name, total
        self.first, self.began = start, time.perf_counter()
        self.bar = tqdm(total=total, initial=start, desc=name) if sys.stderr.isatty() else None

    def show(self, at: int, values: dict[str, float]) -> None:
        if self.bar is not None:
            self.bar.update(at - self.bar.n)
            self.bar.set_postfix(loss=f"{values['loss']:.4f}")
            return
        left = (time.perf_counter() - self.began) / max(at - self.first, 1) * (self.total - at)
        text = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        print(f"{self.name} {at}/{self.total}  {text}  left {left / 60:.1f} min", flush=True)

    def note(self, text: str) -> None:
        (self.bar.write if self.bar is not None else print)(f"{self.name} {text}")
        sys.stdout.flush()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
