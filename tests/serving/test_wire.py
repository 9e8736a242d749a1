"""Media messages: what a browser decodes after frames were replaced."""

import av
import numpy as np
import pytest

from lpm_jax.serving import wire


def unpack(message: bytes) -> tuple[int, int, int, float, bytes]:
    kind, flags, _, index, seconds = wire.HEADER.unpack_from(message)
    return kind, flags, index, seconds, message[wire.HEADER.size :]


def grey(*levels: int) -> np.ndarray:
    return np.stack([np.full((48, 64, 3), level, np.uint8) for level in levels])


@pytest.mark.parametrize("codec", ["vp8", "jpeg"])
def test_replaced_frames_stand_alone(codec):
    encoder = wire.VideoEncoder(codec, (48, 64), 24)
    first = [unpack(m) for m in encoder.encode(grey(*range(20, 140, 10)))]
    assert [(index, seconds) for _, _, index, seconds, _ in first] == [(i, i / 24) for i in range(12)]
    encoder.rewind(6)
    again = [unpack(m) for m in encoder.encode(grey(200, 210, 220))]
    assert [(index, seconds) for _, _, index, seconds, _ in again] == [(i, i / 24) for i in (6, 7, 8)]
    assert again[0][1] & wire.KEY
    if codec == "vp8":
        assert not first[5][1] & wire.KEY and not again[1][1] & wire.KEY
        decoder = av.CodecContext.create("vp8", "r")  # a new one, as the page makes
        shown = [f.to_ndarray(format="rgb24") for *_, data in again for f in decoder.decode(av.Packet(data))]
        assert [abs(int(f.mean()) - want) < 6 for f, want in zip(shown, (200, 210, 220), strict=True)] == [True] * 3
