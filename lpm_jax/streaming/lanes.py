"""The streaming step in lanes, Generator -> Refiner -> VAE, each on its own devices and a chunk apart.

    chunk n+2   Generator  [ T0 | T1 ]      its mesh: heads over ``tensor``, patches over ``context``
    chunk n+1       coarse latents, sound --> Refiner  [ T2 ]       its own mesh, laid out alike; not every model's
    chunk n                       latents --> VAE         its devices: the picture's columns, edges exchanged
    chunk n-1                                 frames --> host

A lane is a compiled program, and a thread of its own sends it chunks in their order: handing arrays from one lane's
devices to another's may wait for them, and must not hold up the lane before. What is on its way is bounded by
:attr:`Lanes.ahead` chunks, so that a slow lane holds up the whole. With one device all lanes share it. A lane that
fails, or stalls for longer than :attr:`Lanes.limit`, raises where its frames are asked for, in the session that asked,
and ends that: the others are a chunk further.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8

from lpm_jax import sharding
from lpm_jax.config import Config, MeshConfig
from lpm_jax.errors import InputError
from lpm_jax.models import conditions, dit, vae
from lpm_jax.streaming import generator, layout
from lpm_jax.streaming.generator import StreamState
from lpm_jax.streaming.layout import SPACE
from lpm_jax.streaming.refiner import RefinerState, refine
from lpm_jax.streaming.refiner import begin as begin_refiner

LANES = ("generator", "refiner", "vae")
LIMIT = 60.0  # seconds
LOOK = 0.001  # seconds between looks at whether a device is done


class StalledError(RuntimeError):
    """A lane did not come to an end with a chunk in time."""


@dataclasses.dataclass(frozen=True)
class Pending:
    """A chunk on its way through ``stream``'s lanes. What is in ``sent`` is an array, or arrays, when its lane was sent
    the chunk; the last one's are the frames."""

    index: int
    sent: dict[str, Future]
    stream: LaneStream

    def get(self) -> UInt8[np.ndarray, "b frames h w 3"]:
        """Waits for the frames. What a lane raised, this raises.

        Raises:
          StalledError: a lane took longer than ``Lanes.limit``; its stream has ended. The lane's thread is still at it.
        """
        return np.asarray(self.wait())

    def wait(self) -> Array:
        """Until the frames are on their devices."""
        stream, lanes, last = self.stream, self.stream.lanes, [*self.sent.values()][-1]
        if isinstance(stream.failure, StalledError):
            raise stream.failure
        until = time.monotonic() + lanes.limit if lanes.warm else math.inf
        try:
            frames = last.result(lanes.limit if lanes.warm else None)
        except TimeoutError:
            frames = last.result() if last.done() else None  # what a lane raised by itself, it raises again
        while frames is None or not frames.is_ready():
            if time.monotonic() >= until:
                lane = next((name for name, future in self.sent.items() if not _done(future)), LANES[-1])
                stream.failure = stream.failure or StalledError(
                    f"the {lane} lane stalled: chunk {self.index} was not there within {lanes.limit:g} s"
                )
                raise stream.failure
            time.sleep(LOOK)
        lanes.warm = True
        return frames


def _done(sent: Future) -> bool:
    """Whether a lane's work is over, on its devices too."""
    return sent.done() and (sent.exception() or all(x.is_ready() for x in jax.tree.leaves(sent.result())))


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
      refiner: devices for the Refiner, as many as the Generator's; by default those.
      ahead: chunks that may be on their way; by default one for each lane.

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
        ahead: int = 0,
        refiner: list | None = None,
    ):
        self.config = config
        self.limit = LIMIT  # seconds that a chunk may take, once a first one has been made: lanes are compiled for that
        self.warm = False
        self.mesh = sharding.make_mesh(mesh, devices)
        if refiner and len(refiner) != len(devices):
            raise InputError(f"Refiner: expected {len(devices)} devices, as the Generator, found {len(refiner)}")
        self.refiner_mesh = sharding.make_mesh(mesh, refiner) if refiner else self.mesh
        sharding.check(self.mesh, config.dit, 1, config.grid[0] * config.grid[1])
        decoder = decoder or devices[:1]
        if config.cells[1] % len(decoder):
            raise InputError(f"VAE: expected devices that divide {config.cells[1]} columns, found {len(decoder)}")
        self.space = Mesh(np.array(decoder), (SPACE,))
        columns = PartitionSpec(None, None, None, SPACE)
        self.columns, whole = NamedSharding(self.space, columns), NamedSharding(self.space, PartitionSpec())
        params = dict(generator.stored(config, params))
        self.vae = jax.device_put(params.pop("vae"), whole)
        fine = {"refiner": params.pop("refiner"), "prior": params["prior"]} if config.stream.refine else {}
        self.params, self.fine = (
            jax.device_put(part, layout.param_shardings(on, config, part))
            for part, on in ((params, self.mesh), (fine, self.refiner_mesh))
        )
        self._generate: Any = None  # compiled for the layout of the first stream's state, which all share
        self._refine: Any = None
        self._see = jax.jit(partial(generator.seen, config), out_shardings=(whole, self.columns))
        self._begin = jax.jit(partial(_first, config))
        self._begin_refiner = jax.jit(partial(_first_refined, config))
        self._decode = jax.jit(self._frames, donate_argnums=2, out_shardings=(self.columns, self.columns))
        #: The thread that sends a lane its chunks. All streams share it: what was sent first runs first.
        self.threads = {name: ThreadPoolExecutor(1, thread_name_prefix=name) for name in LANES if self.has(name)}
        self.ahead = ahead or len(self.threads)
        self.began = time.perf_counter()
        self.runs: list[Run] = []

    def has(self, lane: str) -> bool:
        """Whether the model has this lane: not every one has a Refiner."""
        return lane != "refiner" or bool(self.config.stream.refine)

    def _frames(self, params: dict, latents: Array, state: dict) -> tuple[dict, Array]:
        frames, state = vae.decode(self.config.vae, params, latents, state)
        return state, vae.to_pixels(frames)

    def begin(
        self,
        pictures: UInt8[np.ndarray, "b refs h w 3"],
        kinds: Int[np.ndarray, "b refs"],
        valid: Bool[np.ndarray, "b refs"],
        ids: Int[np.ndarray, "b words"],
        key: Array,
    ) -> LaneStream:
        """A stream's beginning, as :func:`generator.start`, each part on its lane's devices."""
        latents, decoder = self._see(self.vae, jax.device_put(pictures, NamedSharding(self.space, PartitionSpec())))
        given = (latents, kinds, valid)
        with sharding.on(self.mesh):
            here = sharding.replicated(self.mesh)
            state = self._begin(self.params, *jax.device_put((*given, ids, key), here))
        if self.has("refiner"):
            with sharding.on(self.refiner_mesh):
                here = sharding.replicated(self.refiner_mesh)
                told = jax.device_put((*given, state.text, state.text_mask, key), here)
                state = state._replace(refiner=self._begin_refiner(self.fine, *told))
        return self.open(state._replace(vae=decoder))

    @property
    def whole(self) -> dict:
        """All weights, each on its lane's devices."""
        return self.params | {"vae": self.vae} | {name: x for name, x in self.fine.items() if name == "refiner"}

    def open(self, state: StreamState, watch: bool = False) -> LaneStream:
        """A stream that begins with ``state`` (:func:`lpm_jax.streaming.generator.start`), laid out on the lanes.
        ``watch`` notes when each lane worked, in :attr:`runs`."""
        decoder = jax.device_put(state.vae, self.columns)
        fine, state = state.refiner, state._replace(vae={}, refiner=None)
        where = layout.state_shardings(self.mesh, state)
        state = jax.device_put(state, where)
        if self._generate is None:
            made = generator.latent_step if fine is None else _coarse
            out = (where, sharding.replicated(self.mesh))
            self._generate = jax.jit(partial(made, self.config), donate_argnums=1, out_shardings=out)
        if fine is not None:
            where = layout.track_shardings(self.refiner_mesh, fine)
            fine = jax.device_put(fine, where)
            if self._refine is None:
                out = (where, sharding.replicated(self.refiner_mesh))
                self._refine = jax.jit(partial(_refined, self.config), donate_argnums=1, out_shardings=out)
        return LaneStream(self, state, fine, decoder, watch)


def _first(config: Config, params: dict, latents: Array, kinds: Array, valid: Array, ids: Array, key: Array):
    """The Generator's part of :func:`lpm_jax.streaming.generator.start`."""
    alone = dataclasses.replace(config, stream=dataclasses.replace(config.stream, refine=0.0))
    text, mask = conditions.encode_text(config, params, ids)
    return generator.begin(alone, params, latents, kinds, valid, text, mask, key)


def _first_refined(config: Config, params: dict, *given: Array) -> RefinerState:
    """The Refiner's."""
    *told, key = given
    return begin_refiner(config, params, *generator.shown(config, *told), jax.random.fold_in(key, 1))


def _coarse(config: Config, params: dict, state: StreamState, speak: Array, listen: Array) -> tuple[StreamState, Any]:
    """The Generator's part of :func:`lpm_jax.streaming.generator.latent_step`, for a Refiner to go on with."""
    state, told = generator.hear(config, params, state, speak, listen)
    state, made = generator.generate(config, params, state, told)
    return state, (told, made.estimates[-1])


def _refined(config: Config, params: dict, state: RefinerState, told: dit.Conditions, coarse: Array):
    """The Refiner's part: latents."""
    state, fine = refine(config, params, state, told, coarse)
    return state, dit.unpatchify(config.dit, fine, *config.cells)


class LaneStream:
    """One conversation on :class:`Lanes`. Its methods are called from one thread."""

    def __init__(self, lanes: Lanes, state: StreamState, fine: RefinerState | None, decoder: dict, watch: bool):
        self.lanes = lanes
        # Each lane's own part, which its thread alone changes while chunks are on their way.
        self.parts: dict[str, Any] = {"generator": state, "refiner": fine, "vae": decoder}
        self.index = 0
        self.failure: BaseException | None = None  # the first one, of any lane
        self._pending: deque[Pending] = deque()
        self._watch = _Watch(lanes) if watch else None

    def step(
        self, speak: Float[Array | np.ndarray, "b samples"], listen: Float[Array | np.ndarray, "b samples"]
    ) -> Pending:
        """Sends the next chunk on its way; waits only while ``ahead`` others are. What failed is raised by its
        :class:`Pending`."""
        while len(self._pending) >= self.lanes.ahead:
            _wait(self._pending.popleft())
        works = {"generator": self._generator, "refiner": self._refiner, "vae": self._vae}
        sent: dict[str, Future] = {}
        handed: Any = (speak, listen)
        for lane in self.lanes.threads:
            handed = sent[lane] = self._send(self.index, time.perf_counter(), lane, works[lane], handed)
        pending = Pending(self.index, sent, self)
        self._pending.append(pending)
        self.index += 1
        return pending

    def _send(self, chunk: int, sent: float, lane: str, work: Callable, handed: Any) -> Future:
        """Has the lane's thread do ``work`` on what the lane before hands over."""

        def run() -> Any:
            given = handed.result() if isinstance(handed, Future) else handed
            if self.failure is not None:
                raise RuntimeError(f"the stream ended before chunk {chunk}: {self.failure}") from self.failure
            try:
                self.parts[lane], result = work(self.parts[lane], given)
            except BaseException as error:
                self.failure = self.failure or error
                raise
            if self._watch:
                self._watch.note(lane, chunk, sent, result)
            return result

        return self.lanes.threads[lane].submit(run)

    def _generator(self, state: StreamState, sound: tuple) -> tuple[StreamState, Any]:
        lanes = self.lanes
        with sharding.on(lanes.mesh):
            sound = jax.device_put(sound, sharding.replicated(lanes.mesh))
            return lanes._generate(lanes.params, state, *sound)

    def _refiner(self, state: RefinerState, coarse: tuple) -> tuple[RefinerState, Array]:
        lanes = self.lanes
        with sharding.on(lanes.refiner_mesh):
            coarse = jax.device_put(coarse, sharding.replicated(lanes.refiner_mesh))
            return lanes._refine(lanes.fine, state, *coarse)

    def _vae(self, state: dict, latents: Array) -> tuple[dict, Array]:
        return self.lanes._decode(self.lanes.vae, jax.device_put(latents, self.lanes.columns), state)

    def set_prompt(self, ids: Int[np.ndarray, "b words"]) -> None:
        """Another prompt from the next chunk on that is sent."""
        lanes = self.lanes

        def change() -> None:
            with sharding.on(lanes.mesh):
                told = jax.device_put(ids, sharding.replicated(lanes.mesh))
                state = generator.set_prompt(lanes.config, lanes.params, self.parts["generator"], told)
                text = jax.device_put((state.text, state.text_mask), sharding.replicated(lanes.mesh))
                self.parts["generator"] = state._replace(text=text[0], text_mask=text[1])

        lanes.threads["generator"].submit(change).result()

    def settle(self) -> dict[str, Any]:
        """The lanes' parts when all that was sent is done.

        Raises:
          RuntimeError: a lane has failed, so that they are not of one moment.
        """
        self._finish()
        if self.failure is not None:
            raise RuntimeError(f"the stream has ended: {self.failure}") from self.failure
        return self.parts

    def _finish(self) -> None:
        while self._pending:
            _wait(self._pending.popleft())

    def before(self) -> tuple:
        """What is needed to take the next chunk back (:meth:`take_back`); waits for those on their way."""
        config, parts = self.lanes.config, self.settle()
        fine = generator.track_before(config, parts["refiner"]) if self.lanes.has("refiner") else None
        return generator.before(config, parts["generator"]), fine, jax.tree.map(jnp.copy, parts["vae"]), self.index

    def take_back(self, undo: tuple) -> None:
        """The stream as it was before its last chunk, in every lane."""
        config, parts = self.lanes.config, self.settle()
        kept, fine, decoder, self.index = undo
        parts["generator"], parts["vae"] = generator.rollback(config, parts["generator"], kept), decoder
        if self.lanes.has("refiner"):
            parts["refiner"] = generator.track_rollback(config, parts["refiner"], fine)

    def close(self) -> None:
        """Waits for what is on its way."""
        self._finish()
        if self._watch:
            self._watch.close()


def _wait(pending: Pending) -> None:
    """Until a chunk is done or has failed, which who holds it will hear."""
    with contextlib.suppress(Exception):
        pending.wait()


class _Watch:
    """A thread for each lane that waits for its results, in order, and notes when they came."""

    def __init__(self, lanes: Lanes):
        self.lanes = lanes
        names = list(lanes.threads)
        self.queues: dict[str, SimpleQueue[Any]] = {name: SimpleQueue() for name in names}
        self.ready: dict[tuple[str, int], Future] = {}  # when a lane's result of a chunk was there
        before = dict(zip(names[1:], names, strict=False))
        self.threads = [
            threading.Thread(target=self._follow, args=(name, before.get(name, "")), daemon=True) for name in names
        ]
        for thread in self.threads:
            thread.start()

    def note(self, lane: str, chunk: int, sent: float, result: Any) -> None:
        self.ready[lane, chunk] = Future()
        self.queues[lane].put((chunk, sent, result))

    def _follow(self, lane: str, before: str) -> None:
        last = 0.0
        while (item := self.queues[lane].get()) is not None:
            chunk, sent, result = item
            jax.block_until_ready(result)
            end = time.perf_counter()
            self.ready[lane, chunk].set_result(end)
            begin = min(end, max(last, self.ready[before, chunk].result() if before else sent))
            self.lanes.runs.append(Run(lane, chunk, begin - self.lanes.began, end - self.lanes.began))
            last = end

    def close(self) -> None:
        for queue in self.queues.values():
            queue.put(None)
        for thread in self.threads:
            thread.join()
