"""How often a ``while`` of HLO runs.

CPU and GPU compilers note it (``known_trip_count``). TPU's does not: there the condition ``carry[i] < n``, the carry's
first value and its step in the body are read, each a constant behind some copies, tuples and small fusions.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from lpm_jax.planning.hlo_text import Computation, Instruction, Module

_SAME = ("copy", "bitcast", "reshape", "convert", "copy-start", "copy-done", "broadcast")


class Affine(NamedTuple):
    """``carry[index] + offset``, or the constant ``offset`` where there is no index."""

    index: int | None
    offset: int


def _affine(module: Module, computation: Computation, name: str, given: dict[str, Affine | None]) -> Affine | None:
    """The value of a scalar; ``given`` holds the parameters of a fusion. None where it is neither form."""
    if name in given:
        return given[name]
    instruction = computation.instructions.get(name)
    if instruction is None:
        return None
    opcode, operands = instruction.opcode, instruction.operands
    if opcode == "constant":
        return Affine(None, int(operands[0])) if re.fullmatch(r"-?\d+", operands[0]) else None
    if opcode == "get-tuple-element":
        source = computation.instructions[operands[0]]
        index = int(instruction.attribute("index"))
        if source.opcode == "parameter":
            return Affine(index, 0)
        if source.opcode == "tuple":
            return _affine(module, computation, source.operands[index], given)
        return None
    if opcode in _SAME:
        return _affine(module, computation, operands[0], given)
    if opcode in ("add", "subtract"):
        left, right = (_affine(module, computation, operand, given) for operand in operands)
        if left is None or right is None or right.index is not None:
            left, right = right, left
        if left is None or right is None or right.index is not None or (opcode == "subtract" and left.index is None):
            return None
        return Affine(left.index, left.offset + (right.offset if opcode == "add" else -right.offset))
    if opcode in ("fusion", "call"):
        inner, given = _enter(module, computation, instruction, given)
        return _affine(module, inner, inner.root.name, given)
    return None


def _enter(module: Module, computation: Computation, instruction: Instruction, given: dict) -> tuple[Computation, dict]:
    inner = module.computations[instruction.attribute("calls") or instruction.attribute("to_apply")]
    values = [_affine(module, computation, operand, given) for operand in instruction.operands]
    return inner, {name: values[at] for at, name in inner.parameters.items()}


def _condition(module: Module, computation: Computation) -> tuple[str, Affine, Affine] | None:
    """Direction and both sides of the comparison at a condition's root, through a fusion."""
    given: dict[str, Affine | None] = {}
    root = computation.root
    if root.opcode in ("fusion", "call"):
        computation, given = _enter(module, computation, root, given)
        root = computation.root
    if root.opcode != "compare":
        return None
    left, right = (_affine(module, computation, operand, given) for operand in root.operands)
    return None if left is None or right is None else (root.attribute("direction"), left, right)


def trips(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often ``loop`` of ``computation`` runs its body, or None where that is not a constant of the program."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    found = _condition(module, module.computations[loop.attribute("condition")])
    body = module.computations[loop.attribute("body")]
    init = computation.instructions[loop.operands[0]]
    if found is None or init.opcode != "tuple" or body.root.opcode != "tuple":
        return None

    def first(index: int) -> int | None:
        value = _affine(module, computation, init.operands[index], {})
        return None if value is None or value.index is not None else value.offset

    def step(index: int) -> int | None:
        value = _affine(module, body, body.root.operands[index], {})
        return None if value is None or value.index != index else value.offset

    direction, left, right = found
    if direction in ("GT", "GE"):
        direction, left, right = {"GT": "LT", "GE": "LE"}[direction], right, left
    if direction not in ("LT", "LE") or left.index is None:
        return None
    limit = right.offset
    if right.index is not None:  # a bound that the loop carries along unchanged
        bound = first(right.index)
        if bound is None or step(right.index) != 0:
            return None
        limit += bound
    start, by = first(left.index), step(left.index)
    if start is None or by is None or by <= 0:
        return None
    return max(0, -(-(limit + (direction == "LE") - left.offset - start) // by))
