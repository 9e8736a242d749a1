"""Low-rank changes to a frozen network: ``W + A B``, with ``B = 0`` at first (Hu et al., arXiv 2106.09685).

    change = init(base, rank, key)            {"dit": {"blocks": ... {"kernel": {"a", "b"}}}}: the blocks' kernels only
    whole(base, change)                       the network that the change makes of ``base``

Three networks of a distillation are then one frozen copy and two small changes, whose gradients, averages and moments
are small as well.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lpm_jax.sharding import Axes

NETWORKS = ("dit", "refiner")


def init(base: dict, rank: int, key: Array) -> dict:
    """A change that changes nothing, of every kernel in the blocks of the transformers in ``base``."""

    def walk(tree: dict, key: Array) -> dict:
        found = {}
        for i, (name, leaf) in enumerate(sorted(tree.items())):
            own = jax.random.fold_in(key, i)
            if isinstance(leaf, dict):
                inner = walk(leaf, own)
                found |= {name: inner} if inner else {}
            elif name == "kernel":
                *stack, rows, columns = leaf.shape
                a = jax.random.normal(own, (*stack, rows, rank)) * rows**-0.5
                found[name] = {"a": a, "b": jnp.zeros((*stack, rank, columns))}
        return found

    names = [name for name in NETWORKS if name in base]
    return {name: {"blocks": walk(base[name]["blocks"], key)} for name in names}


def whole(base: dict | None, change: dict) -> dict:
    """``base`` with ``change``; without a base, or where ``change`` has weights instead of factors, its own."""
    if base is None or not _factors(change):
        return change

    def add(tree: Any, part: Any) -> Any:
        if not isinstance(tree, dict):
            return tree + (part["a"] @ part["b"]).astype(tree.dtype)
        return {name: add(leaf, part[name]) if name in part else leaf for name, leaf in tree.items()}

    return add(base, change)


def _factors(tree: Any) -> bool:
    if not isinstance(tree, dict):
        return False
    return set(tree) == {"a", "b"} or any(_factors(leaf) for leaf in tree.values())


def axes(declared: Any, change: Any) -> Any:
    """The logical axes of a change's factors: what they share with the kernel they change."""
    if isinstance(declared, Axes):
        rows, columns = declared.names
        return {"a": Axes((rows, None)), "b": Axes((None, columns))}
    if not isinstance(declared, dict):
        return {}
    return {name: axes(declared.get(name), leaf) for name, leaf in change.items() if isinstance(leaf, dict)}
