"""The teacher's samples, kept: for windows of the training clips, where its flow goes from noise to a clean latent.

``online.ode`` and ``online.dmd_off`` read them many times, and they cost many evaluations: they are made once, on the
run's mesh, and kept as memory-mapped arrays like the latents (``latents.py``), in a folder whose name is a fingerprint
of the teacher and of how it was sampled; it is written aside and renamed when whole.

A row is a window as the loader makes it, with the teacher's sample for ``latents``, and ``states``: the trajectory at
each level that the student runs at.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data_pipeline.loader import EPOCHS, Rows
from lpm_jax import distributed, sharding
from lpm_jax.base.sampler import Guided, levels
from lpm_jax.checkpoint import digest
from lpm_jax.config import Config
from lpm_jax.models import dit
from lpm_jax.progress import progress
from lpm_jax.training.distill import guided, in_dtype, judge_window
from lpm_jax.training.latents import folder_aside


def grid(config: Config) -> Float[np.ndarray, " n"]:
    """The sampler's noise levels from 1 to 0, and those that are kept."""
    return np.unique(np.concatenate([levels(config.sample), np.float32(config.stream.levels)]))[::-1]


def trajectory(config: Config, params: dict, batch: dict, key: Array) -> tuple[Array, Array]:
    """A window's end ``[b, frames, h, w, c]`` and its states ``[b, levels, frames, h, w, c]``."""
    steps = grid(config)
    b, frames = batch["latents"].shape[:2]
    denoise = Guided(guided(config), in_dtype(config, params), judge_window(config, batch), frames)
    shape = dit.patchify(config.dit, batch["latents"]).shape
    noise = jax.random.normal(key, shape)

    def step(x: Array, pair: Array) -> tuple[Array, Array]:
        now, then = pair
        clean = denoise(x, jnp.full((b, frames), now))
        return clean + (then / now) * (x - clean), x

    pairs = jnp.stack([jnp.asarray(steps[:-1]), jnp.asarray(steps[1:])], axis=1)
    end, passed = jax.lax.scan(step, noise, pairs)
    at = [int(np.argmin(np.abs(steps - level))) for level in config.stream.levels]
    states = jnp.stack([dit.unpatchify(config.dit, passed[i], *config.cells) for i in at], axis=1)
    return dit.unpatchify(config.dit, end, *config.cells), states


class TrajectorySource:
    """Random access to the rows."""

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self.arrays = {p.stem: np.load(p, mmap_mode="r") for p in sorted(self.directory.glob("*.npy"))}

    def __len__(self) -> int:
        return len(self.arrays["latents"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: np.asarray(array[index]) for name, array in self.arrays.items()}

    def __repr__(self) -> str:  # as LatentSource's
        return f"TrajectorySource({self.directory.name}, {len(self)})"


def batches(
    source: TrajectorySource, *, batch: int, seed: int, threads: int, rows: tuple[int, ...] | None = None
) -> grain.IterDataset:
    """Endless shuffled batches; of ``rows`` of them if given."""
    data = grain.MapDataset.source(source).seed(seed).shuffle().repeat(EPOCHS)
    size = batch if rows is None else len(rows)
    data = data if rows is None or size == batch else Rows(data, batch, rows)
    return data.batch(size).to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * size))


def fingerprint(config: Config, teacher: dict, source: str) -> str:
    """Ten hexadecimal digits of the teacher's weights, the windows (``source``) and how they are sampled."""
    distill = config.distill
    how = (source, config.train.seed, distill.windows, distill.text_scale, distill.audio_scale, grid(config).tolist())
    return hashlib.sha256(repr((digest(teacher), how)).encode()).hexdigest()[:10]


def build(config: Config, teacher: dict, axes: dict, data, source: str, workdir: Path) -> Path:
    """The folder of trajectories, made if it isn't there. ``data(rows)`` makes the batches of windows."""
    directory = Path(workdir) / "trajectories" / fingerprint(config, teacher, source)
    if not distributed.everywhere(directory.is_dir()):
        _sample(config, teacher, axes, data, directory)
    return directory


def _sample(config: Config, teacher: dict, axes: dict, data, directory: Path) -> None:
    size, count = config.train.batch, config.distill.windows
    mesh = sharding.make_mesh(config.mesh)
    spread, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    params = distributed.place(teacher, sharding.shardings(mesh, axes, teacher))
    iterator = iter(data(distributed.batch_rows(spread, size)))
    run = jax.jit(lambda params, batch, key: trajectory(config, params, batch, key), out_shardings=spread)
    root = distributed.place(jax.random.key(config.train.seed), everywhere)
    files: dict[str, np.memmap] = {}
    if distributed.primary():
        aside = folder_aside(directory)
    for at in progress(range(0, count, size), "teacher's samples"):
        window = distributed.put_batch(next(iterator), spread)
        with sharding.on(mesh):
            end, states = run(params, window, jax.random.fold_in(root, at))
        rows = distributed.fetch(window | {"latents": end, "states": states}, keep=distributed.primary())
        for name, values in rows.items() if distributed.primary() else ():
            if name in ("latents", "states"):
                values = values.astype(np.float16)
            if name not in files:
                path, shape = aside / f"{name}.npy", (count, *values.shape[1:])
                files[name] = np.lib.format.open_memmap(path, "w+", values.dtype, shape)
            files[name][at : at + size] = values[: count - at]
    getattr(iterator, "close", lambda: None)()
    if distributed.primary():
        for array in files.values():
            array.flush()
        aside.rename(directory)
    distributed.barrier("trajectories")
