"""An adversary for the stages that regress on clips: what is drawn must look like a clip, not like the mean of many.

Where sound and prompt do not decide a performance, regression draws the mean of what may follow, and a mean of turned
heads is a blur. A small network learns to tell latents of clips from those of rollouts, and the student is also moved
to where that network takes it for a clip: the adversarial term beside a distance that is known from pictures
(SRGAN, Ledig et al., arXiv 1609.04802; in latents, LADD, Sauer et al., arXiv 2403.12015; on a student's own streams,
Lin et al., "Autoregressive Adversarial Post-Training", arXiv 2506.09350).

The adversary learns in the student's own step from the chunks that the step made, with the hinge loss and Lin et al.'s
approximation of R1 (arXiv 2501.08316): its answer may not change with a little noise. How hard it pulls needs no
tuning to the loss beside it: in each patch it is ``distill.adversary`` times as long as the gradient of the other
losses, so that where nothing is uncertain nothing is pulled, and only as far as the adversary can tell the two apart:
one that knows nothing draws patterns. Both sides are seen with noise, so that what no eye would see decides nothing. It
is no part of the model.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lpm_jax.config import Config
from lpm_jax.models import dit
from lpm_jax.models.vae.toy import CausalConv, channel_norm

WIDTH = 64
LAYERS = 3
NOISE = 0.1  # standard deviation of what is added to what it sees; the latent's is one
STEADY, NUDGE = 30.0, 0.03  # weight of the penalty, and the noise's standard deviation that the answer may not follow


class Adversary(nn.Module):
    """Answers for each cell of each frame, above 0 for a clip's: convolutions over the frame, those beside it in time
    and the character's global reference."""

    @nn.compact
    def __call__(
        self, latents: Float[Array, "b frames h w c"], anchor: Float[Array, "b h w c"]
    ) -> Float[Array, "b frames h w"]:
        near = jnp.concatenate([latents[:, :1], latents, latents[:, -1:]], axis=1)
        change = jnp.diff(near, axis=1)  # to this frame, and from it on
        anchor = jnp.broadcast_to(anchor[:, None], latents.shape)
        x = jnp.concatenate([latents, change[:, :-1], change[:, 1:], latents - anchor], axis=-1)
        x = nn.leaky_relu(self.dense(x, WIDTH, "in"), 0.2)
        for i in range(LAYERS):
            gain = self.param(f"gain{i}", nn.initializers.ones, (WIDTH,)).astype(x.dtype)
            y = CausalConv(WIDTH, name=f"conv{i}")(channel_norm(x, gain), {})
            x = x + nn.leaky_relu(y, 0.2)
        return self.dense(x, 1, "out")[..., 0].astype(jnp.float32)

    def dense(self, x: Array, features: int, name: str) -> Array:
        return nn.Dense(features, name=name, dtype=x.dtype)(x)


def shapes(config: Config) -> dict:
    """Of the network's parameters."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def init(config: Config, key: Array) -> dict:
    """Fresh parameters."""
    cells = jnp.zeros((1, 2, *config.cells, config.dit.channels))
    return Adversary().init(key, cells, cells[:, 0])["params"]


def judge(
    params: dict, dtype: DTypeLike, latents: Float[Array, "b frames h w c"], anchor: Float[Array, "b h w c"]
) -> Float[Array, "b frames h w"]:
    """The network's answers, computed in ``dtype``."""
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    return Adversary().apply({"params": params}, latents.astype(dtype), anchor.astype(dtype))


def losses(
    config: Config,
    params: dict,
    made: Float[Array, "b frames tokens pc"],
    window: dict,
    others: Callable[[Array], Array],
    key: Array,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """What is added to a loss, of whose value ``others`` is the part that depends on ``made``: the pull, whose gradient
    reaches ``made`` alone, and the adversary's own loss, whose gradient reaches ``params`` alone. ``window`` has the
    clips' ``latents`` and ``references``."""
    k_fake, k_real, k_nudge = jax.random.split(key, 3)
    dtype, rows = jnp.dtype(config.train.dtype), config.cells
    truth, anchor = window["latents"].astype(jnp.float32), window["references"][:, 1].astype(jnp.float32)

    def answers(params: dict, latents: Array, key: Array) -> Array:
        return judge(params, dtype, latents + NOISE * jax.random.normal(key, latents.shape), anchor)

    def pleased(patches: Array) -> Array:
        still = jax.lax.stop_gradient(params)
        return -jnp.mean(answers(still, dit.unpatchify(config.dit, patches, *rows), k_fake))

    at = jax.lax.stop_gradient(made).astype(jnp.float32)
    fake, real = answers(params, dit.unpatchify(config.dit, at, *rows), k_fake), answers(params, truth, k_real)
    nudged = answers(params, truth + NUDGE * jax.random.normal(k_nudge, truth.shape), k_real)
    told = jnp.mean(nn.relu(1 + fake)) + jnp.mean(nn.relu(1 - real))
    steady = jnp.mean(jnp.square(nudged - real))
    knows = jnp.clip((jnp.mean(real) - jnp.mean(fake)) / 2, 0, 1)  # the hinge loss asks for a difference of two
    pulled = stretched(jax.grad(pleased)(at), jax.grad(others)(at), config.distill.adversary * knows)
    pull = jnp.sum(jax.lax.stop_gradient(pulled) * (made.astype(jnp.float32) - at))  # zero, with that gradient
    metrics = {"adversary/loss": told, "adversary/real": jnp.mean(real), "adversary/fake": jnp.mean(fake)}
    return pull + told + STEADY * steady, metrics | {"adversary/unsteady": steady}


def stretched(
    pull: Float[Array, "*rest pc"], beside: Float[Array, "*rest pc"], share: float | Float[Array, ""]
) -> Float[Array, "*rest pc"]:
    """``pull`` as long, patch by patch, as ``share`` of ``beside``."""
    length = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))  # noqa: E731
    return pull * share * length(beside) / jnp.maximum(length(pull), 1e-12)
