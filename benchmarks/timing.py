"""Times of several things in one run, taken in turns, and the fastest matrix product among them.

Rounds go through everything that is compared, so that clocks, heat and other load hit all alike: shares of the peak and
ratios are taken within a round, and the median over rounds is told.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Run = Callable[[int], float]  # makes this many calls, waits for the last and returns the seconds of all
LEAST = 0.2  # seconds of a turn: short calls are repeated until it is as long


def waiting(call: Callable[[], Any]) -> Run:
    """``call``, which only enqueues, as a :data:`Run`."""

    def run(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            out = call()
        jax.block_until_ready(out)
        return time.perf_counter() - began

    return run


def in_turns(runs: dict[str, Run], rounds: int, least: float = LEAST) -> dict[str, list[float]]:
    """Seconds a call of each of ``runs``, one number a round, after a warm-up."""
    calls = {}
    for name, run in runs.items():
        run(1)  # compiles and tunes what is not yet
        calls[name] = min(max(1, math.ceil(least / max(run(1), 1e-6))), 1000)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(run(calls[name]) / calls[name])
    return seconds


class Products:
    """Square bfloat16 products of some sizes on one device; the largest rate among them is the measured peak.

    Factors are random: products of zeros run faster than any real ones, for the chip draws less power.
    """

    def __init__(self, sizes: Sequence[int]):
        self.sizes = tuple(sizes)
        self.product = jax.jit(jnp.matmul)
        keys = jax.random.split(jax.random.key(1), 2)
        self.factors = {n: [jax.random.normal(key, (n, n), jnp.bfloat16) for key in keys] for n in self.sizes}

    def runs(self) -> dict[str, Run]:
        """What :func:`in_turns` takes."""
        return {f"product {n}": waiting(lambda n=n: self.product(*self.factors[n])) for n in self.sizes}

    def peaks(self, seconds: dict[str, list[float]]) -> list[float]:
        """Operations a second of each round's fastest size."""
        rates = [[2 * n**3 / s for s in seconds[f"product {n}"]] for n in self.sizes]
        return [max(round_) for round_ in zip(*rates, strict=True)]


def share(flops: float, seconds: Sequence[float], peaks: Sequence[float]) -> float:
    """Model FLOPs utilisation: the median over rounds of ``flops`` a second as a share of the round's peak."""
    return statistics.median(flops / s / peak for s, peak in zip(seconds, peaks, strict=True))


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, extremes and number of rounds."""
    return {
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "rounds": len(seconds),
    }
