"""The toy's text encoder: hashed words, embeddings with positions and one mixing layer, trained with the model.

The large models read umT5 (``models/umt5.py``). :func:`reader` makes ids for either.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lpm_jax.config import TextConfig
from lpm_jax.errors import InputError
from lpm_jax.models.umt5 import Tokenizer

START = 1  # stands first in every prompt, the empty one included; 0 is padding


def tokenize(config: TextConfig, prompt: str) -> Int[np.ndarray, " words"]:
    """Lower-case words as stable hashes in ``2 .. vocabulary``, cut to ``config.tokens`` and padded with 0."""
    words = re.findall(r"[\w']+", prompt.lower())[: config.tokens - 1]
    ids = [START] + [2 + zlib.crc32(word.encode()) % (config.vocabulary - 2) for word in words]
    return np.array(ids + [0] * (config.tokens - len(ids)), np.int32)


def reader(config: TextConfig, directory: Path | None = None) -> Callable[[str], Int[np.ndarray, " words"]]:
    """What makes ids of a prompt. umT5's needs the ``tokenizer.json`` in ``directory``, and pads with -1.

    Raises:
      InputError: there is no tokenizer.
    """
    if config.umt5 is None:
        return partial(tokenize, config)
    if directory is None:
        raise InputError("tokenizer: expected the folder of a tokenizer.json for umT5, found none")
    tokenizer = Tokenizer(directory, config.umt5.tokens)

    def read(prompt: str) -> np.ndarray:
        ids, mask = tokenizer([prompt])
        return np.where(mask, ids, -1)[0]

    return read


class TextEncoder(nn.Module):
    config: TextConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "b words"]) -> tuple[Float[Array, "b words width"], Bool[Array, "b words"]]:
        """Encoded words and the mask of those that count."""
        cfg = self.config
        table = self.param("table", nn.initializers.normal(0.5), (cfg.vocabulary, cfg.width))
        place = self.param("place", nn.initializers.normal(0.1), (cfg.tokens, cfg.width))
        mask = ids > 0
        x = table[ids] + place
        # One causal mixing step: a word knows the two before it ("looks *left*", "smiles *slightly*").
        before = [jnp.pad(x, ((0, 0), (k, 0), (0, 0)))[:, : x.shape[1]] for k in (1, 2)]
        y = nn.Dense(cfg.width, name="mix")(jnp.concatenate([x, *before], axis=-1))
        return x + nn.gelu(y), mask
