"""Clips for the benchmarks: held-out ones rendered for them, or a data set's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int16, UInt8

from data_pipeline.schema import PARAM_INDEX, SAMPLES_PER_FRAME
from lpm_jax.errors import InputError, one_line
from lpm_jax.progress import progress

SEEDS = {"speak": 1 << 40, "listen": (1 << 40) + (1 << 32)}  # 64-bit: data sets draw 32-bit seeds, so none is theirs
NOD = 0.8  # seconds that one nod lasts
TEXTS = ("kind", "prompt", "character", "events", "voice")  # fields that TFDS returns as bytes


class Clip(NamedTuple):
    """A record with what a benchmark asks of it at hand."""

    record: dict
    character: dict
    reference: UInt8[np.ndarray, "h w 3"]
    frames: UInt8[np.ndarray, "frames h w 3"]  # the true video, without its first frame

    def truth(self, name: str) -> Float[np.ndarray, " frames"]:
        """A parameter behind ``frames``."""
        return self.record["params"][1:, PARAM_INDEX[name]]

    @property
    def eyes(self) -> Float[np.ndarray, " frames"]:
        return (self.truth("lid_left") + self.truth("lid_right")) / 2


def build_clips(kind: str, count: int, seconds: float = 4.0) -> list[Clip]:
    """Held-out clips of ``kind`` ("speak" or "listen"), no voice twice; a listener has time to finish a nod."""
    from data_pipeline.performers.clip import make_clip

    clips: list[Clip] = []
    voices: set[tuple] = set()
    seed = SEEDS[kind]
    for _ in progress(range(count), f"rendering {kind} clips"):
        while True:
            record = make_clip(seed, seconds, held_out=True, kind=kind)
            seed += 1
            voice = json.loads(record["voice"])[kind == "listen"]
            voice = tuple(voice[k] for k in ("language", "variant", "rate", "pitch"))
            nods = [at for name, at, _ in json.loads(record["events"]) if name == "nod"]
            if voice not in voices and (kind == "speak" or any(at + NOD < seconds for at in nods)):
                break
        voices.add(voice)
        clips.append(clip_of(record))
    return clips


def clip_of(record: dict) -> Clip:
    """The clip of a record of ``make_clip``."""
    from data_pipeline.performers.clip import frames_of, references_of

    return Clip(record, json.loads(record["character"]), references_of(record)["global"], frames_of(record)[1:])


def tracks(clip: Clip, heard: Clip) -> tuple[Int16[np.ndarray, " samples"], Int16[np.ndarray, " samples"]]:
    """Speak and listen samples of ``clip`` without the first frame's, its own kind's track taken from ``heard``."""
    kind = clip.record["kind"]
    return tuple((heard if k == kind else clip).record[k][SAMPLES_PER_FRAME:] for k in ("speak", "listen"))


def open_clips(folder: Path, split: str, kinds: Sequence[str], count: int) -> list[Clip]:
    """The first ``count`` clips of these kinds in a data set of ``python -m data_pipeline.performers``.

    Raises:
      InputError: there is no such data set or split, or fewer clips.
    """
    from data_pipeline.performers.builder import open_split

    try:
        source = open_split(folder, split)
    except (OSError, ValueError) as error:
        made = "expected a folder made by 'python -m data_pipeline.performers'"
        raise InputError(f"--data {folder}: {made} with a split {split}, found: {one_line(error, 80)}") from None
    clips: list[Clip] = []
    for i in range(len(source)):
        record = {name: x.decode() if isinstance(x, bytes) and name in TEXTS else x for name, x in source[i].items()}
        if record["kind"] in kinds:
            clips.append(clip_of(record))
        if len(clips) == count:
            return clips
    raise InputError(f"--data {folder}: expected {count} clips of {', '.join(kinds)} in {split}, found {len(clips)}")
