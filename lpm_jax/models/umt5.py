"""The umT5 text encoder and its tokenizer, as Wan 2.1 uses them: 512 tokens, zeros beyond the text's end.

umT5 (Chung et al. 2023, arXiv 2304.09151) is T5 1.1 (Raffel et al. 2020, arXiv 1910.10683) whose every layer has its
own relative position bias:

    x <- x + W_o softmax(q k^T + bias[bucket(j - i)]) v       q, k, v of RMS(x); logits are not scaled
    x <- x + W_2 (gelu(W_0 y) * W_1 y)                        y = RMS(x); gelu by its tanh formula

and ``RMS`` once more at the end. Layers run in a ``lax.scan`` over stacked parameters. The computation is in the
parameters' dtype, with norms, logits and softmax in float32. ``tests/models/test_umt5.py`` holds it to transformers'
``UMT5EncoderModel``.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lpm_jax.config import UMT5Config
from lpm_jax.errors import InputError, one_line
from lpm_jax.models.dit import RMSNorm
from lpm_jax.nn import parameters
from lpm_jax.nn.parameters import Parameter

EOS, PAD = "</s>", "<pad>"


# ---- tokenizer


def clean(prompt: str) -> str:
    """HTML entities resolved (twice, as Wan does) and every run of white space one blank.

    Wan repairs broken encodings with ftfy before this; we leave them to the caller.
    """
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()


class Tokenizer:
    """Prompts to ids with a ``tokenizer.json``, ended by ``</s>`` and padded with ``<pad>``."""

    def __init__(self, path: str | Path, tokens: int = 512):
        """``path`` is the file or the directory that holds it; ``tokens`` the fixed length, its end mark included.

        Raises:
          InputError: the file is missing, is no tokenizer, or does not know ``</s>`` and ``<pad>``.
        """
        from tokenizers import Tokenizer as Library  # only those who read such files pay for its start

        path = Path(path)
        if path.is_dir():
            path = path / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"{path}: expected a tokenizer.json, found no file")
        try:
            self._library = Library.from_file(str(path))
        except Exception as error:  # the library raises nothing more specific
            raise InputError(f"{path}: expected a tokenizer.json, found {one_line(error, 100)}") from None
        self._library.no_truncation()
        self._library.no_padding()
        self.tokens = tokens
        marks = {mark: self._library.token_to_id(mark) for mark in (EOS, PAD)}
        for mark, number in marks.items():
            if number is None:
                raise InputError(f"{path}: expected a vocabulary with {mark}, found none")
        self.eos, self.pad = marks[EOS], marks[PAD]

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return self._library.get_vocab_size()

    def __call__(self, prompts: Sequence[str]) -> tuple[Int[np.ndarray, "b words"], Bool[np.ndarray, "b words"]]:
        """Ids of the cleaned prompts and which of them count: the text, cut where it is too long, and its end mark."""
        ids = np.full((len(prompts), self.tokens), self.pad, np.int32)
        mask = np.zeros(ids.shape, bool)
        for i, prompt in enumerate(prompts):
            text = self._library.encode(clean(prompt), add_special_tokens=False).ids
            text = [*text[: self.tokens - 1], self.eos]
            ids[i, : len(text)] = text
            mask[i, : len(text)] = True
        return ids, mask


# ---- parameters


def table(config: UMT5Config) -> parameters.Table:
    """Every parameter; ``layers`` are stacked. The second name of each is that of Wan's own ``models_t5_*`` files."""
    n, d, inner = config.layers, config.width, config.heads * config.head_dim
    ones, kernel = nn.initializers.ones, nn.initializers.lecun_normal(batch_axis=(0,))
    attention, ffn = "encoder.block.{i}.layer.0.SelfAttention.", "encoder.block.{i}.layer.1.DenseReluDense."
    normal = nn.initializers.normal

    def dense(a: int, b: int, *keys: str) -> Parameter:
        return Parameter((n, a, b), kernel, keys, (1, 0))

    return {
        "embedding": Parameter(
            (config.vocabulary, d),
            normal(1.0),
            ("shared.weight", "encoder.embed_tokens.weight", "token_embedding.weight"),
            (0, 1),
        ),
        "layers/norm_attention/gain": Parameter(
            (n, d), ones, ("encoder.block.{i}.layer.0.layer_norm.weight", "blocks.{i}.norm1.weight"), (0,)
        ),
        "layers/q/kernel": dense(d, inner, attention + "q.weight", "blocks.{i}.attn.q.weight"),
        "layers/k/kernel": dense(d, inner, attention + "k.weight", "blocks.{i}.attn.k.weight"),
        "layers/v/kernel": dense(d, inner, attention + "v.weight", "blocks.{i}.attn.v.weight"),
        "layers/o/kernel": dense(inner, d, attention + "o.weight", "blocks.{i}.attn.o.weight"),
        "layers/relative/bias": Parameter(
            (n, config.buckets, config.heads),
            normal(0.1),
            (attention + "relative_attention_bias.weight", "blocks.{i}.pos_embedding.embedding.weight"),
            (0, 1),
        ),
        "layers/norm_ffn/gain": Parameter(
            (n, d), ones, ("encoder.block.{i}.layer.1.layer_norm.weight", "blocks.{i}.norm2.weight"), (0,)
        ),
        "layers/gate/kernel": dense(d, config.ffn, ffn + "wi_0.weight", "blocks.{i}.ffn.gate.0.weight"),
        "layers/in/kernel": dense(d, config.ffn, ffn + "wi_1.weight", "blocks.{i}.ffn.fc1.weight"),
        "layers/out/kernel": dense(config.ffn, d, ffn + "wo.weight", "blocks.{i}.ffn.fc2.weight"),
        "norm/gain": Parameter((d,), ones, ("encoder.final_layer_norm.weight", "norm.weight"), (0,)),
    }


def init(config: UMT5Config, key: Array, dtype: Any = jnp.float32) -> dict:
    """Fresh parameters."""
    return parameters.init(table(config), key, dtype)


def abstract(config: UMT5Config, dtype: Any = jnp.float32) -> dict:
    """Shapes and dtypes of :func:`init`."""
    return parameters.abstract(table(config), dtype)


def names(config: UMT5Config) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Our path to its alternative PyTorch keys (``{i}``: one per layer) and the permutation of each tensor."""
    return parameters.names(table(config))


# ---- encoder


def relative_buckets(config: UMT5Config, n: int) -> Int[np.ndarray, "n n"]:
    """T5's bucket of every pair (query ``i``, key ``j``): half of them for keys that follow, half for the others.

    Of each half, the first half holds one distance each; the rest grow with the logarithm up to ``max_distance``.
    """
    distance = np.arange(n)[None] - np.arange(n)[:, None]
    half = config.buckets // 2
    exact = half // 2
    far = np.maximum(np.abs(distance), 1).astype(np.float32)
    grow = np.log(far / np.float32(exact)) / np.float32(np.log(config.max_distance / exact))
    far = np.minimum(exact + (grow * np.float32(half - exact)).astype(np.int32), half - 1)
    near = np.abs(distance)
    return (np.where(distance > 0, half, 0) + np.where(near < exact, near, far)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def encode(
    config: UMT5Config, params: dict, ids: Int[Array, "b words"], mask: Bool[Array, "b words"]
) -> Float[Array, "b words width"]:
    """Encoded words in the parameters' dtype, zero where ``mask`` is False; each prompt needs one True (its end mark).

    Padding changes nothing: no word reads what ``mask`` excludes.
    """
    b, n = ids.shape
    norm = RMSNorm(config.eps)
    buckets = relative_buckets(config, n)

    def layer(x: Array, w: dict) -> tuple[Array, None]:
        y = norm.apply({"params": w["norm_attention"]}, x)
        q, k, v = ((y @ w[name]["kernel"]).reshape(b, n, config.heads, config.head_dim) for name in "qkv")
        bias = jnp.moveaxis(w["relative"]["bias"].astype(jnp.float32)[buckets], -1, 0)[None]
        y = jax.nn.dot_product_attention(q, k, v, bias, mask[:, None, None], scale=1.0, implementation="xla")
        x = x + y.reshape(b, n, -1) @ w["o"]["kernel"]
        y = norm.apply({"params": w["norm_ffn"]}, x)
        y = nn.gelu(y @ w["gate"]["kernel"], approximate=True) * (y @ w["in"]["kernel"])
        return x + y @ w["out"]["kernel"], None

    x, _ = jax.lax.scan(layer, params["embedding"][ids], params["layers"])
    x = norm.apply({"params": params["norm"]}, x)
    return jnp.where(mask[..., None], x, 0)
