"""Linear layers and modulations whose gradients are as fast as they are.

XLA's CPU backend hands a plain or a batched product to oneDNN (on AMX cores five times faster in bfloat16 than in
float32), but not the transposed ones that automatic differentiation makes of it. Their gradients are written here in
the forms that it does hand over. On other platforms nothing changes.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lpm_jax.sharding import declare, parts


@jax.custom_vjp
def affine(x: Float[Array, "m k"], w: Float[Array, "k n"], b: Float[Array, " n"]) -> Float[Array, "m n"]:
    """``x @ w + b``."""
    return x @ w + b


def _forward(x, w, b):
    return x @ w + b, (x, w)  # not through affine: rematerialisation looks for products


def _backward(saved, g):
    x, w = saved
    dx = lax.dot_general(g, w, (((1,), (1,)), ((), ())))
    dw = jnp.einsum("bmk,bmn->kn", x[None], g[None])
    return dx, dw, _sum_rows(g)


def _sum_rows(x: Float[Array, "*b m n"]) -> Float[Array, "*b n"]:
    """The sum over the last axis but one, as a product: XLA's reduction there is many times slower on CPU."""
    ones = jnp.ones((*x.shape[:-2], 1, x.shape[-2]), x.dtype)
    return (ones @ x)[..., 0, :]


affine.defvjp(_forward, _backward)


@jax.custom_vjp
def gated(x: Float[Array, "*b tokens d"], gate: Float[Array, "*b d"]) -> Float[Array, "*b tokens d"]:
    """``x gate``, the same gate for all tokens of a frame."""
    return x * gate[..., None, :]


def _gated_forward(x, gate):
    return gated(x, gate), (x, gate)


def _gated_backward(saved, g):
    x, gate = saved
    return g * gate[..., None, :], _sum_rows(g * x)


gated.defvjp(_gated_forward, _gated_backward)


@jax.custom_vjp
def shifted(x: Float[Array, "*b tokens d"], shift: Float[Array, "*b d"]) -> Float[Array, "*b tokens d"]:
    """``x + shift``, the same shift for all tokens of a frame."""
    return x + shift[..., None, :]


shifted.defvjp(lambda x, shift: (shifted(x, shift), None), lambda _, g: (g, _sum_rows(g)))


def modulate(
    x: Float[Array, "*b tokens d"], scale: Float[Array, "*b d"], shift: Float[Array, "*b d"]
) -> Float[Array, "*b tokens d"]:
    """``x (1 + scale) + shift``, the same for all tokens of a frame."""
    return shifted(gated(x, 1 + scale), shift)


class Dense(nn.Module):
    """A linear layer on the last axis whose gradients are fast on every platform.

    ``axes`` are the logical axes of its input and output (``sharding.py``)."""

    features: int
    kernel_init: Any = nn.initializers.lecun_normal()
    axes: tuple[str | None, str | None] = (None, None)

    @nn.compact
    def __call__(self, x: Float[Array, "*b n"]) -> Float[Array, "*b features"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features)).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)
        declare(self, "kernel", *self.axes)
        declare(self, "bias", self.axes[1])
        if parts("tokens") > 1:  # one axis of rows could not say that its patches are cut
            return x @ kernel + bias
        return affine(x.reshape(-1, x.shape[-1]), kernel, bias).reshape(*x.shape[:-1], self.features)
