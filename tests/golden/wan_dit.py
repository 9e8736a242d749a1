"""The golden files of Wan's transformer, and the same network as one of ours."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from lpm_jax.config import DiTConfig
from lpm_jax.models import conditions, dit, dit_names
from lpm_jax.nn.rope import angles_1d
from lpm_jax.tensors import flatten, unflatten
from tests.golden.hashed import weight

GOLDEN = Path(__file__).parent
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
    for path, leaf in flatten(abstract).items():
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
    return unflatten(flat)


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
    mask = conditions.visibility(frames, None, jnp.ones((b, 0), bool))
    at = conditions.positions(config, jnp.arange(float(frames))[None], mask, (rows, columns))
    return dit.patchify(config, latents).astype(dtype), levels, told, at


def output(config: DiTConfig, tensors: dict, grid: tuple[int, int, int], params: dict, dtype=jnp.float32):
    """Our network's answer to a golden file's inputs, ``[b, c, f, h, w]`` as PyTorch has it."""
    patches, levels, told, at = inputs(config, tensors, grid, dtype)

    @jax.jit
    def run(params, patches, told):
        out, _ = dit.forward(config, params, patches, levels, grid[0], told, at)
        return jnp.moveaxis(dit.unpatchify(config, out, 2 * grid[1], 2 * grid[2]), -1, 1)

    return run(params, patches, told)
