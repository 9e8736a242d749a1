"""Reading the text of an optimised HLO module: computations, instructions, shapes.

The text is what ``compiled.as_text()`` gives on CPU, GPU and TPU. Its grammar is XLA's ``hlo_parser.cc``; read here is
only what counting needs. An instruction is one line,

    [ROOT] %name = shape opcode(operands), attribute=value, ...

a shape ``bf16[4,512]{1,0:T(8,128)(2,1)S(1)}`` (``S`` is the memory space) or a tuple of shapes in parentheses. Operands
may or may not repeat their shapes, so they are looked up by name.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f4e2m1fn": 4, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
HBM, HOST = 0, 5  # memory spaces; on TPU 1 is VMEM, and 2, 4 and 6 hold flags and scalars


class Shape(NamedTuple):
    """One array: type, dimensions and memory space."""

    dtype: str
    dims: tuple[int, ...]
    space: int = HBM

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Without the padding of tiled layouts. Types without values (tokens, opaque handles) have none."""
        bits = BITS.get(self.dtype) or (8 if re.match(r"f8e\d", self.dtype) else 0)
        return -(-self.elements * bits // 8)


Type = Shape | tuple  # a tuple holds types


def leaves(kind: Type) -> Iterator[Shape]:
    """The arrays of a type, in order."""
    if isinstance(kind, Shape):
        yield kind
    else:
        for part in kind:
            yield from leaves(part)


def size(kind: Type) -> int:
    """Bytes of all arrays of a type."""
    return sum(shape.bytes for shape in leaves(kind))


class Instruction(NamedTuple):
    name: str
    kind: Type
    opcode: str
    operands: tuple[str, ...]  # names without %, or a literal where there is one (``constant(6)``, ``parameter(0)``)
    rest: str  # the attributes, unparsed
    root: bool

    def attribute(self, key: str) -> str | None:
        """The value of ``key=value`` up to the next comma outside brackets; a leading ``%`` is dropped."""
        at = re.search(rf"(?:^|[ ,]){key}=", self.rest)
        if at is None:
            return None
        return self.rest[at.end() : _end(self.rest, at.end())].removeprefix("%")

    @property
    def label(self) -> str:
        """Where it comes from in the program, as JAX names it, or its own name."""
        named = re.search(r'op_name="([^"]*)"', self.rest)
        return named[1] if named and named[1] else self.name


class Computation(NamedTuple):
    name: str
    instructions: dict[str, Instruction]
    root: Instruction

    @property
    def parameters(self) -> dict[int, str]:
        """Index to name."""
        return {int(i.operands[0]): i.name for i in self.instructions.values() if i.opcode == "parameter"}

    def users(self, name: str) -> list[Instruction]:
        return [i for i in self.instructions.values() if name in i.operands]


class Module(NamedTuple):
    computations: dict[str, Computation]
    entry: str
    header: str
    tpu: bool

    @property
    def aliases(self) -> int:
        """How many outputs live in the buffer of an input."""
        return len(re.findall(r"(?:may|must)-alias", self.header))


def _end(text: str, start: int, stops: str = ",") -> int:
    """Index of the first of ``stops`` outside brackets and quotes, or the end of the text."""
    depth, quoted, i = 0, False, start
    while i < len(text):
        c = text[i]
        if quoted:
            i += c == "\\"
            quoted = c != '"'
        elif c == '"':
            quoted = True
        elif c in "([{":
            depth += 1
        elif depth == 0 and c in stops:
            return i
        elif c in ")]}":
            depth -= 1
            if depth < 0:
                return i
        i += 1
    return len(text)


def _split(text: str) -> list[str]:
    """Parts between commas outside brackets."""
    parts, start = [], 0
    while start < len(text):
        end = _end(text, start)
        parts.append(text[start:end].strip())
        start = end + 1
    return [part for part in parts if part]


@functools.lru_cache(maxsize=100_000)
def parse_type(text: str) -> Type:
    """``f32[2,3]{1,0}`` or ``(f32[], (s32[2]))``."""
    text = text.strip()
    if text.startswith("("):
        return tuple(parse_type(part) for part in _split(text[1:-1]))
    array = re.match(r"([a-z][a-z0-9]*)\[([^\]]*)\]", text)
    if array is None:
        return Shape(text.partition("{")[0].partition("[")[0], (), -1)
    dims = tuple(int(d.strip().lstrip("<=")) for d in array[2].split(",") if d.strip())
    layout = text[array.end() :]
    space = re.search(r"S\((\d+)\)", layout)
    return Shape(array[1], dims, int(space[1]) if space else HBM)


_COMMENT = re.compile(r"/\*.*?\*/")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([^\s=]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{\s*$")


def _instruction(line: str) -> Instruction | None:
    head = _INSTRUCTION.match(line)
    if head is None:
        return None
    line = _COMMENT.sub("", line[head.end() :])
    kind_end = _end(line, 0, " ")
    open_at = line.index("(", kind_end)
    opcode = line[kind_end:open_at].strip()
    close = _end(line, open_at + 1, "")
    operands = tuple(part.split(" ")[-1].lstrip("%") for part in _split(line[open_at + 1 : close]))
    kind = parse_type(line[:kind_end])
    return Instruction(head[2], kind, opcode, operands, line[close + 1 :].lstrip(", "), bool(head[1]))


def _lines(text: str) -> Iterator[str]:
    """Lines, those of an instruction whose attributes (a kernel's metadata) run over several joined."""
    held, depth = "", 0
    for line in text.splitlines():
        if not held and not _INSTRUCTION.match(line):
            yield line
            continue
        held += line
        depth += line.count("{") - line.count("}")
        if depth <= 0:
            yield held
            held, depth = "", 0


def parse(text: str) -> Module:
    """The module of ``compiled.as_text()``.

    Raises:
      ValueError: there is no entry computation, so this is not the text of an HLO module.
    """
    computations: dict[str, Computation] = {}
    entry, header, current, name = "", "", None, ""
    for line in _lines(text):
        if current is None:
            head = _COMPUTATION.match(line)
            if head:
                name, current = head[2], {}
                entry = name if head[1] else entry
            elif line.startswith("HloModule"):
                header = line
        elif line.startswith("}"):
            root = next((i for i in current.values() if i.root), list(current.values())[-1])
            computations[name] = Computation(name, current, root)
            current = None
        else:
            instruction = _instruction(line)
            if instruction is not None:
                current[instruction.name] = instruction
    if not entry:
        raise ValueError("expected the text of an HLO module, found no ENTRY computation")
    return Module(computations, entry, header, ":T(" in text)
