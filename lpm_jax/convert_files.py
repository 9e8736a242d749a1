"""A directory written as a whole: safetensors of several stems, further files beside them, ``config.json`` last."""

from __future__ import annotations

import dataclasses
import filecmp
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lpm_jax import tensors
from lpm_jax.checkpoint import write_json
from lpm_jax.config import Config
from lpm_jax.errors import InputError
from lpm_jax.tensors import Target

Stem = tuple[dict[str, Target], dict[str, str]]  # what to write, and metadata that tells what it is made of


def read_json(path: Path) -> dict:
    """A JSON object.

    Raises:
      InputError: there is no file, or something else in it.
    """
    try:
        data = json.loads(path.read_text())
        if not isinstance(data, dict):
            raise ValueError("no object")
        return data
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON object, found {error}") from None


def fingerprint(paths: list[Path], *options: Any) -> dict[str, str]:
    """Metadata of what is made of these files with these options."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return {"source": hashlib.sha256(repr((stats, options)).encode()).hexdigest()}


def plain(config: Config) -> dict:
    """A config as JSON holds it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def description(directory: Path) -> Path | None:
    """A model's ``config.json``: in its place, or where a killed run has put it aside."""
    places = (directory / "config.json", directory / tensors.ASIDE / "config.json")
    return next((path for path in places if path.is_file()), None)


def finish(
    destination: Path,
    stems: Mapping[str, Stem],
    documents: dict[str, dict],
    limit: int,
    progress: Callable[[str], None],
    copies: Mapping[str, Path] | None = None,
    exchanged: Mapping[Path, dict[str, Target]] | None = None,
) -> list[Path]:
    """Writes each stem's targets aside, then moves them into place, documents last.

    ``stems`` holds targets and metadata, ``copies`` further files and where they come from,
    ``exchanged`` tensors to replace in files of ``destination``. While old and new files are mixed, the old
    ``config.json`` lies aside: the directory is no model, and the next run finds it there.
    """
    done, places, new = {}, {}, False
    aside, copies, exchanged = destination / tensors.ASIDE, dict(copies or {}), exchanged or {}
    for stem, (targets, metadata) in stems.items():
        done[stem], places[stem], written = tensors.write_shards(destination, stem, targets, metadata, limit, progress)
        new |= written
    copies = {name: path for name, path in copies.items() if not _equal(path, destination / name)}
    for name, path in copies.items():
        shutil.copyfile(path, aside / name)
    for path, changes in exchanged.items():
        tensors.rewrite(path, aside / path.name, changes)
        progress(f"{path.name}: {', '.join(changes)} drawn anew")
    for stem in stems:
        index = f"{stem}.safetensors.index.json"
        if index in documents:
            documents[index] = documents[index] | {"weight_map": places[stem]}
    first, last = destination / "config.json", dict(documents)
    if (new or copies or exchanged) and first.is_file():
        first.replace(aside / first.name)  # old description, new weights: not for a moment
    for stem, paths in done.items():
        tensors.publish(destination, stem, paths)
    for name in [*copies, *(path.name for path in exchanged)]:
        (aside / name).replace(destination / name)
    last["config.json"] = last.pop("config.json")
    for name, data in last.items():
        path = destination / name
        if not path.is_file() or path.read_text() != json.dumps(data, indent=2) + "\n":
            write_json(path, data)
    for stale in aside.iterdir():
        if stale.name == first.name or any(stale.name.startswith(f"{stem}-") for stem in stems):
            stale.unlink()
    if not any(aside.iterdir()):  # else another part's run was killed
        aside.rmdir()
    return [path for paths in done.values() for path in paths]


def _equal(a: Path, b: Path) -> bool:
    return b.is_file() and filecmp.cmp(a, b, shallow=False)
