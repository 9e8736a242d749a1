"""A diffusion stage's real step from shapes alone, ready to be lowered for machines that are not here.

    with sharding.on(mesh):
        step, arguments = train_program(config, "base.speak", mesh)
        compiled = step.lower(*arguments).compile()

``mesh`` may be of devices that only a compiler knows (``jax.experimental.topologies``); nothing is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from data_pipeline.schema import LATENT_STRIDE, LIFE
from lpm_jax import sharding
from lpm_jax.config import Config
from lpm_jax.models import conditions, vae, wav2vec
from lpm_jax.models.audio import STRIDE, TOKEN
from lpm_jax.streaming import generator
from lpm_jax.training import distill, duel, ode, on_policy, online
from lpm_jax.training.flow_matching import CAUSAL, frozen, make_loss
from lpm_jax.training.step import Program, make_program


def batch_shapes(config: Config, mesh: Mesh, frames: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of ``config.train`` as the loader makes it (``data_pipeline/loader.py``), each clip on its devices;
    windows of ``frames`` latent frames, by default ``train.latents``.

    Large models' text comes encoded: 4 MB a clip instead of a 5.7 B encoder beside the step.
    """
    train = config.train
    b, frames, (height, width) = train.batch, frames or train.latents, config.cells
    refs = 3 if train.extra_references else 2
    sound = (
        conditions.history_tokens(config.audio) + STRIDE * frames,
        conditions.audio_features(config.audio).features,
    )
    cells = (height, width, config.dit.channels)
    text = ((config.text.tokens,), jnp.int32)
    if config.text.umt5 is not None:
        text = ((config.text.umt5.tokens, config.dit.text_width), jnp.bfloat16)
    where = sharding.batch_sharding(mesh)
    shapes = {
        "latents": ((frames, *cells), jnp.float16),
        "references": ((refs, *cells), jnp.float16),
        "reference_kinds": ((refs,), jnp.int32),
        "reference_valid": ((refs,), jnp.bool_),
        "text": text,
        "weights": ((frames, height, width), jnp.float32),
        "speak": (sound, jnp.float16),
        "listen": (sound, jnp.float16),
        "kind": ((), jnp.int32),
    }
    if config.dit.warp:
        shapes |= {"moves": ((frames, LATENT_STRIDE, height, width, 2), jnp.float16), "moves_known": ((), jnp.float32)}
    if config.dit.life:
        shapes["life"] = ((frames, len(LIFE)), jnp.float32)
    return {name: jax.ShapeDtypeStruct((b, *shape), dtype, sharding=where) for name, (shape, dtype) in shapes.items()}


def train_program(config: Config, stage: str, mesh: Mesh) -> tuple[Callable, tuple]:
    """The jitted step of ``stage`` on ``mesh`` and its abstract arguments: state, batch and key; in a duel
    (``duel.py``) the step in which both networks learn, and, after the state, the networks that stay as they are.

    ``config`` is the stage's own (``config.for_stage``), with the batch, remat and backend that are meant.

    Raises:
      InputError: something does not divide over the mesh, or the stage needs a Refiner that the model has not.
    """
    sharding.check(mesh, config.dit, config.train.batch // config.train.accumulate, math.prod(config.grid))
    online.check_refiner(config, stage)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(mesh))
    if stage in distill.STAGES:
        program = abstract_duel(config, stage, mesh)
        step = program.program(distill.make_duel(config, stage, both=True))
        frames = online.window_latents(config, stage)
        return step, (program.state, program.fixed, batch_shapes(config, mesh, frames), key)
    params = None
    if stage == distill.STREAM_AUDIO:
        params = online.refined_shapes(config)
        if config.audio.wav2vec is not None:
            params["audio"] = wav2vec.abstract(config.audio.wav2vec)
    program = abstract_program(config, mesh, params)
    batch = batch_shapes(config, mesh, online.window_latents(config, stage) if stage in online.STAGES else 0)
    if stage == online.ODE:
        b, frames, *cells = batch["latents"].shape
        states = (b, len(config.stream.levels), frames, *cells)
        batch["states"] = jax.ShapeDtypeStruct(states, jnp.float16, sharding=sharding.batch_sharding(mesh))
        step = program.step(ode.make_loss(config))
    elif stage in on_policy.STAGES:
        mouth = batch["weights"]  # the same cells
        batch["mouth"] = jax.ShapeDtypeStruct(mouth.shape, jnp.bool_, sharding=mouth.sharding)
        if stage == distill.STREAM_AUDIO:
            b, frames = batch["latents"].shape[:2]
            sound = (b, generator.history_samples(config) + STRIDE * TOKEN * frames)
            sound = jax.ShapeDtypeStruct(sound, jnp.int16, sharding=mouth.sharding)
            batch |= {"speak_sound": sound, "listen_sound": sound}
        step = program.step(on_policy.make_loss(distill.student_config(stage, config)))
    else:
        step = program.step(make_loss(config, stage in CAUSAL, config.train.token_keep))
    return step, (program.state, batch, key)


def abstract_duel(config: Config, stage: str, mesh: Mesh) -> duel.Program:
    """The :class:`lpm_jax.training.duel.Program` of a distillation stage."""
    shapes, coder = conditions.abstract(config), vae.abstract(config.vae)
    return online.Players(stage, config, shapes, shapes, coder).program(conditions.axes(config), config, mesh)


def abstract_program(config: Config, mesh: Mesh, params: dict | None = None) -> Program:
    """The :class:`Program` of a diffusion model's parameters, ``conditions.abstract`` where none are given."""
    params = params or conditions.abstract(config)
    return make_program(config.train, mesh, conditions.axes(config), params, frozen(params))
