"""On what a figure was measured: what every file of results says of itself."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "flax", "numpy")


def environment(*packages: str) -> dict[str, Any]:
    """Date, commit, versions (of ``packages`` too) and processor. No names of machines or people."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in (*PACKAGES, *packages)},
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def _commit() -> str:
    def git(*words: str) -> str:
        at = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=at, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        code = (":/", ":/!benchmarks/results", ":/!docs")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
        return f"{commit} with changes" if changed else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
