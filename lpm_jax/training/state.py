"""What a training run carries: parameters, their moving average, the optimiser and the step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from lpm_jax.config import TrainConfig


class TrainState(NamedTuple):
    step: jax.Array  # int32 []
    params: Any
    ema: Any  # float32, same tree as params
    optimizer: Any


def muon_dimensions(params: Any) -> Any:
    """Which weights Muon orthogonalises, and along which axes: every ``kernel``, layer stacks and filters included.

    A kernel is ``[in, out]``, a stack of layers ``[layers, in, out]``, a filter ``[taps, 3, 3, in, out]``. Everything
    else (biases, gains, tables, embeddings) is ``None`` and goes to AdamW.
    """
    axes = {
        2: MuonDimensionNumbers((0,), (1,)),
        3: MuonDimensionNumbers((1,), (2,)),
        5: MuonDimensionNumbers((0, 1, 2, 3), (4,)),
    }

    def choose(path, leaf):
        return axes.get(leaf.ndim) if path[-1].key == "kernel" else None

    return jax.tree_util.tree_map_with_path(choose, params)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clipped Muon (Jordan 2024; update scale of Liu et al. 2025) or AdamW, warm-up then cosine to a twentieth."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        min(config.warmup, max(config.steps // 2, 1)),
        config.steps,
        config.learning_rate / 20,
    )
    if config.optimizer == "muon":
        rule = optax.contrib.muon(
            schedule,
            weight_decay=config.weight_decay,
            adam_b2=0.99,
            muon_weight_dimension_numbers=muon_dimensions,
            consistent_rms=0.2,
            mu_dtype=config.dtype,
        )
        rule = kernels_in(rule, config.dtype)
    else:
        rule = optax.adamw(schedule, b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(config.clip), rule)


def kernels_in(rule: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """``rule`` given the gradients of kernels in ``dtype``: Muon's iteration runs in it (bfloat16, as published)."""

    def cast(tree, to):
        return jax.tree_util.tree_map_with_path(lambda path, x: x.astype(to) if path[-1].key == "kernel" else x, tree)

    def update(updates, state, params=None):
        updates, state = rule.update(cast(updates, dtype), state, params)
        return cast(updates, jnp.float32), state

    return optax.GradientTransformation(rule.init, update)


def create_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))


def apply_gradients(state: TrainState, grads: Any, optimizer: optax.GradientTransformation, decay: float) -> TrainState:
    """One update. The average warms up as ``min(decay, (1 + step) / (10 + step))`` so early weights are forgotten."""
    updates, opt = optimizer.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    keep = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    ema = jax.tree.map(lambda a, p: a * keep + p.astype(a.dtype) * (1 - keep), state.ema, params)
    return TrainState(state.step + 1, params, ema, opt)
