"""Finished models: directories with ``config.json`` and safetensors files, parsed without executing anything.

What a run saves on its way is in ``training/resume.py``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

from lpm_jax.errors import InputError
from lpm_jax.tensors import flatten, unflatten

SHARD_BYTES = 14 * 2**20  # committed weights: at most 15 MiB a file


def save_weights(directory: str | Path, name: str, params: dict, dtype: Any = None) -> list[Path]:
    """Writes ``params`` as ``name-00001-of-0000N.safetensors`` of at most ``SHARD_BYTES``, all aside, then renamed."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shards: list[dict] = [{}]
    size = 0
    for key, value in sorted(flatten(params).items()):
        value = jax.numpy.asarray(value, dtype)
        if size and size + value.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][key] = value
        size += value.nbytes
    paths = []
    for i, shard in enumerate(shards):
        path = directory / f"{name}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, path.with_suffix(".tmp"))
        paths.append(path)
    for path in paths:
        path.with_suffix(".tmp").replace(path)
    for stale in set(directory.glob(f"{name}-*-of-*.safetensors")) - set(paths):
        stale.unlink()
    return paths


def load_weights(directory: str | Path, name: str, abstract: Any = None) -> dict:
    """Reads what :func:`save_weights` wrote, as float32 numpy arrays.

    Raises:
      InputError: a file is missing or broken, or a key or shape differs from ``abstract`` (named with both shapes).
    """
    directory = Path(directory)
    paths = sorted(directory.glob(f"{name}-*-of-*.safetensors"))
    if not paths:
        raise InputError(f"{directory}: expected {name}-*.safetensors, found none")
    if any(not path.stem.endswith(f"-of-{len(paths):05d}") for path in paths):  # one is missing, or two saves are mixed
        found = ", ".join(path.name for path in paths)
        raise InputError(f"{directory}: expected all {name} files of one save, found {found}")
    flat: dict[str, Any] = {}
    for path in paths:
        try:
            with safe_open(path, framework="flax") as file:
                for key in file.keys():  # noqa: SIM118  (not a dict)
                    flat[key] = np.asarray(file.get_tensor(key).astype(jax.numpy.float32))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: expected a safetensors file, found {str(error).splitlines()[0]}") from None
    if abstract is not None:
        expected = {k: tuple(v.shape) for k, v in flatten(abstract).items()}
        for key in sorted(expected.keys() | flat.keys()):
            found = tuple(flat[key].shape) if key in flat else "nothing"
            if expected.get(key, "nothing") != found:
                raise InputError(f"{directory}: {key}: expected {expected.get(key, 'nothing')}, found {found}")
    return unflatten(flat)


def digest(*trees: Any) -> str:
    """Ten hexadecimal digits of the weights in these trees."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(trees):
        found.update(np.asarray(leaf, np.float32).tobytes())
    return found.hexdigest()[:10]


def write_json(path: str | Path, data: Any) -> None:
    """Writes JSON aside and renames it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(data, indent=2) + "\n")
    aside.replace(path)
