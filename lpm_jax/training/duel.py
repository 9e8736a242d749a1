"""The step of a stage in which two networks learn: a student, and a critic of what it makes.

    critic steps    critic <- its gradients on the student's samples
    both            student <- its gradients, judged by the critic; then the critic's, on the new student's samples

Which of the two a step is, the loop says (``Stage.loss`` and ``other_loss``); each is one compiled program. Networks
that never change, the teacher among them, are arguments of the program, but not part of the state: checkpoints hold
what learns. With ``distill.park`` they wait in the host's memory and come to the devices for the part of a step that
uses them: the teacher has no part in a critic's step. The state is donated, and gradients that are not finite leave
everything as it was, as in ``step.py``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lpm_jax import distributed, sharding
from lpm_jax.config import Config
from lpm_jax.training.state import TrainState, apply_gradients, create_state, make_optimizer
from lpm_jax.training.step import accumulated, component_norms, state_shardings

#: ``objective(params, other, fixed, batch, key)``: the loss of ``params`` where ``other`` is the opponent's.
Objective = Callable[[Any, Any, Any, Any, Array], tuple[Float[Array, ""], dict[str, Array]]]


class Critic(NamedTuple):
    params: Any
    optimizer: Any


class DuelState(NamedTuple):
    """Like :class:`lpm_jax.training.state.TrainState`, with the critic beside the student."""

    step: jax.Array
    params: Any  # of the student
    ema: Any
    optimizer: Any
    critic: Critic


class Duel(NamedTuple):
    """The two objectives. As a stage's ``loss`` the critic alone learns, as its ``other_loss`` both do."""

    student: Objective
    critic: Objective
    both: bool


class Program(NamedTuple):
    """A duel's step on a mesh, from shapes alone (as ``step.Program``); ``fixed`` are arrays, laid out on the mesh, or
    abstract ones where the step is only compiled."""

    config: Config
    mesh: Mesh
    axes: Any
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation]
    state: DuelState  # abstract, with shardings
    frozen: tuple[Any, Any]
    fixed: Any

    def start(self, params: dict) -> DuelState:
        """The first state. ``params`` has the student's weights and the critic's: ``{"student", "critic"}``."""
        layout = jax.tree.map(lambda x: x.sharding, self.state)
        where = {"student": layout.params, "critic": layout.critic.params}
        params = jax.tree.map(jnp.asarray, params) if self.mesh.size == 1 else params
        params = distributed.place(params, where)
        with sharding.on(self.mesh):
            create = functools.partial(create_duel, optimizers=self.optimizers)
            return jax.jit(create, out_shardings=layout)(params)

    def step(self, duel: Duel) -> Callable[[DuelState, Any, jax.Array], tuple[DuelState, dict[str, jax.Array]]]:
        """``step(state, batch, key) -> state, metrics``, as the loop calls it."""
        program = self.program(duel)
        return lambda state, batch, key: program(state, self.fixed, batch, key)

    def program(self, duel: Duel) -> Callable:
        """The jitted ``step(state, fixed, batch, key)``; its state is donated."""
        layout = jax.tree.map(lambda x: x.sharding, self.state)
        everywhere = sharding.replicated(self.mesh)

        def train_step(state: DuelState, fixed: Any, batch: Any, root: jax.Array):
            key = jax.random.fold_in(root, state.step)
            metrics, new = {}, state
            if duel.both:
                new, metrics = self._student(duel.student, new, fixed, batch, jax.random.fold_in(key, 1))
            new, found = self._critic(duel.critic, new, fixed, batch, jax.random.fold_in(key, 2))
            metrics |= found
            watched = [x for name, x in metrics.items() if name.endswith(("/loss", "/gradient_norm"))]
            fine = jnp.all(jnp.isfinite(jnp.stack(watched)))
            metrics["loss"] = found["critic/loss"]
            kept = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new._replace(step=state.step), state)
            metrics["skipped"] = 1.0 - fine
            return kept._replace(step=state.step + 1), metrics

        return jax.jit(train_step, donate_argnums=0, out_shardings=(layout, everywhere))

    def _gradients(self, objective: Objective, params, other, fixed, batch, key, frozen) -> tuple[Any, dict]:
        if self.config.distill.park:
            fixed = jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device), fixed)

        def loss(params, batch, key):
            return objective(params, jax.lax.stop_gradient(other), fixed, batch, key)

        value, metrics, grads = accumulated(loss, params, batch, key, self.config.train.accumulate, self.axes)
        grads = jax.tree.map(lambda g, still: jnp.zeros_like(g) if still else g, grads, frozen)
        norms = component_norms(grads)
        norm = jnp.sqrt(sum(jnp.square(x) for x in norms.values()))
        return grads, metrics | {"loss": value, "gradient_norm": norm}

    def _student(self, objective: Objective, state: DuelState, fixed, batch, key) -> tuple[DuelState, dict]:
        critic = state.critic.params
        grads, metrics = self._gradients(objective, state.params, critic, fixed, batch, key, self.frozen[0])
        # The student's own count of steps: its average warms up by it.
        own = TrainState(state.step // self.config.distill.generator_every, *state[1:4])
        new = apply_gradients(own, grads, self.optimizers[0], self.config.train.ema)
        metrics = {f"student/{name}": x for name, x in metrics.items()}
        return state._replace(params=new.params, ema=new.ema, optimizer=new.optimizer), metrics

    def _critic(self, objective: Objective, state: DuelState, fixed, batch, key) -> tuple[DuelState, dict]:
        params, optimizer = state.critic
        grads, metrics = self._gradients(objective, params, state.params, fixed, batch, key, self.frozen[1])
        updates, optimizer = self.optimizers[1].update(grads, optimizer, params)
        metrics = {f"critic/{name}": x for name, x in metrics.items()}
        return state._replace(critic=Critic(optax.apply_updates(params, updates), optimizer)), metrics


def create_duel(params: dict, optimizers: tuple) -> DuelState:
    student = create_state(params["student"], optimizers[0])
    critic = Critic(params["critic"], optimizers[1].init(params["critic"]))
    return DuelState(*student, critic)


def make_optimizers(config: Config) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """The student's and the critic's, each with a schedule over its own number of updates."""
    train, distill = config.train, config.distill
    updates = max(train.steps // distill.generator_every, 1)
    student = dataclasses.replace(train, steps=updates, warmup=train.warmup // distill.generator_every)
    critic = dataclasses.replace(train, learning_rate=distill.critic_learning_rate)
    return make_optimizer(student), make_optimizer(critic)


def make_program(
    config: Config, mesh: Mesh, axes: Any, fixed_axes: Any, params: dict, frozen: dict, fixed: dict
) -> Program:
    """The program of a stage whose student and critic have the shapes of ``params``; ``frozen`` says which of their
    leaves stay as they are, and ``axes`` and ``fixed_axes`` are the logical axes of what learns and what doesn't."""
    both = []
    for name, optimizer in zip(("student", "critic"), make_optimizers(config), strict=True):
        labels = jax.tree.map(lambda still: "frozen" if still else "train", frozen[name])
        both.append(optax.multi_transform({"train": optimizer, "frozen": optax.set_to_zero()}, labels))
    optimizers = (both[0], both[1])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)
    state = jax.eval_shape(functools.partial(create_duel, optimizers=optimizers), shapes)
    layout = duel_shardings(mesh, axes, state, optimizers)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, layout)
    where = sharding.shardings(mesh, dict.fromkeys(fixed, fixed_axes), fixed)
    if config.distill.park:
        where = jax.tree.map(lambda s: s.with_memory_kind("pinned_host"), where)
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(fixed)):
        fixed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), fixed, where)
    else:
        fixed = distributed.place(jax.tree.map(jnp.asarray, fixed) if mesh.size == 1 else fixed, where)
    return Program(config, mesh, axes, optimizers, state, (frozen["student"], frozen["critic"]), fixed)


def duel_shardings(mesh: Mesh, axes: Any, state: DuelState, optimizers: tuple) -> DuelState:
    """Each network's weights, average and moments by its declared axes."""
    student = state_shardings(mesh, axes, TrainState(*state[:4]), optimizers[0])
    critic = TrainState(state.step, state.critic.params, state.critic.params, state.critic.optimizer)
    critic = state_shardings(mesh, axes, critic, optimizers[1])
    return DuelState(*student, Critic(critic.params, critic.optimizer))
