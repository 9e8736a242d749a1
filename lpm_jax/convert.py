"""Weights in and out: Wan 2.1's transformer as an LPM, and an LPM as a diffusers transformer.

    python -m lpm_jax.convert wan SRC DST         SRC: Wan's own directory, or diffusers' with transformer/
    python -m lpm_jax.convert export SRC DST      SRC: a model that ``wan``, ``Pipeline.save`` or a run wrote

Everything is derived from a mapping of our paths to PyTorch keys (``mapping.py``, ``models/dit_names.py``). Our arrays,
stacked over layers, are written or filled on the devices one layer at a time: host memory holds one PyTorch tensor,
whatever the size of the model. An imported LPM has a fresh audio branch whose values are zero: without references it
gives Wan's own output.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from lpm_jax import tensors
from lpm_jax.checkpoint import write_json
from lpm_jax.config import AudioConfig, Config, DiTConfig, TextConfig, from_dict, load_config
from lpm_jax.errors import ArgumentParser, InputError, run_door
from lpm_jax.mapping import Leaf, Names, load, plan, read_row, spell, theirs_shape
from lpm_jax.models import dit, dit_names
from lpm_jax.tensors import Target, Tensor, flatten

WAN = "diffusion_pytorch_model"  # stem of Wan's and diffusers' files
AUDIO = "lpm_audio"  # stem of the file that an export adds for what Wan does not have
OURS = "lpm_config.json"  # and of our config beside diffusers'
SHARD_BYTES = 4 * 10**9
CONFIGS = Path(__file__).parents[1] / "configs"


# ---- Wan 2.1


def _json(path: Path) -> dict:
    try:
        data = json.loads(path.read_text())
        if not isinstance(data, dict):
            raise ValueError("no object")
        return data
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON object, found {error}") from None


def wan_config(path: Path) -> Config:
    """Our config for the transformer that ``path``, Wan's or diffusers' ``config.json``, describes.

    One of ``configs/lpm_*.py`` where its transformer is the same; else the transformer's sizes and defaults.
    """
    data = _json(path)
    heads = data.get("num_heads", data.get("num_attention_heads"))
    try:
        width = data["dim"] if "dim" in data else heads * data["attention_head_dim"]
        sizes = dict(
            depth=data["num_layers"], width=width, heads=heads, ffn=data["ffn_dim"],
            channels=data.get("out_dim") or data.get("out_channels") or 16,
            patch=list(data.get("patch_size", [1, 2, 2]))[1],
            time_width=data.get("freq_dim", 256), text_width=data.get("text_dim", 4096), audio_width=width,
            eps=data.get("eps", 1e-6), prediction="velocity",
        )  # fmt: skip
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path}: expected the config of a Wan transformer, found no {error}") from None
    if sizes["depth"] % 2:
        raise InputError(f"{path}: num_layers: expected pairs of speak and listen blocks, found {sizes['depth']}")
    config = DiTConfig(**sizes)
    for known in sorted(CONFIGS.glob("lpm_*.py")):
        candidate = load_config(known)
        if candidate.dit == config:
            return candidate
    return Config(
        name="wan", dit=config, audio=AudioConfig(width=width), text=TextConfig(width=config.text_width, tokens=512)
    )


def _fingerprint(paths: list[Path], *options: Any) -> dict[str, str]:
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return {"source": hashlib.sha256(repr((stats, options)).encode()).hexdigest()}


def plan_wan(
    source: str | Path, config: Config | None = None, dtype: Any = None, seed: int = 0
) -> tuple[Config, dict[str, Leaf], list[Path]]:
    """What to read of a Wan directory: config, the leaves of ``dit.init``'s tree, and the files they lie in.

    Raises:
      InputError: the directory has no Wan transformer, or one that does not fit (see :func:`plan`).
    """
    source = Path(source)
    if not source.is_dir():
        raise InputError(f"{source}: expected Wan's directory, found {'a file' if source.exists() else 'nothing'}")
    folder = source / "transformer" if (source / "transformer").is_dir() else source
    paths = tensors.find_files(folder, WAN)
    if any(folder.glob(f"{AUDIO}-*.safetensors")):
        paths = paths + tensors.find_files(folder, AUDIO)
    if config is None:
        own = folder / OURS
        config = from_dict(_json(own)) if own.is_file() else wan_config(folder / "config.json")
    found = tensors.read_headers(paths)
    heard = any("audio_attn" in key for key in found)

    def fresh(path: str) -> Callable | None:
        if heard or not dit_names.AUDIO.match(path):
            return None
        return functools.partial(dit_names.fresh, path, seed=seed)

    names, shapes = dit_names.names(config.dit), _shapes(config.dit)
    leaves = plan(folder, found, names, shapes, fresh, dit_names.DROPPED.match, dtype)
    return config, leaves, paths


def _shapes(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    abstract = jax.eval_shape(lambda: dit.init(config, jax.random.key(0)))
    return {path: tuple(leaf.shape) for path, leaf in flatten(abstract).items()}


def load_wan(
    source: str | Path,
    config: Config | None = None,
    shardings: Callable[[str, tuple[int, ...]], Sharding] | None = None,
    dtype: Any = None,
    seed: int = 0,
) -> tuple[Config, dict]:
    """A Wan directory straight into device arrays: config and the parameters of ``models/dit.py``. See :func:`load`."""
    config, leaves, _ = plan_wan(source, config, dtype, seed)
    return config, load(leaves, shardings)


def import_wan(
    source: str | Path,
    destination: str | Path,
    config: Config | None = None,
    dtype: Any = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Writes a Wan transformer as ``model-*.safetensors`` (paths under ``dit/``) and ``config.json``.

    A killed import resumes where it was, and a second one writes nothing. ``config.json`` comes last: a directory
    without one is not a model. Nothing else in ``destination`` is touched.
    """
    source, destination = Path(source), Path(destination)
    if source.resolve() == destination.resolve():
        raise InputError(f"{destination}: expected another directory than the source, found the same")
    config, leaves, paths = plan_wan(source, config, dtype, seed)
    targets = {f"dit/{path}": leaf.target() for path, leaf in leaves.items()}
    metadata = _fingerprint(paths, dataclasses.asdict(config), str(dtype), seed)
    return _finish(destination, {"model": targets}, metadata, {"config.json": _plain(config)}, shard_bytes, progress)


def _plain(config: Config) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _finish(
    destination: Path, parts: dict, metadata: dict, documents: dict, limit: int, progress: Callable
) -> list[Path]:
    """Writes each stem's targets aside; when all are whole, moves them into place, documents last."""
    done, places, new = {}, {}, False
    for stem, targets in parts.items():
        done[stem], places[stem], written = tensors.write_shards(destination, stem, targets, metadata, limit, progress)
        new |= written
    for stem in parts:
        index = f"{stem}.safetensors.index.json"
        if index in documents:
            documents[index] = documents[index] | {"weight_map": places[stem]}
    first, last = destination / "config.json", dict(documents)
    if new and first.is_file():
        first.unlink()  # old description, new weights: not for a moment
    for stem, paths in done.items():
        tensors.publish(destination, stem, paths)
    last["config.json"] = last.pop("config.json")
    for name, data in last.items():
        path = destination / name
        if not path.is_file() or path.read_text() != json.dumps(data, indent=2) + "\n":
            write_json(path, data)
    aside = destination / tensors.ASIDE
    for stale in aside.iterdir():
        stale.unlink()
    aside.rmdir()
    return [path for paths in done.values() for path in paths]


# ---- the way back


def _back(tensor: Tensor, layer: int | None, name: Names, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    value = tensor.read() if layer is None else read_row(tensor, layer)
    value = value.reshape([shape[axis] for axis in name.permutation])
    yield value.transpose(np.argsort(name.permutation))


def export_wan(
    source: str | Path,
    destination: str | Path,
    dtype: Any = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Writes a model's transformer as diffusers' ``transformer/`` of text-to-video layout.

    Diffusers reads everything but the audio branch, which lies beside it (``lpm_audio-*.safetensors``) with our config
    for the way back. The encoders and the VAE of the model are not exported.

    Raises:
      InputError: ``source`` is no model, or its files do not fit its config.
    """
    source, folder = Path(source), Path(destination) / "transformer"
    if not (source / "config.json").is_file():
        raise InputError(f"{source}: expected a model with config.json, found none")
    config = from_dict(_json(source / "config.json"))
    paths = tensors.find_files(source, "model")
    found = {k.removeprefix("dit/"): t for k, t in tensors.read_headers(paths).items() if k.startswith("dit/")}
    names, shapes = dit_names.names(config.dit), _shapes(config.dit)
    whole = {path: Names((path,), tuple(range(len(shape)))) for path, shape in shapes.items()}
    plan(source, found, whole, shapes)  # complains about what does not fit
    parts: dict[str, dict[str, Target]] = {WAN: {}, AUDIO: {}}
    for path, name in names.items():
        tensor, stacked = found[path], "{" in name.keys[0]
        for layer in range(tensor.shape[0]) if stacked else [None]:
            shape = theirs_shape(name, tensor.shape[1:] if stacked else tensor.shape)
            target = Target(
                np.dtype(dtype or tensor.dtype), shape, functools.partial(_back, tensor, layer, name, shape)
            )
            parts[AUDIO if dit_names.AUDIO.match(path) else WAN][spell(name, layer or 0)[0]] = target
    d = config.dit
    theirs = {
        "_class_name": "WanTransformer3DModel", "patch_size": [1, d.patch, d.patch], "num_attention_heads": d.heads,
        "attention_head_dim": d.head_dim, "in_channels": d.channels, "out_channels": d.channels,
        "text_dim": d.text_width, "freq_dim": d.time_width, "ffn_dim": d.ffn, "num_layers": d.depth,
        "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": d.eps, "image_dim": None,
        "added_kv_proj_dim": None, "rope_max_seq_len": 1024, "pos_embed_seq_len": None,
    }  # fmt: skip
    total = sum(target.nbytes for target in parts[WAN].values())
    index = {"metadata": {"total_size": total}}
    documents = {f"{WAN}.safetensors.index.json": index, OURS: _plain(config), "config.json": theirs}
    metadata = {"format": "pt", **_fingerprint(paths, str(dtype))}
    return _finish(folder, parts, metadata, documents, shard_bytes, progress)


def main() -> None:
    parser = ArgumentParser("python -m lpm_jax.convert", description="Wan 2.1 weights in, diffusers weights out.")
    doors = parser.add_subparsers(dest="door", required=True)
    for door, text in (("wan", "import Wan 2.1's transformer"), ("export", "write a transformer for diffusers")):
        sub = doors.add_parser(door, help=text, description=text)
        sub.add_argument("source", metavar="SRC", type=Path)
        sub.add_argument("destination", metavar="DST", type=Path)
        sub.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: as in SRC")
        if door == "wan":
            sub.add_argument("--config", type=Path, help="our config file; default: from SRC's config.json")
            sub.add_argument("--seed", type=int, default=0, help="of the fresh audio keys and outputs")
    args = parser.parse_args()
    dtype = None if args.dtype is None else jax.numpy.dtype(args.dtype)
    say = functools.partial(print, flush=True)
    if args.door == "wan":
        config = load_config(args.config) if args.config else None
        paths = import_wan(args.source, args.destination, config, dtype, args.seed, progress=say)
    else:
        paths = export_wan(args.source, args.destination, dtype, progress=say)
    print(f"{len(paths)} files, {sum(path.stat().st_size for path in paths) / 1e9:.2f} GB in {paths[0].parent}")


if __name__ == "__main__":
    run_door(main)
