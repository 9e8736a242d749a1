"""How far a file has come."""

from __future__ import annotations

import sys
import time


class Progress:
    """Seconds done of seconds in all: a bar on a terminal, a plain line every 5 s elsewhere."""

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
