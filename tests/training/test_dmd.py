r"""Distribution matching against what is known exactly: Gaussians and a mixture of them in the plane.

Of a mixture ``sum_k w_k N(m_k, s_k^2)`` the noisy marginals are mixtures again, so the best estimate of the clean
sample and the score are closed formulas; those of a Gaussian generator are too.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lpm_jax.flow import add_noise
from lpm_jax.training import dmd

MEANS = jnp.array([[-1.2, 0.4], [1.0, 1.0], [0.6, -1.3]])
SPREADS = jnp.array([0.35, 0.3, 0.4])
WEIGHTS = jnp.array([0.3, 0.45, 0.25])


def log_density(x, t, means=MEANS, spreads=SPREADS, weights=WEIGHTS):
    """Of one noisy point: component ``k`` has mean ``(1 - t) m_k`` and variance ``(1 - t)^2 s_k^2 + t^2``."""
    variance = jnp.square((1 - t) * spreads) + jnp.square(t)
    square = jnp.sum(jnp.square(x - (1 - t) * means), axis=-1)
    return jax.nn.logsumexp(jnp.log(weights) - square / (2 * variance) - jnp.log(2 * jnp.pi * variance))


def estimate(x, t, *mixture):
    """The posterior mean of the clean sample, component by component: written without any score."""
    means, spreads, weights = mixture or (MEANS, SPREADS, WEIGHTS)
    variance = jnp.square((1 - t) * spreads) + jnp.square(t)
    square = jnp.sum(jnp.square(x - (1 - t) * means), axis=-1)
    share = jax.nn.softmax(jnp.log(weights) - square / (2 * variance) - jnp.log(variance))
    gain = ((1 - t) * jnp.square(spreads) / variance)[:, None]
    return jnp.sum(share[:, None] * (means + gain * (x - (1 - t) * means)), axis=0)


def draw(key, n):
    k1, k2 = jax.random.split(key)
    which = jax.random.choice(k1, 3, (n,), p=WEIGHTS)
    return MEANS[which] + SPREADS[which, None] * jax.random.normal(k2, (n, 2))


def test_estimates_are_scores():
    """``x_0(x_t) = (x_t + t^2 score) / (1 - t)``: what dmd.py's docstring rests on."""
    x = jax.random.normal(jax.random.key(0), (50, 2))
    for t in (0.1, 0.5, 0.9):
        score = jax.vmap(jax.grad(functools.partial(log_density, t=t)))(x)
        want = (x + t**2 * score) / (1 - t)
        np.testing.assert_allclose(jax.vmap(lambda y, t=t: estimate(y, t))(x), want, rtol=2e-4, atol=1e-5)


def test_direction_is_the_gradient_of_the_divergence():
    """For a generator ``x = m + s z`` the update of ``m`` and ``s`` is the analytic gradient of
    ``KL(fake_t || real_t)``, taken through densities, not through estimates."""
    mean, spread, t = jnp.array([0.3, -0.2]), 0.7, 0.6
    z = jax.random.normal(jax.random.key(1), (20_000, 2))
    noise = jax.random.normal(jax.random.key(2), z.shape)

    def divergence(parameters):
        """The same samples: the integrand ``log fake_t - log real_t``, its parameters held inside the densities, whose
        own gradients vanish on average (the mean of a score is zero)."""
        m, s = parameters
        x = add_noise(m + s * z, noise, jnp.full(len(z), t))
        fixed = (mean[None], jnp.array([spread]), jnp.ones(1))
        fake = jax.vmap(lambda y: log_density(y, t, *fixed))(x)
        return jnp.mean(fake - jax.vmap(lambda y: log_density(y, t))(x))

    def matching(parameters):
        m, s = parameters
        x = m + s * z
        noisy = jax.lax.stop_gradient(add_noise(x, noise, jnp.full(len(z), t)))
        fake = jax.vmap(lambda y: estimate(y, t, mean[None], jnp.array([spread]), jnp.ones(1)))(noisy)
        real = jax.vmap(lambda y: estimate(y, t))(noisy)
        return jnp.mean(jnp.sum(x * jax.lax.stop_gradient(fake - real), axis=-1))  # without the normaliser

    want = jax.grad(divergence)((mean, spread))
    got = jax.grad(matching)((mean, spread))
    factor = (1 - t) ** 2 / t**2  # between estimates and scores, and of x_t to x
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(factor * a, b, rtol=1e-3, atol=1e-5)


def test_the_loss_passes_the_direction_on():
    x, real, fake = (jax.random.normal(jax.random.key(i), (3, 4, 5)) for i in range(3))
    g = dmd.direction(x, real, fake)
    distance = np.mean(np.abs(x - real), axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(g, (fake - real) / distance, rtol=1e-6)
    weight = jnp.arange(1.0, 6.0)
    grad = jax.grad(lambda x: dmd.matching_loss(x, real, fake, weight))(x)
    np.testing.assert_allclose(grad, weight * g / x.size, rtol=1e-4, atol=1e-8)
    # A sample that is its own estimate divides by zero: it is left alone, the others are not.
    stuck = dmd.direction(x.at[0].set(real[0]), real, fake)
    assert not np.asarray(stuck[0]).any()
    np.testing.assert_array_equal(stuck[1:], g[1:])


def test_levels_are_spread_between_their_bounds():
    level = np.asarray(dmd.sample_level(jax.random.key(0), 4000, 0.02, 0.98, 1.0))
    assert level.min() == np.float32(0.02) and level.max() == np.float32(0.98)
    assert np.mean(level) == pytest.approx(0.5, abs=0.02)
    shifted = np.asarray(dmd.sample_level(jax.random.key(0), 4000, 0.02, 0.98, 5.0))
    inside = (level > 0.02) & (shifted < 0.98)
    np.testing.assert_allclose(shifted[inside], (5 * level / (1 + 4 * level))[inside], rtol=1e-5)


class Net(nn.Module):
    """A point, and features of the noise level, to a point."""

    width: int = 96

    @nn.compact
    def __call__(self, x, t):
        waves = jnp.sin(t[:, None] * jnp.arange(1.0, 9.0) * jnp.pi)
        h = jnp.concatenate([x, waves, t[:, None]], axis=-1)
        for _ in range(3):
            h = nn.silu(nn.Dense(self.width)(h))
        return nn.Dense(2)(h)


def sliced_wasserstein(a, b, directions=64):
    """The mean distance of sorted projections (Rabin et al. 2011)."""
    angle = np.linspace(0, np.pi, directions, endpoint=False)
    lines = np.stack([np.cos(angle), np.sin(angle)])
    return float(np.mean(np.abs(np.sort(np.asarray(a) @ lines, axis=0) - np.sort(np.asarray(b) @ lines, axis=0))))


@pytest.mark.slow
def test_a_distilled_generator_makes_the_mixture():
    """One evaluation, an exact teacher, and a critic that begins as the teacher and learns what differs, as a stage's
    critic does: its samples are hardly farther from the mixture's than these are from each other. The goal is
    5 % more; 9 were reached (docs/distillation.md)."""
    net, batch, sets = Net(), 1024, 32
    keys = jax.random.split(jax.random.key(0), 2)
    start = [net.init(k, jnp.zeros((1, 2)), jnp.zeros(1))["params"] for k in keys]
    steps, every = 24_000, 4
    rates = ((4e-4, steps // every), (1e-3, steps))  # each falls over its own network's updates
    rules = [optax.adam(optax.cosine_decay_schedule(*rate), b1=0.0, b2=0.99) for rate in rates]

    def make(params, key):
        z = jax.random.normal(key, (batch, 2))
        return z + net.apply({"params": params}, z, jnp.ones(batch))

    def supposed(critic, noisy, level):
        return jax.vmap(estimate)(noisy, level) - level[:, None] * net.apply({"params": critic}, noisy, level)

    def generator_loss(params, critic, key):
        k1, k2, k3 = jax.random.split(key, 3)
        # As a sample of video has many values, one here is a set of points: a point alone may be its own estimate.
        x, level = make(params, k1), jnp.repeat(dmd.sample_level(k2, sets, 0.02, 0.98, 1.0), batch // sets)
        noisy = jax.lax.stop_gradient(add_noise(x, jax.random.normal(k3, x.shape), level))
        real, fake = jax.vmap(estimate)(noisy, level), supposed(critic, noisy, level)
        real, fake = jax.lax.stop_gradient((real, fake))
        return dmd.matching_loss(*(y.reshape(sets, -1, 2) for y in (x, real, fake)))

    def critic_loss(critic, params, key):
        k1, k2, k3 = jax.random.split(key, 3)
        x = jax.lax.stop_gradient(make(params, k1))
        level, noise = jax.random.uniform(k2, (batch,), minval=0.01), jax.random.normal(k3, x.shape)
        apart = (supposed(critic, add_noise(x, noise, level), level) - x) / level[:, None]
        return jnp.mean(jnp.square(apart))

    def update(loss, params, other, state, rule, key):
        grad = jax.grad(loss)(params, other, key)
        change, state = rule.update(grad, state)
        return optax.apply_updates(params, change), state

    @jax.jit
    def train(carry):
        def one(carry, i):
            params, critic, states, average = carry
            k1, k2 = jax.random.split(jax.random.fold_in(jax.random.key(7), i))

            def learn(now):
                params, state, average = now
                params, state = update(generator_loss, params, critic, state, rules[0], k1)
                average = jax.tree.map(lambda a, p: 0.995 * a + 0.005 * p, average, params)
                return params, state, average

            params, state, average = jax.lax.cond(i % every == 0, learn, lambda x: x, (params, states[0], average))
            critic, other = update(critic_loss, critic, params, states[1], rules[1], k2)
            return (params, critic, (state, other), average), None

        return jax.lax.scan(one, carry, jnp.arange(steps))[0]

    states = tuple(rule.init(p) for rule, p in zip(rules, start, strict=True))
    _, _, _, average = train((*start, states, start[0]))
    n = 2000
    floor, ours, first = [], [], []
    for i in range(100):
        k = jax.random.split(jax.random.key(100 + i), 3)
        z = jax.random.normal(k[2], (n, 2))
        made, fresh = (z + net.apply({"params": p}, z, jnp.ones(n)) for p in (average, start[0]))
        floor.append(sliced_wasserstein(draw(k[0], n), draw(k[1], n)))
        ours.append(sliced_wasserstein(made, draw(k[0], n)))
        first.append(sliced_wasserstein(fresh, draw(k[0], n)))
    floor, ours, first = np.mean(floor), np.mean(ours), np.mean(first)
    print(f"sliced Wasserstein: floor {floor:.4f}, distilled {ours:.4f}, untrained {first:.4f}")
    assert first > 5 * floor  # it can fail
    assert ours < 1.15 * floor
