"""Tables of parameters: one declaration each, from which fresh values, abstract trees and import names all derive.

For networks whose weights come from elsewhere. A table maps a path such as ``"layers/q/kernel"`` to a
:class:`Parameter`; trees are nested dicts with one level per part of the path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array


class Parameter(NamedTuple):
    """A parameter's shape and first values, and what other libraries call it.

    ``keys`` are alternative names in a PyTorch state dict. A key with ``{i}`` stands for one tensor per layer, to be
    stacked along our leading axis. ``permutation`` turns one such tensor into ours: ``ours = theirs.transpose(it)``.
    """

    shape: tuple[int, ...]
    init: Callable
    keys: tuple[str, ...]
    permutation: tuple[int, ...]


Table = dict[str, Parameter]


def build(table: Table, leaf: Callable[[str, Parameter], Any]) -> dict:
    """The nested dict of ``leaf(path, parameter)``."""
    tree: dict = {}
    for path, parameter in table.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf(path, parameter)
    return tree


def init(table: Table, key: Array, dtype: Any = jnp.float32) -> dict:
    """Fresh parameters, each from its own key."""
    keys = dict(zip(table, jax.random.split(key, len(table)), strict=True))
    return build(table, lambda path, parameter: parameter.init(keys[path], parameter.shape, dtype))


def abstract(table: Table, dtype: Any = jnp.float32) -> dict:
    """Shapes and dtypes of :func:`init` without computing anything."""
    return build(table, lambda _, parameter: jax.ShapeDtypeStruct(parameter.shape, dtype))


def names(table: Table) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Our path to the alternative PyTorch keys and the permutation of a tensor found there."""
    return {path: (parameter.keys, parameter.permutation) for path, parameter in table.items()}
