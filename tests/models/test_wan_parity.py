"""The transformer against Wan 2.1's, as diffusers computes it (golden tensors of tests/golden/make_wan_dit.py)."""

import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from lpm_jax.config import DiTConfig
from lpm_jax.models import conditions, dit, dit_names
from lpm_jax.nn.rope import angles_1d
from tests.golden.hashed import weight

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("t2v", "narrow", "i2v")


def read(name: str) -> tuple[DiTConfig, dict, dict, tuple[int, int, int]]:
    """Config, tensors, shapes of the PyTorch state dict and (frames, rows, columns) of a golden file."""
    with safe_open(GOLDEN / f"wan_dit_{name}.safetensors", "flax") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        meta = {key: json.loads(value) for key, value in file.metadata().items()}
    m = meta["config"]
    width = m["num_attention_heads"] * m["attention_head_dim"]
    config = DiTConfig(
        depth=m["num_layers"], width=width, heads=m["num_attention_heads"], ffn=m["ffn_dim"], channels=16,
        time_width=m["freq_dim"], text_width=m["text_dim"], audio_width=width, prediction="velocity",
    )  # fmt: skip
    return config, tensors, meta["shapes"], tuple(meta["grid"])


def imported(config: DiTConfig, shapes: dict) -> dict:
    """Our parameters from the hashed state dict; audio keys and outputs are anything, audio values are zero."""
    flat = {}
    abstract = jax.eval_shape(lambda: dit.init(config, jax.random.key(0)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        path = "/".join(part.key for part in path)
        name = dit_names.names(config)[path]
        layers = []
        for i in range(leaf.shape[0] if "{" in name.keys[0] else 1):
            key = name.keys[0].format(i=i, even=2 * i, odd=2 * i + 1)
            if dit_names.AUDIO.match(path):
                layers.append(dit_names.fresh(path, i, leaf.shape[1:]))
                continue
            value = weight(key, tuple(shapes[key]))
            if name.cut is not None:
                value = value[:, : name.shape[1]]
            layers.append(value.transpose(name.permutation))
        flat[path] = jnp.asarray(np.stack(layers).reshape(leaf.shape))
    tree: dict = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def relative(found, expected) -> float:
    """Root mean square error relative to the expected values' own."""
    found, expected = jnp.asarray(found, jnp.float32), jnp.asarray(expected, jnp.float32)
    assert found.shape == expected.shape
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


def inputs(config: DiTConfig, tensors: dict, grid: tuple[int, int, int], dtype=jnp.float32):
    """Everything ``dit.forward`` reads, with audio that is loud, so that only zero values keep it silent."""
    frames, rows, columns = grid
    latents = jnp.moveaxis(tensors["latents"], 1, -1)
    b = latents.shape[0]
    levels = jnp.broadcast_to(tensors["timesteps"][:, None] / 1000, (b, frames))
    tokens = 4 * frames
    audio = dit.Audio(
        3 * jax.random.normal(jax.random.key(0), (b, tokens, config.audio_width), dtype),
        jnp.ones((b, frames, tokens), bool),
        angles_1d(4.0 * jnp.arange(frames) + 1.5, config.head_dim, 100.0),
        angles_1d(jnp.arange(tokens), config.head_dim, 100.0),
    )
    text = tensors["text"].astype(dtype)
    told = dit.Conditions(text, jnp.ones(text.shape[:2], bool), audio, audio)
    mask = conditions.self_attention_mask(frames, None, jnp.ones((b, 0), bool))
    at = conditions.positions(config, jnp.arange(float(frames))[None], mask, (rows, columns))
    return dit.patchify(config, latents).astype(dtype), levels, told, at


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    config, tensors, shapes, grid = read(request.param)
    return config, tensors, grid, imported(config, shapes)


def output(golden, dtype):
    config, tensors, grid, params = golden
    patches, levels, told, at = inputs(config, tensors, grid, dtype)

    @jax.jit
    def run(params, patches, told):
        out, _ = dit.forward(config, params, patches, levels, grid[0], told, at)
        return jnp.moveaxis(dit.unpatchify(config, out, 2 * grid[1], 2 * grid[2]), -1, 1)

    return run(params, patches, told)


def test_whole(golden):
    assert relative(output(golden, jnp.float32), golden[1]["output"]) < 1e-4


def test_whole_in_bfloat16(golden):
    out = output(golden, jnp.bfloat16)
    assert relative(out, golden[1]["output"]) < 2e-2
    assert relative(out, golden[1]["output_bfloat16"]) < 2e-2


def test_block_by_block(golden):
    """Every block gets Wan's own tokens, so no error adds up or cancels."""
    config, tensors, grid, params = golden
    patches, levels, told, at = inputs(config, tensors, grid)
    frames = grid[0]
    x, time, modulation, text = dit.Embed(config).apply({"params": params["embed"]}, patches, levels, told.text)
    b, _, n, d = x.shape
    assert relative(x.reshape(b, -1, d), tensors["patches"]) < 1e-4
    assert relative(time[:, 0], tensors["time"]) < 1e-4
    assert relative(modulation[:, 0].reshape(b, -1), tensors["modulation"]) < 1e-4
    assert relative(text[:, :16], tensors["words"]) < 1e-4

    @jax.jit
    def block(weights, x):
        args = x.reshape(b, frames, n, d), modulation, frames, text, told.text_mask, told.speak, at
        return dit.Block(config).apply({"params": weights}, *args)[0].reshape(b, -1, d)

    x = tensors["patches"]
    for i in range(config.depth):
        weights = jax.tree.map(lambda leaf: leaf[i // 2], params["blocks"][dit.KINDS[i % 2]])  # noqa: B023
        y = block(weights, x)
        assert relative(y - x, tensors[f"block{i}"] - x) < 1e-4, i  # what the block adds, too
        x = tensors[f"block{i}"]
    out = dit.Head(config).apply({"params": params["head"]}, x.reshape(b, frames, n, d), time)
    out = jnp.moveaxis(dit.unpatchify(config, out, 2 * grid[1], 2 * grid[2]), -1, 1)
    assert relative(out, tensors["output"]) < 1e-4


def test_audio_values_are_what_keeps_it_silent(golden):
    """With other audio values the same network does not give Wan's output: the parity above is not by accident."""
    config, tensors, grid, params = golden
    kernel = params["blocks"]["speak"]["audio_v"]["kernel"]
    loud = params["blocks"]["speak"] | {"audio_v": {"kernel": kernel + 0.05, "bias": jnp.zeros(kernel.shape[::2])}}
    params = params | {"blocks": params["blocks"] | {"speak": loud}}
    assert relative(output((config, tensors, grid, params), jnp.float32), tensors["output"]) > 1e-2


def test_every_kept_tensor_has_a_place():
    """The names cover diffusers' state dict but for the image branch, and nothing twice."""
    for golden in NAMES:
        config, _, shapes, _ = read(golden)
        used = []
        for path, name in dit_names.names(config).items():
            if not dit_names.AUDIO.match(path):
                n = config.depth // 2 if "{" in name.keys[0] else 1
                used += [name.keys[0].format(i=i, even=2 * i, odd=2 * i + 1) for i in range(n)]
        assert len(used) == len(set(used))
        kept = {key for key in shapes if not dit_names.DROPPED.match(key)}
        assert kept == set(used)
        dropped = {re.sub(r"\.\d+\.", ".0.", key) for key in set(shapes) - kept}
        assert bool(dropped) == (golden == "i2v")
        assert math.prod(shapes["patch_embedding.weight"][1:]) == (144 if golden == "i2v" else 64)
