"""Attention against a softmax written out in NumPy, for every backend that runs here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.nn.attention import Visible, attention, flash, xla

B, FQ, FK, TOKENS, HEADS, DIM = 2, 4, 5, 3, 2, 8
RNG = np.random.default_rng(0)
Q = jnp.asarray(RNG.normal(size=(B, FQ, TOKENS, HEADS, DIM)), jnp.float32)
K, V = (jnp.asarray(RNG.normal(size=(B, FK, TOKENS, HEADS, DIM)), jnp.float32) for _ in "kv")
ORDER = np.array([[1, 0, 0, 1, 1], [1, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1]], bool)
VALID = jnp.array([[True, True, False, True, True], [True, False, True, False, True]])


def naive(q, k, v, mask=None):
    """``mask`` ``[b, fq, fk]``."""
    tokens, memory = q.shape[2], k.shape[2]
    q, k, v = (np.asarray(x, np.float64).reshape(x.shape[0], -1, *x.shape[3:]) for x in (q, k, v))
    out = np.zeros_like(q)
    for b in range(q.shape[0]):
        for n in range(q.shape[1]):
            for h in range(q.shape[2]):
                logits = k[b, :, h] @ q[b, n, h] / np.sqrt(q.shape[-1])
                if mask is not None:
                    logits = np.where(np.repeat(mask[b, n // tokens], memory), logits, -np.inf)
                weights = np.exp(logits - logits.max())
                out[b, n, h] = (weights / weights.sum()) @ v[b, :, h]
    return out.reshape(out.shape[0], -1, tokens, *out.shape[2:])


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_equals_naive_softmax(implementation):
    np.testing.assert_allclose(attention(Q, K, V, None, implementation), naive(Q, K, V), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 4, 5), (1, 4, 5), (2, 1, 5), (1, 1, 5)])
def test_mask_broadcasts_over_batch_and_queries(shape):
    mask = np.random.default_rng(1).random(shape) < 0.5
    mask[..., 0] = True  # every query needs at least one key
    want = naive(Q, K, V, np.broadcast_to(mask, (B, FQ, FK)))
    np.testing.assert_allclose(attention(Q, K, V, jnp.asarray(mask), "xla"), want, atol=1e-5)


def test_keys_of_one_token_a_frame():
    """Text and sound: each word or token of sound is a frame of its own."""
    k, v = K[:, :, :1], V[:, :, :1]
    mask = np.array(ORDER)[None].repeat(B, 0)
    np.testing.assert_allclose(attention(Q, k, v, jnp.asarray(mask)), naive(Q, k, v, mask), atol=1e-5)


def test_masked_keys_count_for_nothing():
    mask = jnp.asarray(np.arange(FK) < 3)[None, None]
    loud_k, loud_v = K.at[:, 3:].set(30.0), V.at[:, 3:].set(1e4)
    np.testing.assert_array_equal(attention(Q, loud_k, loud_v, mask, "xla"), attention(Q, K, V, mask, "xla"))


@pytest.mark.parametrize("order", [None, ORDER], ids=["all", "order"])
@pytest.mark.parametrize("valid", [None, VALID], ids=["there", "some"])
@pytest.mark.parametrize("implementation", ["xla", "lengths"])
def test_frames_that_are_seen(order, valid, implementation):
    """``"lengths"`` is what cuDNN is given, computed by XLA."""
    mask = np.ones((B, FQ, FK), bool) if order is None else np.array(order)[None].repeat(B, 0)
    mask = mask if valid is None else mask & np.asarray(valid)[:, None]
    got = jax.jit(lambda q, k, v: attention(q, k, v, Visible(order, valid), implementation))(Q, K, V)
    np.testing.assert_allclose(got, naive(Q, K, V, mask), atol=1e-5)


def test_groups_compute_only_what_is_seen():
    groups = flash.groups(ORDER, FQ, FK)
    assert [(rows.tolist(), columns.tolist()) for rows, columns in groups] == [
        ([0, 1], [0, 3, 4]),
        ([2], [0, 1, 2, 3, 4]),
        ([3], [3, 4]),
    ]
    assert [x.tolist() for x in flash.groups(None, 2, 3)[0]] == [[0, 1], [0, 1, 2]]
    blind = flash.groups(np.array([[True, False], [False, False]]), 2, 2)
    assert [(rows.tolist(), columns.tolist()) for rows, columns in blind] == [([0], [0]), ([1], [0, 1])]


def test_large_attention_goes_frame_by_frame(monkeypatch):
    mask = Visible(ORDER, VALID)
    loss = lambda q, k, v: jnp.sum(jnp.sin(attention(q, k, v, mask, "xla")))  # noqa: E731
    whole = jax.value_and_grad(loss, (0, 1, 2))(Q, K, V)
    monkeypatch.setattr(xla, "LARGE", 0)
    parts = jax.value_and_grad(loss, (0, 1, 2))(Q, K, V)
    assert "while" in jax.jit(loss).lower(Q, K, V).as_text()
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(attention(Q, K, V, None, "xla"), naive(Q, K, V), atol=1e-5)


def test_flash_asks_for_frames():
    with pytest.raises(ValueError, match="expected a mask of frames"):
        attention(Q, K, V, jnp.ones((1, 1, FK), bool), "cudnn")
