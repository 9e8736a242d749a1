"""What training any instrument shares: AdamW with warm-up and cosine decay, and how training is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from lpm_jax.checkpoint import save_weights, write_json
from lpm_jax.progress import progress

#: ``loss(params, batch, key)``: a number.
Loss = Callable[[dict, Any, Array], Array]


def fit(loss: Loss, params: dict, batch: Callable[[int], Any], steps: int, rate: float, seed: int = 0) -> dict:
    """Parameters after ``steps`` of AdamW on ``batch(step)``."""
    params = jax.tree.map(jnp.array, params)  # a copy: each step donates
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(50, steps // 5), steps, 1e-5)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.02))
    state = optimiser.init(params)
    key = jax.random.key(seed)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch, key):
        value, grad = jax.value_and_grad(loss)(params, batch, key)
        update, state = optimiser.update(grad, state, params)
        return optax.apply_updates(params, update), state, value

    losses: list[float] = []
    for i in progress(range(steps), "training", lambda: f"loss {np.mean(losses[-50:]):.4f}"):
        params, state, value = step(params, state, batch(i), jax.random.fold_in(key, i))
        losses.append(float(value))
    return params


def keep(out: Path, name: str, params: dict, made: dict[str, Any], held_out: dict[str, float], began: float) -> None:
    """Weights (bfloat16) and ``accuracy.json``: how they were trained and what they are worth."""
    save_weights(out, name, params, jnp.bfloat16)
    made = made | {"cpu_seconds": round(time.process_time() - began)}
    rounded = {key: round(float(value), 4) for key, value in held_out.items()}
    write_json(out / "accuracy.json", {"training": made, "held_out": rounded})
    for key, value in rounded.items():
        print(f"{key:32} {value:.4f}")


def same(a: Array, b: Array, scale: Array | float) -> Array:
    """InfoNCE (van den Oord et al., 2018), both ways: row ``i`` of unit vectors ``a`` belongs to row ``i`` of ``b``."""
    logits = scale * a @ b.T
    own = jnp.arange(len(a))
    both = optax.softmax_cross_entropy_with_integer_labels(logits, own)
    return (both + optax.softmax_cross_entropy_with_integer_labels(logits.T, own)).mean() / 2


def unit(x: Array) -> Array:
    """Rows of length 1."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)
