"""The convolution over frames, in both its forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.nn.conv import causal_conv, conv3x3, winograd, winograd_kernel
from tests import tiny


@pytest.mark.parametrize("window", [(3, 3, 3), (3, 1, 1), (1, 3, 3), (1, 1, 1), (2, 3, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_both_forms_are_the_same_correlation(window, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 4, 5, 3)).astype(np.float32)
    kernel = rng.normal(size=(*window, 3, 6)).astype(np.float32)
    taps, kh, kw = window
    padded = np.pad(x, [(0, 0), (0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)])
    count = (7 - taps) // stride + 1
    want = np.zeros((2, count, 4, 5, 6))
    for t in range(count):
        for k, i, j in np.ndindex(*window):
            want[:, t] += padded[:, t * stride + k, i : i + 4, j : j + 5] @ kernel[k, i, j]
    for implementation in ("sum", "conv3d", None):
        got = causal_conv(jnp.asarray(x), jnp.asarray(kernel), stride, implementation)
        np.testing.assert_allclose(got, want, atol=2e-5, err_msg=str(implementation))


def test_half_precision_is_close_in_both_forms():
    x = jax.random.normal(jax.random.key(0), (1, 5, 6, 6, 16))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 16, 8)) / 21
    want = causal_conv(x, kernel)
    for implementation in ("sum", "conv3d"):
        got = causal_conv(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), implementation=implementation)
        assert got.dtype == jnp.bfloat16
        assert not tiny.differs(got.astype(jnp.float32), want, 0.05)


def test_unknown_form():
    with pytest.raises(ValueError, match="expected 'sum' or 'conv3d', found 'fft'"):
        causal_conv(jnp.zeros((1, 3, 2, 2, 1)), jnp.zeros((3, 1, 1, 1, 1)), implementation="fft")


@pytest.mark.parametrize("shape", [(2, 6, 8, 5), (1, 5, 7, 3), (3, 1, 2, 4)])
def test_winograd_is_the_convolution(shape):
    rng = np.random.default_rng(0)
    x, kernel = jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=(2, 3, 3, shape[-1], 6)))
    x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    fast = winograd_kernel(kernel)
    assert fast.shape == (2, 16, shape[-1], 6)
    for k in range(2):
        want = conv3x3(x, kernel[k])
        np.testing.assert_allclose(winograd(x, fast[k]), want, atol=2e-5)
        half = winograd(x.astype(jnp.bfloat16), winograd_kernel(kernel[k].astype(jnp.bfloat16)))
        assert half.dtype == jnp.bfloat16
        assert np.abs(half.astype(jnp.float32) - want).mean() < 0.02 * np.abs(want).mean()
