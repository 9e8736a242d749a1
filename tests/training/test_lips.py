"""Stage ``lips``: what it reads, and what its difference counts."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lpm_jax.errors import InputError
from lpm_jax.models import dit
from lpm_jax.training import lips, stages
from tests import tiny
from tests.training.clips import batch_of

CONFIG = dataclasses.replace(tiny.CONFIG, train=dataclasses.replace(tiny.CONFIG.train, dtype="float32", lips=1.0))
FRAMES, MOUTH = 2, (slice(2, 3), slice(1, 3))


def clips(seed: int, count: int = 16) -> dict:
    """Windows whose mouth cells say in four channels how far the lips are open."""
    batch = batch_of(CONFIG, FRAMES, count, seed)
    opening = np.random.default_rng(seed).uniform(0, 1, (count, FRAMES, 4)).astype(np.float32)
    latents = np.array(batch["latents"], np.float32)
    latents[:, :, *MOUTH, :4] = np.array(batch["references"][:, 1:2, *MOUTH, :4]) + 4 * opening[:, :, None, None]
    mouth = np.zeros(latents.shape[:4], bool)
    mouth[:, :, *MOUTH] = True
    return batch | {"latents": latents, "mouth": mouth, "aperture": opening.reshape(count, -1)}


@pytest.fixture(scope="module")
def reader() -> dict:
    optimiser, loss = optax.adam(3e-3), lips.make_loss(CONFIG)
    params = jax.tree.map(lambda x: 0.05 * jax.random.normal(jax.random.key(0), x.shape), lips.shapes(CONFIG))

    @jax.jit
    def step(params, state, batch, key):
        gradient = jax.grad(lambda p: loss(p, batch, key)[0])(params)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for i in range(300):
        params, state = step(params, state, clips(i), jax.random.key(i))
    return params


def test_it_learns_to_read(reader):
    batch = jax.tree.map(jnp.asarray, clips(1000, 64))
    found = lips.read(reader, jnp.asarray(batch["latents"]), batch, jnp.float32)
    assert np.corrcoef(np.ravel(found), np.ravel(batch["aperture"]))[0, 1] > 0.95
    # What is far from the mouth is not looked at, what is in it is.
    elsewhere, inside = np.array(batch["latents"]), np.array(batch["latents"])
    elsewhere[:, :, 0] += 1.0
    inside[:, :, *MOUTH] += 1.0
    same, other = (lips.read(reader, jnp.asarray(x), batch, jnp.float32) for x in (elsewhere, inside))
    np.testing.assert_allclose(same, found, atol=1e-5)
    assert float(jnp.abs(other - found).mean()) > 0.05


def test_difference(reader):
    """The truth has none. Shut lips differ by about their opening's square, in the frames that count; a patch that was
    not computed is the truth's."""
    batch = jax.tree.map(jnp.asarray, clips(1001, 64))
    patches = partial(dit.patchify, CONFIG.dit)
    shut = np.array(batch["latents"])
    shut[:, :, *MOUTH, :4] = np.asarray(batch["references"][:, 1:2, *MOUTH, :4], np.float32)
    read = [lips.read(reader, jnp.asarray(x), batch, jnp.float32) for x in (shut, batch["latents"])]
    opening = np.asarray(jnp.square(read[0] - read[1]).mean((0, 2)))
    assert opening.mean() == pytest.approx(np.square(batch["aperture"]).mean(), rel=0.3)
    truth, shut = patches(jnp.asarray(batch["latents"])), patches(jnp.asarray(shut))
    difference = partial(lips.difference, CONFIG, reader)
    both = jnp.ones((64, FRAMES))
    assert float(difference(truth, batch, None, both)) == pytest.approx(0, abs=1e-10)
    first = jnp.zeros((64, FRAMES)).at[:, 0].set(1.0)
    assert float(difference(shut, batch, None, both)) == pytest.approx(opening.mean(), rel=1e-4)
    assert float(difference(shut, batch, None, first)) == pytest.approx(opening[0], rel=1e-4)
    assert float(difference(shut, batch, None, 0 * both)) == 0
    held = [2, 3]  # of the grid's four patches those with the mouth
    for keep, expected in (([0, 1], 0.0), (held, opening.mean())):
        keep = jnp.broadcast_to(jnp.asarray(keep), (64, 2))
        found = difference(jnp.take_along_axis(shut, keep[:, None, :, None], axis=2), batch, keep, both)
        assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-10)
    gradient = jax.grad(lambda x: difference(x, batch, None, both))(shut)
    assert float(jnp.abs(gradient).max()) > 0


def test_a_stage_that_needs_it_says_so(tmp_path):
    for name in ("audio", "base.identity"):
        (tmp_path / name / "weights").mkdir(parents=True)
    with pytest.raises(InputError, match=r"^--stage online.causal: expected the finished weights of lips in "):
        stages.run("online.causal", CONFIG, tmp_path)
