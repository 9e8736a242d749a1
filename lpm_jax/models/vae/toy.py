"""The toy causal video VAE: four frames and 8 x 8 pixels to one vector of ``channels``.

A clip of ``4 k + 1`` frames becomes ``k + 1`` latent frames. Frames are packed in groups of four; the first frame is
repeated to fill a group of its own, so one network serves pictures (references) and video, and its decoded group's
last frame is the picture. A *cell* is 8 x 8 pixels of a group, 768 numbers.

Encoder and decoder are a linear map of single cells plus a network of 3 x 3 residual blocks over cells, some of which
look one group back in time:

    z = scale (B^T cell) + net(cells)            cell' = B (z / scale) + net'(z's)

``B`` is the principal basis of training cells (:func:`with_basis`) and stays fixed, so the latent keeps what makes
principal components easy to diffuse: channels ordered from coarse to fine, with variances that fall accordingly
(``scale`` takes the fourth root of each component's variance out, a compromise between pixels and whitening; compare
Skorokhodov et al. 2025, "Improving the Diffusability of Autoencoders", arXiv 2502.14831).

Every 3-D convolution is written as a sum of 2-D ones over shifted groups,

    y_t = sum_k  W_k * x_{t-k},

which XLA runs four times faster on CPU than its own 3-D kernel. What a convolution needs of the past is its *state*:
:func:`encode` and :func:`decode` take and return it, so a video processed chunk by chunk equals the full pass.

The posterior has a fixed standard deviation (``VAEConfig.noise``), hence a KL term that is the squared mean; the
reconstruction loss is plain MSE.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lpm_jax.config import VAEConfig
from lpm_jax.nn.conv import conv3x3, winograd, winograd_kernel
from lpm_jax.nn.linear import Dense

GROUP = VAEConfig.group  # video frames per latent frame
STRIDE = VAEConfig.stride  # pixels per latent cell, each side
CELL = STRIDE * STRIDE * GROUP * 3  # numbers in a cell
State = dict[str, Array]
FAST = "winograd"  # beside a convolution's kernel: the same, prepared


SMALL = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")


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
        fast = self.get_variable("params", FAST)  # see prepared
        y = 0.0
        for k in range(self.taps):  # kernel[k] meets the group k steps back
            frames = x[:, self.taps - 1 - k : self.taps - 1 - k + t].reshape(b * t, h, w, c)
            y = y + (conv3x3(frames, kernel[k]) if fast is None else winograd(frames, fast[k]))
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
    """Cells ``[b, t, h8, w8, 768]`` to the network's part of the latent."""

    config: VAEConfig

    @nn.compact
    def __call__(self, cells: Float[Array, "b t h8 w8 cell"], state: State) -> Float[Array, "b t h8 w8 c"]:
        cfg = self.config
        x = Dense(cfg.width, name="in")(cells)
        for i in range(cfg.encoder_blocks):
            x = Residual(cfg.width, taps=2 if i == 0 else 1, name=f"block{i}")(x, state)
        gain = self.param("gain", nn.initializers.ones, (cfg.width,))
        return Dense(cfg.channels, SMALL, name="out")(nn.silu(channel_norm(x, gain)))


class Decoder(nn.Module):
    """The latent to the network's part of the cells."""

    config: VAEConfig

    @nn.compact
    def __call__(self, z: Float[Array, "b t h8 w8 c"], state: State) -> Float[Array, "b t h8 w8 cell"]:
        cfg = self.config
        x = Dense(cfg.width, name="in")(z)
        for i in range(cfg.decoder_blocks):
            x = Residual(cfg.width, taps=2 if i == 0 else 1, name=f"block{i}")(x, state)
        gain = self.param("gain", nn.initializers.ones, (cfg.width,))
        return Dense(CELL, SMALL, name="out")(nn.silu(channel_norm(x, gain)))


def init(config: VAEConfig, key: Array) -> dict:
    """Fresh parameters: the networks, the linear part (``basis``, an arbitrary orthogonal one until
    :func:`with_basis`, ``scale`` and ``centre``) and the latent's statistics ``mean`` and ``std``."""
    k1, k2, k3 = jax.random.split(key, 3)
    cells = jnp.zeros((1, 1, 2, 2, CELL))
    latent = jnp.zeros((1, 1, 2, 2, config.channels))
    return {
        "encoder": Encoder(config).init(k1, cells, {})["params"],
        "decoder": Decoder(config).init(k2, latent, {})["params"],
        "basis": nn.initializers.orthogonal()(k3, (CELL, config.channels)),
        "scale": jnp.ones((config.channels,)),
        "centre": jnp.zeros((CELL,)),
        # Measured over training clips when the stage ends; ``encode`` returns latents of zero mean per channel and
        # unit variance over all channels, as the diffusion model wants them. Channels keep their proportions.
        "mean": jnp.zeros((config.channels,)),
        "std": jnp.ones((config.channels,)),
    }


def abstract(config: VAEConfig) -> dict:
    """Shapes and dtypes of :func:`init` without computing anything."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def prepared(params: dict) -> dict:
    """``params`` with the decoder's kernels as :func:`lpm_jax.nn.conv.winograd` reads them, beside those there are."""

    def beside(tree: dict) -> dict:
        found = {name: beside(x) if isinstance(x, dict) else x for name, x in tree.items()}
        if getattr(tree.get("kernel"), "ndim", 0) == 5:
            found[FAST] = winograd_kernel(tree["kernel"])
        return found

    return params | {"decoder": beside(params["decoder"])}


def plain(params: dict) -> dict:
    """``params`` without what :func:`prepared` put beside them."""
    return {name: plain(x) if isinstance(x, dict) else x for name, x in params.items() if name != FAST}


FIXED = ("basis", "scale", "centre", "mean", "std")  # parameters that no gradient changes


def with_basis(params: dict, centre: Float[ArrayLike, " cell"], covariance: Float[ArrayLike, "cell cell"]) -> dict:
    """``params`` with the principal basis of cells of this mean and covariance."""
    channels = params["scale"].shape[0]
    variance, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    variance, vectors = variance[::-1][:channels], vectors[:, ::-1][:, :channels]
    scale = np.maximum(variance, 1e-8) ** -0.25
    scale /= np.sqrt(np.mean(scale**2 * variance))  # unit variance over all channels
    new = {"basis": vectors, "scale": scale, "centre": np.asarray(centre)}
    return params | {name: jnp.asarray(x, jnp.float32) for name, x in new.items()}


def pack(groups: Float[Array, "b t 4 h w 3"]) -> Float[Array, "b t h8 w8 cell"]:
    """Groups of frames to cells."""
    b, t, g, h, w, c = groups.shape
    return space_to_depth(jnp.moveaxis(groups, 2, 4).reshape(b, t, h, w, g * c), STRIDE)


def unpack(cells: Float[Array, "b t h8 w8 cell"]) -> Float[Array, "b t 4 h w 3"]:
    """The inverse of :func:`pack`."""
    x = depth_to_space(cells, STRIDE)
    return jnp.moveaxis(x.reshape(*x.shape[:4], GROUP, 3), 4, 2)


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
    cells = pack(group_frames(video, first=state is None))
    state = {} if state is None else dict(state)
    return encode_cells(config, params, cells, state), state


def encode_cells(
    config: VAEConfig, params: dict, cells: Float[Array, "b t h8 w8 cell"], state: State
) -> Float[Array, "b t h8 w8 c"]:
    """:func:`encode` of packed groups; ``state`` is updated. The network computes in its weights' dtype."""
    dtype = params["encoder"]["in"]["kernel"].dtype
    z = ((cells - params["centre"]) @ params["basis"]) * params["scale"]
    z = z + Encoder(config).apply({"params": params["encoder"]}, cells.astype(dtype), state)
    return (z - params["mean"]) / params["std"]


def decode(
    config: VAEConfig, params: dict, latents: Float[Array, "b latents h8 w8 c"], state: State | None = None
) -> tuple[Float[Array, "b frames h w 3"], State]:
    """Frames in about -1..1 (not clipped): ``4 k + 1`` of them at the start of a video, else ``4 k``."""
    first = state is None
    state = {} if first else dict(state)
    groups = unpack(decode_cells(config, params, latents, state))
    b, t, g, *rest = groups.shape
    frames = groups.reshape(b, t * g, *rest)
    return (frames[:, GROUP - 1 :] if first else frames), state


def decode_cells(
    config: VAEConfig, params: dict, latents: Float[Array, "b t h8 w8 c"], state: State
) -> Float[Array, "b t h8 w8 cell"]:
    """:func:`decode` before unpacking; ``state`` is updated. The network computes in its weights' dtype."""
    dtype = params["decoder"]["in"]["kernel"].dtype
    z = latents * params["std"] + params["mean"]
    cells = (z / params["scale"]) @ params["basis"].T + params["centre"]
    return cells + Decoder(config).apply({"params": params["decoder"]}, z.astype(dtype), state)


def features(
    config: VAEConfig, params: dict, latents: Float[Array, "b t h8 w8 c"]
) -> list[Float[Array, "b t h8 w8 f"]]:
    """What the decoder's residual blocks make of latents, one after the other: features to compare latents by."""
    dtype = params["decoder"]["in"]["kernel"].dtype
    z = latents * params["std"] + params["mean"]
    kept = lambda module, _: isinstance(module, Residual)  # noqa: E731
    _, seen = Decoder(config).apply(
        {"params": params["decoder"]}, z.astype(dtype), {}, capture_intermediates=kept, mutable="intermediates"
    )
    return [seen["intermediates"][f"block{i}"]["__call__"][0] for i in range(config.decoder_blocks)]


def to_unit(frames: ArrayLike) -> Float[Array, "..."]:
    """uint8 0..255 to float -1..1."""
    return jnp.asarray(frames, jnp.float32) / 127.5 - 1.0


def to_pixels(frames: Float[Array, "..."]) -> Array:
    """Float -1..1 to uint8."""
    return jnp.clip(jnp.round((frames + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
