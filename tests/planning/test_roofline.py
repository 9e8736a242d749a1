"""Times of collectives and steps, against hand-worked ones of "How to Scale Your Model"."""

from __future__ import annotations

from collections import Counter

import pytest

from lpm_jax.errors import InputError
from lpm_jax.planning import chips
from lpm_jax.planning.hlo import Collective, Count
from lpm_jax.planning.network import Pod, places
from lpm_jax.planning.roofline import roofline
from lpm_jax.planning.traffic import Traffic


def collective(kind: str, axes: tuple[str, ...], devices: int, size: int) -> Collective:
    return Collective(kind, axes, devices, size, "bf16", "x", "")


def pod(chip: str, sizes: tuple[int, ...], mesh: dict[str, int], slices: int = 1) -> Pod:
    """Mesh axes along the torus: the first along z, y, x in turn."""
    chip = chips.find(chip)
    return Pod(chip, mesh, (*sizes, 1, 1)[:3], places(chip, sizes, slices))


def test_rings_and_lines():
    size = 2**30
    # v5p 4 x 4 x 4 is a torus: two links of 100 GB/s along a dimension.
    torus = pod("v5p", (4, 4, 4), {"a": 4, "b": 4, "c": 4})
    assert torus.time(collective("all-gather", ("c",), 4, size)) == (pytest.approx(size * 3 / 4 / 200e9), ("x",))
    # Two dimensions: four links.
    gather = collective("all-gather", ("b", "c"), 16, size)
    assert torus.time(gather)[0] == pytest.approx(size * 15 / 16 / 400e9)
    assert torus.time(gather._replace(kind="all-reduce"))[0] == pytest.approx(2 * size * 15 / 16 / 400e9)
    assert torus.time(gather._replace(kind="reduce-scatter"))[0] == pytest.approx(size * 15 / 16 / 400e9)
    # The book: an all-to-all on a ring takes a quarter of an all-gather of what all devices hold together.
    swap = collective("all-to-all", ("c",), 4, size)
    assert torus.time(swap)[0] == pytest.approx(4 * size / 4 / 200e9)
    assert torus.time(collective("collective-permute", ("c",), 4, size))[0] == pytest.approx(size / 100e9)
    # v5e 4 x 4 does not wrap around: one link of 50 GB/s along a dimension.
    grid = pod("v5e", (4, 4), {"a": 4, "c": 4})
    assert grid.time(collective("all-gather", ("c",), 4, size))[0] == pytest.approx(size * 3 / 4 / 50e9)
    # Of 16 it does, and half of a ring is a line.
    assert pod("v5e", (16, 16), {"a": 16, "c": 16}).links(1, 16) == 100e9
    assert pod("v5e", (16, 16), {"a": 32, "c": 8}).links(1, 8) == 50e9


def test_cores_of_one_chip():
    """TPU7x: the two cores' own link is six times an ICI link, and they share the chip's."""
    found = pod("7x", (2, 2, 1), {"a": 4, "c": 2})
    assert found.time(collective("all-gather", ("c",), 2, 600)) == (pytest.approx(300 / 600e9), ("core",))
    seconds, links = found.time(collective("all-gather", ("a",), 4, 400))
    assert (seconds, links) == (pytest.approx(300 / 100e9), ("x", "y"))  # two lines of 50 GB/s for each core


def test_switch_and_network():
    node = pod("h100", (8,), {"a": 8})
    assert node.time(collective("all-reduce", ("a",), 8, 800)) == (pytest.approx(2 * 700 / 450e9), ("nvlink",))
    nodes = pod("h100", (32,), {"a": 4, "c": 8})
    assert nodes.time(collective("all-gather", ("c",), 8, 800))[1] == ("nvlink",)
    # Four nodes, one GPU of each: three quarters of the array through its own card.
    assert nodes.time(collective("all-gather", ("a",), 4, 800)) == (pytest.approx(600 / 50e9), ("network",))
    # All GPUs: each card carries an eighth of what comes from other nodes (1.5 ns), and the switch the rest meanwhile.
    seconds, links = nodes.time(collective("all-gather", ("a", "c"), 32, 800))
    assert (seconds, links) == (pytest.approx(700 / 450e9), ("network", "nvlink")) and seconds > 600 / (8 * 50e9)
    # Slices of TPUs likewise.
    slices = pod("v6e", (4, 4), {"a": 2, "c": 16}, slices=2)
    assert slices.time(collective("all-reduce", ("a",), 2, 800)) == (pytest.approx(2 * 400 / 12.5e9), ("network",))


def test_what_bounds_a_step():
    found = pod("v5p", (4, 4, 4), {"a": 16, "c": 4})
    count = Count(Counter(bf16=459 * 10**12), Traffic(2765 * 10**8, 16 * 10**8))
    gather = collective("all-gather", ("c",), 4, 4 * 10**10)  # 0.15 s
    count.collectives[gather] = 4
    line = roofline(count, found)
    assert (line.compute, line.memory, line.host) == (pytest.approx(1), pytest.approx(0.1), pytest.approx(0.1))
    assert line.axes == {"c": pytest.approx(0.6)} and line.bound == "compute" and line.overlapped == pytest.approx(1)
    assert line.serial == pytest.approx(1 + 0.1 + 0.6)
    count.collectives[gather] = 10
    assert roofline(count, found).bound == "links x"
    # Two axes on different dimensions overlap, on the same ones they wait for each other.
    count.collectives[gather] = 4
    count.collectives[collective("all-gather", ("a",), 16, 4 * 10**10)] = 1
    line = roofline(count, found)
    assert set(line.links) == {"x", "y", "z"} and line.communication == pytest.approx(0.6 + 4e10 * 15 / 16 / 400e9)


def test_peaks():
    h100, v5p = chips.find("h100"), chips.find("v5p")
    assert h100.peak("f32") == h100.flops / 2 and v5p.peak("f32") == v5p.flops
    assert h100.peak("f8e4m3fn") == 2 * h100.flops


def test_every_chip_is_plausible():
    """Products per byte of memory traffic lie between 150 and 700 for all, and ICI is slower than HBM."""
    for chip in chips.CHIPS.values():
        assert 150 < chip.flops / chip.bandwidth < 700 and chip.network < chip.link < chip.bandwidth
        assert 15 * 2**30 < chip.hbm < 192 * 2**30


def test_names():
    assert chips.find("tpu7x") is chips.CHIPS["7x"] and chips.find("H200").name == "h200"
    with pytest.raises(InputError, match="expected a chip of v5e, v5p, v6e, 7x, h100, h200, b200, found 'a100'"):
        chips.find("a100")


def test_places_are_in_the_order_of_ids():
    assert places(chips.find("v5e"), (4, 2))[[0, 1, 4], :3].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert places(chips.find("7x"), (2, 2, 1))[1].tolist() == [0, 0, 0, 0, 1]
    assert places(chips.find("h100"), (16,))[9].tolist() == [1, 1, 0, 0, 0]
