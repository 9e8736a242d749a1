"""Who is it? A network whose unit vectors lie near each other for pictures of the same character, in whatever pose.

Trained on training characters in random poses, among them twins that differ in a single trait (hair, glasses, beard,
skin, clothes, background), so that it does not only look at the largest coloured areas.

``python -m lpm_jax.bench.instruments identity`` trains it.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from lpm_jax.bench.instruments.fitting import fit, keep, same, unit
from lpm_jax.bench.instruments.trained import FOLDER, Trained, in_batches
from lpm_jax.bench.instruments.trunk import Trunk
from lpm_jax.errors import ArgumentParser
from lpm_jax.progress import progress

SIDE, WIDTH = 64, 48  # pixels that are looked at; numbers of an embedding
SHARPNESS = 12.0  # of the softmax over characters
_FIRST = 50_000_000  # seeds of training characters
_JUDGES = 30_000_000  # seeds of held-out characters; the reader's begin at 20 million, cases' at 2^42
TRAITS = ("hair_shape", "hair", "glasses", "beard", "skin", "clothes", "cloth", "background", "hat", "iris")


@jax.jit
def _embed(params: dict, pictures: Array) -> Array:
    return unit(_NETWORK.apply({"params": params}, pictures.astype(jnp.float32) / 127.5 - 1))


_NETWORK = Trunk((32, 48, 64), WIDTH, patch=4)


class Looks(Trained):
    """The trained network."""

    name = "identity"

    @staticmethod
    def initial(seed: int) -> dict:
        return _NETWORK.init(jax.random.key(seed), jnp.zeros((1, SIDE, SIDE, 3)))["params"]

    def embed(self, frames: UInt8[np.ndarray, "n 128 128 3"], batch: int = 32) -> Float[np.ndarray, "n 48"]:
        """Unit vectors; the cosine of two is their similarity."""
        return in_batches(lambda part: _embed(self.params, part), shrink(frames), batch)


def shrink(frames: UInt8[np.ndarray, "n 128 128 3"]) -> UInt8[np.ndarray, "n 64 64 3"]:
    """Half size."""
    return frames.reshape(-1, SIDE, 2, SIDE, 2, 3).mean((2, 4), dtype=np.float32).round().astype(np.uint8)


# --- training ----------------------------------------------------------------------------------------------------


def twins(seed: int, rng: np.random.Generator, held_out: bool = False) -> list:
    """A character, and the same with one trait of somebody else in the same style."""
    from data_pipeline.performers.character import STYLES, sample_character, sample_held_out_character

    sample = sample_held_out_character if held_out else sample_character
    style = STYLES[seed % len(STYLES)]
    one, donor = sample(2 * seed, style), sample(2 * seed + 1, style)
    barred = [
        t for t, bar in (("glasses", one.eyes != 2), ("beard", one.snout), ("hat", one.horns or one.antennae)) if bar
    ]
    differing = [t for t in TRAITS if getattr(one, t) != getattr(donor, t) and t not in barred]
    trait = str(rng.choice(differing))
    changes = {trait: getattr(donor, trait)}
    if trait == "skin":
        changes |= {name: getattr(donor, name) for name in ("skin_light", "skin_dark", "lip")}
    if trait == "background":
        changes |= {name: getattr(donor, name) for name in ("background_colour", "background_colour2")}
    return [one, dataclasses.replace(one, **changes)]


def pictures(characters: list, rng: np.random.Generator, poses: int) -> UInt8[np.ndarray, "who poses 64 64 3"]:
    """Each character in random poses."""
    from data_pipeline.performers.render import render
    from lpm_jax.bench.instruments.drawn import sample_poses

    return np.stack([shrink(render(who, sample_poses(rng, poses))) for who in characters])


def loss(params: dict, batch: Array, key: Array) -> Array:
    """InfoNCE between two pictures of each character in the batch."""
    from lpm_jax.bench.instruments.drawn import augment

    count = batch.shape[0]
    flat = batch.reshape(2 * count, *batch.shape[2:]).astype(jnp.float32) / 127.5 - 1
    seen = unit(_NETWORK.apply({"params": params}, augment(flat, key))).reshape(count, 2, -1)
    return same(seen[:, 0], seen[:, 1], SHARPNESS)


def batches(faces: np.ndarray, seed: int, who: int = 48):
    """``batch(step)``: two poses each of ``who`` characters; twins are neighbours, so they come together."""

    def batch(step: int) -> np.ndarray:
        rng = np.random.default_rng([seed, step])
        pairs = rng.choice(len(faces) // 2, min(who // 2, len(faces) // 2), replace=False)
        chosen = np.sort(np.concatenate([2 * pairs, 2 * pairs + 1]))
        poses = np.stack([rng.choice(faces.shape[1], 2, replace=False) for _ in chosen])
        return faces[chosen[:, None], poses]

    return batch


def accuracy(looks: Looks, pairs: int = 100, poses: int = 4) -> dict[str, float]:
    """On held-out characters: is a picture nearer to the same one's than to others' (AUC), and than to its twin's?"""
    rng = np.random.default_rng(1)
    faces = np.concatenate([pictures(twins(_JUDGES + i, rng, True), rng, poses) for i in range(pairs)])
    seen = np.asarray(_embed(looks.params, faces.reshape(-1, SIDE, SIDE, 3))).reshape(*faces.shape[:2], -1)
    cosine = np.einsum("apd,bqd->abpq", seen, seen)
    apart = ~np.eye(poses, dtype=bool)
    own = np.stack([cosine[i, i][apart] for i in range(len(seen))])  # [who, pairs of poses]
    who = np.arange(len(seen))
    stranger = np.stack([cosine[i, (who // 2 != i // 2)].reshape(-1) for i in who])
    twin = np.stack([cosine[i, i ^ 1].reshape(-1) for i in who])
    ahead = lambda a, b: np.mean([(x[:, None] > y[None]).mean() for x, y in zip(a, b, strict=True)])  # noqa: E731
    found = {"auc_strangers": ahead(own, stranger), "auc_twins": ahead(own, twin), "own": own.mean()}
    found |= {"strangers": stranger.mean(), "twins": twin.mean()}
    return {name: float(value) for name, value in found.items()}


def main(argv: list[str]) -> int:
    parser = ArgumentParser("identity", description="Train the identity embedding and measure it.")
    parser.add_argument("--out", type=Path, default=FOLDER / "identity")
    parser.add_argument("--pairs", type=int, default=1500, help="of twins, to train on")
    parser.add_argument("--poses", type=int, default=6, help="pictures of each character")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--judges", type=int, default=100, help="pairs of held-out twins to measure on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    began = time.process_time()
    rng = np.random.default_rng(args.seed)
    first = _FIRST + args.seed * 1_000_000
    rows = progress(range(args.pairs), "rendering")
    faces = np.concatenate([pictures(twins(first + i, rng), rng, args.poses) for i in rows])
    params = fit(loss, Looks.initial(args.seed), batches(faces, args.seed), args.steps, args.rate, args.seed)
    made = {name: getattr(args, name) for name in ("pairs", "poses", "steps", "rate", "seed")}
    keep(args.out, "identity", params, made, accuracy(Looks(params), args.judges), began)
    return 0
