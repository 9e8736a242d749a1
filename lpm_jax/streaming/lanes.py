"""The streaming step in lanes, Generator -> VAE, each on its own devices and a chunk apart.

    chunk n+1   Generator  [ T0 | T1 ]      its mesh: heads over ``tensor``, patches over ``context``
    chunk n         latents --> VAE         its devices: the picture's columns, edges exchanged by the convolutions
    chunk n-1                   frames --> host

A lane is a compiled program, and JAX dispatches without waiting: while one runs on its devices, the next is queued on
the others'. No threads are needed, nor locks; what is handed over is bounded by :attr:`Lanes.ahead` chunks, so that a
slow lane holds up the one before it. With one device both lanes share it. A lane that fails raises where its frames are
asked for, in the session that asked.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

from lpm_jax import sharding
from lpm_jax.config import Config, MeshConfig
from lpm_jax.errors import InputError
from lpm_jax.models import vae
from lpm_jax.streaming import generator, layout
from lpm_jax.streaming.generator import StreamState

SPACE = "space"


class Pending(NamedTuple):
    """A chunk on its way: ``frames`` is there when the VAE's lane is done."""

    index: int
    frames: Array

    def get(self) -> UInt8[np.ndarray, "b frames h w 3"]:
        """Waits for the frames."""
        return np.asarray(self.frames)


class Run(NamedTuple):
    """When a lane worked on a chunk, in seconds since the lanes were made."""

    lane: str
    chunk: int
    begin: float
    end: float


class Lanes:
    """The compiled lanes of one model; :meth:`open` begins a stream on them.

    Args:
      params: as :func:`lpm_jax.pretrained.load` returns them.
      devices: for the Generator.
      mesh: how the Generator's devices are laid out; ``fsdp`` must be 1.
      decoder: devices for the VAE; by default the Generator's first.
      ahead: chunks that may be on their way.

    Raises:
      InputError: the model does not divide over the devices.
    """

    def __init__(
        self,
        config: Config,
        params: dict,
        devices: list,
        mesh: MeshConfig = MeshConfig(fsdp=1),  # noqa: B008
        decoder: list | None = None,
        ahead: int = 2,
    ):
        self.config, self.ahead = config, ahead
        self.mesh = sharding.make_mesh(mesh, devices)
        sharding.check(self.mesh, config.dit, 1, config.grid[0] * config.grid[1])
        decoder = decoder or devices[:1]
        if config.cells[1] % len(decoder):
            raise InputError(f"VAE: expected devices that divide {config.cells[1]} columns, found {len(decoder)}")
        self.space = Mesh(np.array(decoder), (SPACE,))
        columns = PartitionSpec(None, None, None, SPACE)
        self.columns, whole = NamedSharding(self.space, columns), NamedSharding(self.space, PartitionSpec())
        params = dict(generator.stored(config, params))
        self.vae = jax.device_put(params.pop("vae"), whole)
        where = layout.param_shardings(self.mesh, config, params)
        self.params = jax.device_put(params, where)
        self._generate: Any = None  # compiled for the layout of the first stream's state, which all share
        self._decode = jax.jit(self._frames, donate_argnums=2, out_shardings=(self.columns, self.columns))
        self.began = time.perf_counter()
        self.runs: list[Run] = []

    def _frames(self, params: dict, latents: Array, state: dict) -> tuple[dict, Array]:
        frames, state = vae.decode(self.config.vae, params, latents, state)
        return state, vae.to_pixels(frames)

    def open(self, state: StreamState, watch: bool = False) -> LaneStream:
        """A stream that begins with ``state`` (:func:`lpm_jax.streaming.generator.start`), laid out on the lanes.
        ``watch`` notes when each lane worked, in :attr:`runs`."""
        decoder = jax.device_put(state.vae, self.columns)
        state = state._replace(vae={})
        where = layout.state_shardings(self.mesh, state)
        state = jax.device_put(state, where)
        if self._generate is None:
            out = (where, sharding.replicated(self.mesh))
            self._generate = jax.jit(partial(generator.latent_step, self.config), donate_argnums=1, out_shardings=out)
        return LaneStream(self, state, decoder, watch)


class LaneStream:
    """One conversation on :class:`Lanes`."""

    def __init__(self, lanes: Lanes, state: StreamState, decoder: dict, watch: bool):
        self.lanes, self.state, self.decoder = lanes, state, decoder
        self.index = 0
        self._pending: deque[Pending] = deque()
        self._watch = _Watch(lanes) if watch else None

    def step(self, speak: Float[Array, "b samples"], listen: Float[Array, "b samples"]) -> Pending:
        """Sends the next chunk on its way; waits only while ``ahead`` others are."""
        lanes = self.lanes
        while len(self._pending) >= lanes.ahead:
            jax.block_until_ready(self._pending.popleft().frames)
        everywhere = sharding.replicated(lanes.mesh)
        sent = time.perf_counter()
        with sharding.on(lanes.mesh):
            sound = jax.device_put((speak, listen), everywhere)
            self.state, latents = lanes._generate(lanes.params, self.state, *sound)
        handed = jax.device_put(latents, lanes.columns)
        self.decoder, frames = lanes._decode(lanes.vae, handed, self.decoder)
        pending = Pending(self.index, frames)
        if self._watch:
            self._watch.note(self.index, sent, latents, frames)
        self._pending.append(pending)
        self.index += 1
        return pending

    def before(self) -> tuple[generator.Undo, dict, int]:
        """What is needed to take the next chunk back (:meth:`take_back`)."""
        return generator.before(self.lanes.config, self.state), jax.tree.map(jnp.copy, self.decoder), self.index

    def take_back(self, undo: tuple[generator.Undo, dict, int]) -> None:
        """The stream as it was before its last chunk, in every lane."""
        kept, self.decoder, self.index = undo
        self.state = generator.rollback(self.lanes.config, self.state, kept)
        self._pending.clear()

    def close(self) -> None:
        """Waits for what is on its way."""
        for pending in self._pending:
            jax.block_until_ready(pending.frames)
        if self._watch:
            self._watch.close()


class _Watch:
    """A thread for each lane that waits for its results, in order, and notes when they came."""

    def __init__(self, lanes: Lanes):
        self.lanes = lanes
        self.queues: dict[str, SimpleQueue[Any]] = {"generator": SimpleQueue(), "vae": SimpleQueue()}
        self.ready: dict[int, float] = {}  # when a chunk's latents were there
        self.threads = [threading.Thread(target=self._follow, args=(name,), daemon=True) for name in self.queues]
        for thread in self.threads:
            thread.start()

    def note(self, chunk: int, sent: float, latents: Array, frames: Array) -> None:
        self.queues["generator"].put((chunk, sent, latents))
        self.queues["vae"].put((chunk, sent, frames))

    def _follow(self, lane: str) -> None:
        last = 0.0
        while (item := self.queues[lane].get()) is not None:
            chunk, sent, result = item
            jax.block_until_ready(result)
            end = time.perf_counter()
            if lane == "generator":
                self.ready[chunk] = end
            begin = max(last, sent if lane == "generator" else self.ready.get(chunk, sent))
            self.lanes.runs.append(Run(lane, chunk, begin - self.lanes.began, end - self.lanes.began))
            last = end

    def close(self) -> None:
        for queue in self.queues.values():
            queue.put(None)
        for thread in self.threads:
            thread.join()
