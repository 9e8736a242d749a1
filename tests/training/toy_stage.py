"""A stage of milliseconds: a noisy linear regression on a small in-memory data set.

``python -m tests.training.toy_stage WORKDIR STEPS PAUSE [--train.save_every 5 ...]`` trains it behind a door like
train.py's, PAUSE seconds a batch, so that a test can stop or kill it, or run it in several processes.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.loader import Rows
from lpm_jax import distributed
from lpm_jax.config import Config, TrainConfig
from lpm_jax.errors import run_door
from lpm_jax.options import override
from lpm_jax.sharding import Axes
from lpm_jax.training.loop import Stage

BATCH = 8
CONFIG = Config(
    name="toy stage",
    train=TrainConfig(
        steps=12, batch=BATCH, learning_rate=0.3, warmup=2, log_every=1, save_every=5, validate_every=4, ema=0.9
    ),
)


class Points:
    """64 pairs of a vector and its image under a fixed affine map."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(64, 8)).astype(np.float32)
        self.y = self.x @ (0.3 * rng.normal(size=(8, 3))).astype(np.float32) + 2

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict:
        return {"x": self.x[index], "y": self.y[index], "index": np.int32(index)}


@dataclasses.dataclass(frozen=True)
class Jitter(grain.transforms.RandomMap):
    """Noise from the loader's own generator, which a resumed run must continue."""

    pause: float = 0.0

    def random_map(self, point: dict, rng: np.random.Generator) -> dict:
        time.sleep(self.pause)
        return point | {"x": point["x"] + 0.1 * rng.normal(size=8).astype(np.float32)}


def loss(params, batch, key):
    """Squared error with noise from the step's key, which a resumed run must draw again."""
    y = batch["x"] @ params["layer"]["kernel"] + params["layer"]["bias"]
    y = y + 0.1 * jax.random.normal(key, y.shape)
    return jnp.mean((y - batch["y"]) ** 2), {"first": batch["index"][0].astype(jnp.float32)}


def make(pause: float = 0.0, **changes) -> Stage:
    def data(rows):
        stream = grain.MapDataset.source(Points()).seed(3).shuffle().repeat(10**6).random_map(Jitter(pause / BATCH))
        stream = Rows(stream, BATCH, rows).batch(len(rows))
        return stream.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))

    stage = Stage(
        name="toy",
        params={"layer": {"kernel": jnp.full((8, 3), 0.1), "bias": jnp.zeros(3)}},
        data=data,
        batch=BATCH,
        loss=loss,
        validate=lambda params, directory: {"norm": float(jnp.linalg.norm(params["layer"]["kernel"]))},
        finish=lambda params: params,
        fingerprint="64 points",
        axes={"layer": {"kernel": Axes(("embed", None))}},  # a row on each of eight devices
    )
    return dataclasses.replace(stage, **changes)


def main() -> None:
    from lpm_jax.training.loop import run_stage

    workdir, steps, pause, *rest = sys.argv[1:]
    config = override(CONFIG, ["--train.steps", steps, "--train.save_every", "3", *rest])
    distributed.initialize()
    run_stage(make(float(pause)), config, Path(workdir))


if __name__ == "__main__":
    run_door(main)
