"""What the instruments see of a video: small signals per frame, from which every metric is computed.

Videos are read a block at a time and never held as a whole, so that an hour costs no more memory than its signals
(about 1 kB a frame). Floors are made from the true video's signals: :meth:`Observation.take` repeats or reorders its
frames, :meth:`Observation.blended` lets it turn into somebody else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from data_pipeline.schema import FPS
from lpm_jax.bench.instruments import trained
from lpm_jax.bench.instruments.reader import SIZE, Reader
from lpm_jax.pictures import load_image

CELLS = 8  # a frame's thumbnail: means of 8 x 8 cells
STRIDE = 6  # frames between two that the embedding looks at
WINDOW = 12  # frames of the windows whose motion is compared


@dataclasses.dataclass(frozen=True)
class Observation:
    """Signals of one video. What an instrument without weights would see is None, or not in ``read``."""

    thumbs: Float[np.ndarray, "frames 8 8 3"]  # mean colours, 0..255
    change: Float[np.ndarray, " frames_less_one"]  # mean absolute change of a pixel to the next frame, 0..255
    detail: Float[np.ndarray, " frames"]  # mean squared step between neighbouring pixels
    read: dict[str, Float[np.ndarray, " frames"]]  # what the readers read, by name
    features: Float[np.ndarray, "frames features"] | None  # the reader's layer before its answers
    lips: Float[np.ndarray, "frames d"] | None = None  # the synchrony network's view of the mouth
    looks: Float[np.ndarray, "some e"] | None = None  # identity embeddings, every STRIDE frames
    faces: float | None = None  # share of the frames in which a face was found, where that is asked

    def __len__(self) -> int:
        return len(self.thumbs)

    def take(self, index: Int[np.ndarray, " n"]) -> Observation:
        """The video with its frames in another order. A new neighbourhood's change is that of the thumbnails."""
        thumbs = self.thumbs[index]
        step = np.diff(index)
        coarse = np.abs(np.diff(thumbs, axis=0)).mean((1, 2, 3))
        kept = self.change[np.clip(index[:-1], 0, max(len(self.change) - 1, 0))] if len(self.change) else coarse
        change = np.where(step == 0, 0.0, np.where(step == 1, kept, coarse))
        pick = lambda x: None if x is None else x[index]  # noqa: E731
        looks = None if self.looks is None else self.looks[np.minimum(index[::STRIDE] // STRIDE, len(self.looks) - 1)]
        read = {name: values[index] for name, values in self.read.items()}
        return Observation(thumbs, change, self.detail[index], read, pick(self.features), pick(self.lips), looks)

    def fitted(self, frames: int) -> Observation:
        """Cut or repeated from its beginning to ``frames``."""
        return self.take(np.resize(np.arange(len(self)), frames))

    def blended(self, other: Observation) -> Observation:
        """The thumbnails turn into those of ``other``, evenly from the first frame to the last."""
        weight = np.linspace(0, 1, len(self), dtype=np.float32)[:, None, None, None]
        return dataclasses.replace(self, thumbs=self.thumbs + weight * (other.fitted(len(self)).thumbs - self.thumbs))


class Observer:
    """What looks at videos. ``missing`` says in a line each what cannot be seen."""

    size, block = SIZE, 240  # pixels of frames, and how many are looked at together
    missing: tuple[str, ...] = ()
    sync: Any = None  # hears speech as its networks see lips
    looks: Any = None  # knows who it is

    def introduce(
        self, pictures: Iterable[UInt8[np.ndarray, "_ _ 3"]]
    ) -> tuple[list[UInt8[np.ndarray, "128 128 3"]], Float[np.ndarray, "n e"] | None]:
        """First frames at the size of thumbnails, and who they show (not a number: nobody)."""
        raise NotImplementedError

    def observe(self, blocks: Iterable[UInt8[np.ndarray, "_ size size 3"]]) -> Observation:
        """Raises ValueError for a video without frames or of another size."""
        raise NotImplementedError

    def pixelated(self, seen: Observation) -> Observation:
        """What would be seen of the thumbnails alone: the floor of picture quality."""
        raise NotImplementedError


class Instruments(Observer):
    """Every instrument for drawings whose weights are there."""

    def __init__(self, reader: Reader, expressions=None, sync=None, looks=None, missing: tuple[str, ...] = ()):
        self.reader, self.expressions, self.sync, self.looks = reader, expressions, sync, looks
        self.missing = missing

    @classmethod
    def load(cls) -> Instruments:
        """The bundled instruments; without the reader there is nothing to measure with, without others less.

        Raises:
          InputError: weights that are there but broken, or no reader.
        """
        from lpm_jax.bench.instruments.expressions import Expressions
        from lpm_jax.bench.instruments.identity import Looks
        from lpm_jax.bench.instruments.sync import Sync

        found, missing = {}, []
        for part, kind, metrics in (
            ("expressions", Expressions, "smiles, brows and most prompts"),
            ("sync", Sync, "Sync-C and Sync-D"),
            ("looks", Looks, "the identity embedding"),
        ):
            if any((trained.FOLDER / kind.name).glob("*.safetensors")):
                found[part] = kind.load()
            else:
                missing.append(
                    f"no {kind.name} weights: {metrics} are left out (python -m lpm_jax.bench.instruments {kind.name})"
                )
        return cls(Reader.load(), **found, missing=tuple(missing))

    def introduce(
        self, pictures: Iterable[UInt8[np.ndarray, "_ _ 3"]]
    ) -> tuple[list[UInt8[np.ndarray, "128 128 3"]], Float[np.ndarray, "n e"] | None]:
        fit = lambda picture: picture if picture.shape[:2] == (SIZE, SIZE) else load_image(picture)  # noqa: E731
        fitted = [fit(picture) for picture in pictures]
        return fitted, self.looks.embed(np.stack(fitted)) if self.looks else None

    def observe(self, blocks: Iterable[UInt8[np.ndarray, "_ 128 128 3"]]) -> Observation:
        parts: list[dict[str, np.ndarray]] = []
        last = None
        seen = 0
        for frames in blocks:
            part = looked_at(frames, last)
            reading, part["features"] = self.reader.look(frames)
            part |= {f"read {name}": values for name, values in reading._asdict().items()}
            if self.expressions:
                part |= {f"read {name}": values for name, values in self.expressions.read(frames).items()}
            if self.sync:
                part["mouths"] = self.sync.crop(frames)
            if self.looks:
                part["looks"] = self.looks.embed(frames[-seen % STRIDE :: STRIDE])
            parts.append(part)
            last, seen = frames[-1:], seen + len(frames)
        if not parts:
            raise ValueError("expected a video, found no frames")
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        read = {name.removeprefix("read "): x for name, x in whole.items() if name.startswith("read ")}
        lips = self.sync.see(whole["mouths"]) if self.sync else None
        names = ("thumbs", "change", "detail", "features")
        return Observation(**{n: whole[n] for n in names}, read=read, lips=lips, looks=whole.get("looks"))

    def pixelated(self, seen: Observation) -> Observation:
        """What the reader makes of them: of every STRIDE-th frame."""
        thumbs = np.round(seen.thumbs[::STRIDE]).clip(0, 255).astype(np.uint8)
        coarse = thumbs.repeat(SIZE // CELLS, 1).repeat(SIZE // CELLS, 2)
        every = np.arange(len(seen)) // STRIDE
        features = self.reader.look(coarse)[1][every]
        return dataclasses.replace(seen, features=features, detail=detail_of(coarse)[every])


def looked_at(frames: UInt8[np.ndarray, "n h w 3"], last: UInt8[np.ndarray, "1 h w 3"] | None) -> dict[str, np.ndarray]:
    """What needs no instrument, of a block of frames after the frame ``last``."""
    joined = frames if last is None else np.concatenate([last, frames])
    return {"thumbs": thumbnails(frames), "change": _change(joined), "detail": detail_of(frames)}


def thumbnails(frames: UInt8[np.ndarray, "n h w 3"], cells: int = CELLS) -> Float[np.ndarray, "n c c 3"]:
    """Mean colours of ``cells`` x ``cells`` parts of each frame."""
    n, h, w, _ = frames.shape
    return frames.reshape(n, cells, h // cells, cells, w // cells, 3).mean((2, 4), dtype=np.float32)


def seconds(thumbs: Float[np.ndarray, "n c c 3"]) -> Float[np.ndarray, "s c c 3"]:
    """Means over whole seconds (or of everything, where there is less than one)."""
    count = max(1, len(thumbs) // FPS)
    return np.stack([part.mean(0) for part in np.array_split(thumbs, count)])


def _change(frames: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, " n_less_one"]:
    pairs = zip(frames, frames[1:], strict=False)
    return np.array([np.abs(b.astype(np.int16) - a).mean() for a, b in pairs], np.float64)


def detail_of(frames: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, " n"]:
    """Mean squared step between neighbouring pixels of each frame."""

    def one(frame: np.ndarray) -> float:
        x = frame.astype(np.float32)
        return float(np.mean(np.diff(x, axis=0) ** 2) + np.mean(np.diff(x, axis=1) ** 2))

    return np.array([one(frame) for frame in frames])
