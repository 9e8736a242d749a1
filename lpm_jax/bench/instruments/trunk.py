"""The convolutions that the small instruments share."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Trunk(nn.Module):
    """``[b, h, w, c]`` folded by ``patch``, then convolutions of ``widths`` that halve it, to ``[b, out]``."""

    widths: Sequence[int]
    out: int
    patch: int = 2

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b out"]:
        b, h, w, c = x.shape
        p = self.patch
        x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // p, w // p, p * p * c)
        x = nn.Conv(self.widths[0], (3, 3), name="conv_in")(x)
        for i, width in enumerate(self.widths):
            if i:
                x = nn.Conv(width, (3, 3), strides=2, name=f"down{i}")(self._norm(x, f"gain{i}"))
            x = x + nn.Conv(width, (3, 3), name=f"mix{i}")(self._norm(x, f"inner{i}"))
        x = nn.Conv(16, (1, 1), name="squeeze")(self._norm(x, "gain_out")).reshape(b, -1)
        return nn.Dense(self.out, name="head")(nn.silu(nn.Dense(64, name="hidden")(nn.silu(x))))

    def _norm(self, x: Array, name: str) -> Array:
        gain = self.param(name, nn.initializers.ones, (x.shape[-1],))
        return nn.silu(x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * gain)
