"""The rolling cache: pinned references, a sink that never leaves and a window that slides.

    slots:  [ references | sink chunks | window chunks (a ring) ]

Keys are stored before RoPE. When chunk ``n`` reads, it stands at ``min(n, sink + window)`` chunks on the time axis, the
sink at 0, 1, ..., and a window chunk of age ``a`` (chunks ago) ``a`` chunks before the current one: the same few
positions on the first minute and after a day. All shapes are static; only the counter ``n`` is traced.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lpm_jax.config import DiTConfig, StreamConfig
from lpm_jax.models.dit import Cache
from lpm_jax.nn.quantized import quantized_rows


def slots(config: StreamConfig, references: int) -> int:
    """Latent-frame slots of the cache."""
    return references + (config.sink + config.window) * config.chunk


def empty(
    config: StreamConfig, model: DiTConfig, references: int, batch: int, tokens: int, dtype, shelves: int = 1
) -> Cache:
    """A zeroed cache of ``shelves`` histories, ``[shelves * pairs, 2, b, slots, tokens, heads, dim]``, which is read as
    ``dtype``."""
    shape = (shelves * model.depth // 2, 2, batch, slots(config, references), tokens, model.heads, model.head_dim)
    zeros = [jnp.zeros(shape, dtype) for _ in Cache._fields]
    return Cache(*(quantized_rows(x, config.cache) if config.cache else x for x in zeros))


def layout(
    config: StreamConfig, n: Int[Array, ""]
) -> tuple[Float[Array, " history"], Bool[Array, " history"], Float[Array, " chunk"], Int[Array, ""]]:
    """Where everything stands for chunk ``n``: times and validity of the history slots, the chunk's own times, and the
    history slot (in latent frames) that the chunk is written to."""
    sink, window, chunk = config.sink, config.window, config.chunk
    base = jnp.minimum(n, sink + window) * chunk
    sink_chunks = jnp.arange(sink)
    ring = jnp.arange(window)
    # The newest chunk before n that lives in ring slot j, as an age in 1..window.
    age = (n - sink - 1 - ring) % window + 1
    chunk_times = jnp.concatenate([sink_chunks * chunk, base - age * chunk])
    chunk_valid = jnp.concatenate([sink_chunks < n, n - age >= sink])
    offsets = jnp.arange(chunk)
    times = (chunk_times[:, None] + offsets).reshape(-1).astype(jnp.float32)
    valid = jnp.repeat(chunk_valid, chunk)
    write = jnp.where(n < sink, n, sink + (n - sink) % window) * chunk
    return times, valid, (base + offsets).astype(jnp.float32), write
