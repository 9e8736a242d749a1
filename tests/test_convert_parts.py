"""A Wan with its VAE, umT5 and wav2vec 2.0 becomes a whole model: the parts compute what diffusers' and transformers'
do, each door adds one, nothing is written twice, and what does not fit is one line."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from lpm_jax import convert, convert_parts, pretrained, tensors
from lpm_jax.base import Base
from lpm_jax.config import DiTConfig, SampleConfig
from lpm_jax.errors import InputError
from lpm_jax.models import conditions, umt5, vae, wav2vec
from lpm_jax.models.vae import wan
from lpm_jax.options import load_config
from lpm_jax.tensors import flatten
from tests import tiny
from tests.golden.tensors import error, read
from tests.models.test_umt5 import write_tokenizer
from tests.test_convert import diffusers_config, same, state, wan_config

DIT = DiTConfig(
    depth=2, width=48, heads=2, ffn=64, channels=4, time_width=16, text_width=20, audio_width=48, prediction="velocity"
)
VAE, TEXT, AUDIO = "wan_vae_deep", "umt5_short_buckets", "wav2vec_base"
PUT = {"vae": ("vae", VAE), "text": ("text_encoder", TEXT)}


def save(folder: Path, stem: str, weights: dict, config: dict | None, shards: int = 1) -> Path:
    """A part as diffusers or transformers save it, with an index where there are several files."""
    folder.mkdir(parents=True, exist_ok=True)
    keys, places = sorted(weights), {}
    for i in range(shards):
        name = f"{stem}-{i + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else f"{stem}.safetensors"
        save_file({key: np.ascontiguousarray(weights[key]) for key in keys[i::shards]}, folder / name)
        places.update(dict.fromkeys(keys[i::shards], name))
    if shards > 1:
        index = {"metadata": {}, "weight_map": places}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def golden_part(folder: Path, name: str, shards: int = 1, weights: dict | None = None, **config) -> Path:
    stem = "diffusion_pytorch_model" if name.startswith("wan_vae") else "model"
    fields, found, _ = read(name)
    return save(folder, stem, found if weights is None else weights, fields | config, shards)


def own_spelling(names: dict, weights: dict) -> dict:
    """diffusers' or transformers' weights under the keys of Wan's own files."""
    out = {}
    for keys, _ in names.values():
        for i in range(9):
            if keys[0].format(i=i) in weights:
                out[keys[-1].format(i=i)] = weights[keys[0].format(i=i)]
    assert len(out) == len(weights)
    return out


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """``root``: diffusers' layout, all parts; ``wan``: a transformer alone in Wan's; ``base``, ``large``: wav2vec."""
    folder = tmp_path_factory.mktemp("sources")
    save(folder / "root" / "transformer", "diffusion_pytorch_model", state(DIT), diffusers_config(DIT), 2)
    for kind, name in PUT.values():
        golden_part(folder / "root" / kind, name, shards=3)
    (folder / "root" / "tokenizer").mkdir()
    write_tokenizer(folder / "root" / "tokenizer" / "tokenizer.json")
    save(folder / "wan", "diffusion_pytorch_model", state(DIT, 1), wan_config(DIT, DIT.channels))
    golden_part(folder / "base", AUDIO)
    golden_part(folder / "large", "wav2vec_large", shards=2)
    return folder


@pytest.fixture(scope="module")
def model(sources, tmp_path_factory) -> Path:
    """All of it, by one command. Do not write into it."""
    out = tmp_path_factory.mktemp("model") / "m"
    convert.import_wan(sources / "root", out, given={"audio": sources / "base"}, seed=5)
    return out


def contents(directory: Path) -> dict:
    """All tensors of a model by stem and path."""
    stems = ("model", "vae", "text", "audio")
    found = {stem: tensors.read_headers(directory.glob(f"{stem}-*.safetensors")) for stem in stems}
    return {f"{stem}:{key}": tensor.read() for stem, part in found.items() for key, tensor in part.items()}


def times(directory: Path) -> dict:
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


# --- the same functions ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_parts_compute_what_the_references_do(model):
    config, params = pretrained.load(model, jnp.float32)
    _, _, golden = read(VAE)
    z = vae.encode(config.vae, params["vae"], jnp.asarray(golden["video"]))[0]
    assert error(z, golden["encoded"]) < 1e-4
    assert error(vae.decode(config.vae, params["vae"], jnp.asarray(golden["latents"]))[0], golden["decoded"]) < 1e-4
    _, _, golden = read(TEXT)
    assert config.text.umt5.tokens == config.text.tokens == 512 and config.text.width == 20
    text = umt5.encode(config.text.umt5, params["text"], golden["ids"], golden["mask"])
    assert error(text, golden["output"]) < 1e-4
    _, _, golden = read(AUDIO)
    sound = wav2vec.encode(config.audio.wav2vec, params["audio"], golden["samples"][:1], stack=True)
    assert error(sound, golden["single_states"]) < 1e-4


def test_the_transformer_gets_fresh_adapters_and_a_prior(model, sources):
    config, params = pretrained.load(model)
    fresh = conditions.init_small(config, jax.random.key(5))
    same({key: params[key] for key in ("speak", "listen", "prior")}, fresh)
    assert params["speak"]["in"]["kernel"].shape == (24, 48) and (params["prior"]["weight"] == 1).all()
    same(params["dit"], convert.load_wan(sources / "wan", config, seed=5)[1])
    assert config.dit == DIT and config.name == "wan"


@pytest.mark.slow
def test_the_whole_path_to_pixels(model):
    base = Base.from_pretrained(model)
    quick = SampleConfig(steps=2, shift=3.0, text_scale=2.0, audio_scale=1.0, segment=13, overlap=1)
    options = dict(audio=tiny.sound(7_200), size=(32, 48), sample=quick, prompt="smiles and nods", seed=1)
    frames = np.concatenate(list(base.generate(tiny.picture(), **options)))
    assert frames.shape == (8, 32, 48, 3) and frames.dtype == np.uint8
    assert frames.std() > 1


# --- doors -------------------------------------------------------------------------------------------------------


def door(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["convert", *map(str, arguments)])
    with pytest.raises(SystemExit) as status:
        convert.run_door(convert.main)
    said = capsys.readouterr()
    return status.value.code, said.out, said.err


def test_doors_add_parts_in_wans_own_spelling(model, sources, tmp_path, monkeypatch, capsys):
    """A transformer, then one file after the other: the same model as by one command; and again: nothing."""
    out = tmp_path / "out"
    (fields, weights, _), (words, text, _) = read(VAE), read(TEXT)
    config = convert_parts.vae_config(Path("x"), fields)
    own = save(tmp_path / "v", "Wan2.1_VAE", own_spelling(wan.names(config), weights), fields)
    spelled = own_spelling(umt5.names(convert_parts.text_config(Path("x"), words)), text)
    save(tmp_path / "t", "models_t5_umt5-xxl-enc-bf16", spelled, words)
    steps = [
        ("wan", sources / "wan", out, "--seed", 5),
        ("vae", own / "Wan2.1_VAE.safetensors", out),
        ("text", tmp_path / "t", out, "--tokenizer", sources / "root" / "tokenizer"),
        ("audio", sources / "base", out, "--seed", 5),
    ]
    for i, step in enumerate(steps):
        code, said, _ = door(monkeypatch, capsys, *step)
        lacking = [kind for kind in ("vae", "text", "audio") if f"python -m lpm_jax.convert {kind} SRC {out}" in said]
        assert code == 0 and lacking == ["vae", "text", "audio"][i:]
    assert (out / "config.json").read_text() == (model / "config.json").read_text()
    same(contents(out), contents(model))
    assert (out / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    before = times(out)
    for step in steps:
        assert door(monkeypatch, capsys, *step)[:2] == (0, said.splitlines()[-1] + "\n") or step[0] != "audio"
    assert times(out) == before


def test_sound_of_another_width_redraws_the_adapters(model, sources, tmp_path):
    """``audio`` gives what ``wan --audio`` would; the file's other tensors stay."""
    fields, weights, golden = read("wav2vec_large")
    old, new = "weight_", "parametrizations.weight.original"
    weights = {
        f"wav2vec2.{k.replace(new + '0', old + 'g').replace(new + '1', old + 'v')}": v for k, v in weights.items()
    }
    weights |= {"lm_head.weight": np.zeros((3, 20), np.float32), "wav2vec2.masked_spec_embed": np.zeros(20, np.float32)}
    golden_part(tmp_path / "ctc", "wav2vec_large", weights=weights)
    out, lines = shutil.copytree(model, tmp_path / "out"), []
    convert.add_part("audio", tmp_path / "ctc", out, seed=5, progress=lines.append)
    assert any("speak/in/kernel, listen/in/kernel drawn anew" in line for line in lines)
    config, params = pretrained.load(out)
    sound = wav2vec.encode(config.audio.wav2vec, params["audio"], golden["samples"][:1], stack=True)
    assert error(sound, golden["single_states"]) < 1e-4
    at_once = tmp_path / "at_once"
    convert.import_wan(sources / "root", at_once, given={"audio": sources / "large"}, seed=5)
    same(contents(out), contents(at_once))
    before = times(out)
    convert.add_part("audio", tmp_path / "ctc", out, progress=lambda line: pytest.fail(line))
    assert times(out) == before


def test_one_dtype_for_all(sources, tmp_path):
    convert.import_wan(sources / "root", tmp_path / "half", dtype=jnp.bfloat16, given={"audio": sources / "base"})
    found = contents(tmp_path / "half")
    assert {value.dtype for value in found.values()} == {np.dtype(jnp.bfloat16)}
    assert {key.partition("/")[0] for key in found if key.startswith("model:")} == {
        "model:dit", "model:speak", "model:listen", "model:prior",
    }  # fmt: skip


def test_adapters_come_back_from_an_export(model, tmp_path):
    convert.export_wan(model, tmp_path / "x")
    convert.import_wan(tmp_path / "x", tmp_path / "again", seed=0)
    same({k: v for k, v in contents(model).items() if k.startswith("model:")}, contents(tmp_path / "again"))


def test_known_transformers_bring_their_config(tmp_path):
    for name in ("lpm_17b", "lpm_1b"):
        config = load_config(Path(__file__).parents[1] / "configs" / f"{name}.py")
        (tmp_path / "config.json").write_text(json.dumps(wan_config(config.dit, 36)))
        assert convert.wan_config(tmp_path / "config.json") == config
        stems = pretrained.parts(config)
        assert list(stems) == ["model", "vae", "text", "audio"] and set(stems["model"]) == {
            "dit", "speak", "listen", "prior",
        }  # fmt: skip


# --- killed, and again -------------------------------------------------------------------------------------------


def test_a_second_run_writes_nothing(model, sources, tmp_path):
    out = shutil.copytree(model, tmp_path / "out")
    before, lines = times(out), []
    convert.import_wan(sources / "root", out, given={"audio": sources / "base"}, seed=5, progress=lines.append)
    convert.import_wan(sources / "root", out, seed=5, progress=lines.append)  # what is there stays, the sound too
    for kind, source in (("vae", "root"), ("text", "root"), ("audio", "base")):
        convert.add_part(kind, sources / source, out, progress=lines.append)
    assert lines == [] and times(out) == before


def test_killed_while_writing(model, sources, tmp_path):
    lines, out = [], tmp_path / "out"
    options = {"given": {"audio": sources / "base"}, "seed": 5, "shard_bytes": 30_000}

    def kill(line):
        lines.append(line)
        if "audio-00002" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert.import_wan(sources / "root", out, progress=kill, **options)
    assert [path.name for path in out.iterdir()] == [tensors.ASIDE]
    again = []
    paths = convert.import_wan(sources / "root", out, progress=again.append, **options)
    assert len(lines) + len(again) == len(paths) and len(again) < len(lines)
    assert not (out / tensors.ASIDE).exists()
    same(contents(out), contents(model))


@pytest.mark.parametrize("kind", ["vae", "audio"])
def test_killed_while_publishing(kind, model, sources, tmp_path, monkeypatch):
    """The config waits aside: meanwhile the folder is no model, afterwards it is."""
    out = shutil.copytree(model, tmp_path / "out")
    source = sources / "large"
    if kind == "vae":
        _, weights, _ = read(VAE)
        source = golden_part(tmp_path / "v", VAE, weights={k: -v for k, v in weights.items()})

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tensors, "publish", kill)
        with pytest.raises(KeyboardInterrupt):
            convert.add_part(kind, source, out, seed=5)
    with pytest.raises(InputError, match="config.json"):
        pretrained.load(out)
    convert.add_part(kind, source, out, seed=5)
    assert not (out / tensors.ASIDE).exists()
    config, params = pretrained.load(out)
    expected = {path: leaf.parts[0]() for path, leaf in convert.plan_part(kind, source, config).leaves.items()
                if not leaf.stacked}  # fmt: skip
    found = flatten(params[kind])
    same({path: found[path] for path in expected}, expected)
    assert params["speak"]["in"]["kernel"].shape[0] == (20 if kind == "audio" else 24)


def test_planning_reads_no_tensor(sources, model, monkeypatch):
    config = pretrained.read_config(model)
    monkeypatch.setattr(tensors.Tensor, "read", lambda *_: pytest.fail("read"))
    for kind, source in (("vae", "root"), ("text", "root"), ("audio", "base")):
        convert.plan_part(kind, sources / source, config)


# --- what does not fit -------------------------------------------------------------------------------------------


POSITION = "encoder.pos_conv_embed.conv.parametrizations.weight.original"


@pytest.mark.parametrize(
    "kind, name, config, weights, says",
    [
        ("vae", VAE, {}, {"quant_conv.bias": None}, "quant_conv.bias: expected [8], found no such tensor"),
        ("vae", VAE, {}, {"quant_conv.bias": 7}, "quant_conv.bias: expected [8], found [7]"),
        ("vae", VAE, {}, {"extra": 3}, "extra: expected no such tensor, found [3]"),
        ("vae", VAE, {"is_residual": True}, {}, "is_residual: expected false or null, found true"),
        ("vae", VAE, {"_class_name": "AutoencoderKL"}, {}, '_class_name: expected "AutoencoderKLWan"'),
        ("vae", VAE, {"latents_mean": [0.0]}, {}, "latents_mean: expected 4 values, found 1"),
        ("vae", VAE, {"dim_mult": "wide"}, {}, 'dim_mult: expected sizes, found "wide"'),
        ("vae", "wan_vae_odd", {}, {}, "z_dim: expected the transformer's 4 channels, found 3"),
        ("vae", VAE, {"z_dim": 0}, {}, "z_dim: expected sizes, found 0"),
        ("text", TEXT, {}, {"shared.weight": None}, "shared.weight: expected [61, 20], found no such tensor"),
        ("text", TEXT, {"feed_forward_proj": "relu"}, {}, 'feed_forward_proj: expected "gated-gelu", found "relu"'),
        ("text", TEXT, {"d_model": "x"}, {}, 'd_model: expected sizes, found "x"'),
        ("text", "umt5_xxl_buckets", {}, {}, "d_model: expected the transformer's text width, 20, found 24"),
        ("text", TEXT, {"vocab_size": 12}, {"shared.weight": (12, 20)}, "expected at most 12 words"),
        ("audio", AUDIO, {"model_type": "hubert"}, {}, 'model_type: expected "wav2vec2", found "hubert"'),
        ("audio", AUDIO, {"conv_dim": [16] * 6 + [8]}, {}, "conv_dim: expected one width"),
        ("audio", AUDIO, {"conv_stride": [5, 2]}, {}, "expected equal lengths, found 7, 7 and 2"),
        ("audio", AUDIO, {"num_attention_heads": 5}, {}, "num_attention_heads: expected a divisor of 24, found 5"),
        ("audio", AUDIO, {}, {f"{POSITION}0": (24, 1, 1)}, "original0: expected [1, 1, 16], found [24, 1, 1]"),
        ("audio", AUDIO, {}, {f"{POSITION}1": None}, "original0: expected [1, 1, 'taps'], found no"),
        ("audio", AUDIO, {}, {"adapter.x": 3}, "adapter.x: expected no such tensor, found [3]"),
    ],
)
def test_what_does_not_fit_is_named(kind, name, config, weights, says, model, tmp_path):
    _, found, _ = read(name)
    for key, shape in weights.items():
        found[key] = np.zeros(() if shape is None else shape, found.get(key, np.zeros(1, np.float32)).dtype)
        if shape is None:
            del found[key]
    source = golden_part(tmp_path / "src", name, weights=found, **config)
    write_tokenizer(source / "tokenizer.json")
    with pytest.raises(InputError) as failure:
        convert.add_part(kind, source, model)
    line = str(failure.value)
    assert says in line and str(source) in line and "\n" not in line, line
    assert tensors.ASIDE not in times(model)


def test_other_bad_input(model, sources, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"cos\nsystem\n")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    (tmp_path / "empty").mkdir()
    bare = golden_part(tmp_path / "bare" / "t", TEXT)
    alone = save(tmp_path / "alone", "model", read(TEXT)[1], None)
    fields, weights, _ = read(VAE)
    names = wan.names(convert_parts.vae_config(Path("x"), fields))
    own = save(tmp_path / "own", "Wan2.1_VAE", own_spelling(names, weights), wan_config(DIT, 4))
    cases = [
        ("vae", tmp_path / "w.pth", model, "w.pth: expected safetensors (nothing else is opened), found a .pth file"),
        ("audio", tmp_path / "pickled", model, "pytorch_model.bin: expected safetensors"),
        ("vae", tmp_path / "none", model, "none: expected a folder or a safetensors file, found nothing"),
        ("text", tmp_path / "empty", model, "empty: expected model*.safetensors, found none"),
        ("text", bare, model, "t: expected tokenizer.json there, in ../tokenizer or by --tokenizer, found none"),
        ("text", alone, model, "config.json: expected a JSON object, found"),
        ("vae", own, model, "z_dim: expected the transformer's 4 channels, found 16"),  # the published sizes
        ("vae", sources / "root", tmp_path / "empty", "expected a model's config.json"),
        ("vae", model, model, "expected another directory than the source"),
    ]
    for kind, source, destination, says in cases:
        with pytest.raises(InputError) as failure:
            convert.add_part(kind, source, destination)
        assert says in str(failure.value) and "\n" not in str(failure.value), str(failure.value)
    other = save(tmp_path / "other", "diffusion_pytorch_model", state(DIT), diffusers_config(DIT))
    with pytest.raises(InputError, match="is_residual"):  # a bad part stops the whole import before it writes
        bad = golden_part(tmp_path / "bad", VAE, is_residual=True)
        convert.import_wan(other, tmp_path / "out", given={"vae": bad})
    assert not (tmp_path / "out").exists()
    without = tmp_path / "without"
    convert.import_wan(other, without, dataclasses.replace(convert.source_config(other), name="mine"))
    assert [line.split(": ")[1].split()[3] for line in convert.missing(without)] == ["vae", "text", "audio"]
    with pytest.raises(InputError, match="vae"):
        pretrained.load(without)
