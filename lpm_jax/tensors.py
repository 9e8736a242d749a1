"""Safetensors files too large for memory: read by slices, written slice by slice, aside and then renamed.

A file is eight bytes of header length, a JSON header with dtype, shape and place of every tensor, and their bytes.
Reading goes through plain ``read``: mapped pages would count as the process's memory.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lpm_jax.errors import InputError, one_line

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
CODES = {np.dtype(value): key for key, value in DTYPES.items()}
BLOCK_BYTES = 64 * 2**20  # written at once: bounds the copy that makes a transposed tensor contiguous
ASIDE = ".partial"  # folder for what is not finished yet


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with paths such as ``"dit/head/projection/kernel"``."""
    if isinstance(tree, dict):
        return {k: v for key, sub in tree.items() for k, v in flatten(sub, f"{prefix}{key}/").items()}
    return {prefix[:-1]: tree}


def unflatten(flat: dict[str, Any]) -> dict:
    """The inverse of :func:`flatten`."""
    tree: dict = {}
    for name, value in flat.items():
        *path, leaf = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


class Tensor(NamedTuple):
    """Where a tensor lies."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the file's start

    def read(self, rows: slice | None = None) -> np.ndarray:
        """The tensor, or ``rows`` (consecutive) of its leading axis."""
        shape, offset = self.shape, self.offset
        if rows is not None:
            start, stop, _ = rows.indices(shape[0])
            offset += start * math.prod(shape[1:]) * self.dtype.itemsize
            shape = (stop - start, *shape[1:])
        count = math.prod(shape)
        with self.path.open("rb") as file:
            file.seek(offset)
            value = np.fromfile(file, self.dtype, count)
        if value.size != count:
            raise InputError(f"{self.path}: expected {count} numbers at byte {offset}, found {value.size}")
        return value.reshape(shape)


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors and its metadata.

    Raises:
      InputError: it is no safetensors file, or not all of one.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError(f"a header of {length} bytes in {size}")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        tensors = {}
        for key, entry in header.items():
            start, stop = entry["data_offsets"]
            dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
            if stop - start != math.prod(shape) * dtype.itemsize or 8 + length + stop > size:
                raise ValueError(f"{key} of shape {shape} at bytes {start} to {stop} of {size - 8 - length}")
            tensors[key] = Tensor(path, dtype, shape, 8 + length + start)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected a whole safetensors file, found {one_line(error, 120)}") from None
    return tensors, metadata


def read_headers(paths: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of several files by key; a key in two files is refused."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(paths):
        for key, tensor in read_header(path)[0].items():
            if key in tensors:
                raise InputError(f"{path}: {key}: expected it once, found it in {tensors[key].path.name} too")
            tensors[key] = tensor
    return tensors


def find_files(directory: Path, stem: str) -> list[Path]:
    """The files of one save: those an index names, else ``stem*.safetensors``; all shards must be there.

    Raises:
      InputError: there are none, or one is missing.
    """
    index = directory / f"{stem}.safetensors.index.json"
    if index.is_file():
        try:
            named = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            paths = [directory / Path(name).name for name in named]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{index}: expected a safetensors index, found {one_line(error, 100)}") from None
    else:
        paths = sorted({*directory.glob(f"{stem}.safetensors"), *directory.glob(f"{stem}-*.safetensors")})
        if not paths:
            raise InputError(f"{directory}: expected {stem}*.safetensors, found none")
        totals = {p.stem.rpartition("-of-")[2] for p in paths if "-of-" in p.stem}
        if totals and totals != {f"{len(paths):05d}"}:
            raise InputError(f"{directory}: expected all {stem} files of one save, found {', '.join(map(str, totals))}")
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: expected a file of {directory.name}'s index, found none")
    return paths


class Target(NamedTuple):
    """A tensor to write: ``slices`` yields arrays whose elements, one after the other, are the tensor's."""

    dtype: np.dtype
    shape: tuple[int, ...]
    slices: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def shard(targets: dict[str, Target], limit: int) -> list[list[str]]:
    """Keys in groups of at most ``limit`` bytes, in order; a larger tensor has a file to itself."""
    groups: list[list[str]] = [[]]
    size = 0
    for key, target in targets.items():
        if groups[-1] and size + target.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(key)
        size += target.nbytes
    return groups


def _header(targets: dict[str, Target], keys: list[str], metadata: dict[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for key in keys:
        target = targets[key]
        entries[key] = {
            "dtype": CODES[target.dtype], "shape": list(target.shape), "data_offsets": [at, at + target.nbytes]
        }  # fmt: skip
        at += target.nbytes
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % 8)  # so that tensors start on a multiple of eight


def _is_whole(path: Path, header: bytes, size: int) -> bool:
    if not path.is_file() or path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return file.read(8 + len(header)) == len(header).to_bytes(8, "little") + header


def _write(path: Path, header: bytes, targets: dict[str, Target], keys: list[str]) -> None:
    aside = path.with_suffix(".tmp")
    with aside.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for key in keys:
            target = targets[key]
            end = file.tell() + target.nbytes
            for value in target.slices():
                rows = max(1, BLOCK_BYTES // max(1, math.prod(value.shape[1:]) * target.dtype.itemsize))
                for start in range(0, len(value), rows):
                    part = np.ascontiguousarray(value[start : start + rows]).astype(target.dtype, copy=False)
                    file.write(part.reshape(-1).view(np.uint8))
                part = value = None  # before the next one is read
            assert file.tell() == end, key
        file.flush()
        os.fsync(file.fileno())  # a name must never stand for bytes that a power failure took
    aside.replace(path)


def write_shards(
    directory: Path,
    stem: str,
    targets: dict[str, Target],
    metadata: dict[str, str],
    limit: int,
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[list[Path], dict[str, str], bool]:
    """Writes ``stem-0000i-of-0000N.safetensors`` into ``directory / ASIDE``; :func:`publish` moves them into place.

    A file that is already there whole, with this very header (``metadata`` tells its source), is not written again: a
    killed run resumes with the file it was at, and a second run does nothing. At most one slice and a block of
    ``BLOCK_BYTES`` are in memory. Returns the final paths, the file name of each key, and whether anything was written.
    """
    aside = directory / ASIDE
    aside.mkdir(parents=True, exist_ok=True)
    groups = shard(targets, limit)
    paths, places, written = [], {}, False
    for i, keys in enumerate(groups):
        name = f"{stem}-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        header = _header(targets, keys, metadata)
        size = 8 + len(header) + sum(targets[key].nbytes for key in keys)
        if not any(_is_whole(folder / name, header, size) for folder in (aside, directory)):
            _write(aside / name, header, targets, keys)
            progress(f"{name}: {len(keys)} tensors, {size / 1e6:.1f} MB ({i + 1} of {len(groups)})")
        written |= (aside / name).is_file()
        paths.append(directory / name)
        places.update(dict.fromkeys(keys, name))
    return paths, places, written


def rewrite(path: Path, aside: Path, changes: dict[str, Target]) -> None:
    """Writes a copy of ``path`` to ``aside`` in which tensors are exchanged; its metadata stays. A row or a
    block of ``BLOCK_BYTES`` is in memory."""
    found, metadata = read_header(path)

    def blocks(tensor: Tensor) -> Iterator[np.ndarray]:
        rows = max(1, BLOCK_BYTES // max(1, math.prod(tensor.shape[1:]) * tensor.dtype.itemsize))
        return (tensor.read(slice(start, start + rows)) for start in range(0, tensor.shape[0], rows))

    def kept(tensor: Tensor) -> Target:
        return Target(tensor.dtype, tensor.shape, lambda: blocks(tensor))

    targets = {key: changes.get(key) or kept(tensor) for key, tensor in found.items()}
    _write(aside, _header(targets, list(targets), metadata), targets, list(targets))


def publish(directory: Path, stem: str, paths: list[Path]) -> None:
    """Moves finished files from aside into place and removes those of an earlier save."""
    aside = directory / ASIDE
    for path in paths:
        if (aside / path.name).is_file():
            (aside / path.name).replace(path)
    for stale in {*directory.glob(f"{stem}-*-of-*.safetensors"), *directory.glob(f"{stem}.safetensors")} - set(paths):
        stale.unlink()
