"""The wav2vec 2.0 audio encoder (Baevski et al. 2020, arXiv 2006.11477), the features that large avatar models read.

    waveform at 16 kHz -> seven strided convolutions (a frame of 400 samples every 320: 50 Hz) -> projection
    x <- x + gelu(grouped convolution over 128 frames)        positions
    transformer layers, norm after each part (base) or before it (``stable``: large)

Layers run in a ``lax.scan`` over stacked parameters. The computation is in the parameters' dtype; the waveform's
normalisation, the first convolution with its norm, all norms and the softmax are in float32.
``tests/models/test_wav2vec.py`` holds it to transformers' ``Wav2Vec2Model``.

An utterance is encoded as a whole: features look both ways. A stream encodes windows of history and new samples, see
:func:`lpm_jax.models.audio.stream`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from lpm_jax.config import Wav2VecConfig
from lpm_jax.models.audio import FPS, two_thirds
from lpm_jax.models.dit import layer_norm
from lpm_jax.nn import parameters
from lpm_jax.nn.parameters import Parameter

SAMPLE_RATE = 16_000

BASE = Wav2VecConfig()
#: The large models with a norm in every convolution: LV-60, XLSR-53, XLS-R 300M.
LARGE = Wav2VecConfig(width=1024, layers=24, heads=16, ffn=4096, conv_bias=True, norm="layer", stable=True)

#: Ends of the keys of a weight-normalised convolution: its gain and its direction, as old and new PyTorch spell them.
FACTORS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


# ---- parameters


def table(config: Wav2VecConfig) -> parameters.Table:
    """Every parameter; ``layers`` are stacked. Keys are those after :func:`fold`."""
    d, c, n = config.width, config.channels, config.layers
    ones, zeros, lecun = nn.initializers.ones, nn.initializers.zeros, nn.initializers.lecun_normal
    rows: parameters.Table = {}

    def add(path: str, shape: tuple[int, ...], init: Any, key: str, *permutation: int) -> None:
        # Models with a head on top (CTC, pre-training) keep the encoder under "wav2vec2.".
        rows[path] = Parameter(shape, init, (key, f"wav2vec2.{key}"), permutation)

    def norm(path: str, width: int, key: str, *stack: int) -> None:
        add(f"{path}/gain", (*stack, width), ones, f"{key}.weight", 0)
        add(f"{path}/bias", (*stack, width), zeros, f"{key}.bias", 0)

    def dense(path: str, a: int, b: int, key: str, *stack: int) -> None:
        add(f"{path}/kernel", (*stack, a, b), lecun(batch_axis=tuple(range(len(stack)))), f"{key}.weight", 1, 0)
        add(f"{path}/bias", (*stack, b), zeros, f"{key}.bias", 0)

    for i, size in enumerate(config.kernels):
        key = f"feature_extractor.conv_layers.{i}"
        add(f"conv/{i}/kernel", (size, c if i else 1, c), lecun(), f"{key}.conv.weight", 2, 1, 0)
        if config.conv_bias:
            add(f"conv/{i}/bias", (c,), zeros, f"{key}.conv.bias", 0)
        if i == 0 or config.norm == "layer":
            norm(f"conv/{i}/norm", c, f"{key}.layer_norm")
    norm("norm_features", c, "feature_projection.layer_norm")
    dense("project", c, d, "feature_projection.projection")
    shape = (config.position_kernel, d // config.position_groups, d)
    add("position/kernel", shape, lecun(), "encoder.pos_conv_embed.conv.weight", 2, 1, 0)
    add("position/bias", (d,), zeros, "encoder.pos_conv_embed.conv.bias", 0)
    norm("norm", d, "encoder.layer_norm")
    key = "encoder.layers.{i}"
    for name, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
        dense(f"layers/{name}", d, d, f"{key}.attention.{theirs}", n)
    norm("layers/norm_attention", d, f"{key}.layer_norm", n)
    dense("layers/in", d, config.ffn, f"{key}.feed_forward.intermediate_dense", n)
    dense("layers/out", config.ffn, d, f"{key}.feed_forward.output_dense", n)
    norm("layers/norm_ffn", d, f"{key}.final_layer_norm", n)
    return rows


def init(config: Wav2VecConfig, key: Array, dtype: Any = jnp.float32) -> dict:
    """Fresh parameters."""
    return parameters.init(table(config), key, dtype)


def abstract(config: Wav2VecConfig, dtype: Any = jnp.float32) -> dict:
    """Shapes and dtypes of :func:`init`."""
    return parameters.abstract(table(config), dtype)


def names(config: Wav2VecConfig) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Our path to its alternative PyTorch keys (``{i}``: one per layer) and the permutation of each tensor.

    Checkpoints hold the positional convolution in two factors: :func:`fold` their tensors first.
    """
    return parameters.names(table(config))


def fold(tensors: dict[str, Any]) -> dict[str, Any]:
    """A PyTorch state dict whose weight-normalised convolutions ``g v / |v|`` are plain ``weight`` tensors.

    Both spellings count, ``weight_g`` with ``weight_v`` and ``parametrizations.weight.original0`` with ``original1``.
    The norm is per tap of the kernel (PyTorch's ``dim=2``), over output and input channels.
    """
    out = dict(tensors)
    for g_end, v_end in FACTORS:
        for key in [key for key in out if key.endswith(f".{g_end}")]:
            stem = key.removesuffix(g_end)
            g, v = (np.asarray(out.pop(stem + end)) for end in (g_end, v_end))
            v64 = v.astype(np.float64)
            weight = g.astype(np.float64) * v64 / np.sqrt((v64 * v64).sum((0, 1), keepdims=True))
            out[f"{stem}weight"] = weight.astype(v.dtype)
    return out


# ---- encoder


def _norm(x: Array, w: dict, eps: float) -> Array:
    return (layer_norm(x.astype(jnp.float32), eps) * w["gain"] + w["bias"]).astype(x.dtype)


def _dense(x: Array, w: dict) -> Array:
    return x @ w["kernel"] + w["bias"]


def _conv(x: Array, w: dict, stride: int, padding: tuple[int, int] = (0, 0), groups: int = 1) -> Array:
    """A convolution over time, in float32 from the sums on."""
    y = lax.conv_general_dilated(
        x, w["kernel"].astype(x.dtype), (stride,), [padding], dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups, preferred_element_type=jnp.float32,
    )  # fmt: skip
    return y + w["bias"] if "bias" in w else y


def normalize(samples: Float[ArrayLike, "b n"], lengths: Integer[ArrayLike, " b"] | None = None) -> Float[Array, "b n"]:
    """Each utterance to mean 0 and variance 1 over its first ``lengths`` samples, the rest zero; silence stays 0."""
    x = jnp.asarray(samples, jnp.float32)
    valid = jnp.ones(x.shape, bool) if lengths is None else jnp.arange(x.shape[1]) < jnp.asarray(lengths)[:, None]
    mean = jnp.mean(x, 1, keepdims=True, where=valid)
    variance = jnp.mean((x - mean) ** 2, 1, keepdims=True, where=valid)
    return jnp.where(valid, (x - mean) * lax.rsqrt(variance + 1e-7), 0)


def _convolutions(config: Wav2VecConfig, params: dict, samples: Float[Array, "b n"]) -> Float[Array, "b frames c"]:
    dtype = params["project"]["kernel"].dtype
    x = samples[..., None]
    for i, stride in enumerate(config.strides):
        w = params["conv"][str(i)]
        x = _conv(x, w, stride)
        if config.norm == "layer":
            x = _norm(x, w["norm"], 1e-5)
        elif i == 0:  # one group per channel: statistics over time
            x = _norm(x.swapaxes(1, 2), jax.tree.map(lambda p: p[:, None], w["norm"]), 1e-5).swapaxes(1, 2)
        x = nn.gelu(x, approximate=False).astype(dtype)
    return x


@functools.partial(jax.jit, static_argnums=0, static_argnames=("stack",))
def encode(
    config: Wav2VecConfig,
    params: dict,
    samples: Float[ArrayLike, "b n"],
    lengths: Integer[ArrayLike, " b"] | None = None,
    *,
    stack: bool = False,
) -> Float[Array, "b frames *states width"]:
    """Features of 16 kHz mono samples, one per 320 samples, in the parameters' dtype.

    Args:
      samples: at least 400; feature ``k`` is about samples ``320 k .. 320 k + 399``.
      lengths: how many samples of each utterance count. Features past them are not read by others, and mean nothing.
        As in transformers, a ``"group"`` norm takes its statistics over the padding too: pad no utterances there.
      stack: return all ``layers + 1`` hidden states, ``[b, frames, layers + 1, width]``: the transformer's input, then
        each layer's output. The last is what is returned without ``stack``, after the final norm of a ``stable`` model
        (so transformers 4; version 5 stacks the last state before that norm).

    Raises:
      ValueError: there are too few samples for one feature.
    """
    samples = jnp.asarray(samples, jnp.float32)
    b, n = samples.shape
    if n < config.field:
        raise ValueError(f"expected at least {config.field} samples, found {n}")
    if config.normalize:
        samples = normalize(samples, lengths)
    x = _convolutions(config, params, samples)
    x = _dense(_norm(x, params["norm_features"], config.eps), params["project"])
    frames, mask = x.shape[1], None
    if lengths is not None:
        valid = jnp.arange(frames) < config.features(jnp.asarray(lengths))[:, None]
        x = jnp.where(valid[..., None], x, 0)
        mask = valid[:, None, None]

    k = config.position_kernel
    y = _conv(x, params["position"], 1, (k // 2, (k - 1) // 2), config.position_groups)
    x = (x + nn.gelu(y, approximate=False)).astype(x.dtype)
    if not config.stable:
        x = _norm(x, params["norm"], config.eps)

    def mix(x: Array, w: dict) -> Array:
        q, k, v = (_dense(x, w[name]).reshape(b, frames, config.heads, -1) for name in "qkv")
        return _dense(jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla").reshape(x.shape), w["o"])

    def feed(x: Array, w: dict) -> Array:
        return _dense(nn.gelu(_dense(x, w["in"]), approximate=False), w["out"])

    def layer(x: Array, w: dict) -> tuple[Array, Array | None]:
        if config.stable:
            x = x + mix(_norm(x, w["norm_attention"], config.eps), w)
            x = x + feed(_norm(x, w["norm_ffn"], config.eps), w)
        else:
            x = _norm(x + mix(x, w), w["norm_attention"], config.eps)
            x = _norm(x + feed(x, w), w["norm_ffn"], config.eps)
        return x, x if stack else None

    first = x
    x, states = lax.scan(layer, x, params["layers"])
    if config.stable:
        x = _norm(x, params["norm"], config.eps)
    if not stack:
        return x
    return jnp.moveaxis(jnp.concatenate([first[None], states[:-1], x[None]]), 0, 2)


# ---- to the video's rate


def resample(
    config: Wav2VecConfig,
    features: Float[Array, "b features *rest"],
    count: int,
    rate: float | int = FPS,
    start: float | int = 0.0,
    corners: bool = False,
) -> Float[Array, "b count *rest"]:
    """Features at the middles of ``count`` video frames, linearly between the two nearest, held beyond the ends.

    Output ``i`` stands at ``start + (i + 1/2) / rate`` seconds, feature ``k`` in the middle of the samples that it
    sees: ``(320 k + 199.5) / 16,000`` seconds. Where a frame stands therefore does not depend on the clip's length,
    and windows of a stream agree.

    Args:
      rate: outputs per second: 24, or ``24 / 4`` for one per latent frame. A clip's first latent frame is one video
        frame alone; those after it are at ``rate=24 / 4, start=1 / 24``.
      corners: ignore ``rate`` and ``start``; the first and last outputs are the first and last features, as
        ``interpolate(..., align_corners=True)`` in PyTorch and with it Wan-S2V.
    """
    n = features.shape[1]
    if corners:
        place = np.arange(count) * ((n - 1) / max(count - 1, 1))
    else:
        seconds = start + (np.arange(count) + 0.5) / rate
        place = (seconds * SAMPLE_RATE - (config.field - 1) / 2) / config.hop
    place = np.clip(place, 0, n - 1)
    low = np.minimum(place.astype(np.int32), max(n - 2, 0))
    weight = jnp.asarray((place - low).reshape(-1, *[1] * (features.ndim - 2)), jnp.float32)
    a, b = features[:, low], features[:, np.minimum(low + 1, n - 1)]
    return (a * (1 - weight) + b * weight).astype(features.dtype)


@dataclasses.dataclass(frozen=True)
class Wav2Vec:
    """wav2vec 2.0 as :class:`lpm_jax.models.audio.AudioFeatures`: every window is encoded (and normalised) on its own.

    With ``stack`` a token holds all ``layers + 1`` hidden states, one after the other. ``sample_rate`` is 16,000, or
    24,000: samples are then brought to 16,000 first (:func:`lpm_jax.models.audio.two_thirds`).
    """

    config: Wav2VecConfig = BASE
    history: int = 2 * SAMPLE_RATE  # samples; SPEC section 3, ``online.stream_audio``: with 1 s of new ones
    stack: bool = False
    sample_rate: int = SAMPLE_RATE

    @property
    def features(self) -> int:
        """Numbers in a token."""
        return self.config.width * (self.config.layers + 1 if self.stack else 1)

    def __call__(self, params: dict, samples: Float[ArrayLike, "b n"]) -> Float[Array, "b tokens features"]:
        """One token per video frame of the samples after the first ``history``.

        Raises:
          ValueError: these are no whole number of video frames and of samples at 16 kHz (an eighth of a second is).
        """
        b, n = samples.shape
        eighth = self.sample_rate // 8
        if n <= self.history or (n - self.history) % eighth:
            raise ValueError(
                f"expected {self.history} samples of history and a multiple of {eighth:,}, found {n} in all"
            )
        tokens = (n - self.history) * FPS // self.sample_rate
        if self.sample_rate != SAMPLE_RATE:
            samples = two_thirds(samples)
        x = encode(self.config, params, samples, stack=self.stack)
        return resample(self.config, x, tokens, start=self.history / self.sample_rate).reshape(b, tokens, -1)
