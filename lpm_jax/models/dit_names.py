"""What Wan 2.1 calls the transformer's parameters, in diffusers' layout and in its own.

``names`` is the only table: the converter derives from it what to read, what to write and what to expect. LPM keeps all
of Wan but the CLIP image cross-attention and the input channels of mask and condition image (SPEC section 2).
"""

from __future__ import annotations

import re
import zlib

import numpy as np
from jaxtyping import Float

from lpm_jax.config import DiTConfig
from lpm_jax.mapping import Names

#: Tensors that LPM has no use for: CLIP image cross-attention, and Wan's RoPE table where a file holds it.
DROPPED = re.compile(
    r"blocks\.\d+\.(attn2\.(add_[kv]_proj|norm_added_[kq])|cross_attn\.([kv]_img|norm_k_img))\."
    r"|condition_embedder\.image_embedder\.|img_emb\.|freqs$"
)
#: Paths of what Wan does not have: the audio branch, the gates and near latent of "clean" prediction, life and warp.
AUDIO = re.compile(r"blocks/(speak|listen)/(norm_)?audio_|head/(gate|warp)/|embed/(near|life)/")


def names(config: DiTConfig) -> dict[str, Names]:
    """Our path in the tree of ``dit.init`` to its :class:`Names`."""
    p, c, d = config.patch, config.channels, config.width
    out: dict[str, Names] = {}

    def dense(path: str, *keys: str) -> None:
        out[f"{path}/kernel"] = Names(tuple(f"{key}.weight" for key in keys), (1, 0))
        out[f"{path}/bias"] = Names(tuple(f"{key}.bias" for key in keys), (0,))

    def vector(path: str, *keys: str) -> None:
        out[path] = Names(keys, (0,))

    embedder = "condition_embedder."
    dense("embed/patch", "patch_embedding")
    out["embed/patch/kernel"] = Names(("patch_embedding.weight",), (2, 3, 4, 1, 0), (d, c, 1, p, p), cut=1)
    dense("embed/time_in", embedder + "time_embedder.linear_1", "time_embedding.0")
    dense("embed/time_out", embedder + "time_embedder.linear_2", "time_embedding.2")
    dense("embed/time_modulation", embedder + "time_proj", "time_projection.1")
    dense("embed/text_in", embedder + "text_embedder.linear_1", "text_embedding.0")
    dense("embed/text_out", embedder + "text_embedder.linear_2", "text_embedding.2")
    dense("head/projection", "proj_out", "head.head")
    if config.prediction == "clean":
        dense("head/gate", "gate_out")
        dense("embed/near", "near_embedding")
    if config.life:
        dense("embed/life", "life_embedding")
    if config.warp:
        dense("head/warp", "warp_out")
    out["head/modulation"] = Names(("scale_shift_table", "head.modulation"), (0, 1, 2), (1, 2, d))

    for kind, which in (("speak", "{even}"), ("listen", "{odd}")):
        ours, theirs = f"blocks/{kind}/", f"blocks.{which}."
        for letter in "qkv":
            dense(ours + letter, f"{theirs}attn1.to_{letter}", f"{theirs}self_attn.{letter}")
            dense(f"{ours}text_{letter}", f"{theirs}attn2.to_{letter}", f"{theirs}cross_attn.{letter}")
        dense(ours + "o", theirs + "attn1.to_out.0", theirs + "self_attn.o")
        dense(ours + "text_o", theirs + "attn2.to_out.0", theirs + "cross_attn.o")
        for letter in "qk":
            keys = (f"attn1.norm_{letter}.weight", f"self_attn.norm_{letter}.weight")
            vector(f"{ours}norm_{letter}/gain", *(theirs + key for key in keys))
            keys = (f"attn2.norm_{letter}.weight", f"cross_attn.norm_{letter}.weight")
            vector(f"{ours}norm_text_{letter}/gain", *(theirs + key for key in keys))
        # The norm before cross-attention is the second to act: diffusers counts it so, Wan calls it the third.
        vector(ours + "norm_cross/scale", theirs + "norm2.weight", theirs + "norm3.weight")
        vector(ours + "norm_cross/bias", theirs + "norm2.bias", theirs + "norm3.bias")
        dense(ours + "ffn_in", theirs + "ffn.net.0.proj", theirs + "ffn.0")
        dense(ours + "ffn_out", theirs + "ffn.net.2", theirs + "ffn.2")
        out[ours + "modulation"] = Names(
            (theirs + "scale_shift_table", theirs + "modulation"), (0, 1, 2), (1, 6, d)
        )  # fmt: skip
        # Not Wan's: the names under which we export the audio branch.
        for letter in "kvo":
            dense(f"{ours}audio_{letter}", f"{theirs}audio_attn.to_{letter}")
        vector(ours + "norm_audio_k/gain", theirs + "audio_attn.norm_k.weight")
    return out


def fresh(path: str, layer: int, shape: tuple[int, ...], seed: int = 0) -> Float[np.ndarray, "..."]:
    """First values of one layer of what Wan does not have, as ``dit.init`` spreads them: audio values, gates and biases
    zero, gains one, life small.

    The draw depends on seed, path and layer only, so that the same import always gives the same model.
    """
    if path.endswith("gain"):
        return np.ones(shape, np.float32)
    if path.endswith("bias") or any(name in path for name in ("audio_v", "gate", "near", "warp")):
        return np.zeros(shape, np.float32)
    limit = np.float32((6 / sum(shape)) ** 0.5)  # Xavier, uniform
    if "life" in path:
        limit = np.float32(0.05 * 3**0.5)
    value = np.random.default_rng([seed, zlib.crc32(path.encode()), layer]).random(shape, np.float32)
    value *= 2 * limit
    value -= limit
    return value
