"""Media on the WebSocket: a 16-byte header and a payload.

Little-endian: uint8 kind (1 VP8, 2 JPEG, 3 PCM), uint8 flags (1: key frame), uint16 zero, uint32 index of the frame or
of the block's first sample, float64 seconds since the session began. PCM is 16 bit, 24 kHz, mono.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from lpm_jax.media import pcm16

HEADER = struct.Struct("<BBHId")
VP8, JPEG, PCM = 1, 2, 3
KEY = 1
KEY_FRAMES_APART = 48


def pack(kind: int, flags: int, index: int, seconds: float, payload: bytes) -> bytes:
    return HEADER.pack(kind, flags, 0, index & 0xFFFFFFFF, seconds) + payload


def pack_audio(samples: Float[np.ndarray, " samples"], index: int, seconds: float) -> bytes:
    return pack(PCM, KEY, index, seconds, pcm16(samples).astype("<i2").tobytes())


class VideoEncoder:
    """Frames to messages: VP8 for browsers with WebCodecs, JPEG for the rest. One per session."""

    def __init__(self, codec: str, size: tuple[int, int], fps: int) -> None:
        self.codec, self.fps, self.index = codec, fps, 0
        self._encoded, self._fresh = 0, False  # frames so far; whether the next must stand alone
        if codec == "vp8":
            self._encoder = av.CodecContext.create("libvpx", "w")
            self._encoder.height, self._encoder.width = size
            self._encoder.pix_fmt = "yuv420p"
            self._encoder.time_base = Fraction(1, fps)
            self._encoder.framerate = Fraction(fps, 1)
            self._encoder.bit_rate = 3_000_000
            self._encoder.gop_size = KEY_FRAMES_APART
            self._encoder.options = {"deadline": "realtime", "cpu-used": "4", "lag-in-frames": "0", "crf": "4"}

    def rewind(self, index: int) -> None:
        """The frames from ``index`` on come anew, and do not build on those that they replace."""
        self.index, self._fresh = index, True

    def encode(self, frames: UInt8[np.ndarray, "frames height width 3"]) -> Iterator[bytes]:
        """One message per frame, in order."""
        for picture in frames:
            seconds = self.index / self.fps
            if self.codec == "vp8":
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts, self._encoded = self._encoded, self._encoded + 1
                if self._fresh:
                    frame.pict_type, self._fresh = av.video.frame.PictureType.I, False
                for packet in self._encoder.encode(frame):
                    yield pack(VP8, KEY if packet.is_keyframe else 0, self.index, seconds, bytes(packet))
            else:
                data = io.BytesIO()
                Image.fromarray(picture).save(data, "JPEG", quality=92, subsampling=0)
                yield pack(JPEG, KEY, self.index, seconds, data.getvalue())
            self.index += 1
