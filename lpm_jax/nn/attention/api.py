"""The public attention call. Backends: ``xla`` (any platform) and ``cudnn`` (NVIDIA flash attention)."""

from __future__ import annotations

import jax
from jaxtyping import Array, Bool, Float


def attention(
    q: Float[Array, "b n heads dim"],
    k: Float[Array, "b m heads dim"],
    v: Float[Array, "b m heads dim"],
    mask: Bool[Array, "#b #n m"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "b n heads dim"]:
    """``softmax(q k^T / sqrt(dim)) v`` over the keys that ``mask`` allows; every query needs at least one.

    ``implementation`` is ``"xla"``, ``"cudnn"`` or None for JAX's own choice on this platform.
    """
    return jax.nn.dot_product_attention(
        q, k, v, mask=None if mask is None else mask[:, None], implementation=implementation
    )
