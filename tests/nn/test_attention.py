"""Attention against a softmax written out in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.nn.attention import attention

RNG = np.random.default_rng(0)
Q = jnp.asarray(RNG.normal(size=(2, 5, 3, 8)), jnp.float32)
K = jnp.asarray(RNG.normal(size=(2, 7, 3, 8)), jnp.float32)
V = jnp.asarray(RNG.normal(size=(2, 7, 3, 8)), jnp.float32)


def naive(q, k, v, mask=None):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b in range(q.shape[0]):
        for n in range(q.shape[1]):
            for h in range(q.shape[2]):
                logits = k[b, :, h] @ q[b, n, h] / np.sqrt(q.shape[-1])
                if mask is not None:
                    logits = np.where(mask[b, n], logits, -np.inf)
                weights = np.exp(logits - logits.max())
                out[b, n, h] = (weights / weights.sum()) @ v[b, :, h]
    return out


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_equals_naive_softmax(implementation):
    np.testing.assert_allclose(attention(Q, K, V, None, implementation), naive(Q, K, V), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 5, 7), (2, 1, 7), (1, 1, 7)])
def test_mask_broadcasts_over_batch_and_queries(shape):
    mask = np.random.default_rng(1).random(shape) < 0.5
    mask[..., 0] = True  # every query needs at least one key
    want = naive(Q, K, V, np.broadcast_to(mask, (2, 5, 7)))
    np.testing.assert_allclose(attention(Q, K, V, jnp.asarray(mask), "xla"), want, atol=1e-5)


def test_masked_keys_count_for_nothing():
    mask = jnp.asarray(np.arange(7) < 4)[None, None]
    loud_k, loud_v = K.at[:, 4:].set(30.0), V.at[:, 4:].set(1e4)
    np.testing.assert_array_equal(attention(Q, loud_k, loud_v, mask, "xla"), attention(Q, K, V, mask, "xla"))
