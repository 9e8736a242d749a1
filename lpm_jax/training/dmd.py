r"""Distribution matching distillation: what moves a generator's samples towards the teacher's distribution.

A sample ``x`` of the generator is taken to noise level ``t``, ``x_t = (1 - t) x + t \epsilon``. Two networks estimate
the clean sample from it: the teacher (*real*), and a critic that learns, by flow matching on the generator's own
samples, what the generator makes (*fake*). Since an estimate is a score in other words,

    x_0(x_t) = (x_t + t^2 \nabla log p_t(x_t)) / (1 - t),

their difference is the gradient of ``KL(fake_t || real_t)`` with respect to ``x`` up to a positive factor of ``t``:

    \nabla_x  ~  g = (x_0^{fake}(x_t) - x_0^{real}(x_t)) / mean |x - x_0^{real}(x_t)|,

divided, sample by sample, by how far the teacher is from the sample, so that all levels count alike. The loss whose
gradient that is, ``|x - stopped(x - g)|^2 / 2``, passes it on to the generator.

Yin et al., "One-step Diffusion with Distribution Matching Distillation" (arXiv 2311.18828) and DMD2 (arXiv 2405.14867),
as Self-Forcing states it (arXiv 2506.08009). Everything is float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lpm_jax.flow import shift_level


def sample_level(key: Array, batch: int, low: float, high: float, shift: float) -> Float[Array, " b"]:
    """One noise level a sample: uniform, shifted, and not beyond ``low`` and ``high``."""
    return jnp.clip(shift_level(jax.random.uniform(key, (batch,)), shift), low, high)


def direction(
    sample: Float[Array, "b *rest"], real: Float[Array, "b *rest"], fake: Float[Array, "b *rest"]
) -> Float[Array, "b *rest"]:
    """``g`` above; zero where it is not finite."""
    sample, real, fake = (x.astype(jnp.float32) for x in (sample, real, fake))
    axes = tuple(range(1, sample.ndim))
    distance = jnp.mean(jnp.abs(sample - real), axis=axes, keepdims=True)
    g = (fake - real) / distance
    return jnp.where(jnp.isfinite(g), g, 0.0)


def matching_loss(
    sample: Float[Array, "b *rest"],
    real: Float[Array, "b *rest"],
    fake: Float[Array, "b *rest"],
    weight: Float[Array, "*any"] | float = 1.0,
) -> Float[Array, ""]:
    """The loss whose gradient with respect to ``sample`` is ``weight * direction / size``."""
    sample = sample.astype(jnp.float32)
    target = jax.lax.stop_gradient(sample - direction(sample, real, fake))
    return 0.5 * jnp.mean(weight * jnp.square(sample - target))
