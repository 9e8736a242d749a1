"""Attention on a mesh: Ulysses inside the fast domain, a ring across it, one device's kernel within.

A frame's patches are cut over ``ring x context``, so every device has an equal part of *every* frame: block-causal
masks are balanced for free, and a mask of frames is the same on each device.

* Ulysses (Jacobs et al., arXiv 2309.14509), axis ``context``: an all-to-all gives each device all patches of some heads
  and takes them back after; 4 x the size of the queries a call, whatever the length.
* Ring (Liu et al., arXiv 2310.01889), axis ``ring``: keys and values go around; parts are merged by their
  log-sum-exp. Each step computes in XLA, whatever ``implementation``: flash kernels don't differentiate their
  log-sum-exp.
* ``batch`` and ``tensor`` (heads) need no exchange. Keys with one token a frame (text, sound) are on every device.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from lpm_jax import sharding
from lpm_jax.nn.attention import api, xla


def attention(
    q: Float[Array, "b fq n heads dim"],
    k: Float[Array, "b fk m heads dim"],
    v: Float[Array, "b fk m heads dim"],
    mask: api.Mask,
    implementation: str,
) -> Float[Array, "b fq n heads dim"]:
    """:func:`lpm_jax.nn.attention.attention` on the mesh in force."""
    sizes = sharding.sizes()
    everywhere = k.shape[2] == 1
    own = sharding.spec(("batch", None, "tokens", "heads", None), q.shape, sizes)
    keys = sharding.spec(("batch", None, None if everywhere else "tokens", "heads", None), k.shape, sizes)
    order = mask.order if isinstance(mask, api.Visible) else None
    seen = mask.valid if isinstance(mask, api.Visible) else mask
    layout = PartitionSpec() if seen is None or seen.shape[0] == 1 else PartitionSpec(own[0])
    given = jnp.zeros(()) if seen is None else seen

    def part(q, k, v, given):
        seen = None if given.ndim == 0 else given
        mask = api.Visible(order, seen) if order is not None or given.ndim < 3 else seen
        if everywhere:
            return api.local(q, k, v, mask, implementation)
        return exchanged(q, k, v, mask, implementation, own[2])

    run = jax.shard_map(part, in_specs=(own, keys, keys, layout), out_specs=own, check_vma=False)
    return run(q, k, v, given)


def exchanged(q: Array, k: Array, v: Array, mask: api.Mask, implementation: str, cut: str | tuple | None) -> Array:
    """One device's part where keys are cut as the queries are: over the axes ``cut``."""
    axes = {name for name in ("ring", "context") if name in (cut or ()) and sharding.sizes()[name] > 1}
    if "context" in axes:  # patches for heads
        q, k, v = (lax.all_to_all(x, "context", split_axis=3, concat_axis=2, tiled=True) for x in (q, k, v))
    if "ring" in axes:
        dense = mask.dense() if isinstance(mask, api.Visible) else mask
        out = ring(q, k, v, dense, sharding.sizes()["ring"])
    else:
        out = api.local(q, k, v, mask, implementation)
    if "context" in axes:  # and back
        out = lax.all_to_all(out, "context", split_axis=2, concat_axis=3, tiled=True)
    return out


def ring(q: Array, k: Array, v: Array, mask: Bool[Array, "#b #fq fk"] | None, size: int) -> Array:
    """Queries stay, keys and values go around; the softmax is put together from its parts."""
    around = [(i, (i + 1) % size) for i in range(size)]
    partial = jax.checkpoint(with_logsumexp)

    def step(carry, _):
        out, total, k, v = carry
        part, logsumexp = partial(q, k, v, mask)
        new = jnp.logaddexp(total, logsumexp)
        out = out * jnp.exp(total - new)[..., None] + part * jnp.exp(logsumexp - new)[..., None]
        k, v = (lax.ppermute(x, "ring", around) for x in (k, v))
        return (out, new, k, v), None

    start = (jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:-1], -1e30), k, v)
    (out, *_), _ = lax.scan(step, start, length=size)
    return out.astype(q.dtype)


def with_logsumexp(
    q: Float[Array, "b fq n heads dim"],
    k: Float[Array, "b fk m heads dim"],
    v: Float[Array, "b fk m heads dim"],
    mask: Bool[Array, "#b #fq fk"] | None,
) -> tuple[Float[Array, "b fq n heads dim"], Float[Array, "b fq n heads"]]:
    """Attention in float32 and the log of each softmax's denominator, a frame of queries at a time."""
    keys, values = xla.flat(k), xla.flat(v)
    b, frames = q.shape[:2]
    mask = jnp.ones((1, 1, k.shape[1]), bool) if mask is None else mask
    rows = jnp.broadcast_to(xla.spread(mask, k.shape[2]), (b, frames, keys.shape[1])).swapaxes(0, 1)

    @jax.checkpoint
    def frame(args):
        q, row = args
        logits = jnp.einsum("bnhd,bmhd->bhnm", q, keys, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        logits = jnp.where(row[:, None, None], logits, -1e30)
        total = jax.nn.logsumexp(logits, axis=-1)
        weights = jnp.exp(logits - total[..., None])
        out = jnp.einsum("bhnm,bmhd->bnhd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return out, total.swapaxes(1, 2)

    out, total = lax.map(frame, (q.swapaxes(0, 1), rows))
    return out.swapaxes(0, 1), total.swapaxes(0, 1)
