"""A small network that reads from pixels what the benchmark compares: mouth, head pitch, eyes, glasses, beard.

It is a measuring instrument: trained (``train_reader.py``) on drawn training characters of every style, it never sees
a frame of a model that it measures nor a held-out character. Its accuracy on those is in ``weights/reader``.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from lpm_jax.bench.instruments.trained import Trained, in_batches

SIZE, CROP = 128, 96  # pixels: a frame, and the middle of it that the reader looks at
PITCH_SCALE = 20.0  # degrees at an output of 1


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
    def __call__(self, x: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b 5"], Float[Array, "b 48"]]:
        """The numbers, and the layer before them: features of a frame's content for Frechet distances."""
        b, h, w, c = x.shape
        x = x.reshape(b, h // 4, 4, w // 4, 4, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 4, w // 4, 16 * c)
        x = nn.Conv(32, (3, 3), name="conv_in")(x)
        for i, width in enumerate((32, 48, 64)):
            if i:
                x = nn.Conv(width, (3, 3), strides=2, name=f"down{i}")(self._norm(x, f"gain{i}"))
            if i < 2:
                x = x + nn.Conv(width, (3, 3), name=f"mix{i}")(self._norm(x, f"inner{i}"))
        x = nn.Conv(16, (1, 1), name="squeeze")(self._norm(x, "gain_out")).reshape(b, -1)
        hidden = nn.silu(nn.Dense(48, name="hidden")(nn.silu(x)))
        return nn.Dense(5, name="heads")(hidden), hidden

    def _norm(self, x: Array, name: str) -> Array:
        gain = self.param(name, nn.initializers.ones, (x.shape[-1],))
        return nn.silu(x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * gain)


class Reader(Trained):
    """The trained network. See :meth:`load` and :meth:`read`."""

    name = "reader"

    @staticmethod
    def initial(seed: int) -> dict:
        return Network().init(jax.random.key(seed), jnp.zeros((1, CROP, CROP, 3)))["params"]

    def read(self, frames: UInt8[np.ndarray, "frames h w 3"], batch: int = 64) -> Reading:
        """Raises ValueError for frames of another size."""
        return self.look(frames, batch)[0]

    def look(
        self, frames: UInt8[np.ndarray, "frames h w 3"], batch: int = 64
    ) -> tuple[Reading, Float[np.ndarray, "frames 48"]]:
        """What is read, and the features behind it. Raises ValueError for frames of another size."""
        frames = np.asarray(frames)
        if frames.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(f"frames: expected {SIZE} x {SIZE} RGB, found {list(frames.shape[1:])}")
        y = in_batches(lambda part: _apply(self.params, part), crop(frames), batch)
        return Reading(y[:, 0].clip(0, 1), y[:, 1] * PITCH_SCALE, y[:, 2].clip(0, 1), y[:, 3], y[:, 4]), y[:, 5:]


def crop(frames: UInt8[np.ndarray, "frames h w 3"]) -> UInt8[np.ndarray, "frames 96 96 3"]:
    """The middle of the frames."""
    edge = (SIZE - CROP) // 2
    return frames[:, edge : edge + CROP, edge : edge + CROP]


@jax.jit
def _apply(params: dict, frames: Array) -> Array:
    return jnp.concatenate(Network().apply({"params": params}, frames.astype(jnp.float32) / 127.5 - 1), axis=1)
