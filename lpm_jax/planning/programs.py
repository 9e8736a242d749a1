"""The programs that a plan is made of, from shapes alone: a stage's training step, and the streaming step.

Nothing is allocated: arguments are ``ShapeDtypeStruct`` with shardings, weights of 17 B included.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lpm_jax import sharding
from lpm_jax.config import Config, TextConfig
from lpm_jax.errors import InputError
from lpm_jax.models import conditions, vae, wav2vec
from lpm_jax.models.audio import STRIDE

CHUNK = "chunk"  # the "stage" that is the streaming step


class Program(NamedTuple):
    """What to compile: ``fn.lower(*args)`` within ``sharding.on(mesh)``."""

    fn: Any
    args: tuple
    labels: tuple[str, ...]  # what each argument is, where its fields do not say


def build(config: Config, stage: str, mesh: Mesh) -> Program:
    """The step of ``stage`` (a training stage, or ``"chunk"``) on ``mesh``."""
    return chunk(config, mesh) if stage == CHUNK else training(config, stage, mesh)


def training(config: Config, stage: str, mesh: Mesh) -> Program:
    """A diffusion stage's training step."""
    from lpm_jax.training import flow_matching
    from lpm_jax.training.step import make_program

    if stage == "vae":
        raise InputError("--stage vae: expected a diffusion stage or chunk: the autoencoder trains on one device")
    if config.text.umt5:  # frozen, and read beforehand
        config = dataclasses.replace(config, text=TextConfig(tokens=config.text.tokens, width=config.text.width))
    train = config.train
    tokens = (config.size // config.vae.stride // config.dit.patch) ** 2
    if isinstance(mesh, Mesh):
        sharding.check(mesh, config.dit, train.batch // train.accumulate, tokens)
    params = conditions.abstract(config)
    frozen = {name: jax.tree.map(lambda _, n=name: n == "prior", p) for name, p in params.items()}
    program = make_program(train, mesh, conditions.axes(config), params, frozen)
    loss = flow_matching.make_loss(config, stage in flow_matching.CAUSAL, 1.0)
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.batch_sharding(mesh))  # noqa: E731
    batch = jax.tree.map(place, abstract_batch(config, stage))
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(mesh))
    return Program(program.step(loss), (program.state, batch, key), ("", "batch", "batch"))


def abstract_batch(config: Config, stage: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch as ``data_pipeline.loader`` makes it."""
    train, b = config.train, config.train.batch
    cells = config.size // config.vae.stride
    refs = 3 if train.extra_references else 2
    heard = (b, conditions.history_tokens(config.audio) + STRIDE * train.latents)
    features = conditions.audio_features(config.audio).features
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "latents": ((b, train.latents, cells, cells, config.dit.channels), jnp.float32),
        "weights": ((b, train.latents, cells, cells), jnp.float32),
        "references": ((b, refs, cells, cells, config.dit.channels), jnp.float32),
        "reference_kinds": ((b, refs), jnp.int32),
        "reference_valid": ((b, refs), jnp.bool_),
        "text": ((b, config.text.tokens), jnp.int32),
        "speak": ((*heard, features), jnp.float32),
        "listen": ((*heard, features), jnp.float32),
    }
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def chunk(config: Config, mesh: Mesh, batch: int = 1) -> Program:
    """The streaming step with weights and cache in bfloat16: heads of both over ``tensor``, patches over ``context``.

    The text encoder runs when a prompt changes, not in a step, and is left out.
    """
    from lpm_jax.streaming import generator

    cells, stream = config.size, config.stream
    params = conditions.abstract(config) | {"vae": vae.abstract(config.vae)}
    if config.audio.wav2vec:
        params["audio"] = wav2vec.abstract(config.audio.wav2vec)
    if config.text.umt5:
        from lpm_jax.models import umt5

        params["text"] = umt5.abstract(config.text.umt5)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    refs = 2 + stream.references
    shape = jax.ShapeDtypeStruct
    state = jax.eval_shape(
        functools.partial(generator.start, config), params,
        shape((batch, refs, cells, cells, 3), jnp.uint8), shape((batch, refs), jnp.int32),
        shape((batch, refs), jnp.bool_), shape((batch, config.text.tokens), jnp.int32),
        jax.eval_shape(lambda: jax.random.key(0)),
    )  # fmt: skip
    params.pop("text") if config.text.umt5 else None
    placed = sharding.shardings(mesh, conditions.axes(config), params)
    whole = sharding.replicated(mesh)
    cache = jax.tree.map(
        lambda x: sharding.sharding(mesh, (None, None, "batch", None, "tokens", "heads", None), x.shape), state.cache
    )
    layout = jax.tree.map(lambda _: whole, state)._replace(cache=cache)
    place = lambda x, s: shape(x.shape, x.dtype, sharding=s)  # noqa: E731
    heard = shape((batch, generator.chunk_samples(config)), jnp.float32, sharding=whole)
    step: Callable = functools.partial(generator.chunk_step.__wrapped__, config)
    fn = jax.jit(step, donate_argnums=1, out_shardings=(layout, whole))
    args = (jax.tree.map(place, params, placed), jax.tree.map(place, state, layout), heard, heard)
    return Program(fn, args, ("weights", "stream", "sound", "sound"))


__all__ = ["CHUNK", "NamedSharding", "PartitionSpec", "Program", "abstract_batch", "build", "chunk", "training"]
