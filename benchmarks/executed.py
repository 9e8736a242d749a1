"""Operations that a traced program will execute: its matrix products and flash attention kernels, repeats included.

Read from the program itself (its jaxpr), so what rematerialisation computes again is what this program computes again,
not what its policy was meant to. XLA may still drop products whose results nobody reads.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

#: Products within a flash kernel, relative to forward's two: backward has the logits again and four more.
FLASH = {"dot_product_attention_fwd": ("flash_forward", 1.0), "dot_product_attention_bwd": ("flash_backward", 2.5)}


def operations(jaxpr: Any) -> Counter[str]:
    """``products``, ``flash_forward`` and ``flash_backward`` of a jaxpr, over all devices of its ``shard_map``s.

    The body of a ``while`` counts once, of a ``cond`` the dearest branch; a Pallas kernel's products count for each
    point of its grid.
    """
    found: Counter[str] = Counter()
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = eqn.primitive.name, eqn.params
        flash = next((kind for prefix, kind in FLASH.items() if name.startswith(prefix)), None)
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            inner = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            found["products"] += 2 * inner * math.prod(eqn.outvars[0].aval.shape)
        elif flash is not None:
            (b, rows, heads, dim), columns = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape[1]
            found[flash[0]] += int(flash[1] * 4 * b * rows * columns * heads * dim)
        elif name == "cond":
            found += max((operations(branch) for branch in params["branches"]), key=lambda count: count.total())
        else:
            times = params["length"] if name == "scan" else params["mesh"].size if name == "shard_map" else 1
            if name == "pallas_call":
                times = math.prod(size for size in params["grid_mapping"].grid if isinstance(size, int))
            for inner in inside(params):
                for kind, count in operations(inner).items():
                    found[kind] += times * count
    return found


def inside(params: dict) -> list[Any]:
    """The programs among an equation's parameters."""
    values = [x for value in params.values() for x in (value if isinstance(value, tuple | list) else (value,))]
    return [x for x in values if hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")]
