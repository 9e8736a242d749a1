"""Sound, pictures and videos of the benchmark's folders; every file is written aside and renamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from data_pipeline.schema import FPS, SAMPLE_RATE
from lpm_jax.errors import InputError
from lpm_jax.media import Mp4Writer, open_source
from lpm_jax.pictures import load_image

SIZE = 128  # pixels at which everything is measured


def copy(source: Path, target: Path) -> None:
    """A copy of a file, in a folder that is made if missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.samefile(source):
        return
    aside = target.with_suffix(".part")
    shutil.copyfile(source, aside)
    aside.replace(target)


def write_flac(path: Path, samples: Float[np.ndarray, " samples"]) -> None:
    """16-bit mono at 24 kHz, lossless for samples that are multiples of 2^-15: the same samples, the same bytes."""
    whole = np.round(np.clip(samples, -1, 1 - 2**-15) * 32768).astype(np.int16)
    aside = path.with_suffix(".part")
    with av.open(str(aside), "w", format="flac") as box:
        stream = box.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        for at in range(0, len(whole), 4096):
            frame = av.AudioFrame.from_ndarray(whole[None, at : at + 4096], format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, at
            box.mux(stream.encode(frame))
        box.mux(stream.encode(None))
    aside.replace(path)


def write_picture(path: Path, picture: UInt8[np.ndarray, "height width 3"]) -> None:
    """A PNG."""
    aside = path.with_suffix(".part")
    Image.fromarray(picture).save(aside, "PNG")
    aside.replace(path)


def read_picture(path: Path, longest: int = 2048) -> UInt8[np.ndarray, "height width 3"]:
    """A picture upright and whole, at most ``longest`` pixels a side, over neutral grey where it is transparent: models
    cut it as they need. Raises InputError where :func:`~lpm_jax.pictures.load_image` does."""
    load_image(path)
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGBA")
    image.thumbnail((longest, longest))
    grey = Image.new("RGBA", image.size, (128, 128, 128, 255))
    return np.asarray(Image.alpha_composite(grey, image).convert("RGB"))


def write_video(
    path: Path, blocks: Iterable[UInt8[np.ndarray, "_ h w 3"]], speak: Float[np.ndarray, " samples"]
) -> None:
    """An MP4 of ``blocks`` with ``speak`` as its sound, as many frames as the sound lasts."""
    blocks = iter(blocks)
    first = next(blocks)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Mp4Writer(path, first.shape[1:3], audio=speak) as writer:
        writer.write(first)
        for block in blocks:
            writer.write(block)


def read_video(
    path: Path, frames: int, block: int = 240, size: int = SIZE
) -> Iterator[UInt8[np.ndarray, "block size size 3"]]:
    """``frames`` frames at 24 a second and ``size`` x ``size`` pixels, a block at a time, from a video of any rate,
    size and shape.

    Frame ``i`` is what is shown at ``(i + 1/2) / 24`` seconds; other shapes are cut as pictures are
    (:func:`~lpm_jax.pictures.load_image`). A video that ends earlier by up to a second shows its last frame on.

    Raises:
      InputError: it is no video, or ends more than a second too early.
    """
    with open_source(path, str(path)) as file:
        try:
            box = av.open(file, "r", options={"format_whitelist": "mov,mp4,m4a,matroska,webm"})
            stream = box.streams.video[0]
        except (av.error.FFmpegError, IndexError, ValueError) as error:
            raise InputError(f"{path}: expected a video, found {_reason(error)}") from None
        with box:
            out: list[np.ndarray] = []
            made = 0
            try:
                for picture in _at_rate(box, stream, frames, path, size):
                    out.append(picture)
                    made += 1
                    if len(out) == block:
                        yield np.stack(out)
                        out = []
            except av.error.FFmpegError as error:
                raise InputError(f"{path}: expected a whole video, found {_reason(error)} at frame {made}") from None
            if out:
                yield np.stack(out)


def _at_rate(box, stream, frames: int, path: Path, size: int) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
    """Each of ``frames`` moments' picture."""
    made, shown, until = 0, None, 0.0
    start = None
    for frame in box.decode(stream):
        start = frame.time if start is None else start
        # What was shown until now fills the moments before this frame.
        while shown is not None and made < frames and (made + 0.5) / FPS < frame.time - start:
            yield shown
            made += 1
        if made == frames:
            return
        picture = frame.to_ndarray(format="rgb24")
        shown = picture if picture.shape[:2] == (size, size) else load_image(picture, size, name=str(path))
        until = frame.time - start + 1 / float(stream.average_rate or FPS)
    if shown is None or frames / FPS - until > 1.0:
        raise InputError(f"{path}: expected {frames / FPS:.2f} s of video, found {until:.2f} s")
    for _ in range(made, frames):
        yield shown


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or "none that can be read"
