"""Weights and the rolling cache in 8 bits, for memory: stored small, computed in the dtype of everything else.

A :class:`qwix.QArray` (Qwix, Google's quantisation library for JAX) is an array of small numbers with a scale for each
output channel of a weight, or for each token and head of the cache. It is turned back where it is read, inside the scan
over blocks, so that only one pair of blocks is ever there in full; on TPU and GPU the product reads the small numbers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import qwix
from jaxtyping import Array

KINDS = {"int8": jnp.int8, "float8": jnp.float8_e4m3fn}


def small(x: Any) -> bool:
    return isinstance(x, qwix.QArray)


def restored(tree: Any) -> Any:
    """``tree`` with every quantised array in the dtype that it had."""
    return jax.tree.map(lambda x: qwix.dequantize(x) if small(x) else x, tree, is_leaf=small)


def quantized_weights(tree: Any, kind: str) -> Any:
    """``tree`` with its kernels ``[..., in, out]`` in 8 bits, a scale for each output (and each layer of a stack).
    Biases, gains and modulations stay: they are small, and what they shift is not."""

    def leaf(path: tuple, x: Array) -> Any:
        if getattr(path[-1], "key", None) != "kernel":
            return x
        whole = [axis for axis in range(x.ndim) if axis != x.ndim - 2]
        return qwix.quantize(x, KINDS[kind], channelwise_axes=whole)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def quantized_rows(x: Array, kind: str) -> qwix.QArray:
    """``[..., dim]`` in 8 bits, a scale for each row."""
    return qwix.quantize(x, KINDS[kind], channelwise_axes=range(x.ndim - 1))


def stored_like(old: Any, x: Array) -> Any:
    """``x`` as ``old`` is stored: quantised by rows, or cast."""
    if not small(old):
        return x.astype(old.dtype)
    kind = next(name for name, dtype in KINDS.items() if dtype == old.qtype)
    return quantized_rows(x.astype(old.dtype), kind)
