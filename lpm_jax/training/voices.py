"""Other voices out of those that there are, so that a network learns what is said and not who says it.

On training voices a student's lips followed at r = 0.71, on held-out ones at 0.61, whatever the character
(docs/distillation.md): voices had been learnt by heart.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lpm_jax.config import Config
from lpm_jax.errors import InputError


def other_voice(key: Array, mel: Float[Array, "b tokens features"], bands: int) -> Float[Array, "b tokens features"]:
    """The same words by another vocal tract (the mel axis stretched by up to 12 %), louder or softer by up to 3 dB and
    with a spectrum tilted by up to 4 dB each way."""
    b, n, _ = mel.shape
    k1, k2, k3 = jax.random.split(key, 3)
    power = jnp.maximum(jnp.exp(6.0 * mel.reshape(b, n, -1, bands) - 3.0) - 1e-4, 0.0)  # models/audio.py: log_mel
    at = jnp.arange(bands) * (1 + jax.random.uniform(k1, (b, 1), minval=-0.12, maxval=0.12))
    low = jnp.clip(jnp.floor(at), 0, bands - 2).astype(jnp.int32)
    share = jnp.clip(at - low, 0, 1)[:, None, None]
    band = lambda i: jnp.take_along_axis(power, i[:, None, None], axis=3)  # noqa: E731
    power = (1 - share) * band(low) + share * band(low + 1)
    gain = jax.random.uniform(k2, (b, 1, 1, 1), minval=-0.7, maxval=0.7)  # of the power's natural logarithm
    tilt = jax.random.uniform(k3, (b, 1, 1, 1), minval=-1.0, maxval=1.0) * jnp.linspace(-1, 1, bands)
    return ((jnp.log(power * jnp.exp(gain + tilt) + 1e-4) + 3.0) / 6.0).reshape(mel.shape)


def as_other_voices(config: Config, batch: dict, key: Array) -> dict:
    """``batch`` of windows with ``train.voices`` of its clips heard as other voices, either track as one of its own.

    Raises:
      InputError: the model does not hear log-mel.
    """
    share = config.train.voices
    if not share:
        return batch
    if config.audio.wav2vec is not None:
        raise InputError(f"train.voices: other voices are made of log-mel alone, expected 0, found {share}")
    changed = dict(batch)
    for name, k in zip(("speak", "listen"), jax.random.split(key), strict=True):
        k_which, k_voice = jax.random.split(k)
        mel = jnp.asarray(batch[name])
        which = jax.random.bernoulli(k_which, share, (len(mel), 1, 1))
        other = other_voice(k_voice, mel.astype(jnp.float32), config.audio.bands)
        changed[name] = jnp.where(which, other.astype(mel.dtype), mel)
    return changed
