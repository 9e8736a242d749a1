"""Video VAEs behind one set of functions: the config's class says which, ``toy`` or ``wan``.

Both are causal in time: a first frame alone, then groups of ``config.group`` frames, with a state that the next chunk
continues from. Latents come normalised.
"""

from __future__ import annotations

from types import ModuleType

from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lpm_jax.config import VAEConfig, WanVAEConfig
from lpm_jax.models.vae import toy, wan
from lpm_jax.models.vae.toy import to_pixels, to_unit

__all__ = ["abstract", "decode", "encode", "features", "plain", "prepared", "to_pixels", "to_unit"]

Config = VAEConfig | WanVAEConfig
State = dict[str, Array]


def _of(config: Config) -> ModuleType:
    return wan if isinstance(config, WanVAEConfig) else toy


def abstract(config: Config) -> dict:
    """Shapes and dtypes of the parameters."""
    return _of(config).abstract(config)


def encode(
    config: Config, params: dict, video: Float[ArrayLike, "b frames h w 3"], state: State | None = None
) -> tuple[Float[Array, "b latents hz wz c"], State]:
    """Latents of frames in -1..1, float32. Without ``state`` the video starts here (``4 k + 1`` frames)."""
    return _of(config).encode(config, params, video, state)


def decode(
    config: Config, params: dict, latents: Float[Array, "b latents hz wz c"], state: State | None = None
) -> tuple[Float[Array, "b frames h w 3"], State]:
    """Frames in about -1..1: ``4 k + 1`` at the start of a video, else ``4 k``."""
    return _of(config).decode(config, params, latents, state)


def prepared(config: Config, params: dict) -> dict:
    """Parameters for decoding on this process's processor, where another form of them is faster."""
    return toy.prepared(params) if isinstance(config, VAEConfig) else params


def plain(params: dict) -> dict:
    """Parameters as they were before :func:`prepared`."""
    return toy.plain(params)


def features(
    config: Config, params: dict, latents: Float[Array, "b latents hz wz c"]
) -> list[Float[Array, "b latents hz wz f"]]:
    """What layers of the decoder make of latents: features to compare them by."""
    return _of(config).features(config, params, latents)
