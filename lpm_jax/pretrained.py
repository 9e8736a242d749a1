"""A model's directory: ``config.json``, and the safetensors files of its parts.

    model-*   the transformer, what brings sound to it, and the small encoders that were trained with it
    text-*    umT5      audio-*   wav2vec 2.0      (large models only; with text- comes ``tokenizer.json``)
    vae-*     the video VAE
    refiner-* the Refiner, a second transformer (where ``stream.refine`` says that there is one)

Weights go straight to devices, in the files' dtype unless another is asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Sharding

from lpm_jax import mapping
from lpm_jax.checkpoint import save_weights, write_json
from lpm_jax.config import Config
from lpm_jax.errors import InputError
from lpm_jax.models import conditions, umt5, vae, wav2vec
from lpm_jax.options import from_dict

BUNDLED = Path(__file__).parent / "assets"


def parts(config: Config) -> dict[str, dict]:
    """The files' stems and the shapes of what they hold. ``model`` is the top of the tree, others a branch of it."""
    found = {"model": conditions.abstract(config), "vae": vae.abstract(config.vae)}
    if config.stream.refine:
        found["refiner"] = found["model"]["dit"]
    if config.text.umt5:
        found["text"] = umt5.abstract(config.text.umt5)
    if config.audio.wav2vec:
        found["audio"] = wav2vec.abstract(config.audio.wav2vec)
    return found


def locate(name_or_dir: str | Path) -> Path:
    """The directory of a bundled model's name, or the directory itself.

    Raises:
      InputError: there is no such model.
    """
    directory = Path(name_or_dir)
    if not (directory / "config.json").is_file():  # such as a run's folder of a bundled model's name
        directory = BUNDLED / str(name_or_dir)
    if not (directory / "config.json").is_file():
        bundled = sorted(p.parent.name for p in BUNDLED.glob("*/config.json"))
        raise InputError(
            f"--model {name_or_dir}: expected a bundled model ({', '.join(bundled)}) or a folder with config.json"
        )
    return directory


def read_config(directory: Path) -> Config:
    """The config of a model's directory.

    Raises:
      InputError: ``config.json`` is not a model's.
    """
    path = directory / "config.json"
    try:
        return from_dict(json.loads(path.read_text()))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:  # neither JSON nor UTF-8
        raise InputError(f"{path}: expected a model's config, found {error}") from None


def load(
    name_or_dir: str | Path,
    dtype: Any = None,
    shardings: Callable[[str, tuple[int, ...]], Sharding] | None = None,
    only: Collection[str] | None = None,
) -> tuple[Config, dict]:
    """Config and parameters ``{"dit", "speak", "listen", "prior", "text", "vae"[, "audio", "warp"]}`` on devices.

    ``dtype`` None keeps the files'. ``shardings(path, shape)`` says where an array lives, such as ``"vae/scale"``;
    None: on the first device. ``only`` names the files' stems that are read; None: all.

    Raises:
      InputError: there is no such model, or its files do not fit its config (named with what was expected).
    """
    directory = locate(name_or_dir)
    config = read_config(directory)
    params: dict = {}
    for stem, abstract in parts(config).items():
        if only is not None and stem not in only:
            continue
        where = shardings and functools.partial(_inside, shardings, "" if stem == "model" else f"{stem}/")
        tree = mapping.load(mapping.saved_leaves(directory, stem, abstract, dtype), where)
        params |= tree if stem == "model" else {stem: tree}
    return config, params


def _inside(shardings: Callable, branch: str, path: str, shape: tuple[int, ...]) -> Sharding:
    return shardings(branch + path, shape)


def save(directory: str | Path, config: Config, params: dict, dtype: Any = jnp.bfloat16) -> None:
    """Writes a model's directory; files are written aside and renamed, ``config.json`` last."""
    params = dict(params)
    branches = [stem for stem in parts(config) if stem != "model"]
    for stem in branches:
        save_weights(directory, stem, params.pop(stem), dtype)
    save_weights(directory, "model", params, dtype)
    write_json(Path(directory) / "config.json", dataclasses.asdict(config))
