"""Which devices a collective runs over, and which mesh axes those are.

XLA writes device groups in three ways: as lists ``{{0,1},{2,3}}``, as an iota ``[4,2]<=[2,2,2]T(2,1,0)`` and, newer, as
axes of a mesh of its own ``mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b':(1)2}``, where ``(1)2`` is a sub-axis: the
axis cut into (before, size, after), of which the middle counts. Ids are positions in the program's device list, which
is the flattened mesh of the jitted function.
"""

from __future__ import annotations

import math
import re

import numpy as np

from lpm_jax.planning.hlo_text import Instruction

_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",") if x.strip()]


def _iota(text: str) -> np.ndarray:
    """``[4,2]<=[2,2,2]T(2,1,0)``, or ``[2,2,2]T(2,1,0)`` without a final shape."""
    shape, source, order = _IOTA.match(text.strip()).groups()
    ids = np.arange(math.prod(_numbers(source or shape))).reshape(_numbers(source or shape))
    if order:
        ids = ids.transpose(_numbers(order))
    return ids.reshape(_numbers(shape)) if source else ids


def _mesh_groups(text: str) -> np.ndarray:
    """Groups over named axes of a mesh that XLA made up or took over from JAX."""
    sizes = {name: int(n) for name, n in re.findall(r"'?([\w.-]+)'?=(\d+)", text[text.index("[") : text.index("]")])}
    ids = np.arange(math.prod(sizes.values()))
    listed = re.search(r"device_ids=\(((?:[^()]|\([^()]*\))*)\)", text)
    if listed:
        ids = _iota(listed[1]) if listed[1].startswith("[") else np.array(_numbers(listed[1]))
    cut: list[int] = []  # the axes, sub-axes apart
    grouped: list[int] = []
    refs = [
        (name, int(before) if before else None, int(n) if n else None)
        for name, before, n in re.findall(r"'?([\w.-]+)'?(?::\((\d+)\)(\d+))?", text[text.rindex("{") :])
    ]
    at = {}  # (axis, size before) -> index in ``cut``
    for name, total in sizes.items():
        before = 1
        for _, start, n in sorted((r for r in refs if r[0] == name and r[1] is not None), key=lambda r: r[1]):
            if start > before:
                cut.append(start // before)
            at[name, start] = len(cut)
            cut.append(n)
            before = start * n
        at.setdefault((name, None), len(cut))
        if total > before or before == 1:
            cut.append(total // before)
    grouped = [at[name, start] for name, start, _ in refs]
    order = [i for i in range(len(cut)) if i not in grouped] + grouped
    return ids.reshape(cut).transpose(order).reshape(-1, math.prod(cut[i] for i in grouped))


def replica_groups(instruction: Instruction, devices: int) -> list[list[int]]:
    """The groups of device positions that exchange data; one group of all where none are named."""
    rest = instruction.rest
    at = re.search(r"(?:^|[ ,])(?:replica_groups|source_target_pairs)=", rest)
    text = rest[at.end() :] if at else ""
    if text.startswith("mesh"):
        return _mesh_groups(
            re.match(r"mesh\[[^\]]*\](?:, device_ids=\((?:[^()]|\([^()]*\))*\))? \{[^}]*\}", text)[0]
        ).tolist()
    if text.startswith("["):
        return _iota(_IOTA.match(text)[0]).tolist()
    groups = [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", re.match(r"\{(?:\{[\d,]*\},?)*\}|", text)[0])]
    return groups or [list(range(devices))]


def mesh_axes(groups: list[list[int]], shape: dict[str, int]) -> tuple[str, ...]:
    """The axes of the mesh ``shape`` (name to size, in order) along which the members of a group differ.

    For pairs of a permute, the same: the axes along which data moves. Empty: each group is one device.
    """
    names, sizes = list(shape), list(shape.values())
    moving: set[int] = set()
    for group in groups:
        coordinates = np.array(np.unravel_index(group, sizes))
        moving |= {i for i in range(len(sizes)) if np.ptp(coordinates[i]) > 0}
    return tuple(names[i] for i in sorted(moving))
