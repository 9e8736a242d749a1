"""A small network that reads from pixels what the benchmark compares: mouth, head pitch, eyes, glasses, beard.

``uv run python -m benchmarks.reader`` trains it (about 25 CPU minutes) on rendered frames of training
characters with poses drawn independently of each other, blurred, quantised and tinted at random so that it also reads
a generative model's frames, and writes the weights with its accuracy on held-out characters beside them. The reader
is a measuring instrument: it never sees a frame of a model that it measures nor a held-out character, but it is taught
every style of drawing, also the one that models are not, or it could not tell how well they cope with it.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8

from benchmarks.metrics import correlation, pooled_correlation
from benchmarks.report import progress
from data_pipeline.schema import PARAM_INDEX
from lpm_jax.checkpoint import load_weights, save_weights, write_json

WEIGHTS = Path(__file__).parent / "reader"
SIZE, CROP = 128, 96  # pixels: a frame, and the middle of it that the reader looks at
PITCH_SCALE = 20.0  # degrees at an output of 1
_HELD_OUT_CLIPS = 1 << 41  # seeds of the clips that judge the reader: no other code uses this range


class Reading(NamedTuple):
    """What the reader saw in each frame."""

    aperture: Float[np.ndarray, " frames"]  # 0..1, as PARAMS has it
    pitch: Float[np.ndarray, " frames"]  # degrees, chin down positive
    eyes: Float[np.ndarray, " frames"]  # mean of both lids, 0 closed .. 1 open
    glasses: Float[np.ndarray, " frames"]  # logit
    beard: Float[np.ndarray, " frames"]  # logit


class Network(nn.Module):
    """``[batch, 96, 96, 3]`` in -1..1 to five numbers; 0.12 M parameters."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b 5"]:
        b, h, w, c = x.shape
        x = x.reshape(b, h // 4, 4, w // 4, 4, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 4, w // 4, 16 * c)
        x = nn.Conv(32, (3, 3), name="conv_in")(x)
        for i, width in enumerate((32, 48, 64)):
            if i:
                x = nn.Conv(width, (3, 3), strides=2, name=f"down{i}")(self._norm(x, f"gain{i}"))
            if i < 2:
                x = x + nn.Conv(width, (3, 3), name=f"mix{i}")(self._norm(x, f"inner{i}"))
        x = nn.Conv(16, (1, 1), name="squeeze")(self._norm(x, "gain_out")).reshape(b, -1)
        return nn.Dense(5, name="heads")(nn.silu(nn.Dense(48, name="hidden")(nn.silu(x))))

    def _norm(self, x: Array, name: str) -> Array:
        gain = self.param(name, nn.initializers.ones, (x.shape[-1],))
        return nn.silu(x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * gain)


class Reader:
    """The trained network. See :meth:`load` and :meth:`read`."""

    def __init__(self, params: dict):
        self.params = params

    @classmethod
    def load(cls, directory: str | Path = WEIGHTS) -> Reader:
        """Raises InputError where there are no weights or they do not fit."""
        abstract = jax.eval_shape(lambda: Network().init(jax.random.key(0), jnp.zeros((1, CROP, CROP, 3))))["params"]
        return cls(load_weights(directory, "reader", abstract))

    def read(self, frames: UInt8[np.ndarray, "frames 128 128 3"], batch: int = 64) -> Reading:
        """Raises ValueError for frames of another size."""
        frames = np.asarray(frames)
        if frames.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(f"frames: expected {SIZE} x {SIZE} RGB, found {list(frames.shape[1:])}")
        out = [np.zeros((0, 5), np.float32)]
        for i in range(0, len(frames), batch):
            part = crop(frames[i : i + batch])
            padded = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), np.uint8)])
            out.append(np.asarray(_apply(self.params, padded))[: len(part)])
        y = np.concatenate(out)
        return Reading(y[:, 0].clip(0, 1), y[:, 1] * PITCH_SCALE, y[:, 2].clip(0, 1), y[:, 3], y[:, 4])


def crop(frames: UInt8[np.ndarray, "frames 128 128 3"]) -> UInt8[np.ndarray, "frames 96 96 3"]:
    """The middle of the frames."""
    edge = (SIZE - CROP) // 2
    return frames[:, edge : edge + CROP, edge : edge + CROP]


@jax.jit
def _apply(params: dict, frames: Array) -> Array:
    return Network().apply({"params": params}, frames.astype(jnp.float32) / 127.5 - 1)


# --- training ----------------------------------------------------------------------------------------------------


def sample_poses(rng: np.random.Generator, frames: int) -> Float[np.ndarray, "frames params"]:
    """Poses whose parameters are independent of each other, wider than performances need; closed mouths are common."""
    from data_pipeline.performers.render import neutral_params

    params = neutral_params(frames)

    def some(share: float, low: float, high: float, rest: float = 0.0) -> np.ndarray:
        return np.where(rng.random(frames) < share, rng.uniform(low, high, frames), rest)

    def put(name: str, values: np.ndarray, low: float = 0.0, high: float = 1.0) -> None:
        params[:, PARAM_INDEX[name]] = np.clip(values, low, high)

    dice = rng.random(frames)
    slightly, widely = rng.uniform(0, 0.12, frames), rng.uniform(0, 1, frames) ** 1.3
    aperture = np.where(dice < 0.3, 0.0, np.where(dice < 0.45, slightly, widely))
    put("aperture", aperture)
    pitch = np.where(rng.random(frames) < 0.6, rng.normal(3, 7, frames), rng.uniform(-20, 20, frames))
    put("pitch", pitch, -20, 20)
    for name, spread, limit in (("yaw", 9, 30), ("roll", 4, 15), ("shift_x", 0.025, 0.1), ("shift_y", 0.025, 0.1)):
        put(name, rng.normal(0, spread, frames), -limit, limit)
    put("scale", rng.normal(1, 0.025, frames), 0.85, 1.2)
    put("lean", some(0.5, 0, 0.7))
    put("breath", rng.random(frames))
    for name in ("gaze_x", "gaze_y"):
        put(name, rng.normal(0, 0.35, frames), -1, 1)
    dice, ajar, winks = rng.random(frames), rng.random(frames), rng.random(frames) < 0.05
    lids = np.where(dice < 0.15, 0.0, np.where(dice < 0.45, ajar, 0.75 + 0.25 * ajar))
    put("lid_left", lids)
    put("lid_right", np.where(winks, rng.random(frames), lids))
    put("squint", some(0.3, 0, 1))
    put("pupil", rng.random(frames))
    for side in ("inner", "outer"):
        both = rng.normal(0, 0.35, frames)
        put(f"brow_{side}_left", both + rng.normal(0, 0.1, frames), -1, 1)
        put(f"brow_{side}_right", both + rng.normal(0, 0.1, frames), -1, 1)
    for name, share in (("smile", 0.5), ("frown", 0.25), ("cheek", 0.3), ("teeth", 0.5), ("tongue", 0.3)):
        put(name, some(share, 0, 1))
    put("jaw_open", aperture + rng.normal(0, 0.2, frames))
    put("lip_width", rng.uniform(0.2, 0.9, frames))
    put("lip_pucker", some(0.4, 0, 1))
    put("lip_upper", some(0.3, 0, 1))
    put("lip_lower", some(0.3, 0, 1))
    return params


def labels_of(character, params: Float[np.ndarray, "frames params"]) -> Float[np.ndarray, "frames 5"]:
    """What the network should answer: its five outputs, glasses and beard as 0 or 1."""
    lids = (params[:, PARAM_INDEX["lid_left"]] + params[:, PARAM_INDEX["lid_right"]]) / 2
    flags = [np.full(len(params), float(name != "none")) for name in (character.glasses, character.beard)]
    pitch = params[:, PARAM_INDEX["pitch"]] / PITCH_SCALE
    return np.stack([params[:, PARAM_INDEX["aperture"]], pitch, lids, *flags], 1).astype(np.float32)


def training_frames(frames: int, seed: int = 0, per_character: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Cropped uint8 frames of training characters, in all styles and half of them bearded, and their labels."""
    from data_pipeline.performers.character import STYLES, sample_character
    from data_pipeline.performers.render import render

    rng = np.random.default_rng(seed)
    pictures, labels = [], []
    for i in progress(range(frames // per_character), "rendering"):
        style = STYLES[i % len(STYLES)]
        four = [sample_character(10_000_000 + 100_000 * seed + 4 * i + k, style) for k in range(4)]
        bearded = [c for c in four if c.beard != "none"]
        character = (bearded or four)[0] if rng.random() < 0.5 else four[0]
        params = sample_poses(rng, per_character)
        pictures.append(crop(render(character, params)))
        labels.append(labels_of(character, params))
    return np.concatenate(pictures), np.concatenate(labels)


def _dct() -> np.ndarray:
    k, n = np.arange(8)[:, None], np.arange(8)[None]
    return (np.cos(np.pi * (n + 0.5) * k / 8) * np.where(k == 0, np.sqrt(1 / 8), 0.5)).astype(np.float32)


def augment(x: Float[Array, "b h w c"], key: Array) -> Float[Array, "b h w c"]:
    """What generators and codecs do to frames in -1..1: mirror, blur, coarse 8 x 8 DCT, tint, noise."""
    b, h, w, c = x.shape
    keys = jax.random.split(key, 7)
    scalar = lambda k, low, high: jax.random.uniform(keys[k], (b, 1, 1, 1), minval=low, maxval=high)  # noqa: E731
    x = jnp.where(scalar(0, 0, 1) < 0.5, x[:, :, ::-1], x)

    sigma = jnp.maximum(scalar(1, -0.8, 1.3), 0.05)
    taps = jnp.exp(-0.5 * (jnp.arange(-2, 3) / sigma) ** 2)  # [b, 1, 1, 5]
    taps = taps / taps.sum(-1, keepdims=True)
    for axis in (1, 2):
        pad = [(0, 0)] * 4
        pad[axis] = (2, 2)
        wide = jnp.pad(x, pad, mode="edge")
        x = sum(taps[..., k : k + 1] * jax.lax.slice_in_dim(wide, k, k + x.shape[axis], axis=axis) for k in range(5))

    dct = jnp.asarray(_dct())
    blocks = x.reshape(b, h // 8, 8, w // 8, 8, c)
    waves = jnp.einsum("ui,vj,bpiqjc->bpuqvc", dct, dct, blocks)
    step = jnp.maximum(scalar(2, -0.1, 0.1), 1e-3)[..., None, None]
    ramp = 1 + 0.5 * (jnp.arange(8)[:, None, None, None] + jnp.arange(8)[None, None, :, None])
    waves = jnp.round(waves / (step * ramp)) * step * ramp
    x = jnp.einsum("ui,vj,bpuqvc->bpiqjc", dct, dct, waves).reshape(b, h, w, c)

    gain = 1 + 0.06 * jax.random.normal(keys[3], (b, 1, 1, c))
    shift = 0.05 * jax.random.normal(keys[4], (b, 1, 1, c))
    return x * gain + shift + scalar(5, 0, 0.05) * jax.random.normal(keys[6], x.shape)


def _loss(params: dict, frames: Array, labels: Array, key: Array) -> Array:
    x = augment(frames.astype(jnp.float32) / 127.5 - 1, key)
    y = Network().apply({"params": params}, x)
    near = lambda e, soft: jnp.mean(jnp.sqrt(e * e + soft**2) - soft)  # noqa: E731
    numbers = 4 * near(y[:, 0] - labels[:, 0], 0.02) + 3 * near(y[:, 1] - labels[:, 1], 0.02)
    numbers += near(y[:, 2] - labels[:, 2], 0.05)
    return numbers + 0.5 * jnp.mean(optax.sigmoid_binary_cross_entropy(y[:, 3:], labels[:, 3:]))


def train(
    frames: np.ndarray,
    labels: np.ndarray,
    steps: int,
    batch: int = 128,
    rate: float = 3e-3,
    seed: int = 0,
    params: dict | None = None,
) -> dict:
    """Parameters after ``steps`` of AdamW, from ``params`` where they are given."""
    key = jax.random.key(seed)
    if params is None:
        params = Network().init(key, jnp.zeros((1, CROP, CROP, 3)))["params"]
    params = jax.tree.map(jnp.array, params)  # a copy: each step donates
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(50, steps // 5), steps, 1e-5)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.02))
    state = optimiser.init(params)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x, y, key):
        loss, grad = jax.value_and_grad(_loss)(params, x, y, key)
        update, state = optimiser.update(grad, state, params)
        return optax.apply_updates(params, update), state, loss

    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(frames)) for _ in range(-(-steps * batch // len(frames)))])
    losses = []
    for i in progress(range(steps), "training", lambda: f"loss {np.mean(losses[-50:]):.4f}"):
        pick = order[i * batch : (i + 1) * batch]
        params, state, loss = step(params, state, frames[pick], labels[pick], jax.random.fold_in(key, i))
        losses.append(float(loss))
    return params


# --- accuracy ----------------------------------------------------------------------------------------------------


def accuracy(reader: Reader, clips: int = 24, characters: int = 300) -> dict:
    """How well true frames of held-out characters are read: performances, and stills for glasses and beards."""
    from data_pipeline.performers.character import STYLES, sample_held_out_character
    from data_pipeline.performers.clip import frames_of, make_clip
    from data_pipeline.performers.render import render

    rows = {"speak": [], "listen": []}
    for kind, out in rows.items():
        for i in range(clips):
            style = STYLES[i % len(STYLES)]
            record = make_clip(_HELD_OUT_CLIPS + i, held_out=True, style=style, kind=kind)
            params = record["params"]
            truth = [params[:, PARAM_INDEX[n]] for n in ("aperture", "pitch", "lid_left", "lid_right")]
            out.append((style, reader.read(frames_of(record)), truth))

    def joined(kind: str, style: str | None) -> tuple[np.ndarray, ...]:
        chosen = [(r, t) for s, r, t in rows[kind] if style in (None, s)]
        read = [np.concatenate([r[k] for r, _ in chosen]) for k in range(3)]
        return *read, *(np.concatenate([t[k] for _, t in chosen]) for k in range(4))

    rng = np.random.default_rng(1)
    stills = {style: [] for style in STYLES}
    for i in range(characters):
        character = sample_held_out_character(20_000_000 + i)
        params = sample_poses(rng, 4)
        read, truth = reader.read(render(character, params)), labels_of(character, params)
        stills[character.style].append(
            (np.mean((read.glasses > 0) == truth[:, 3]), np.mean((read.beard > 0) == truth[:, 4]))
        )

    def centred(kind: str, style: str | None, read: int, truth: int) -> float:
        chosen = [(r[read], t[truth]) for s, r, t in rows[kind] if style in (None, s)]
        return pooled_correlation(*zip(*chosen, strict=True))

    def scores(style: str | None) -> dict[str, float]:
        aperture, _, eyes, truth, _, left, right = joined("speak", style)
        silent, pitch, *_, nods, _, _ = joined("listen", style)
        flags = np.array([x for s, v in stills.items() if style in (None, s) for x in v])
        return {
            "aperture_r": correlation(aperture, truth),
            "aperture_r_within_clips": centred("speak", style, 0, 0),
            "aperture_error": float(np.abs(aperture - truth).mean()),
            "aperture_amplitude": float(np.percentile(aperture, 95) / np.percentile(truth, 95)),
            "stillness": float(silent.mean() / aperture.mean()),
            "pitch_r": correlation(pitch, nods),
            "pitch_r_within_clips": centred("listen", style, 1, 1),
            "pitch_error_degrees": float(np.abs(pitch - nods).mean()),
            "eyes_r": correlation(eyes, (left + right) / 2),
            "glasses_accuracy": float(flags[:, 0].mean()),
            "beard_accuracy": float(flags[:, 1].mean()),
        }

    return {"all": scores(None)} | {style: scores(style) for style in STYLES}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the reader and measure it on held-out characters.")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--frames", type=int, default=16_000)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of characters, poses and first weights")
    parser.add_argument("--init", type=Path, help="folder of a reader to go on from")
    args = parser.parse_args()
    began = time.process_time()
    frames, labels = training_frames(args.frames, args.seed)
    before = Reader.load(args.init).params if args.init else None
    params = train(frames, labels, args.steps, rate=args.rate, seed=args.seed, params=before)
    save_weights(args.out, "reader", params, jnp.bfloat16)
    made = {"frames": args.frames, "steps": args.steps, "rate": args.rate, "seed": args.seed}
    made["cpu_seconds"] = round(time.process_time() - began)
    rounds = json.loads((args.init / "accuracy.json").read_text())["training"] if args.init else []
    scores = accuracy(Reader.load(args.out))
    rounded = {k: {n: round(v, 4) for n, v in row.items()} for k, row in scores.items()}
    write_json(args.out / "accuracy.json", {"training": [*rounds, made], "held_out": rounded})
    for name in rounded["all"]:
        print(f"{name:24} " + "  ".join(f"{k} {row[name]:.3f}" for k, row in rounded.items()))


if __name__ == "__main__":
    main()
