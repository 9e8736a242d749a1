"""Sound, prompts and the MP4 writer: odd input works, bad input is one line."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lpm_jax.errors import InputError
from lpm_jax.media import Mp4Writer, check_output, check_prompt, load_audio


def tone(seconds: float, rate: int, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_wav(path: Path, channels: list[np.ndarray], rate: int) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(len(channels))
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((np.stack(channels, 1) * 32767).astype("<i2").tobytes())
    return path


def encode(path: Path, codec: str, samples: np.ndarray, rate: int, layout: str = "mono") -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        block = np.repeat(samples[None], stream.codec_context.channels, 0)
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=layout)
        frame.sample_rate = rate
        for part in resampler.resample(frame):
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return path


def pitch(samples: np.ndarray, rate: int = 24_000) -> float:
    """The strongest frequency."""
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    return float(np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * rate / len(middle))


def fails(call, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_any_rate(tmp_path, rate):
    samples = load_audio(write_wav(tmp_path / "a.wav", [tone(1.0, rate)], rate))
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) - 24_000) <= 24
    assert abs(pitch(samples) - 440) < 3
    assert abs(np.abs(samples[6000:18000]).max() - 0.5) < 0.02


def test_stereo_and_eight_channels(tmp_path):
    silent, sound = np.zeros(48_000, np.float32), tone(1.0, 48_000)
    stereo = load_audio(write_wav(tmp_path / "stereo.wav", [sound, sound], 48_000))
    assert abs(np.abs(stereo[2000:22000]).max() - 0.5) < 0.02
    # One microphone of eight was on: it stays as loud as it was.
    eight = load_audio(write_wav(tmp_path / "eight.wav", [silent] * 5 + [sound] + [silent] * 2, 48_000))
    assert abs(len(eight) - 24_000) <= 24
    assert abs(np.abs(eight[2000:22000]).max() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.mp3", "libmp3lame", 44_100),
        ("a.flac", "flac", 24_000),
        ("a.ogg", "libopus", 48_000),
        ("a.m4a", "aac", 44_100),
        ("a.webm", "libopus", 48_000),
    ],
)
@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_codecs(tmp_path, name, codec, rate, layout):
    samples = load_audio(encode(tmp_path / name, codec, tone(1.5, rate), rate, layout))
    assert abs(len(samples) / 24_000 - 1.5) < 0.09
    assert abs(pitch(samples) - 440) < 3


def test_float_and_binary_file(tmp_path):
    path = encode(tmp_path / "a.wav", "pcm_f32le", tone(0.5, 24_000), 24_000)
    assert np.allclose(load_audio(path), tone(0.5, 24_000), atol=1e-3)
    with path.open("rb") as file:
        assert len(load_audio(file, name="upload")) == 12_000
    assert len(load_audio(io.BytesIO(path.read_bytes()))) == 12_000


def test_arrays():
    assert len(load_audio(tone(0.1, 24_000))) == 2_400
    assert load_audio((tone(0.1, 24_000) * 32767).astype(np.int16)).dtype == np.float32
    fails(lambda: load_audio(np.zeros((2, 24_000), np.float32)), "mono", "(2, 24000)")
    fails(lambda: load_audio(np.full(24_000, np.nan, np.float32)), "finite")
    fails(lambda: load_audio(np.zeros(3, np.float32)), "0.05 s", "3 samples")


def test_bad_sound(tmp_path):
    good = write_wav(tmp_path / "good.wav", [tone(2.0, 24_000)], 24_000).read_bytes()

    def file(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    fails(lambda: load_audio(tmp_path / "none.wav"), "none.wav", "expected a file")
    fails(lambda: load_audio(tmp_path), "directory")
    fails(lambda: load_audio("a\0b.wav"))
    fails(lambda: load_audio(file("empty.wav", b"")), "empty.wav", "0 bytes")
    fails(lambda: load_audio(file("text.wav", b"hello, I am no sound\n" * 50)), "text.wav", "sound")
    fails(lambda: load_audio(file("text.mp3", b"hello, I am no sound\n" * 50)), "text.mp3", "sound")
    noise = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8).tobytes()
    for name in ("noise.wav", "noise.mp3", "noise.ogg", "noise.flac"):
        fails(lambda name=name: load_audio(file(name, noise)), name)
    fails(lambda: load_audio(file("header.wav", good[:30])), "header.wav")
    fails(lambda: load_audio(file("nothing.wav", good[:44])), "nothing.wav")
    fails(lambda: load_audio(file("cut.wav", good[: len(good) // 2])), "1.00 s", "truncated")
    fails(lambda: load_audio(write_wav(tmp_path / "3.wav", [tone(1, 24_000)[:3]], 24_000)), "3 samples")
    fails(lambda: load_audio(file("long.wav", good), max_seconds=1.0), "at most 1 s")
    list_ = f"#EXTM3U\n#EXTINF:2,\n{tmp_path / 'good.wav'}\n#EXT-X-ENDLIST\n"
    fails(lambda: load_audio(file("list.m3u8", list_.encode())), "list.m3u8")  # no file may lead to another
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    fails(lambda: load_audio(tmp_path / "picture.png"), "picture.png")


def test_recorder_without_length(tmp_path):
    """A recorder that was cut off leaves 0xFFFFFFFF as the length: the sound is there."""
    data = bytearray(write_wav(tmp_path / "a.wav", [tone(1.0, 24_000)], 24_000).read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(data)
    assert len(load_audio(tmp_path / "a.wav")) == 24_000


def test_prompt():
    assert check_prompt(" smiles,\n nods ") == "smiles, nods"
    fails(lambda: check_prompt("x" * 2001), "2,000", "2,001")
    fails(lambda: check_prompt("é" * 60_000), "120,000 bytes")
    fails(lambda: check_prompt(None), "text")


# --- the writer


@pytest.mark.parametrize("seconds", [0.06, 1.0, 2.51, 4.0])
def test_mp4(tmp_path, seconds):
    audio = tone(seconds, 24_000)
    frames = -(-len(audio) // 1000)
    shades = np.linspace(30, 220, frames).astype(np.uint8)
    video = np.broadcast_to(shades[:, None, None, None], (frames, 128, 128, 3))
    padded = np.concatenate([video, np.zeros((11, 128, 128, 3), np.uint8)])  # the last chunk is longer than the sound
    with Mp4Writer(tmp_path / "a.mp4", 128, audio=audio) as out:
        for i in range(0, len(padded), 12):
            out.write(padded[i : i + 12])
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]

    with av.open(str(tmp_path / "a.mp4")) as box:
        stream = box.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 24
        pictures = [(f.time, f.to_ndarray(format="rgb24").mean()) for f in box.decode(video=0)]
    assert len(pictures) == frames
    assert np.allclose([t for t, _ in pictures], np.arange(frames) / 24, atol=1e-3)
    assert np.allclose([m for _, m in pictures], shades, atol=4)
    sound = load_audio(tmp_path / "a.mp4")
    assert abs(len(sound) / 24_000 - frames / 24) < 0.09  # AAC comes in blocks of 1,024 samples
    if seconds >= 1:
        assert abs(pitch(sound[: len(audio)]) - 440) < 3
        n = 24_000
        shift = np.correlate(sound[2000:n], audio[2000 : n - 100], "valid").argmax()
        assert shift <= 24 or np.corrcoef(sound[4000:n], audio[4000:n])[0, 1] > 0.95  # sound and picture start together


def test_mp4_failures_leave_no_file(tmp_path):
    with pytest.raises(KeyError), Mp4Writer(tmp_path / "a.mp4", 128, audio=tone(1, 24_000)) as out:
        out.write(np.zeros((12, 128, 128, 3), np.uint8))
        raise KeyError("stop")
    with pytest.raises(RuntimeError, match="12 of 24"), Mp4Writer(tmp_path / "a.mp4", audio=tone(1, 24_000)) as out:
        out.write(np.zeros((12, 128, 128, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_output_names(tmp_path):
    assert check_output(tmp_path / "a.mp4").name == "a.mp4"
    fails(lambda: check_output(tmp_path / "a.avi"), ".mp4")
    fails(lambda: check_output(tmp_path / "none" / "a.mp4"), "folder")
    (tmp_path / "b.mp4").mkdir()
    fails(lambda: check_output(tmp_path / "b.mp4"), "folder")
