"""What stands beside a large model's transformer, as others store it: Wan's VAE, umT5 with its tokenizer, wav2vec 2.0.

:func:`plan_part` finds the safetensors and the ``config.json`` of a part, derives our config of it, refuses what does
not fit the transformer, and says what to read; ``convert.py`` writes it. Pickles (``.pth``, ``.bin``) are refused
unopened: loading one can run code.
"""

from __future__ import annotations

import functools
import json
import re
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from lpm_jax import tensors
from lpm_jax.config import Config, UMT5Config, WanVAEConfig, Wav2VecConfig
from lpm_jax.convert_files import read_json
from lpm_jax.errors import InputError
from lpm_jax.mapping import Leaf, plan
from lpm_jax.models import umt5, wav2vec
from lpm_jax.models.audio import STRIDE
from lpm_jax.models.vae import wan
from lpm_jax.options import from_dict
from lpm_jax.tensors import Tensor, flatten

PICKLES = {".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle"}
TOKENIZER = "tokenizer.json"
Network = WanVAEConfig | UMT5Config | Wav2VecConfig


# ---- their configs


def _only(path: Path, data: dict, **supported: tuple) -> None:
    """Refuses values that we have no network for; a name that is absent has the first value."""
    for name, values in supported.items():
        if data.get(name, values[0]) not in values:
            expected = " or ".join(json.dumps(value) for value in values)
            raise InputError(f"{path}: {name}: expected {expected}, found {json.dumps(data[name])}")


def _fields(path: Path, data: dict, kind: type, theirs: dict[str, str], required: tuple[str, ...]) -> Any:
    """Our config from the fields of theirs (``ours: theirs``); what is absent has our default unless required."""
    values = {}
    for ours, name in theirs.items():
        if name not in data:
            if name in required:
                raise InputError(f"{path}: {name}: expected a field of {kind.__name__[:-6]}'s config, found none")
            continue
        values[ours] = data[name]
        hint = typing.get_type_hints(kind)[ours]
        try:
            if typing.get_origin(hint) is tuple:
                values[ours] = [typing.get_args(hint)[0](value) for value in data[name]]
            elif hint is int and data[name] < 1:
                raise ValueError
        except (TypeError, ValueError):
            raise InputError(f"{path}: {name}: expected sizes, found {json.dumps(data[name])}") from None
    try:
        return from_dict(values, kind)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def vae_config(path: Path, data: dict) -> WanVAEConfig:
    """Of diffusers' ``AutoencoderKLWan``."""
    _only(
        path, data, _class_name=("AutoencoderKLWan",), is_residual=(False, None), in_channels=(3, None),
        out_channels=(3, None), patch_size=(None, 1), decoder_base_dim=(None, data.get("base_dim")),
    )  # fmt: skip
    same = ("base_dim", "z_dim", "dim_mult", "num_res_blocks", "attn_scales", "latents_mean", "latents_std")
    fields = {name: name for name in same} | {"temporal_downsample": "temperal_downsample"}
    return _fields(path, data, WanVAEConfig, fields, ("z_dim",))


def text_config(path: Path, data: dict) -> UMT5Config:
    """Of transformers' umT5; its length is Wan's, 512 tokens."""
    _only(
        path, data, model_type=("umt5",), feed_forward_proj=("gated-gelu",), is_gated_act=(True,),
        dense_act_fn=("gelu_new",),
    )  # fmt: skip
    fields = dict(
        vocabulary="vocab_size", width="d_model", head_dim="d_kv", ffn="d_ff", layers="num_layers", heads="num_heads",
        buckets="relative_attention_num_buckets", max_distance="relative_attention_max_distance",
        eps="layer_norm_epsilon",
    )  # fmt: skip
    return _fields(path, data, UMT5Config, fields, tuple(fields.values())[:6])


def audio_config(path: Path, data: dict) -> Wav2VecConfig:
    """Of transformers' wav2vec 2.0, and ``do_normalize`` of the ``preprocessor_config.json`` beside it, if any."""
    _only(
        path, data, model_type=("wav2vec2",), feat_extract_norm=("group", "layer"), hidden_act=("gelu",),
        feat_extract_activation=("gelu",), add_adapter=(False, None), adapter_attn_dim=(None,),
    )  # fmt: skip
    fields = dict(
        width="hidden_size", layers="num_hidden_layers", heads="num_attention_heads", ffn="intermediate_size",
        kernels="conv_kernel", strides="conv_stride", conv_bias="conv_bias", norm="feat_extract_norm",
        position_kernel="num_conv_pos_embeddings", position_groups="num_conv_pos_embedding_groups",
        stable="do_stable_layer_norm", eps="layer_norm_eps",
    )  # fmt: skip
    config = _fields(path, data, Wav2VecConfig, fields, ("hidden_size",))
    widths = data.get("conv_dim", [config.channels] * len(config.kernels))
    if not isinstance(widths, list) or len({*map(str, widths)}) != 1 or not isinstance(widths[0], int):
        raise InputError(f"{path}: conv_dim: expected one width in all convolutions, found {json.dumps(widths)}")
    if not len(widths) == len(config.kernels) == len(config.strides):
        found = f"{len(widths)}, {len(config.kernels)} and {len(config.strides)}"
        raise InputError(f"{path}: conv_dim, conv_kernel, conv_stride: expected equal lengths, found {found}")
    for name, parts in (
        ("num_attention_heads", config.heads),
        ("num_conv_pos_embedding_groups", config.position_groups),
    ):
        if config.width % parts:
            raise InputError(f"{path}: {name}: expected a divisor of {config.width}, found {parts}")
    extractor = path.with_name("preprocessor_config.json")
    normalize = read_json(extractor).get("do_normalize", True) if extractor.is_file() else True
    return replace(config, channels=widths[0], normalize=bool(normalize))


# ---- into our config


def _put_vae(config: Config, vae: WanVAEConfig, where: str) -> Config:
    if vae.z_dim != config.dit.channels:
        raise InputError(
            f"{where}: z_dim: expected the transformer's {config.dit.channels} channels, found {vae.z_dim}"
        )
    if vae.group != STRIDE:  # what the audio's tokens are counted by
        raise InputError(f"{where}: expected {STRIDE} video frames to a latent one, found {vae.group}")
    return replace(config, vae=vae)


def _put_text(config: Config, text: UMT5Config, where: str) -> Config:
    if text.width != config.dit.text_width:
        raise InputError(
            f"{where}: d_model: expected the transformer's text width, {config.dit.text_width}, found {text.width}"
        )
    return replace(config, text=replace(config.text, width=text.width, tokens=text.tokens, umt5=text))


def _put_audio(config: Config, audio: Wav2VecConfig, where: str) -> Config:
    return replace(config, audio=replace(config.audio, wav2vec=audio))


class Part(NamedTuple):
    """One of what a model's directory holds beside ``model-*``; its stem there is its name in :data:`PARTS`."""

    title: str
    folder: str  # in the root of a diffusers model
    original: str  # stem of Wan's own file of it
    mark: str  # a key that only Wan's own spelling has; it comes without a config, its sizes are our defaults
    size: str  # a field that only this part's config has
    stem: str  # of diffusers' or transformers' files
    network: ModuleType
    config: Callable[[Path, dict], Network]
    default: Network
    get: Callable[[Config], Any]
    put: Callable[[Config, Any, str], Config]
    dropped: re.Pattern  # keys that we have no use for


PARTS = {
    "vae": Part(
        "Wan's video VAE", "vae", "Wan2.1_VAE", "decoder.head.2.weight", "z_dim", "diffusion_pytorch_model",
        wan, vae_config, WanVAEConfig(), lambda config: config.vae, _put_vae, re.compile(r"(?!)"),
    ),
    # The words' second name, the decoder of a whole umT5, and the tokenizer that ComfyUI's files carry.
    "text": Part(
        "the umT5 text encoder", "text_encoder", "models_t5_*", "token_embedding.weight", "d_model", "model",
        umt5, text_config, UMT5Config(), lambda config: config.text.umt5, _put_text,
        re.compile(r"encoder\.embed_tokens\.weight$|decoder\.|lm_head\.|spiece_model$"),
    ),
    # What transformers' classes with a task have on top of wav2vec 2.0, and what masks in its training.
    "audio": Part(
        "the wav2vec 2.0 audio encoder", "", "", "", "hidden_size", "model",
        wav2vec, audio_config, Wav2VecConfig(), lambda config: config.audio.wav2vec, _put_audio,
        re.compile(
            r"(wav2vec2\.)?masked_spec_embed$"
            r"|(lm_head|quantizer|project_hid|project_q|projector|classifier)\.|layer_weights$"
        ),
    ),
}  # fmt: skip


# ---- files


def _has(folder: Path, stem: str) -> bool:
    patterns = (f"{stem}.safetensors", f"{stem}-*.safetensors", f"{stem}.safetensors.index.json")
    return bool(stem) and any(any(folder.glob(pattern)) for pattern in patterns)


def offered(kind: str, source: Path) -> bool:
    """Whether a model's root holds this part as safetensors: in diffusers' folder, or under Wan's own name."""
    part = PARTS[kind]
    return bool(part.folder) and (_has(source / part.folder, part.stem) or _has(source, part.original))


def find_part(kind: str, source: Path) -> list[Path]:
    """The safetensors files of a part: ``source`` itself, or those in it or in its folder of a diffusers root.

    Raises:
      InputError: there are none, or not all of one save.
    """
    part, folder = PARTS[kind], source
    if not source.exists():
        raise InputError(f"{source}: expected a folder or a safetensors file, found nothing")
    if source.is_dir():
        if part.folder and (source / part.folder).is_dir():
            folder = source / part.folder
        for stem in (part.original, part.stem):
            if _has(folder, stem):
                return tensors.find_files(folder, stem)
        pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
        if not pickles:
            raise InputError(f"{folder}: expected {part.stem}*.safetensors, found none")
        source = pickles[0]
    if source.suffix != ".safetensors":
        raise InputError(f"{source}: expected safetensors (nothing else is opened), found a {source.suffix} file")
    return [source]


def find_tokenizer(weights: Path, given: Path | None = None) -> Path | None:
    """``tokenizer.json``: the given file or in the given folder, else beside the folder ``weights`` as diffusers and
    Wan place it. None where there is none."""
    if given is not None:
        places = [given / TOKENIZER if given.is_dir() else given]
    else:
        places = [
            weights / TOKENIZER,
            weights.parent / "tokenizer" / TOKENIZER,
            weights / "google/umt5-xxl" / TOKENIZER,
        ]
    return next((place for place in places if place.is_file()), None)


# ---- what to read


class Planned(NamedTuple):
    """A part to write: the model's config with it, its parameters, and what they are made of."""

    config: Config
    leaves: dict[str, Leaf]
    paths: list[Path]
    tokenizer: Path | None


def plan_part(kind: str, source: Path, config: Config, dtype: Any = None, tokenizer: Path | None = None) -> Planned:
    """What to read for a part of the model that ``config`` describes; only headers are read yet.

    The sizes are those of the ``config.json`` beside the weights; Wan's own spelling comes without, and then has the
    published ones.

    Raises:
      InputError: there is no such part, it is not what its config says, or does not fit the transformer.
    """
    part, paths = PARTS[kind], find_part(kind, source)
    where, found = paths[0] if len(paths) == 1 else paths[0].parent, tensors.read_headers(paths)
    described = paths[0].with_name("config.json")
    # Beside Wan's own files lies the transformer's config, or none.
    alone = part.mark in found and not (described.is_file() and part.size in read_json(described))
    network = part.default if alone else part.config(described, read_json(described))
    config = part.put(config, network, str(where if alone else described))
    source_tensors, position = (found, None) if kind != "audio" else _unfactored(where, found)
    names = part.network.names(network)
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(part.network.abstract(network)).items()}
    leaves = plan(where, source_tensors, names, shapes, dropped=part.dropped.match, dtype=dtype)
    if position is not None:
        _, permutation = names["position/kernel"]
        read = functools.partial(_folded, *position, permutation)
        leaves["position/kernel"] = leaves["position/kernel"]._replace(parts=[read])
    reader = None
    if kind == "text":
        reader = find_tokenizer(paths[0].parent, tokenizer)
        if reader is None:
            raise InputError(
                f"{tokenizer or paths[0].parent}: expected {TOKENIZER} there, in ../tokenizer or by --tokenizer, "
                "found none"
            )
        known = umt5.Tokenizer(reader, network.tokens).vocabulary
        if known > network.vocabulary:
            raise InputError(f"{reader}: expected at most {network.vocabulary} words as in {where}, found {known}")
    return Planned(config, leaves, paths, reader)


def _unfactored(where: Path, found: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor] | None]:
    """``found`` with the weight-normalised convolution's direction in the place of its weight, which has the same
    shape; and its two factors, to be multiplied when they are read."""
    for g_end, v_end in wav2vec.FACTORS:
        for key in [key for key in found if key.endswith(f".{g_end}")]:
            stem = key.removesuffix(g_end)
            g, v = found[key], found.get(stem + v_end)
            expected = [1, 1, *v.shape[2:]] if v is not None else [1, 1, "taps"]
            if v is None or list(g.shape) != expected:
                other = f"{list(g.shape)}" if v is not None else f"no {stem}{v_end} beside it"
                raise InputError(f"{where}: {key}: expected {expected}, found {other}")
            rest = {name: tensor for name, tensor in found.items() if name not in (key, stem + v_end)}
            return rest | {f"{stem}weight": v}, (g, v)
    return found, None


def _folded(g: Tensor, v: Tensor, permutation: tuple[int, ...]) -> np.ndarray:
    (g_end, v_end), *_ = wav2vec.FACTORS
    return wav2vec.fold({f".{g_end}": g.read(), f".{v_end}": v.read()})[".weight"].transpose(permutation)
