"""Memory of one device: what its arguments are, by their place in the tree, and what the compiler needs besides.

weights, average, optimiser      of a training state
cache, stream                    of a streaming state: keys and values; everything else it carries
batch, sound                     what each step is given
temporaries                      activations, gathered weights, gradients, scratch: whatever the compiler allocates
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any, NamedTuple

import jax

from lpm_jax.planning.programs import Program

FIELDS = {"params": "weights", "ema": "average", "optimizer": "optimiser", "cache": "cache", "step": "optimiser"}
_SIZE = r"([\d.]+)\s*([KMGTP]?)i?B?"
_EXCEEDED = (  # libtpu's words, by version
    rf"temporaries\s*\({_SIZE}\) exceeds available HBM\s*\({_SIZE}\)",
    rf"CompileTimeHbmOom[^\d]*{_SIZE}\s*>\s*{_SIZE}",
    rf"[Uu]sed {_SIZE} of {_SIZE} hbm",
)


class Memory(NamedTuple):
    """Bytes. ``arguments`` are by kind; ``compiled`` is False where the program did not fit and only they are known."""

    arguments: dict[str, int]
    temporaries: int
    outputs: int  # that are no argument's buffer
    aliased: int
    code: int
    total: int
    limit: int
    compiled: bool = True

    @property
    def fits(self) -> bool:
        return self.total <= self.limit


def shard_bytes(x: Any) -> int:
    """Bytes of one device's part of an abstract array."""
    shape = x.sharding.shard_shape(x.shape) if getattr(x, "sharding", None) is not None else x.shape
    itemsize = 8 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
    return math.prod(shape) * itemsize


def arguments(program: Program) -> dict[str, int]:
    """Bytes of the arguments by kind."""
    found: Counter[str] = Counter()
    for label, argument in zip(program.labels, program.args, strict=True):
        for path, leaf in jax.tree_util.tree_leaves_with_path(argument):
            first = getattr(path[0], "name", None) if path else None
            found[FIELDS.get(first, label) or label] += shard_bytes(leaf)
    return dict(found)


def measured(program: Program, compiled: Any, limit: float) -> Memory:
    """What ``compiled.memory_analysis()`` says of a program that the compiler accepted."""
    stats = compiled.memory_analysis()
    given = arguments(program)
    unused = sum(given.values()) - stats.argument_size_in_bytes  # padding makes it smaller, unused arguments larger
    outputs = max(stats.output_size_in_bytes - stats.alias_size_in_bytes, 0)
    code = stats.generated_code_size_in_bytes
    total = stats.argument_size_in_bytes + outputs + stats.temp_size_in_bytes + code
    if unused < 0:
        given["padding"] = -unused
    return Memory(given, stats.temp_size_in_bytes, outputs, stats.alias_size_in_bytes, code, total, int(limit))


def exceeded(program: Program, error: BaseException, limit: float) -> Memory | None:
    """What the compiler said of a program that does not fit; None where the error is of another kind."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "HbmOom" not in text:
        return None
    total, allowed = int(limit) + 1, int(limit)
    for pattern in _EXCEEDED:
        found = re.search(pattern, text)
        if found:
            total, allowed = _bytes(found[1], found[2]), _bytes(found[3], found[4])
            break
    given = arguments(program)
    return Memory(given, max(total - sum(given.values()), 0), 0, 0, 0, total, allowed, compiled=False)


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * 1024 ** ("KMGTP".index(unit) + 1 if unit else 0))
