"""The seam's figures: joints are found where they are, and a planted seam is seen."""

import numpy as np
import pytest

from benchmarks.long_video import flicker, ratio, stretches, summary


def test_flicker():
    frames = np.array([0, 10, 10, 4], np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    np.testing.assert_allclose(flicker(frames), [10, 0, 6])


def test_stretches_lie_at_the_joints():
    """Segments of 9 latents that share 2: the second begins with latent 7, which is frames 29 to 32."""
    change = np.arange(120.0)  # change i leads into frame i + 1
    joints, others = stretches(change, step=7, overlap=2)
    np.testing.assert_array_equal(joints[:, 0], [28, 56, 84])  # into frame 29: the first of latent 7
    assert joints.shape == (3, 9)
    np.testing.assert_array_equal(joints[0], np.arange(28, 37))  # out of latent 8: into frame 37
    flat = others.reshape(-1)
    assert flat.min() >= 24 and not set(flat) & set(joints.reshape(-1))
    assert (others[:, 0] % 4 == 0).all() and len(others) > 3


def test_a_planted_seam_is_seen():
    rng = np.random.default_rng(0)
    change = 1 + 0.1 * rng.random(2000)
    calm = summary(*stretches(change, 7, 2))
    assert calm["mean_ratio"][1] < 1 < calm["mean_ratio"][2]
    assert calm["joints_above_95th_percentile"] < 0.15
    change[28::28] += 1.0
    seam = summary(*stretches(change, 7, 2))
    assert seam["peak_ratio"][1] > 1.8 and seam["mean_ratio"][1] > 1.05
    assert seam["joints_above_95th_percentile"] == 1.0
    assert ratio(np.full(5, 2.0), np.full(9, 1.0)) == pytest.approx((2, 2, 2))
