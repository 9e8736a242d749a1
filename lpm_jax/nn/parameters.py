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

from lpm_jax.tensors import unflatten


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


def init(table: Table, key: Array, dtype: Any = jnp.float32) -> dict:
    """Fresh parameters, each from its own key."""
    keys = dict(zip(table, jax.random.split(key, len(table)), strict=True))
    return unflatten({path: p.init(keys[path], p.shape, dtype) for path, p in table.items()})


def abstract(table: Table, dtype: Any = jnp.float32) -> dict:
    """Shapes and dtypes of :func:`init` without computing anything."""
    return unflatten({path: jax.ShapeDtypeStruct(p.shape, dtype) for path, p in table.items()})


def names(table: Table) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Our path to the alternative PyTorch keys and the permutation of a tensor found there."""
    return {path: (parameter.keys, parameter.permutation) for path, parameter in table.items()}
