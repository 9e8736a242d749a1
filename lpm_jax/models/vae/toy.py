"""The toy causal video VAE: four frames and 8 x 8 pixels to one vector of ``channels``.

A clip of ``4 k + 1`` frames becomes ``k + 1`` latent frames. Frames are packed in groups of four; the first frame is
repeated to fill a group of its own, so one network serves pictures (references) and video, and its decoded group's
last frame is the picture. Inside, space-to-depth moves pixels and time into channels, residual blocks work at a
quarter and an eighth of the resolution, and a few convolutions look one group back in time.

Every 3-D convolution is written as a sum of 2-D ones over shifted groups,

    y_t = sum_k  W_k * x_{t-k},

which XLA runs four times faster on CPU than its own 3-D kernel. What a convolution needs of the past is its *state*:
:func:`encode` and :func:`decode` take and return it, so a video processed chunk by chunk equals the full pass.

The posterior has a fixed standard deviation (``VAEConfig.noise``), hence a KL term that is the squared mean; there is
no PCA skip and the reconstruction loss is plain MSE, as our own measurements preferred.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lpm_jax.config import VAEConfig

GROUP = 4  # video frames per latent frame
STRIDE = 8  # pixels per latent cell, each side
State = dict[str, Array]


def space_to_depth(x: Float[Array, "*b h w c"], n: int) -> Float[Array, "*b hn wn cnn"]:
    *b, h, w, c = x.shape
    x = x.reshape(*b, h // n, n, w // n, n, c)
    return jnp.moveaxis(x, -4, -3).reshape(*b, h // n, w // n, n * n * c)


def depth_to_space(x: Float[Array, "*b h w c"], n: int) -> Float[Array, "*b hn wn cnn"]:
    *b, h, w, c = x.shape
    x = x.reshape(*b, h, w, n, n, c // (n * n))
    return jnp.moveaxis(x, -3, -4).reshape(*b, h * n, w * n, c // (n * n))


class CausalConv(nn.Module):
    """3 x 3 in space, ``taps`` groups in time (this one and those before), as a sum of 2-D convolutions."""

    features: int
    taps: int = 1
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], state: State) -> Float[Array, "b t h w f"]:
        b, t, h, w, c = x.shape
        init = nn.initializers.variance_scaling(self.scale, "fan_in", "truncated_normal", in_axis=(0, 1, 2, 3))
        kernel = self.param("kernel", init, (self.taps, 3, 3, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel = kernel.astype(x.dtype)
        name = "/".join(self.path)
        if self.taps > 1:
            past = state.get(name)
            past = jnp.zeros((b, self.taps - 1, h, w, c), x.dtype) if past is None else past
            x = jnp.concatenate([past.astype(x.dtype), x], axis=1)
            state[name] = x[:, -(self.taps - 1) :]
        y = 0.0
        for k in range(self.taps):  # kernel[k] meets the group k steps back
            frames = x[:, self.taps - 1 - k : self.taps - 1 - k + t].reshape(b * t, h, w, c)
            y = y + jax.lax.conv_general_dilated(
                frames, kernel[k], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return (y + bias.astype(x.dtype)).reshape(b, t, h, w, self.features)


def channel_norm(x: Float[Array, "*b c"], gain: Float[Array, " c"]) -> Float[Array, "*b c"]:
    """Root-mean-square norm over channels, per position: no statistics over space or time, hence streamable."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * gain


class Residual(nn.Module):
    """``x + conv(silu(conv(silu(norm(x)))))``; the first convolution may look back in time."""

    features: int
    taps: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], state: State) -> Float[Array, "b t h w c"]:
        gain = self.param("gain", nn.initializers.ones, (x.shape[-1],))
        y = nn.silu(channel_norm(x, gain))
        y = nn.silu(CausalConv(self.features, self.taps, name="conv1")(y, state))
        return x + CausalConv(self.features, scale=0.1, name="conv2")(y, state)


class Encoder(nn.Module):
    config: VAEConfig

    @nn.compact
    def __call__(self, groups: Float[Array, "b t 4 h w 3"], state: State) -> Float[Array, "b t h8 w8 c"]:
        cfg = self.config
        b, t, g, h, w, c = groups.shape
        x = jnp.moveaxis(groups, 2, 4).reshape(b, t, h, w, g * c)
        x = space_to_depth(x, 4)
        x = CausalConv(cfg.width_fine, name="conv_in")(x, state)
        for i in range(cfg.encoder_blocks):
            x = Residual(cfg.width_fine, name=f"fine{i}")(x, state)
        x = CausalConv(cfg.width_coarse, name="down")(space_to_depth(x, 2), state)
        for i in range(cfg.encoder_blocks):
            x = Residual(cfg.width_coarse, taps=2 if i == 0 else 1, name=f"coarse{i}")(x, state)
        gain = self.param("gain", nn.initializers.ones, (cfg.width_coarse,))
        return CausalConv(cfg.channels, name="conv_out")(nn.silu(channel_norm(x, gain)), state)


class Decoder(nn.Module):
    config: VAEConfig

    @nn.compact
    def __call__(self, z: Float[Array, "b t h8 w8 c"], state: State) -> Float[Array, "b t 4 h w 3"]:
        cfg = self.config
        x = CausalConv(cfg.width_coarse, taps=2, name="conv_in")(z, state)
        for i in range(cfg.decoder_blocks):
            x = Residual(cfg.width_coarse, taps=2 if i == 0 else 1, name=f"coarse{i}")(x, state)
        x = depth_to_space(CausalConv(4 * cfg.width_fine, name="up")(x, state), 2)
        for i in range(cfg.decoder_blocks):
            x = Residual(cfg.width_fine, name=f"fine{i}")(x, state)
        gain = self.param("gain", nn.initializers.ones, (cfg.width_fine,))
        x = CausalConv(16 * GROUP * 3, name="conv_out")(nn.silu(channel_norm(x, gain)), state)
        x = depth_to_space(x, 4)
        b, t, h, w, _ = x.shape
        return jnp.moveaxis(x.reshape(b, t, h, w, GROUP, 3), 4, 2)


def init(config: VAEConfig, key: Array) -> dict:
    """Fresh parameters: ``{"encoder", "decoder", "mean", "std"}``; the last two normalise the latent, see below."""
    k1, k2 = jax.random.split(key)
    frames = jnp.zeros((1, 1, GROUP, 16, 16, 3))
    latent = jnp.zeros((1, 1, 2, 2, config.channels))
    return {
        "encoder": Encoder(config).init(k1, frames, {})["params"],
        "decoder": Decoder(config).init(k2, latent, {})["params"],
        # Statistics of the posterior mean over training clips, measured when the stage ends; ``encode`` returns
        # latents of zero mean and unit variance per channel, as the diffusion model wants them.
        "mean": jnp.zeros((config.channels,)),
        "std": jnp.ones((config.channels,)),
    }


def group_frames(video: Float[Array, "b frames h w 3"], first: bool = True) -> Float[Array, "b groups 4 h w 3"]:
    """Frames in groups of four; with ``first`` the leading frame is repeated to fill its own group.

    Raises:
      ValueError: the number of frames is not ``4 k + 1`` (``first``) or ``4 k``.
    """
    b, n, *rest = video.shape
    if n % GROUP != (1 if first else 0):
        raise ValueError(f"expected {'4 k + 1' if first else '4 k'} frames, found {n}")
    if first:
        lead = jnp.repeat(video[:, :1], GROUP, axis=1)
        video = jnp.concatenate([lead, video[:, 1:]], axis=1)
    return video.reshape(b, -1, GROUP, *rest)


def encode(
    config: VAEConfig, params: dict, video: Float[Array, "b frames h w 3"], state: State | None = None
) -> tuple[Float[Array, "b latents h8 w8 c"], State]:
    """Normalised posterior means. Without ``state`` the video starts here (``4 k + 1`` frames), else it goes on.

    ``video`` is in -1..1. Returns the latents and the state that the next ``4 k`` frames continue from.
    """
    groups = group_frames(video, first=state is None)
    state = {} if state is None else dict(state)
    z = Encoder(config).apply({"params": params["encoder"]}, groups, state)
    return (z - params["mean"]) / params["std"], state


def decode(
    config: VAEConfig, params: dict, latents: Float[Array, "b latents h8 w8 c"], state: State | None = None
) -> tuple[Float[Array, "b frames h w 3"], State]:
    """Frames in about -1..1 (not clipped): ``4 k + 1`` of them at the start of a video, else ``4 k``."""
    first = state is None
    state = {} if first else dict(state)
    z = latents * params["std"] + params["mean"]
    groups = Decoder(config).apply({"params": params["decoder"]}, z, state)
    b, t, g, *rest = groups.shape
    frames = groups.reshape(b, t * g, *rest)
    return (frames[:, GROUP - 1 :] if first else frames), state


def to_unit(frames: ArrayLike) -> Float[Array, "..."]:
    """uint8 0..255 to float -1..1."""
    return jnp.asarray(frames, jnp.float32) / 127.5 - 1.0


def to_pixels(frames: Float[Array, "..."]) -> Array:
    """Float -1..1 to uint8."""
    return jnp.clip(jnp.round((frames + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
