"""With what a plan was made."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform


def versions() -> dict:
    """Date and versions; a package that is not there is null."""
    found: dict[str, str | None] = {}
    for name in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return {"date": datetime.date.today().isoformat(), "python": platform.python_version(), "versions": found}
