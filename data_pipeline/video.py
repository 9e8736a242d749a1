"""MP4 bytes to frames and back, through PyAV (FFmpeg's libx264); no sound, which has its own fields."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8

from data_pipeline.schema import FPS


def encode_mp4(
    frames: UInt8[np.ndarray, "frames height width 3"],
    fps: int = FPS,
    pix_fmt: str = "yuv444p",
    crf: int = 12,
    preset: str = "veryfast",
) -> bytes:
    """H.264 in MP4. One thread, so that the same frames always give the same bytes."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": preset})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode_mp4(data: bytes) -> UInt8[np.ndarray, "frames height width 3"]:
    """All frames of the first video stream, RGB. Raises ValueError where there is none."""
    import av

    try:
        with av.open(io.BytesIO(data)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise ValueError(f"expected video bytes, found {len(data)} bytes that do not decode: {error}") from None
