"""How long work speaks: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator


def progress(items: Iterable, name: str, note: Callable[[], str] = lambda: "") -> Iterator:
    """Passes ``items`` on: with a bar on a terminal, with a plain line for every tenth elsewhere."""
    items = items if hasattr(items, "__len__") else list(items)
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=name)
        return
    began, count = time.monotonic(), len(items)
    for i, item in enumerate(items, 1):
        yield item
        if i % max(1, count // 10) == 0 or i == count:
            line = f"{name}: {i}/{count}, {time.monotonic() - began:.0f} s {note()}"
            print(line.rstrip(), file=sys.stderr, flush=True)
