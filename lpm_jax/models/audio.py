"""Audio conditioning: log-mel features and the windows in which a video frame reads them.

One token is one video frame (1,000 samples at 24 kHz): four mel columns of 21 ms windows that end with their hop, so a
token never looks past its own end. A speak token says what the mouth does now; a listen token, what the partner does.

:class:`AudioFeatures` is the way of use that log-mel (:class:`LogMel`) and wav2vec 2.0 (``models/wav2vec.py``) share.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from lpm_jax.config import AudioConfig
from lpm_jax.models.dit import Audio
from lpm_jax.nn.rope import angles_1d

SAMPLE_RATE = 24_000
FPS = 24
TOKEN = SAMPLE_RATE // FPS  # samples per token
STRIDE = 4  # tokens per latent frame
FFT = 512
SILENCE_DB = -10.0  # natural log of the power floor, before scaling


def mel_filters(bands: int) -> Float[np.ndarray, "bins bands"]:
    """Triangular filters from 60 Hz to 8 kHz, equally spaced on the (HTK) mel scale."""
    mel = lambda f: 2595 * np.log10(1 + f / 700)  # noqa: E731
    points = 700 * (10 ** (np.linspace(mel(60.0), mel(8000.0), bands + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE)[:, None]
    rise = (bins - points[None, :-2]) / (points[1:-1] - points[:-2])
    fall = (points[None, 2:] - bins) / (points[2:] - points[1:-1])
    filters = np.maximum(0, np.minimum(rise, fall))
    return (filters / np.maximum(filters.sum(0), 1e-3)).astype(np.float32)


def log_mel(config: AudioConfig, samples: Float[ArrayLike, "*b n"], xp=jnp) -> Float[ArrayLike, "*b tokens features"]:
    """Log-mel tokens of ``n = TOKEN * tokens + FFT`` samples at 24 kHz; the first ``FFT`` samples are only history.

    Values are near -1 for silence and 1 for loud speech. ``xp`` is ``jax.numpy`` or ``numpy``.
    """
    hop = TOKEN // config.hops_per_frame
    tokens = (samples.shape[-1] - FFT) // TOKEN
    starts = FFT + hop * (np.arange(tokens * config.hops_per_frame) + 1) - FFT
    frames = samples[..., starts[:, None] + np.arange(FFT)] * np.hanning(FFT).astype(np.float32)
    power = xp.abs(xp.fft.rfft(frames, axis=-1)) ** 2
    mel = xp.log(power.astype(np.float32) @ mel_filters(config.bands) + 1e-4)
    mel = (mel + 3.0) / 6.0
    return mel.reshape(*samples.shape[:-1], tokens, config.hops_per_frame * config.bands)


def two_thirds(samples: Float[ArrayLike, "b n"]) -> Float[Array, "b m"]:
    """Sound at 24 kHz brought to 16 kHz, ``m = 2 n / 3``: a windowed sinc, flat to 7 kHz, silence around the samples.

    Raises:
      ValueError: ``n`` is no multiple of three.
    """
    samples = jnp.asarray(samples, jnp.float32)
    b, n = samples.shape
    if n % 3:
        raise ValueError(f"expected a multiple of 3 samples, found {n}")
    reach = 60  # taps each side, at the common rate of 48 kHz
    at = np.arange(-reach, reach + 1)
    cutoff = 2 * 7600 / 48_000
    taps = 2 * cutoff * np.sinc(cutoff * at) * np.kaiser(2 * reach + 1, 6.0)
    out = jax.lax.conv_general_dilated(
        samples[..., None],
        jnp.asarray(taps, jnp.float32)[:, None, None],
        window_strides=(3,),
        padding=[(reach, reach - 1)],
        lhs_dilation=(2,),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    return out[..., 0]


@runtime_checkable
class AudioFeatures(Protocol):
    """Sound to tokens, one per video frame. Hashable, so that it can be a static argument."""

    @property
    def sample_rate(self) -> int:
        """Of the samples, in Hz."""

    @property
    def history(self) -> int:
        """Samples that come before those of the first token."""

    @property
    def features(self) -> int:
        """Numbers in a token."""

    def __call__(self, params: dict, samples: Float[ArrayLike, "b n"]) -> Float[Array, "b tokens features"]:
        """Tokens of the samples after the first ``history``: whole video frames."""


@dataclasses.dataclass(frozen=True)
class LogMel:
    """:func:`log_mel` as :class:`AudioFeatures`; it has no parameters."""

    config: AudioConfig = AudioConfig()
    sample_rate = SAMPLE_RATE
    history = FFT

    @property
    def features(self) -> int:
        return self.config.bands * self.config.hops_per_frame

    def __call__(self, params: dict, samples: Float[ArrayLike, "b n"]) -> Float[Array, "b tokens features"]:
        return log_mel(self.config, jnp.asarray(samples))


@functools.partial(jax.jit, static_argnums=0)
def stream(
    encoder: AudioFeatures, params: dict, history: Float[ArrayLike, "b history"], samples: Float[ArrayLike, "b n"]
) -> tuple[Float[Array, "b history"], Float[Array, "b tokens features"]]:
    """Tokens of the next samples of a stream, and the history to pass with those after them; zeros at the start.

    The window ``history + samples`` is encoded on its own and nothing past its end is heard. Shapes are static: one
    compilation for each number of samples. Tokens of earlier windows stay as they were returned.

    Raises:
      ValueError: ``history`` is not as long as the encoder wants it.
    """
    if history.shape[1] != encoder.history:
        raise ValueError(f"expected {encoder.history} samples of history, found {history.shape[1]}")
    window = jnp.concatenate([jnp.asarray(history), jnp.asarray(samples)], axis=1)
    return window[:, -encoder.history :], encoder(params, window)


class Hearing(nn.Module):
    """What is being said, and when: residual causal convolutions over log-mel tokens.

    Stage ``audio`` trains it to tell the performance from sound alone (``training/hearing.py``), of which far more can
    be made than of video; it is frozen afterwards, as large models' wav2vec 2.0. Block ``i`` looks ``2 ** (i + 1)``
    tokens back, so a token hears :func:`hearing_reach` before it and nothing after.
    """

    config: AudioConfig

    @nn.compact
    def __call__(self, mel: Float[Array, "b tokens features"]) -> Float[Array, "b tokens hearing"]:
        """Normalised features of width ``hearing_width``."""
        cfg = self.config
        width = cfg.hearing_width
        norm = lambda x: nn.LayerNorm(use_bias=False, use_scale=False, dtype=mel.dtype)(x)  # noqa: E731
        x = nn.Dense(width, dtype=mel.dtype, name="in")(mel)
        for i in range(cfg.hearing):
            y = jnp.pad(norm(x), ((0, 0), (2 * 2**i, 0), (0, 0)))
            y = jnp.concatenate([y[:, k * 2**i :][:, : x.shape[1]] for k in range(3)], axis=-1)
            y = nn.Dense(width, dtype=mel.dtype, name=f"look_{i}")(y)
            x = x + nn.Dense(width, use_bias=False, dtype=mel.dtype, name=f"mix_{i}")(nn.gelu(y))
        return norm(x)


def hearing_reach(config: AudioConfig) -> int:
    """Tokens before its own that a token of :class:`Hearing` is made of."""
    return 2 * (2**config.hearing - 1)


class AudioEncoder(nn.Module):
    """A token's mel columns and its phase within the latent frame, through a two-layer network; with ``hearing``, what
    :class:`Hearing` makes of it is added."""

    config: AudioConfig

    @nn.compact
    def __call__(self, mel: Float[Array, "b tokens features"]) -> Float[Array, "b tokens width"]:
        """``tokens`` is a multiple of four: phases count from the first."""
        cfg = self.config
        phase = self.param("phase", nn.initializers.normal(0.5), (STRIDE, cfg.width))
        x = nn.Dense(cfg.width, dtype=mel.dtype, name="in")(mel)
        b, n, d = x.shape
        x = (x.reshape(b, n // STRIDE, STRIDE, d) + phase.astype(x.dtype)).reshape(b, n, d)
        tokens = nn.Dense(cfg.width, dtype=mel.dtype, name="out")(nn.gelu(x))
        if cfg.hearing:
            heard = Hearing(cfg, name="hearing")(mel)
            tokens = tokens + nn.Dense(cfg.width, use_bias=False, dtype=mel.dtype, name="heard")(heard)
        return tokens


def window_mask(frames: int, history: int, window: float, chunk: int | None) -> Bool[np.ndarray, "frames tokens"]:
    """Which of ``history + STRIDE * frames`` tokens each latent frame may read: ``window`` seconds each side.

    Frame ``f`` covers tokens ``history + 4 f .. history + 4 f + 3``. With ``chunk`` (latent frames) nothing past the
    end of the frame's own chunk is visible, as in streaming.
    """
    reach = round(window * FPS)
    token = np.arange(history + STRIDE * frames)[None]
    start = history + STRIDE * np.arange(frames)[:, None]
    mask = (token >= start - reach) & (token < start + STRIDE + reach)
    if chunk is not None:
        end = history + STRIDE * chunk * (np.arange(frames)[:, None] // chunk + 1)
        mask &= token < end
    return mask


def branch(
    tokens: Float[Array, "b n width"],
    config: AudioConfig,
    frames: int,
    window: float,
    chunk: int | None,
    head_dim: int,
) -> Audio:
    """Tokens with their window mask and RoPE angles; query positions are the middles of their latent frames."""
    b, n, _ = tokens.shape
    history = n - STRIDE * frames
    mask = jnp.asarray(window_mask(frames, history, window, chunk))
    middles = history + STRIDE * np.arange(frames) + (STRIDE - 1) / 2
    # A short base period tells neighbouring video frames apart.
    return Audio(
        tokens,
        jnp.broadcast_to(mask, (b, *mask.shape)),
        angles_1d(jnp.asarray(middles), head_dim, 100.0),
        angles_1d(jnp.arange(n), head_dim, 100.0),
    )
