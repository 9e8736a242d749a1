"""Pictures and short clips out of videos, small enough to live inside a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler
from jaxtyping import Float, UInt8
from PIL import Image

from lpm_jax.errors import InputError, one_line

SOUND = 24_000  # Hz, of clips


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _open(path: Path) -> av.container.InputContainer:
    try:
        box = av.open(str(path), format="mp4")  # no playlists, whatever the name says
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"{path}: expected an MP4, found {one_line(error, 80)}") from None
    if not box.streams.video:
        box.close()
        raise InputError(f"{path}: expected an MP4 with pictures, found none")
    return box


def length(path: Path) -> float:
    """Seconds of picture."""
    with _open(path) as box:
        stream = box.streams.video[0]
        if stream.duration is not None:
            return float(stream.duration * stream.time_base)
        return float(box.duration or 0) / av.time_base


def frames_at(
    path: Path, times: Sequence[float], height: int | None = None
) -> list[UInt8[np.ndarray, "height width 3"]]:
    """The pictures shown at ``times`` (seconds, ascending); past the end, the last one. ``height`` scales them."""
    with _open(path) as box:
        stream = box.streams.video[0]
        stream.thread_type = "AUTO"
        found = []
        try:
            for time in times:
                box.seek(int(max(time, 0) / stream.time_base), stream=stream)
                shown = None
                for frame in box.decode(stream):
                    if shown is not None and frame.time > time + 1e-3:
                        break
                    shown = frame
                if shown is None:
                    raise InputError(f"{path}: expected a picture at {time:.2f} s, found none")
                found.append(_array(shown, height))
        except av.error.FFmpegError as error:
            raise InputError(f"{path}: expected readable video, found {one_line(error, 80)}") from None
    return found


def _array(frame: av.VideoFrame, height: int | None) -> UInt8[np.ndarray, "height width 3"]:
    if height is None:
        return frame.to_ndarray(format="rgb24")
    width = max(2, round(frame.width * height / frame.height / 2) * 2)
    return frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()


def strip(path: Path, count: int, height: int) -> bytes:
    """``count`` pictures, evenly spaced from the first to the last, side by side as one JPEG."""
    end = max(0.0, length(path) - 0.05)
    pictures = frames_at(path, [end * i / max(1, count - 1) for i in range(count)], height)
    gap = np.full((height, 2, 3), 128, np.uint8)
    return jpeg(np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1))


def jpeg(picture: UInt8[np.ndarray, "height width 3"]) -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=82, optimize=True)
    return data.getvalue()


def clip(
    path: Path, beside: Path | None, start: float, seconds: float, height: int = 192
) -> tuple[bytes, UInt8[np.ndarray, "height width 3"]]:
    """A piece of ``path`` with its sound, and the same piece of ``beside`` to its right, as a small MP4; and its first
    picture."""
    rate, pictures = _piece(path, start, seconds, height)
    if beside is not None:
        other_rate, others = _piece(beside, start, seconds, height)
        times = [min(len(others) - 1, round(i * other_rate / rate)) for i in range(len(pictures))]
        pictures = [np.concatenate([p, others[j]], axis=1) for p, j in zip(pictures, times, strict=True)]
    return _encode(pictures, rate, _sound(path, start, len(pictures) / float(rate))), pictures[0]


def _piece(path: Path, start: float, seconds: float, height: int) -> tuple[Fraction, list[np.ndarray]]:
    with _open(path) as box:
        stream = box.streams.video[0]
        rate = Fraction(float(stream.average_rate or 24)).limit_denominator(1001)  # PyAV's own type differs by version
        pictures: list[np.ndarray] = []
        try:
            box.seek(int(start / stream.time_base), stream=stream)
            for frame in box.decode(stream):
                if frame.time > start + seconds - 1e-3:
                    break
                if frame.time >= start - 1e-3:
                    pictures.append(_array(frame, height))
        except av.error.FFmpegError as error:
            raise InputError(f"{path}: expected readable video, found {one_line(error, 80)}") from None
    if not pictures:
        raise InputError(f"{path}: expected pictures from {start:.1f} s on, found none")
    return rate, pictures


def _sound(path: Path, start: float, seconds: float) -> Float[np.ndarray, " samples"] | None:
    with _open(path) as box:
        if not box.streams.audio:
            return None
        stream = box.streams.audio[0]
        resampler = AudioResampler(format="flt", layout="mono", rate=SOUND)
        parts, first = [], None
        try:
            box.seek(int(start / stream.time_base), stream=stream)
            for frame in box.decode(stream):
                if frame.time > start + seconds:
                    break
                first = frame.time if first is None else first
                parts += [out.to_ndarray()[0] for out in resampler.resample(frame)]
        except av.error.FFmpegError as error:
            raise InputError(f"{path}: expected readable sound, found {one_line(error, 80)}") from None
    track, offset = np.zeros(round(seconds * SOUND), np.float32), round(((first or 0.0) - start) * SOUND)
    heard = np.concatenate(parts) if parts else track
    heard = heard[max(0, -offset) :][: max(0, len(track) - max(0, offset))]
    track[max(0, offset) : max(0, offset) + len(heard)] = heard
    return track


def _encode(pictures: list[np.ndarray], rate: Fraction, sound: Float[np.ndarray, " samples"] | None) -> bytes:
    """H.264 and AAC. Coarser than the videos: it shows what went wrong, it is not measured."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as box:
        video = box.add_stream("libx264", rate=rate, options={"crf": "26", "preset": "veryfast"})
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = "yuv420p"
        audio = None
        if sound is not None:
            audio = box.add_stream("aac", rate=SOUND, layout="mono")
            audio.bit_rate = 48_000
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = i
            box.mux(video.encode(frame))
        box.mux(video.encode(None))
        if audio is not None:
            for at in range(0, len(sound), 1024):
                frame = av.AudioFrame.from_ndarray(sound[None, at : at + 1024].copy(), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = SOUND, at
                box.mux(audio.encode(frame))
            box.mux(audio.encode(None))
    return data.getvalue()
