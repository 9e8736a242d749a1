"""What a clip's pictures, sound and words become before a diffusion stage sees them: the numbers of the latent cache.

The toy's autoencoder is trained here; its sound is log-mel and its words are ids, which the model itself encodes. Large
models read frozen encoders, and all of them work once, when the cache is made: Wan's VAE, wav2vec 2.0 over the whole
clip, umT5. They are those of the model in the folder ``train.encoders``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num, Shaped, UInt8

from data_pipeline.schema import SAMPLES_PER_FRAME
from lpm_jax import pretrained
from lpm_jax.base.video import sound_window
from lpm_jax.config import Config, VAEConfig
from lpm_jax.errors import InputError
from lpm_jax.models import conditions, vae
from lpm_jax.models.audio import FFT, log_mel
from lpm_jax.models.text import reader, tokenize
from lpm_jax.models.vae import toy

STEMS = ("text", "audio")  # of the frozen encoders' files, beside the VAE
GROUPS = 4  # latent frames that Wan's VAE encodes at a time


class Encoders(NamedTuple):
    """Functions of one clip's parts, and the encoded empty prompt where prompts are encoded."""

    video: Callable[[UInt8[np.ndarray, "b frames h w 3"]], Float[np.ndarray, "b latents hz wz c"]]
    sound: Callable[[Float[np.ndarray, " samples"]], Float[np.ndarray, "tokens features"]]
    words: Callable[[str], Shaped[np.ndarray, "words *width"]]
    empty: Float[np.ndarray, "words width"] | None = None


def is_large(config: Config) -> bool:
    """Whether a model reads frozen encoders.

    Raises:
      InputError: it reads some, and others are the toy's.
    """
    kinds = {config.text.umt5 is not None, config.audio.wav2vec is not None, not isinstance(config.vae, VAEConfig)}
    if len(kinds) > 1:
        raise InputError("vae, text, audio: expected the toy's encoders or Wan's VAE, umT5 and wav2vec 2.0, found both")
    return kinds.pop()


def small(config: Config, video: Callable[[np.ndarray], np.ndarray]) -> Encoders:
    """Log-mel, whose token of a frame looks back only, and ids; ``video`` makes latents."""

    def sound(samples: Float[np.ndarray, " samples"]) -> Float[np.ndarray, "tokens features"]:
        return log_mel(config.audio, np.pad(samples, (FFT, 0)), np).astype(np.float16)

    return Encoders(video, sound, lambda prompt: tokenize(config.text, prompt))


def of_toy(config: Config, weights: dict) -> Encoders:
    """With the autoencoder ``weights``, its networks in half precision: they only correct the linear code, and this
    pass takes minutes."""
    encoder = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), weights["encoder"])
    encode = jax.jit(lambda weights, video: toy.encode(config.vae, weights, toy.to_unit(video))[0])
    weights = weights | {"encoder": encoder}

    def whole(video: np.ndarray) -> np.ndarray:
        return np.asarray(encode(weights, video))

    return small(config, lambda video: whole(video) if video.shape[1] > 1 else by_sixteen(whole, video))


def by_sixteen(
    encode: Callable[[np.ndarray], np.ndarray], pictures: Num[np.ndarray, "n *rest"]
) -> Num[np.ndarray, "n *out"]:
    """``encode`` of ``pictures``, however many: always sixteen at a time, so that it is compiled once."""
    blank = np.zeros((-len(pictures) % 16, *pictures.shape[1:]), pictures.dtype)
    parts = np.split(np.concatenate([pictures, blank]), (len(pictures) + len(blank)) // 16)
    return np.concatenate([encode(part) for part in parts])[: len(pictures)]


def folder(config: Config) -> Path:
    """The folder of ``train.encoders``.

    Raises:
      InputError: it is not given, or its encoders are not of the kind that the config reads.
    """
    if not config.train.encoders:
        raise InputError(
            "--train.encoders: expected the folder of a converted model, whose encoders are read, found none"
        )
    found = pretrained.locate(config.train.encoders)
    theirs = pretrained.read_config(found)
    for name, ours, other in (
        ("vae", config.vae, theirs.vae),
        ("text.umt5", config.text.umt5, theirs.text.umt5),
        ("audio.wav2vec", config.audio.wav2vec, theirs.audio.wav2vec),
    ):
        if ours != other:
            raise InputError(f"--train.encoders {found}: expected {name} as in the config, found another")
    if not (found / "tokenizer.json").is_file():
        raise InputError(f"--train.encoders {found}: expected umT5's tokenizer.json, found none")
    return found


def files_digest(directory: Path) -> str:
    """Of the frozen encoders' files and the tokenizer."""
    names = [path for stem in STEMS for path in sorted(directory.glob(f"{stem}-*.safetensors"))]
    parts = []
    for path in [*names, directory / "tokenizer.json"]:
        with path.open("rb") as file:
            parts.append((path.name, hashlib.file_digest(file, "sha256").hexdigest()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def of_large(config: Config, weights: dict) -> Encoders:
    """With the VAE ``weights`` and the other encoders of ``train.encoders``, in their files' dtype, on the first
    device.

    Raises:
      InputError: a clip is not as large as the model's pictures.
    """
    directory = folder(config)
    params = pretrained.load(directory, only=STEMS)[1]
    read = reader(config.text, directory)
    features, history = conditions.audio_features(config.audio), conditions.history_tokens(config.audio)
    first = jax.jit(lambda weights, x: vae.encode(config.vae, weights, vae.to_unit(x)))
    further = jax.jit(lambda weights, x, state: vae.encode(config.vae, weights, vae.to_unit(x), state))
    hear = jax.jit(lambda params, samples: features(params, samples))
    tell = jax.jit(lambda params, ids: conditions.encode_text(config, params, ids)[0])
    weights = jax.tree.map(jnp.asarray, weights)
    told: dict[str, np.ndarray] = {}

    def one(video: np.ndarray) -> np.ndarray:
        latents, state = first(weights, video[:, :1])
        parts, step = [np.asarray(latents)], GROUPS * config.vae.group
        for at in range(1, video.shape[1], step):
            latents, state = further(weights, video[:, at : at + step], state)
            parts.append(np.asarray(latents))
        return np.concatenate(parts, axis=1)

    def video(frames: np.ndarray) -> np.ndarray:
        if frames.shape[2:4] != config.pixels:
            wanted, found = (f"{h} x {w}" for h, w in (config.pixels, frames.shape[2:4]))
            raise InputError(
                f"--data {config.data}: expected clips of {wanted} pixels, found {found} (--size and --width make the "
                "model's another)"
            )
        return np.concatenate([one(frames[i : i + 1]) for i in range(len(frames))])

    def sound(samples: np.ndarray) -> np.ndarray:
        """The history's tokens, of the silence before the clip, and the clip's."""
        count = len(samples) // SAMPLES_PER_FRAME
        end = count + -(history + count) % 3  # whole samples at 16 kHz
        window = sound_window(samples, -history * SAMPLES_PER_FRAME - features.history, end * SAMPLES_PER_FRAME)
        return np.asarray(hear(params["audio"], window)[0, : history + count], np.float16)

    def words(prompt: str) -> np.ndarray:
        if prompt not in told:
            told[prompt] = np.asarray(tell(params, read(prompt)[None])[0], np.float16)
        return told[prompt]

    return Encoders(video, sound, words, words(""))
