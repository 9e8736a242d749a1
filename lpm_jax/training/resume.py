"""What a run leaves behind so that it can go on: Orbax checkpoints, written while training goes on.

A checkpoint holds parameters, average, optimiser and step (``state``), the position in the data (``data``), and beside
them the seed, a fingerprint of the data and a sum of every array's bits. Orbax writes it aside and renames it, from all
processes; each array is restored to wherever the new run's mesh has it. The random numbers of a step follow from seed
and step, and a position counts batches, which are the same for any number of processes (``lpm_jax/distributed.py``):
nothing else is needed to take the same steps on other devices.

Orbax notices files that are missing or cut, but not bytes that changed (tried: such an array was loaded without a
word). The sums do: they are taken on the devices, do not depend on how an array is spread, and cost one pass over it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from lpm_jax import distributed
from lpm_jax.config import TrainConfig
from lpm_jax.errors import InputError, one_line

SAME = {"seed": "--train.seed", "data": "--data"}  # what must not change between a run and its continuation


class Broken(Exception):
    """A checkpoint that cannot be used; the message says why in a few words."""


class Position:
    """The position of a data iterator as Orbax saves it: one file for all processes, whose positions are equal."""

    def __init__(self, state: dict | None = None):
        self.state = state

    async def save(self, directory: Any) -> Awaitable[None]:
        text = json.dumps(self.state)  # now: the loader runs on while this is written

        async def write() -> None:
            folder = await directory.await_creation()
            if distributed.primary():
                (folder / "position.json").write_text(text)

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        async def read() -> None:
            found = [*directory.glob("position.json"), *directory.glob("process_0-of-*.json")]  # the latter by Grain
            self.state = json.loads(found[0].read_text())

        return read()


def names(tree: Any) -> dict[str, Any]:
    """The leaves of a state, or of a checkpoint's description of one, by their path."""

    def name(key: Any) -> str:
        return str(next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind)))

    return {"/".join(map(name, path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@jax.jit
def bit_sums(state: Any) -> list[jax.Array]:
    """The bits of every array, read as unsigned integers and added up: the same however the array is spread."""

    def add(x: jax.Array) -> jax.Array:
        kind = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = x.astype(kind) if x.dtype == bool else jax.lax.bitcast_convert_type(x, kind)
        return jnp.sum(bits, dtype=jnp.uint32)

    return [add(x) for x in jax.tree.leaves(state)]


def sums(state: Any) -> dict[str, int]:
    """:func:`bit_sums` by name."""
    return dict(zip(names(state), map(int, jax.device_get(bit_sums(state))), strict=True))


def folders(directory: Path) -> dict[int, Path]:
    """The checkpoints in ``directory`` by step, newest first, readable or not."""
    found = [path for path in Path(directory).glob("*") if path.name.isdigit() and path.is_dir()]
    return {int(path.name): path for path in sorted(found, key=lambda path: -int(path.name))}


class Restored(NamedTuple):
    """What :meth:`Saver.restore` found: the state, the iterator's position, and a line about it."""

    state: Any
    position: dict
    said: str


class Saver:
    """The checkpoints of one stage's run. ``same`` is what a continued run must share: ``{"seed", "data"}``."""

    def __init__(self, directory: Path, train: TrainConfig, same: dict[str, Any]):
        policies = ocp.training
        keep = [policies.preservation_policies.LatestN(train.keep)]
        if train.keep_every:
            keep.append(policies.preservation_policies.EveryNSteps(train.keep_every))
        self.directory, self.same = Path(directory).absolute(), same
        self.orbax = policies.Checkpointer(
            self.directory,
            save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.preservation_policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
        )
        self.newest: int | None = None  # step of the newest checkpoint that is whole or on its way
        self.pending: Any = None

    def save(self, at: int, state: Any, position: dict) -> None:
        """Begins to write step ``at``; the arrays are copied when this returns, so the next step may donate them.

        One write is under way at most: the one before is waited for, and its error is raised here.
        """
        if at == self.newest:
            return
        self.wait()
        self.pending = self.orbax.save_checkpointables_async(
            at, {"state": state, "data": Position(position)}, custom_metadata=self.same | {"sums": sums(state)}
        )
        if self.pending is None:
            raise RuntimeError(f"{self.directory}: Orbax refused to save step {at}")
        self.newest = at

    def wait(self) -> None:
        """Until the write under way is done. Raises its error."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        self.orbax.close()

    def restore(self, abstract: Any) -> Restored | None:
        """The newest readable checkpoint; None where there is none at all.

        ``abstract`` is the state in shapes, dtypes and shardings, which say where each array goes. A checkpoint that
        cannot be read is renamed to ``STEP.broken`` and the one before is taken.

        Raises:
          InputError: there are checkpoints but none can be read, or they belong to another run or another model.
        """
        broken: dict[int, str] = {}
        for step, path in folders(self.directory).items():
            try:
                loaded, position = self._load(step, path, abstract)
            except InputError:
                raise
            except Exception as error:  # whatever Orbax, TensorStore or JSON make of broken files
                broken[step] = str(error) if isinstance(error, Broken) else f"Orbax: {type(error).__name__}"
                loaded, position = None, None
            if not distributed.everywhere(loaded is not None):
                broken.setdefault(step, "another process could not read it")
                continue
            aside = self._set_aside(broken)
            self.newest = step
            return Restored(loaded, position, "; ".join([f"resumed at step {step}", *aside]))
        if broken:
            reasons = ", ".join(f"{step} ({reason})" for step, reason in broken.items())
            raise InputError(
                f"{self.directory}: expected a checkpoint that can be read, found {reasons}; "
                "to start anew, move the folder away"
            )
        return None

    def _load(self, step: int, path: Path, abstract: Any) -> tuple[Any, dict]:
        missing = [name for name in ("state", "data", "_CHECKPOINT_METADATA") if not (path / name).exists()]
        if missing:
            raise Broken(f"no {' and no '.join(missing)}")
        about = self.orbax.metadata(step)
        for name, value in {"_CHECKPOINT_METADATA": about.commit_timestamp_nsecs, "state": about.metadata}.items():
            if value is None:  # Orbax only warns
                raise Broken(f"{name} is damaged")
        known = about.custom_metadata or {}  # empty: written before these were kept
        for name, option in SAME.items():
            if name in known and known[name] != self.same[name]:
                raise InputError(
                    f"{option}: expected {known[name]!r} as in {path}, found {self.same[name]!r} "
                    "(another run needs another --workdir)"
                )
        fits(path, about.metadata, abstract)
        position = Position()
        items = {"state": abstract, "data": position}
        loaded = self.orbax.load_checkpointables(step, abstract_checkpointables=items)["state"]
        check(known, loaded)
        return loaded, position.state

    def _set_aside(self, broken: dict[int, str]) -> list[str]:
        """Renames broken checkpoints, so that Orbax neither counts nor deletes them, and says so."""
        said = []
        for step, reason in broken.items():
            target = self.directory / f"{step}.broken"
            while target.exists():
                target = target.with_name(f"{target.name}+")
            if distributed.primary():
                (self.directory / str(step)).rename(target)
            said.append(f"checkpoint {step} cannot be read ({reason}) and is now {target.name}")
        distributed.barrier("broken checkpoints")
        if broken:
            self.orbax.reload()
        return said


def fits(path: Path, found: Any, state: Any) -> None:
    """Raises InputError where a checkpoint's arrays are not those of ``state``: it is another model's, not broken."""
    ours, theirs = names(state), names(found)
    for name in sorted(ours.keys() | theirs.keys()):
        shapes = [str(tuple(tree[name].shape)) if name in tree else "nothing" for tree in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{path}: {name}: expected {shapes[0]}, found {shapes[1]} (another model or optimiser needs another "
                "--workdir)"
            )


def check(known: dict, loaded: Any) -> None:
    """Raises Broken where an array's bits are not those that a checkpoint's metadata tell of, if they do."""
    for name, value in (sums(loaded) if "sums" in known else {}).items():
        if known["sums"].get(name) != value:
            raise Broken(f"{name} is not what was saved")


def load_average(directory: Path, step: str, like: Any) -> Any:
    """The averaged parameters of one checkpoint as numpy arrays: what another stage starts from. ``step`` may be
    ``latest``.

    Raises:
      InputError: there is no such checkpoint, it cannot be read, or its parameters are not ``like`` these.
    """
    found = folders(directory)
    wanted = next(iter(found), None) if step == "latest" else int(step) if step.isdigit() else None
    if wanted not in found:
        steps = ", ".join(map(str, found)) or "none"
        raise InputError(f"--train.init @{step}: expected a step of {directory} or 'latest', found {steps}")
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), like)  # numpy in, numpy out
    try:
        with context:
            about = ocp.metadata(found[wanted])
            fits(found[wanted], {"ema": about.metadata["ema"]}, {"ema": like})
            loaded = ocp.load(found[wanted], {"ema": zeros})
        check(about.custom_metadata or {}, loaded)
        return loaded["ema"]
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{found[wanted]}: expected a checkpoint, found {one_line(error, 120)}") from None
