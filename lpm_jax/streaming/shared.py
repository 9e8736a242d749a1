"""Streams that share one program: what :class:`lpm_jax.pipeline.Stream` uses where several sessions are live on one
device. :mod:`lpm_jax.streaming.whole` has the same surface for streams that take turns.

Each stream sits in a slot of :mod:`lpm_jax.streaming.slots`. A step only leaves its sound; the first that waits for its
frames has the chunks of all that were asked for computed, in one batch:

    step (a) -> step (c) -> get (a): slots_step, active a and c -> get (c): there already

Slots that nobody asked for stay as they are, and what a stream shows doesn't depend on who else is there, bit for bit.
All methods are called from one thread.
"""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from lpm_jax.config import Config
from lpm_jax.streaming import generator, slots
from lpm_jax.streaming.generator import StreamState, Undo

Sound = tuple[Float[np.ndarray, "1 samples"], Float[np.ndarray, "1 samples"]]  # spoken and heard


@partial(jax.jit, static_argnums=0)
def slot_before(config: Config, states: StreamState, slot: Int[Array, ""]) -> Undo:
    """:func:`generator.before` of a slot's stream."""
    return generator.before(config, slots.take(states, slot))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def slot_rollback(config: Config, states: StreamState, slot: Int[Array, ""], undo: Undo) -> StreamState:
    """:func:`generator.rollback` of a slot's stream; ``states`` is donated."""
    return slots.join(states, slot, generator.rollback(config, slots.take(states, slot), undo))


class Shared:
    """``size`` slots on one device; :meth:`begin` opens a stream. ``params`` as :func:`generator.stored` keeps them."""

    ahead = 1  # chunks of a stream that may be on their way

    def __init__(self, config: Config, params: dict, size: int):
        self.config, self.params, self.size = config, params, size
        self.states: StreamState | None = None  # of all slots, from the first stream on
        self.seated: dict[int, SharedStream] = {}
        self.asked = Batch()

    def begin(
        self,
        pictures: UInt8[np.ndarray, "1 refs h w 3"],
        kinds: Int[np.ndarray, "1 refs"],
        valid: Bool[np.ndarray, "1 refs"],
        ids: Int[np.ndarray, "1 words"],
        key: Array,
    ) -> SharedStream:
        """A stream's beginning, as :func:`generator.start`. It takes its seat with its first chunk."""
        return SharedStream(self, generator.start(self.config, self.params, pictures, kinds, valid, ids, key))

    def seat(self, stream: SharedStream) -> int:
        """A free slot for ``stream``.

        Raises:
          RuntimeError: there is none.
        """
        free = next((slot for slot in range(self.size) if slot not in self.seated), None)
        if free is None:
            raise RuntimeError(f"expected a free slot, found all {self.size} taken")
        if self.states is None:
            self.states = slots.empty(stream.state, self.size)
        self.states = slots.join(self.states, free, stream.state)
        self.seated[free] = stream
        return free

    def compute(self) -> None:
        """The chunks that were asked for. What fails ends every stream that has a seat: their states are gone."""
        batch, self.asked = self.asked, Batch()
        active = np.isin(np.arange(self.size), list(batch.sounds))
        silence = np.zeros(generator.chunk_samples(self.config), np.float32)
        tracks = (
            np.stack([batch.sounds[slot][i][0] if slot in batch.sounds else silence for slot in range(self.size)])
            for i in (0, 1)
        )
        try:
            self.states, frames = slots.slots_step(self.config, self.params, self.states, active, *tracks)
            batch.frames = np.asarray(frames)
        except BaseException as error:
            batch.failure = error
            for stream in self.seated.values():
                stream.ended = error
            self.seated, self.states = {}, None
            if not isinstance(error, Exception):  # ^C, which is nobody's answer
                raise


class Batch:
    """Chunks that were asked for, by slot, and their frames once they are computed."""

    def __init__(self) -> None:
        self.sounds: dict[int, Sound] = {}
        self.frames: UInt8[np.ndarray, "slots frames h w 3"] | None = None
        self.failure: BaseException | None = None


class Asked:
    """A chunk that was asked for."""

    def __init__(self, shared: Shared, slot: int):
        self.shared, self.slot, self.batch = shared, slot, shared.asked

    def get(self) -> UInt8[np.ndarray, "1 frames h w 3"]:
        """Has it computed, if nobody has, and waits for the frames.

        Raises:
          RuntimeError: computing failed.
        """
        if self.batch is self.shared.asked:
            self.shared.compute()
        if self.batch.failure is not None:
            raise RuntimeError(f"the stream has ended: {self.batch.failure}") from self.batch.failure
        return self.batch.frames[self.slot : self.slot + 1]


class SharedStream:
    """One conversation in a slot, or, before its first chunk, beside them."""

    def __init__(self, shared: Shared, state: StreamState):
        self.shared = shared
        self.state: StreamState | None = state  # until it is seated
        self.slot = -1
        self.ended: BaseException | None = None

    def step(self, speak: Float[np.ndarray, "1 samples"], listen: Float[np.ndarray, "1 samples"]) -> Asked:
        """Asks for the next chunk."""
        self._settle()
        if self.state is not None:
            self.slot, self.state = self.shared.seat(self), None
        self.shared.asked.sounds[self.slot] = speak, listen
        return Asked(self.shared, self.slot)

    def set_prompt(self, ids: Int[np.ndarray, "1 words"]) -> None:
        """Another prompt from the next chunk on."""
        self._settle()
        shared = self.shared
        if self.state is not None:
            self.state = generator.set_prompt(shared.config, shared.params, self.state, ids)
            return
        told = generator.encode_prompt(shared.config, {"text": shared.params["text"]}, ids)
        text, mask = slots.join((shared.states.text, shared.states.text_mask), self.slot, told)
        shared.states = shared.states._replace(text=text, text_mask=mask)

    def before(self) -> Undo:
        """What is needed to take the next chunk back."""
        self._settle()
        if self.state is not None:
            return generator.before(self.shared.config, self.state)
        return slot_before(self.shared.config, self.shared.states, self.slot)

    def take_back(self, undo: Undo) -> None:
        """The stream as it was before its last chunk, with the prompt that it has now."""
        self._settle()
        self.shared.states = slot_rollback(self.shared.config, self.shared.states, self.slot, undo)

    def close(self) -> None:
        """Leaves the slot to others."""
        if self.shared.seated.get(self.slot) is self:
            if self.slot in self.shared.asked.sounds:
                self.shared.compute()
            self.shared.seated.pop(self.slot, None)  # a failure has emptied it
        self.ended, self.state = RuntimeError("it was closed"), None

    def _settle(self) -> None:
        """Has what was asked for computed: the state is that after it.

        Raises:
          RuntimeError: the stream has ended.
        """
        if self.slot in self.shared.asked.sounds and self.state is None:
            self.shared.compute()
        if self.ended is not None:
            raise RuntimeError(f"the stream has ended: {self.ended}") from self.ended
