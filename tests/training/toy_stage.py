"""A stage of milliseconds: a noisy linear regression on a small in-memory data set.

``python -m tests.training.toy_stage WORKDIR STEPS PAUSE`` trains it, PAUSE seconds a batch, so that a test can kill it.
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

from lpm_jax.config import Config, TrainConfig
from lpm_jax.training.loop import Stage

CONFIG = Config(
    name="toy stage",
    train=TrainConfig(
        steps=12, batch=4, learning_rate=0.3, warmup=2, log_every=1, save_every=5, validate_every=4, ema=0.9
    ),
)


class Points:
    """32 pairs of a vector and its image under a fixed affine map."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(32, 6)).astype(np.float32)
        self.y = self.x @ (0.3 * rng.normal(size=(6, 3))).astype(np.float32) + 2

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict:
        return {"x": self.x[index], "y": self.y[index], "index": np.int32(index)}

    def __repr__(self) -> str:
        return "Points"


@dataclasses.dataclass(frozen=True)
class Jitter(grain.transforms.RandomMap):
    """Noise from the loader's own generator, which a resumed run must continue."""

    pause: float = 0.0

    def random_map(self, point: dict, rng: np.random.Generator) -> dict:
        time.sleep(self.pause)
        return point | {"x": point["x"] + 0.1 * rng.normal(size=6).astype(np.float32)}


def loss(params, batch, key):
    """Squared error with noise from the step's key, which a resumed run must draw again."""
    y = batch["x"] @ params["layer"]["kernel"] + params["layer"]["bias"]
    y = y + 0.1 * jax.random.normal(key, y.shape)
    return jnp.mean((y - batch["y"]) ** 2), {"first": batch["index"][0].astype(jnp.float32)}


def make(pause: float = 0.0, **changes) -> Stage:
    data = grain.MapDataset.source(Points()).seed(3).shuffle().repeat().random_map(Jitter(pause / 4)).batch(4)
    stage = Stage(
        name="toy",
        params={"layer": {"kernel": jnp.full((6, 3), 0.1), "bias": jnp.zeros(3)}},
        data=data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)),
        loss=loss,
        validate=lambda params, directory: {"norm": float(jnp.linalg.norm(params["layer"]["kernel"]))},
        finish=lambda params: params,
    )
    return dataclasses.replace(stage, **changes)


if __name__ == "__main__":
    from lpm_jax.training.loop import run_stage

    workdir, steps, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    train = dataclasses.replace(CONFIG.train, steps=steps, save_every=3)
    run_stage(make(pause), dataclasses.replace(CONFIG, train=train), workdir)
