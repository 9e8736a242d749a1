"""Compiled programs kept from one start to the next.

XLA's executables are stored in the user's cache folder under a key of the program (so: the code and the config), the
device, the compiler's options and the version of jax; what does not match is compiled anew. On two CPU cores the toy is
ready in 2.2 instead of 7.3 s.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/lpm_jax/xla``, by default below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lpm_jax" / "xla"


def keep_programs(directory: Path | None = None) -> Path | None:
    """Lets JAX store and find executables in ``directory``, readable by the user alone; for a door to call.

    A folder that the user gave to JAX (``JAX_COMPILATION_CACHE_DIR``) stays, and so does an ``off``. Returns the
    folder, or None where nothing can be kept.
    """
    given = jax.config.jax_compilation_cache_dir
    if given or "JAX_COMPILATION_CACHE_DIR" in os.environ or not jax.config.jax_enable_compilation_cache:
        return Path(given) if given else None
    directory = directory or cache_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        (directory / ".writable").touch()
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return directory
