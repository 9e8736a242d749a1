"""Stage ``faces``: what there is to read, that it is learnt, and what its difference counts."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipeline.schema import PARAM_INDEX, PARAMS
from lpm_jax.errors import InputError
from lpm_jax.models import dit
from lpm_jax.training import faces, lips, on_policy, stages
from tests import tiny
from tests.training.clips import batch_of
from tests.training.test_on_policy import BATCH
from tests.training.test_on_policy import CONFIG as ROLLOUT
from tests.training.test_on_policy import PARAMS as MODEL

CONFIG = dataclasses.replace(tiny.CONFIG, train=dataclasses.replace(tiny.CONFIG.train, dtype="float32", faces=1.0))
FRAMES = 2
SMILE, YAW = (list(faces.READ).index(name) for name in ("smile", "yaw"))


def clips(seed: int, count: int = 16) -> dict:
    """Windows of which two cells say how much the face smiles and how far it is turned."""
    batch, rng = batch_of(CONFIG, FRAMES, count, seed), np.random.default_rng(seed)
    params = np.zeros((count, 4 * FRAMES, len(PARAMS)), np.float32)
    latents = np.array(np.broadcast_to(batch["references"][:, 1:2], batch["latents"].shape), np.float32)
    for name, cell in (("smile", (3, 1)), ("yaw", (0, 2))):
        values = rng.uniform(-1, 1, (count, FRAMES)).astype(np.float32)
        params[..., PARAM_INDEX[name]] = faces.READ[name] * np.repeat(values, 4, axis=1)
        latents[:, :, *cell, :4] += 3 * values[..., None]
    return batch | {"latents": jnp.asarray(latents), "params": jnp.asarray(params)}


@pytest.fixture(scope="module")
def reader() -> dict:
    optimiser, loss = optax.adam(3e-3), faces.make_loss(CONFIG)
    params = faces.init(CONFIG, jax.random.key(0))

    @jax.jit
    def step(params, state, batch, key):
        gradient = jax.grad(lambda p: loss(p, batch, key)[0])(params)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for i in range(250):
        params, state = step(params, state, clips(i), jax.random.key(i))
    return params


def test_what_there_is_to_read():
    """The mean over a latent's four frames, in each one's unit, and nothing of the columns that are not read."""
    params = np.zeros((1, 8, len(PARAMS)), np.float32)
    params[0, :4, PARAM_INDEX["yaw"]] = [0, 8, 16, 24]
    params[0, 4:, PARAM_INDEX["smile"]] = 0.5
    params[0, :, PARAM_INDEX["aperture"]] = 9.0
    want = np.zeros((1, 2, len(faces.READ)))
    want[0, 0, YAW], want[0, 1, SMILE] = 12 / faces.READ["yaw"], 0.5 / faces.READ["smile"]
    np.testing.assert_allclose(faces.wanted(jnp.asarray(params)), want, rtol=1e-6)
    assert set(faces.READ) < set(PARAMS)


def test_it_learns_to_read(reader):
    batch = clips(1000, 64)
    found, want = faces.read(reader, batch["latents"], batch, jnp.float32), faces.wanted(batch["params"])
    for column in (SMILE, YAW):
        assert np.corrcoef(np.ravel(found[..., column]), np.ravel(want[..., column]))[0, 1] > 0.9
    others = np.delete(np.asarray(found), [SMILE, YAW], axis=-1)
    assert np.square(others).mean() < 0.05


def test_the_difference_is_of_what_is_read(reader):
    """The truth has none; a face at rest differs by what it should have done."""
    batch = clips(1001, 64)
    patches = partial(dit.patchify, CONFIG.dit)
    rest = jnp.broadcast_to(batch["references"][:, 1:2].astype(jnp.float32), batch["latents"].shape)
    difference = partial(lips.difference, CONFIG, reader, batch=batch, keep=None, read=faces.read)
    both = jnp.ones((64, FRAMES))
    assert float(difference(patches(batch["latents"]), counts=both)) == pytest.approx(0, abs=1e-10)
    asked = float(jnp.mean(jnp.square(faces.wanted(batch["params"]))))
    assert float(difference(patches(rest), counts=both)) == pytest.approx(asked, rel=0.3)


@pytest.mark.slow
def test_it_is_a_term_of_a_rollouts_loss():
    """As much as its weight says, at both evaluations, and its gradient reaches the student."""
    network = faces.init(ROLLOUT, jax.random.key(1))
    values, grads = [], []
    for weight in (0.0, 2.0):
        config = dataclasses.replace(ROLLOUT, train=dataclasses.replace(ROLLOUT.train, faces=weight))
        loss = on_policy.make_loss(config, None, network if weight else None)
        (value, metrics), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(MODEL, BATCH, jax.random.key(0))
        values.append(float(value)), grads.append(grad["dit"]["head"]["projection"]["kernel"])
    assert 0 < values[1] - values[0] < 4 * float(metrics["faces"]) + 1e-6
    assert tiny.differs(*grads, 1e-6)


def test_it_must_be_trained_first(tmp_path):
    with pytest.raises(InputError, match="--stage online.rollout: expected the finished weights of faces"):
        (tmp_path / "online.causal" / "weights").mkdir(parents=True)
        config = dataclasses.replace(tiny.CONFIG, train=dataclasses.replace(tiny.CONFIG.train, faces=0.3, lips=0.0))
        stages.run("online.rollout", config, tmp_path)
