"""A stream on one device, all lanes in one program: what :class:`lpm_jax.pipeline.Stream` uses where no mesh is asked
for. :mod:`lpm_jax.streaming.lanes` has the same surface over many devices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from lpm_jax.config import Config
from lpm_jax.streaming import generator
from lpm_jax.streaming.generator import StreamState, Undo


class Made(NamedTuple):
    """A chunk that was dispatched."""

    frames: UInt8[Array, "b frames h w 3"]

    def get(self) -> UInt8[np.ndarray, "b frames h w 3"]:
        """Waits for the frames."""
        return np.asarray(self.frames)


class Whole:
    """The model on one device; :meth:`begin` opens a stream. ``params`` as :func:`generator.stored` keeps them."""

    ahead = 1  # chunks that may be on their way

    def __init__(self, config: Config, params: dict):
        self.config, self.params = config, params

    def begin(
        self,
        pictures: UInt8[np.ndarray, "b refs h w 3"],
        kinds: Int[np.ndarray, "b refs"],
        valid: Bool[np.ndarray, "b refs"],
        ids: Int[np.ndarray, "b words"],
        key: Array,
    ) -> WholeStream:
        """A stream's beginning, as :func:`generator.start`."""
        return WholeStream(self, generator.start(self.config, self.params, pictures, kinds, valid, ids, key))


class WholeStream:
    """One conversation on one device."""

    def __init__(self, whole: Whole, state: StreamState):
        self.whole, self.state = whole, state

    def step(self, speak: Float[np.ndarray, "b samples"], listen: Float[np.ndarray, "b samples"]) -> Made:
        """Dispatches the next chunk."""
        whole = self.whole
        self.state, frames = generator.chunk_step(whole.config, whole.params, self.state, speak, listen)
        return Made(frames)

    def set_prompt(self, ids: Int[np.ndarray, "b words"]) -> None:
        """Another prompt from the next chunk on."""
        self.state = generator.set_prompt(self.whole.config, self.whole.params, self.state, ids)

    def before(self) -> Undo:
        """What is needed to take the next chunk back."""
        return generator.before(self.whole.config, self.state)

    def take_back(self, undo: Undo) -> None:
        """The stream as it was before its last chunk, with the prompt that it has now."""
        self.state = generator.rollback(self.whole.config, self.state, undo)

    def close(self) -> None:
        """Nothing is on its way, and nobody waits for its place."""
