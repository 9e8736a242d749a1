"""The latent cache: every clip of a split encoded once, as memory-mapped arrays the diffusion stages read.

One file per field, one row per clip. The folder's name carries a fingerprint of the autoencoder's weights and of the
data set, so a new autoencoder gets a new cache; it is written aside and renamed when whole.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image
from tqdm import tqdm

from data_pipeline.loader import RegionWeights, group_max, weight_map
from data_pipeline.moves import moves
from data_pipeline.performers.builder import open_split
from data_pipeline.schema import PARAM_INDEX, SAMPLES_PER_FRAME
from data_pipeline.video import decode_mp4
from lpm_jax.checkpoint import digest
from lpm_jax.config import Config
from lpm_jax.distributed import barrier, primary
from lpm_jax.errors import InputError
from lpm_jax.models.vae import toy
from lpm_jax.training import encoders

STILL_EVERY = 3  # latent frames between the frames that are also encoded as pictures: where windows may start
REFERENCE_SLOTS = 5  # the global appearance and up to four views or expressions
KINDS = ("speak", "listen", "conversation", "idle")
FIRST = 8  # clips that tell one data set from another: a single one may be the same in both
WORKERS, AHEAD = 2, 4  # clips that are made side by side (most of it lets other threads run), and begun at a time
SHARED = ("empty",)  # the encoded empty prompt, which all clips have in common
ROW = 3  # what a row holds: raised where that changes, so that no cache lacks a field


class LatentSource:
    """Random access to cached clips: a dict of arrays per clip."""

    def __init__(self, directory: Path, kinds: tuple[str, ...] = ()):
        self.directory = Path(directory)
        self.arrays = {p.stem: np.load(p, mmap_mode="r") for p in sorted(self.directory.glob("*.npy"))}
        self.shared = {name: np.asarray(self.arrays.pop(name)) for name in SHARED if name in self.arrays}
        wanted = [KINDS.index(kind) for kind in kinds] if kinds else range(len(KINDS))
        self.rows = np.flatnonzero(np.isin(self.arrays["kind"], list(wanted)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = {name: np.asarray(array[self.rows[index]]) for name, array in self.arrays.items()}
        return row | self.shared

    def __repr__(self) -> str:  # Grain keeps this with a saved iterator and compares it on restore
        return f"LatentSource({self.directory.name}, {len(self)})"


class WithSound:
    """Clips of a :class:`LatentSource` with their samples, which the cache does not keep, from the ``records`` that it
    was made of: ``speak_sound`` and ``listen_sound``, int16 at 24 kHz."""

    def __init__(self, source: LatentSource, records):
        self.source, self.records = source, records

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self.records[int(self.source.rows[index])]
        sound = {f"{name}_sound": np.asarray(record[name], np.int16) for name in ("speak", "listen")}
        return self.source[index] | sound

    def __repr__(self) -> str:
        return f"WithSound({self.source!r})"


def variance_around_reference(source: LatentSource, clips: int = 200) -> Float[np.ndarray, " c"]:
    """Mean square per channel of a clip's latents against its global reference, over up to ``clips`` clips."""
    rows = np.linspace(0, len(source) - 1, min(clips, len(source))).astype(int)
    squares = []
    for i in rows:
        clip = source[int(i)]
        difference = clip["latents"].astype(np.float32) - clip["references"][0].astype(np.float32)
        squares.append(np.mean(difference**2, axis=(0, 1, 2)))
    return np.mean(squares, axis=0)


def principal_motions(source: LatentSource, count: int, clips: int = 400) -> Float[np.ndarray, "count h8 w8 2"]:
    """The ``count`` fields of displacements, in pixels, that explain most of how the video frames of up to ``clips``
    clips have moved: principal components around rest, each as large as it is in a root mean square.

    Raises:
      InputError: there are fewer.
    """
    rows, columns = source.arrays["moves"].shape[3:5]
    size = rows * columns * 2
    if count > size:
        raise InputError(f"--dit.warp: expected at most {size} motions, two for each cell, found {count}")
    outer, frames = np.zeros((size, size)), 0
    for i in np.linspace(0, len(source) - 1, min(clips, len(source))).astype(int):
        field = source[int(i)]["moves"][1:].astype(np.float32).reshape(-1, size)
        outer, frames = outer + field.T @ field, frames + len(field)
    power, motions = np.linalg.eigh(outer / max(frames, 1))
    power, motions = power[::-1][:count], motions[:, ::-1][:, :count]
    scaled = motions.T * np.sqrt(np.maximum(power, 0))[:, None]
    return scaled.reshape(count, rows, columns, 2).astype(np.float32)


def fingerprint(config: Config, weights: dict, source) -> str:
    """Ten hexadecimal digits of the autoencoder's weights, of how sound and words become numbers, of what is kept, and
    of the data set's size and first clips."""
    how = (ROW, digest(weights), config.audio.bands, config.audio.hops_per_frame, config.text, len(source))
    how += ("moves",) if config.dit.warp else ()
    if encoders.is_large(config):
        how += (config.pixels, config.audio, config.vae, encoders.files_digest(encoders.folder(config)))
    clips = b"".join(bytes(source[i]["video"]) for i in range(min(FIRST, len(source))))
    return hashlib.sha256(repr(how).encode() + clips).hexdigest()[:10]


def open_clips(config: Config, split: str):
    """A split of the data set.

    Raises:
      InputError: there is none.
    """
    try:
        return open_split(config.data, split)
    except (OSError, ValueError) as error:
        raise InputError(f"--data {error}") from None


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def encode_clip(config: Config, coders: encoders.Encoders, record: dict) -> dict[str, np.ndarray]:
    """One row of the cache."""
    frames = decode_mp4(record["video"])
    latents = coders.video(frames[None])[0]
    picks = np.arange(0, len(latents) - 1, STILL_EVERY) * toy.GROUP
    names = [i for i, png in enumerate(record["references"]) if png]
    rng = np.random.default_rng(int(record["seed"]) % 2**63)
    chosen = [0, *sorted(rng.permutation([i for i in names if i])[: REFERENCE_SLOTS - 1])]
    pictures = [np.asarray(Image.open(io.BytesIO(record["references"][i])).convert("RGB")) for i in chosen]
    stills = coders.video(np.stack([*frames[picks], *pictures])[:, None])[:, 0]
    references = np.zeros((REFERENCE_SLOTS, *latents.shape[1:]), np.float16)
    references[: len(chosen)] = stills[len(picks) :]
    kinds = np.full(REFERENCE_SLOTS, -1, np.int32)
    kinds[: len(chosen)] = np.array(chosen) + 1  # 0 stands for the first frame in models/conditions.py
    heard = {}
    for name in ("speak", "listen"):
        sound = np.asarray(record[name], np.float32) / 32768
        assert len(sound) == len(frames) * SAMPLES_PER_FRAME
        heard[name] = coders.sound(sound)
    maps = {}
    for name in ("mouth", "eyes", "face"):
        only = RegionWeights(**{name: 2.0})
        maps[name] = group_max(weight_map(record["regions"], latents.shape[1:3], only)) > 1.5
    return {
        "latents": latents.astype(np.float16),
        "stills": stills[: len(picks)].astype(np.float16),
        "references": references,
        "reference_kinds": kinds,
        "text": coders.words(_text(record["prompt"])),
        "kind": np.int32(KINDS.index(_text(record["kind"]))),
        "params": np.asarray(record["params"], np.float32),
        "life": np.asarray(record["life"], np.float32),
        "aperture": np.asarray(record["params"][:, PARAM_INDEX["aperture"]], np.float32),
        **heard,
        **maps,
        **({"moves": moves(pictures[0], frames).astype(np.float16)} if config.dit.warp else {}),
    }


def build(config: Config, weights: dict, split: str, workdir: Path) -> Path:
    """The cache of ``split``, made by process 0 if it isn't there."""
    source = open_clips(config, split)
    directory = Path(workdir) / "latents" / f"{split}-{fingerprint(config, weights, source)}"
    if primary() and not directory.is_dir():
        _encode(config, weights, split, source, directory)
    barrier(f"latents of {split}")
    return directory


def _encode(config: Config, weights: dict, split: str, source, directory: Path) -> None:
    if "life" not in source[0]:
        raise InputError(f"--data {config.data}: expected clips with their life, found older ones; render them again")
    coders = encoders.of_large(config, weights) if encoders.is_large(config) else encoders.of_toy(config, weights)

    def row(i: int) -> dict[str, np.ndarray]:
        return encode_clip(config, coders, source[i])

    def rows() -> Iterator[dict[str, np.ndarray]]:
        bar = tqdm(range(len(source)), desc=f"latents of {split}", disable=not sys.stderr.isatty())
        waiting = iter(range(len(source)))
        with ThreadPoolExecutor(WORKERS) as pool:
            begun = deque(pool.submit(row, i) for i in itertools.islice(waiting, AHEAD))
            for i in bar:
                yield begun.popleft().result()
                begun.extend(pool.submit(row, i) for i in itertools.islice(waiting, 1))
                if bar.disable and (i + 1) % 200 == 0:
                    print(f"latents of {split}: {i + 1}/{len(source)}", flush=True)

    store(directory, rows(), len(source), {} if coders.empty is None else {"empty": coders.empty})


def folder_aside(directory: Path) -> Path:
    """An empty folder beside ``directory`` to write it in. What writers left there that are gone is removed."""
    for stale in directory.parent.glob(f"{directory.name}.incomplete-*"):
        try:
            os.kill(int(stale.name.rpartition("-")[2]), 0)  # asks whether it runs
        except ProcessLookupError:
            shutil.rmtree(stale, ignore_errors=True)
        except (PermissionError, ValueError):  # another user's, nobody's
            pass
    aside = directory.with_name(f"{directory.name}.incomplete-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def store(
    directory: Path, rows: Iterable[dict[str, np.ndarray]], count: int, shared: dict[str, np.ndarray] | None = None
) -> None:
    """Writes ``count`` rows and what they share as what :class:`LatentSource` reads: aside, and renamed when whole."""
    aside = folder_aside(directory)
    files: dict[str, np.memmap] = {}
    try:
        for i, row in enumerate(rows):
            for name, value in row.items():
                if name not in files:
                    shape = (count, *np.shape(value))
                    files[name] = np.lib.format.open_memmap(aside / f"{name}.npy", "w+", np.asarray(value).dtype, shape)
                files[name][i] = value
        for array in files.values():
            array.flush()
        for name, value in (shared or {}).items():
            np.save(aside / f"{name}.npy", value)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    aside.rename(directory)
