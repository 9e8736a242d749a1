"""Synchrony of lips and speech: SyncNet (Chung and Zisserman, "Out of time", 2016), as Sync-C and Sync-D are reported.

As the authors' syncnet_python has it: five frames at 25 a second of the face (224 x 224, BGR, 0..255) and the same
fifth of a second of sound at 16 kHz as 20 steps of 13 MFCCs; distances are Euclidean, of vectors as they are.

Here a vector belongs to each frame at 24 a second: of 25 frames a second around its middle the five that are shown are
the frame, the two before and the two after, and the sound's fifth of a second lies around the same moment. So windows
are as in training and only a lag's step is 1/24 s. Lags compare the moments that both have; syncnet_python fills
up with zeros at the ends.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from scipy.fft import dct
from scipy.signal import resample_poly

from data_pipeline.schema import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from lpm_jax.bench.instruments.real.align import box_to, warp
from lpm_jax.bench.instruments.real.onnx import Network, Spec
from lpm_jax.errors import InputError

FRAMES, SIDE, STEPS, CEPSTRA = 5, 224, 20, 13
_SOURCE = "github.com/joonson/syncnet_python, syncnet_v2.model, exported as docs/bench.md shows"
LIPS = Spec(
    file="syncnet_lips.onnx",
    source=_SOURCE,
    feeds="Sync-C and Sync-D",
    shape=(None, 3, FRAMES, SIDE, SIDE),
    outputs=1,
    order="BGR",
)
SOUND = Spec(
    file="syncnet_sound.onnx",
    source=_SOURCE,
    feeds="Sync-C and Sync-D",
    shape=(None, 1, CEPSTRA, STEPS),
    outputs=1,
)
SMOOTH = 13  # frames of the median over boxes
CROP = 0.4  # by how much of its half size the crop is wider than the box
GREY = 110  # outside of the picture
REACH = SMOOTH // 2 + FRAMES // 2  # frames before and after that a vector depends on

RATE, HOP, LENGTH, FFT, BANDS, LIFTER, EMPHASIS = 16_000, 160, 400, 512, 26, 22, 0.97
WINDOW = (STEPS - 1) * HOP + LENGTH  # samples of a window


class Sync:
    """The pair of networks. Raises InputError where the files are not as described."""

    def __init__(self, folder: str | Path):
        self.lips, self.sound = Network(folder, LIPS), Network(folder, SOUND)
        seen = self.see(np.zeros((1, SIDE, SIDE, 3), np.uint8), np.array([[0.0, 0.0, SIDE, SIDE]]), slice(0, 1))
        heard = self.hear(np.zeros(SAMPLES_PER_FRAME, np.float32))
        if seen.shape != heard.shape:
            raise InputError(
                f"{self.lips.path}: output: expected vectors as long as those of {SOUND.file}, {heard.shape[1]}, "
                f"found {seen.shape[1]}"
            )

    def see(
        self, frames: UInt8[np.ndarray, "n h w 3"], boxes: Float[np.ndarray, "n 4"], own: slice
    ) -> Float[np.ndarray, "own d"]:
        """A vector for each of the ``own`` frames; at the ends of what is given the outermost frame is repeated."""
        smooth = smoothed(boxes)
        first, last = max(own.start - FRAMES // 2, 0), min(own.stop + FRAMES // 2, len(frames))
        crops = np.stack([crop(frames[i], smooth[i]) for i in range(first, last)])
        pixels = self.lips.pixels(crops)
        out = []
        for at in range(own.start, own.stop, 8):  # a window is 3 MB
            centre = np.arange(at, min(at + 8, own.stop)) - first
            index = np.clip(centre[:, None] + np.arange(FRAMES) - FRAMES // 2, 0, len(crops) - 1)
            out.append(self._vectors(self.lips, pixels[index].transpose(0, 2, 1, 3, 4)))
        return np.concatenate(out)

    def hear(self, speak: Float[np.ndarray, " samples"]) -> Float[np.ndarray, "n d"]:
        """A vector for each frame of the sound."""
        samples = emphasised(speak)
        count = len(speak) // SAMPLES_PER_FRAME
        starts = np.round(((np.arange(count) + 0.5) / FPS - 0.1) * RATE).astype(int)
        starts = starts.clip(0, max(len(samples) - WINDOW, 0))
        out = []
        for at in range(0, count, 256):
            windows = samples[starts[at : at + 256, None] + np.arange(WINDOW)]
            out.append(self._vectors(self.sound, mfcc(windows).transpose(0, 2, 1)[:, None]))
        return np.concatenate(out)

    def _vectors(self, network: Network, x: np.ndarray) -> np.ndarray:
        (out,) = network.run(x)
        if out.ndim != 2:
            raise InputError(f"{network.path}: output: expected [n, size], found {list(out.shape)}")
        return out


def smoothed(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 3"]:
    """Middle and half size of each box, by a running median."""
    sides = boxes[:, 2:] - boxes[:, :2]
    track = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, sides.max(1, keepdims=True) / 2], 1)
    padded = np.pad(track, ((SMOOTH // 2, SMOOTH // 2), (0, 0)), mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, SMOOTH, 0), -1)


def crop(frame: UInt8[np.ndarray, "h w 3"], box: Float[np.ndarray, " 3"]) -> UInt8[np.ndarray, "224 224 3"]:
    """The face with its chin: (1 + CROP) half sizes to the sides, one up and 1 + 2 CROP down."""
    x, y, half = box
    edges = np.array([x - half * (1 + CROP), y - half, x + half * (1 + CROP), y + half * (1 + 2 * CROP)])
    return warp(frame, box_to(edges, SIDE, SIDE, edges=True), SIDE, SIDE, GREY)


def emphasised(speak: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " resampled"]:
    """The sound at 16 kHz as whole numbers of 16 bits, its low tones weakened, at least a window long."""
    sound = np.round(resample_poly(np.asarray(speak, np.float64), RATE // 8000, SAMPLE_RATE // 8000) * 32768)
    sound = np.pad(sound.clip(-32768, 32767), (0, max(0, WINDOW - len(sound))))
    return np.append(sound[0], sound[1:] - EMPHASIS * sound[:-1])


def mfcc(windows: Float[np.ndarray, "n samples"]) -> Float[np.ndarray, "n steps 13"]:
    """Cepstra of emphasised sound, as python_speech_features computes them by default: rectangular frames of 25 ms
    every 10 ms, 26 triangular mel bands, liftered, the first one replaced by the frame's log energy."""
    frames = np.lib.stride_tricks.sliding_window_view(windows, LENGTH, axis=1)[:, ::HOP]
    power = np.abs(np.fft.rfft(frames, FFT)) ** 2 / FFT
    least = np.finfo(float).eps
    energy = power.sum(-1)
    bands = power @ mel_bands().T
    cepstra = dct(np.log(np.where(bands == 0, least, bands)), type=2, axis=-1, norm="ortho")[..., :CEPSTRA]
    cepstra *= 1 + LIFTER / 2 * np.sin(np.pi * np.arange(CEPSTRA) / LIFTER)
    cepstra[..., 0] = np.log(np.where(energy == 0, least, energy))
    return cepstra


def mel_bands() -> Float[np.ndarray, "26 257"]:
    """Triangles between bins of the FFT, evenly spaced in mel."""
    highest = 2595 * np.log10(1 + RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, highest, BANDS + 2) / 2595) - 1)
    edge = np.floor((FFT + 1) * hertz / RATE)
    k = np.arange(FFT // 2 + 1)
    low, peak, high = edge[:-2, None], edge[1:-1, None], edge[2:, None]
    rising, falling = (k - low) / np.maximum(peak - low, 1), (high - k) / np.maximum(high - peak, 1)
    return np.where((k >= low) & (k < peak), rising, np.where((k >= peak) & (k < high), falling, 0.0))
