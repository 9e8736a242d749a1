"""How long each lane of a session takes for a chunk: percentiles over the last five minutes."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

KEPT = 600  # chunks
#: Waiting for the model, which takes one chunk of one session at a time (together: one of each that waits); computing,
#: together with others their part too; encoding the frames; sending.
LANES = ("queue", "model", "encode", "send")


class Meter:
    """Seconds of a session's chunks, by lane. Its size does not grow."""

    def __init__(self) -> None:
        self._seconds = {lane: deque[float](maxlen=KEPT) for lane in LANES}
        self.chunks = 0

    def add(self, **seconds: float) -> None:
        """A chunk's time in each lane."""
        for lane, value in seconds.items():
            self._seconds[lane].append(value)
        self.chunks += 1

    def figures(self) -> dict[str, dict[str, float]]:
        """By lane, milliseconds: p50, p95 and p99. Empty before the first chunk."""
        found = {}
        for lane, values in self._seconds.items():
            if values:
                levels = 1000 * np.percentile(values, [50, 95, 99])
                found[lane] = dict(zip(("p50", "p95", "p99"), np.round(levels, 2).tolist(), strict=True))
        return found


def report(sessions: list[dict[str, Any]], allowed: int) -> dict[str, Any]:
    """What the service tells about itself: how many sessions it holds, and each one's figures, without who it is."""
    return {"sessions_allowed": allowed, "sessions": sessions, "lanes": list(LANES), "unit": "milliseconds"}
