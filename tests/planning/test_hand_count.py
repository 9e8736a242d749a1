"""The real training step against a count of one pair of blocks by hand, with pencil and the equations of ``dit.py``."""

from __future__ import annotations

import json

import pytest

from tests.planning.eight import run_on_eight
from tests.planning.one_pair import AUDIO, CONFIG, FFN, WIDTH

CLIPS = 4 // 2  # of one device: cut over fsdp
FRAMES, REFERENCES = 6, 2
PATCHES = 4 * 8  # of a frame: 64 x 128 pixels, 8 to a cell, 2 cells to a patch
HALF = PATCHES // 2  # cut over context
TOKENS, VIDEO = CLIPS * (FRAMES + REFERENCES) * HALF, CLIPS * FRAMES * HALF
WORDS, SOUNDS = CLIPS * 8, CLIPS * (36 + 4 * FRAMES)  # whole on every device; 1.5 s of history before the window
LAYER, ONLY_VIDEO = 2 * TOKENS * WIDTH, 2 * VIDEO * WIDTH  # bytes of bfloat16

#: Weights of a block: self-attention; queries and outputs of the cross-attentions, which tokens go through; keys and
#: values of text and sound; feed-forward.
SELF, CROSS, OTHER = 4 * WIDTH**2, 3 * WIDTH**2, 2 * WIDTH**2 + 2 * AUDIO * WIDTH
FEED = 2 * WIDTH * FFN


@pytest.mark.slow
def test_one_pair_of_blocks():
    found = json.loads(run_on_eight("tests.planning.one_pair"))
    sent = found["bytes"]
    # Ulysses: q, k, v there and the result back; forward, recomputed, backward; two blocks; heads cut over tensor.
    assert sent["all-to-all context"] == pytest.approx(2 * 3 * 4 * LAYER / 2, rel=0.05)
    # FSDP: weights in bfloat16, cut over tensor (but the table of modulations), gathered forward and again backward.
    weights = 2 * ((SELF + CROSS + OTHER + FEED) / 2 + 6 * WIDTH)
    assert sent["all-gather fsdp context"] == pytest.approx(2 * 2 * weights, rel=0.05)
    # Gradients: those that tokens make are summed over fsdp and context, those of text and sound over fsdp.
    assert sent["all-reduce fsdp context"] == pytest.approx(2 * 2 * (SELF + CROSS + FEED) / 2, rel=0.05)
    assert sent["all-reduce fsdp"] == pytest.approx(2 * 2 * OTHER / 2, rel=0.05)
    # Megatron: outputs of self-attention and feed-forward over all tokens, of text and audio over video, forward and
    # recomputed; backward the inputs of q, k, v and ffn_in, of text_q, and of the four products of text and sound.
    once = 2 * LAYER + 2 * ONLY_VIDEO
    back = 4 * LAYER + ONLY_VIDEO + 2 * (2 * WIDTH * WORDS + 2 * WIDTH * SOUNDS)
    assert sent["all-reduce tensor"] == pytest.approx(2 * (2 * once + back), rel=0.05)


@pytest.mark.slow
def test_products_of_one_pair():
    found = json.loads(run_on_eight("tests.planning.one_pair"))
    heads, dim = CONFIG.dit.heads, CONFIG.dit.head_dim
    linear = 2 * (TOKENS * SELF + VIDEO * CROSS + (WORDS + SOUNDS) * 2 * WIDTH**2 + TOKENS * FEED) / 2
    everyone = (FRAMES + REFERENCES) * PATCHES  # a clip's tokens; heads cut over tensor and context
    attention = 4 * CLIPS * (heads / 4) * everyone**2 * dim
    crossed = 4 * (heads / 2) * VIDEO * (WORDS + SOUNDS) / CLIPS * dim
    # Forward, recomputed, and two products backward for each.
    assert found["flops"] == pytest.approx(2 * 4 * (linear + attention + crossed), rel=0.01)
