"""From a config to a :class:`~lpm_jax.planning.report.Plan`: lower, compile, count."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from lpm_jax import sharding
from lpm_jax.config import Config
from lpm_jax.planning import analytic, hlo, kernels, memory, programs, report, topology
from lpm_jax.planning.report import Plan
from lpm_jax.planning.roofline import roofline
from lpm_jax.planning.topology import Topology


def settings(config: Config, stage: str) -> dict[str, Any]:
    """What of the config decides the cost."""
    if stage == programs.CHUNK:
        stream = config.stream
        return {"chunk": stream.chunk, "sink": stream.sink, "window": stream.window, "attention": stream.attention}
    train = config.train
    names = ("batch", "latents", "accumulate", "remat", "dtype", "optimizer", "attention")
    return {name: getattr(train, name) for name in names}


def plan(config: Config, stage: str, where: Topology, devices: list[Any]) -> Plan:
    """Compiles the step of ``stage`` for ``devices`` and counts it. ``config`` is the stage's own.

    Raises:
      InputError: something does not divide over the mesh.
    """
    mesh = sharding.make_mesh(config.mesh, devices)
    program = programs.build(config, stage, mesh)
    limit = where.chip.hbm
    made = Plan(
        where, config.name, stage, dict(mesh.shape), settings(config, stage),
        memory.Memory({}, 0, 0, 0, 0, int(limit)), programs.model_flops(config, stage),
    )  # fmt: skip
    began = time.perf_counter()
    try:
        with sharding.on(mesh):
            compiled = program.fn.lower(*program.args).compile()
    except Exception as error:
        needed = memory.exceeded(program, error, limit)
        if needed is None:
            raise
        return dataclasses.replace(made, memory=needed, seconds=time.perf_counter() - began)
    seconds = time.perf_counter() - began
    pod = topology.pod(where, mesh)
    turns = programs.turns(config, stage)
    count = hlo.analyse(compiled.as_text(), dict(mesh.shape), where.compiler, turns)
    unknown = kernels.add(count)
    needs = memory.measured(program, compiled, limit)
    if where.compiler == "cpu":  # the CPU compiler keeps what accelerators' do not: logits, 32-bit copies
        needs = analytic.instead(config, stage, dict(mesh.shape), needs)
        analytic.corrected(count, config, stage, dict(mesh.shape))
    return dataclasses.replace(
        made, memory=needs, count=count, roofline=roofline(count, pod), collectives=report.rows(count, pod),
        unknown=unknown, turns=turns, seconds=seconds,
    )  # fmt: skip
