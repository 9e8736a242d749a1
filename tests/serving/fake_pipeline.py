"""A stand-in for ``lpm_jax.Pipeline`` with the same surface: a drawn mouth that follows the speech. No JAX."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lpm_jax.media import load_audio
from lpm_jax.pictures import load_image


@dataclass
class Chunk:
    frames: np.ndarray
    time: float
    state: str
    seconds: float


@dataclass
class Sent:
    chunk: Chunk

    def get(self) -> Chunk:
        return self.chunk


def loud(samples: np.ndarray | None) -> bool:
    return samples is not None and float(np.sqrt(np.mean(samples**2))) > 1e-3


class FakeStream:
    def __init__(self, pipeline: FakePipeline, image: np.ndarray, prompt: str) -> None:
        self.pipeline, self.image, self.prompt, self.time = pipeline, image, prompt, 0.0
        self.calls: list[tuple[np.ndarray | None, np.ndarray | None]] = []

    def set_prompt(self, prompt: str) -> None:
        self.prompt = prompt

    def take_back(self) -> None:
        self.calls.append("taken back")
        self.time -= 0.5

    def close(self) -> None:
        self.closed = True

    def step(self, speak: np.ndarray | None, listen: np.ndarray | None) -> Chunk:
        return self.send(speak, listen).get()

    def send(self, speak: np.ndarray | None, listen: np.ndarray | None, undo: bool = False) -> Sent:
        self.calls.append((speak, listen))
        time.sleep(self.pipeline.delay)
        talks, hears = loud(speak), loud(listen)
        state = {(0, 0): "silence", (1, 0): "speak", (0, 1): "listen", (1, 1): "both"}[talks, hears]
        frames = []
        for i in range(12):
            level = 0.0 if speak is None else float(np.abs(speak[1000 * i : 1000 * i + 1000]).mean())
            frames.append(draw(self.image, self.time + i / 24, min(1.0, 10 * level)))
        begin, self.time = self.time, self.time + 0.5
        return Sent(Chunk(np.stack(frames), begin, state, self.pipeline.delay))


class FakePipeline:
    size, fps, sample_rate, chunk_frames, compile_seconds = (128, 128), 24, 24_000, 12, 0.0
    together = False

    def __init__(self, delay: float = 0.01) -> None:
        self.delay, self.streams, self.warm = delay, [], False

    @classmethod
    def from_pretrained(cls, name: str = "toy") -> FakePipeline:
        return cls()

    def warm_up(self) -> None:
        self.warm = True

    def open(self, image, prompt="", seed=0, references=()) -> FakeStream:
        self.streams.append(FakeStream(self, load_image(image), prompt))
        return self.streams[-1]

    def stream(
        self,
        image,
        audio=None,
        listen=None,
        prompt="",
        seed=0,
        references=(),
        *,
        seconds=None,
        num_inference_steps=None,
        chunk_size=None,
    ):
        stream = self.open(image, prompt)
        speak = np.zeros(round(24_000 * seconds), np.float32) if audio is None else load_audio(audio)
        for i in range(0, len(speak), 12_000):
            part = speak[i : i + 12_000]
            yield stream.step(np.pad(part, (0, 12_000 - len(part))), None if listen is None else listen[i : i + 12_000])


def draw(image: np.ndarray, seconds: float, mouth: float) -> np.ndarray:
    dx, dy = 2.5 * np.sin(1.3 * seconds), 1.5 * np.sin(2.1 * seconds)
    picture = Image.fromarray(image).transform((128, 128), Image.Transform.AFFINE, (1, 0, -dx, 0, 1, -dy), 2)
    pen = ImageDraw.Draw(picture)
    x, y, h = 64 + dx, 88 + dy, 1.5 + 9 * mouth
    pen.ellipse((x - 13, y - h, x + 13, y + h), fill=(120, 40, 50))
    return np.asarray(picture)


COLOURS = {
    "ada": ("#f2c9a5", "#3b2a20", "#6fa8dc"),
    "bo": ("#8d5a3b", "#1d1412", "#e6b35a"),
    "cy": ("#a7d7a0", "#2f6b4f", "#8473c9"),
}


def draw_characters(folder: Path) -> None:
    """Three drawn faces as bundled characters."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (skin, hair, ground) in COLOURS.items():
        big = Image.new("RGB", (512, 512), ground)
        pen = ImageDraw.Draw(big)
        pen.ellipse((96, 40, 416, 400), fill=hair)
        pen.rounded_rectangle((60, 420, 452, 600), 90, fill=hair)
        pen.ellipse((120, 90, 392, 450), fill=skin)
        for x in (196, 316):
            pen.ellipse((x - 30, 210, x + 30, 262), fill="white")
            pen.ellipse((x - 14, 220, x + 14, 252), fill="#222")
        big.resize((128, 128), Image.Resampling.LANCZOS).save(folder / f"{name}.png")
