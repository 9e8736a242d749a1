"""Pods that are not here: names such as ``v5p:4x4x4``, ``2*v6e:16x16`` (two slices) and ``h100:64``, and their devices.

With libtpu (``pip install 'lpm-jax[tpu]'``) a TPU's own compiler runs, on any machine. Without, and for GPUs, programs
are compiled for as many simulated CPU devices: collectives and products are nearly the same, memory is not.
:func:`prepare` sets the environment that this needs, so it runs before anything imports JAX.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import warnings
from typing import Any

from lpm_jax.errors import InputError
from lpm_jax.planning import chips
from lpm_jax.planning.chips import Chip

LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any name that libtpu knows
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two planners at once
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """``slices`` slices of ``sizes`` chips. ``compiler`` is ``"tpu"``, or ``"cpu"`` for an estimate."""

    name: str
    chip: Chip
    sizes: tuple[int, ...]
    slices: int
    compiler: str

    @property
    def devices(self) -> int:
        return self.slices * math.prod(self.sizes) * self.chip.cores

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.sizes)


def parse(name: str, estimate: bool = False, chip: str = "") -> Topology:
    """The topology called ``name``; ``chip`` is whose figures ``cpu:8`` takes.

    Raises:
      InputError: the name is of another form, or the chip is unknown.
    """
    found = re.fullmatch(r"(?:(\d+)\*)?([\w-]+):(\d+(?:x\d+)*)", name.strip().lower())
    if found is None:
        raise InputError(f"--topology: expected CHIP:SIZES such as v5p:4x4x4, v6e:16x16 or h100:64, found {name!r}")
    slices, kind, sizes = int(found[1] or 1), found[2], tuple(int(n) for n in found[3].split("x"))
    if kind == "cpu":
        if not chip:
            raise InputError(
                f"--topology {name}: expected --chip ({', '.join(chips.CHIPS)}) too: whose figures to take"
            )
        kind, estimate = chip, True
    model = chips.find(kind)
    if 0 in sizes or not slices:
        raise InputError(f"--topology: expected sizes of at least 1, found {name!r}")
    if model.platform == "tpu" and found[2] != "cpu" and len(sizes) != model.dims:
        example = "x".join(["4"] * model.dims)
        raise InputError(f"--topology: expected {model.dims} sizes for {model.name}, such as {example}, found {name!r}")
    if model.platform == "gpu":
        sizes = (math.prod(sizes) * slices,)
        slices = 1
    libtpu = model.platform == "tpu" and importlib.util.find_spec("libtpu") is not None
    return Topology(name, model, sizes, slices, "tpu" if libtpu and not estimate else "cpu")


def prepare(topology: Topology) -> None:
    """Sets the environment for :func:`devices`. Before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if topology.compiler == "tpu":
        os.environ.update(LIBTPU)
    else:
        flag = f"--xla_force_host_platform_device_count={topology.devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def devices(topology: Topology) -> list[Any]:
    """Devices to compile for. Nothing can run on them, but for simulated ones.

    Raises:
      InputError: libtpu does not know this shape, or JAX was started with too few devices.
    """
    import jax

    if topology.compiler == "cpu":
        found = jax.devices("cpu")
        if len(found) < topology.devices:
            raise InputError(f"--topology {topology.name}: expected {topology.devices} devices, found {len(found)}")
        return found[: topology.devices]
    from jax.experimental import topologies

    sizes = "x".join(map(str, topology.sizes))
    kind = {"7x": "tpu7x"}.get(topology.chip.name, topology.chip.name)
    options = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(topologies.get_topology_desc(f"{kind}:{sizes}", platform="tpu", **options).devices)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--topology {topology.name}: expected a shape that libtpu knows, found: {reason}") from error


def pod(topology: Topology, mesh: Any) -> Any:
    """The :class:`~lpm_jax.planning.network.Pod` of a mesh of :func:`devices`."""
    import numpy as np

    from lpm_jax.planning.network import Pod, places

    order = list(mesh.devices.flat)
    if topology.compiler == "tpu":
        found = np.array([[getattr(d, "slice_index", 0) or 0, *d.coords, d.core_on_chip] for d in order])
    else:
        found = places(topology.chip, topology.sizes, topology.slices)[[d.id for d in order]]
    sizes = (*topology.sizes, 1, 1)[:3]
    return Pod(topology.chip, dict(mesh.shape), sizes, found)
