"""One stream for many minutes, each to the same minute of held-out sound: does anything change with its age?

Part of ``benchmarks/toy.py`` (``--minutes 10``). Minutes differ in the stream's noise and in what it remembers, in
nothing else, so every figure of a later minute stands beside the first one's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.report import Row, resident_megabytes
from data_pipeline.schema import FPS, PARAM_INDEX, SAMPLE_RATE, SAMPLES_PER_FRAME
from lpm_jax.bench import signals
from lpm_jax.bench.instruments.reader import Reader
from lpm_jax.bench.metrics import stability
from lpm_jax.bench.observe import thumbnails
from lpm_jax.progress import progress

#: Figures of a minute that its age must not change, and by what share it may.
AGELESS = ("mouth", "nods", "amplitude", "sharpness", "flicker")
CHANGE = 0.05


def long_stream(
    pipeline: Any, clips: Sequence[Any], minutes: int, reader: Reader, seed: int = 0, seconds: int = 60
) -> tuple[list[Row], list[dict]]:
    """One stream of ``clips[0]``'s character over ``minutes`` times the same ``seconds`` of sound, of all ``clips``
    in turn: memory, compilations, drift, and the figures of each minute. Returns rows and a record a minute."""
    from lpm_jax.streaming import generator

    samples = seconds * SAMPLE_RATE
    sound = [np.concatenate([c.record[k] for c in clips]).astype(np.float32) / 32767 for k in ("speak", "listen")]
    sound = [np.resize(track, samples) for track in sound]  # repeats what is too short
    params = np.resize(np.concatenate([c.record["params"] for c in clips]), (seconds * FPS, len(PARAM_INDEX)))
    step = pipeline.chunk_frames * SAMPLES_PER_FRAME
    live = pipeline.open(clips[0].reference, seed=seed)
    known = signals.region_colours(clips[0].reference)
    log = []
    for minute in progress(range(1, minutes + 1), "long stream, minutes"):
        began, made = time.perf_counter(), []
        for at in range(0, samples - step + 1, step):
            made.append(live.step(*(track[at : at + step] for track in sound)).frames)
        spent, frames = time.perf_counter() - began, np.concatenate(made)
        distance = signals.colour_distance(signals.region_colours(frames.mean(0)), known)
        read, truth = reader.read(frames), params[: len(frames)]
        mouth, pitch = truth[:, PARAM_INDEX["aperture"]], truth[:, PARAM_INDEX["pitch"]]
        entry = {
            "minute": minute,
            "identity": distance,
            "mouth": signals.best_lag([read.aperture], [mouth], 1)[1],
            "amplitude": signals.amplitude_ratio([read.aperture], [mouth]),
            "nods": signals.best_lag([read.pitch], [pitch], 1)[1],
            "sharpness": signals.sharpness(frames),
            "flicker": stability.flicker(thumbnails(frames)),
            "resident_megabytes": resident_megabytes(),
            "times_real_time": len(frames) / FPS / spent,
        }
        log.append({key: round(float(value), 4) for key, value in entry.items()})
    memory = [entry["resident_megabytes"] for entry in log]
    size = getattr(generator.chunk_step, "_cache_size", lambda: float("nan"))
    rows = [
        Row("long stream: minutes", minutes),
        Row("long stream: memory at the end / after minute 1", memory[-1] / memory[0], target="<= 1.05"),
        Row("long stream: compilations of the step", size(), target="<= 1"),
        Row("long stream: drift of the identity", signals.drift([e["identity"] for e in log]), target="<= 0.2"),
    ]
    for name in AGELESS:
        first, last = log[0][name], log[-1][name]
        rows.append(Row(f"long stream: {name}, minute 1", first))
        rows.append(Row(f"long stream: {name}, change by the end", abs(last / first - 1), target=f"<= {CHANGE}"))
    return rows, log
