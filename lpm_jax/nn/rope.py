"""Rotary position embedding over (time, height, width), as Wan splits the head: the rest, a third, a third.

Keys are cached *before* rotation and rotated when they are read, so positions can be relative to the current chunk and
a stream of any length sees the same few positions. Time positions are real numbers: references stand at
``offset + stride * index`` on the time axis (segment-wise RoPE, SPEC section 2).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Real


def angles_1d(positions: Real[Array, "*b"], dim: int, theta: float = 10_000.0) -> Float[Array, "*b half"]:
    """``position * theta^(-2 i / dim)`` for ``i`` in ``0 .. dim / 2``."""
    frequencies = theta ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    return positions[..., None].astype(jnp.float32) * frequencies


def angles_3d(
    times: Float[Array, "*b frames"], height: int, width: int, dim: int, theta: float = 10_000.0
) -> Float[Array, "*b tokens half"]:
    """Angles of ``frames * height * width`` tokens in (time, row, column) order, for heads of ``dim``."""
    side = 2 * (dim // 6)
    t = angles_1d(times, dim - 2 * side, theta)[..., None, None, :]
    h = angles_1d(jnp.arange(height), side, theta)[:, None, :]
    w = angles_1d(jnp.arange(width), side, theta)[None, :, :]
    shape = (*times.shape, height, width)
    parts = [jnp.broadcast_to(a, (*shape, a.shape[-1])) for a in (t, h, w)]
    out = jnp.concatenate(parts, axis=-1)
    return out.reshape(*times.shape[:-1], -1, dim // 2)


def rotate(x: Float[Array, "*b n heads dim"], angles: Float[Array, "*c half"]) -> Float[Array, "*b n heads dim"]:
    """Rotates the pairs ``(x[2 i], x[2 i + 1])`` by ``angles[i]``, in float32. Angles are for every head the same, and
    broadcast over what stands before."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cos, sin = jnp.cos(angles)[..., :, None, :], jnp.sin(angles)[..., :, None, :]
    a, b = pairs[..., 0], pairs[..., 1]
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape).astype(x.dtype)
