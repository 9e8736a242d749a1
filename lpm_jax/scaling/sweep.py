"""The runs of a study: which there are, training each once, and what is known of it then.

A run is a config, a number of steps with a schedule of its own (a cosine cut short is no result) and a seed. It trains
from scratch in ``WORKDIR/scaling/NAME-STEPS-SEED``, whose ``vae`` and ``latents`` are links to those of ``WORKDIR``. A
killed run resumes as any training does; a finished one is kept with its losses in ``held_out.json``.
"""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from lpm_jax.checkpoint import load_weights, write_json
from lpm_jax.config import Config, TrainConfig, VAEConfig
from lpm_jax.errors import InputError
from lpm_jax.models import conditions
from lpm_jax.options import from_dict, override
from lpm_jax.scaling import count, evaluate
from lpm_jax.training import stages

#: What may differ between two runs that count as the same: nothing of the result depends on it.
NEUTRAL = ("log_every", "save_every", "validate_every", "keep", "data_threads", "unroll")
#: Of ``config.train`` and ``config.dit``, what the results say of each run besides what it cost.
TOLD = ("batch", "latents", "token_keep", "optimizer", "learning_rate", "weight_decay", "warmup", "ema", "dtype")
SHAPE = ("depth", "width", "heads", "ffn")


def plan(configs: list[Config], stage: str, steps: list[int], rest: list[str], most: float | None) -> list[Config]:
    """Every run's config, stage and overrides applied, by rising cost; runs of more than ``most`` operations are left
    out.

    Raises:
      InputError: configs that cannot be compared, a stage that is no diffusion stage, or a bad option.
    """
    first = configs[0]
    for config in configs:
        if not isinstance(config.vae, VAEConfig) or stage in ("vae", "audio", "lips"):
            raise InputError(f"{config.name}: expected a diffusion stage of the toy's latents, found {stage}")
        if _space(config) != _space(first):
            raise InputError(f"{config.name}: expected the latent space and the data of {first.name}, found others")
    names = [config.name for config in configs]
    if len(set(names)) < len(names):
        raise InputError(f"configs: expected different names, found {', '.join(names)}")
    runs = []
    for config in configs:
        config = override(config.for_stage(stage), rest)
        for number in steps:
            train = dataclasses.replace(config.train, steps=number, init="scratch", validate_every=number, keep=1)
            run = dataclasses.replace(config, train=train)
            if most is None or count.cost(run, stage).flops <= most:
                runs.append(run)
    if not runs:
        raise InputError(f"--max-flops: expected room for a run, found {most:.3g}")
    return sorted(runs, key=lambda run: count.cost(run, stage).flops)


def _space(config: Config) -> tuple:
    text, audio = (dataclasses.replace(part, width=0) for part in (config.text, config.audio))
    return config.size, config.data, config.vae, text, audio, config.dit.channels, config.dit.patch


def directory(workdir: Path, config: Config) -> Path:
    """Where a run trains."""
    return Path(workdir) / "scaling" / f"{config.name}-{config.train.steps}-{config.train.seed}"


def prepare(workdir: Path, runs: list[Config], stage: str) -> None:
    """Makes every run's folder, before any of them trains.

    Raises:
      InputError: there is no autoencoder, or a folder holds a run with other settings.
    """
    workdir = Path(workdir)
    if not (workdir / "vae" / "weights").is_dir():
        raise InputError(f"--workdir {workdir}: expected the weights of stage vae in it, found none")
    for config in runs:
        _same_run(directory(workdir, config) / stage, config)
    (workdir / "latents").mkdir(exist_ok=True)
    for config in runs:
        folder = directory(workdir, config)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("vae", "latents", "audio", "lips"):
            if (workdir / name).exists() and not (folder / name).exists():
                (folder / name).symlink_to(Path("..", "..", name), target_is_directory=True)


def _same_run(folder: Path, config: Config) -> None:
    """Refuses a folder whose run was another one."""
    path = folder / "config.json"
    if not path.is_file():
        return
    old, new = (_essence(c) for c in (from_dict(json.loads(path.read_text())), config))
    for name in new:
        if old[name] != new[name]:
            raise InputError(
                f"{folder}: expected a run with {name} {new[name]}, found {old[name]}; take another --workdir"
            )


def _essence(config: Config) -> dict[str, Any]:
    """Every setting that a result depends on, ``{"train.batch": 8}``."""
    usual = TrainConfig()
    train = dataclasses.replace(config.train, **{name: getattr(usual, name) for name in NEUTRAL})
    flat = {}
    for name, value in dataclasses.asdict(dataclasses.replace(config, train=train, stages={}, data="")).items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def run(config: Config, stage: str, workdir: Path, draws: int) -> tuple[dict[str, Any], bool]:
    """Trains and evaluates one run, or finds that done: what is known of it, and whether anything was left to do."""
    folder = directory(workdir, config)
    path = folder / stage / "held_out.json"
    if path.is_file():
        known = json.loads(path.read_text())
        if known["draws"] == draws:
            return known, False
    else:
        stages.run(stage, config, folder)
    params = load_weights(folder / stage / "weights", "model", conditions.abstract(config))
    losses = evaluate.losses(config, stage, params, evaluate.held_out(config, folder), draws)
    known = describe(config, stage, folder) | {
        "draws": draws,
        "loss": float(losses.mean()),
        "standard_error": float(losses.std(ddof=1) / len(losses) ** 0.5) if len(losses) > 1 else None,
        "clips": [round(float(loss), 5) for loss in losses],
    }
    write_json(path, known)
    gc.collect()  # compiled steps hold on to their arrays
    return known, True


def describe(config: Config, stage: str, folder: Path) -> dict[str, Any]:
    """A run's settings, counts and times."""
    device = jax.devices()
    facts = {"name": config.name, "stage": stage, "steps": config.train.steps, "seed": config.train.seed}
    return (
        facts
        | settings(config)
        | count.cost(config, stage)._asdict()
        | times(folder / stage / "metrics.jsonl")
        | {"device": f"{len(device)} {device[0].device_kind}"}
    )


def settings(config: Config) -> dict[str, Any]:
    """What the results say of how a run trained."""
    return {name: getattr(config.train, name) for name in TOLD} | {name: getattr(config.dit, name) for name in SHAPE}


def times(path: Path) -> dict[str, float | None]:
    """Seconds of all training steps, compilation among them, and of the median step, from the run's curve."""
    seconds, each, before = 0.0, [], 0
    for line in path.read_text().splitlines() if path.is_file() else []:
        record = json.loads(line)
        step = record.get("speed/seconds_per_step", record.get("seconds_per_step"))  # the latter in older curves
        if step is not None:
            seconds += step * (record["step"] - before)
            before = record["step"]
            each.append(step)
    if not each:
        return {"seconds": None, "seconds_per_step": None}
    return {"seconds": round(seconds, 1), "seconds_per_step": round(sorted(each)[len(each) // 2], 4)}


def sweep(
    runs: list[Config], stage: str, workdir: Path, draws: int, done: Callable[[dict[str, Any], bool], None]
) -> None:
    """All ``runs`` in order; ``done`` hears of each what :func:`run` says."""
    prepare(workdir, runs, stage)
    for config in runs:
        done(*run(config, stage, workdir, draws))
