"""What the instruments are trained on: drawn training characters in independent poses, and what generators do to
frames."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data_pipeline.schema import PARAM_INDEX
from lpm_jax.bench.instruments.reader import PITCH_SCALE, crop
from lpm_jax.progress import progress


def sample_poses(rng: np.random.Generator, frames: int) -> Float[np.ndarray, "frames params"]:
    """Poses whose parameters are independent of each other, wider than performances need; closed mouths are common."""
    from data_pipeline.performers.render import neutral_params

    params = neutral_params(frames)

    def some(share: float, low: float | int, high: float | int, rest: float = 0.0) -> np.ndarray:
        return np.where(rng.random(frames) < share, rng.uniform(low, high, frames), rest)

    def put(name: str, values: np.ndarray, low: float | int = 0, high: float | int = 1) -> None:
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


def training_frames(
    frames: int, seed: int = 0, per_character: int = 6, label: Callable = labels_of
) -> tuple[np.ndarray, np.ndarray]:
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
        labels.append(label(character, params))
    return np.concatenate(pictures), np.concatenate(labels)


def _dct() -> np.ndarray:
    k, n = np.arange(8)[:, None], np.arange(8)[None]
    return (np.cos(np.pi * (n + 0.5) * k / 8) * np.where(k == 0, np.sqrt(1 / 8), 0.5)).astype(np.float32)


def augment(x: Float[Array, "b h w c"], key: Array, mirror: bool = True) -> Float[Array, "b h w c"]:
    """What generators and codecs do to frames in -1..1: mirror, blur, coarse 8 x 8 DCT, tint, noise."""
    b, h, w, c = x.shape
    keys = jax.random.split(key, 7)
    scalar = lambda k, low, high: jax.random.uniform(keys[k], (b, 1, 1, 1), minval=low, maxval=high)  # noqa: E731
    x = jnp.where(scalar(0, 0, 1) < 0.5, x[:, :, ::-1], x) if mirror else x

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
