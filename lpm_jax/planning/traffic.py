"""Bytes that a compiled program moves between its instructions and the device's memory.

An instruction outside a fusion reads its operands and writes its result once; inside a fusion nothing goes to memory.
A fusion that only slices an operand (one layer of a stack) reads the slice, and one that updates a buffer in place
writes the update. On TPU, buffers that the compiler placed in on-chip memory cost nothing; their copies to and from
HBM are instructions of their own. Bytes of buffers in host memory are counted apart.
"""

from __future__ import annotations

from typing import NamedTuple

from lpm_jax.planning.hlo_text import HBM, HOST, Computation, Instruction, Module, Type, leaves

FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "add-dependency", "domain", "while", "conditional", "call", "call-start", "async-start",
}  # fmt: skip
_VIEWS = (
    "bitcast",
    "reshape",
    "copy",
    "convert",
    "transpose",
    "get-tuple-element",
)  # a slice of it is one of its source


class Traffic(NamedTuple):
    hbm: int = 0
    host: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.hbm + other.hbm, self.host + other.host)


def _of(kind: Type, module: Module, most: int | None = None) -> Traffic:
    """Bytes of a type by memory; of each array at most ``most`` elements."""
    hbm = host = 0
    for shape in leaves(kind):
        moved = shape.bytes if most is None else min(shape.bytes, shape._replace(dims=(most,)).bytes)
        if shape.space == HOST:
            host += moved
        elif shape.space == HBM or not module.tpu:
            hbm += moved
    return Traffic(hbm, host)


def _is_view(module: Module, instruction: Instruction) -> bool:
    """Whether an instruction within a fusion only renames, rearranges or converts its first operand."""
    if instruction.opcode != "fusion":
        return instruction.opcode in _VIEWS
    inner = module.computations[instruction.attribute("calls")].instructions.values()
    return all(_is_view(module, i) or i.opcode == "parameter" for i in inner)


def _read(module: Module, computation: Computation, name: str) -> int | None:
    """Elements of a fusion's parameter that are read, or None where that is all of it."""
    users = computation.users(name)
    total = 0
    for user in users:
        if user.opcode == "dynamic-slice" and user.operands[0] == name:
            total += next(leaves(user.kind)).elements
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue  # in place: what is not updated stays
        elif _is_view(module, user) and not user.root:
            part = _read(module, computation, user.name)
            if part is None:
                return None
            total += part
        elif user.opcode == "fusion":
            inner = module.computations[user.attribute("calls")]
            for at in (i for i, operand in enumerate(user.operands) if operand == name):
                part = _read(module, inner, inner.parameters[at])
                if part is None:
                    return None
                total += part
        else:
            return None
    return total if users else None


def _written(module: Module, computation: Computation, root: Instruction) -> int | None:
    """Elements that a fusion's (part of the) result writes, or None where that is all of it."""
    while _is_view(module, root) and root.opcode != "get-tuple-element":
        root = computation.instructions[root.operands[0]]
    if root.opcode == "dynamic-update-slice":
        return next(leaves(computation.instructions[root.operands[1]].kind)).elements
    if root.opcode == "fusion":
        inner = module.computations[root.attribute("calls")]
        return _written(module, inner, inner.root)
    return None


def _fusion(module: Module, computation: Computation, instruction: Instruction) -> Traffic:
    inner = module.computations[instruction.attribute("calls")]
    moved = Traffic()
    for at, operand in enumerate(instruction.operands):
        part = _read(module, inner, inner.parameters[at]) if at in inner.parameters else None
        moved += _of(computation.instructions[operand].kind, module, part)
    roots = [inner.root]
    kinds: list[Type] = [instruction.kind]
    if inner.root.opcode == "tuple":
        roots = [inner.instructions[name] for name in inner.root.operands]
        kinds = list(instruction.kind)
    for root, kind in zip(roots, kinds, strict=True):
        if root.opcode == "parameter":  # passed through
            continue
        moved += _of(kind, module, _written(module, inner, root))
    return moved


def traffic(module: Module, computation: Computation, instruction: Instruction) -> Traffic:
    """What one instruction outside fusions moves."""
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith(("-done", "-update")):
        return Traffic()
    if opcode == "fusion":
        return _fusion(module, computation, instruction)
    read = [computation.instructions[name].kind for name in instruction.operands if name in computation.instructions]
    result = instruction.kind
    if opcode.removesuffix("-start") in ("dynamic-slice", "slice", "gather"):
        result = result if not opcode.endswith("-start") else result[1]
        return _of(read[0], module, next(leaves(result)).elements) + _of(result, module)
    if opcode in ("dynamic-update-slice", "scatter"):
        update = read[1] if opcode == "dynamic-update-slice" else read[-1]
        return _of(update, module) + _of(result, module, next(leaves(update)).elements)
    if opcode == "copy-start":
        result = result[0]
    elif opcode.endswith("-start"):  # (operands, results, ...) or, for all-reduce, the results alone
        result = result[1] if isinstance(result, tuple) and opcode != "all-reduce-start" else result
    return sum((_of(kind, module) for kind in [*read, result]), Traffic())
