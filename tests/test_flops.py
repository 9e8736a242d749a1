"""The analytic counts against JAX: parameters exactly, operations against XLA's own count."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax import flops, pretrained
from lpm_jax.config import DiTConfig
from lpm_jax.errors import InputError
from lpm_jax.models import dit
from lpm_jax.options import load_config

CONFIGS = Path(__file__).parents[1] / "configs"
WIDE = DiTConfig(
    depth=2, width=192, heads=2, ffn=512, channels=8, time_width=32, text_width=64, audio_width=96
)  # fmt: skip


def abstract(config: DiTConfig) -> dict:
    return jax.eval_shape(lambda: dit.init(config, jax.random.key(0)))


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", ["toy", "lpm_1b", "lpm_17b"])
def test_parameters_are_those_of_the_model(name):
    config = load_config(CONFIGS / f"{name}.py").dit
    parts, tree = flops.parameters(config), abstract(config)
    audio = [{k: v for k, v in block.items() if "audio" in k} for block in tree["blocks"].values()]
    assert parts["audio"] == count(audio)
    assert parts["ffn"] == count([{k: v for k, v in b.items() if "ffn" in k} for b in tree["blocks"].values()])
    assert parts["embed"] == count(tree["embed"]) and parts["head"] == count(tree["head"])
    assert sum(parts.values()) == count(tree)


def test_the_large_configs_have_their_sizes():
    large, small = (load_config(CONFIGS / f"lpm_{size}.py") for size in ("17b", "1b"))
    parts = flops.parameters(large.dit)
    assert sum(parts.values()) == pytest.approx(17.4e9, rel=0.01)
    assert parts["audio"] == pytest.approx(3.15e9, rel=0.01)
    parts = flops.parameters(small.dit)
    assert sum(parts.values()) - parts["audio"] == pytest.approx(1.42e9, rel=0.01)
    for config in (large, small):
        assert config.dit.prediction == "velocity" and config.audio.width == config.dit.audio_width
        assert config.dit.head_dim == 128 and config.text.width == config.dit.text_width


def xla(config: DiTConfig, work: flops.Workload) -> float:
    """XLA's count for one unrolled pass; nothing is compiled or computed."""
    b, f, n = work.batch, work.frames + work.references, work.height * work.width
    half = config.head_dim // 2

    def of(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    audio = dit.Audio(
        of(b, work.audio, config.audio_width), of(b, work.frames, work.audio, dtype=bool),
        of(work.frames, half), of(work.audio, half),
    )  # fmt: skip
    told = dit.Conditions(of(b, work.text, config.text_width), of(b, work.text, dtype=bool), audio, audio)
    patches, levels = of(b, f, n, config.patch**2 * config.channels), of(b, f)
    at, cache = dit.Positions(of(1, f * n, half), None, None), None
    if work.context:
        at = dit.Positions(at.own, of(1, work.context * n, half), None)
        cache = dit.Cache(*[of(config.depth // 2, 2, b, work.context, n, config.heads, config.head_dim)] * 2)

    def run(params, patches, levels, told, at, cache):
        return dit.forward(config, params, patches, levels, work.frames, told, at, cache, unroll=True)[0]

    return jax.jit(run).lower(abstract(config), patches, levels, told, at, cache).cost_analysis()["flops"]


@pytest.mark.parametrize(
    "work",
    [
        flops.Workload(batch=2, frames=2, height=3, width=5, text=24, audio=8),
        flops.Workload(frames=2, height=4, width=8, references=2, context=4, text=16, audio=24),
    ],
    ids=["base", "stream"],
)
def test_operations_are_those_that_xla_counts(work):
    counted, ours = xla(WIDE, work), flops.total(flops.costs(WIDE, work)).flops
    assert ours < counted < 1.06 * ours  # what XLA counts beside products: norms, softmax, activations


def test_what_grows_with_what():
    work = flops.Workload()
    base = flops.costs(WIDE, work)

    def grows(**change):
        new = flops.costs(WIDE, dataclasses.replace(work, **change))
        return {part for part in flops.COMPONENTS if new[part].flops > base[part].flops}

    assert grows(text=1024) == {"text", "embed"} and grows(audio=48) == {"audio"}
    assert grows(context=6) == {"attention"} and grows(references=1) == {"attention", "ffn", "embed"}
    twice = flops.costs(WIDE, dataclasses.replace(work, batch=2))
    assert all(twice[part].flops == 2 * base[part].flops for part in flops.COMPONENTS)
    assert all(cost.bytes >= 2 * cost.parameters for cost in base.values())


def test_the_table_in_the_docs_is_up_to_date():
    text = (CONFIGS.parent / "docs" / "models.md").read_text()
    for name in ("lpm_17b", "lpm_1b"):
        assert flops.table(load_config(CONFIGS / f"{name}.py").dit, flops.Workload()) in text


def test_the_parts_in_the_docs_are_those_of_the_models():
    text = (CONFIGS.parent / "docs" / "models.md").read_text()
    columns = []
    for name in ("lpm_17b", "lpm_1b"):
        parts = pretrained.parts(load_config(CONFIGS / f"{name}.py"))
        model = parts.pop("model")
        assert set(model) == {"dit", "speak", "listen", "prior"} and set(parts) == {"text", "vae", "audio"}
        trees = [model["dit"], [model["speak"], model["listen"]], model["prior"], *(parts[k] for k in parts)]
        columns.append(dict(zip(["dit", "adapters", "prior", *parts], map(count, trees), strict=True)))
    titles = {
        "dit": "transformer | `model-*`",
        "adapters": "adapters of sound, speak and listen | `model-*`",
        "prior": "prior of the latent | `model-*`",
        "text": "umT5-XXL text encoder | `text-*`, `tokenizer.json`",
        "vae": "Wan 2.1 video VAE | `vae-*`",
        "audio": "wav2vec 2.0 base audio encoder | `audio-*`",
    }
    assert titles.keys() == columns[0].keys()
    for part, title in titles.items():
        assert f"| {title} | {columns[0][part]:,} | {columns[1][part]:,} |" in text, part


def test_lengths_that_are_none():
    with pytest.raises(InputError, match="--frames: expected a positive number, found 0"):
        flops.Workload(frames=0)
