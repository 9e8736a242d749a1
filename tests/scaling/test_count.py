"""What a run costs, by hand and by XLA's own count, and the ladder's sizes."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.models import conditions
from lpm_jax.models.conditions import history_tokens
from lpm_jax.options import load_config
from lpm_jax.scaling import count
from lpm_jax.training.flow_matching import make_loss
from tests import tiny

LADDER = Path(__file__).parents[2] / "configs" / "ladder"
RUNGS = ("1m", "3m", "10m", "30m")


def size(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def with_train(config, **train):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))


def test_a_step_by_hand():
    """The tiny model: 4 blocks of width 32, frames of 2 x 2 patches of 32 numbers, windows of 9 frames and 2
    references (36 + 8 tokens), 8 words, 44 + 36 audio tokens of 24 numbers, heard by 2 blocks of width 12."""
    block = [
        4 * 2 * 44 * 32 * 32 + 4 * 44 * 44 * 32,  # self-attention
        2 * 2 * 44 * 32 * 64,  # feed-forward
        2 * 2 * 36 * 32 * 32 + 2 * 2 * 8 * 32 * 32 + 4 * 36 * 8 * 32,  # text
        2 * 2 * 80 * 16 * 32 + 2 * 36 * 32 * 32 + 4 * 36 * 80 * 32,  # audio
    ]
    embed = 2 * 44 * 32 * 32 + 2 * 36 * 32 * 32 + 2 * 8 * (16 * 32 + 32 * 32)  # patches, the near latent, words
    embed += 2 * 11 * (16 * 32 + 32 * 32 + 32 * 6 * 32)  # noise levels
    embed += 2 * 9 * 6 * 32  # a little life
    head = 2 * 36 * 32 * (32 + 2 * 8 + 4 * 3)  # patches, gates, motions
    encoders = 2 * 80 * 2 * (24 * 16 + 16 * 16 + 12 * 16) + 2 * 8 * (3 * 16) * 16
    hearing = 2 * 80 * 2 * (24 * 12 + 2 * 4 * 12 * 12)  # frozen: forward alone
    clip = 4 * sum(block) + embed + head + encoders
    assert count.step_flops(tiny.CONFIG, "base.speak", 4) == 4 * (
        3 * clip + hearing
    )  # 4 windows, forward, twice that backward
    assert count.step_flops(tiny.CONFIG, "online.causal", 4) == 4 * (3 * (2 * (clip - encoders) + encoders) + hearing)


def test_a_run_by_hand():
    run = with_train(tiny.CONFIG, steps=45, whole_every=20, token_keep=0.5)
    cost = count.cost(run, "base.speak")
    assert cost.tokens == 4 * 9 * (43 * 2 + 2 * 4)  # two steps compute all patches
    half, whole = (count.step_flops(run, "base.speak", kept) for kept in (2, 4))
    assert cost.flops == 43 * half + 2 * whole and half < whole
    for train in ({"whole_every": 0}, {"token_keep": 1.0}):
        kept = 2 if "whole_every" in train else 4
        cost = count.cost(with_train(run, **train), "base.speak")
        assert (cost.flops, cost.tokens) == (45 * count.step_flops(run, "base.speak", kept), 45 * 4 * 9 * kept)
    more = with_train(run, extra_references=0.3)
    assert count.workload(more, 4).references == 3


def test_operations_are_those_that_xla_counts():
    """Of the loss and its gradient as training computes them; XLA also counts norms, softmax and the loss."""
    dit = dataclasses.replace(
        tiny.CONFIG.dit, depth=2, width=192, heads=6, ffn=576, channels=8, text_width=96, audio_width=96
    )
    audio, text = (dataclasses.replace(part, width=96) for part in (tiny.CONFIG.audio, tiny.CONFIG.text))
    config = with_train(
        dataclasses.replace(tiny.CONFIG, size=64, dit=dit, audio=audio, text=text), batch=2, latents=6, unroll=True
    )
    tokens = history_tokens(config.audio) + 24

    def of(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    batch = {
        "latents": of(2, 6, 8, 8, 8), "references": of(2, 2, 8, 8, 8), "reference_kinds": of(2, 2, dtype=jnp.int32),
        "reference_valid": of(2, 2, dtype=bool), "text": of(2, 8, dtype=jnp.int32), "weights": of(2, 6, 8, 8),
        "speak": of(2, tokens, tiny.FEATURES), "listen": of(2, tokens, tiny.FEATURES),
    }  # fmt: skip
    step = jax.jit(jax.value_and_grad(make_loss(config, False, 1.0), has_aux=True))
    lowered = step.lower(conditions.abstract(config), batch, jax.eval_shape(lambda: jax.random.key(0)))
    ours = count.step_flops(config, "base.speak", 16)
    assert 0.98 * ours < lowered.cost_analysis()["flops"] < 1.12 * ours


def test_muon_by_hand():
    config = dataclasses.replace(tiny.CONFIG, dit=dataclasses.replace(tiny.CONFIG.dit, depth=2))
    square = lambda least, most: 5 * 2 * (2 * least**2 * most + least**3)  # noqa: E731
    block = 9 * square(32, 32) + 2 * square(16, 32) + 2 * square(32, 64)
    ends = 4 * square(32, 32) + 2 * square(16, 32) + square(32, 192) + square(32, 32) + square(16, 32)
    ends += square(6, 32) + square(12, 32)  # a little life, motions
    encoders = 2 * (square(16, 24) + square(16, 16) + square(12, 16)) + square(16, 48)
    assert count.muon_flops(config) == 2 * block + ends + encoders
    assert count.muon_flops(with_train(config, optimizer="adamw")) == 0


def test_the_ladder_has_its_sizes():
    """Named after the transformer's parameters, as the larger configs; docstrings and docs hold these numbers."""
    shapes, docs = [], (LADDER.parents[1] / "docs" / "scaling.md").read_text()
    for name in RUNGS:
        config = load_config(LADDER / f"{name}.py")
        tree = conditions.abstract(config)
        assert config.name == name
        assert size(tree["dit"]) == pytest.approx(1e6 * int(name[:-1]), rel=0.15)
        run = with_train(config.for_stage("base.speak"), steps=1)
        cost = count.cost(run, "base.speak")
        assert cost.parameters == size(tree) - size(tree["prior"])
        assert cost.blocks == size(tree["dit"]["blocks"])
        dit, text = config.dit, (LADDER / f"{name}.py").read_text()
        whole, small = f"{size(tree['dit']) / 1e6:.3g} M", f"{(cost.parameters - size(tree['dit'])) / 1e6:.2g} M"
        assert f"transformer {whole} " in text and f"encoders {small}," in text
        assert f"{cost.flops / 1e12:.2g} TFLOP" in text
        columns = (
            whole,
            small,
            f"{dit.depth} x {dit.width}",
            *(f"{f / 1e12:.3f}" for f in (cost.flops, cost.muon_flops)),
        )
        assert f"| `ladder/{name}.py` | {' | '.join(columns)} |" in docs
        assert dit.head_dim == 32 and dit.depth % 2 == 0 and dit.ffn == 3 * dit.width
        assert config.audio.width == config.text.width == dit.text_width == dit.audio_width == dit.width
        shapes.append((dit.depth, dit.width))
    assert shapes == sorted(shapes)


def test_the_ladder_differs_in_size_alone():
    """Width and depth, and what follows from them; everything else is the toy's, but for what came to it since."""
    toy = dataclasses.asdict(load_config(LADDER.parent / "toy.py"))
    for settings in toy["stages"].values():
        settings |= {"lips": 0.0, "moves": 0.0}
    for name in RUNGS:
        config = dataclasses.asdict(load_config(LADDER / f"{name}.py"))
        for part in ("dit", "audio", "text"):
            changed = {key for key in toy[part] if config[part][key] != toy[part][key]}
            size = {"depth", "width", "heads", "ffn", "text_width", "audio_width"}
            assert changed <= size | {"hearing", "life", "warp"}
        for part in config.keys() - {"name", "dit", "audio", "text"}:
            assert config[part] == toy[part], part
