"""The transformer against Wan 2.1's, as diffusers computes it (golden tensors of tests/golden/make_wan_dit.py)."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from lpm_jax.models import dit, dit_names
from tests.golden.wan_dit import NAMES, imported, inputs, output, read, relative


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    config, tensors, shapes, grid = read(request.param)
    return config, tensors, grid, imported(config, shapes)


def test_whole(golden):
    assert relative(output(*golden), golden[1]["output"]) < 1e-4


def test_whole_in_bfloat16(golden):
    out = output(*golden, jnp.bfloat16)
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
    assert relative(output(config, tensors, grid, params), tensors["output"]) > 1e-2


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
