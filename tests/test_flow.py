"""Flow matching by hand: the path, what outputs mean, the shift, the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.config import FlowConfig
from lpm_jax.flow import (
    add_noise,
    clean_from_output,
    gaussian_estimate,
    network_input,
    sample_levels,
    shift_level,
    weighted_loss,
)


def draw(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


VARIANCE = jnp.array([0.1, 0.5, 1.0, 2.0, 1.5])
CLEAN, NOISE = draw(0, 2, 3, 4, 5), draw(1, 2, 3, 4, 5)


def test_noise_ends_and_middle():
    np.testing.assert_array_equal(add_noise(CLEAN, NOISE, jnp.zeros((2, 3))), CLEAN)
    np.testing.assert_array_equal(add_noise(CLEAN, NOISE, jnp.ones((2, 3))), NOISE)
    level = jnp.array([[0.0, 0.25, 1.0], [0.5, 1.0, 0.75]])  # each frame its own
    mixed = add_noise(CLEAN, NOISE, level)
    np.testing.assert_allclose(mixed[0, 1], 0.75 * CLEAN[0, 1] + 0.25 * NOISE[0, 1], atol=1e-6)
    np.testing.assert_allclose(mixed[1, 2], 0.25 * CLEAN[1, 2] + 0.75 * NOISE[1, 2], atol=1e-6)
    assert add_noise(CLEAN.astype(jnp.bfloat16), NOISE.astype(jnp.bfloat16), level).dtype == jnp.bfloat16


def test_both_predictions_name_the_same_clean_frame():
    """Velocity v = noise - x_0 and the offset of x_0 from its Gaussian estimate lead to x_0."""
    level = jnp.array([[0.1, 0.5, 1.0], [0.9, 0.3, 0.7]])
    noisy, anchor = add_noise(CLEAN, NOISE, level), draw(2, 2, 1, 4, 5)
    near = draw(4, 2, 1, 4, 5)
    from_velocity = clean_from_output("velocity", NOISE - CLEAN, noisy, level, anchor, near)
    shown = network_input("clean", noisy, level, anchor, VARIANCE)
    noise, carry = draw(2, 2, 3, 4, 5), draw(3, 2, 3, 4, 5)
    change = CLEAN - shown - noise * (shown - anchor) - carry.clip(-1, 1) * (near - anchor)  # it never amplifies
    output = jnp.concatenate([change, noise, carry], axis=-1)
    from_clean = clean_from_output("clean", output, shown, level, anchor, near)
    np.testing.assert_allclose(from_velocity, CLEAN, atol=1e-5)
    np.testing.assert_allclose(from_clean, CLEAN, atol=1e-5)
    assert network_input("velocity", noisy, level, anchor, VARIANCE) is noisy
    # A draft is what the output corrects, whatever the noise over it; the velocity is the noisy frame's all the same.
    draft = draw(5, 2, 3, 4, 5)
    corrected = clean_from_output("clean", output, shown, level, anchor, near, draft)
    want = draft + noise * (draft - anchor) + carry.clip(-1, 1) * (near - anchor) + change
    np.testing.assert_allclose(corrected, want, atol=1e-5)
    again = clean_from_output("velocity", NOISE - CLEAN, noisy, level, anchor, near, draft)
    np.testing.assert_array_equal(again, from_velocity)
    # And back: the velocity of the clean prediction is dx_t / dt.
    velocity = (noisy - from_clean) / level[..., None, None]
    np.testing.assert_allclose(velocity, NOISE - CLEAN, atol=1e-4)
    step = (add_noise(CLEAN, NOISE, level + 1e-2) - noisy) / 1e-2
    np.testing.assert_allclose(velocity, step, atol=1e-3)


def test_gaussian_estimate():
    """The posterior mean by hand: precision-weighted between the anchor and what the noisy frame says."""
    level = jnp.array([[0.1, 0.5, 0.8], [0.9, 0.3, 0.7]])
    noisy, anchor = add_noise(CLEAN, NOISE, level), draw(2, 2, 1, 4, 5)
    t, s = np.asarray(level)[..., None, None], np.asarray(VARIANCE)
    precision = 1 / s + (1 - t) ** 2 / t**2
    mean = (anchor / s + (1 - t) / t**2 * noisy) / precision
    np.testing.assert_allclose(gaussian_estimate(noisy, level, anchor, VARIANCE), mean, atol=1e-5)
    pure = gaussian_estimate(NOISE, jnp.ones((2, 3)), anchor, VARIANCE)
    np.testing.assert_allclose(pure, jnp.broadcast_to(anchor, pure.shape), atol=1e-6)  # noise alone says nothing
    np.testing.assert_allclose(gaussian_estimate(CLEAN, jnp.zeros((2, 3)), anchor, VARIANCE), CLEAN, atol=1e-6)


def test_shift():
    levels = jnp.array([0.0, 0.25, 0.5, 1.0])
    np.testing.assert_array_equal(shift_level(levels, 1.0), levels)
    np.testing.assert_allclose(shift_level(levels, 3.0), [0.0, 0.5, 0.75, 1.0], atol=1e-6)


def test_loss_by_hand():
    clean = jnp.array([1.0, 3.0, 0.0, 2.0]).reshape(1, 2, 2, 1)  # two frames of two tokens
    truth = jnp.array([0.0, 1.0, 0.0, 5.0]).reshape(1, 2, 2, 1)
    level = jnp.array([[0.1, 0.5]])
    weight = jnp.array([[[1.0, 2.0], [1.0, 4.0]]])
    loss, error = weighted_loss(clean, truth, level, weight, jnp.ones(1), FlowConfig(loss_floor=0.2))
    # Frame 0: (1 + 2 * 4) / 0.2^2 (the floor holds); frame 1: (0 + 4 * 9) / 0.5^2; eight weights in all.
    assert float(loss) == pytest.approx((9 / 0.04 + 36 / 0.25) / 8, rel=1e-5)
    np.testing.assert_allclose(error, [[(1 + 4) / 2, 9 / 2]])


def test_loss_equals_the_velocity_loss_above_the_floor():
    level = jnp.array([[0.4, 0.5, 1.0], [0.9, 0.3, 0.7]])
    noisy, guess = add_noise(CLEAN, NOISE, level), draw(3, 2, 3, 4, 5)
    loss, _ = weighted_loss(guess, CLEAN, level, jnp.ones((2, 3, 4)), jnp.ones(1), FlowConfig(loss_floor=0.2))
    velocity = (noisy - guess) / level[..., None, None]
    assert float(loss) == pytest.approx(float(jnp.mean((velocity - (NOISE - CLEAN)) ** 2)), rel=1e-4)


def test_loss_is_float32_whatever_the_network_computes_in():
    half = (draw(0, 1, 1, 1, 1000) * 100).astype(jnp.bfloat16)
    loss, error = weighted_loss(half, 0 * half, jnp.ones((1, 1)), jnp.ones((1, 1, 1)), jnp.ones(1), FlowConfig())
    assert loss.dtype == error.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.mean(np.asarray(half, np.float64) ** 2), rtol=1e-4)


def test_training_levels():
    level = np.asarray(sample_levels(jax.random.key(0), (4000, 6), FlowConfig(shift=1.0)))
    assert level.min() >= 0 and level.max() <= 1
    pure = (level == 1).all(1)
    assert pure.mean() == pytest.approx(0.25, abs=0.03)
    rest = level[~pure]
    one = (rest == rest[:, :1]).all(1)
    assert one.mean() == pytest.approx(0.5, abs=0.03)
    for group in (rest[one][:, 0], rest[~one].ravel()):
        assert group.mean() == pytest.approx(0.5, abs=0.03)
        assert np.quantile(group, 0.25) == pytest.approx(0.25, abs=0.03)
    shifted = np.asarray(sample_levels(jax.random.key(0), (4000, 6), FlowConfig(shift=3.0)))
    np.testing.assert_allclose(shifted, shift_level(jnp.asarray(level), 3.0), atol=1e-6)
