"""Clips of held-out performers for the bench's tests, drawn once: cases, their true videos, and a quick model."""

from __future__ import annotations

import functools

import numpy as np

from lpm_jax.bench.cases import Case
from lpm_jax.bench.generate import make_case
from lpm_jax.bench.instruments.reader import Reader
from lpm_jax.bench.observe import Instruments, Observation
from lpm_jax.bench.suites import specs


@functools.cache
def case(kind: str, index: int = 0) -> Case:
    """A case of the small suite."""
    return make_case([spec for spec in specs("small") if spec.kind == kind][index])


@functools.cache
def video(kind: str, index: int = 0) -> np.ndarray:
    """Its true frames."""
    return np.concatenate(list(case(kind, index).truth.video()))


@functools.cache
def instruments() -> Instruments:
    """The reader alone: what is always there."""
    return Instruments(Reader.load())


@functools.cache
def true(kind: str, index: int = 0) -> Observation:
    """What the reader sees of the true video."""
    return instruments().observe([video(kind, index)])


def shifted(frames: np.ndarray, late: int) -> np.ndarray:
    """The video late by so many frames: the first one stays for them."""
    return frames[np.maximum(np.arange(len(frames)) - late, 0)]


class TruePipeline:
    """Streams the true video of the case whose sound it is given, with a pipeline's surface."""

    size, fps, chunk_frames = (128, 128), 24, 12

    def __init__(self, cases: list[Case]):
        self.cases, self.prompts = cases, []

    def open(self, image, prompt="", seed=0, references=None):
        pipeline = self

        class Live:
            at = 0
            case = next(c for c in pipeline.cases if np.array_equal(c.first, image))
            frames = np.concatenate(list(case.truth.video()))

            def set_prompt(self, text):
                pipeline.prompts.append((self.at, text))

            def step(self, speak, listen):
                from lpm_jax.pipeline import Chunk

                piece = slice(self.at * 1000, self.at * 1000 + len(speak))
                assert np.array_equal(speak, self.case.speak[piece])
                assert np.array_equal(listen, self.case.listen[piece])
                made = self.frames[self.at : self.at + 12]
                self.at += 12
                return Chunk(made, 0.0, "speak", 0.0)

        pipeline.prompts.append((0, prompt))
        return Live()
