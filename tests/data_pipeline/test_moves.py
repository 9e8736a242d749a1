"""Where the picture went: optical flow by cells, in the order and with the sign that a warp reads."""

import numpy as np
from scipy import ndimage

from data_pipeline.moves import moves

SIDE = 64


def picture() -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(SIDE, SIDE, 3))
    smooth = ndimage.gaussian_filter(noise, (3, 3, 0))
    return np.uint8(np.clip(128 + 60 * smooth / smooth.std(), 0, 255))


def test_a_picture_that_slides_is_followed():
    still = picture()
    # Frame t shows at p what the picture shows at p + (1.5 t, -t), in pixels.
    frames = [ndimage.shift(still.astype(float), (t, -1.5 * t, 0), order=3, mode="nearest") for t in range(5)]
    found = moves(still, np.uint8(np.clip(frames, 0, 255)))
    assert found.shape == (2, 4, 8, 8, 2)
    assert not found[0].any()
    inner = found[1, :, 2:6, 2:6]
    for t in range(1, 5):
        np.testing.assert_allclose(inner[t - 1].mean((0, 1)), [1.5 * t, -t], atol=0.3)


def test_each_cell_has_its_own():
    """Only the upper left quarter moves."""
    still = picture()
    frame = still.copy()
    frame[4:32, 4:32] = still[6:34, 4:32]  # down by two at what it shows
    found = moves(still, np.stack([still, *[frame] * 4]))[1]
    np.testing.assert_allclose(found[:, 1:3, 1:3].mean((0, 1, 2)), [0, 2], atol=0.4)
    np.testing.assert_allclose(found[:, 5:, 5:], 0, atol=0.3)
