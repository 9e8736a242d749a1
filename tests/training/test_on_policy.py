"""``online.rollout``: what is compared with what. That rollouts are streams is shown in tests/streaming."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.config import Config, DistillConfig, StreamConfig
from lpm_jax.models import dit
from lpm_jax.training import distill, lips, on_policy, rollout
from lpm_jax.training.flow_matching import patch_weights
from tests import tiny
from tests.training.clips import batch_of

CONFIG = dataclasses.replace(
    tiny.CONFIG,
    dit=dataclasses.replace(tiny.CONFIG.dit, depth=2),
    stream=StreamConfig(chunk=1, sink=1, window=1),
    distill=DistillConfig(rollout=3, gradient=2),
)
PARAMS = {name: x for name, x in tiny.params(CONFIG).items() if name != "vae"}
BATCH = batch_of(CONFIG, 3)


def silent() -> dict:
    """A network that says nothing: whatever it is shown, the reference stays."""
    head = PARAMS["dit"]["head"]
    head = head | {name: jax.tree.map(jnp.zeros_like, head[name]) for name in ("projection", "gate", "warp")}
    return PARAMS | {"dit": PARAMS["dit"] | {"head": head}}


def test_both_evaluations_are_compared_with_the_clip_where_the_rollout_has_come_to():
    loss = jax.jit(on_policy.make_loss(CONFIG))
    patches = lambda x: np.asarray(dit.patchify(CONFIG.dit, x.astype(jnp.float32)), np.float64)  # noqa: E731
    truth, anchor = patches(BATCH["latents"]), patches(BATCH["references"][:, 1:2])
    channels = np.tile(np.asarray(PARAMS["prior"]["weight"], np.float64), 4)
    error = (np.square(truth - anchor) * channels).mean(-1)
    weight = np.asarray(patch_weights(CONFIG, BATCH["weights"]), np.float64)
    seen = set()
    for seed in range(6):
        key = jax.random.key(seed)
        value, metrics = loss(silent(), BATCH, key)
        warm = int(jax.random.randint(jax.random.split(key)[0], (), 0, 2))
        at = slice(warm, warm + 2)
        mean = (error[:, at] * weight[:, at]).sum() / weight[:, at].sum()
        assert float(value) == pytest.approx(0.5 * (1 + 4) * mean, rel=1e-3)  # at T1 = 0.5 an error counts four times
        assert float(metrics["x0_at_1"]) == pytest.approx(float(metrics["x0_at_0.5"]), rel=1e-6)  # two sums of the same
        assert float(metrics["x0_at_1"]) == pytest.approx(error[:, at].mean(), rel=1e-3)
        seen.add(warm)
    assert seen == {0, 1}


def test_what_a_rollout_says_has_moved_is_compared_with_optical_flow():
    """In clips whose anchor is what the flow is told from, at the chunks that the rollout has come to."""
    rng, weight = np.random.default_rng(5), 3.0
    far = rng.normal(size=(*BATCH["latents"].shape[:2], 4, *CONFIG.cells, 2)).astype(np.float32)
    batch = BATCH | {"moves": jnp.asarray(far, jnp.float16), "moves_known": jnp.array([0.0, 1.0])}
    params = PARAMS | {"warp": PARAMS["warp"] | {"motions": rng.normal(size=(3, *CONFIG.cells, 2)).astype(np.float32)}}
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, moves=weight))
    seen = set()
    plain, watched = (jax.jit(on_policy.make_loss(c)) for c in (CONFIG, config))
    for seed in range(4):
        key = jax.random.key(seed)
        k_warm, k_roll = jax.random.split(key)
        warm = int(jax.random.randint(k_warm, (), 0, 2))
        *_, moves = rollout.estimates(rollout.Player(CONFIG, BATCH), params, warm, 2, k_roll)
        g = np.asarray(moves, np.float64).mean(axis=2).reshape(2, -1, 3)  # the tokens' mean, by video frame
        field = np.einsum("btk,khwx->bthwx", g, params["warp"]["motions"])
        off = np.abs(field[1] - np.float16(far[1, warm : warm + 2]).reshape(-1, *CONFIG.cells, 2)) / 2  # of two pixels
        want = np.mean(np.where(off <= 1, 0.5 * off**2, off - 0.5))
        value, metrics = watched(params, batch, key)
        total, count = metrics["moves"]
        assert float(total / count) == pytest.approx(want, rel=2e-3)
        assert float(value - plain(params, batch, key)[0]) == pytest.approx(weight * want, rel=2e-3)
        seen.add(warm)
    assert seen == {0, 1}


@pytest.mark.slow
def test_guidance_moves_the_clip_by_what_sound_and_prompt_change():
    """Gradients are those of the distance from a clip that is moved by a share of the difference, and stays put."""
    share, count = 0.4, CONFIG.distill.gradient
    distill = dataclasses.replace(CONFIG.distill, guidance=share)
    flow = dataclasses.replace(CONFIG.flow, audio_dropout=0.0)
    config, key = dataclasses.replace(CONFIG, distill=distill, flow=flow), jax.random.key(1)
    k_warm, k_roll = jax.random.split(key)
    warm = jax.random.randint(k_warm, (), 0, 2)
    player, deaf = rollout.Player(config, BATCH), rollout.Player(config, BATCH, keep=jnp.zeros(2))
    made, without, _ = rollout.estimates(player, PARAMS, warm, count, k_roll, deaf)
    alone, nothing, _ = rollout.estimates(player, PARAMS, warm, count, k_roll)
    np.testing.assert_allclose(made, alone, atol=1e-5)
    assert nothing is None and tiny.differs(made, without, 1e-2)
    window = rollout.cut(config, BATCH, warm, count)
    clip = dit.patchify(config.dit, window["latents"].astype(jnp.float32))
    mouth = np.zeros(BATCH["latents"].shape[:4], bool)
    mouth[:, :, 0] = True  # the upper row of cells: so is the upper row of patches
    batch = BATCH | {"mouth": jnp.asarray(mouth)}
    moved = dit.unpatchify(config.dit, (clip + share * (made - without))[1], *config.cells)
    moved = moved.at[:, :, config.dit.patch :].set(window["latents"][:, :, config.dit.patch :].astype(jnp.float32))

    def second(params: dict, batch: dict, config: Config) -> jax.Array:
        return on_policy.make_loss(config)(params, batch, key)[1]["x0_at_0.5"]

    at = BATCH["latents"].astype(jnp.float32)
    at = jax.lax.dynamic_update_slice_in_dim(at, moved, warm, axis=1)
    want, got = (
        jax.jit(jax.value_and_grad(second), static_argnums=2)(PARAMS, batch, c)
        for batch, c in ((batch | {"latents": at}, CONFIG), (batch, config))
    )
    assert got[0] == pytest.approx(float(want[0]), rel=1e-3)
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3 * float(jnp.abs(b).max() + 1e-6))


def test_where_the_prompt_changes_the_clip_is_its_own_from_there():
    """Before the chunks that count, a stream performs another clip's prompt and sound."""
    config = dataclasses.replace(CONFIG, distill=dataclasses.replace(CONFIG.distill, switch=1.0))
    seed = next(s for s in range(9) if int(jax.random.randint(jax.random.split(jax.random.key(s))[0], (), 0, 2)) == 1)
    key, warm = jax.random.key(seed), 1
    batch = BATCH | {"text": BATCH["text"].at[1, 1:].add(1)}
    mixed, before = distill.switched(config, batch, jnp.int32(warm), jnp.ones(2, bool))
    truth = dit.patchify(config.dit, rollout.cut(config, batch, warm, 2)["latents"].astype(jnp.float32))
    channels = jnp.tile(PARAMS["prior"]["weight"], 4)

    @jax.jit
    def error(batch: dict, before: jax.Array) -> jax.Array:
        made, *_ = rollout.estimates(
            rollout.Player(config, batch, before, warm), PARAMS, warm, 2, jax.random.split(key)[1]
        )
        return jnp.mean(jnp.square(made[0] - truth) * channels)

    value = float(jax.jit(on_policy.make_loss(config))(PARAMS, batch, key)[1]["x0_at_1"])
    assert value == pytest.approx(float(error(mixed, before)), rel=1e-4)
    assert abs(value - float(error(batch, batch["text"]))) > 1e-3 * value


def test_a_player_without_sound_and_prompt_hears_nothing():
    """One clip of the two is told nothing: other sound and other words change only the other one's."""
    other = BATCH | {"text": BATCH["text"].at[:, 1:].add(1)}
    other |= {name: other[name] + 1 for name in ("speak", "listen")}
    told = [rollout.Player(CONFIG, batch, keep=jnp.array([0.0, 1.0])).told(PARAMS, 1) for batch in (BATCH, other)]
    for branch in ("speak", "listen"):
        a, b = (getattr(x, branch).tokens for x in told)
        assert float(jnp.abs(a[0]).max()) == 0 == float(jnp.abs(b[0]).max())
        assert tiny.differs(a[1], b[1], 1e-3)
    assert all(x.text_mask[0].sum() == 1 and x.text_mask[0, 0] for x in told)
    assert all(x.text_mask[1].sum() > 1 for x in told)


@pytest.mark.slow
def test_lips_have_their_own_term():
    """The loss with it is the loss without, and what is read of the rollout's two evaluations."""
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, lips=3.0))
    mouth = np.ones(BATCH["latents"].shape[:4], bool)
    batch, key = BATCH | {"mouth": jnp.asarray(mouth)}, jax.random.key(1)
    reader = jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(0), x.shape), lips.shapes(config))
    plain = on_policy.make_loss(CONFIG)(PARAMS, batch, key)[0]
    value, metrics = on_policy.make_loss(config, reader)(PARAMS, batch, key)
    k_warm, k_roll = jax.random.split(key)
    warm = jax.random.randint(k_warm, (), 0, 2)
    made, *_ = rollout.estimates(rollout.Player(config, batch), PARAMS, warm, 2, k_roll)
    window, every = rollout.cut(config, batch, warm, 2), jnp.ones((2, 2))
    read = [float(lips.difference(config, reader, x, window, None, every)) for x in made]
    assert metrics["lips"] == pytest.approx(read[1], rel=1e-4)
    assert float(value - plain) == pytest.approx(3.0 * np.mean(read), rel=1e-3)
