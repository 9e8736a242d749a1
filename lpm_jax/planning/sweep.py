"""Meshes and remat policies of a pod, compared.

All ways to cut the devices over ``fsdp``, ``ring``, ``context`` and ``tensor`` (and slices over ``replica``), times the
policies of ``nn/remat.py``, are estimated (``analytic.py``); the few that promise most are compiled. Every candidate
that drops out is listed with its reason.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jax.sharding import AbstractMesh

from lpm_jax import sharding
from lpm_jax.config import Config, MeshConfig
from lpm_jax.errors import InputError
from lpm_jax.nn.remat import POLICIES
from lpm_jax.planning import analytic
from lpm_jax.planning.network import Pod, places
from lpm_jax.planning.programs import CHUNK
from lpm_jax.planning.report import Plan, columns, duration, size
from lpm_jax.planning.roofline import roofline
from lpm_jax.planning.topology import Topology

SLACK = 1.25  # an estimate may be this far above the limit and still be compiled


@dataclasses.dataclass
class Candidate:
    """A mesh and a policy; ``reason`` says why it is not compiled. Times are estimates, between overlap and none."""

    mesh: dict[str, int]
    remat: str
    memory: float = 0.0
    seconds: float = math.inf
    reason: str = ""
    plan: Plan | None = None

    @property
    def name(self) -> str:
        axes = ",".join(f"{k}={v}" for k, v in self.mesh.items() if v > 1) or "one device"
        return f"{axes} {self.remat}".strip()


def meshes(devices: int, replicas: int) -> Iterator[dict[str, int]]:
    """Ways to cut ``devices`` with this many replicas."""
    rest = devices // replicas
    divisors = [n for n in range(1, rest + 1) if rest % n == 0]
    for ring, context, tensor in itertools.product(divisors, repeat=3):
        if rest % (ring * context * tensor) == 0:
            sizes = (replicas, rest // (ring * context * tensor), ring, context, tensor)
            yield dict(zip(sharding.AXES, sizes, strict=True))


def middle(line: Any) -> float:
    """Seconds half-way between a step that overlaps everything and one that overlaps nothing."""
    return (line.overlapped + line.serial) / 2


def estimate(candidate: Candidate, config: Config, stage: str, where: Topology) -> None:
    """Fills in memory and time, or the reason why not."""
    sizes = candidate.mesh
    config = changed(candidate, config)
    batch = sizes["fsdp"] * sizes["replica"] if stage == CHUNK else config.train.batch // config.train.accumulate
    try:
        sharding.check(AbstractMesh(tuple(sizes.values()), tuple(sizes)), config.dit, batch, math.prod(config.grid))
    except InputError as error:
        candidate.reason = str(error)
        return
    if stage == CHUNK and sizes["fsdp"] * sizes["replica"] > 1:
        candidate.reason = "a stream is one clip: fsdp and replica do not cut it"
        return
    needs = analytic.memory(config, stage, sizes, where.chip.hbm)
    places_ = places(where.chip, where.sizes, where.slices)
    pod = Pod(where.chip, sizes, (*where.sizes, 1, 1)[:3], _neighbours(places_))
    candidate.memory = needs.total
    candidate.seconds = middle(roofline(analytic.count(config, stage, sizes), pod))
    if needs.total > SLACK * needs.limit:
        candidate.reason = f"does not fit: estimated {size(needs.total)}, has {size(needs.limit)}"


def _neighbours(found: np.ndarray) -> np.ndarray:
    """Places ordered so that the last mesh axes are the last torus dimensions, about as JAX lays meshes out."""
    return found[np.lexsort([found[:, 4], found[:, 3], found[:, 2], found[:, 1], found[:, 0]])]


def changed(candidate: Candidate, config: Config) -> Config:
    """``config`` with the candidate's mesh and policy."""
    train = dataclasses.replace(config.train, remat=candidate.remat or config.train.remat)
    return dataclasses.replace(config, mesh=MeshConfig(**candidate.mesh), train=train)


def candidates(config: Config, stage: str, where: Topology) -> list[Candidate]:
    """Every mesh and policy, estimated, the fastest first."""
    policies = [""] if stage == CHUNK else list(POLICIES)
    found = [Candidate(mesh, remat) for mesh in meshes(where.devices, where.slices) for remat in policies]
    for candidate in found:
        estimate(candidate, config, stage, where)
    return sorted(found, key=lambda c: (bool(c.reason), c.seconds, c.memory))


def sweep(
    config: Config, stage: str, where: Topology, compile: Callable[[Config], Plan], most: int = 3
) -> tuple[Candidate | None, list[Candidate]]:
    """The recommended candidate, or None where none fits, and all of them in order.

    ``compile`` turns a config into a plan. Candidates are compiled in the order of their estimates until ``most`` of
    them fit, and at most twice as many altogether.
    """
    found = candidates(config, stage, where)
    able = [c for c in found if not c.reason]
    fitting: list[Candidate] = []
    tried = 0
    for candidate in able:
        if len(fitting) == most or tried == 2 * most:
            candidate.reason = "estimated slower than those compiled"
            continue
        tried += 1
        try:
            candidate.plan = compile(changed(candidate, config))
        except InputError as error:
            candidate.reason = str(error)
            continue
        if not candidate.plan.memory.fits:
            needs = candidate.plan.memory
            candidate.reason = f"does not fit: needs {size(needs.total)}, has {size(needs.limit)}"
        else:
            fitting.append(candidate)
    best = min(fitting, key=lambda c: middle(c.plan.roofline), default=None)
    for candidate in fitting:
        if candidate is not best:
            candidate.reason = f"slower than {best.name}"
    return best, found


def table(best: Candidate | None, found: list[Candidate], most: int = 20) -> str:
    """Candidates as text: those compiled, then the next best with their reasons, then how many dropped out why."""
    shown = [c for c in found if c.plan] + [c for c in found if not c.plan and math.isfinite(c.seconds)]
    cells = [("mesh and remat", "estimate", "memory", "compiled", "memory", "verdict")]
    for c in shown[:most]:
        line = c.plan.roofline if c.plan else None
        cells.append(
            (
                c.name, duration(c.seconds), size(c.memory), duration(middle(line)) if line else "-",
                size(c.plan.memory.total) if c.plan else "-", "RECOMMENDED" if c is best else c.reason,
            )
        )  # fmt: skip
    lines = columns(cells, (0, 5))
    rest = shown[most:] + [c for c in found if not math.isfinite(c.seconds)]
    reasons: dict[str, int] = {}
    for c in rest:
        kind = c.reason.split(":")[0] if c.reason.startswith("does not fit") else c.reason
        reasons[kind] = reasons.get(kind, 0) + 1
    lines += [f"{n} more: {reason}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1])[:8]]
    if best is None:
        lines.append("nothing fits: use more or larger chips, a smaller batch, or --train.accumulate")
    else:
        mesh = ",".join(f"{k}={v}" for k, v in best.mesh.items() if v > 1)
        lines.append(f"recommended: --mesh {mesh or 'fsdp=1'}" + (f" --remat {best.remat}" if best.remat else ""))
    return "\n".join(lines)
