"""Weights in and out: Wan 2.1 with its encoders as an LPM, and an LPM as a diffusers transformer.

    python -m lpm_jax.convert wan SRC DST         SRC: Wan's own directory, or diffusers' with transformer/
    python -m lpm_jax.convert vae SRC DST         adds Wan's VAE to the model in DST
    python -m lpm_jax.convert text SRC DST        adds umT5 and its tokenizer
    python -m lpm_jax.convert audio SRC DST       adds wav2vec 2.0
    python -m lpm_jax.convert export SRC DST      SRC: a model that ``wan``, ``Pipeline.save`` or a run wrote

``wan`` takes the VAE and umT5 along where SRC has them, and any part named by ``--vae``, ``--text`` or ``--audio``.

Everything is derived from a mapping of our paths to PyTorch keys (``mapping.py``, ``models/*.py``). Our arrays, stacked
over layers, are written or filled on the devices one layer at a time: host memory holds one PyTorch tensor, whatever
the size of the model. An imported LPM has a fresh audio branch whose values are zero: without references it gives Wan's
own output.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from lpm_jax import pretrained, tensors
from lpm_jax.config import (
    AudioConfig,
    Config,
    DiTConfig,
    TextConfig,
    UMT5Config,
    WanVAEConfig,
    Wav2VecConfig,
)
from lpm_jax.convert_files import Stem, description, fingerprint, finish, plain, read_json
from lpm_jax.convert_parts import PARTS, TOKENIZER, Planned, find_part, find_tokenizer, offered, plan_part
from lpm_jax.errors import ArgumentParser, InputError, run_door
from lpm_jax.mapping import Leaf, Names, as_stored, load, plan, read_row, spell, theirs_shape
from lpm_jax.models import conditions, dit, dit_names
from lpm_jax.options import from_dict, load_config
from lpm_jax.tensors import Target, Tensor, flatten

WAN = "diffusion_pytorch_model"  # stem of Wan's and diffusers' files
AUDIO = "lpm_audio"  # stem of the file that an export adds for what Wan does not have
OURS = "lpm_config.json"  # and of our config beside diffusers'
SHARD_BYTES = 4 * 10**9
ADAPTERS = ("speak/in/kernel", "listen/in/kernel")  # what depends on the width of sound's features
CONFIGS = Path(__file__).parents[1] / "configs"


# ---- Wan 2.1


def wan_config(path: Path) -> Config:
    """Our config for the transformer that ``path``, Wan's or diffusers' ``config.json``, describes.

    One of ``configs/lpm_*.py`` where its transformer is the same; else the transformer's sizes, and of the parts beside
    it the published ones until they are converted.
    """
    data = read_json(path)
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
        name="wan", dit=config, vae=WanVAEConfig(), audio=AudioConfig(width=width, wav2vec=Wav2VecConfig()),
        text=TextConfig(width=config.text_width, tokens=512, umt5=UMT5Config(width=config.text_width)),
    )  # fmt: skip


def _folder(source: Path) -> Path:
    if not source.is_dir():
        raise InputError(f"{source}: expected Wan's directory, found {'a file' if source.exists() else 'nothing'}")
    return source / "transformer" if (source / "transformer").is_dir() else source


def source_config(source: str | Path) -> Config:
    """Our config for a Wan directory: that of the export which it is, or :func:`wan_config`'s."""
    folder = _folder(Path(source))
    own = folder / OURS
    return from_dict(read_json(own)) if own.is_file() else wan_config(folder / "config.json")


def plan_wan(
    source: str | Path, config: Config | None = None, dtype: Any = None, seed: int = 0
) -> tuple[Config, dict[str, Leaf], list[Path]]:
    """What to read of a Wan directory: config, the leaves of ``conditions.init``'s tree, and the files they lie in.

    What the files lack of it is fresh: Wan has no audio branch and nothing that brings sound to it, an export has.

    Raises:
      InputError: the directory has no Wan transformer, or one that does not fit (see :func:`plan`).
    """
    folder = _folder(Path(source))
    paths = tensors.find_files(folder, WAN)
    if any(folder.glob(f"{AUDIO}-*.safetensors")):
        paths = paths + tensors.find_files(folder, AUDIO)
    config = config or source_config(source)
    found = tensors.read_headers(paths)
    heard = any("audio_attn" in key for key in found)
    small = _small_shapes(config)

    def fresh(path: str) -> Callable | None:
        if path in small:  # an adapter whose features are of another width is fresh too
            kept = path in found and (found[path].shape == small[path] or path not in ADAPTERS)
            return None if kept else lambda layer, shape: _small(config, seed)[path]
        if heard or not dit_names.AUDIO.match(path):
            return None
        return functools.partial(dit_names.fresh, path, seed=seed)

    def dropped(key: str) -> Any:
        return key in small or dit_names.DROPPED.match(key)

    names, shapes = dit_names.names(config.dit) | as_stored(small), _shapes(config.dit) | small
    leaves = plan(folder, found, names, shapes, fresh, dropped, dtype)
    return config, {path if path in small else f"dit/{path}": leaf for path, leaf in leaves.items()}, paths


def _shapes(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    abstract = jax.eval_shape(lambda: dit.init(config, jax.random.key(0)))
    return {path: tuple(leaf.shape) for path, leaf in flatten(abstract).items()}


def _small_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    abstract = jax.eval_shape(lambda: conditions.init_small(config, jax.random.key(0)))
    return {path: tuple(leaf.shape) for path, leaf in flatten(abstract).items()}


@functools.lru_cache(maxsize=1)
def _small(config: Config, seed: int) -> dict[str, np.ndarray]:
    """Fresh values of everything in stem ``model`` but the transformer: adapters and prior, under 1 % of it."""
    return {k: np.asarray(v) for k, v in flatten(conditions.init_small(config, jax.random.key(seed))).items()}


def load_wan(
    source: str | Path,
    config: Config | None = None,
    shardings: Callable[[str, tuple[int, ...]], Sharding] | None = None,
    dtype: Any = None,
    seed: int = 0,
) -> tuple[Config, dict]:
    """A Wan directory straight into device arrays: config and the parameters of ``models/dit.py``. See :func:`load`."""
    config, leaves, _ = plan_wan(source, config, dtype, seed)
    found = {path.removeprefix("dit/"): leaf for path, leaf in leaves.items() if path.startswith("dit/")}
    return config, load(found, shardings)


def import_wan(
    source: str | Path,
    destination: str | Path,
    config: Config | None = None,
    dtype: Any = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[str], None] = lambda line: None,
    given: Mapping[str, str | Path] | None = None,
    tokenizer: str | Path | None = None,
) -> list[Path]:
    """Writes a Wan as a model's directory: ``model-*.safetensors``, the parts that there are, and ``config.json``.

    Parts are those ``given`` (``{"vae", "text", "audio"}`` to what :func:`add_part` reads) and those that ``source``
    has beside its transformer. What ``destination`` already has of the others stays, with its section of the config
    where that fits.

    A killed import resumes where it was, and a second one writes nothing. ``config.json`` comes last: a directory
    without one is not a model.
    """
    source, destination = _apart(source, destination)
    config = config or source_config(source)
    given = {kind: Path(path) for kind, path in (given or {}).items()}
    tokenizer = None if tokenizer is None else Path(tokenizer)
    stems, copies = {}, {}
    for kind, part in PARTS.items():
        if kind in given or _along(kind, source, tokenizer):
            planned = plan_part(kind, given.get(kind, source), config, dtype, tokenizer)
            config, stems[kind] = planned.config, _stem(planned, dtype)
            copies |= _copies(planned)
        elif any(destination.glob(f"{kind}-*.safetensors")) and description(destination):
            there = part.get(pretrained.read_config(description(destination).parent))
            if isinstance(there, type(part.default)):
                with contextlib.suppress(InputError):  # of a model with another transformer
                    config = part.put(config, there, str(destination))
    _, leaves, paths = plan_wan(source, config, dtype, seed)
    model = {path: leaf.target() for path, leaf in leaves.items()}
    stems = {"model": (model, fingerprint(paths, str(dtype), seed))} | stems
    return finish(destination, stems, {"config.json": plain(config)}, shard_bytes, progress, copies)


def _along(kind: str, source: Path, tokenizer: Path | None) -> bool:
    """Whether a part lies in the source, all that it needs included."""
    if not offered(kind, source):
        return False
    return kind != "text" or find_tokenizer(find_part(kind, source)[0].parent, tokenizer) is not None


# ---- parts


def add_part(
    kind: str,
    source: str | Path,
    destination: str | Path,
    dtype: Any = None,
    tokenizer: str | Path | None = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Adds (or replaces) ``"vae"``, ``"text"`` or ``"audio"`` of the model in ``destination``.

    Where features of sound get another width, the first layer of both adapters is drawn anew from ``seed``, as ``wan``
    draws it; nothing else of the model is touched.

    Raises:
      InputError: ``destination`` is no model, or :func:`plan_part` refuses ``source``.
    """
    source, destination = _apart(source, destination)
    path = description(destination)
    if path is None:
        raise InputError(
            f"{destination}: expected a model's config.json (python -m lpm_jax.convert wan makes one), found none"
        )
    tokenizer = None if tokenizer is None else Path(tokenizer)
    planned = plan_part(kind, source, pretrained.read_config(path.parent), dtype, tokenizer)
    exchanged: dict[Path, dict[str, Target]] = {}
    if kind == "audio":
        found = tensors.read_headers(tensors.find_files(destination, "model"))
        shapes = _small_shapes(planned.config)
        for key in ADAPTERS:
            if key not in found:
                raise InputError(
                    f"{destination}: {key}: expected {list(shapes[key])}, found no such tensor; run wan again"
                )
            if found[key].shape != shapes[key]:
                draw = functools.partial(_drawn, planned.config, seed, key)
                exchanged.setdefault(found[key].path, {})[key] = Target(found[key].dtype, shapes[key], draw)
    documents, stems = {"config.json": plain(planned.config)}, {kind: _stem(planned, dtype)}
    return finish(destination, stems, documents, shard_bytes, progress, _copies(planned), exchanged)


def _drawn(config: Config, seed: int, key: str) -> Iterator[np.ndarray]:
    yield _small(config, seed)[key]


def missing(directory: str | Path) -> list[str]:
    """A line for each part that a model's directory still lacks, with the command that adds it."""
    directory = Path(directory)
    return [
        f"{directory} has no {stem}-*.safetensors yet ({PARTS[stem].title}): "
        f"python -m lpm_jax.convert {stem} SRC {directory}"
        for stem in pretrained.parts(pretrained.read_config(directory))
        if stem in PARTS and not any(directory.glob(f"{stem}-*.safetensors"))
    ]


def _stem(planned: Planned, dtype: Any) -> Stem:
    return {path: leaf.target() for path, leaf in planned.leaves.items()}, fingerprint(planned.paths, str(dtype))


def _copies(planned: Planned) -> dict[str, Path]:
    return {TOKENIZER: planned.tokenizer} if planned.tokenizer else {}


def _apart(source: str | Path, destination: str | Path) -> tuple[Path, Path]:
    source, destination = Path(source), Path(destination)
    if source.resolve() == destination.resolve():
        raise InputError(f"{destination}: expected another directory than the source, found the same")
    return source, destination


# ---- the way back


def _back(tensor: Tensor, layer: int | None, name: Names, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    value = tensor.read() if layer is None else read_row(tensor, layer)
    value = value.reshape([shape[axis] for axis in name.permutation])
    yield value.transpose(np.argsort(name.permutation))


def _all(tensor: Tensor) -> Iterator[np.ndarray]:
    yield tensor.read()


def export_wan(
    source: str | Path,
    destination: str | Path,
    dtype: Any = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Writes a model's transformer as diffusers' ``transformer/`` of text-to-video layout.

    Diffusers reads everything but the audio branch, which lies beside it (``lpm_audio-*.safetensors``) with our config
    and what brings sound to it for the way back. The encoders and the VAE of the model are not exported.

    Raises:
      InputError: ``source`` is no model, or its files do not fit its config.
    """
    source, folder = Path(source), Path(destination) / "transformer"
    if not (source / "config.json").is_file():
        raise InputError(f"{source}: expected a model with config.json, found none")
    config = from_dict(read_json(source / "config.json"))
    paths = tensors.find_files(source, "model")
    saved = tensors.read_headers(paths)
    found = {k.removeprefix("dit/"): t for k, t in saved.items() if k.startswith("dit/")}
    names, shapes = dit_names.names(config.dit), _shapes(config.dit)
    plan(source, found, as_stored(shapes), shapes)  # complains about what does not fit
    parts: dict[str, dict[str, Target]] = {WAN: {}, AUDIO: {}}
    for path, name in names.items():
        tensor, stacked = found[path], "{" in name.keys[0]
        for layer in range(tensor.shape[0]) if stacked else [None]:
            shape = theirs_shape(name, tensor.shape[1:] if stacked else tensor.shape)
            target = Target(
                np.dtype(dtype or tensor.dtype), shape, functools.partial(_back, tensor, layer, name, shape)
            )
            parts[AUDIO if dit_names.AUDIO.match(path) else WAN][spell(name, layer or 0)[0]] = target
    for path, shape in _small_shapes(config).items():
        if path in saved and saved[path].shape == shape:
            tensor = saved[path]
            parts[AUDIO][path] = Target(np.dtype(dtype or tensor.dtype), shape, functools.partial(_all, tensor))
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
    documents = {f"{WAN}.safetensors.index.json": index, OURS: plain(config), "config.json": theirs}
    metadata = {"format": "pt", **fingerprint(paths, str(dtype))}
    stems = {stem: (targets, metadata) for stem, targets in parts.items()}
    return finish(folder, stems, documents, shard_bytes, progress)


def main() -> None:
    parser = ArgumentParser("python -m lpm_jax.convert", description="Wan 2.1 weights in, diffusers weights out.")
    doors = parser.add_subparsers(dest="door", required=True)
    titles = {kind: f"add {part.title} to a model" for kind, part in PARTS.items()}
    titles = {"wan": "import Wan 2.1", **titles, "export": "write a transformer for diffusers"}
    for door, text in titles.items():
        sub = doors.add_parser(door, help=text, description=text)
        sub.add_argument("source", metavar="SRC", type=Path)
        sub.add_argument("destination", metavar="DST", type=Path)
        sub.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: as in SRC")
        if door == "wan":
            sub.add_argument("--config", type=Path, help="our config file; default: from SRC's config.json")
            for kind, part in PARTS.items():
                sub.add_argument(f"--{kind}", metavar="SRC", type=Path, help=f"where {part.title} is, if not in SRC")
        if door in ("wan", "text"):
            sub.add_argument("--tokenizer", type=Path, help="umT5's tokenizer.json, if not in its usual places")
        if door in ("wan", "audio"):
            sub.add_argument("--seed", type=int, default=0, help="of what is drawn")
    args = parser.parse_args()
    dtype = None if args.dtype is None else jax.numpy.dtype(args.dtype)
    say = functools.partial(print, flush=True)
    if args.door == "wan":
        config = load_config(args.config) if args.config else None
        given = {kind: getattr(args, kind) for kind in PARTS if getattr(args, kind)}
        paths = import_wan(
            args.source, args.destination, config, dtype, args.seed, progress=say, given=given, tokenizer=args.tokenizer
        )
    elif args.door == "export":
        paths = export_wan(args.source, args.destination, dtype, progress=say)
    else:
        options = {name: getattr(args, name) for name in ("tokenizer", "seed") if hasattr(args, name)}
        paths = add_part(args.door, args.source, args.destination, dtype, progress=say, **options)
    print(f"{len(paths)} files, {sum(path.stat().st_size for path in paths) / 1e9:.2f} GB in {paths[0].parent}")
    for line in [] if args.door == "export" else missing(args.destination):
        print(line)


if __name__ == "__main__":
    run_door(main)
