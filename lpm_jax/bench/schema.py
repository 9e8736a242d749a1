"""What a run writes and reports read: ``results.json``, version 1, in a folder with ``videos`` and ``truth``.

    {"schema": 1, "suite": "small", "model": "toy", "seed": 0, "command": "...", <lpm_jax/environment.py>,
     "metrics": {NAME: {"dimension": ..., "title": ..., "unit": ..., "better": "higher" | "lower",
                        "result": STAT, "floor": STAT | null, "ceiling": STAT | null, "effect": number | null}},
     "cases": [{"id": ..., "kind": ..., "seconds": 5.0, "character": ..., "style": ..., "prompt": ...,
                "video": "videos/ID.mp4", "truth": "truth/ID.mp4" | null,
                "scores": {NAME: number | null}, "floor": {...}, "ceiling": {...}}]}
    STAT = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 50}

``value`` is the mean over cases (for the Frechet distances: of all frames together), ``low`` and ``high`` a 95 %
bootstrap interval over cases, ``n`` the cases it is of. ``effect`` is Cohen's d of the true video against the floor,
positive where the metric tells them apart in the right direction. ``ceiling`` is the true video through the same
instruments, ``floor`` what each metric's entry in docs/bench.md says; both are null where a case has no truth.
Where instruments for real faces measured, ``instruments`` has their files and the beginnings of their SHA-256: only
runs with the same ones compare.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lpm_jax.errors import InputError, one_line

SCHEMA = 1
DIMENSIONS = ("speaking", "listening", "identity", "control", "motion", "quality", "stability", "turns")
KINDS = ("speaking", "listening", "conversation", "motion", "generalisation", "long")


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a figure is of. ``better`` says which way is good."""

    dimension: str
    title: str
    unit: str = ""
    better: str = "higher"

    def to_json(self) -> dict[str, str]:
        return dataclasses.asdict(self)


#: Every metric by name, in the order of tables.
METRICS = {
    "lip_r": Metric("speaking", "Mouth follows the speech (correlation within a frame)"),
    "lip_lag": Metric("speaking", "Mouth early or late", "frames", "lower"),
    "lip_amplitude": Metric("speaking", "Mouth opens as far as it should (1: equal)"),
    "bilabial_f1": Metric("speaking", "Lips shut on p, b, m (F1)"),
    "sync_c": Metric("speaking", "Sync-C: confidence of the speech's synchrony"),
    "sync_d": Metric("speaking", "Sync-D: distance of lips and speech", "", "lower"),
    "sync_offset": Metric("speaking", "Lag at which lips and speech are nearest", "frames", "lower"),
    "nod_f1": Metric("listening", "Nods at the right moments (F1)"),
    "nod_error": Metric("listening", "Nods early or late", "s", "lower"),
    "listen_r": Metric("listening", "Head follows the partner (correlation)"),
    "smile_f1": Metric("listening", "Smiles at the right moments (F1)"),
    "brow_f1": Metric("listening", "Brow flashes at the right moments (F1)"),
    "mouth_still": Metric("listening", "Mouth opening without speech", "", "lower"),
    "identity_colour": Metric("identity", "Colours of the regions, own over others", "", "lower"),
    "identity_slope": Metric("identity", "Colours move away from the picture", "CIE76 / min", "lower"),
    "identity_similarity": Metric("identity", "Embedding: cosine with the picture"),
    "identity_auc": Metric("identity", "Embedding: nearer to itself than to others (AUC)"),
    "prompt_recall": Metric("control", "Prompted actions and emotions that are seen, share of segments"),
    "motion_amount": Metric("motion", "Moves as much as it should (1: equal)"),
    "motion_diversity": Metric("motion", "Poses as different as they should be (1: equal)"),
    "frozen": Metric("motion", "Frames that repeat the one before", "share", "lower"),
    "sharpness": Metric("quality", "Sharp as the truth (1: equal)"),
    "frechet_picture": Metric("quality", "Frechet distance of pictures (FID-like)", "", "lower"),
    "frechet_motion": Metric("quality", "Frechet distance of half seconds (FVD-like)", "", "lower"),
    "flicker": Metric("stability", "Flicker between neighbouring frames", "of 255", "lower"),
    "seam": Metric("stability", "Change where chunks meet, over change elsewhere", "", "lower"),
    "drift": Metric("stability", "Largest departure from the first second", "CIE76", "lower"),
    "stop_delay": Metric("turns", "Mouth closes after the speech has stopped", "s", "lower"),
}


def read_results(folder: str | Path) -> dict[str, Any]:
    """The results in a run's folder.

    Raises:
      InputError: there are none, or they are of another version or broken.
    """
    path = Path(folder) / "results.json"
    if not path.is_file():
        raise InputError(f"{folder}: expected the folder of a run with results.json, found none")
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected JSON, found {one_line(error, 80)}") from None
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA or not {"metrics", "cases"} <= data.keys():
        raise InputError(f"{path}: expected results of schema {SCHEMA} with metrics and cases, found schema {found}")
    return data
