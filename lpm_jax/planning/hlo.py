"""What a compiled program does in one run: products, memory traffic and collectives, loops multiplied out.

``compiled.cost_analysis()`` counts the body of a loop once, so a scan over forty blocks would cost one. Here the
computations are walked from the entry: a ``while`` counts its body times its trips, a ``conditional`` its most
expensive branch. Kernels (Pallas, cuDNN) are opaque: they are listed by name, for the caller to add by hand.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import NamedTuple

from lpm_jax.planning import groups as grouping
from lpm_jax.planning.hlo_text import Computation, Instruction, Module, Shape, leaves, parse, size
from lpm_jax.planning.loops import trips
from lpm_jax.planning.products import flops
from lpm_jax.planning.traffic import Traffic, traffic

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
#: Custom calls that compute nothing.
NOTHING = re.compile(
    r"AllocateBuffer|AsyncCollective|ConcatBitcast|ReshapeBitcast|Sharding|SPMD|annotate_device_placement|MoveTo(Host|"
    r"Device)|SliceId|ZeroCrop|Pin|Unpin|Barrier|CreateBuffer|PrepareAsyncCall|AssumeGatherIndicesInBound|LayoutConstraint"
)

#: The label of all-reduces that gather, which libtpu prefers for groups of a whole slice.
GATHERS = "gathers, written as all-reduce"


class Collective(NamedTuple):
    """One instruction that exchanges data. ``bytes`` is the whole array as one device sees it: what an all-gather
    makes, what a reduction or an all-to-all starts from on each device, what a permute sends."""

    kind: str
    axes: tuple[str, ...]
    devices: int  # of a group
    bytes: int
    dtype: str
    name: str
    label: str
    widened: bool = False  # the CPU compiler made it float32; ``bytes`` and ``dtype`` are of what was meant

    @property
    def sent(self) -> float:
        """Bytes that each device sends, at least (ring algorithms)."""
        n = self.devices
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(self.kind, (n - 1) / n)
        return share * self.bytes


class Kernel(NamedTuple):
    """A custom call whose work is not known."""

    target: str
    label: str
    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]


@dataclasses.dataclass
class Count:
    """Totals of one run of a computation, for one device."""

    flops: Counter[str] = dataclasses.field(default_factory=Counter)  # by type of the factors
    traffic: Traffic = Traffic()
    collectives: Counter[Collective] = dataclasses.field(default_factory=Counter)
    kernels: Counter[Kernel] = dataclasses.field(default_factory=Counter)
    unknown_loops: set[str] = dataclasses.field(default_factory=set)  # whose length the program is told as it runs

    def add(self, other: Count, times: int = 1) -> None:
        for name in ("flops", "collectives", "kernels"):
            mine = getattr(self, name)
            for key, value in getattr(other, name).items():
                mine[key] += times * value
        self.traffic += Traffic(times * other.traffic.hbm, times * other.traffic.host)
        self.unknown_loops |= other.unknown_loops

    @property
    def all_flops(self) -> int:
        return sum(self.flops.values())


def analyse(text: str, mesh: dict[str, int], platform: str = "", turns: int = 1) -> Count:
    """Counts of the program whose optimised HLO is ``text``, for one device of a mesh of the given axes, in order.

    ``platform`` ``"cpu"`` undoes what only the CPU compiler does: 16-bit collectives in 32 bits. A loop whose length is
    no constant of the program counts ``turns`` times.

    Raises:
      ValueError: ``text`` is no HLO module.
    """
    return _Walk(parse(text), mesh, platform == "cpu", turns).computation


class _Walk:
    """One pass over a module; computations are counted once and remembered."""

    def __init__(self, module: Module, mesh: dict[str, int], widened: bool, turns: int):
        self.module, self.mesh, self.widened, self.turns = module, mesh, widened, turns
        self.devices = 1
        for n in mesh.values():
            self.devices *= n
        self.seen: dict[tuple[str, bool], Count] = {}
        self.computation = self.walk(module.entry, False)

    def walk(self, name: str, fused: bool) -> Count:
        if (name, fused) not in self.seen:
            count = Count()
            computation = self.module.computations[name]
            for instruction in computation.instructions.values():
                self.instruction(count, computation, instruction, fused)
            self.seen[name, fused] = count
        return self.seen[name, fused]

    def instruction(self, count: Count, computation: Computation, instruction: Instruction, fused: bool) -> None:
        opcode = instruction.opcode
        if not fused:
            count.traffic += traffic(self.module, computation, instruction)
        if opcode == "while":
            times = trips(self.module, computation, instruction)
            if times is None:
                count.unknown_loops.add(instruction.label)
            count.add(self.walk(instruction.attribute("body"), fused), self.turns if times is None else times)
        elif opcode == "conditional":
            branches = [self.walk(name, fused) for name in _branches(instruction)]
            count.add(max(branches, key=lambda c: (c.all_flops, c.traffic.hbm, sum(x.bytes for x in c.collectives))))
        elif opcode == "fusion":
            inner = self.walk(instruction.attribute("calls"), True)
            count.add(_as_reduce_scatter(inner, instruction))
        elif opcode in ("call", "call-start", "async-start"):
            called = instruction.attribute("to_apply") or instruction.attribute("calls")
            count.add(self.walk(called, fused))
        elif opcode.removesuffix("-start") in KINDS or (opcode == "send" and "megascale" in instruction.rest):
            read = self.across if opcode == "send" else self.collective
            found = read(computation, instruction)
            if found is not None:
                count.collectives[found] += 1
        else:
            dtype, operations = flops(computation, instruction)
            if operations:
                count.flops[dtype] += operations
            elif opcode == "custom-call":
                target = (instruction.attribute("custom_call_target") or "").strip('"')
                if not NOTHING.search(target):
                    shapes = [computation.instructions[name].kind for name in instruction.operands]
                    operands, results = tuple(leaves(tuple(shapes))), tuple(leaves(instruction.kind))
                    count.kernels[Kernel(target, instruction.label, operands, results)] += 1

    def collective(self, computation: Computation, instruction: Instruction) -> Collective | None:
        """The collective, or None where nothing moves: groups of one, and later parts of a chain.

        TPU overlaps a collective with several fusions by repeating it in each of them; only the first is wrapped in
        ``AsyncCollectiveStart``.
        """
        chained = "async_collective_fusion_config" in instruction.rest
        users = computation.users(instruction.name)
        if chained and not any("AsyncCollectiveStart" in user.rest for user in users):
            return None
        kind = instruction.opcode.removesuffix("-start")
        found = grouping.replica_groups(instruction, self.devices)
        axes = grouping.mesh_axes(found, self.mesh)
        n = max(len(group) for group in found)
        if not axes or n < 2:
            return None
        operands = [computation.instructions[name] for name in instruction.operands]
        if kind == "ragged-all-to-all":
            operands = operands[:1]
        dtype = next(leaves(operands[0].kind)).dtype
        moved = sum(size(operand.kind) for operand in operands) * (n if kind == "all-gather" else 1)
        widened = self.widened and dtype == "f32" and self.meant_narrow(computation, instruction)
        if widened:
            dtype, moved = "bf16", moved // 2
        label = instruction.label
        placed = sum(size(operand.kind) for operand in operands if self.placed(computation, operand.name))
        if kind == "all-reduce" and 2 * placed > moved:
            label = GATHERS
        return Collective(kind, axes, n, moved, dtype, instruction.name, label, widened)

    def across(self, computation: Computation, instruction: Instruction) -> Collective | None:
        """A collective across TPU slices: the host carries it, so it is a ``send`` with notes."""
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
        target = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', instruction.rest)
        if kind is None or target is None:
            return None
        slices = 0
        for part in target[1].split(","):
            first, _, last = part.partition(":")
            slices += int(last or first) - int(first) + 1
        name = kind[1].lower().replace("_", "-")
        operand = computation.instructions[instruction.operands[0]].kind
        moved = size(operand) * (slices if name == "all-gather" else 1)
        dtype = next(leaves(operand)).dtype
        return Collective(name, ("replica",), slices, moved, dtype, instruction.name, instruction.label)

    def placed(self, computation: Computation, name: str) -> bool:
        """Whether an array is a device's part placed among zeros: summed, it is gathered."""
        producer = computation.instructions[name]
        while producer.opcode in ("bitcast", "copy", "fusion"):
            if producer.opcode == "fusion":
                computation = self.module.computations[producer.attribute("calls")]
                producer = computation.root
            else:
                producer = computation.instructions[producer.operands[0]]
        return producer.opcode == "dynamic-update-slice"

    def meant_narrow(self, computation: Computation, instruction: Instruction) -> bool:
        """Whether a float32 collective of the CPU compiler carries 16-bit values."""
        if (instruction.attribute("to_apply") or "").endswith("_promoted"):
            return True
        return all(self.narrow(computation, name) for name in instruction.operands)

    def narrow(self, computation: Computation, name: str) -> bool:
        producer = computation.instructions[name]
        if producer.opcode == "fusion":
            inner = self.module.computations[producer.attribute("calls")]
            return self.narrow(inner, inner.root.name)
        if producer.opcode == "convert":
            source = next(leaves(computation.instructions[producer.operands[0]].kind)).dtype
            return source in ("bf16", "f16")
        views = ("bitcast", "copy", "reshape", "transpose", "slice", "dynamic-slice", "broadcast", "concatenate")
        return producer.opcode in views and self.narrow(computation, producer.operands[0])


def _branches(instruction: Instruction) -> list[str]:
    listed = instruction.attribute("branch_computations")
    if listed:
        return [name.strip().lstrip("%") for name in listed.strip("{}").split(",")]
    return [instruction.attribute(f"{which}_computation") for which in ("true", "false")]


def _as_reduce_scatter(inner: Count, fusion: Instruction) -> Count:
    """TPU writes a reduce-scatter as a fusion of an all-reduce with the slice that each device keeps."""
    reduced = [c for c in inner.collectives if c.kind == "all-reduce"]
    if len(reduced) != 1 or size(fusion.kind) * reduced[0].devices != reduced[0].bytes:
        return inner
    changed = dataclasses.replace(inner, collectives=Counter(inner.collectives))
    changed.collectives[reduced[0]._replace(kind="reduce-scatter")] = changed.collectives.pop(reduced[0])
    return changed
