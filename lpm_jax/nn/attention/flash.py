"""Flash kernels behind masks of frames: NVIDIA's through cuDNN, Google's splash attention for TPU.

Neither kernel is given a mask of tokens, which at 32,000 tokens would be a gigabyte. What is known when the program is
traced (``Visible.order``: references do not see video, a chunk does not see later ones) becomes one call for each group
of query frames that see the same key frames, over those keys only: masked blocks cost nothing, in every kernel. What is
known only when it runs (``Visible.valid``: which references are there, how far a cache has filled) becomes the kernel's
own padding: sequence lengths for cuDNN, after the frames that are there were moved to the front; segments for splash.

cuDNN's ``local_window_size`` is not used: without ``is_causal`` it attends to the future (jax issue 39576).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lpm_jax.nn.attention.api import Visible
from lpm_jax.nn.attention.xla import flat

KEPT = "self_attention"  # nn/remat.py
BLOCK = 512  # rows and columns of a splash block


def attention(
    q: Float[Array, "b fq n heads dim"],
    k: Float[Array, "b fk m heads dim"],
    v: Float[Array, "b fk m heads dim"],
    mask: Visible,
    implementation: str,
) -> Float[Array, "b fq n heads dim"]:
    """One kernel call for each group of query frames."""
    kernel = {"cudnn": with_lengths, "lengths": with_lengths, "splash": splash}[implementation]
    options = {"implementation": "xla" if implementation == "lengths" else implementation}
    out = jnp.zeros_like(q)
    for rows, columns in groups(mask.order, q.shape[1], k.shape[1]):
        valid = None if mask.valid is None else mask.valid[:, columns]
        part = kernel(q[:, rows], k[:, columns], v[:, columns], valid, **options)
        out = part if len(rows) == q.shape[1] else out.at[:, rows].set(part)
    return out


def groups(order: np.ndarray | None, queries: int, keys: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Query frames that see the same key frames, with these; a frame that sees none sees all."""
    if order is None:
        return [(np.arange(queries), np.arange(keys))]
    rows: dict[bytes, list[int]] = {}
    for i, row in enumerate(np.asarray(order, bool)):
        rows.setdefault((row if row.any() else ~row).tobytes(), []).append(i)
    return [(np.array(found), np.flatnonzero(np.frombuffer(row, bool))) for row, found in rows.items()]


def with_lengths(
    q: Array, k: Array, v: Array, valid: Bool[Array, "b fk"] | None, implementation: str
) -> Float[Array, "b fq n heads dim"]:
    """cuDNN's kernel (or XLA's, to test this) over the first keys of each clip: those that are there."""
    lengths = None
    if valid is not None:
        first = jnp.argsort(~valid, axis=1, stable=True)[:, :, None, None, None]
        k, v = (jnp.take_along_axis(x, first, axis=1) for x in (k, v))
        lengths = jnp.maximum(valid.sum(1), 1).astype(jnp.int32) * k.shape[2]
        queries = 0 * lengths + q.shape[1] * q.shape[2]  # of ``lengths``: under vmap cuDNN's rule wants it batched too
    out = jax.nn.dot_product_attention(
        flat(q), flat(k), flat(v), implementation=implementation,
        **({} if lengths is None else {"query_seq_lengths": queries, "key_value_seq_lengths": lengths}),
    )  # fmt: skip
    return out.reshape(q.shape)


def splash(
    q: Array, k: Array, v: Array, valid: Bool[Array, "b fk"] | None, implementation: str
) -> Float[Array, "b fq n heads dim"]:
    """Splash attention (jax.experimental.pallas): tokens padded to blocks, absent ones a segment of their own."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    b, fq, n, heads, dim = q.shape
    fk, m = k.shape[1:3]
    there = jnp.ones((b, fk), bool) if valid is None else valid
    rows, columns = -(-fq * n // BLOCK) * BLOCK, -(-fk * m // BLOCK) * BLOCK

    def padded(x: Array, length: int) -> Array:
        x = flat(x).swapaxes(1, 2)  # heads first
        return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))

    keys = jnp.pad(jnp.repeat(there, m, axis=1), ((0, 0), (0, columns - fk * m))).astype(jnp.int32)
    segments = kernel.SegmentIds(jnp.ones((b, rows), jnp.int32), keys)
    sizes: dict[str, Any] = dict.fromkeys(
        ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"), BLOCK
    )
    sizes |= {"block_q_dq": BLOCK, "block_kv_dq": BLOCK}
    full = masks.MultiHeadMask([masks.FullMask((rows, columns))] * heads)
    run = kernel.make_splash_mha(
        full, head_shards=1, q_seq_shards=1, block_sizes=kernel.BlockSizes(**sizes),
        residual_checkpoint_name=KEPT,
        interpret=jax.default_backend() == "cpu" and implementation == "splash_interpret",
    )  # fmt: skip
    scaled = padded(q, rows) * jnp.asarray(dim**-0.5, q.dtype)
    out = jax.vmap(run)(scaled, padded(k, columns), padded(v, columns), segments)
    return out[:, :, : fq * n].swapaxes(1, 2).reshape(q.shape)
