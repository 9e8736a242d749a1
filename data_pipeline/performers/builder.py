"""The synthetic performers as a TFDS data set in ArrayRecord files, written and read without TensorFlow."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from data_pipeline.performers.clip import clip_seed, frames_of, make_clip, render_job, start_worker
from data_pipeline.schema import LIFE, PARAMS, REFERENCES, REGIONS

SPLITS = ("train", "held_out")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Performers(tfds.core.GeneratorBasedBuilder):
    """Clips of synthetic performers; see ``clip.make_clip`` for the fields. Splits: train and held_out."""

    VERSION = tfds.core.Version("1.1.0")
    # Nothing is downloaded; TFDS would look for checksums through importlib_resources, which it does not require.
    code_path = None
    url_infos: dict = {}

    def __init__(
        self,
        clips: int = 1,
        held_out: int = 0,
        seed: int = 0,
        seconds: float = 4.0,
        workers: int = 1,
        from_rest: bool = False,
        **rest,
    ):
        self.counts = {"train": clips, "held_out": held_out}
        self.seed, self.seconds, self.workers, self.from_rest = seed, seconds, workers, from_rest
        super().__init__(file_format="array_record", **rest)

    def _info(self) -> tfds.core.DatasetInfo:
        blob = tfds.features.Scalar(np.object_)  # bytes as they are
        features = {
            "video": blob,
            "speak": tfds.features.Tensor(shape=(None,), dtype=np.int16),
            "listen": tfds.features.Tensor(shape=(None,), dtype=np.int16),
            "params": tfds.features.Tensor(shape=(None, len(PARAMS)), dtype=np.float32),
            "life": tfds.features.Tensor(shape=(None, len(LIFE)), dtype=np.float32),
            "states": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "regions": tfds.features.Tensor(shape=(None, len(REGIONS), 4), dtype=np.float32),
            "references": tfds.features.Tensor(shape=(len(REFERENCES),), dtype=np.object_),
            "seed": tfds.features.Scalar(np.int64),
        }
        names = ("prompt", "kind", "character", "phonemes", "events", "voice", "intention")
        features |= {name: tfds.features.Text() for name in names}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Synthetic performers who speak, listen and idle, with exact ground truth.",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in SPLITS if self.counts[split]}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        count = self.counts[split]
        held_out = split == "held_out"
        jobs = [(clip_seed(self.seed, split, i), self.seconds, held_out, self.from_rest) for i in range(count)]
        for i, record in enumerate(told(in_workers(render_job, jobs, self.workers), count, split)):
            yield f"{i:07d}", record


def in_workers(job: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> Iterator[Any]:
    """What ``job`` returns for each of ``jobs``, in their order, from ``workers`` processes (1: from this one)."""
    if workers <= 1:
        start_worker()
        yield from map(job, jobs)
        return
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # read when a worker imports NumPy
    try:
        with multiprocessing.get_context("spawn").Pool(workers, start_worker) as pool:
            yield from pool.imap(job, jobs, chunksize=2)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def told(records: Iterator[dict[str, Any]], count: int, split: str) -> Iterator[dict[str, Any]]:
    """A bar on a terminal, a plain line for every tenth elsewhere."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(records, total=count, desc=split, unit="clip")
        return
    begin, step = time.monotonic(), max(1, count // 10)
    for i, record in enumerate(records, 1):
        yield record
        if i % step == 0 or i == count:
            rate = i / (time.monotonic() - begin)
            left = (count - i) / rate
            print(f"{split}: {i}/{count} clips, {rate:.1f} a second, {left:.0f} s left", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _shuffle_without_tensorflow() -> Iterator[None]:
    """Past 1 GB the writer of TFDS shuffles through files, which it opens with ``tf.io.gfile``: give it plain ones."""
    gfile = types.SimpleNamespace(GFile=open, exists=os.path.exists, remove=os.remove)
    before = shuffle.tf, shuffle.BUCKETS_NUMBER
    shuffle.tf = types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile))
    shuffle.BUCKETS_NUMBER = 100  # files open at once
    try:
        yield
    finally:
        shuffle.tf, shuffle.BUCKETS_NUMBER = before


def build(
    out: Path,
    clips: int,
    held_out: int = 0,
    seed: int = 0,
    seconds: float = 4.0,
    workers: int = 1,
    from_rest: bool = False,
) -> Path:
    """Render a data set below ``out`` and return its folder. It appears there only when it is whole.

    Raises FileExistsError where ``out`` already holds one.
    """
    tfds.disable_progress_bar()
    args = {"clips": clips, "held_out": held_out, "seed": seed, "seconds": seconds, "workers": workers}
    builder = Performers(data_dir=str(out), from_rest=from_rest, **args)
    target = Path(builder.data_dir)
    if target.exists():
        raise FileExistsError(f"{out}: expected no data set yet, found one of version {builder.version}")
    for stale in target.parent.glob(f"{target.name}.incomplete*"):  # of a build that was stopped
        shutil.rmtree(stale, ignore_errors=True)
    config = tfds.download.DownloadConfig(try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP)
    quiet = contextlib.redirect_stdout(io.StringIO())  # TFDS speaks of downloads; there are none
    with tempfile.TemporaryDirectory() as unused, quiet, _shuffle_without_tensorflow():
        builder.download_and_prepare(download_dir=unused, download_config=config)
    return target


def open_split(folder: str | Path, split: str = "train") -> Sequence[dict[str, Any]]:
    """A split as a random-access source for Grain. Text comes back as bytes (TFDS's habit).

    Raises FileNotFoundError, in one line, where ``folder`` holds no data set, and ValueError for an unknown split.
    """
    found = sorted(Path(folder).glob("performers/*/dataset_info.json"))
    if (Path(folder) / "dataset_info.json").is_file():
        found = [Path(folder) / "dataset_info.json"]
    if not found:
        command = f"python -m data_pipeline.performers --out {folder} --clips 100 --held-out 16"
        raise FileNotFoundError(f"{folder}: expected a data set of performers, found none (make one: {command})")
    builder = tfds.builder_from_directory(str(found[-1].parent))
    if split not in builder.info.splits:
        raise ValueError(f"{folder}: expected one of the splits {sorted(builder.info.splits)}, found {split!r}")
    return builder.as_data_source(split)


def contact_sheet(records: Sequence[dict[str, Any]], columns: int = 8) -> np.ndarray:
    """One row of ``columns`` evenly spaced frames for each record, uint8 ``[rows * height, columns * width, 3]``."""
    rows = []
    for record in records:
        frames = frames_of(record)
        rows.append(np.concatenate(list(frames[np.linspace(0, len(frames) - 1, columns).astype(int)]), axis=1))
    return np.concatenate(rows, axis=0)


__all__ = ["SPLITS", "Performers", "build", "contact_sheet", "make_clip", "open_split"]
