"""What neither sound nor prompt foretells: drawn for streams as it is rendered for clips, and told to the network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.performers.clip import make_sound
from data_pipeline.performers.conversation import make_scene
from data_pipeline.performers.motion import perform
from data_pipeline.performers.prompts import Prompt
from data_pipeline.schema import FPS, LIFE, PARAM_INDEX
from lpm_jax.models import conditions, life
from lpm_jax.streaming import generator
from lpm_jax.training import rollout
from tests import tiny
from tests.streaming.stream import begin, sounds
from tests.training.clips import batch_of

LATENTS = FPS / 4  # a second
BLINK = list(LIFE).index("blink")


@pytest.fixture(scope="module")
def minutes() -> np.ndarray:
    """Two hours of sixteen streams, in latent frames."""
    start = life.begin(jax.random.key(0), 16)
    return np.asarray(jax.jit(life.onward, static_argnums=1)(start, int(7200 * LATENTS), jax.random.key(1))[1])


def test_sways_are_bounded_slow_and_about_one(minutes):
    sway = minutes[..., : life.SWAYS]
    assert np.abs(sway).max() < 2.0
    np.testing.assert_allclose(sway[:, 600:].std((0, 1)), 0.8, atol=0.1)  # one, less what the bound takes off
    steps = np.abs(np.diff(sway, axis=1))
    assert steps.max() < 1.0 and np.quantile(steps, 0.99) < 0.5  # in a sixth of a second of a sway of six: no jumps
    whole = sway[:, 600:, 0] - sway[:, 600:, 0].mean()
    alike = [np.mean(whole[:, : -round(s * LATENTS)] * whole[:, round(s * LATENTS) :]) for s in (3, 6, 60)]
    assert alike[0] < -0.3 < 0.2 < alike[1]  # to and fro in six seconds
    assert abs(alike[2]) < 0.05  # and forgotten in a minute


def test_glances_and_blinks_come_now_and_then(minutes):
    for column, (low, high), size in ((3, life.GLANCES, 1.5), (4, life.GLANCES, 1.5), (BLINK, life.BLINKS, 1.0)):
        there = np.abs(minutes[..., column]) > 0.02
        starts = np.diff(there.astype(int), axis=1) == 1
        apart = 7200 * 16 / starts.sum()
        assert (low + high) / 2 * 0.95 < apart < (low + high) / 2 * 1.1  # a glance nowhere is not seen
        assert 0.6 * size < np.abs(minutes[..., column]).max() <= size
    assert (minutes[..., BLINK] >= 0).all() and minutes[..., BLINK].mean() < 0.1


def test_a_stream_begins_at_rest():
    first = life.onward(life.begin(jax.random.key(3), 64), 1, jax.random.key(4))[1]
    assert np.abs(first).max() < 0.5 and np.abs(first[..., life.SWAYS :]).max() == 0


def test_a_clip_tells_what_its_seed_moves():
    """Two performances of one scene differ by their lives and by nothing else."""
    scene = make_scene(5, 97, False, "speak")
    made = [perform(scene.dry, scene.speak, scene.listen, Prompt(), 97, seed) for seed in (1, 2)]
    (params, _, lives), (others, _, other_lives) = made
    for name in ("yaw", "roll", "pitch"):
        column, size, i = PARAM_INDEX[name], LIFE[name], list(LIFE).index(name)
        np.testing.assert_allclose(
            params[:, column] - size * lives[:, i], others[:, column] - size * other_lives[:, i], atol=1e-5
        )
        assert np.abs(lives[:, i]).max() > 0.4 and lives[0, i] == 0
    lips = [PARAM_INDEX[name] for name in ("aperture", "jaw_open", "smile", "brow_inner_left")]
    np.testing.assert_array_equal(params[:, lips], others[:, lips])
    record = make_sound(7, 2.0)
    assert record["life"].shape == (len(record["params"]), len(LIFE)) and record["life"].dtype == np.float32


def test_the_network_follows_what_it_is_told():
    config, params = tiny.CONFIG, tiny.params()
    batch = batch_of(config, 3)
    play = jax.jit(rollout.play, static_argnums=(0, 3))
    told = play(config, params, batch, 1, jax.random.key(0))
    still = play(config, params, batch | {"life": jnp.zeros_like(batch["life"])}, 1, jax.random.key(0))
    assert tiny.differs(told, still, 1e-2)
    fresh = conditions.init(config, jax.random.key(0))["dit"]["embed"]["life"]
    assert 0.03 < np.std(fresh["kernel"]) < 0.07 and not np.any(fresh["bias"])  # from zero, 390 steps did not find it


def test_a_stream_draws_its_own_and_takes_it_back():
    state = begin()
    undo = generator.before(tiny.CONFIG, state)
    hear = jax.jit(generator.hear, static_argnums=0)
    after, told = hear(tiny.CONFIG, tiny.params(), state, *sounds(0))
    want = life.onward(state.life, tiny.CONFIG.stream.chunk, jax.random.fold_in(state.key, 2))
    np.testing.assert_allclose(told.life, want[1], atol=1e-6)
    np.testing.assert_allclose(after.life, want[0], atol=1e-6)
    np.testing.assert_array_equal(undo.life, state.life)
    without = dataclasses.replace(tiny.CONFIG, dit=dataclasses.replace(tiny.CONFIG.dit, life=False))
    assert "life" not in tiny.params(without)["dit"]["embed"]
