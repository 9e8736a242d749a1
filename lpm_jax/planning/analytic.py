"""Memory, products and collectives of a step from the config alone: what a sweep looks at before it compiles.

Counted per device, ``T`` tokens of ``D`` numbers (16 bits) in a layer, ``P`` the weights of a pair of blocks:

    stored      weights and average, moments of the optimiser, 32 bits each, cut as declared (exact)
    saved       what rematerialisation keeps of each block, in units of ``T D`` (SAVED), and each pair's input
    working     the pair at hand: WORKING x ``T D``, or its weights gathered and their gradients if these are more
    gradients   16 bits each, cut as the weights, and sums of 32 bits where microbatches are added up

    gather      P forward, P backward; scatter  P of gradients: over fsdp x ring x context
    tensor      all-reduces of ``T D``: 3.5 a block forward and recomputed, 4.75 backward (Shoeybi et al., 1909.08053)
    context     four all-to-alls of ``T D`` a block and pass, keys of the cache with them
    ring        keys and values once around a block and pass, twice backward

A pass is forward, recomputation or backward. WORKING, FORWARD and BACKWARD are fitted to what libtpu made of
``lpm_17b`` (docs/planning.md has the comparison), SAVED and RECOMPUTED are counted in ``models/dit.py``; nothing else
is fitted.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter

import jax

from lpm_jax import flops, sharding
from lpm_jax.config import Config, MeshConfig, TrainConfig
from lpm_jax.models import conditions
from lpm_jax.planning.hlo import Collective, Count
from lpm_jax.planning.memory import Memory
from lpm_jax.planning.programs import CHUNK, attention_flops, model_flops
from lpm_jax.planning.traffic import Traffic

#: Arrays of ``T D`` that stay of each block; of ``"dots"`` also the hidden units, ``ffn / D``.
SAVED = {"none": 24.0, "dots": 8.0, "names": 2.0, "offload": 0.0, "full": 0.0}
HOST = {"offload": 2.0}
#: Share of the forward pass that is computed again.
RECOMPUTED = {"none": 0.0, "dots": 0.5, "names": 0.6, "offload": 0.6, "full": 1.0}
WORKING = 85.0  # arrays of ``T D`` while a pair of blocks is differentiated
FORWARD, BACKWARD = 140.0, 1070.0  # arrays of ``T D`` read and written by a pair of blocks in one pass
RING = 12.0  # bytes of a logit's way to memory and back, in a pass of ring attention: XLA's, not a kernel's
KERNEL = 1.5  # forward passes of self-attention that a flash kernel's gradient computes again
MOMENTS = {"adamw": 2, "muon": 1}


@dataclasses.dataclass(frozen=True)
class Shares:
    """Sizes that all counts are made of, of one device."""

    tokens: float  # in a layer, of one microbatch
    width: int
    pair: float  # weights of a pair of blocks, cut over tensor only
    pairs: int
    stored: float  # all weights, cut as declared

    @property
    def layer(self) -> float:
        """Bytes of ``T D`` in 16 bits."""
        return 2 * self.tokens * self.width


@functools.lru_cache(maxsize=4)
def _weights(config: Config) -> list[tuple[tuple[int, ...], tuple[str | None, ...]]]:
    """Shapes and declared axes of all weights."""
    axes = conditions.axes(config)
    found = jax.tree_util.tree_leaves_with_path(conditions.abstract(config))
    return [(leaf.shape, sharding.axes_of(axes, path, len(leaf.shape))) for path, leaf in found]


def _stored(config: Config, sizes: dict[str, int], gathered: bool) -> float:
    """Numbers of all weights on one device; ``gathered``: cut over heads and hidden units only."""
    total = 0.0
    for shape, names in _weights(dataclasses.replace(config, train=TrainConfig(), mesh=MeshConfig())):
        if gathered:
            names = tuple(None if name in sharding.STORED else name for name in names)
        spec = sharding.spec(names, shape, sizes)
        cut = [a for part in spec if part for a in ((part,) if isinstance(part, str) else part)]
        total += math.prod(shape) / math.prod(sizes[a] for a in cut)
    return total


def shares(config: Config, stage: str, sizes: dict[str, int]) -> Shares:
    patches = math.prod(config.grid) / (sizes["ring"] * sizes["context"])
    if stage == CHUNK:
        tokens = config.stream.chunk * patches
    else:
        train = config.train
        clips = train.batch / train.accumulate / (sizes["replica"] * sizes["fsdp"])
        tokens = clips * (train.latents + (3 if train.extra_references else 2)) * patches
    counted = flops.parameters(config.dit)
    pair = 2 * sum(counted[name] for name in ("attention", "ffn", "text", "audio")) / config.dit.depth
    stored = _stored(config, sizes, gathered=stage == CHUNK)
    return Shares(tokens, config.dit.width, pair / sizes["tensor"], config.dit.depth // 2, stored)


def memory(config: Config, stage: str, sizes: dict[str, int], limit: int | float) -> Memory:
    """What a step needs on one device of a mesh of these ``sizes``."""
    share = shares(config, stage, sizes)
    if stage == CHUNK:
        stream = config.stream
        slots = 2 + stream.references + (stream.sink + stream.window) * stream.chunk
        per_frame = 2 * math.prod(config.grid) * config.dit.width * config.dit.depth * 2
        cache = slots * per_frame / (sizes["ring"] * sizes["context"] * sizes["tensor"])
        keys = 2 * cache / config.dit.depth  # a block's, before and after they are turned and exchanged
        temporaries = cache * stream.chunk / slots + 3 * keys + 8 * share.layer
        given = {"weights": 2 * share.stored, "cache": cache}
        donated = cache
    else:
        train = config.train
        kept = SAVED[train.remat] + (config.dit.ffn / config.dit.width if train.remat == "dots" else 0)
        saved = (1 + 2 * kept) * share.layer * share.pairs
        working = max(WORKING * share.layer, 4 * share.pair)
        gradients = (2 if train.accumulate == 1 else 6) * share.stored
        temporaries = saved + working + gradients
        moments = MOMENTS.get(train.optimizer, 2)
        given = {"weights": 4 * share.stored, "average": 4 * share.stored, "optimiser": 4 * moments * share.stored}
        donated = sum(given.values())
    total = sum(given.values()) + temporaries
    whole = {name: round(value) for name, value in given.items()}
    return Memory(whole, round(temporaries), round(donated), 0, round(total), int(limit))


def instead(config: Config, stage: str, sizes: dict[str, int], compiled: Memory) -> Memory:
    """``compiled`` of simulated CPU devices with these estimates in place of what only that compiler allocates."""
    guess = memory(config, stage, sizes, compiled.limit)
    total = sum(compiled.arguments.values()) + guess.temporaries
    return compiled._replace(temporaries=guess.temporaries, code=0, total=total)


def corrected(compiled: Count, config: Config, stage: str, sizes: dict[str, int]) -> None:
    """Of a program for simulated CPU devices: traffic as estimated, for that compiler hardly fuses and knows no flash
    kernel; products in the model's type, which it widens."""
    compiled.traffic = count(config, stage, sizes).traffic
    if stage == CHUNK or config.train.dtype == "bfloat16":
        compiled.flops = Counter(bf16=compiled.all_flops)


def count(config: Config, stage: str, sizes: dict[str, int]) -> Count:
    """Products, traffic and collectives of a step on one device."""
    share = shares(config, stage, sizes)
    found = Count()
    needed = model_flops(config, stage) / math.prod(sizes.values())
    if stage == CHUNK:
        again, passes, micro = 0.0, len(config.stream.levels), 1
        found.flops["bf16"] = round(needed)
    else:
        again, passes, micro = RECOMPUTED[config.train.remat], 1, config.train.accumulate
        flash = KERNEL * attention_flops(config, stage) / math.prod(sizes.values())
        found.flops["bf16"] = round(needed * (3 + again) / 3 + flash)
    blocks = 2 * share.pairs

    def add(kind: str, axes: tuple[str, ...], size: float, times: int | float) -> None:
        axes = tuple(a for a in axes if sizes[a] > 1)
        if axes and times:
            n = math.prod(sizes[a] for a in axes)
            found.collectives[Collective(kind, axes, n, round(size), "bf16", f"{kind} {size}", "")] += round(times)

    stored = ("fsdp", "ring", "context")
    rounds = passes * micro
    if stage != CHUNK:
        add("all-gather", stored, 2 * share.pair, 2 * share.pairs * rounds)
        add("reduce-scatter", stored, 2 * share.pair, share.pairs * rounds)
        add("all-reduce", ("replica",), 4 * share.stored, 1)
    there_and_back = 1 + (0 if stage == CHUNK else 1 + (again > 0))
    summed = 3.5 * (there_and_back - (stage != CHUNK)) + (4.75 if stage != CHUNK else 0)
    add("all-reduce", ("tensor",), share.layer, summed * blocks * rounds)
    own = share.layer / sizes["tensor"]
    add("all-to-all", ("context",), own, 4 * blocks * there_and_back * rounds)
    if stage == CHUNK:
        slots = 2 + config.stream.references + (config.stream.sink + config.stream.window) * config.stream.chunk
        add("all-to-all", ("context",), own * slots / config.stream.chunk, 2 * blocks * rounds)
    around = there_and_back + (stage != CHUNK)
    add("collective-permute", ("ring",), own, 2 * blocks * sizes["ring"] * around * rounds)
    found.traffic = _traffic(config, stage, sizes, share, rounds, again)
    return found


def _traffic(config: Config, stage: str, sizes: dict[str, int], share: Shares, rounds: int, again: float) -> Traffic:
    """Weights and activations once a pass, the cache where there is one; the optimiser's numbers twice."""
    forward, backward = (1.0, 0) if stage == CHUNK else (1 + again, 1)
    moved = (forward + backward) * 2 * share.pair + (forward * FORWARD + backward * BACKWARD) * share.layer
    moved *= rounds * share.pairs
    if sizes["ring"] > 1:
        logits = attention_flops(config, stage) / (4 * config.dit.head_dim) / math.prod(sizes.values())
        moved += RING * logits * (forward + 2 * backward) * (rounds if stage == CHUNK else 1)
    if stage == CHUNK:
        return Traffic(round(moved + 2 * rounds * memory(config, stage, sizes, 0.0).arguments["cache"]))
    moments = 2 + MOMENTS.get(config.train.optimizer, 2)
    host = 2 * HOST.get(config.train.remat, 0.0) * share.layer * 2 * share.pairs * config.train.accumulate
    return Traffic(round(moved + 2 * 4 * moments * share.stored), round(host))
