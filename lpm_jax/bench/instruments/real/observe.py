"""What the instruments for real faces see of a video: the same signals as of a drawn one, from larger frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from lpm_jax.bench.files import SIZE
from lpm_jax.bench.instruments.real import faces, identity, landmarks, pose, sync
from lpm_jax.bench.instruments.real.onnx import onnxruntime
from lpm_jax.bench.observe import STRIDE, Observation, Observer, detail_of, looked_at
from lpm_jax.errors import InputError
from lpm_jax.pictures import load_image

SURE = 0.3  # mean score of the face's points from which they count, as MMPose draws them


class RealInstruments(Observer):
    """Every network whose file is in a folder; ``missing`` has a line for each that is not.

    Raises:
      InputError: no onnxruntime, no file to read faces with, or one that is not what was expected.
    """

    size, block = 512, 48  # pixels of frames, and how many are looked at together

    def __init__(self, folder: str | Path):
        onnxruntime()
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"--weights: expected a folder of ONNX files, found none at {str(folder)!r}")
        there = lambda spec: (folder / spec.file).is_file()  # noqa: E731
        if not there(faces.SPEC) and not there(pose.SPEC):
            names = ", ".join(path.name for path in sorted(folder.iterdir())[:5]) or "nothing"
            raise InputError(
                f"--weights: expected {faces.SPEC.file} or {pose.SPEC.file} (docs/bench.md says where from) "
                f"in {str(folder)!r}, found {names}"
            )
        specs = (faces.SPEC, identity.SPEC, pose.SPEC, sync.LIPS, sync.SOUND)
        lines = [spec.missing(folder) for spec in specs if not there(spec)]
        self.missing = (*lines, "no network for Frechet distances of real pictures: they are left out")
        self.faces = faces.Faces(folder) if there(faces.SPEC) else None
        self.pose = pose.Pose(folder) if there(pose.SPEC) else None
        self.looks = identity.Looks(folder) if self.faces and there(identity.SPEC) else None
        self.sync = sync.Sync(folder) if self.faces and there(sync.LIPS) and there(sync.SOUND) else None

    def fingerprints(self) -> dict[str, str]:
        """The files that are used, and the beginnings of their SHA-256."""
        parts = [part.network for part in (self.faces, self.looks, self.pose) if part]
        parts += [self.sync.lips, self.sync.sound] if self.sync else []
        return {network.spec.file: network.fingerprint() for network in parts}

    def introduce(
        self, pictures: Iterable[UInt8[np.ndarray, "_ _ 3"]]
    ) -> tuple[list[UInt8[np.ndarray, "128 128 3"]], Float[np.ndarray, "n e"] | None]:
        small, looks = [], []
        for picture in pictures:
            small.append(load_image(picture))
            if self.looks:
                large = load_image(picture, self.size)
                face = self.faces.find(large)
                nobody = np.full(self.looks.width, np.nan, np.float32)
                looks.append(nobody if face is None else self.looks.embed(large[None], face.points[None])[0])
        return small, np.stack(looks) if self.looks else None

    def observe(self, blocks: Iterable[UInt8[np.ndarray, "_ size size 3"]]) -> Observation:
        parts: list[dict[str, np.ndarray]] = []
        last = None
        seen = 0
        for (frames, boxes, points, found), own in overlapping(self._tracked(blocks), sync.REACH):
            mine = frames[own]
            small = shrunk(mine)
            part = looked_at(small, last) | {"found": found[own]}
            if self.pose:
                dots, sure = self.pose.find(mine)
                part |= {f"read {name}": values for name, values in landmarks.signals(dots).items()}
                part["sure"] = sure.mean(1)
            if self.sync:
                part["lips"] = self.sync.see(frames, boxes, own)
            if self.looks:
                part["looks"] = self._looks(mine, points[own], found[own], -seen % STRIDE)
            parts.append(part)
            last, seen = small[-1:], seen + len(mine)
        if not parts:
            raise ValueError("expected a video, found no frames")
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        read = {name.removeprefix("read "): x for name, x in whole.items() if name.startswith("read ")}
        if self.pose:
            read = landmarks.bridged(read, whole["sure"], SURE)
        anybody = self.faces is not None and whole["found"].any()
        return Observation(
            **{name: whole[name] for name in ("thumbs", "change", "detail")},
            read=read,
            features=None,
            lips=whole.get("lips") if anybody else None,
            looks=whole.get("looks"),
            faces=float(whole["found"].mean()) if self.faces else None,
        )

    def pixelated(self, seen: Observation) -> Observation:
        thumbs = np.round(seen.thumbs[::STRIDE]).clip(0, 255).astype(np.uint8)
        cell = SIZE // thumbs.shape[1]
        coarse = detail_of(thumbs.repeat(cell, 1).repeat(cell, 2))
        return dataclasses.replace(seen, detail=coarse[np.arange(len(seen)) // STRIDE])

    def _tracked(self, blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, ...]]:
        """Frames, and the face in each."""
        last = None
        for frames in blocks:
            if self.faces:
                track, last = self.faces.follow(frames, last)
                yield frames, *track
            else:
                n = len(frames)
                yield frames, np.zeros((n, 4)), np.zeros((n, 5, 2)), np.zeros(n, bool)

    def _looks(self, frames: np.ndarray, points: np.ndarray, found: np.ndarray, first: int) -> np.ndarray:
        """Embeddings of every STRIDE-th frame from ``first``; zeros, which are like nobody, where there is no face."""
        chosen = np.arange(first, len(frames), STRIDE)
        good = chosen[found[chosen]]
        out = np.zeros((len(chosen), self.looks.width), np.float32)
        if len(good):
            out[found[chosen]] = self.looks.embed(frames[good], points[good])
        return out


def shrunk(frames: UInt8[np.ndarray, "n s s 3"]) -> UInt8[np.ndarray, "n 128 128 3"]:
    """At the size at which colours, motion and sharpness are measured."""
    n, side = frames.shape[:2]
    cell = side // SIZE
    means = frames.reshape(n, SIZE, cell, SIZE, cell, 3).mean((2, 4), dtype=np.float32)
    return means.round().astype(np.uint8)


def overlapping(parts: Iterable[tuple[np.ndarray, ...]], reach: int) -> Iterator[tuple[tuple[np.ndarray, ...], slice]]:
    """Parts of a long sequence with up to ``reach`` entries before and after them, and which entries are theirs."""
    held: tuple[np.ndarray, ...] | None = None
    own = 0
    for part in parts:
        held = part if held is None else tuple(np.concatenate(pair) for pair in zip(held, part, strict=True))
        ready = len(held[0]) - reach
        if ready > own:
            yield held, slice(own, ready)
            gone = max(ready - reach, 0)
            held, own = tuple(x[gone:] for x in held), ready - gone
    if held is not None and own < len(held[0]):
        yield held, slice(own, len(held[0]))
