"""The published plans of the 17 B model, held to a count of one of its blocks by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
WIDTH, FFN, BLOCKS = 5120, 13_824, 40
PATCHES = 30 * 52  # of a latent frame at 480 x 832

#: Products that tokens go through, and those of text's and sound's keys and values.
THROUGH, OTHER = 7 * WIDTH**2 + 2 * WIDTH * FFN, 4 * WIDTH**2


def result(name: str) -> dict:
    return json.loads((RESULTS / f"plan_17b_{name}.json").read_text())


def moved(data: dict, kind: str, axes: str, where: str = "") -> int:
    rows = [r for r in data["collectives"] if (r["kind"], r["axes"]) == (kind, axes) and where in r["where"]]
    return sum(r["bytes"] * r["times"] for r in rows)


def test_verdicts():
    want = dict.fromkeys(("v5p_4x4x4", "v6e_8x8", "chunk_v6e_2x4", "chunk_v6e_2x4_int8", "dmd_on_v5p_4x4x8"), True)
    want["v5e_4x8"] = False
    fits = {name: result(name)["fits"] for name in want}
    assert fits == want
    assert not any(result(name)["estimate"] for name in fits)


@pytest.mark.parametrize("name", ["v5p_4x4x4", "v6e_8x8"])
def test_a_block_of_training(name):
    """One clip of 19 frames and 2 references a device, a quarter of its patches; 16-bit weights gathered twice."""
    data = result(name)
    assert data["settings"] | {"batch": 16, "latents": 19} == data["settings"] and data["mesh"]["fsdp"] == 16
    layer = 2 * 21 * PATCHES // 4 * WIDTH
    # Ulysses: q, k, v and the result; forward, recomputed, backward.
    assert moved(data, "all-to-all", "context") / BLOCKS == pytest.approx(3 * 4 * layer, rel=0.05)
    # Weights gathered twice, and gradients of what tokens go through; for v5p libtpu writes both as all-reduces.
    stored = moved(data, "all-gather", "fsdp x context") + moved(data, "all-reduce", "fsdp x context")
    assert stored / BLOCKS == pytest.approx(2 * 2 * (THROUGH + OTHER) + 2 * THROUGH, rel=0.05)
    # Products, in TFLOP: linear ones forward, recomputed and twice backward; attention by the kernel, whose gradient
    # takes three and four products where the forward pass has two, over blocks of 512.
    tokens, words, sounds = 21 * PATCHES / 4, 512, 4 * (9 + 19)
    video = 19 * PATCHES / 4
    linear = 2 * (tokens * (4 * WIDTH**2 + 2 * WIDTH * FFN) + video * 3 * WIDTH**2 + (words + sounds) * 2 * WIDTH**2)
    attention = 4 * 10 * 128 * (19 * PATCHES) * (21 * PATCHES)
    crossed = 4 * video * (words + sounds) * WIDTH
    count = BLOCKS * (4 * (linear + crossed) + (2 + 3 / 2 + 4 / 2) * attention)
    assert sum(data["flops_per_device"].values()) == pytest.approx(count, rel=0.05)


@pytest.mark.parametrize("pod, chips", [("v6e_2x4", 8), ("v5p_2x2x1", 4), ("v5p_2x2x2", 8)])
def test_a_block_of_streaming(pod, chips):
    """A chunk of 6 frames in two evaluations: four sums over tensor a block, and the cache stays where it is."""
    data = result(f"chunk_{pod}")
    layer = 2 * 6 * PATCHES * WIDTH
    assert moved(data, "all-reduce", "tensor") / BLOCKS == pytest.approx(2 * 4 * layer, rel=0.05)
    slots = 14 + 5 * 6
    cache = 2 * 2 * BLOCKS * slots * PATCHES * WIDTH // chips
    assert data["memory"]["arguments"]["cache"] == cache <= data["memory"]["aliased"]


def test_what_eight_bits_save():
    """A byte of each kernel's number, and half the cache but for a 16-bit scale for each token and head of 128."""
    whole, small = (result(f"chunk_v6e_2x4{name}")["memory"]["arguments"] for name in ("", "_int8"))
    assert whole["weights"] - small["weights"] == pytest.approx(BLOCKS * (THROUGH + OTHER) / 8, rel=0.005)
    assert small["cache"] / whole["cache"] == pytest.approx((128 + 2) / (2 * 128), rel=1e-6)
