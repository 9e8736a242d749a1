"""Hand-written gradients against automatic ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.nn import conv, linear


def draw(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def assert_same_gradients(ours, plain, *arguments):
    want, pull = jax.vjp(plain, *arguments)
    got, pull_ours = jax.vjp(ours, *arguments)
    np.testing.assert_allclose(got, want, atol=1e-5)
    g = draw(9, *want.shape)
    for ours, theirs in zip(pull_ours(g), pull(g), strict=True):
        assert float(jnp.abs(theirs).max()) > 0.1
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_affine():
    assert_same_gradients(linear.affine, lambda x, w, b: x @ w + b, draw(0, 7, 5), draw(1, 5, 3), draw(2, 3))


def test_gated():
    plain = lambda x, gate: x * gate[:, :, None]  # noqa: E731
    assert_same_gradients(linear.gated, plain, draw(0, 2, 3, 4, 5), draw(1, 2, 3, 5))


def test_modulate():
    plain = lambda x, scale, shift: x * (1 + scale[:, :, None]) + shift[:, :, None]  # noqa: E731
    assert_same_gradients(linear.modulate, plain, draw(0, 2, 3, 4, 5), draw(1, 2, 3, 5), draw(2, 2, 3, 5))


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 5, 7, 6), (3, 1, 2, 4)])
def test_gathered_convolution(shape):
    plain = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert_same_gradients(conv._gathered, plain, draw(0, *shape), draw(1, 3, 3, shape[-1], 5))


def test_half_precision_convolution_is_close():
    x, kernel = draw(0, 2, 8, 8, 16), draw(1, 3, 3, 16, 8) / 12
    half = conv.conv3x3(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), conv.conv3x3(x, kernel), atol=0.05)
