"""The training loop: the same few lines for every stage.

Precedence of what a run starts from: (1) its own newest checkpoint, (2) the weights of the stage before it (or
``--train.init``), (3) scratch. Randomness is ``fold_in(seed, step)`` and the position in the data is saved with the
weights, so a run that was killed and resumed takes the same steps as one that was not, on other devices too.

The host dispatches steps and never waits for the one just dispatched: metrics are read two steps later (``observe``),
checkpoints are written in the background (``resume``), and signals are looked at between steps (``signals``).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
from jax.sharding import Mesh

from lpm_jax import distributed, sharding
from lpm_jax.checkpoint import save_weights, write_json
from lpm_jax.config import Config
from lpm_jax.errors import Paused
from lpm_jax.training.observe import AHEAD, Observer
from lpm_jax.training.profiler import Profiler
from lpm_jax.training.resume import Saver
from lpm_jax.training.signals import Signals
from lpm_jax.training.step import make_program


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage brings to the loop.

    ``data(rows)`` makes the endless batches of which a process reads ``rows`` of ``batch``; ``fingerprint`` names the
    data. ``loss(params, batch, key)`` returns a scalar and a dict of metrics (``observe``). ``validate(params,
    directory)`` is called in every process, writes sheets in process 0 and returns scalars. ``finish(params)`` turns
    the averaged parameters, whole and in numpy, into what the next stage loads.
    """

    name: str
    params: Any
    data: Callable[[tuple[int, ...]], grain.IterDataset]
    batch: int  # rows of the global batch
    loss: Any  # Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]], or what ``program`` steps by
    validate: Callable[[Any, Path], dict[str, float]]
    finish: Callable[[Any], Any]
    fingerprint: str = ""
    flops: float = 0.0  # of a step, all devices together; 0: unknown
    other_loss: Any = None
    other_every: int = 0  # every so many steps take ``other_loss`` instead
    frozen: Callable[[Any], Any] | None = None  # params -> tree of bools: True leaves stay as they are
    axes: Any = dataclasses.field(default_factory=dict)  # declared logical axes of params (sharding.py)
    tokens: int = 0  # patches of a frame, where the model has any: what the mesh must divide
    program: Callable[[Config, Mesh], Any] | None = None  # another step than that of step.py (duel.py)


def run_stage(stage: Stage, config: Config, workdir: Path, around: Callable[[Callable], Callable] = lambda f: f) -> Any:
    """Trains ``stage`` to ``config.train.steps`` and returns the finished weights, also saved in ``workdir``; None in
    processes other than the first. ``around`` wraps the compiled step: what measurements need.

    Raises:
      Paused: a signal asked to stop, and the run is saved.
      FloatingPointError: too many steps in a row had to be skipped.
    """
    train = config.train
    directory = workdir / stage.name

    # ---- shard ---------------------------------------------------------------------------------------------------
    mesh = sharding.make_mesh(config.mesh)
    if stage.tokens:
        sharding.check(mesh, config.dit, train.batch // train.accumulate, stage.tokens)
    if stage.program is not None:
        program = stage.program(config, mesh)
    else:
        program = make_program(train, mesh, stage.axes, stage.params, stage.frozen and stage.frozen(stage.params))
    root = distributed.place(jax.random.key(train.seed), sharding.replicated(mesh))
    usual = around(program.step(stage.loss))
    other = around(program.step(stage.other_loss)) if stage.other_loss else usual

    with contextlib.ExitStack() as stack:
        # ---- data, and where an earlier run left off -------------------------------------------------------------
        spread = sharding.batch_sharding(mesh)
        iterator = iter(stage.data(distributed.batch_rows(spread, stage.batch)))
        stack.callback(getattr(iterator, "close", lambda: None))
        saver = Saver(directory / "checkpoints", train, {"seed": train.seed, "data": stage.fingerprint})
        stack.callback(saver.close)
        earlier = saver.restore(program.state)
        if earlier is None:
            state = program.start(stage.params)
        else:
            state = earlier.state
            iterator.set_state(earlier.position)
        start = int(state.step)
        if distributed.primary():
            write_json(directory / "config.json", dataclasses.asdict(config))

        # ---- loop ------------------------------------------------------------------------------------------------
        observer = Observer(stage.name, directory, start, train.steps, train.log_every, stage.flops)
        stack.callback(observer.close)
        clock = observer.clock
        profiler = Profiler(directory / "profile", train.profile_at, observer.say)
        stack.callback(profiler.close)
        signals = stack.enter_context(Signals())
        stop = distributed.Agreement(mesh, AHEAD)

        def save(at: int) -> None:
            observer.flush()
            with clock("save"):
                saver.save(at, state, iterator.get_state())
                observer.last_saved = at

        def validate(at: int) -> None:
            observer.flush()
            with clock("validate"):
                folder = directory / "validation" / f"{at:06d}"
                observer.validated(at, stage.validate(state.ema, folder), folder)

        def due(at: int, every: int) -> bool:
            return at == train.steps or at % every == 0

        if earlier is not None:
            observer.say(earlier.said)
            if due(start, train.validate_every) and distributed.everywhere(not observer.knows_validation(start)):
                validate(start)  # the run was stopped between saving and validating
        for at in range(start + 1, train.steps + 1):
            with clock("data"):
                batch = next(iterator)
            with clock("put"):
                batch = distributed.put_batch(batch, spread)
            profiler.before(at, signals.trace_asked(), state)
            with clock("dispatch"), sharding.on(mesh), jax.profiler.StepTraceAnnotation("train", step_num=at):
                step = other if stage.other_every and at % stage.other_every == 0 else usual
                state, metrics = step(state, batch, root)
            profiler.after(at, state)
            observer.step(at, metrics)
            if stop(bool(signals.stop)) and at < train.steps:
                save(at)
                saver.wait()
                raise Paused(f"{stage.name}: stopped at step {at} and saved; the same command goes on from there")
            if due(at, train.save_every):
                save(at)
            if due(at, train.validate_every):
                validate(at)
        saver.wait()

        # ---- weights ---------------------------------------------------------------------------------------------
        average, weights = distributed.fetch(state.ema, keep=distributed.primary()), None
        if distributed.primary():
            weights = stage.finish(average)
            save_weights(directory / "weights", "model", weights)
        if not distributed.everywhere(not signals.stop):
            raise Paused(f"{stage.name}: finished; the same command goes on with what comes after it")
    return weights
