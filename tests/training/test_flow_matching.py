"""The diffusion stages' losses, checked with a network that says nothing: its output is zero, its guess the anchor."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.config import StreamConfig
from lpm_jax.errors import InputError
from lpm_jax.models import dit
from lpm_jax.models.conditions import history_tokens
from lpm_jax.models.denoiser import take
from lpm_jax.streaming import generator
from lpm_jax.training import flow_matching, passes, stages
from lpm_jax.training.flow_matching import by_kind, by_level, keep_patches, make_loss, patch_weights, step_flops
from tests import tiny

FRAMES, CELLS, CHANNELS = 6, 4, 8
KEY = jax.random.key(0)


def config(**train):
    base = dataclasses.replace(tiny.CONFIG, dit=dataclasses.replace(tiny.CONFIG.dit, depth=2))
    return dataclasses.replace(base, train=dataclasses.replace(base.train, **train))


@pytest.fixture(scope="module")
def mute():
    """Random weights, except for the last projection, the gates and what moves, which are zero."""
    params = {k: v for k, v in tiny.params(config()).items() if k != "vae"}
    head = params["dit"]["head"]
    head = head | {name: jax.tree.map(jnp.zeros_like, head[name]) for name in ("projection", "gate", "warp")}
    prior = jax.tree.map(jnp.ones_like, params["prior"])
    return params | {"dit": params["dit"] | {"head": head}, "prior": prior}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    tokens = history_tokens(config().audio) + 4 * FRAMES
    return {
        "latents": rng.normal(size=(2, FRAMES, CELLS, CELLS, CHANNELS)).astype(np.float16),
        "references": rng.normal(size=(2, 2, CELLS, CELLS, CHANNELS)).astype(np.float16),
        "reference_kinds": np.array([[0, 1]] * 2, np.int32),
        "reference_valid": np.array([[True, True], [False, True]]),
        "text": np.array([[1, 5, 6, 0, 0, 0, 0, 0]] * 2, np.int32),
        "weights": rng.uniform(1, 4, (2, FRAMES, CELLS, CELLS)).astype(np.float32),
        "speak": rng.normal(size=(2, tokens, tiny.FEATURES)).astype(np.float16),
        "listen": rng.normal(size=(2, tokens, tiny.FEATURES)).astype(np.float16),
    }


def mean(pair) -> float:
    """Of a metric's sum and count."""
    total, count = np.asarray(pair)
    return float(total / count)


def error_and_weight(batch) -> tuple[np.ndarray, np.ndarray]:
    """By hand: the squared distance from the global reference, and the weight, of each 2 x 2 patch."""
    truth, anchor = batch["latents"].astype(np.float64), batch["references"][:, 1:2].astype(np.float64)
    cells = ((truth - anchor) ** 2).mean(-1)
    blocks = lambda x: x.reshape(2, FRAMES, 2, 2, 2, 2)  # noqa: E731
    return (
        blocks(cells).mean((3, 5)).reshape(2, FRAMES, 4),
        blocks(batch["weights"]).max((3, 5)).reshape(2, FRAMES, 4),
    )


def guessed(key) -> np.ndarray:
    """The frames that a step with ``key`` has at T0 first, at T1 then."""
    return np.asarray(passes.choose(jax.random.split(key, 7)[3], 2, FRAMES, config().stream))


def test_causal_loss_by_hand(mute, batch):
    """A silent network on pure noise answers with the anchor, whatever the draw. What is guessed first counts in both
    passes, what is history first in the second."""
    cfg = config()
    cfg = dataclasses.replace(cfg, stream=dataclasses.replace(cfg.stream, levels=(1.0, 1.0)))
    loss = jax.jit(make_loss(cfg, True, 1.0))
    error, weight = error_and_weight(batch)
    for seed in range(3):
        value, metrics = loss(mute, batch, jax.random.key(seed))
        counts = weight * (1 + guessed(jax.random.key(seed))[..., None])
        assert float(value) == pytest.approx((error * counts).sum() / counts.sum(), rel=1e-3)
        assert mean(metrics["x0_pure"]) == pytest.approx(error.mean(), rel=1e-3)


def test_second_level_corrects_a_draft_and_counts_as_the_velocity_does(mute, batch):
    """A silent network's draft is the anchor, and so is what it makes of it at T1, however much noise lies over it: no
    noise comes through, and the truth under noise is not estimated. Errors at T1 = 0.5 count 1 / 0.25."""
    value, metrics = jax.jit(make_loss(config(), True, 1.0))(mute, batch, KEY)
    error, weight = error_and_weight(batch)
    first = guessed(KEY)
    assert 0 < first.sum() < first.size
    assert mean(metrics["x0_noisy"]) == pytest.approx(error.mean(-1)[first].mean(), rel=1e-2)
    assert mean(metrics["x0_pure"]) == pytest.approx(error.mean(-1)[~first].mean(), rel=1e-2)
    at_start = weight * first[..., None]
    scale = np.where(first, 4.0, 1.0)[..., None]
    total = (error * at_start).sum() + (error * weight * scale).sum()
    assert float(value) == pytest.approx(total / (at_start.sum() + weight.sum()), rel=1e-2)


@pytest.fixture
def pure_noise(monkeypatch):
    monkeypatch.setattr(flow_matching, "sample_levels", lambda key, shape, config: jax.numpy.ones(shape))


def test_teacher_loss_by_hand(mute, batch, pure_noise):
    value, metrics = jax.jit(make_loss(config(), False, 1.0))(mute, batch, jax.random.key(0))
    error, weight = error_and_weight(batch)
    assert float(value) == pytest.approx((error * weight).sum() / weight.sum(), rel=1e-3)
    assert mean(metrics["x0_pure"]) == pytest.approx(error.mean(), rel=1e-3)
    levels = {f"x0/level_{low:g}_{low + 0.25:g}" for low in (0, 0.25, 0.5, 0.75)}
    assert set(metrics) == {"x0_pure", "x0_noisy"} | levels
    assert all(float(metrics[name][1]) == 0 for name in levels | {"x0_noisy"})  # all of it is pure noise


def test_errors_are_told_apart_by_what_the_clip_shows(mute, batch, pure_noise):
    """A clip of each of two kinds; of the other two there is none, which is not the same as no error."""
    error, _ = error_and_weight(batch)
    for causal in (False, True):
        cfg = dataclasses.replace(config(), stream=dataclasses.replace(config().stream, levels=(1.0, 1.0)))
        kinds = np.array([3, 0], np.int32)
        metrics = jax.jit(make_loss(cfg, causal, 1.0))(mute, batch | {"kind": kinds}, KEY)[1]
        assert mean(metrics["x0/idle"]) == pytest.approx(error[0].mean(), rel=1e-3)
        assert mean(metrics["x0/speak"]) == pytest.approx(error[1].mean(), rel=1e-3)
        assert metrics["x0/listen"].tolist() == metrics["x0/conversation"].tolist() == [0, 0]


def test_channels_count_by_their_weight(mute, batch, pure_noise):
    wrong = batch["latents"].copy()
    wrong[..., 1:] = batch["references"][:, 1:2, ..., 1:]  # only the first channel is wrong
    values = []
    loss = jax.jit(make_loss(config(), False, 1.0))
    for weight in (1.0, 3.0):
        prior = mute["prior"] | {"weight": jnp.ones(CHANNELS).at[0].set(weight)}
        values.append(float(loss(mute | {"prior": prior}, batch | {"latents": wrong}, KEY)[0]))
    assert values[0] > 0.05
    assert values[1] == pytest.approx(3 * values[0], rel=1e-4)


def test_a_step_computes_a_share_or_all(mute, batch, pure_noise):
    """Only the heavy patch is wrong. It is always kept: of two patches with a share of a half, of four with all."""
    latents = np.repeat(batch["references"][:, 1:2], FRAMES, axis=1)
    latents[:, :, 2:, 2:] += 2.0
    weights = np.ones((2, FRAMES, CELLS, CELLS), np.float32)
    weights[:, :, 2:, 3] = 3.0
    wrong = batch | {"latents": latents, "weights": weights}
    for share, expected in ((0.5, 4 * 3 / (3 + 1)), (1.0, 4 * 3 / (3 + 3))):
        value, _ = jax.jit(make_loss(config(), False, share))(mute, wrong, jax.random.key(0))
        assert float(value) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("causal", [False, True])
def test_moves_are_compared_with_optical_flow(mute, batch, pure_noise, causal):
    """Of a network that says that nothing has moved, in clips whose anchor is what the flow is told from."""
    far = np.random.default_rng(1).normal(size=(2, FRAMES, 4, CELLS, CELLS, 2)).astype(np.float16)
    known = batch | {"moves": 4 * far, "moves_known": np.array([1, 0], np.float32)}
    plain, _ = jax.jit(make_loss(config(), causal, 1.0))(mute, known, KEY)
    value, metrics = jax.jit(make_loss(config(moves=3.0), causal, 1.0))(mute, known, KEY)
    size = np.abs(2 * far[0].astype(np.float32))  # of two pixels
    want = np.mean(np.where(size <= 1, 0.5 * size**2, size - 0.5))
    np.testing.assert_allclose(mean(metrics["moves"]), want, rtol=1e-3)
    np.testing.assert_allclose(value - plain, 3 * want, rtol=1e-3)


def test_kept_patches():
    weights = np.ones((2, 3, 16), np.float32)
    weights[0, 1, [2, 9]] = 4.0  # in one frame only: kept in all
    weights[1, :, 5] = 1.5
    weights = jnp.asarray(weights)
    seen = [set(), set()]
    for seed in range(20):
        keep = keep_patches(jax.random.key(seed), weights, 0.25)
        assert keep.shape == (2, 4)
        for row in np.asarray(keep):
            assert sorted(set(row)) == row.tolist() and row.min() >= 0 and row.max() < 16
        assert {2, 9} <= set(np.asarray(keep[0])) and 5 in np.asarray(keep[1])
        for b in range(2):
            seen[b] |= set(np.asarray(keep[b]).tolist())
    assert seen == [set(range(16))] * 2  # the rest by chance, every patch at times
    assert keep_patches(jax.random.key(0), weights, 1.0) is None


def test_too_many_important_patches_leave_the_heaviest():
    weights = jnp.asarray(np.array([1.2] * 12 + [1.6] * 4, np.float32))[None, None]
    kept = np.concatenate([np.asarray(keep_patches(jax.random.key(s), weights, 0.25)[0]) for s in range(50)])
    assert (kept >= 12).mean() > 0.5  # a quarter of the patches, more than half of the places


def test_take():
    x = jnp.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    keep = jnp.array([[0, 3], [1, 2]])
    taken = take(x, keep)
    np.testing.assert_array_equal(taken[0], x[0][:, [0, 3]])
    np.testing.assert_array_equal(taken[1], x[1][:, [1, 2]])
    np.testing.assert_array_equal(take(x[..., 0], keep), taken[..., 0])
    assert take(x, None) is x


def test_patch_weights():
    cells = jnp.ones((1, 1, 4, 4)).at[0, 0, 1, 2].set(3.0).at[0, 0, 3, 3].set(2.0)
    assert patch_weights(config(), cells).tolist() == [[[1, 3, 1, 2]]]
    patches = dit.patchify(config().dit, cells[..., None].repeat(8, -1))  # the same order as the latent's patches
    np.testing.assert_array_equal(patches.max(-1), patch_weights(config(), cells))


def test_errors_by_level():
    error = jnp.array([[1.0, 2.0], [3.0, 6.0]])
    level = jnp.array([[1.0, 0.5], [1.0, 0.3]])
    found = by_level(error, level, (0.0, 0.4, 1.0))
    assert {name: pair.tolist() for name, pair in found.items()} == {
        "x0_pure": [4, 2], "x0_noisy": [8, 2], "x0/level_0_0.4": [6, 1], "x0/level_0.4_1": [2, 1],
    }  # fmt: skip
    assert by_level(error, jnp.zeros((2, 2)))["x0_pure"].tolist() == [0, 0]
    assert by_kind(error, {}) == {}
    assert by_kind(error, {"kind": jnp.array([1, 1])})["x0/listen"].tolist() == [12, 4]


def test_step_flops():
    """Three passes' worth, twice for the causal student; all patches now and then, a share of them otherwise."""
    whole = step_flops(config(token_keep=1.0), False)
    assert whole > 0 and step_flops(config(token_keep=1.0), True) == 2 * whole
    assert step_flops(config(token_keep=1.0, batch=8), False) == pytest.approx(2 * whole)
    half = step_flops(config(token_keep=0.5, whole_every=0), False)
    assert 0.4 * whole < half < 0.6 * whole
    some = step_flops(config(token_keep=0.5, whole_every=4), False)
    assert some == pytest.approx(0.25 * whole + 0.75 * half)


def test_training_hears_as_far_back_as_streaming():
    cfg = dataclasses.replace(config(), stream=StreamConfig())
    assert history_tokens(cfg.audio) == 44  # 36 that are read, the first of which hears 6 before it
    assert generator.history_samples(cfg) == 44 * 1000 + 512
    odd = dataclasses.replace(cfg, audio=dataclasses.replace(cfg.audio, listen_window=0.3, hearing=0))
    assert history_tokens(odd.audio) == 8  # 7.2 tokens, in whole latent frames
    assert generator.history_samples(odd) == 8 * 1000 + 512


@pytest.mark.slow
@pytest.mark.parametrize("stage, before", [("base.listen", "base.speak"), ("online.causal", "base.identity")])
def test_a_stage_asks_for_the_one_before(tmp_path, stage, before):
    with pytest.raises(
        InputError, match=rf"^--stage {stage}: expected the finished weights of {before} in .*, found none$"
    ):
        stages.run(stage, config(), tmp_path)
    with pytest.raises(InputError, match="expected the finished weights of elsewhere"):
        stages.run(stage, config(init="elsewhere"), tmp_path)
    with pytest.raises(InputError, match="^--train.init @latest: expected a step of .*elsewhere/checkpoints .*none$"):
        stages.run(stage, config(init="elsewhere@latest"), tmp_path)
