"""What comes with the package (characters and sample speech) and what a user uploads while the service runs."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lpm_jax.errors import InputError

ASSETS = Path(__file__).parents[1] / "assets"
KEPT = 16  # uploads of each kind in memory; the oldest goes first
YOURS = "yours"  # what the command line gave: a picture or speech that stays


@dataclass
class Library:
    """Bundled files by name, uploads by id. Methods may be called from any thread."""

    root: Path = ASSETS
    images: OrderedDict[str, np.ndarray] = field(default_factory=OrderedDict)  # uint8 [size, size, 3]
    speech: OrderedDict[str, np.ndarray] = field(default_factory=OrderedDict)  # float32 [samples]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def characters(self) -> dict[str, Path]:
        """Bundled character pictures by name, in order."""
        return {p.stem: p for p in sorted((self.root / "characters").glob("*.png"))}

    def samples(self) -> dict[str, Path]:
        """Bundled speech by name, in order."""
        found = sorted((self.root / "samples").glob("*"))
        return {p.stem: p for p in found if p.suffix in (".wav", ".flac", ".mp3", ".ogg")}

    def first_character(self) -> Path:
        """The default character; ``InputError`` when none is bundled."""
        for path in self.characters().values():
            return path
        raise InputError(f"--image: none given and no bundled character found in {self.root / 'characters'}")

    def first_sample(self) -> Path:
        """The default speech; ``InputError`` when none is bundled."""
        for path in self.samples().values():
            return path
        raise InputError(f"--speak: none given and no bundled speech found in {self.root / 'samples'}")

    def keep(self, store: OrderedDict[str, np.ndarray], data: np.ndarray) -> str:
        """Keep an upload and return its id."""
        with self.lock:
            key = secrets.token_urlsafe(9)
            store[key] = data
            uploads = [name for name in store if name != YOURS]
            for oldest in uploads[:-KEPT]:
                del store[oldest]
            return key

    def image(self, name: str) -> Path | np.ndarray:
        """A character's file or an uploaded picture; ``InputError`` for an unknown name."""
        with self.lock:
            found = self.images.get(name)
        found = self.characters().get(name) if found is None else found
        if found is None:
            raise InputError(f"character: expected one of {', '.join(self.characters())} or an upload, found {name!r}")
        return found

    def voice(self, name: str) -> Path | np.ndarray:
        """A sample's file or uploaded speech; ``InputError`` for an unknown name."""
        with self.lock:
            found = self.speech.get(name)
        found = self.samples().get(name) if found is None else found
        if found is None:
            raise InputError(f"speech: expected one of {', '.join(self.samples())} or an upload, found {name!r}")
        return found
