"""Reads what the first reader does not: turns, gaze, brows, smile and frown.

``python -m lpm_jax.bench.instruments expressions`` trains it on the same kind of frames.
"""

from __future__ import annotations

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from data_pipeline.schema import PARAM_INDEX
from lpm_jax.bench.instruments.fitting import fit, keep
from lpm_jax.bench.instruments.reader import CROP, crop
from lpm_jax.bench.instruments.trained import FOLDER, Trained, in_batches
from lpm_jax.bench.instruments.trunk import Trunk
from lpm_jax.errors import ArgumentParser

#: Outputs: the parameters whose mean they are, and how much of it is an output of 1.
OUTPUTS = {
    "yaw": (("yaw",), 20.0),
    "roll": (("roll",), 10.0),
    "gaze_x": (("gaze_x",), 1.0),
    "gaze_y": (("gaze_y",), 1.0),
    "brow_inner": (("brow_inner_left", "brow_inner_right"), 1.0),
    "brow_outer": (("brow_outer_left", "brow_outer_right"), 1.0),
    "smile": (("smile",), 1.0),
    "frown": (("frown",), 1.0),
}
_NETWORK = Trunk((32, 48, 64), len(OUTPUTS), patch=4)
_SCALES = np.array([scale for _, scale in OUTPUTS.values()], np.float32)
_JUDGES = 40_000_000  # seeds of held-out characters


@jax.jit
def _apply(params: dict, frames: Array) -> Array:
    return _NETWORK.apply({"params": params}, frames.astype(jnp.float32) / 127.5 - 1)


class Expressions(Trained):
    """The trained network."""

    name = "expressions"

    @staticmethod
    def initial(seed: int) -> dict:
        return _NETWORK.init(jax.random.key(seed), jnp.zeros((1, CROP, CROP, 3)))["params"]

    def read(self, frames: UInt8[np.ndarray, "n 128 128 3"], batch: int = 64) -> dict[str, Float[np.ndarray, " n"]]:
        """Every output by name, in the units of the parameters, and ``brow``: the mean of inner and outer."""
        out = in_batches(lambda part: _apply(self.params, part), crop(frames), batch)
        read = dict(zip(OUTPUTS, (out * _SCALES).T, strict=True))
        return read | {"brow": (read["brow_inner"] + read["brow_outer"]) / 2}


def labels_of(character, params: Float[np.ndarray, "n params"]) -> Float[np.ndarray, "n outputs"]:
    """What the network should answer."""
    columns = [params[:, [PARAM_INDEX[n] for n in names]].mean(1) for names, _ in OUTPUTS.values()]
    return (np.stack(columns, 1) / _SCALES).astype(np.float32)


def loss(params: dict, batch: tuple[Array, Array], key: Array) -> Array:
    """Smooth absolute error. A mirrored frame would ask for mirrored answers: frames are not mirrored."""
    from lpm_jax.bench.instruments.drawn import augment

    y = _NETWORK.apply({"params": params}, augment(batch[0].astype(jnp.float32) / 127.5 - 1, key, mirror=False))
    return jnp.mean(jnp.sqrt((y - batch[1]) ** 2 + 0.03**2) - 0.03)


def accuracy(expressions: Expressions, characters: int = 200, poses: int = 6) -> dict[str, float]:
    """Correlation of every output on held-out characters in random poses."""
    from data_pipeline.performers.character import sample_held_out_character
    from data_pipeline.performers.render import render
    from lpm_jax.bench.instruments.drawn import sample_poses
    from lpm_jax.bench.signals import correlation

    rng = np.random.default_rng(1)
    read, truth = [], []
    for i in range(characters):
        who, params = sample_held_out_character(_JUDGES + i), sample_poses(rng, poses)
        found = expressions.read(render(who, params))
        read.append(np.stack([found[name] for name in OUTPUTS], 1))
        truth.append(labels_of(who, params) * _SCALES)
    read, truth = np.concatenate(read), np.concatenate(truth)
    return {f"{name}_r": correlation(read[:, i], truth[:, i]) for i, name in enumerate(OUTPUTS)}


def main(argv: list[str]) -> int:
    from lpm_jax.bench.instruments.drawn import training_frames

    parser = ArgumentParser("expressions", description="Train the reader of expressions and measure it.")
    parser.add_argument("--out", type=Path, default=FOLDER / "expressions")
    parser.add_argument("--frames", type=int, default=16_000)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--judges", type=int, default=200, help="held-out characters to measure on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    began = time.process_time()
    frames, labels = training_frames(
        args.frames, args.seed + 100, label=labels_of
    )  # other characters than the reader's

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        pick = np.random.default_rng([args.seed, step]).choice(len(frames), min(128, len(frames)), replace=False)
        return frames[pick], labels[pick]

    params = fit(loss, Expressions.initial(args.seed), batch, args.steps, args.rate, args.seed)
    made = {name: getattr(args, name) for name in ("frames", "steps", "rate", "seed")}
    keep(args.out, "expressions", params, made, accuracy(Expressions(params), args.judges), began)
    return 0
