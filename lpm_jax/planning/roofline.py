"""The least time of a step, and what bounds it.

    compute    operations / peak        of matrix products
    memory     bytes / bandwidth        between instructions and HBM, as compiled
    host       bytes / 16 GB/s          of activations offloaded to the host (PCIe, one direction after the other)
    links      of every collective      network.py; collectives on the same link wait for each other

With perfect overlap the step takes as long as its busiest resource, without any the sum; the truth lies between. An
estimate knows nothing of latencies, of pipelines that stall, or of elementwise work.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

from lpm_jax.planning.hlo import Count
from lpm_jax.planning.network import Pod

PCIE = 16e9  # bytes a second: v4's figure in the scaling book; newer ones are faster


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds. ``axes`` is the communication by mesh axes, ``links`` by what it occupies."""

    compute: float
    memory: float
    host: float
    axes: dict[str, float]
    links: dict[str, float]

    @property
    def resources(self) -> dict[str, float]:
        """Seconds that each resource is busy."""
        named = {("network" if k == "network" else f"links {k}"): v for k, v in self.links.items()}
        return {"compute": self.compute, "memory": self.memory, "host": self.host} | named

    @property
    def communication(self) -> float:
        """All collectives, one after the other."""
        return sum(self.axes.values())

    @property
    def bound(self) -> str:
        """The busiest resource."""
        return max(self.resources, key=self.resources.__getitem__)

    @property
    def overlapped(self) -> float:
        """The step if everything happens at once."""
        return max(self.resources.values())

    @property
    def serial(self) -> float:
        """The step if nothing overlaps but a product's own reads and writes with it."""
        return max(self.compute, self.memory) + self.host + self.communication


def roofline(count: Count, pod: Pod) -> Roofline:
    """The roofline of a program on the pod whose mesh it was compiled for."""
    axes: Counter[str] = Counter()
    links: Counter[str] = Counter()
    for collective, times in count.collectives.items():
        seconds, used = pod.time(collective)
        axes[" x ".join(collective.axes)] += times * seconds
        for link in used:
            links[link] += times * seconds
    chip = pod.chip
    compute = sum(operations / chip.peak(dtype) for dtype, operations in count.flops.items())
    return Roofline(compute, count.traffic.hbm / chip.bandwidth, count.traffic.host / PCIE, dict(axes), dict(links))
