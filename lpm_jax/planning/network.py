"""Where devices stand in a pod, and how long a collective takes there at least.

A TPU slice is a torus (or, below a pod's or cube's size, a grid) of chips; GPUs stand in nodes of eight on a switch;
slices and nodes are joined by a slower network. A device's place is ``(slice or node, x, y, z, core)``. Times follow
"How to Scale Your Model" (https://jax-ml.github.io/scaling-book/sharding), without latencies:

    all-gather, reduce-scatter   V (n - 1) / n / W      V bytes of the whole array, W of all links that the group spans,
                                                        both directions where a dimension is a ring
    all-reduce                   twice that
    all-to-all                   e V / 4 / W            over the largest dimension, e devices long (half of them must
                                                        send half of V across its middle)
    permute                      V / W                  one hop
    across slices or nodes       V (s - 1) / s / (l N)  s slices with l members of the group each, N their network
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Int

from lpm_jax.planning.chips import Chip
from lpm_jax.planning.hlo import Collective

DIMS = ("network", "x", "y", "z", "core")


@dataclasses.dataclass(frozen=True)
class Pod:
    """A mesh on its chips: ``places[i]`` is where the mesh's ``i``-th device, in flattened order, stands."""

    chip: Chip
    mesh: dict[str, int]  # axis to size, in order
    sizes: tuple[int, ...]  # of the torus, (x, y, z)
    places: Int[np.ndarray, "devices 5"]

    def spans(self, axes: tuple[str, ...]) -> list[int]:
        """Devices along each of :data:`DIMS` of a group over the mesh axes ``axes``."""
        index = np.arange(len(self.places)).reshape(tuple(self.mesh.values()))
        group = index[tuple(slice(None) if name in axes else 0 for name in self.mesh)].reshape(-1)
        return [len(set(self.places[group, i])) for i in range(len(DIMS))]

    def links(self, dim: int, extent: int) -> float:
        """Bytes a second, in one direction, out of a device along one torus dimension that a group spans."""
        chip = self.chip
        if DIMS[dim] == "core":
            return chip.core_link
        size = self.sizes[dim - 1]
        ring = extent == size and chip.wraps_at(size, self.sizes)
        return chip.link / chip.cores * (2 if ring else 1)

    def time(self, collective: Collective) -> tuple[float, tuple[str, ...]]:
        """Seconds of one run of ``collective``, and the links it keeps busy meanwhile."""
        spans = self.spans(collective.axes)
        kind, size, n = collective.kind, float(collective.bytes), collective.devices
        times, used = [], []
        if spans[0] > 1:
            times.append(self._across(kind, size, spans[0], n))
            used.append("network")
        inside = n // spans[0]
        if inside > 1 and not (kind == "collective-permute" and spans[0] > 1):
            if self.chip.platform == "gpu":
                times.append(_switched(kind, size, inside, self.chip.link))
                used.append("nvlink")
            else:
                dims = [(i, extent) for i, extent in enumerate(spans) if i and extent > 1]
                times.append(self._torus(kind, size, inside, dims))
                used += [DIMS[i] for i, _ in dims]
        return (max(times), tuple(used)) if times else (0.0, ())

    def _across(self, kind: str, size: float, slices: int, n: int) -> float:
        network, local = self.chip.network, n // slices
        if kind == "collective-permute":
            return size / network
        if kind.endswith("all-to-all"):
            return size * (slices - 1) / slices / network
        return (2 if kind == "all-reduce" else 1) * size * (slices - 1) / slices / (local * network)

    def _torus(self, kind: str, size: float, n: int, dims: list[tuple[int, int]]) -> float:
        widths = [self.links(i, extent) for i, extent in dims]
        if kind == "collective-permute":
            return size / max(
                self.chip.link / self.chip.cores, *(w for (i, _), w in zip(dims, widths) if DIMS[i] == "core"), 0
            )
        if kind.endswith("all-to-all"):
            return max(extent * size / 4 / width for (_, extent), width in zip(dims, widths, strict=True))
        return (2 if kind == "all-reduce" else 1) * size * (n - 1) / n / sum(widths)


def _switched(kind: str, size: float, n: int, link: float) -> float:
    if kind == "collective-permute":
        return size / link
    return (2 if kind == "all-reduce" else 1) * size * (n - 1) / n / link


def places(chip: Chip, sizes: tuple[int, ...], slices: int = 1) -> Int[np.ndarray, "devices 5"]:
    """Where the devices of ``slices`` slices of these sizes stand, in JAX's order of ids: cores, then x, then y.

    GPUs: ``sizes`` is their number, cut into nodes.
    """
    if chip.platform == "gpu":
        ids = np.arange(math.prod(sizes) * slices)
        found = np.zeros((len(ids), 5), int)
        found[:, 0], found[:, 1] = ids // chip.domain, ids % chip.domain
        return found
    x, y, z = (*sizes, 1, 1)[:3]
    shape = (slices, z, y, x, chip.cores)
    at = np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=1)
    return at[:, [0, 3, 2, 1, 4]]
