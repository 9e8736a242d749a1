"""The solver against flows whose solution is known, the guidance against its formula, and Wan's levels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.base import sampler
from lpm_jax.config import SampleConfig
from lpm_jax.models import conditions
from lpm_jax.models.conditions import history_tokens
from lpm_jax.models.denoiser import Denoiser
from tests import tiny

FRAMES = 3


def test_levels_are_those_of_wan():
    """``FlowMatchEulerDiscreteScheduler(shift=5)`` of diffusers 0.42 over ``linspace(1, 0, 5)[:-1]``, then 0."""
    want = [1.0, 0.9375, 0.8333333, 0.625, 0.0]
    np.testing.assert_allclose(sampler.levels(SampleConfig(steps=4, shift=5.0)), want, rtol=1e-6)
    np.testing.assert_allclose(sampler.levels(SampleConfig(steps=2, shift=1.0)), [1, 0.5, 0])


def gaussian(mean: float, variance: float):
    """The exact estimate where ``x_0`` is Gaussian."""

    def denoise(x, level):
        t = level[..., None, None]
        gain = (1 - t) * variance / ((1 - t) ** 2 * variance + t**2)
        return mean + gain * (x - (1 - t) * mean)

    return denoise


def test_the_solver_carries_noise_to_data():
    """The flow of a Gaussian is known: ``x_0 = mean + sd * noise``; Euler comes nearer with more steps."""
    noise = jax.random.normal(jax.random.key(0), (2, FRAMES, 4, 5))
    want = 0.7 + 0.5 * noise
    errors = []
    for steps in (5, 20, 80):
        out = sampler.integrate(gaussian(0.7, 0.25), noise, np.linspace(1, 0, steps + 1), jnp.ones((2, FRAMES)))
        errors.append(float(jnp.abs(out - want).max()))
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 0.05


def test_frames_below_the_top_wait_for_the_others():
    asked = []

    def denoise(x, level):
        jax.debug.callback(lambda t: asked.append(np.asarray(t)[0].tolist()), level, ordered=True)
        return jnp.zeros_like(x)

    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 2))
    start = jnp.array([[0.0, 0.5, 1.0]])
    out = sampler.integrate(denoise, x, np.array([1.0, 0.75, 0.4, 0.0], np.float32), start)
    jax.effects_barrier()
    np.testing.assert_allclose(asked, [[0, 0.5, 1], [0, 0.5, 0.75], [0, 0.4, 0.4]])
    np.testing.assert_allclose(out[:, 0], x[:, 0], rtol=1e-6)  # level 0: it is what it was
    np.testing.assert_allclose(out[:, 1:], 0, atol=1e-7)


def batch(b: int = 2, refs: int = 2) -> dict:
    rng = np.random.default_rng(0)
    cfg = tiny.CONFIG
    tokens = history_tokens(cfg.audio) + 4 * FRAMES
    side = cfg.size // 8
    values = {
        "text": np.array([[1, 5, 6, 0, 0, 0, 0, 0]] * b, np.int32),
        "negative": np.array([[1, 9, 0, 0, 0, 0, 0, 0]] * b, np.int32),
        "references": rng.normal(size=(b, refs, side, side, cfg.dit.channels)).astype(np.float32),
        "reference_kinds": np.array([[0, 1]] * b, np.int32),
        "reference_valid": np.ones((b, refs), bool),
        **{name: rng.normal(size=(b, tokens, tiny.FEATURES)).astype(np.float32) for name in ("speak", "listen")},
    }
    return jax.tree.map(jnp.asarray, values)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "audio", "terms"),
    [
        (1.0, 1.0, ["all"]),
        (3.0, 3.0, ["none", "all"]),
        (3.0, 1.0, ["audio", "all"]),
        (5.0, 4.0, ["none", "audio", "all"]),
    ],
)
def test_guidance_is_its_formula(text, audio, terms):
    config = dataclasses.replace(tiny.CONFIG, sample=SampleConfig(text_scale=text, audio_scale=audio))
    assert list(sampler.guidance(config.sample)) == terms
    params, inputs = tiny.params(), batch()
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, FRAMES, 4, 32)), jnp.float32)
    level = jnp.full((2, FRAMES), 0.6)

    def alone(ids, heard):
        drop = {"audio": jnp.full((2,), heard)}
        return Denoiser(config, params, inputs | {"text": inputs[ids]}, FRAMES, drop=drop)(x, level)

    none, sound, both = alone("negative", 0.0), alone("negative", 1.0), alone("text", 1.0)
    want = none + audio * (sound - none) + text * (both - sound)
    got = sampler.Guided(config, params, inputs, FRAMES)(x, level)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert tiny.differs(sound, none) and tiny.differs(both, sound)  # all three are heard


@pytest.mark.slow
def test_text_may_come_encoded():
    """As large models train on: the same estimate as from ids. Words beyond a text's end count in neither."""
    config = dataclasses.replace(tiny.CONFIG, sample=SampleConfig(text_scale=3.0, audio_scale=2.0))
    params, inputs = tiny.params(), batch()
    full = {"text": jnp.arange(1, 9), "negative": jnp.array([1, 9, 7, 2, 2, 5, 4, 3])}
    ids = inputs | {name: jnp.broadcast_to(x, (2, 8)) for name, x in full.items()}
    encoded = ids | {name: conditions.encode_text(config, params, ids[name])[0] for name in full}
    x = jax.random.normal(jax.random.key(0), (2, FRAMES, 4, 32))
    want, got = (
        sampler.Guided(config, params, given, FRAMES)(x, jnp.full((2, FRAMES), 0.6)) for given in (ids, encoded)
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_sample_keeps_a_clean_tail():
    """At ``tail_level`` 0 the shared frames come out as they went in; without a segment before they are not read."""
    config = dataclasses.replace(
        tiny.CONFIG, sample=SampleConfig(steps=2, text_scale=1.0, audio_scale=1.0, tail_level=0.0)
    )
    side = config.size // 8
    tail = np.random.default_rng(2).normal(size=(2, 2, side, side, 8)).astype(np.float32)
    run = lambda tail, go: sampler.sample(  # noqa: E731
        config, tiny.params(), batch(), tail, jnp.asarray(go), FRAMES, jax.random.key(0)
    )
    out = run(tail, True)
    assert out.shape == (2, FRAMES, side, side, 8) and out.dtype == jnp.float32
    np.testing.assert_allclose(out[:, :2], tail, atol=1e-5)
    fresh = run(tail, False)
    assert tiny.differs(fresh[:, :2], tail, 0.1)
    np.testing.assert_array_equal(fresh, run(tail * 0, False))
    assert tiny.differs(out[:, 2], fresh[:, 2])  # what follows continues the tail
