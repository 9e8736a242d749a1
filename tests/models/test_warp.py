"""Moving the picture: sampling, the formula, and what the network's output does with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.errors import InputError
from lpm_jax.flow import clean_from_output
from lpm_jax.models import conditions, dit, warp
from lpm_jax.models.vae import toy
from tests import tiny

CONFIG = tiny.CONFIG
CFG = CONFIG.dit
RNG = np.random.default_rng(0)
SIDE = 32  # pixels


def at_every_pixel(x: float, y: float) -> jnp.ndarray:
    return jnp.broadcast_to(jnp.array([x, y], jnp.float32), (2, 1, 16, 16, 2))


@pytest.fixture(scope="module")
def params() -> dict:
    motions = RNG.normal(size=(CFG.warp, 4, 4, 2)).astype(np.float32)
    return warp.measured(tiny.params()["vae"], jnp.asarray(motions))


@pytest.fixture(scope="module")
def anchor(params) -> jnp.ndarray:
    """What the code makes of two smooth pictures."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = [np.stack([np.sin(6 * columns + i), np.cos(5 * rows), np.sin(4 * (rows + columns))], -1) for i in range(2)]
    frames = np.repeat(np.stack(waves)[:, None, None], toy.GROUP, axis=2).astype(np.float32)
    return ((toy.pack(jnp.asarray(frames)) - params["base"]) @ (params["basis"] * params["gain"]))[:, 0]


def test_between_pixels_are_cubics_and_beyond_the_edge_is_the_edge():
    rows, columns = np.mgrid[:16, :16].astype(np.float32)
    lines = jnp.asarray(np.stack([columns, rows, 3 - columns + 2 * rows], -1))[None].repeat(2, 0)
    moved = warp.sampled(warp.fine(lines), at_every_pixel(1.25, -0.5))[:, 0]
    want = lines + jnp.array([1.25, -0.5, -1.25 - 1.0])
    np.testing.assert_allclose(moved[:, 3:12, 3:12], want[:, 3:12, 3:12], atol=1e-4)
    noise = jnp.asarray(RNG.normal(size=(2, 16, 16, 3)), jnp.float32)
    np.testing.assert_allclose(warp.sampled(warp.fine(noise), at_every_pixel(0, 0))[:, 0], noise, atol=1e-6)
    shifted = warp.sampled(warp.fine(noise), at_every_pixel(2.0, 1.0))[:, 0]
    np.testing.assert_allclose(shifted[:, :15, :14], noise[:, 1:, 2:], atol=1e-6)
    np.testing.assert_allclose(
        shifted[:, :, 15], warp.sampled(warp.fine(noise), at_every_pixel(0, 1))[:, 0, :, 15], atol=1e-6
    )
    half = warp.sampled(warp.fine(noise), at_every_pixel(0.5, 0))[:, 0, :, 5]
    want = (9 * (noise[:, :, 5] + noise[:, :, 6]) - noise[:, :, 4] - noise[:, :, 7]) / 16
    np.testing.assert_allclose(half, want, atol=1e-6)


def test_each_clip_has_its_own_picture_and_each_frame_its_own_field():
    noise = jnp.asarray(RNG.normal(size=(2, 16, 16, 3)), jnp.float32)
    field = jnp.concatenate([at_every_pixel(0, 0), at_every_pixel(1, 0), at_every_pixel(0, 3)], axis=1)
    moved = warp.sampled(warp.fine(noise), field)
    np.testing.assert_allclose(moved[:, 1, :, :15], noise[:, :, 1:], atol=1e-6)
    np.testing.assert_allclose(moved[:, 2, :13], noise[:, 3:], atol=1e-6)


def test_warp_codes_what_the_moved_picture_shows(params, anchor):
    """Frame by frame with numpy: motions by how much all tokens say, between the middles of cells; the sampled picture;
    the linear code."""
    move = warp.Warp(CFG, params, warp.picture(params, anchor))
    says = RNG.normal(size=(2, 3, 4, 4 * CFG.warp)).astype(np.float32)  # clip, frame, token, values
    found = dit.unpatchify(CFG, move(jnp.asarray(says)), 4, 4)
    g = says.mean(2).reshape(2, 3, 4, CFG.warp)
    picture, motions = (np.asarray(x) for x in (warp.picture(params, anchor), params["motions"]))
    middles, pixels = 8 * np.arange(4) + 3.5, np.arange(SIDE)
    basis, gain = np.asarray(params["basis"]), np.asarray(params["gain"])
    for clip, frame in ((0, 0), (1, 2)):
        frames = []
        for t in range(4):
            cells = sum(g[clip, frame, t, k] * motions[k] for k in range(CFG.warp))
            across = np.stack([[np.interp(pixels, middles, row) for row in cells[..., k]] for k in range(2)])
            field = [
                np.stack([np.interp(pixels, middles, lines[:, c]) for c in range(SIDE)], axis=1) for lines in across
            ]
            x, y = np.clip(2 * (pixels[None] + field[0]), 0, 62), np.clip(2 * (pixels[:, None] + field[1]), 0, 62)
            i, j = np.minimum(y.astype(int), 62), np.minimum(x.astype(int), 62)
            down, right = (y - i)[..., None], (x - j)[..., None]
            p = picture[clip]
            top, bottom = ((1 - right) * p[row, j] + right * p[row, j + 1] for row in (i, i + 1))
            frames.append((1 - down) * top + down * bottom - p[::2, ::2])
        cells = np.asarray(toy.pack(jnp.asarray(np.stack(frames), jnp.float32)[None, None]))[0, 0]
        np.testing.assert_allclose(found[clip, frame], (cells @ basis) * gain, atol=2e-3)
    assert np.abs(found).max() > 0.3


def test_nothing_moved_is_the_anchor(params, anchor):
    move = warp.Warp(CFG, params, warp.picture(params, anchor))
    np.testing.assert_allclose(move(jnp.zeros((2, 3, 4, 4 * CFG.warp))), 0, atol=1e-5)


def test_moves_learn_where_a_picture_went(params, anchor):
    """Gradients reach them: how much there is of each motion is found from the latents alone."""
    move = warp.Warp(CFG, params, warp.picture(params, anchor))
    there = jnp.asarray(RNG.normal(size=(2, 1, 1, 4 * CFG.warp)).astype(np.float32)).repeat(4, axis=2) / 2
    wanted = move(there)
    error = jax.jit(jax.value_and_grad(lambda g: jnp.mean(jnp.square(move(g) - wanted))))
    g = jnp.zeros_like(there)
    first, slope = error(g)
    rate = first / jnp.sum(jnp.square(slope))
    for _ in range(60):
        value, slope = error(g)
        g -= 0.5 * rate * slope
    assert value < 0.1 * first


def test_below_level_1_what_is_shown_has_moved_already():
    anchor, near = (jnp.asarray(RNG.normal(size=(2, n, 4, 32))) for n in (1, 1))
    output, moved, draft = (jnp.asarray(RNG.normal(size=(2, 3, 4, n))) for n in (48, 32, 32))
    shown = anchor + 0.1 * jnp.ones((2, 3, 4, 32))
    level = jnp.array([[1.0, 0.5, 1.0]] * 2)
    for under in (None, draft):
        plain, found = (clean_from_output("clean", output, shown, level, anchor, near, under, m) for m in (None, moved))
        np.testing.assert_allclose(found - plain, moved.at[:, 1].set(0), atol=1e-5)


def test_only_the_toy_has_one():
    with pytest.raises(InputError, match=r"dit\.warp: expected the toy's autoencoder"):
        conditions.abstract(dataclasses.replace(tiny.LARGE, dit=dataclasses.replace(tiny.LARGE.dit, warp=2)))


def test_output_ends_with_moves():
    out = jnp.arange(60.0)[None]
    rest, moves = dit.split_moves(CFG, out)
    np.testing.assert_array_equal(rest[0], np.arange(48))
    np.testing.assert_array_equal(moves[0], np.arange(48, 60))
