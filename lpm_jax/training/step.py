"""One training step as one compiled program on a mesh.

    gradients of ``accumulate`` microbatches, one after the other, in float32 and in the layout of their weights
    -> a guard: gradients that are not finite leave weights, average and optimiser as they were (``skipped`` is 1)
    -> clipping, optimiser, moving average

The state is donated. What comes back besides it are scalars on the device: nothing waits for them here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lpm_jax import distributed, sharding
from lpm_jax.config import TrainConfig
from lpm_jax.training.state import TrainState, apply_gradients, create_state, make_optimizer

Loss = Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


class Program(NamedTuple):
    """A stage's step on a mesh, from shapes alone: nothing is allocated until :meth:`start`."""

    config: TrainConfig
    mesh: Mesh
    axes: Any  # declared logical axes of the parameters; {} for a model that is whole on every device
    optimizer: optax.GradientTransformation
    state: TrainState  # abstract, with shardings
    frozen: Any  # a tree of bools, or None

    def start(self, params: Any) -> TrainState:
        """The first state from ``params``, in its layout."""
        params = jax.tree.map(jnp.asarray, params) if self.mesh.size == 1 else params
        params = distributed.place(params, jax.tree.map(lambda x: x.sharding, self.state.params))
        layout = jax.tree.map(lambda x: x.sharding, self.state)
        with sharding.on(self.mesh):
            return jax.jit(lambda params: create_state(params, self.optimizer), out_shardings=layout)(params)

    def step(self, loss: Loss) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
        """``step(state, batch, key) -> state, metrics`` for ``loss``, jitted; its state is donated. Call it, or lower
        it, within ``sharding.on(mesh)``."""
        layout = jax.tree.map(lambda x: x.sharding, self.state)
        everywhere = sharding.replicated(self.mesh)

        def train_step(state: TrainState, batch: Any, root: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
            key = jax.random.fold_in(root, state.step)
            value, metrics, grads = accumulated(loss, state.params, batch, key, self.config.accumulate, self.axes)
            if self.frozen is not None:
                grads = jax.tree.map(lambda g, fixed: jnp.zeros_like(g) if fixed else g, grads, self.frozen)
            norms = component_norms(grads)
            norm = jnp.sqrt(sum(jnp.square(x) for x in norms.values()))
            fine = jnp.isfinite(norm) & jnp.isfinite(value)
            new = apply_gradients(state, grads, self.optimizer, self.config.ema)
            kept = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new._replace(step=state.step), state)
            metrics |= {"loss": value, "gradient_norm": norm, "skipped": 1.0 - fine}
            metrics |= {f"gradient/{name}": x for name, x in norms.items()}
            return kept._replace(step=state.step + 1), metrics

        return jax.jit(train_step, donate_argnums=0, out_shardings=(layout, everywhere))


def make_program(config: TrainConfig, mesh: Mesh, axes: Any, params: Any, frozen: Any = None) -> Program:
    """The program of a stage whose parameters have the shapes of ``params`` (arrays or abstract arrays)."""
    optimizer = make_optimizer(config)
    if frozen is not None:
        labels = jax.tree.map(lambda fixed: "frozen" if fixed else "train", frozen)
        optimizer = optax.multi_transform({"train": optimizer, "frozen": optax.set_to_zero()}, labels)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)
    state = jax.eval_shape(functools.partial(create_state, optimizer=optimizer), shapes)
    layout = state_shardings(mesh, axes, state, optimizer)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, layout)
    return Program(config, mesh, axes, optimizer, state, frozen)


def state_shardings(mesh: Mesh, axes: Any, state: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
    """Weights by their declared axes; average and the optimiser's moments like the weights; counters everywhere."""
    params, everywhere = sharding.shardings(mesh, axes, state.params), sharding.replicated(mesh)
    masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731  (not this part's of the optimiser)
    moments = optax.tree_utils.tree_map_params(
        optimizer, lambda x, where: x if masked(x) else where, state.optimizer, params,
        transform_non_params=lambda _: everywhere, is_leaf=masked,
    )  # fmt: skip
    return TrainState(everywhere, params, params, moments)


def accumulated(
    loss: Loss, params: Any, batch: Any, key: Array, parts: int, axes: Any
) -> tuple[Float[Array, ""], dict[str, Array], Any]:
    """Loss, metrics and gradients, each the mean over ``parts`` microbatches. Every ``parts``-th clip of the batch
    belongs to the same one, so that each device keeps its own clips."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        (value, metrics), grads = gradient(params, batch, key)
        return value, dict(metrics), sharding.scatter(axes, grads)

    def split(x: Array) -> Array:
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return sharding.constrain(x, None, "batch", *[None] * (x.ndim - 2))

    def add(total, part):
        batch, index = part
        (value, metrics), grads = gradient(params, batch, jax.random.fold_in(key, index))
        found = (value, metrics, sharding.scatter(axes, grads))
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype) / parts, total, found), None

    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] // parts, *x.shape[1:]), x.dtype), batch)
    (value, metrics), _ = jax.eval_shape(gradient, params, one, key)
    zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), tree)  # noqa: E731
    start = (zeros(value), zeros(metrics), sharding.scatter(axes, zeros(params)))
    (value, metrics, grads), _ = jax.lax.scan(add, start, (jax.tree.map(split, batch), jnp.arange(parts)))
    return value, dict(metrics), grads


def component(path: tuple) -> str:
    """What a parameter belongs to: the transformer's attention, feed-forward, text or audio branch, embedding or head,
    or another part of the model by its name."""
    names = [key.key for key in path]
    if names[0] != "dit":
        return names[0]
    if names[1] != "blocks":
        return names[1]
    part = names[3].removeprefix("norm_").split("_")[0]
    return {"text": "text_attention", "cross": "text_attention", "audio": "audio_attention", "ffn": "ffn"}.get(
        part, "attention"
    )


def component_norms(grads: Any) -> dict[str, Float[Array, ""]]:
    """The norm of each component's gradients; their squares add up to the whole's."""
    squares: dict[str, Array] = {}
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        name = component(path)
        squares[name] = squares.get(name, 0.0) + jnp.sum(jnp.square(g.astype(jnp.float32)))
    return {name: jnp.sqrt(x) for name, x in squares.items()}
