"""Contact sheets: rows of frames as one PNG, and rows of clips as one MP4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def save_sheet(path: str | Path, rows: list[UInt8[np.ndarray, "_ h w 3"]]) -> None:
    """Writes ``rows`` of equally sized frames as one PNG, aside and then renamed; short rows are padded white."""
    width = max(len(row) for row in rows)
    lines = []
    for row in rows:
        row = np.asarray(row)
        blank = np.full((width - len(row), *row.shape[1:]), 255, np.uint8)
        lines.append(np.concatenate(list(np.concatenate([row, blank])), axis=1))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    Image.fromarray(np.concatenate(lines)).save(aside, format="PNG")
    aside.replace(path)
