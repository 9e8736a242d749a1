"""Floating-point operations of matrix products and convolutions in HLO; a multiply-add counts two.

    dot           2 * elements of the result * contracted length
    convolution   2 * batch * features out * (features in / groups) * valid (output, kernel) position pairs

TPU writes every product as a convolution, batch dimensions as spatial ones that are dilated or padded so that most
positions meet zeros. Only pairs that meet a value count, as in XLA's own ``HloCostAnalysis::HandleConvolution``.
"""

from __future__ import annotations

import functools
import math
import re

import numpy as np

from lpm_jax.planning.hlo_text import Computation, Instruction, Shape, leaves

MATMUL_CALLS = re.compile(r"__cublas\$(gemm|lt\$matmul)|__onednn\$matmul|__ynn\$dot")
CONVOLUTION_CALLS = re.compile(r"__cudnn\$conv")


def _shape(computation: Computation, name: str) -> Shape:
    return next(leaves(computation.instructions[name].kind))


def _dims(instruction: Instruction, key: str) -> list[int]:
    text = instruction.attribute(key) or "{}"
    return [int(x) for x in text.strip("{}").split(",") if x]


def _dot(instruction: Instruction, left: Shape) -> int:
    contracted = math.prod(left.dims[i] for i in _dims(instruction, "lhs_contracting_dims"))
    return 2 * next(leaves(instruction.kind)).elements * contracted


def _matmul(left: Shape, right: Shape, out: Shape) -> int:
    """A library's ``[*b, m, k] x [*b, k, n]``, in any layout: its attributes are not read, the sizes say enough."""
    batch = math.prod(out.dims[:-2])
    contracted = math.isqrt(left.elements * right.elements // max(out.elements * batch, 1))
    return 2 * out.elements * contracted


@functools.lru_cache(maxsize=4096)
def _valid(inputs: int, outputs: int, size: int, stride: int, low: int, dilate: int, rhs_dilate: int) -> int:
    """Pairs of an output and a kernel position that meet an input value, along one spatial dimension."""
    at = np.arange(outputs)[:, None] * stride + np.arange(size) * rhs_dilate - low
    return int(np.sum((at % dilate == 0) & (at >= 0) & (at < inputs * dilate)))


def _window(instruction: Instruction, rank: int) -> dict[str, list[int]]:
    text = instruction.attribute("window") or "{}"
    fields = dict(re.findall(r"(\w+)=([\dx_-]+)", text))
    lists = {"pad": [0] * rank}
    for key in ("size", "stride", "lhs_dilate", "rhs_dilate"):
        lists[key] = [int(x) for x in fields[key].split("x")] if key in fields else [1] * rank
    if "pad" in fields:
        lists["pad"] = [int(x.split("_")[0]) for x in fields["pad"].split("x")]
    return lists


def _convolution(instruction: Instruction, left: Shape, right: Shape, out: Shape) -> int:
    labels = re.match(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels") or "")
    if labels is None:
        return 0
    lhs, rhs, result = labels.groups()
    spatial = sorted(c for c in result if c.isdigit())
    window = _window(instruction, len(spatial))
    pairs = 1
    for i, c in enumerate(spatial):
        pairs *= _valid(
            left.dims[lhs.index(c)],
            out.dims[result.index(c)],
            window["size"][i],
            window["stride"][i],
            window["pad"][i],
            window["lhs_dilate"][i],
            window["rhs_dilate"][i],
        )
    # The kernel's input features are already divided by ``feature_group_count``; a batch group computes its own share.
    groups = int(instruction.attribute("batch_group_count") or 1)
    batch = out.dims[result.index("b")] if groups == 1 else left.dims[lhs.index("b")] // groups
    return 2 * batch * out.dims[result.index("f")] * right.dims[rhs.index("i")] * pairs


def flops(computation: Computation, instruction: Instruction) -> tuple[str, int]:
    """Type of the factors and operations of one instruction; 0 where it is no product."""
    opcode = instruction.opcode
    target = instruction.attribute("custom_call_target") or "" if opcode == "custom-call" else ""
    library = MATMUL_CALLS.search(target), CONVOLUTION_CALLS.search(target)
    if opcode not in ("dot", "convolution") and not any(library):
        return "", 0
    left, right = (_shape(computation, name) for name in instruction.operands[:2])
    out = next(leaves(instruction.kind))
    if opcode == "dot":
        count = _dot(instruction, left)
    elif library[0]:
        count = _matmul(left, right, out)
    else:
        count = _convolution(instruction, left, right, out)
    return left.dtype, count
