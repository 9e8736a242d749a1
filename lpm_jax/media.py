"""Sound and prompts from outside, checked and brought to the one form the model reads; and the MP4 writer.

Whatever is wrong with a file becomes an ``InputError`` of one line. Nothing here needs JAX, so that a command-line door
can reject bad input at once. Decoders are limited to plain media formats: no playlists, no scripts, no network.
"""

from __future__ import annotations

import io
import logging
import math
import os
import struct
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler
from jaxtyping import Float, Int16, UInt8

from lpm_jax.errors import InputError, one_line

log = logging.getLogger(__name__)  # INFO: what was done to odd but valid input

SAMPLE_RATE = 24_000  # Hz
FPS = 24
MIN_SECONDS = 0.05
MAX_PROMPT_CHARACTERS = 2_000
MAX_PROMPT_BYTES = 100_000
AUDIO_FORMATS = "wav,w64,rf64,mp3,flac,ogg,mov,mp4,m4a,aac,matroska,webm,aiff,caf,au,amr"

AudioSource = str | os.PathLike | io.IOBase | np.ndarray


def check_prompt(prompt: object) -> str:
    """The prompt, or ``InputError`` when it is longer than 2,000 characters (or 100 kB)."""
    if not isinstance(prompt, str):
        raise InputError(f"prompt: expected text, found {type(prompt).__name__}")
    size = len(prompt.encode("utf-8", "replace"))
    if len(prompt) > MAX_PROMPT_CHARACTERS or size > MAX_PROMPT_BYTES:
        raise InputError(
            f"prompt: expected at most {MAX_PROMPT_CHARACTERS:,} characters, found {len(prompt):,} ({size:,} bytes)"
        )
    return " ".join(prompt.replace("\0", " ").split())


# --- sound -------------------------------------------------------------------------------------------------------


def load_audio(
    source: AudioSource, sample_rate: int = SAMPLE_RATE, *, name: str = "", max_seconds: float = math.inf
) -> Float[np.ndarray, " samples"]:
    """Any sound as mono float32 at ``sample_rate`` Hz, full scale 1.

    ``source`` is a path, a binary file, or an array that already is mono at ``sample_rate``. Channels are averaged over
    those that are not silent. Raises ``InputError`` for a missing, empty, corrupt or truncated file, for less than
    0.05 s and for more than ``max_seconds``.
    """
    if isinstance(source, np.ndarray):
        samples = _check_array(source, name or "audio")
    else:
        name = name or source_name(source, "audio")
        file = open_source(source, name)
        try:
            samples = _decode(file, name, sample_rate, max_seconds)
        finally:
            if file is not source:
                file.close()
    if len(samples) < MIN_SECONDS * sample_rate:
        raise InputError(
            f"{name}: expected at least {MIN_SECONDS} s of sound, found {len(samples)} samples "
            f"({len(samples) / sample_rate:.4f} s)"
        )
    if len(samples) > max_seconds * sample_rate:
        raise InputError(
            f"{name}: expected at most {max_seconds:g} s of sound, found {len(samples) / sample_rate:.1f} s"
        )
    return samples


def source_name(source: object, otherwise: str) -> str:
    return (str(source) or "''") if isinstance(source, (str, os.PathLike)) else otherwise


def open_source(source: str | os.PathLike | io.IOBase, name: str) -> io.IOBase:
    if not isinstance(source, (str, os.PathLike)):
        return source
    path = Path(source)
    try:
        if not str(source) or not path.exists():
            raise InputError(f"{name}: expected a file, found nothing there")
        if not path.is_file():
            raise InputError(f"{name}: expected a file, found a {'directory' if path.is_dir() else 'device'}")
        if path.stat().st_size == 0:
            raise InputError(f"{name}: expected a media file, found an empty one (0 bytes)")
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{name[:200]}: cannot be read: {reason}") from None


def _check_array(array: np.ndarray, name: str) -> Float[np.ndarray, " samples"]:
    if array.ndim != 1:
        raise InputError(f"{name}: expected mono samples of shape (n,), found shape {array.shape}")
    if array.dtype == np.int16:
        return array.astype(np.float32) / 32768
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{name}: expected float samples in -1..1 or int16, found {array.dtype}")
    if not np.isfinite(array).all():
        raise InputError(f"{name}: expected finite samples, found NaN or infinity")
    return np.clip(array, -1, 1).astype(np.float32)


def _decode(file: io.IOBase, name: str, sample_rate: int, max_seconds: float) -> Float[np.ndarray, " samples"]:
    try:
        box = av.open(file, "r", options={"format_whitelist": AUDIO_FORMATS})
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise InputError(f"{name}: expected a sound file (wav, mp3, flac, ogg, m4a), found {_reason(error)}") from None
    with box:
        if not box.streams.audio:
            raise InputError(f"{name}: expected sound, found a file without any audio stream")
        stream = box.streams.audio[0]
        try:
            total, peaks, packets, damaged = _sum_channels(box, stream, sample_rate, max_seconds)
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise InputError(f"{name}: expected readable sound, found {_reason(error)}") from None
    if not len(total) or damaged > 0.05 * packets:
        raise InputError(f"{name}: expected readable sound, found corrupt data ({damaged} of {packets} packets)")
    if not np.isfinite(total).all():
        raise InputError(f"{name}: expected finite samples, found NaN or infinity")
    missing = _missing_bytes(file)
    if missing:
        found = len(total) / sample_rate
        raise InputError(
            f"{name}: expected a whole file, found {found:.2f} s and {missing:,} bytes missing (truncated)"
        )
    heard = int((peaks > 1e-4).sum())
    if len(peaks) > 2:
        log.info("%s: %d channels (%d with sound), mixed down to one", name, len(peaks), heard)
    return np.clip(total / max(heard, 1), -1, 1)


def _missing_bytes(file: io.IOBase) -> int:
    """How many bytes of sound a WAV's header promises beyond the file's end. A recorder that was cut off leaves the
    length at 0 or near 4 GiB, which promises nothing; a broken copy promises a believable length."""
    file.seek(0, os.SEEK_END)
    end = file.tell()
    file.seek(0)
    if file.read(4) != b"RIFF":
        return 0
    at = 12
    while at + 8 <= end:
        file.seek(at)
        kind, size = struct.unpack("<4sI", file.read(8))
        if kind == b"data":
            return max(0, at + 8 + size - end) if size < 0x7FFF0000 else 0
        at += 8 + size + size % 2
    return 0


def _sum_channels(
    box: av.container.InputContainer, stream: av.AudioStream, sample_rate: int, max_seconds: float
) -> tuple[Float[np.ndarray, " samples"], Float[np.ndarray, " channels"], int, int]:
    """The channels' sum at ``sample_rate``; every channel's peak; the packets seen and those that do not decode."""
    resampler: AudioResampler | None = None
    parts, count, packets, damaged = [], 0, 0, 0
    peaks = np.zeros(max(1, stream.codec_context.channels), np.float32)
    for packet in box.demux(stream):
        packets += packet.size > 0
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            damaged += 1
            continue
        for frame in frames:
            channels = _float_channels(frame)
            if len(channels) == len(peaks):
                peaks = np.maximum(peaks, np.abs(channels).max(1, initial=0))
            mono = av.AudioFrame.from_ndarray(channels.sum(0, keepdims=True), format="flt", layout="mono")
            mono.sample_rate = frame.sample_rate
            if resampler is None:
                resampler = AudioResampler(format="flt", layout="mono", rate=sample_rate)
            parts += [out.to_ndarray()[0] for out in resampler.resample(mono)]
            count += len(parts[-1]) if parts else 0
        if count > max_seconds * sample_rate + sample_rate:
            break
    if resampler is not None:
        parts += [out.to_ndarray()[0] for out in resampler.resample(None)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32), peaks, packets, damaged


def _float_channels(frame: av.AudioFrame) -> Float[np.ndarray, "channels samples"]:
    x = frame.to_ndarray()
    channels = frame.layout.nb_channels
    if not frame.format.is_planar:
        x = x.reshape(-1, channels).T
    if x.dtype == np.uint8:
        return np.ascontiguousarray((x.astype(np.float32) - 128) / 128)
    if np.issubdtype(x.dtype, np.integer):
        return np.ascontiguousarray(x.astype(np.float32) / -float(np.iinfo(x.dtype).min))
    return np.ascontiguousarray(x, np.float32)


def _reason(error: BaseException) -> str:
    if isinstance(error, (av.error.InvalidDataError, av.error.EOFError)):
        return "corrupt data or another kind of file"
    return getattr(error, "strerror", None) or one_line(error, 120)


def pcm16(samples: Float[np.ndarray, " samples"]) -> Int16[np.ndarray, " samples"]:
    """Float samples as 16-bit integers."""
    return np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)


# --- files -------------------------------------------------------------------------------------------------------


def check_output(path: str | os.PathLike) -> Path:
    """The path an MP4 may be written to, or ``InputError``: wrong ending, no such folder, a folder, not writable."""
    out = Path(path)
    if out.suffix.lower() != ".mp4":
        raise InputError(f"--out: expected a name ending in .mp4, found {str(out)!r}")
    if not out.parent.is_dir():
        raise InputError(f"--out: expected an existing folder, found none at {str(out.parent)!r}")
    if out.is_dir():
        raise InputError(f"--out: expected a file, found a folder at {str(out)!r}")
    if not os.access(out.parent, os.W_OK):
        raise InputError(f"--out: expected a folder that can be written to, found {str(out.parent)!r}")
    return out


class Mp4Writer:
    """H.264 (yuv420p) and AAC in an MP4 that appears under its name only when it is complete.

    The picture lasts as long as ``audio``: ceil(seconds * fps) frames; surplus frames are dropped, and closing with too
    few is an error. Use as a context manager; an exception inside leaves no file. ``size`` is the frames' height and
    width in pixels, both even, or one number for squares; ``audio`` is the whole sound track at ``sample_rate`` Hz.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        size: int | tuple[int, int] = 128,
        fps: int = FPS,
        sample_rate: int = SAMPLE_RATE,
        *,
        audio: Float[np.ndarray, " samples"],
        title: str = "",
    ) -> None:
        self.path, self.fps, self.sample_rate = Path(path), fps, sample_rate
        self.size = (size, size) if isinstance(size, int) else size
        self.total = math.ceil(len(audio) * fps / sample_rate - 1e-6)
        self.written = 0  # frames
        self._audio, self._samples = audio, max(len(audio), self.total * sample_rate // fps)  # silence after the sound
        self._sent = 0  # samples
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._title = title

    @property
    def seconds(self) -> float:
        return self.total / self.fps

    def __enter__(self) -> Mp4Writer:
        try:
            self._box = av.open(str(self._temporary), "w", format="mp4", options={"movflags": "+faststart"})
        except (av.error.FFmpegError, OSError) as error:
            raise InputError(f"{self.path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
        self._box.metadata["comment"] = "AI-generated video"
        if self._title:
            self._box.metadata["title"] = self._title
        self._video = self._box.add_stream("libx264", rate=self.fps, options={"crf": "14", "preset": "medium"})
        self._video.height, self._video.width = self.size
        self._video.pix_fmt = "yuv420p"
        self._sound = self._box.add_stream("aac", rate=self.sample_rate, layout="mono")
        self._sound.bit_rate = 96_000
        return self

    def write(self, frames: UInt8[np.ndarray, "frames height width 3"]) -> None:
        """Append frames, and the sound that belongs to them."""
        for picture in frames[: self.total - self.written]:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = self.written
            self._box.mux(self._video.encode(frame))
            self.written += 1
        end = self._samples if self.written == self.total else self.written * self.sample_rate // self.fps
        while self._sent < end:
            block = np.zeros(min(1024, end - self._sent), np.float32)
            sound = self._audio[self._sent : self._sent + len(block)]
            block[: len(sound)] = sound
            frame = av.AudioFrame.from_ndarray(block[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = self.sample_rate, self._sent
            self._box.mux(self._sound.encode(frame))
            self._sent += len(block)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                if self.written < self.total:
                    raise RuntimeError(f"{self.path}: {self.written} of {self.total} frames were generated")
                self._box.mux(self._video.encode(None))
                self._box.mux(self._sound.encode(None))
                self._box.close()
                self._temporary.replace(self.path)
            else:
                self._box.close()
        finally:
            self._temporary.unlink(missing_ok=True)
