"""Runs without a model: results of the contract's form, and small videos of a disc that moves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lpm_jax.bench.agreement import mean_interval
from lpm_jax.media import Mp4Writer

METRICS = {
    "lip_r": ("speaking", "Mouth follows the speech", "", "higher", 0.0, 0.7, 0.9),
    "sync_d": ("speaking", "Sync-D", "", "lower", 12.0, 8.0, 7.0),
    "nod_f1": ("listening", "Nods at the right moments", "", "higher", 0.1, 0.5, 0.8),
    "identity": ("identity", "Colours move away", "CIE76 / min", "lower", 30.0, 6.0, 1.0),
    "drift": ("stability", "Largest departure from the first second", "CIE76", "lower", 25.0, 5.0, 0.5),
}
KINDS = ("speaking", "listening", "conversation", "motion", "generalisation")
SIZE = 32


def write_video(path: Path, seconds: float, shade: int, seed: int = 0) -> None:
    """A disc that circles, with a tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    sound = 0.2 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * 24_000)) / 24_000)
    frames = []
    for i in range(round(seconds * 24)):
        y, x = SIZE / 2 + 8 * np.sin(seed + i / 6), SIZE / 2 + 8 * np.cos(seed + i / 6)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < 36
        frames.append(np.where(inside[..., None], [230, shade, 90], [40, 44, 60]).astype(np.uint8))
    with Mp4Writer(path, SIZE, audio=sound.astype(np.float32)) as writer:
        writer.write(np.stack(frames))


def write_run(
    folder: Path, cases: int = 10, *, seed: int = 0, shift: float = 0.0, videos: bool = True, truth: bool = True, **data
) -> Path:
    """``shift`` moves every score towards the better by that share of the way from floor to ceiling."""
    rng = np.random.default_rng([seed, round(1000 * shift) % 2**32])
    entries = []
    for i in range(cases):
        kind, seconds = KINDS[i % len(KINDS)], 0.5 + 0.25 * (i % 3)
        key = f"{kind}-{i:03d}"
        case = {"id": key, "kind": kind, "seconds": seconds, "character": f"face {i}", "style": "flat"}
        case |= {"prompt": f"nods <b>{i}</b> times & smiles", "video": f"videos/{key}.mp4"}
        case |= {"truth": f"truth/{key}.mp4" if truth else None, "scores": {}, "floor": {}, "ceiling": {}}
        for name, (_, _, _, _, low, middle, high) in METRICS.items():
            noise = 0.05 * abs(high - low) * rng.standard_normal(3)
            case["floor"][name] = low + noise[0]
            case["scores"][name] = middle + shift * (high - low) + noise[1]
            case["ceiling"][name] = high + noise[2]
        if kind == "speaking":
            case["scores"]["nod_f1"] = None
        if videos:
            write_video(folder / case["video"], seconds, 110 if shift else 160, i)
            if truth:
                write_video(folder / case["truth"], seconds, 200, i)
        entries.append(case)
    metrics = {}
    for name, (dimension, title, unit, better, *_) in METRICS.items():
        metrics[name] = {"dimension": dimension, "title": title, "unit": unit, "better": better, "effect": 3.0}
        for key, source in (("result", "scores"), ("floor", "floor"), ("ceiling", "ceiling")):
            metrics[name][key] = stat([case[source][name] for case in entries])
    results = {"schema": 1, "suite": "small", "model": "toy", "seed": 0, "command": f"bench run --out {folder.name}"}
    results |= {"date": "2026-01-02", "commit": "0123456789ab", "versions": {"jax": "0.10.2"}, "cores": 2}
    results |= {"metrics": metrics, "cases": entries} | data
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def stat(values: list[float | None]) -> dict:
    known = [v for v in values if v is not None]
    value, low, high = mean_interval(known)
    return {"value": value, "low": low, "high": high, "n": len(known)}


def change(folder: Path, edit) -> None:
    """Edit ``results.json`` in place."""
    path = folder / "results.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
