"""The public attention call, over tokens that stand in frames.

Backends, each for one device's part: ``"xla"`` (any platform, ``xla.py``), ``"cudnn"`` (NVIDIA flash attention,
``cudnn.py``) and ``"splash"`` (TPU, ``tpu.py``). On a mesh whose ``ring`` or ``context`` axis is larger than one,
``context_parallel.py`` brings the parts together.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from lpm_jax import sharding


class Visible(NamedTuple):
    """Which frames see which, in a form that flash kernels can use.

    ``order[i, j]`` says, for good, whether frames ``i`` of the queries may see frames ``j`` of the keys; None: all. It
    is a NumPy array, known when a program is traced. ``valid`` says which frames of the keys are there at all.
    """

    order: np.ndarray | None
    valid: Bool[Array, "b fk"] | None

    def dense(self) -> Bool[Array, "#b #fq fk"] | None:
        """The mask that both make."""
        if self.order is None:
            return None if self.valid is None else self.valid[:, None]
        order = jax.numpy.asarray(self.order)[None]
        return order if self.valid is None else order & self.valid[:, None]


Mask = Bool[Array, "#b #fq fk"] | Visible | None


def attention(
    q: Float[Array, "b fq n heads dim"],
    k: Float[Array, "b fk m heads dim"],
    v: Float[Array, "b fk m heads dim"],
    mask: Mask = None,
    implementation: str | None = None,
) -> Float[Array, "b fq n heads dim"]:
    """``softmax(q k^T / sqrt(dim)) v`` over all tokens of the key frames that a query's frame may see.

    A query that sees nothing gets some average of the values. On a mesh, keys with as many tokens a frame as the
    queries are laid out as these, those with one token a frame (text, sound) are whole on every device.

    Args:
      mask: which frames see which; :class:`Visible` where the backend is not XLA.
      implementation: ``"xla"``, ``"cudnn"``, ``"splash"``, or None for what suits the platform and the mask.
    """
    from lpm_jax.nn.attention import context_parallel

    name = implementation or choose(mask)
    if sharding.sizes():
        return context_parallel.attention(q, k, v, mask, name)
    return local(q, k, v, mask, name)


def choose(mask: Mask) -> str:
    """The platform's flash kernel where the mask allows it."""
    flash = {"gpu": "cudnn", "tpu": "splash"}.get(jax.default_backend(), "xla")
    return flash if isinstance(mask, Visible) else "xla"


def local(q: Array, k: Array, v: Array, mask: Mask, implementation: str) -> Array:
    """Attention of one device's part with the named backend."""
    if implementation == "xla":
        from lpm_jax.nn.attention import xla

        return xla.attention(q, k, v, mask.dense() if isinstance(mask, Visible) else mask)
    if not isinstance(mask, Visible):
        raise ValueError(
            f"attention {implementation!r}: expected a mask of frames (Visible), found {type(mask).__name__}"
        )
    from lpm_jax.nn.attention import flash

    return flash.attention(q, k, v, mask, implementation)
