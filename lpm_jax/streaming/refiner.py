"""The Refiner: a second transformer that takes the Backbone's chunk back to noise level T2 and down again, once.

    coarse latent --re-noise to T2--> Refiner, reading its own (clean) history --> latent

Its track is apart from the Backbone's, so that both can work at once on different chunks (SPEC section 4). Its
parameters are a transformer's, ``params["refiner"]``; sound and text come encoded from the Backbone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lpm_jax.config import Config
from lpm_jax.models import dit
from lpm_jax.streaming import denoise


class RefinerState(NamedTuple):
    """What the Refiner carries from chunk to chunk (:class:`lpm_jax.streaming.denoise.Track`)."""

    cache: dit.Cache
    reference_times: Float[Array, "b refs"]
    reference_valid: Bool[Array, "b refs"]
    anchor: Float[Array, "b 1 tokens pc"]
    near: Float[Array, "b 1 tokens pc"]
    chunk: Int[Array, ""]
    key: Array


def refine(
    config: Config,
    params: dict,
    state: RefinerState,
    told: dit.Conditions,
    coarse: Float[Array, "b chunk tokens pc"],
    remat: str = "none",
) -> tuple[RefinerState, Float[Array, "b chunk tokens pc"]]:
    """The next chunk, refined. ``params`` holds ``"refiner"`` and ``"prior"``; ``told`` is what the Backbone was."""
    key, draw = jax.random.split(state.key)
    way, variance = denoise.refiner_way(config), params["prior"]["variance"]
    network = params["refiner"]
    made, cache = denoise.evaluate(config, network, variance, state, told, way, draw, coarse, remat)
    fine = made.estimates[-1]
    return state._replace(cache=cache, near=fine[:, -1:], chunk=state.chunk + 1, key=key), fine


def begin(
    config: Config,
    params: dict,
    patches: Float[Array, "b refs tokens pc"],
    times: Float[Array, "b refs"],
    valid: Bool[Array, "b refs"],
    silence: dit.Conditions,
    key: Array,
) -> RefinerState:
    """The first state, from the references' patches."""
    cache = denoise.pin(config, params["refiner"], denoise.refiner_way(config), patches, times, valid, silence)
    return RefinerState(cache, times, valid, patches[:, 1:2], patches[:, :1], jnp.zeros((), jnp.int32), key)
