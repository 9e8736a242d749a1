"""The Wan 2.1 video VAE: four frames and 8 x 8 pixels to one vector of 16 channels.

Architecture: Wan team 2025, "Wan: Open and Advanced Large-Scale Video Generative Models" (arXiv 2503.20314), section
4.1. Parameters and results are those of diffusers' ``AutoencoderKLWan`` (Apache-2.0) without ``is_residual``, which is
Wan 2.2's; the tests compare with it.

A clip of ``4 k + 1`` frames becomes ``k + 1`` latent frames. Every convolution in time is causal: zeros precede the
first frame, and two frames of its past are all that a convolution needs to go on. The first frame stands alone where
time is resampled:

- halving time in the encoder, it passes by as it is; output ``i`` after it sees frames ``2 i, 2 i + 1, 2 i + 2``,
- doubling time in the decoder, it stays one frame, and those after it see zeros in its place (the reference's cache
  entry "Rep"), while each other frame becomes two.

:func:`encode` and :func:`decode` take and return the past of all convolutions as their *state*: without one the clip
starts, with one it goes on. The shapes of a state do not depend on the lengths of the chunks, and a clip processed in
chunks equals the whole. Norms have no statistics over space or time, and attention stays within a frame.

The networks compute in the dtype of their weights; what residual blocks add up stays in float32, without which half
precision is off by 2.3 % where norms have few channels (as the reference is).

All arrays, those of the state too, are ``[batch, frames, height, width, channels]``; one :func:`space_sharding` splits
a decode over devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from lpm_jax.config import WanVAEConfig
from lpm_jax.nn import parameters
from lpm_jax.nn.conv import causal_conv
from lpm_jax.nn.parameters import Parameter

State = dict[str, Array]
ZEROS = jax.nn.initializers.zeros


# Parameters: each is declared once, and fresh values, shapes and both spellings of checkpoints follow.

Row = tuple[str, Parameter]


def _row(shape: tuple[int, ...], diffusers: str, original: str, init: Callable = ZEROS) -> Row:
    """A parameter under diffusers' key with our words for leaves, without indices that are always 0 or 1.

    ``ours = reference.transpose(permutation)``: channels go last, in kernels ``[.., in, out]``.
    """
    path = diffusers.replace("upsamplers.0", "upsampler").replace("attentions.0", "attention")
    *parts, leaf = path.replace("resample.1", "resample").split(".")
    leaf = {"weight": "kernel", "gamma": "gain"}.get(leaf, leaf)
    last = (1, 0) if leaf == "kernel" else (0,)
    return "/".join((*parts, leaf)), Parameter(
        shape, init, (diffusers, original), (*range(len(last), len(shape)), *last)
    )


def _conv_rows(
    diffusers: str, original: str, window: tuple[int, ...], c: int, f: int, init: Callable | None = None
) -> Iterator[Row]:
    init = init or jax.nn.initializers.lecun_normal(tuple(range(len(window) + 1)))
    yield _row((*window, c, f), f"{diffusers}.weight", f"{original}.weight", init)
    yield _row((f,), f"{diffusers}.bias", f"{original}.bias")


def _norm_row(diffusers: str, original: str, c: int, axes: int = 3) -> Row:
    return _row((1,) * axes + (c,), f"{diffusers}.gamma", f"{original}.gamma", jax.nn.initializers.ones)


def _residual_rows(diffusers: str, original: str, c: int, f: int) -> Iterator[Row]:
    yield _norm_row(f"{diffusers}.norm1", f"{original}.residual.0", c)
    yield from _conv_rows(f"{diffusers}.conv1", f"{original}.residual.2", (3, 3, 3), c, f)
    yield _norm_row(f"{diffusers}.norm2", f"{original}.residual.3", f)
    yield from _conv_rows(f"{diffusers}.conv2", f"{original}.residual.6", (3, 3, 3), f, f)
    if c != f:
        yield from _conv_rows(f"{diffusers}.conv_shortcut", f"{original}.shortcut", (1, 1, 1), c, f)


def _resample_rows(diffusers: str, original: str, c: int, f: int, time: int) -> Iterator[Row]:
    """``time`` is the number of channels that the convolution in time makes, 0 for none."""
    yield from _conv_rows(f"{diffusers}.resample.1", f"{original}.resample.1", (3, 3), c, f)
    if time:
        yield from _conv_rows(f"{diffusers}.time_conv", f"{original}.time_conv", (3, 1, 1), c, time)


def _middle_rows(part: str, c: int) -> Iterator[Row]:
    diffusers, original = f"{part}.mid_block", f"{part}.middle"
    yield from _residual_rows(f"{diffusers}.resnets.0", f"{original}.0", c, c)
    yield _norm_row(f"{diffusers}.attentions.0.norm", f"{original}.1.norm", c, axes=2)
    yield from _conv_rows(f"{diffusers}.attentions.0.to_qkv", f"{original}.1.to_qkv", (1, 1), c, 3 * c)
    yield from _conv_rows(f"{diffusers}.attentions.0.proj", f"{original}.1.proj", (1, 1), c, c, ZEROS)
    yield from _residual_rows(f"{diffusers}.resnets.1", f"{original}.2", c, c)


def _head_rows(part: str, c: int, f: int) -> Iterator[Row]:
    yield _norm_row(f"{part}.norm_out", f"{part}.head.0", c)
    yield from _conv_rows(f"{part}.conv_out", f"{part}.head.2", (3, 3, 3), c, f)


def _rows(config: WanVAEConfig) -> Iterator[Row]:
    widths = [config.base_dim * m for m in config.dim_mult]
    yield from _conv_rows("encoder.conv_in", "encoder.conv1", (3, 3, 3), 3, config.base_dim)
    c, at = config.base_dim, 0  # both checkpoints number the encoder's blocks through
    for stage, f in enumerate(widths):
        for _ in range(config.num_res_blocks):
            yield from _residual_rows(f"encoder.down_blocks.{at}", f"encoder.downsamples.{at}", c, f)
            c, at = f, at + 1
        if stage < len(widths) - 1:
            time = f if config.temporal_downsample[stage] else 0
            yield from _resample_rows(f"encoder.down_blocks.{at}", f"encoder.downsamples.{at}", f, f, time)
            at += 1
    yield from _middle_rows("encoder", c)
    yield from _head_rows("encoder", c, 2 * config.z_dim)
    yield from _conv_rows("quant_conv", "conv1", (1, 1, 1), 2 * config.z_dim, 2 * config.z_dim)

    yield from _conv_rows("post_quant_conv", "conv2", (1, 1, 1), config.z_dim, config.z_dim)
    yield from _conv_rows("decoder.conv_in", "decoder.conv1", (3, 3, 3), config.z_dim, widths[-1])
    yield from _middle_rows("decoder", widths[-1])
    c, at = widths[-1], 0  # diffusers numbers the decoder's blocks by stage, the original through
    for stage, f in enumerate(reversed(widths)):
        for block in range(config.num_res_blocks + 1):
            diffusers = f"decoder.up_blocks.{stage}.resnets.{block}"
            yield from _residual_rows(diffusers, f"decoder.upsamples.{at}", c, f)
            c, at = f, at + 1
        if stage < len(widths) - 1:
            time = 2 * f if config.temporal_downsample[::-1][stage] else 0
            diffusers = f"decoder.up_blocks.{stage}.upsamplers.0"
            yield from _resample_rows(diffusers, f"decoder.upsamples.{at}", f, f // 2, time)
            c, at = f // 2, at + 1
    yield from _head_rows("decoder", c, 3)


def table(config: WanVAEConfig) -> parameters.Table:
    """Every parameter of the model."""
    return dict(_rows(config))


def names(config: WanVAEConfig) -> dict[str, tuple[tuple[str, str], tuple[int, ...]]]:
    """Our path of every parameter to its keys in a checkpoint and the permutation that makes its array ours.

    The first key is diffusers' (``AutoencoderKLWan``), the second the original's (``Wan2.1_VAE.pth``).
    """
    return parameters.names(table(config))


def init(config: WanVAEConfig, key: Array) -> dict:
    """Fresh float32 parameters: kernels of variance 1 / fan-in, the attentions' projections zero as in the original."""
    return parameters.init(table(config), key)


def abstract(config: WanVAEConfig) -> dict:
    """The shapes and dtypes of :func:`init`."""
    return parameters.abstract(table(config))


# The networks.


class _Run:
    """One call: the past that convolutions read, by name, and the past that they leave for the next call."""

    def __init__(self, state: State | None, implementation: str | None):
        self.first = state is None
        self.implementation = implementation
        self.state, self.next = state or {}, {}

    def with_past(self, name: str, x: Array, frames: int) -> Array:
        """``x`` after the ``frames`` frames before it, zeros at the start of a clip."""
        b, _, *rest = x.shape
        past = jnp.zeros((b, frames, *rest), x.dtype) if self.first else self.state[name]
        x = jnp.concatenate([past, x], axis=1)
        self.next[name] = x[:, -frames:]
        return x

    def conv(self, params: dict, x: Array, stride: int = 1) -> Array:
        kernel = params["kernel"]
        kernel = kernel if kernel.ndim == 5 else kernel[None]
        return causal_conv(x.astype(kernel.dtype), kernel, stride, self.implementation) + params["bias"]

    def causal(self, params: dict, x: Array, name: str) -> Array:
        kernel = params["kernel"]
        return self.conv(params, self.with_past(name, x.astype(kernel.dtype), kernel.shape[0] - 1))


def channel_norm(x: Float[Array, "*b c"], gain: Float[Array, "*ones c"]) -> Float[Array, "*b c"]:
    """Root-mean-square norm over channels, per position; float32."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * (x.shape[-1] ** 0.5 * lax.rsqrt(jnp.maximum(square, 1e-24))) * gain


def _activate(x: Array, params: dict) -> Array:
    return jax.nn.silu(channel_norm(x, params["gain"]))


def residual(params: dict, x: Float[Array, "b t h w c"], run: _Run, name: str) -> Float[Array, "b t h w f"]:
    """``shortcut(x) + conv(silu(norm(conv(silu(norm(x))))))``."""
    y = _activate(x, params["norm1"])
    y = run.causal(params["conv1"], y, f"{name}/conv1")
    y = _activate(y, params["norm2"])
    y = run.causal(params["conv2"], y, f"{name}/conv2")
    x = run.conv(params["conv_shortcut"], x) if "conv_shortcut" in params else x
    return x.astype(jnp.float32) + y


def attention(params: dict, x: Float[Array, "b t h w c"], run: _Run) -> Float[Array, "b t h w c"]:
    """One head over the positions of a frame, frame by frame: the scores of one are as large as its area squared.

    Height and width stay two axes, so queries can be split over devices along either. Flash attention has at most 256
    channels a head; here are 384.
    """

    def frame(qkv: Array) -> Array:
        q, k, v = jnp.split(qkv, 3, axis=-1)
        scores = jnp.einsum("bhwc,bijc->bhwij", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(scores, axis=(-2, -1)).astype(v.dtype)
        return jnp.einsum("bhwij,bijc->bhwc", weights, v)

    qkv = run.conv(params["to_qkv"], channel_norm(x, params["norm"]["gain"]))
    y = jnp.moveaxis(lax.map(frame, jnp.moveaxis(qkv, 1, 0)), 0, 1)
    return x + run.conv(params["proj"], y)


def downsample(params: dict, x: Float[Array, "b t h w c"], run: _Run, name: str) -> Float[Array, "b t2 h2 w2 c"]:
    """Space, and with a convolution in time the frames after the first too, at half the rate."""
    b, t, *rest = x.shape
    kernel = params["resample"]["kernel"]
    x = lax.conv_general_dilated(
        x.reshape(b * t, *rest).astype(kernel.dtype),
        kernel,
        (2, 2),
        ((0, 1), (0, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = x.reshape(b, t, *x.shape[1:]) + params["resample"]["bias"]
    if "time_conv" not in params:
        return x
    seen = x if run.first else jnp.concatenate([run.state[name], x], axis=1)
    run.next[name] = seen[:, -1:]
    if seen.shape[1] == 1:
        return x
    y = run.conv(params["time_conv"], seen, stride=2)
    return jnp.concatenate([x[:, :1], y], axis=1) if run.first else y


def upsample(params: dict, x: Float[Array, "b t h w c"], run: _Run, name: str) -> Float[Array, "b t2 h2 w2 c2"]:
    """Space, and with a convolution in time the frames after the first too, at twice the rate."""
    x = x.astype(params["resample"]["kernel"].dtype)
    if "time_conv" in params:
        lead, rest = (x[:, :1], x[:, 1:]) if run.first else (x[:, :0], x)
        seen = run.with_past(name, rest, 2)
        if rest.shape[1]:
            b, t, h, w, c = rest.shape
            pairs = run.conv(params["time_conv"], seen).reshape(b, t, h, w, 2, c)
            x = jnp.concatenate([lead, jnp.moveaxis(pairs, 4, 2).reshape(b, 2 * t, h, w, c)], axis=1)
    x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
    return run.conv(params["resample"], x)


def _middle(params: dict, x: Array, run: _Run) -> Array:
    x = residual(params["resnets"]["0"], x, run, "mid_block/0")
    return residual(params["resnets"]["1"], attention(params["attention"], x, run), run, "mid_block/1")


def _head(params: dict, x: Array, run: _Run) -> Array:
    return run.causal(params["conv_out"], _activate(x, params["norm_out"]), "conv_out")


def encode(
    config: WanVAEConfig,
    params: dict,
    video: Float[Array, "b frames h w 3"],
    state: State | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "b latents hz wz z"], State]:
    """Normalised posterior means, float32. Without ``state`` the video starts here (``4 k + 1`` frames), else goes on.

    Args:
      video: values in -1..1. Sides need not be multiples of 8: the latent's are rounded down.
      state: what the call before this one returned.
      implementation: of the convolutions in time (:func:`lpm_jax.nn.conv.causal_conv`).

    Returns:
      The latents, and the state that the next ``4 k`` frames continue from.

    Raises:
      ValueError: the number of frames is not ``4 k + 1`` (at the start) or ``4 k``.
    """
    n, group = video.shape[1], config.group
    if n == 0 or n % group != (1 % group if state is None else 0):
        raise ValueError(f"expected {group} k{' + 1' if state is None else ''} frames, found {n}")
    run, net = _Run(state, implementation), params["encoder"]
    x = run.causal(net["conv_in"], video, "conv_in")
    for i in range(len(net["down_blocks"])):
        block = net["down_blocks"][str(i)]
        x = (downsample if "resample" in block else residual)(block, x, run, f"down_blocks/{i}")
    x = _head(net, _middle(net["mid_block"], x, run), run)
    z = run.conv(params["quant_conv"], x)[..., : config.z_dim].astype(jnp.float32)  # the rest is the log-variance
    return (z - jnp.array(config.latents_mean)) / jnp.array(config.latents_std), run.next


def decode(
    config: WanVAEConfig,
    params: dict,
    latents: Float[Array, "b latents hz wz z"],
    state: State | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "b frames h w 3"], State]:
    """Frames, float32, clipped to -1..1 as in the reference: ``4 k + 1`` at the start of a video, else ``4 k``.

    Args:
      latents: normalised, as :func:`encode` returns them; any number of frames.
      state: what the call before this one returned; without it the video starts here.
      implementation: of the convolutions in time (:func:`lpm_jax.nn.conv.causal_conv`).

    Returns:
      The frames, and the state that the next latents continue from.

    Raises:
      ValueError: there are no latents.
    """
    if latents.shape[1] == 0:
        raise ValueError("expected latent frames, found none")
    run, net = _Run(state, implementation), params["decoder"]
    z = latents * jnp.array(config.latents_std) + jnp.array(config.latents_mean)
    x = run.conv(params["post_quant_conv"], z)
    x = _middle(net["mid_block"], run.causal(net["conv_in"], x, "conv_in"), run)
    for i in range(len(net["up_blocks"])):
        block = net["up_blocks"][str(i)]
        for j in range(len(block["resnets"])):
            x = residual(block["resnets"][str(j)], x, run, f"up_blocks/{i}/{j}")
        if "upsampler" in block:
            x = upsample(block["upsampler"], x, run, f"up_blocks/{i}/upsampler")
    return jnp.clip(_head(net, x, run).astype(jnp.float32), -1.0, 1.0), run.next


def features(config: WanVAEConfig, params: dict, latents: Float[Array, "b t h w z"]) -> list[Float[Array, "b t h w c"]]:
    """What the decoder's first layers, at the latent's own size, make of latents: features to compare latents by."""
    run, net = _Run(None, None), params["decoder"]
    z = latents * jnp.array(config.latents_std) + jnp.array(config.latents_mean)
    x = run.causal(net["conv_in"], run.conv(params["post_quant_conv"], z), "conv_in")
    first = residual(net["mid_block"]["resnets"]["0"], x, run, "mid_block/0")
    return [x.astype(jnp.float32), first, _middle(net["mid_block"], x, run)]


def space_sharding(mesh: Mesh, axis: str, over: str = "width") -> NamedSharding:
    """Latents, frames and states split over the height or the width of the picture, along one axis of a mesh.

        space, whole = space_sharding(mesh, "space"), NamedSharding(mesh, PartitionSpec())
        step = jax.jit(partial(decode, config), in_shardings=(whole, space, space), out_shardings=space)

    XLA then exchanges the edges that convolutions need with the neighbours, and gathers keys and values for the
    attention. The devices must divide the latent's side.

    Raises:
      ValueError: ``over`` is neither ``"height"`` nor ``"width"``.
    """
    if over not in ("height", "width"):
        raise ValueError(f"over: expected 'height' or 'width', found {over!r}")
    return NamedSharding(mesh, PartitionSpec(None, None, *((axis,) if over == "height" else (None, axis))))
