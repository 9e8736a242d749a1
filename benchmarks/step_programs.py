"""The programs that ``benchmarks/train_step.py`` times, with random arrays in their layout.

Weights are random where a fresh model has zeros (its head, its audio branch): gradients of zeros would be zeros all the
way, and products of zeros run faster than any real ones.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.executed import operations
from lpm_jax import sharding
from lpm_jax.config import Config
from lpm_jax.models import conditions, dit
from lpm_jax.models.audio import STRIDE, branch
from lpm_jax.nn.attention import Visible
from lpm_jax.nn.rope import angles_3d
from lpm_jax.planning import chips
from lpm_jax.streaming.layout import latent_program
from lpm_jax.training.abstract import abstract_program, train_program

GAINS = ("gain", "scale", "variance", "weight", "weights", "std")
SMALL = 2**16  # numbers
FLASH_CALLS = ("fmha", "splash")  # in the names of kernels
#: What JAX calls devices, without spaces, and what the planner calls them.
KINDS = {
    "h200": "h200", "h100": "h100", "b200": "b200", "tpu7x": "7x", "tpuv6": "v6e", "tpuv5lite": "v5e", "tpuv5e": "v5e",
    "tpuv5": "v5p",
}  # fmt: skip


# ---- arrays ----------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def normal(key: jax.Array, shape: tuple[int, ...], dtype: Any, scale: float, where: Any) -> jax.Array:
    """Random numbers made where they live."""
    x = (jax.random.normal(key, shape, jnp.float32) * scale).astype(dtype)
    return x if where is None else jax.lax.with_sharding_constraint(x, where)


def placed(x: Any, like: Any) -> jax.Array:
    where = getattr(like, "sharding", None)
    return jnp.asarray(x) if where is None else jax.device_put(x, where)


def random_like(shapes: Any, seed: int = 0) -> Any:
    """Arrays for a tree of abstract ones: kernels keep the variance of what goes through them, gains are one, other
    numbers are normal (modulations and biases small ones), integers 1 and flags true. Large arrays are made on their
    devices, small ones here: to compile a program for each of their shapes would take longer."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    keys, rng = jax.random.split(jax.random.key(seed), max(len(leaves), 1)), np.random.default_rng(seed)

    def leaf(path, x, key) -> jax.Array:
        name = getattr(path[-1], "key", getattr(path[-1], "name", "")) if path else ""
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return placed(jax.random.key(seed), x)
        if name in GAINS or not jnp.issubdtype(x.dtype, jnp.floating):
            return placed(np.ones(x.shape, x.dtype), x)
        scales = {"kernel": x.shape[-2:-1], "modulation": x.shape[-1:], "bias": (2500,)}
        scale = math.prod(scales.get(name, (1,))) ** -0.5
        if math.prod(x.shape) < SMALL:
            return placed(np.asarray(scale * rng.standard_normal(x.shape, np.float32), x.dtype), x)
        return normal(key, x.shape, x.dtype, scale, getattr(x, "sharding", None))

    return tree.unflatten([leaf(path, x, key) for (path, x), key in zip(leaves, keys, strict=True)])


def random_batch(shapes: dict, seed: int = 0) -> dict:
    """A batch of noise whose references are the first frame, the appearance and, where there is one more, a view."""
    batch = random_like(shapes, seed)
    kinds = jnp.broadcast_to(jnp.arange(batch["reference_kinds"].shape[1]), batch["reference_kinds"].shape)
    return batch | {"reference_kinds": placed(kinds.astype(jnp.int32), shapes["reference_kinds"])}


# ---- memory and devices ----------------------------------------------------------------------------------------------


def memory(compiled: Any) -> dict[str, int]:
    """Bytes of one device as the compiler plans them."""
    stats = compiled.memory_analysis()
    outputs = max(stats.output_size_in_bytes - stats.alias_size_in_bytes, 0)
    found = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": outputs,  # that are no argument's buffer
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return found | {"total": sum(found.values())}


def device_memory() -> dict[str, int | None]:
    """Bytes of the first device: what may be used, what is, and the most that ever was; None where it does not tell."""
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit") or (chip().hbm if chip() else None)
    return {"limit": limit, "used": stats.get("bytes_in_use"), "peak": stats.get("peak_bytes_in_use")}


def chip() -> chips.Chip | None:
    """The planner's figures of the devices here, where it knows them."""
    kind = jax.devices()[0].device_kind.lower().replace(" ", "")
    return next((chips.CHIPS[name] for part, name in KINDS.items() if part in kind), None)


def free() -> float | None:
    """Bytes that a program's arguments and temporaries may take now."""
    found = device_memory()
    return None if found["limit"] is None else found["limit"] - (found["used"] or 0)


def flash_calls(compiled: Any) -> int:
    """How many calls of flash attention kernels the compiled program has; a scan's body counts once."""
    lines = compiled.as_text().splitlines()
    return sum("custom-call" in line and any(name in line for name in FLASH_CALLS) for line in lines)


# ---- the training step -----------------------------------------------------------------------------------------------


class Step:
    """A stage's real training step: compiled from shapes, then run on its own state, on one batch again and again."""

    def __init__(self, config: Config, stage: str, mesh: Mesh):
        self.config, self.mesh = config, mesh
        with sharding.on(mesh):
            step, self.arguments = train_program(config, stage, mesh)
            traced = step.trace(*self.arguments)
            self.compiled = traced.lower().compile()
        self.executed = operations(traced.jaxpr)
        self.memory, self.metrics = memory(self.compiled), {}

    def start(self) -> None:
        """Makes state and batch on the devices."""
        state, batch, key = self.arguments
        self.state = abstract_program(self.config, self.mesh).start(random_like(state.params))
        self.batch, self.key = random_batch(batch), placed(jax.random.key(0), key)

    def __call__(self) -> dict[str, jax.Array]:
        self.state, self.metrics = self.compiled(self.state, self.batch, self.key)
        return self.metrics


# ---- one block -------------------------------------------------------------------------------------------------------


def block(config: Config, batch: int, frames: int) -> Callable[[], Any]:
    """Forward and backward of one block in bfloat16 over frames of video that all see each other: gradients of its
    weights, tokens, noise levels, text and sound."""
    cfg, half, (rows, columns) = config.dit, jnp.bfloat16, config.grid
    weights = conditions.abstract(config)["dit"]["blocks"]["speak"]
    sounds = conditions.history_tokens(config.audio) + STRIDE * frames
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, half)  # noqa: E731
    inputs = (
        jax.tree.map(lambda x: shape(*x.shape[1:]), weights),
        shape(batch, frames, rows * columns, cfg.width),
        shape(batch, frames, 6, cfg.width),
        shape(batch, config.text.tokens, cfg.width),
        shape(batch, sounds, cfg.audio_width),
    )
    module = dit.Block(cfg, config.train.attention or None)

    def forward(params, x, time, text, sound):
        angles = angles_3d(jnp.arange(frames, dtype=jnp.float32)[None], rows, columns, cfg.head_dim)
        heard = branch(sound, config.audio, frames, config.audio.speak_window, None, cfg.head_dim)
        positions = dit.Positions(angles, None, Visible(None, None))
        words = jnp.ones(text.shape[:2], bool)
        return module.apply({"params": params}, x, time, frames, text, words, heard, positions)[0]

    @jax.jit
    def both(inputs, cotangent):
        out, back = jax.vjp(forward, *inputs)
        return out, back(cotangent)

    arrays, cotangent = random_like(inputs), random_like(inputs[1], 1)
    return lambda: both(arrays, cotangent)


# ---- the streaming step ----------------------------------------------------------------------------------------------


class Chunk:
    """The streaming step, sound in, latents out, on a stream whose cache is full and whose references are all there."""

    def __init__(self, config: Config, mesh: Mesh):
        self.config = config
        with sharding.on(mesh):
            step, self.arguments = latent_program(config, mesh)
            self.compiled = step.lower(*self.arguments).compile()
        self.memory = memory(self.compiled)

    def start(self) -> None:
        """Makes weights, stream and sound on the devices."""
        params, state, *sound = self.arguments
        self.params, full = random_like(params), random_like(state, 1)
        stream, refs = self.config.stream, state.reference_valid.shape[1]
        times = conditions.reference_times(self.config.dit, jnp.arange(refs)[None])
        self.state = full._replace(
            chunk=placed(jnp.asarray(stream.sink + stream.window + 1, jnp.int32), state.chunk),
            reference_times=placed(times.astype(state.reference_times.dtype), state.reference_times),
        )
        self.sound = [random_like(x, i) for i, x in enumerate(sound)]

    def __call__(self) -> jax.Array:
        self.state, latents = self.compiled(self.params, self.state, *self.sound)
        return latents


def with_depth(config: Config, blocks: int) -> Config:
    """``config`` with this many blocks."""
    return dataclasses.replace(config, dit=dataclasses.replace(config.dit, depth=blocks))
