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


class Progress:
    """How far a file has come, in seconds: a bar on a terminal, a plain line every 5 s elsewhere."""

    def __init__(self, total: float) -> None:
        self.total, self.began, self.shown, self.bar = total, time.monotonic(), time.monotonic(), None
        if sys.stderr.isatty():
            from tqdm import tqdm

            form = "{percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} s of video, {remaining} left"
            self.bar = tqdm(total=total, bar_format=form)

    def show(self, done: float) -> None:
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
        elif now - self.shown > 5 and done:
            left = (now - self.began) * (self.total / done - 1)
            self.shown = now
            print(f"{done:.1f} of {self.total:.1f} s ({done / self.total:.0%}), {left:.0f} s left", flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
