"""The 3 x 3 convolution, in the form that is fastest where it runs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def conv3x3(x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c f"]) -> Float[Array, "n h w f"]:
    """A convolution with zero padding.

    In bfloat16 on CPU it is a matrix product over gathered neighbourhoods, gradients included: XLA's own convolution
    there runs in float32 at a third (forward) to a fifth (gradients) of the speed on AMX cores.
    """
    if x.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        return _gathered(x, kernel)
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _neighbours(x: Array) -> Float[Array, "pixels gathered"]:
    h, w = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = jnp.concatenate([x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=-1)
    return lax.optimization_barrier(x.reshape(-1, x.shape[-1]))  # once in memory, not once per use


def _product(x: Array, kernel: Array) -> Array:
    f = kernel.shape[-1]
    return (_neighbours(x) @ kernel.reshape(-1, f)).reshape(*x.shape[:-1], f)


@jax.custom_vjp
def _gathered(x: Array, kernel: Array) -> Array:
    return _product(x, kernel)


def _forward(x, kernel):
    return _product(x, kernel), (x, kernel)


def _backward(saved, g):
    x, kernel = saved
    dx = _product(g, kernel[::-1, ::-1].swapaxes(2, 3))
    dk = jnp.einsum("bmf,bmk->fk", g.reshape(1, -1, g.shape[-1]), _neighbours(x)[None])
    return dx, lax.optimization_barrier(dk).T.reshape(kernel.shape)  # else the transpose joins the product: slow


_gathered.defvjp(_forward, _backward)


# Winograd's F(2 x 2, 3 x 3): 2 x 2 results from 4 x 4 inputs with 16 multiplications instead of 36.
_OF_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def winograd_kernel(kernel: Float[Array, "*taps 3 3 c f"]) -> Float[Array, "*taps 16 c f"]:
    """What :func:`winograd` multiplies with, made once: in float32, rounded to the kernel's dtype."""
    found = jnp.einsum("ia,...abcf,jb->...ijcf", _OF_KERNEL, kernel.astype(jnp.float32), _OF_KERNEL)
    return found.reshape(*kernel.shape[:-4], 16, *kernel.shape[-2:]).astype(kernel.dtype)


def winograd(x: Float[Array, "n h w c"], kernel: Float[Array, "16 c f"]) -> Float[Array, "n h w f"]:
    """:func:`conv3x3` by Winograd's minimal filtering (Lavin and Gray 2016, arXiv 1509.09308), with ``kernel`` as
    :func:`winograd_kernel` makes it: products of 4/9 of the size, and sums besides, in float32. On CPU, where XLA's own
    convolution does not do so, the toy's decoder takes two thirds of its time in both dtypes (without AMX)."""
    n, h, w, c = x.shape
    dtype, x = x.dtype, lax.optimization_barrier(x)  # what comes before and after is not computed once a tile
    rows, columns = -(-h // 2), -(-w // 2)  # of tiles
    x = jnp.pad(x, ((0, 0), (1, 1 + h % 2), (1, 1 + w % 2), (0, 0))).astype(jnp.float32)

    def spread(parts: list[Array]) -> tuple[Array, ...]:
        a, b, c, d = parts
        return a - c, b + c, c - b, b - d

    def gathered(parts: list[Array]) -> tuple[Array, Array]:
        a, b, c, d = parts
        return a + b + c, b - c - d

    across = spread([x[:, i : i + 2 * rows : 2] for i in range(4)])
    tiles = [y for z in across for y in spread([z[:, :, j : j + 2 * columns : 2] for j in range(4)])]
    tiles = jnp.stack([y.reshape(-1, c) for y in tiles]).astype(dtype)
    each_of_16 = (((2,), (1,)), ((0,), (0,)))
    made = lax.dot_general(tiles, kernel, each_of_16, preferred_element_type=jnp.float32)
    made = made.reshape(4, 4, n, rows, columns, -1)
    each = [gathered([made[i, j] for i in range(4)]) for j in range(4)]
    lines = [gathered([each[j][k] for j in range(4)]) for k in range(2)]
    y = jnp.stack([jnp.stack(line, axis=3) for line in lines], axis=2)
    y = y.reshape(n, 2 * rows, 2 * columns, -1)[:, :h, :w]
    return lax.optimization_barrier(y.astype(dtype))


def causal_conv(
    x: Float[Array, "b past_and_t h w c"],
    kernel: Float[Array, "taps kh kw c f"],
    stride: int = 1,
    implementation: str | None = None,
) -> Float[Array, "b t h w f"]:
    """A 3-D convolution over frames that begin with their own past: no padding in time, zeros around each frame.

    Output frame ``i`` sees the frames ``i stride .. i stride + taps - 1`` of ``x``, so with ``taps - 1`` frames of the
    past in front it is causal.

    Args:
      stride: in time.
      implementation: ``"sum"`` writes it as a sum of 2-D convolutions over shifted frames, four times faster on CPU
        than XLA's 3-D kernel; ``"conv3d"`` is that kernel, the form for GPU and TPU; None chooses by platform.

    Raises:
      ValueError: another implementation is named.
    """
    implementation = implementation or ("sum" if jax.default_backend() == "cpu" else "conv3d")
    if implementation not in ("sum", "conv3d"):
        raise ValueError(f"implementation: expected 'sum' or 'conv3d', found {implementation!r}")
    taps, kh, kw, c, f = kernel.shape
    if implementation == "conv3d" and taps > 1:
        padding = [(0, 0), ((kh - 1) // 2, kh // 2), ((kw - 1) // 2, kw // 2)]
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        return lax.conv_general_dilated(x, kernel, (stride, 1, 1), padding, dimension_numbers=numbers)
    b, n, h, w, _ = x.shape
    t = (n - taps) // stride + 1
    y = 0.0
    for k in range(taps):
        frames = x[:, k : k + (t - 1) * stride + 1 : stride]
        if (kh, kw) == (1, 1):
            y = y + frames @ kernel[k, 0, 0]
        else:
            y = y + conv3x3(frames.reshape(b * t, h, w, c), kernel[k]).reshape(b, t, h, w, f)
    return y
