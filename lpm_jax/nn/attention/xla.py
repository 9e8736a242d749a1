"""Attention in plain XLA, for any platform; in slices of the queries where the logits would not fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LARGE = 2**30  # bytes of float32 logits from which queries go through frame by frame


def attention(
    q: Float[Array, "b fq n heads dim"],
    k: Float[Array, "b fk m heads dim"],
    v: Float[Array, "b fk m heads dim"],
    mask: Bool[Array, "#b #fq fk"] | None,
) -> Float[Array, "b fq n heads dim"]:
    """Dense attention; ``mask`` says which frames of keys each frame of queries sees."""
    b, frames, n, heads, dim = q.shape
    k, v, mask = flat(k), flat(v), spread(mask, k.shape[2])
    if 4 * b * heads * frames * n * k.shape[1] <= LARGE:
        rows = mask if mask is None or mask.shape[1] == 1 else jnp.repeat(mask, n, axis=1)
        return dense(flat(q), k, v, rows).reshape(q.shape)

    @jax.checkpoint
    def frame(args):
        q, row = args
        return dense(q, k, v, row[:, None] if mask is not None else None)

    rows = jnp.zeros((frames, 0)) if mask is None else jnp.broadcast_to(mask, (b, frames, k.shape[1])).swapaxes(0, 1)
    return jax.lax.map(frame, (q.swapaxes(0, 1), rows)).swapaxes(0, 1)


def dense(
    q: Float[Array, "b n heads dim"],
    k: Float[Array, "b m heads dim"],
    v: Float[Array, "b m heads dim"],
    mask: Bool[Array, "#b #n m"] | None,
) -> Float[Array, "b n heads dim"]:
    """Attention over tokens."""
    return jax.nn.dot_product_attention(q, k, v, mask=None if mask is None else mask[:, None], implementation="xla")


def flat(x: Float[Array, "b f n heads dim"]) -> Float[Array, "b fn heads dim"]:
    """Frames of tokens as one sequence."""
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def spread(mask: Bool[Array, "#b #fq fk"] | None, tokens: int) -> Bool[Array, "#b #fq m"] | None:
    """A mask of key frames as one of their tokens."""
    return mask if mask is None or tokens == 1 else jnp.repeat(mask, tokens, axis=2)
