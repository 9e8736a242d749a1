"""Several processes as one run: how they find each other, which rows of a batch each reads, and who writes.

Every process runs the same program over all devices (``jax.distributed``). What has one reader, the terminal, curves,
sheets and weights, is written by process 0; Orbax writes checkpoints from all of them. The global batch does not depend
on the number of processes: batch ``n`` is the same rows in the same order, of which a process loads those that its own
devices hold. So two processes take the steps of one, and a run may go on with another number of them.
"""

from __future__ import annotations

import collections
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from lpm_jax.errors import InputError, one_line

VARIABLES = ("LPM_COORDINATOR", "LPM_PROCESSES", "LPM_PROCESS_ID")


def initialize(wanted: bool = False) -> None:
    """Joins the other processes of this run, if there are any. Call it before anything that touches a device.

    The three ``LPM_`` variables say it all (plain ssh); otherwise JAX finds out from Slurm, Open MPI or Cloud TPU,
    where ``wanted`` or the environment says that there is more than one process.

    Raises:
      InputError: a variable is missing or unfit, or JAX could not find or reach the others.
    """
    given = {name: os.environ.get(name, "") for name in VARIABLES}
    if any(given.values()):
        missing = [name for name, value in given.items() if not value]
        if missing:
            raise InputError(f"{', '.join(VARIABLES)}: expected all three, found no {' and no '.join(missing)}")
        try:
            count, index = int(given["LPM_PROCESSES"]), int(given["LPM_PROCESS_ID"])
        except ValueError:
            count, index = 0, 0
        if not 0 <= index < count or ":" not in given["LPM_COORDINATOR"]:
            found = " ".join(f"{name}={value}" for name, value in given.items())
            raise InputError(f"expected HOST:PORT, a number of processes and one below it, found {found}")
        where = {"coordinator_address": given["LPM_COORDINATOR"], "num_processes": count, "process_id": index}
    elif wanted or launched(os.environ):
        where = {}
    else:
        return
    # JAX would take SIGTERM for itself; the loop has its own way to stop all processes at one step (Agreement).
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**where)
    except (ValueError, RuntimeError) as error:
        known = f"{', '.join(VARIABLES)} or a launcher that JAX knows (Slurm, Open MPI, Cloud TPU)"
        raise InputError(f"--distributed: expected {known}, found: {one_line(error)}") from None


def launched(environment: Any) -> bool:
    """Whether the environment is that of one of several processes: a Slurm step, or TPU hosts of GKE (XPK)."""
    tasks = (environment.get(name, "1") for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"))
    slurm = "SLURM_PROCID" in environment and all(n.isdigit() and int(n) > 1 for n in tasks)
    slices = bool(environment.get("MEGASCALE_COORDINATOR_ADDRESS"))
    return slurm or slices or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def primary() -> bool:
    """Whether this process writes what has one writer."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def everywhere(value: bool) -> bool:
    """Whether ``value`` holds in every process, which all learn."""
    return value if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.array(value))))


def fetch(tree: Any, keep: bool = True) -> Any:
    """``tree`` as whole numpy arrays, one leaf after the other, wherever its parts are; with None for each where this
    process does not ``keep`` them. All processes must call it."""

    def leaf(x: Any) -> np.ndarray | None:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            x = multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x) if keep else None

    return jax.tree.map(leaf, tree)


def place(tree: Any, where: Any) -> Any:
    """Arrays that every process has whole, as global arrays laid out by ``where``, a tree of shardings."""

    def leaf(x: Any, sharding: Sharding) -> jax.Array:
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(leaf(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(leaf, tree, where)


def batch_rows(sharding: Sharding, batch: int) -> tuple[int, ...]:
    """The rows of a global batch of ``batch`` that this process's devices hold, in order: what its loader reads.

    They need not be neighbours: a host's chips are a block of the torus, and a mesh may run through it in any order.

    Raises:
      InputError: the batch cannot be split evenly.
    """
    parts = len({str(index) for index in sharding.devices_indices_map((sharding.num_devices,)).values()})
    if batch % parts:
        raise InputError(f"--train.batch: expected a multiple of the mesh's {parts} parts, found {batch}")
    pieces = sharding.addressable_devices_indices_map((batch,)).values()
    return tuple(sorted({row for piece in pieces for row in range(*piece[0].indices(batch))}))


def put_batch(batch: Any, sharding: Sharding) -> Any:
    """Global arrays of the rows that each process loaded (:func:`batch_rows`)."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


class Agreement:
    """Whether any process asks to stop, answered with the same step's question in all of them.

    Signals reach processes at different steps, and one that left alone would leave the others waiting in a collective.
    So each step reduces one flag over all devices. The answer is read ``lag`` steps later, when it has long been there:
    no step waits for it, and all processes read the same one. Alone, a process answers itself at once.
    """

    def __init__(self, mesh: Mesh, lag: int):
        self.lag = lag
        self.flags = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self.asked: collections.deque[jax.Array] = collections.deque()
        self.reduce = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, wanted: bool) -> bool:
        if jax.process_count() == 1:
            return wanted
        mine = np.full(len(self.flags.addressable_devices), wanted, np.int32)
        self.asked.append(self.reduce(jax.make_array_from_process_local_data(self.flags, mine)))
        return len(self.asked) > self.lag and bool(self.asked.popleft())
