"""The toy autoencoder: causal, streamable, four frames to one latent frame with the first alone."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.models.vae import toy
from tests import tiny

CFG = tiny.CONFIG.vae
FRAMES = 13  # 4 k + 1


@pytest.fixture(scope="module")
def params():
    return tiny.params()["vae"]


@pytest.fixture(scope="module")
def video():
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, FRAMES, 16, 16, 3)), jnp.float32)


@pytest.fixture(scope="module")
def latents(params, video):
    return encode(params, video)[0]


encode = jax.jit(partial(toy.encode, CFG))
decode = jax.jit(partial(toy.decode, CFG))


def test_lengths(params, video, latents):
    assert latents.shape == (2, 4, 2, 2, CFG.channels)
    assert decode(params, latents)[0].shape == video.shape
    assert jnp.std(latents) > 0.1  # the comparisons below compare something


@pytest.mark.parametrize("sizes", [(1, 12), (5, 8), (1, 4, 8), (9, 4)])
def test_encoding_in_pieces_equals_the_whole(params, video, latents, sizes):
    state, parts, at = None, [], 0
    for size in sizes:
        part, state = encode(params, video[:, at : at + size], state)
        parts.append(part)
        at += size
    assert at == FRAMES
    np.testing.assert_allclose(jnp.concatenate(parts, 1), latents, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 3), (2, 2), (3, 1)])
def test_decoding_in_pieces_equals_the_whole(params, latents, sizes):
    whole = decode(params, latents)[0]
    state, parts, at = None, [], 0
    for size in sizes:
        part, state = decode(params, latents[:, at : at + size], state)
        parts.append(part)
        at += size
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-5)


def test_carried_state_matters(params, latents):
    """Without the state a later piece decodes to something else: the pieces above do not agree by accident."""
    _, state = decode(params, latents[:, :1])
    assert sum(x.size for x in state.values()) > 0
    empty = {name: jnp.zeros_like(x) for name, x in state.items()}
    assert tiny.differs(decode(params, latents[:, 1:], state)[0], decode(params, latents[:, 1:], empty)[0], 1e-3)


def test_first_frame_stands_alone(params, video, latents):
    np.testing.assert_allclose(encode(params, video[:, :1])[0], latents[:, :1], atol=1e-5)
    np.testing.assert_allclose(decode(params, latents[:, :1])[0], decode(params, latents)[0][:, :1], atol=1e-5)


@pytest.mark.parametrize("frame, first_latent", [(0, 0), (1, 1), (4, 1), (5, 2), (12, 3)])
def test_a_frame_changes_no_earlier_latent(params, video, latents, frame, first_latent):
    changed = encode(params, video.at[:, frame].add(0.5))[0]
    np.testing.assert_array_equal(changed[:, :first_latent], latents[:, :first_latent])
    assert tiny.differs(changed[:, first_latent], latents[:, first_latent])


@pytest.mark.parametrize("latent, first_frame", [(0, 0), (1, 1), (2, 5), (3, 9)])
def test_a_latent_changes_no_earlier_frame(params, latents, latent, first_frame):
    whole, changed = decode(params, latents)[0], decode(params, latents.at[:, latent].add(0.5))[0]
    np.testing.assert_array_equal(changed[:, :first_frame], whole[:, :first_frame])
    assert tiny.differs(changed[:, first_frame], whole[:, first_frame])


def test_causal_conv_equals_a_3d_convolution():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, state):
            return toy.CausalConv(5, taps=3, name="conv")(x, state)

    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 7, 3))
    weights = tiny.fill(jax.eval_shape(lambda: Net().init(jax.random.key(0), x, {})), seed=1)
    conv = weights["params"]["conv"]
    assert conv["kernel"].shape == (3, 3, 3, 3, 5)
    want = jax.lax.conv_general_dilated(  # a correlation: the oldest group meets the first tap, ours the last
        x, conv["kernel"][::-1], (1, 1, 1), [(2, 0), (1, 1), (1, 1)], dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    np.testing.assert_allclose(Net().apply(weights, x, {}), want + conv["bias"], atol=1e-5)
    assert tiny.differs(conv["kernel"][0], conv["kernel"][2], 0.1)


def test_space_to_depth():
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3).astype(jnp.float32)
    packed = toy.space_to_depth(x, 2)
    assert packed.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(packed[1, 1, 2], x[1, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(toy.depth_to_space(packed, 2), x)


def test_statistics_normalise_the_latent(params, video, latents):
    mean, std = jnp.arange(8.0) / 4, 1 + jnp.arange(8.0)
    plain = params | {"mean": jnp.zeros(8), "std": jnp.ones(8)}
    raw = encode(plain, video)[0]
    scaled = params | {"mean": mean, "std": std}
    np.testing.assert_allclose(encode(scaled, video)[0], (raw - mean) / std, atol=1e-5)
    np.testing.assert_allclose(decode(scaled, (raw - mean) / std)[0], decode(plain, raw)[0], atol=1e-4)


@pytest.mark.parametrize("frames", [2, 4, 8, 12])
def test_wrong_number_of_frames_at_the_start(params, video, frames):
    with pytest.raises(ValueError, match=rf"expected 4 k \+ 1 frames, found {frames}$"):
        toy.encode(CFG, params, video[:, :frames])


@pytest.mark.parametrize("frames", [1, 3, 5])
def test_wrong_number_of_frames_going_on(params, video, frames):
    _, state = encode(params, video[:, :1])
    with pytest.raises(ValueError, match=rf"expected 4 k frames, found {frames}$"):
        toy.encode(CFG, params, video[:, :frames], state)


def test_pixels_survive_the_unit_scale():
    every = np.arange(256, dtype=np.uint8)
    unit = toy.to_unit(every)
    assert (unit[0], unit[255]) == (-1, 1)
    np.testing.assert_array_equal(toy.to_pixels(unit), every)
    np.testing.assert_array_equal(toy.to_pixels(jnp.array([-3.0, 7.0])), [0, 255])


def test_basis_of_its_own_cells_is_the_best_linear_code():
    """With silent networks the autoencoder is principal components: what lies in their span comes back."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(toy.CELL, CFG.channels)))[0]
    strength = 2.0 ** -np.arange(CFG.channels)
    codes = rng.normal(size=(5000, CFG.channels)) * strength
    centre = rng.normal(size=toy.CELL) * 0.1
    cells = codes @ directions.T + centre
    params = toy.init(CFG, jax.random.key(0))
    params = toy.with_basis(params, cells.mean(0), np.cov(cells.T))
    for part in ("encoder", "decoder"):
        params[part]["out"] = jax.tree.map(jnp.zeros_like, params[part]["out"])
    x = jnp.asarray(cells[:4].reshape(1, 1, 2, 2, toy.CELL), jnp.float32)
    z = toy.encode_cells(CFG, params, x, {})
    np.testing.assert_allclose(toy.decode_cells(CFG, params, z, {}), x, atol=1e-3)
    # Variances fall as the square root of the components' own, and are one on average.
    many = jnp.asarray(cells.reshape(1, 1, 50, 100, toy.CELL), jnp.float32)
    variance = np.asarray(jnp.var(toy.encode_cells(CFG, params, many, {}), axis=(0, 1, 2, 3)))[: CFG.channels]
    np.testing.assert_allclose(variance / variance[0], strength[: CFG.channels], rtol=0.1)
    assert variance.mean() == pytest.approx(1.0, rel=0.05)


def test_pack_and_unpack(video):
    groups = toy.group_frames(video)
    cells = toy.pack(groups)
    assert cells.shape == (2, 4, 2, 2, toy.CELL)
    np.testing.assert_array_equal(toy.unpack(cells), groups)
    # One cell holds the 8 x 8 pixels of its place.
    assert set(np.asarray(cells[0, 1, 0, 1]).tolist()) == set(np.asarray(groups[0, 1, :, :8, 8:]).ravel().tolist())
