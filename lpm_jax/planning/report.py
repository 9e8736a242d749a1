"""A plan: what one program costs on one mesh of one pod, as data, as JSON and as text."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from typing import Any

from lpm_jax.planning.hlo import Collective, Count
from lpm_jax.planning.memory import Memory
from lpm_jax.planning.network import Pod
from lpm_jax.planning.roofline import Roofline
from lpm_jax.planning.topology import Topology

_WRAPPERS = re.compile(
    r"(jit|jvp|transpose|vmap)\(|(while|body|cond|closed_call|eval_jaxpr|checkpoint|rematted_computation|Block|shard_map)$"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """Collectives of one kind, size and place in the program, of one device."""

    kind: str
    axes: str
    devices: int
    bytes: int  # of one
    dtype: str
    times: int
    seconds: float  # all of them, at the links' full speed
    where: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """``count`` and ``roofline`` are None where the program does not fit: the compiler made nothing to count."""

    topology: Topology
    model: str
    stage: str
    mesh: dict[str, int]
    settings: dict[str, Any]
    memory: Memory
    model_flops: int
    count: Count | None = None
    roofline: Roofline | None = None
    collectives: tuple[Row, ...] = ()
    unknown: dict[str, int] = dataclasses.field(default_factory=dict)  # kernels that nobody counted
    turns: int = 1  # that loops count whose length the program is told
    seconds: float = 0.0  # that compiling took

    @property
    def estimate(self) -> bool:
        return self.topology.compiler == "cpu"

    def utilisation(self, seconds: float) -> float:
        """Model operations a second over the pod's peak: MFU."""
        return self.model_flops / (seconds * self.topology.devices * self.topology.chip.flops)


def rows(count: Count, pod: Pod) -> tuple[Row, ...]:
    """Collectives that are alike together, the longest first."""
    found: dict[tuple, list[tuple[Collective, int]]] = defaultdict(list)
    for collective, times in count.collectives.items():
        key = (*collective[:5], _where(collective.label), collective.widened)
        found[key].append((collective, times))
    table = []
    for (kind, axes, devices, size, dtype, where, widened), members in found.items():
        times = sum(n for _, n in members)
        seconds = times * pod.time(members[0][0])[0]
        note = "16 bits, which the CPU compiler widens" if widened else ""
        table.append(Row(kind, " x ".join(axes), devices, size, dtype, times, seconds, where, note))
    return tuple(sorted(table, key=lambda row: -row.seconds))


def _where(label: str) -> str:
    """Pass and layer out of JAX's name of an operation; of several joined in one instruction, the first."""
    if "/" not in label:
        return label if " " in label else "-"
    passed = "backward" if "transpose(" in label else "forward"
    if "rematted_computation" in label:
        passed = "recomputed"
    label = re.sub(r"/\(([^:]*):.*", r"/\1", label)
    parts = [part for part in label.split("/") if not _WRAPPERS.match(part)]
    return f"{passed} {'/'.join(parts[-2:])}".strip()


def to_json(plan: Plan) -> dict[str, Any]:
    """Everything, rounded where more digits would mean nothing."""
    memory = plan.memory
    data: dict[str, Any] = {
        "model": plan.model,
        "stage": plan.stage,
        "topology": plan.topology.name,
        "chip": plan.topology.chip.name,
        "chips": plan.topology.chips,
        "devices": plan.topology.devices,
        "mesh": plan.mesh,
        "settings": plan.settings,
        "estimate": plan.estimate,
        "fits": memory.fits,
        "memory": {
            "unit": "bytes per device",
            "arguments": memory.arguments,
            "temporaries": memory.temporaries,
            "aliased": memory.aliased,
            "code": memory.code,
            "total": memory.total,
            "limit": memory.limit,
            "compiled": memory.compiled,
            "stated_by_compiler": memory.stated,
        },
        "model_flops": plan.model_flops,
        "compile_seconds": round(plan.seconds, 1),
    }
    if plan.count is not None and plan.roofline is not None:
        line = plan.roofline
        data |= {
            "flops_per_device": dict(plan.count.flops),
            "hbm_bytes_per_device": plan.count.traffic.hbm,
            "host_bytes_per_device": plan.count.traffic.host,
            "collective_bytes_sent_per_device": _by_axes(plan.count),
            "collectives": [dataclasses.asdict(row) for row in plan.collectives],
            "kernels_not_counted": plan.unknown,
            "loops_of_unknown_length": sorted(plan.count.unknown_loops),
            "counted_times": plan.turns,
            "step_seconds": {
                "bound": line.bound,
                "overlapped": line.overlapped,
                "serial": line.serial,
                "compute": line.compute,
                "memory": line.memory,
                "host": line.host,
                "axes": line.axes,
                "links": line.links,
                "mfu_overlapped": plan.utilisation(line.overlapped),
                "mfu_serial": plan.utilisation(line.serial),
            },
        }
    return data


def _by_axes(count: Count) -> dict[str, float]:
    found: defaultdict[str, float] = defaultdict(float)
    for collective, times in count.collectives.items():
        found[" x ".join(collective.axes)] += times * collective.sent
    return dict(found)


def size(value: int | float) -> str:
    """Bytes in GiB, MiB or KiB: whichever is the largest of which there is a tenth."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if value >= unit / 10:
            return f"{value / unit:.2f} {name}"
    return f"{value / 2**10:.2f} KiB"


def duration(value: int | float) -> str:
    """Seconds, milliseconds or microseconds."""
    for unit, name in ((1, "s"), (1e-3, "ms")):
        if value >= unit:
            return f"{value / unit:.3g} {name}" if value < 100 * unit else f"{value / unit:.0f} {name}"
    return f"{value / 1e-6:.3g} us"


def columns(lines: list[tuple[str, ...]], left: tuple[int, ...]) -> list[str]:
    """Rows of cells aligned, those of the columns ``left`` to the left."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    cell = lambda text, i: text.ljust(widths[i]) if i in left else text.rjust(widths[i])  # noqa: E731
    return ["  ".join(cell(text, i) for i, text in enumerate(line)).rstrip() for line in lines]


def verdict(memory: Memory) -> str:
    """One line: whether it fits, what it needs and what there is."""
    words = "fits" if memory.fits else "does not fit"
    return f"{words}: needs {size(memory.total)}, has {size(memory.limit)} per device"


def table(plan: Plan, most: int = 12) -> str:
    """The plan as text; of the collectives the ``most`` that take longest."""
    topology, memory = plan.topology, plan.memory
    mesh = " x ".join(f"{name} {n}" for name, n in plan.mesh.items() if n > 1) or "one device"
    settings = ", ".join(f"{k} {v}" for k, v in plan.settings.items())
    how = "estimate from simulated CPU devices" if plan.estimate else "compiled by libtpu"
    lines = [f"{plan.model} {plan.stage} on {topology.name} ({topology.chips} chips): {how}, {plan.seconds:.0f} s"]
    lines += [f"mesh {mesh}; {settings}", "", verdict(memory), ""]
    parts = [*memory.arguments.items(), ("activations, gradients, scratch", memory.temporaries)]
    parts += [("program", memory.code)]
    cells = [("memory per device", "")] + [(name, size(value)) for name, value in parts if value]
    cells.append(("in all", size(memory.total)))
    if memory.compiled:
        cells.append(("arguments donated (aliased)", size(memory.aliased)))
    lines += columns(cells, (0,))
    if "cache" in memory.arguments and memory.compiled:
        in_place = "in place" if memory.aliased >= memory.arguments["cache"] else "NOT in place: there are two"
        lines.append(f"the cache is updated {in_place}")
    if plan.count is None or plan.roofline is None:
        return "\n".join([*lines, "", "not compiled, so products, traffic and collectives are not known"])
    count = plan.count
    flops = ", ".join(f"{v / 1e12:.4g} TFLOP in {k}" for k, v in count.flops.most_common())
    lines += ["", f"products {flops} per device; the model needs {plan.model_flops / topology.devices / 1e12:.4g}"]
    lines += [f"memory traffic {count.traffic.hbm / 1e9:.4g} GB, with the host {count.traffic.host / 1e9:.4g} GB"]
    head = ("collective", "axis", "devices", "size", "times", "in all", "where")
    body = [
        (r.kind, r.axes, str(r.devices), size(r.bytes), str(r.times), duration(r.seconds), r.where)
        for r in plan.collectives[:most]
    ]
    lines += ["", *columns([head, *body], (0, 1, 6))] if body else ["", "no collectives"]
    if len(plan.collectives) > most:
        rest = sum(r.seconds for r in plan.collectives[most:])
        lines.append(f"and {len(plan.collectives) - most} more kinds, {duration(rest)} (all are in --json)")
    lines += ["", *_step(plan)]
    if plan.unknown:
        lines.append("not counted: " + ", ".join(f"{n} x kernel {name}" for name, n in plan.unknown.items()))
    if count.unknown_loops:
        names = ", ".join(sorted(count.unknown_loops))
        lines.append(f"loops whose length is told as they run, counted {plan.turns} x: {names}")
    return "\n".join(lines)


def _step(plan: Plan) -> list[str]:
    line = plan.roofline
    cells = [("step", "seconds")] + [(k, duration(v)) for k, v in line.resources.items() if v]
    cells += [(f"(axis {k})", duration(v)) for k, v in sorted(line.axes.items(), key=lambda item: -item[1])]
    best, worst = line.overlapped, line.serial
    return [
        *columns(cells, (0,)),
        f"at least {duration(best)} if all overlaps (bound by {line.bound}, MFU {100 * plan.utilisation(best):.1f} %), "
        f"{duration(worst)} if nothing does (MFU {100 * plan.utilisation(worst):.1f} %)",
    ]
