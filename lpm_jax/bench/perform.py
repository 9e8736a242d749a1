"""How a case's video is made: by a pipeline's streaming path, by Base's offline one, or taken from a folder of another
system's videos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_pipeline.schema import FPS, SAMPLES_PER_FRAME
from lpm_jax.bench.cases import Case
from lpm_jax.errors import InputError


def perform(pipeline, case: Case, seed: int = 0) -> Iterator[UInt8[np.ndarray, "chunk h w 3"]]:
    """Streams ``case``: both sounds a chunk at a time, each segment's prompt from the first chunk that begins within
    it, as many references as the model has places for."""
    places = getattr(getattr(pipeline, "config", None), "stream", None)
    names = list(case.references)[: places.references] if places else []
    chunk = pipeline.chunk_frames
    live = pipeline.open(case.first, case.prompt[0].text, seed, {name: case.references[name] for name in names})
    prompt = case.prompt[0]
    for at in range(0, case.frames, chunk):
        now = [segment for segment in case.prompt if segment.start <= at / FPS + 1e-6][-1]
        if now is not prompt:
            live.set_prompt(now.text)
            prompt = now
        piece = slice(at * SAMPLES_PER_FRAME, (at + chunk) * SAMPLES_PER_FRAME)
        yield live.step(case.speak[piece], case.listen[piece]).frames[: case.frames - at]


def perform_offline(base, case: Case, seed: int = 0) -> Iterator[UInt8[np.ndarray, "frames h w 3"]]:
    """``case`` by a :class:`lpm_jax.base.video.Base`, which sees all of its sound: what a teacher can do. Each segment
    has the prompt of the case at its beginning. Base's first frame is the picture; the case's videos begin after it."""
    from lpm_jax.base.video import segment_frames

    config = base.config
    step = (segment_frames(config) - config.sample.overlap) * config.vae.group
    starts = range(0, case.frames, step)
    prompts = [[s for s in case.prompt if s.start <= at / FPS + 1e-6][-1].text for at in starts]
    names = list(case.references)[: config.stream.references]
    still = np.zeros(SAMPLES_PER_FRAME, np.float32)
    speak, listen = (np.concatenate([still, track]) for track in (case.speak, case.listen))
    references = {name: case.references[name] for name in names}
    seconds = (case.frames + 1) / FPS
    made = base.generate(case.first, speak, listen, prompts, seed=seed, references=references, seconds=seconds)
    next(made)
    yield from made


def find_videos(folder: str | Path, names: list[str]) -> dict[str, Path]:
    """``folder/NAME.mp4`` for every case that has one.

    Raises:
      InputError: there is no folder, or no video in it has the name of a case.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--videos: expected a folder of MP4 files, found none at {str(folder)!r}")
    found = {name: folder / f"{name}.mp4" for name in names if (folder / f"{name}.mp4").is_file()}
    if not found:
        there = sorted(path.name for path in folder.glob("*.mp4"))[:3]
        raise InputError(
            f"--videos: expected files named after cases, such as {names[0]}.mp4, in {str(folder)!r}, "
            f"found {', '.join(there) or 'no MP4'}"
        )
    return found
