"""The evaluations of one chunk against a rolling cache: what streams and what training rolls out.

A network's *history* is what it leaves in the cache for later chunks:

* ``"last"``: one cache that all evaluations read and the last one writes. Its history is noisy, at the last level.
* ``"each"``: a cache for each evaluation, read and written by it: the paper's noisy history (SPEC section 4).
* ``"clean"``: one cache, written by one more pass over the result at level 0 (Self-Forcing, arXiv 2506.08009).

The first two need no pass but those that make the chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lpm_jax.config import Config
from lpm_jax.flow import add_noise, carried, clean_from_output, network_input
from lpm_jax.models import conditions, dit
from lpm_jax.models.warp import Warp
from lpm_jax.nn.attention import Visible
from lpm_jax.nn.rope import angles_3d
from lpm_jax.streaming import cache as rolling


@runtime_checkable
class Track(Protocol):
    """What one network carries from chunk to chunk: a NamedTuple with these fields among others."""

    cache: dit.Cache
    reference_times: Float[Array, "b refs"]
    reference_valid: Bool[Array, "b refs"]
    anchor: Float[Array, "b 1 tokens pc"]
    near: Float[Array, "b 1 tokens pc"]  # the last latent frame made, at first the picture's
    chunk: Int[Array, ""]  # index of the next chunk
    key: Array


class Way(NamedTuple):
    """How a network makes a chunk: the noise level of each evaluation and the history that it keeps."""

    levels: tuple[float, ...]
    history: str

    @property
    def shelves(self) -> int:
        """Histories in its cache."""
        return len(self.levels) if self.history == "each" else 1


class Made(NamedTuple):
    """What the evaluations of a chunk made of it, in float32."""

    estimates: list[Float[Array, "b chunk tokens pc"]]  # after each evaluation; the last is the result
    moves: Float[Array, "b chunk tokens values"] | None  # what the one at level 1 says has moved (models/warp.py)


def backbone_way(config: Config) -> Way:
    return Way(config.stream.levels, config.stream.history)


def refiner_way(config: Config) -> Way:
    return Way((config.stream.refine,), config.stream.refiner_history)


def pin(
    config: Config,
    network: dict,
    way: Way,
    patches: Float[Array, "b refs tokens pc"],
    times: Float[Array, "b refs"],
    valid: Bool[Array, "b refs"],
    silence: dit.Conditions,
) -> dit.Cache:
    """A cache that holds nothing but the references. ``network`` is a transformer's parameters."""
    cfg = config.dit
    b, refs, tokens, _ = patches.shape
    dtype = network["embed"]["patch"]["kernel"].dtype
    cache = rolling.empty(config.stream, cfg, refs, b, tokens, dtype, way.shelves)
    history = rolling.slots(config.stream, refs)
    # Nothing of the cache counts yet: its keys are masked out.
    full = Visible(None, jnp.concatenate([jnp.zeros((b, history), bool), valid], axis=1))
    own = angles_3d(times, *config.grid, cfg.head_dim)
    context = jnp.zeros((1, history * tokens, cfg.head_dim // 2))
    positions = dit.Positions(own, context, full)
    for shelf in range(way.shelves):
        _, cache = dit.forward(
            cfg, network, patches.astype(dtype), jnp.zeros((b, refs)), 0, silence, positions, cache, 0, shelf=shelf
        )
    return cache


def placed(config: Config, track: Track) -> tuple[dit.Positions, Int[Array, ""]]:
    """Where the next chunk, its history and its references stand and which count, and the cache's slot for it."""
    stream, cfg, grid = config.stream, config.dit, config.grid
    b, refs = track.reference_valid.shape
    times, valid, own_times, write = rolling.layout(stream, track.chunk)
    # The first frame stands just before the stream's beginning, so it is seen while that is on the axis.
    first = jnp.arange(refs) != conditions.FIRST_FRAME
    see = track.reference_valid & (first | (track.chunk <= stream.sink + stream.window))
    context_times = jnp.concatenate([track.reference_times, jnp.broadcast_to(times, (b, len(times)))], axis=1)
    context_valid = jnp.concatenate([see, jnp.broadcast_to(valid, (b, len(valid)))], axis=1)
    mask = Visible(None, jnp.concatenate([context_valid, jnp.ones((b, stream.chunk), bool)], axis=1))
    own, context = (angles_3d(at, *grid, cfg.head_dim) for at in (own_times[None], context_times))
    return dit.Positions(own, context, mask), refs + write


def evaluate(
    config: Config,
    network: dict,
    variance: Float[Array, " c"],
    track: Track,
    told: dit.Conditions,
    way: Way,
    draw: Array,
    coarse: Float[Array, "b chunk tokens pc"] | None = None,
    remat: str = "none",
    warp: Warp | None = None,
) -> tuple[Made, dit.Cache]:
    """What is made of the next chunk, and the cache with its history.

    The first evaluation starts from ``coarse``, where it is given, taken to its noise level; else from noise alone.
    Each later one starts from the estimate before it, re-noised, through which no gradient passes, and corrects it
    (``draft`` in flow.py). ``remat`` says what gradients keep (``nn/remat.py``). ``warp`` moves the anchor
    at level 1.
    """
    cfg, stream = config.dit, config.stream
    b, chunk = track.near.shape[0], stream.chunk
    positions, slot = placed(config, track)
    cache, dtype = track.cache, track.cache.k.dtype
    # float32: the network alone is in ``dtype``
    clean = jnp.zeros((b, chunk, *track.near.shape[2:])) if coarse is None else coarse
    near = jnp.broadcast_to(carried(track.near, track.anchor, stream.carry), clean.shape)
    known = (near - track.anchor).astype(dtype) if cfg.prediction == "clean" else None

    def run(
        noisy: Array, level: float, draft: Array | None, cache: dit.Cache, shelf: int, write: bool
    ) -> tuple[Array, Array | None, Any]:
        levels = jnp.full((b, chunk), level)
        shown = network_input(cfg.prediction, noisy, levels, track.anchor, variance)
        out, cache = dit.forward(
            cfg, network, shown.astype(dtype), levels, chunk, told, positions, cache, slot if write else None,
            implementation=stream.attention or None, remat=remat, near=known, shelf=shelf,
        )  # fmt: skip
        out = out.astype(jnp.float32)
        out, moves = dit.split_moves(cfg, out)
        moved = warp(moves) if warp and level == 1 else None
        return clean_from_output(cfg.prediction, out, shown, levels, track.anchor, near, draft, moved), moves, cache

    estimates, draft, says = [], coarse, None
    for i, level in enumerate(way.levels):
        noise = jax.random.normal(jax.random.fold_in(draw, i), clean.shape, clean.dtype)
        noisy = add_noise(jax.lax.stop_gradient(clean), noise, jnp.full((b, chunk), level))
        last = i == len(way.levels) - 1
        write = way.history == "each" or way.history == "last" and last
        clean, moves, cache = run(noisy, level, draft, cache, i if way.history == "each" else 0, write)
        draft = jax.lax.stop_gradient(clean)
        estimates.append(clean)
        says = moves if level == 1 else says
    if way.history == "clean":
        *_, cache = run(draft, 0.0, None, cache, 0, True)
    return Made(estimates, says), cache
