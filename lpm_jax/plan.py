"""What a training or streaming step costs on a pod that is not here.

    python -m lpm_jax.plan configs/lpm_17b.py --stage base.speak --topology v5p:4x4x4 [--mesh fsdp=16,context=4]
    python -m lpm_jax.plan configs/lpm_17b.py --stage chunk --topology v6e:2x4 --mesh tensor=8 --json plan.json
    python -m lpm_jax.plan configs/lpm_17b.py --stage base.speak --topology v5p:4x4x4 --sweep

Compiles the real step for the topology and prints memory per chip, products, traffic, every collective with its size
and axis, the least step time and what bounds it, and whether it fits. TPU topologies need libtpu (``jax[tpu]``);
without it, with ``--estimate``, and for GPUs the program is compiled for simulated CPU devices. docs/planning.md says
how figures are counted and which not to trust.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

from lpm_jax.config import Config
from lpm_jax.errors import ArgumentParser, InputError, run_door
from lpm_jax.options import load_config, override, parse_mesh
from lpm_jax.planning import topology


def configure(args: argparse.Namespace, rest: list[str], compiler: str) -> Config:
    """The stage's config with the command line's changes."""
    from lpm_jax.planning import programs

    config = load_config(args.config)
    config = programs.stage_config(config, args.stage, compiler)
    for option, value in (("--train.batch", args.batch), ("--train.remat", args.remat)):
        rest = rest + ([option, str(value)] if value is not None else [])
    config = override(config, rest)
    return dataclasses.replace(config, mesh=parse_mesh(args.mesh)) if args.mesh else config


def write(path: Path | None, command: str, data: dict[str, Any]) -> None:
    """Saves ``data`` with the command and versions."""
    if path is None:
        return
    from lpm_jax.checkpoint import write_json
    from lpm_jax.environment import environment

    compilers = [name for name in ("jaxlib", "libtpu") if importlib.util.find_spec(name)]
    write_json(path, {"command": command} | environment(*compilers) | data)
    print(f"written: {path}", file=sys.stderr)


def main() -> int:
    parser = ArgumentParser(
        "python -m lpm_jax.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a Python file with get_config(), such as configs/lpm_17b.py")
    parser.add_argument("--stage", required=True, help="a training stage of the config, or chunk: the streaming step")
    parser.add_argument("--topology", required=True, help="CHIP:SIZES, such as v5p:4x4x4, 2*v6e:16x16, h100:64, cpu:8")
    parser.add_argument("--mesh", default="", help="AXIS=SIZE,... of replica, fsdp, ring, context, tensor")
    parser.add_argument("--batch", type=int, help="clips of a step (train.batch)")
    parser.add_argument("--remat", help="what gradients keep (train.remat)")
    parser.add_argument("--sweep", action="store_true", help="compare meshes and remat policies, recommend one")
    parser.add_argument("--compile", type=int, default=3, metavar="N", help="of a sweep: fitting candidates to compile")
    parser.add_argument("--estimate", action="store_true", help="simulated CPU devices even where libtpu is there")
    parser.add_argument("--chip", default="", help="whose figures cpu:N takes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    args, rest = parser.parse_known_args()
    where = topology.parse(args.topology, args.estimate, args.chip)
    topology.prepare(where)
    config = configure(args, rest, where.compiler)
    if where.chip.platform == "tpu" and where.compiler == "cpu" and not args.estimate and not args.chip:
        print("libtpu is not installed: an estimate from simulated CPU devices", file=sys.stderr)
    words = [word for i, word in enumerate(sys.argv) if i and "--json" not in (word, sys.argv[i - 1])]
    return run(args, config, where, " ".join(["python -m lpm_jax.plan", *words]))


def run(args: argparse.Namespace, config: Config, where: topology.Topology, command: str) -> int:
    """Compiles and reports. Status 0 whether it fits or not: the report says."""
    from lpm_jax import sharding
    from lpm_jax.nn.remat import POLICIES
    from lpm_jax.planning import compiling, report, sweep

    if config.train.remat not in POLICIES:
        raise InputError(f"train.remat: expected one of {', '.join(POLICIES)}, found {config.train.remat!r}")
    if not args.sweep:
        sharding.mesh_shape(config.mesh, where.devices)
    devices = topology.devices(where)

    def compile(config: Config) -> report.Plan:
        mesh = ",".join(f"{k}={v}" for k, v in dataclasses.asdict(config.mesh).items() if v != 1)
        print(f"compiling {mesh} for {where.name} (minutes for large models)", file=sys.stderr, flush=True)
        return compiling.plan(config, args.stage, where, devices)

    if not args.sweep:
        plan = compile(config)
        print(report.table(plan))
        write(args.json, command, report.to_json(plan))
        return 0
    best, found = sweep.sweep(config, args.stage, where, compile, args.compile)
    print(sweep.table(best, found))
    if best is not None:
        print("\n" + report.table(best.plan))
    listed = [
        {"mesh": c.mesh, "remat": c.remat, "estimated_seconds": c.seconds if c.seconds < 1e9 else None}
        | {"estimated_bytes": c.memory, "reason": c.reason, "plan": report.to_json(c.plan) if c.plan else None}
        for c in found
    ]
    write(args.json, command, {"recommended": best and best.name, "candidates": listed})
    return 0


if __name__ == "__main__":
    run_door(main)
