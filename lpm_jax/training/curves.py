"""Where a run's numbers and pictures are written: ``metrics.jsonl``, TensorBoard, and the terminal."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from data_pipeline.schema import FPS
from data_pipeline.video import decode_mp4

WIDEST = 768  # pixels of a moving picture in TensorBoard


class Curves:
    """``metrics.jsonl`` and ``tensorboard/`` in ``directory``; a run resumed at ``start`` writes on from there."""

    def __init__(self, directory: Path, start: int):
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        self.validations = {record["step"] for record in keep_until(path, start) if "validation" in record}
        self.log = path.open("a")
        self.board = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1 if start else None)

    def scalars(self, at: int, values: dict[str, float]) -> None:
        self._scalars("train", values, at)
        self._line({"step": at} | values)

    def validation(self, at: int, scores: dict[str, float], directory: Path) -> None:
        """Scores, and what the validation drew: sheets (PNG) and clips (MP4, as moving GIFs)."""
        self._scalars("validation", scores, at)
        for path in sorted(directory.glob("*")) if directory.is_dir() else ():
            if path.suffix == ".png":
                self._picture(f"validation/{path.stem}", path.read_bytes(), at)
            elif path.suffix == ".mp4":
                self._picture(f"validation/{path.stem}", as_gif(decode_mp4(path.read_bytes())), at)
        self._line({"step": at, "validation": scores})

    def _scalars(self, group: str, values: dict[str, float], at: int) -> None:
        """All in one event: one at a time they cost a millisecond each beside a step that keeps the cores busy."""
        named = {name if "/" in name else f"{group}/{name}": value for name, value in values.items()}
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in named.items()])
        self.board.file_writer.add_summary(summary, at)

    def _line(self, values: dict) -> None:
        self.log.write(json.dumps(values) + "\n")
        self.log.flush()

    def _picture(self, tag: str, data: bytes, at: int) -> None:
        width, height = Image.open(io.BytesIO(data)).size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
        self.board.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), at)

    def close(self) -> None:
        self.board.close()
        self.log.close()


def as_gif(frames: UInt8[np.ndarray, "frames h w 3"]) -> bytes:
    """A clip as TensorBoard plays it, every other frame, at most :data:`WIDEST` pixels wide."""
    _, height, width, _ = frames.shape
    size = (min(width, WIDEST), height * min(width, WIDEST) // width)
    first, *rest = [Image.fromarray(frame).resize(size) for frame in frames[::2]]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=2000 // FPS, loop=0)
    return buffer.getvalue()


def keep_until(path: Path, start: int) -> list[dict]:
    """The records of a curves' file up to step ``start``, to which it is cut: a resumed run will write those after it
    again. A line that a kill cut off is dropped too."""
    records = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    records = [record for record in records if record["step"] <= start]
    aside = path.with_suffix(".tmp")
    aside.write_text("".join(json.dumps(record) + "\n" for record in records))
    aside.replace(path)
    return records


class Progress:
    """A bar with ETA on a terminal, plain lines elsewhere."""

    def __init__(self, name: str, start: int, total: int):
        self.name, self.total = name, total
        self.first, self.began = start, time.perf_counter()
        self.bar = tqdm(total=total, initial=start, desc=name) if sys.stderr.isatty() else None

    def show(self, at: int, values: dict[str, float]) -> None:
        """One line: the plain metrics, the speed, and how long it will take yet at the pace so far."""
        if self.bar is not None:
            self.bar.update(at - self.bar.n)
            self.bar.set_postfix(loss=f"{values.get('loss', float('nan')):.4f}")
            return
        text = [f"{k} {v:.4g}" for k, v in values.items() if "/" not in k]
        seconds, wait, mfu = (values.get(f"speed/{k}") for k in ("seconds_per_step", "data_wait", "mfu"))
        text += [f"{seconds:.3g} s/step"] if seconds is not None else []
        text += [f"data wait {100 * wait:.1f} %"] if wait is not None else []
        text += [f"MFU {100 * mfu:.1f} %"] if mfu is not None else []
        left = (time.perf_counter() - self.began) / max(at - self.first, 1) * (self.total - at)
        print(f"{self.name} {at}/{self.total}  {'  '.join(text)}  left {left / 60:.1f} min", flush=True)

    def note(self, text: str) -> None:
        (self.bar.write if self.bar is not None else print)(f"{self.name} {text}")
        sys.stdout.flush()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
