"""Operations of kernels that the compiler cannot see into, from their shapes.

Attention kernels work on ``[..., heads, n, dim]`` queries and ``[..., heads, m, dim]`` keys: two products forward
(``4 b h n m d`` operations), five backward (Dao et al., arXiv 2205.14135): splash computes the gradient of queries and
that of keys and values apart and repeats the first product, so three and four. A mask that skips blocks is not known
here: the dense number stands.
"""

from __future__ import annotations

import math
import re
from collections import Counter

from lpm_jax.planning.hlo import Count, Kernel

PRODUCTS = (  # (name, products of n x m x d)
    (r"dkv|dk_dv", 4),
    (r"mha_dq|_dq_", 3),
    (r"fmha.*[Bb]ackward|attention.*bwd", 5),
    (r"splash_m[hq]a|fmha|flash_attention|attention", 2),
)


def operations(kernel: Kernel) -> tuple[str, int] | None:
    """Type of the factors and operations of one call, or None where the kernel is not known."""
    name = f"{kernel.target} {kernel.label}"
    for pattern, products in PRODUCTS:
        if re.search(pattern, name):
            arrays = [s for s in kernel.operands if s.dtype in ("bf16", "f16", "f32") and len(s.dims) >= 3]
            wide = [s for s in arrays if s.dtype == arrays[0].dtype and len(s.dims) == len(arrays[0].dims)]
            if len(wide) < 3:
                return None
            queries, keys = wide[0], wide[1]
            pairs = math.prod(queries.dims[:-1]) * keys.dims[-2]
            return queries.dtype, 2 * products * pairs * queries.dims[-1]
    return None


def add(count: Count) -> dict[str, int]:
    """Adds what is known to ``count``; calls of each kernel that is not."""
    unknown: Counter[str] = Counter()
    for kernel, times in count.kernels.items():
        found = operations(kernel)
        if found is None:
            unknown[kernel.target] += times
        else:
            count.flops[found[0]] += times * found[1]
    return dict(unknown)
