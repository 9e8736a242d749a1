"""A finished run as the pages read it: ``results.json`` and its videos.

Results may come from elsewhere, so names are checked: a video is read only from inside its run's folder.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lpm_jax.bench.schema import KINDS, SCHEMA
from lpm_jax.errors import InputError

HEADINGS = {
    "speaking": "Speaking",
    "listening": "Listening",
    "identity": "Identity",
    "control": "Text control",
    "motion": "Motion",
    "quality": "Picture quality",
    "stability": "Stability",
    "turns": "Turn-taking",
}
_ID = re.compile(r"[\w.-]{1,100}")
_NAME = re.compile(r"[^\x00-\x1f,\"]{1,200}")


@dataclass(frozen=True)
class Run:
    """``data`` is ``results.json`` as it stands, checked; ``name`` is the folder's."""

    folder: Path
    data: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        return self.data["metrics"]

    @cached_property
    def cases(self) -> dict[str, dict[str, Any]]:
        """By id, in the order of the file."""
        return {case["id"]: case for case in self.data["cases"]}

    def video(self, case: dict[str, Any], which: str = "video") -> Path | None:
        """The file of ``video`` or ``truth``; None when the case has none or it is gone.

        Raises:
          InputError: the name leads out of the run's folder, or is not an MP4's.
        """
        name = case.get(which)
        if name is None:
            return None
        path = (self.folder / str(name)).resolve()
        if not path.is_relative_to(self.folder) or path.suffix.lower() != ".mp4":
            raise InputError(f"{case['id']}: {which}: expected an .mp4 inside {self.folder}, found {str(name)[:80]!r}")
        return path if path.is_file() else None


def number(value: Any) -> float | None:
    """A finite number, or None for what could not be measured."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def open_run(folder: str | Path) -> Run:
    """The run in ``folder``; ``InputError`` when it has no results or they are not what this version reads."""
    root = Path(folder).resolve()
    path = root / "results.json"
    if not root.is_dir():
        raise InputError(f"{folder}: expected the folder of a run, found {'a file' if root.exists() else 'nothing'}")
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{folder}: expected a run with a results.json, found none") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected JSON, found {error}") from None
    if not _NAME.fullmatch(root.name):
        raise InputError(f"{folder}: expected a folder's name without commas, quotes and control characters")
    _check(data, str(path))
    return Run(root, data)


def _check(data: Any, name: str) -> None:
    """The parts of the schema that the pages rely on."""
    if not isinstance(data, dict) or "schema" not in data:
        raise InputError(f"{name}: expected the results of a run, found no 'schema'")
    if data["schema"] != SCHEMA:
        raise InputError(f"{name}: schema: expected {SCHEMA}, found {data['schema']!r}")
    for key, kind in {"suite": str, "model": str, "metrics": dict, "cases": list}.items():
        if not isinstance(data.get(key), kind):
            raise InputError(f"{name}: {key}: expected a {kind.__name__}, found {type(data.get(key)).__name__}")
    for key, metric in data["metrics"].items():
        if not isinstance(metric, dict) or metric.get("dimension") not in HEADINGS:
            raise InputError(f"{name}: metrics: {key}: dimension: expected one of {', '.join(HEADINGS)}")
        for part in ("result", "floor", "ceiling"):
            if not isinstance(metric.get(part), dict | None):
                raise InputError(f"{name}: metrics: {key}: {part}: expected a value and its interval, or null")
        if metric.get("better") not in ("higher", "lower"):
            raise InputError(
                f"{name}: metrics: {key}: better: expected higher or lower, found {metric.get('better')!r}"
            )
    seen: set[str] = set()
    for case in data["cases"]:
        key = case.get("id") if isinstance(case, dict) else None
        if not isinstance(key, str) or not _ID.fullmatch(key):
            raise InputError(f"{name}: cases: expected an id of letters, digits, '.', '_' and '-', found {key!r}")
        if key in seen:
            raise InputError(f"{name}: cases: expected each id once, found {key} twice")
        if case.get("kind") not in KINDS:
            raise InputError(f"{name}: {key}: kind: expected one of {', '.join(KINDS)}, found {case.get('kind')!r}")
        for part in ("scores", "floor", "ceiling"):
            if not isinstance(case.get(part), dict) and (part == "scores" or case.get(part) is not None):
                raise InputError(f"{name}: {key}: {part}: expected a number per metric, found {case.get(part)!r:.60}")
        seen.add(key)


def same_terms(a: Run, b: Run) -> None:
    """``InputError`` unless two runs answer the same questions: one schema, one suite, one seed."""
    for key in ("schema", "suite", "seed"):
        x, y = a.data.get(key), b.data.get(key)
        if x != y:
            raise InputError(f"{a.name} and {b.name}: expected runs of one {key}, found {x!r} and {y!r}")


def shared_cases(a: Run, b: Run) -> list[str]:
    """Ids that both have, in the first one's order; ``InputError`` when there are none."""
    shared = [key for key in a.cases if key in b.cases]
    if not shared:
        raise InputError(f"{a.name} and {b.name}: expected runs with cases in common, found none")
    return shared
