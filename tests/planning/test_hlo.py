"""What is counted in compiled programs, against counts by hand."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest

from lpm_jax.planning import hlo
from lpm_jax.planning.groups import mesh_axes, replica_groups
from lpm_jax.planning.hlo_text import Instruction, Shape, parse, parse_type, size

MESH = {"replica": 1, "fsdp": 2, "ring": 2, "context": 1, "tensor": 2}
GOLDEN = Path(__file__).parents[1] / "golden"


def exchanges(count: hlo.Count) -> dict[tuple, int]:
    """(kind, axes, bytes) to how often; scalars (of losses) apart."""
    found: Counter = Counter()
    for c, times in count.collectives.items():
        found[c.kind, c.axes, c.bytes] += times
    return dict(found)


def test_scan_of_layers(programs):
    count = hlo.analyse(programs["layers"], MESH, "cpu")
    found = exchanges(count)
    # Gathered over fsdp: 64 x 64 and 64 x 64 float32 each (cut over tensor), five times.
    gathered = sum(n * b for (kind, axes, b), n in found.items() if kind == "all-gather" and axes == ("fsdp",))
    assert gathered == 5 * 2 * (64 * 64 * 4)
    # Summed over tensor: 16 rows of 64, five times.
    assert found["all-reduce", ("tensor",), 16 * 64 * 4] == 5
    # Two products of 16 x 64 x 64 (cut over fsdp and tensor), five times.
    assert count.all_flops == 5 * 2 * (2 * 16 * 64 * 64)
    assert not count.unknown_loops


def test_loops_within_loops(programs):
    found = exchanges(hlo.analyse(programs["nested"], MESH))
    assert found == {("collective-permute", ("ring",), 8 * 128 * 4): 12}


def test_kinds_axes_and_sizes(programs):
    """A device has 16 x 64 of bfloat16: 2,048 bytes. CPU compiles them in float32; meant are 16 bits."""
    found = exchanges(hlo.analyse(programs["exchanged"], MESH, "cpu"))
    assert found["all-to-all", ("tensor",), 2048] == 1
    # reduce-scatter over two devices: 8 x 128 in, half of it out; CPU may write it as an all-reduce and a slice.
    scattered = {kind for (kind, axes, b) in found if axes == ("fsdp",) and b == 2048}
    assert scattered and scattered <= {"reduce-scatter", "all-reduce"}
    assert found["all-reduce", ("fsdp", "ring"), 1024] == 1
    wide = exchanges(hlo.analyse(programs["exchanged"], MESH))
    assert wide["all-to-all", ("tensor",), 4096] == 1


def test_largest_branch_and_unknown_loops(programs):
    count = hlo.analyse(programs["branches"], MESH)
    assert count.all_flops == 2 * 64 * 64 * 64 + 2 * 64 * 64 * 16  # a loop of unknown length counts once
    assert len(count.unknown_loops) == 1
    longer = hlo.analyse(programs["branches"], MESH, turns=3)
    assert longer.all_flops - count.all_flops == 2 * 2 * 64 * 64 * 16


def test_products(programs):
    count = hlo.analyse(programs["products"], MESH)
    dot = 2 * 4 * 6 * 12 * (8 * 10)
    # Rows: 9 padded by 1 each side, stride 2: outputs at -1, 1, 3, 5, 7 with three taps each, one of them on padding
    # at either end: 13 pairs. Columns: outputs at 0, 2, 4, 6: 12 pairs.
    assert count.all_flops == dot + 2 * 2 * 5 * 3 * 13 * 12


def test_slices_of_stacks_move_slices(programs):
    """64 rows read and 64 written: not 64 times the whole."""
    moved = hlo.analyse(programs["sliced"], MESH).traffic.hbm
    row = 1024 * 4
    assert 64 * 2 * row <= moved < 64 * 8 * row


@pytest.mark.parametrize(("name", "fsdp"), [("v5e", 8), ("7x", 4)])
def test_libtpu(name, fsdp):
    """``golden/make_tpu_hlo.py``: six layers of three products, forward, recomputed and backward. v5e spreads its
    gathers over several fusions and writes reduce-scatters as all-reduces with a slice; 7x uses the SparseCore."""
    text = gzip.decompress((GOLDEN / f"tpu_{name}.hlo.gz").read_bytes()).decode()
    count = hlo.analyse(text, {"fsdp": fsdp, "context": 2})
    found = exchanges(count)
    tokens, weight = (8 // fsdp) * 512, 512 * 512 * 2
    own = tokens * 512 * 2
    assert found.pop(("all-gather", ("fsdp",), weight)) == 6 * 3 * 2
    assert found.pop(("all-to-all", ("context",), own)) == 6 * 2 * 3
    assert found.pop(("collective-permute", ("context",), own)) == 6 * 3 * 3
    if name == "v5e":
        assert found.pop(("reduce-scatter", ("fsdp",), weight)) == 6 * 3
        assert found.pop(("all-reduce", ("context",), 3 * weight // fsdp)) == 6
    else:
        assert found.pop(("all-reduce", ("fsdp", "context"), 3 * weight)) == 6
    assert not found and not count.unknown_loops and not count.kernels
    # Recomputed are two of three products: the last one's result is not needed again.
    assert dict(count.flops) == {"bf16": 6 * (3 + 2 + 6) * 2 * tokens * 512 * 512}


ACROSS_SLICES = """HloModule two, is_scheduled=true, num_partitions=8

ENTRY %main (param: f32[64,8,128]) -> f32[64,8,128] {
  %param = f32[64,8,128]{2,1,0:T(8,128)} parameter(0)
  %after-all = token[] after-all()
  %send = (f32[64,8,128]{2,1,0:T(8,128)}, u32[]{:S(2)}, token[]) send(%param, %after-all), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[64,8,128]{2,1,0:T(8,128)}, u32[]{:S(2)}, token[]) recv(%after-all), channel_id=1, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  ROOT %done = f32[64,8,128]{2,1,0:T(8,128)} recv-done(%recv), channel_id=1
}
"""


def test_collectives_across_slices():
    """libtpu hands them to the host, as it wrote them for two slices of ``v5e:2x2``."""
    found = exchanges(hlo.analyse(ACROSS_SLICES, {"replica": 2, "fsdp": 4}))
    assert found == {("all-reduce", ("replica",), 64 * 8 * 128 * 4): 1}


def test_groups():
    """Every way XLA writes them, on a mesh of 2 x 2 x 2."""
    shape = {"a": 2, "b": 2, "c": 2}

    def axes(text):
        found = replica_groups(Instruction("x", (), "all-reduce", (), text, False), 8)
        return mesh_axes(found, shape), len(found[0])

    assert axes("replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}") == (("c",), 2)
    assert axes("channel_id=1, replica_groups=[4,2]<=[8], use_global_device_ids=true") == (("c",), 2)
    assert axes("replica_groups=[4,2]<=[2,2,2]T(2,1,0)") == (("a",), 2)
    assert axes("replica_groups=[2,4]<=[2,2,2]T(1,0,2)") == (("a", "c"), 4)
    assert axes("replica_groups=mesh['x'=2,'y'=4] {'x'}, dimensions={2}") == (("a",), 2)
    assert axes("replica_groups=mesh[x=2,y=4] {y:(1)2}") == (("b",), 2)
    assert axes("replica_groups=mesh['x'=2,'y'=4] {'y':(2)2}") == (("c",), 2)
    assert axes("replica_groups=mesh['x'=4,'y'=2], device_ids=([2,2,2]T(0,2,1)) {'y'}") == (("b",), 2)
    assert axes("replica_groups=mesh['x'=4,'y'=2], device_ids=(0,4,1,5,2,6,3,7) {'y'}") == (("a",), 2)
    assert axes("source_target_pairs={{0,2},{2,0},{5,7}}") == (("b",), 2)
    assert axes("replica_groups={}, to_apply=%add") == (("a", "b", "c"), 8)


def test_shapes():
    assert parse_type("bf16[4,512]{1,0:T(8,128)(2,1)S(1)}") == Shape("bf16", (4, 512), 1)
    assert size(parse_type("(f32[2,3]{1,0}, (s4[3], f8e4m3fn[5]), token[], pred[])")) == 24 + 2 + 5 + 1


def test_text_that_is_none():
    with pytest.raises(ValueError, match="expected the text of an HLO module"):
        parse("nothing here")
