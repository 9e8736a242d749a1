"""Figures of the chips that the planner knows, per device as JAX sees it.

A TPU chip is one device, but for TPU7x, whose two cores are a device each with half the chip's memory and compute.

=======  ==================================================================================================
source   what it gives
=======  ==================================================================================================
[v5e]    https://docs.cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB, 819 GB/s, ICI 400 GB/s in both
         directions over 4 ports, 2D torus; 2 x 100 Gbit/s network cards for 8 chips
[v5p]    https://docs.cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GiB of 96 usable, 2765 GB/s, ICI 1200 GB/s in
         both directions, 3D torus (6 ports), data center network 50 Gbit/s
[v6e]    https://docs.cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB, 1638 GB/s, ICI 800 GB/s in both directions
         over 4 ports, 2D torus; network 100 Gbit/s ([7x]'s table)
[7x]     https://docs.cloud.google.com/tpu/docs/tpu7x, per chip: 2307 TFLOP/s, 192 GiB, 7380 GB/s, ICI 1200 GB/s in
         both directions, 3D torus, network 100 Gbit/s; the cores' own link is six times an ICI link
[book]   "How to Scale Your Model", https://jax-ml.github.io/scaling-book/tpus: where a torus wraps around (v5e and
         v6e: dimensions of 16; v5p: slices of whole 4 x 4 x 4 cubes). It gives 45 and 90 GB/s a link, a tenth less
         than Google's tables; https://jax-ml.github.io/scaling-book/gpus: NVLink 450 and 900 GB/s in one direction,
         InfiniBand 400 GB/s for a node of 8
[H100]   https://www.nvidia.com/en-us/data-center/h100: SXM, 1979 TFLOP/s with sparsity (989.5 dense), 80 GB, 3.35 TB/s
[H200]   https://www.nvidia.com/en-us/data-center/h200: the same compute, 141 GB, 4.8 TB/s
[B200]   https://www.nvidia.com/en-us/data-center/dgx-b200: 8 GPUs, 72 PFLOP/s FP8 with sparsity (2250 TFLOP/s dense
         bfloat16 each), 1440 GB, 64 TB/s, NVLink 14.4 TB/s
=======  ==================================================================================================

Usable memory of TPUs is what libtpu's compiler states (0.0.42: 15.75, 95.74, 31.25 and, per core, 94.75 GiB); of GPUs
what the driver reports (79.6, 140.4 and 178.4 GiB) less 3 GiB for CUDA, NCCL and libraries' workspaces [ours].
"""

from __future__ import annotations

import dataclasses

from lpm_jax.errors import InputError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device. Bandwidths are bytes a second in one direction."""

    name: str
    platform: str  # "tpu" or "gpu"
    flops: float  # dense bfloat16 products, operations a second
    hbm: float  # usable bytes
    bandwidth: float  # of HBM
    link: float  # of one ICI link, or of a GPU's NVLinks together
    network: float  # out of the fast domain: data center network or InfiniBand
    dims: int = 0  # of a TPU's torus
    domain: int = 0  # GPUs on one NVLink switch; TPUs: the whole slice
    cores: int = 1  # devices of a chip, which share its links
    core_link: float = 0.0  # between them
    full_wrap: int = 4  # a torus dimension wraps around at multiples of this; 16: only at the pod's own size

    def wraps(self, sizes: tuple[int, ...]) -> bool:
        """Whether a slice of these sizes can wrap around at all: v5p and 7x by whole cubes."""
        return self.full_wrap == 16 or all(size % self.full_wrap == 0 for size in sizes)

    def wraps_at(self, size: int, sizes: tuple[int, ...]) -> bool:
        """Whether the dimension of this size is a ring."""
        return size % self.full_wrap == 0 and self.wraps(sizes)

    def peak(self, dtype: str) -> float:
        """Operations a second with factors of this type: float32 as JAX multiplies it by default, which is in bfloat16
        on TPU and in TF32, half as fast, on GPU; 8-bit twice as fast (v5p: as fast in fp8)."""
        if dtype in ("f32", "f64"):
            return self.flops / (2 if self.platform == "gpu" else 1)
        return 2 * self.flops if dtype in ("s8", "u8") or dtype.startswith("f8") else self.flops


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "tpu", 197e12, 15.75 * GIB, 819e9, 50e9, 3.125e9, dims=2, full_wrap=16),
        Chip("v5p", "tpu", 459e12, 95.74 * GIB, 2765e9, 100e9, 6.25e9, dims=3),
        Chip("v6e", "tpu", 918e12, 31.25 * GIB, 1638e9, 100e9, 12.5e9, dims=2, full_wrap=16),
        Chip(
            "7x", "tpu", 2307e12 / 2, 94.75 * GIB, 7380e9 / 2, 100e9, 12.5e9 / 2,
            dims=3, cores=2, core_link=600e9,
        ),
        Chip("h100", "gpu", 989.5e12, 76.6 * GIB, 3350e9, 450e9, 50e9, domain=8),
        Chip("h200", "gpu", 989.5e12, 137.4 * GIB, 4800e9, 450e9, 50e9, domain=8),
        Chip("b200", "gpu", 2250e12, 175.4 * GIB, 8000e9, 900e9, 50e9, domain=8),
    )
}  # fmt: skip
ALIASES = {"tpu7x": "7x", "v7x": "7x", "v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e", "ironwood": "7x"}


def find(name: str) -> Chip:
    """The chip called ``name``.

    Raises:
      InputError: there is none.
    """
    chip = CHIPS.get(ALIASES.get(name.lower(), name.lower()))
    if chip is None:
        raise InputError(f"--topology: expected a chip of {', '.join(CHIPS)}, found {name!r}")
    return chip
