"""Rotary positions: relative, norm-preserving, laid out time - height - width."""

import jax
import jax.numpy as jnp
import numpy as np

from lpm_jax.nn.rope import angles_1d, angles_3d, rotate


def draw(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_logits_depend_on_relative_position_only():
    q, k = draw(0, 1, 5, 2, 16), draw(1, 1, 7, 2, 16)
    at_q, at_k = jnp.array([0.0, 1, 2, 5, 9]), jnp.array([-8.0, -1, 0, 1, 3, 4, 20])

    def logits(by: float, keys_by: float):
        a, b = rotate(q, angles_1d(at_q + by, 16)[None]), rotate(k, angles_1d(at_k + keys_by, 16)[None])
        return jnp.einsum("bnhd,bmhd->bhnm", a, b)

    np.testing.assert_allclose(logits(0, 0), logits(37, 37), atol=1e-4)
    assert jnp.abs(logits(0, 0) - logits(37, 36)).max() > 0.1


def test_time_shift_leaves_3d_logits_alone():
    q, k = draw(0, 1, 12, 2, 16), draw(1, 1, 12, 2, 16)
    times = jnp.array([[0.0, 1.0, 2.5]])

    def logits(by: float):
        angles = angles_3d(times + by, 2, 2, 16)
        return jnp.einsum("bnhd,bmhd->bhnm", rotate(q, angles), rotate(k, angles))

    np.testing.assert_allclose(logits(0), logits(6), atol=1e-4)


def test_angles_3d_equal_a_loop():
    dim, height, width = 22, 3, 4
    times = np.array([[-8.0, 0.5, 2.0], [3.0, 4.0, 5.0]])
    side = 2 * (dim // 6)  # 6 for rows, 6 for columns, the other 10 for time
    want = np.zeros((2, 3 * height * width, dim // 2))
    for b in range(2):
        for f in range(3):
            for y in range(height):
                for x in range(width):
                    row = []
                    for position, part in ((times[b, f], dim - 2 * side), (y, side), (x, side)):
                        row += [position * 10_000.0 ** (-2 * i / part) for i in range(part // 2)]
                    want[b, (f * height + y) * width + x] = row
    assert want.shape[-1] == 5 + 3 + 3
    np.testing.assert_allclose(angles_3d(jnp.asarray(times), height, width, dim), want, rtol=1e-5)


def test_rotate_turns_pairs_and_keeps_norms():
    x = jnp.array([1.0, 0.0, 0.0, 2.0]).reshape(1, 1, 1, 4)
    turned = rotate(x, jnp.array([[[np.pi / 2, np.pi]]]))
    np.testing.assert_allclose(turned.ravel(), [0, 1, 0, -2], atol=1e-6)

    x = draw(0, 2, 6, 3, 8)
    turned = rotate(x, 10 * draw(1, 2, 6, 4))
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    assert jnp.abs(turned - x).max() > 0.5


def test_rotate_keeps_the_type_and_computes_in_float32():
    x = draw(0, 1, 3, 2, 8)
    angles = 1000 * draw(1, 1, 3, 4)
    half = rotate(x.astype(jnp.bfloat16), angles)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), rotate(x, angles), atol=0.05)
