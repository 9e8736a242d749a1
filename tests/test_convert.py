"""Wan's weights in, diffusers' out: the same numbers, nothing twice in memory, and one line for what does not fit."""

import dataclasses
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpm_jax import convert, mapping, tensors
from lpm_jax.checkpoint import load_weights, save_weights, write_json
from lpm_jax.config import Config, DiTConfig
from lpm_jax.errors import InputError
from lpm_jax.models import conditions, dit, dit_names
from lpm_jax.options import from_dict
from lpm_jax.tensors import flatten, unflatten
from tests.golden.hashed import weight
from tests.golden.wan_dit import imported, output, read, relative

SMALL = DiTConfig(
    depth=4, width=24, heads=2, ffn=40, channels=4, time_width=16, text_width=12, audio_width=24, prediction="velocity"
)


def diffusers_config(c: DiTConfig) -> dict:
    return {
        "num_attention_heads": c.heads, "attention_head_dim": c.head_dim, "num_layers": c.depth, "ffn_dim": c.ffn,
        "in_channels": c.channels, "out_channels": c.channels, "text_dim": c.text_width, "freq_dim": c.time_width,
        "eps": c.eps, "patch_size": [1, 2, 2],
    }  # fmt: skip


def wan_config(c: DiTConfig, channels: int) -> dict:
    return {
        "dim": c.width, "num_heads": c.heads, "num_layers": c.depth, "ffn_dim": c.ffn, "in_dim": channels,
        "out_dim": c.channels, "text_dim": c.text_width, "freq_dim": c.time_width, "eps": c.eps,
    }  # fmt: skip


def state(config: DiTConfig, layout: int = 0, dtype=np.float32) -> dict:
    """A state dict with hashed weights, named by diffusers (0) or Wan (1); the numbers are the same."""
    shapes = {k: v.shape for k, v in flatten(jax.eval_shape(lambda: dit.init(config, jax.random.key(0)))).items()}
    out = {}
    for path, name in dit_names.names(config).items():
        if dit_names.AUDIO.match(path):
            continue
        stacked = "{" in name.keys[0]
        shape = mapping.theirs_shape(name, shapes[path][1:] if stacked else shapes[path])
        for layer in range(config.depth // 2 if stacked else 1):
            keys = mapping.spell(name, layer)
            out[keys[min(layout, len(keys) - 1)]] = weight(keys[0], shape).astype(dtype)
    return out


def write(folder: Path, weights: dict, config: dict, shards: int = 2) -> Path:
    """A directory of sharded safetensors with its index, and ``config.json``."""
    folder.mkdir(parents=True)
    keys, places = sorted(weights), {}
    for i in range(shards):
        name = f"diffusion_pytorch_model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = keys[i::shards]
        save_file({key: np.ascontiguousarray(weights[key]) for key in part}, folder / name)
        places.update(dict.fromkeys(part, name))
    index = {"metadata": {}, "weight_map": places}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def same(a: dict, b: dict) -> None:
    """Two trees are equal to the bit."""
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for key in a:
        x, y = np.asarray(a[key]), np.asarray(b[key])
        assert x.dtype == y.dtype and x.shape == y.shape, key
        assert x.tobytes() == y.tobytes(), key


def ours(directory: Path) -> dict:
    """A written model's tensors with their own dtypes."""
    return {k: v.read() for k, v in tensors.read_headers(tensors.find_files(directory, "model")).items()}


@pytest.fixture
def source(tmp_path):
    """A small Wan in its own layout."""
    return write(tmp_path / "wan", state(SMALL, 1), wan_config(SMALL, SMALL.channels))


# --- the same function -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t2v", "i2v"])
def test_an_imported_wan_gives_wans_output(name, tmp_path):
    """Files -> import -> the model that a user loads -> Wan's own output, in diffusers' and in Wan's layout."""
    config, golden, shapes, grid = read(name)
    weights = {key: weight(key, tuple(shape)) for key, shape in shapes.items()}
    if name == "t2v":
        folder = write(tmp_path / "in" / "transformer", weights, diffusers_config(config)).parent
    else:  # image-to-video, in Wan's words
        spelled = {}
        for entry in dit_names.names(config).values():
            for layer in range(config.depth // 2 if "{" in entry.keys[0] else 1):
                keys = mapping.spell(entry, layer)
                if len(keys) > 1:
                    spelled[keys[0]] = keys[1]
        image = {"add_k_proj": "k_img", "add_v_proj": "v_img", "norm_added_k": "norm_k_img", "attn2": "cross_attn"}
        renamed = {}
        for key, value in weights.items():
            other = spelled.get(key, key)
            if dit_names.DROPPED.match(key):
                for ours_, theirs in {**image, "condition_embedder.image_embedder": "img_emb.proj"}.items():
                    other = other.replace(ours_, theirs)
            renamed[other] = value
        assert renamed["patch_embedding.weight"].shape[1] == 36
        folder = write(tmp_path / "in", renamed, wan_config(config, 36))
    convert.import_wan(folder, tmp_path / "out")
    saved = from_dict(json.loads((tmp_path / "out" / "config.json").read_text()))
    assert saved.dit == config
    params = load_weights(tmp_path / "out", "model")["dit"]
    same(params, imported(config, shapes))
    same(convert.load_wan(folder)[1], params)
    assert relative(output(config, golden, grid, params), golden["output"]) < 1e-4


def test_both_layouts_give_the_same_model(source, tmp_path):
    other = write(tmp_path / "d" / "transformer", state(SMALL), diffusers_config(SMALL), shards=3).parent
    convert.import_wan(source, tmp_path / "a")
    convert.import_wan(other, tmp_path / "b")
    same(ours(tmp_path / "a"), ours(tmp_path / "b"))
    params = load_weights(tmp_path / "a", "model")["dit"]
    for kind in dit.KINDS:
        audio = {k: v for k, v in flatten(params["blocks"][kind]).items() if "audio" in k}
        assert not audio["audio_v/kernel"].any() and (audio["norm_audio_k/gain"] == 1).all()
        assert 0.5 < audio["audio_k/kernel"].std() / np.sqrt(2 / 48) < 1.5  # Xavier
        assert not np.array_equal(audio["audio_k/kernel"][0], audio["audio_k/kernel"][1])


# --- there and back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_there_and_back(dtype, tmp_path):
    source = write(tmp_path / "wan", state(SMALL, 1, dtype), wan_config(SMALL, SMALL.channels))
    convert.import_wan(source, tmp_path / "a", shard_bytes=20_000)
    assert len(list((tmp_path / "a").glob("model-*"))) > 2
    convert.export_wan(tmp_path / "a", tmp_path / "b", shard_bytes=30_000)
    folder = tmp_path / "b" / "transformer"
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())["weight_map"]
    exported = {key: load_file(folder / name)[key] for key, name in index.items()}
    expected = state(SMALL, 0, dtype)
    same(exported, expected)
    assert json.loads((folder / "config.json").read_text()).items() >= diffusers_config(SMALL).items()
    convert.import_wan(tmp_path / "b", tmp_path / "c")
    same(ours(tmp_path / "a"), ours(tmp_path / "c"))
    assert (tmp_path / "a" / "config.json").read_text() == (tmp_path / "c" / "config.json").read_text()


def test_a_trained_audio_branch_survives(tmp_path):
    """A model as ``Pipeline.save`` writes it, encoders included: its transformer comes back, its config too."""
    config = Config("mine", dit=dataclasses.replace(SMALL, prediction="clean", audio_width=20))
    rng = np.random.default_rng(0)
    shapes = flatten(jax.eval_shape(lambda: dit.init(config.dit, jax.random.key(0))))
    params = unflatten({k: rng.normal(size=v.shape).astype(np.float32) for k, v in shapes.items()})
    save_weights(tmp_path / "a", "model", {"dit": params, "prior": {"variance": np.ones(4, np.float32)}})
    write_json(tmp_path / "a" / "config.json", dataclasses.asdict(config))
    convert.export_wan(tmp_path / "a", tmp_path / "b")
    convert.import_wan(tmp_path / "b", tmp_path / "c")
    same(load_weights(tmp_path / "c", "model")["dit"], params)
    assert from_dict(json.loads((tmp_path / "c" / "config.json").read_text())) == config
    leaves = mapping.saved_leaves(tmp_path / "c", "model", conditions.abstract(config))  # the encoders are fresh
    same(mapping.load(leaves)["dit"], params)


def test_another_dtype(source, tmp_path):
    convert.import_wan(source, tmp_path / "a", dtype=jnp.bfloat16)
    half = ours(tmp_path / "a")
    assert {v.dtype for v in half.values()} == {np.dtype(jnp.bfloat16)}
    full = {k: np.asarray(v).astype(jnp.bfloat16) for k, v in flatten({"dit": convert.load_wan(source)[1]}).items()}
    same({k: v for k, v in half.items() if k.startswith("dit/")}, full)


def test_other_networks_bring_their_own_names(tmp_path):
    """The mapping of a network that is not Wan's: plain tuples, ``{i}`` for every layer."""
    rng = np.random.default_rng(0)
    theirs = {f"block.{i}.w": rng.normal(size=(3, 2)).astype(np.float32) for i in range(3)}
    theirs["conv"] = rng.normal(size=(5, 4, 3, 2, 1)).astype(np.float32)
    save_file(theirs, tmp_path / "x.safetensors")
    names = {"layers/kernel": (("other.{i}", "block.{i}.w"), (1, 0)), "conv/kernel": (("conv",), (2, 3, 4, 1, 0))}
    shapes = {"layers/kernel": (3, 2, 3), "conv/kernel": (3, 2, 1, 4, 5)}
    tree = mapping.load(mapping.plan("x", tensors.read_headers([tmp_path / "x.safetensors"]), names, shapes))
    np.testing.assert_array_equal(tree["layers"]["kernel"], [theirs[f"block.{i}.w"].T for i in range(3)])
    np.testing.assert_array_equal(tree["conv"]["kernel"], theirs["conv"].transpose(2, 3, 4, 1, 0))


# --- killed, and again -------------------------------------------------------------------------------------------


def test_resumes_and_does_nothing_twice(source, tmp_path):
    out, limit = tmp_path / "out", 20_000
    convert.import_wan(source, tmp_path / "whole", shard_bytes=limit)
    lines = []

    def kill(line):
        lines.append(line)
        if len(lines) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert.import_wan(source, out, shard_bytes=limit, progress=kill)
    assert [path.name for path in out.iterdir()] == [tensors.ASIDE]  # not a model, not half of one
    again = []
    paths = convert.import_wan(source, out, shard_bytes=limit, progress=again.append)
    assert len(lines) + len(again) == len(paths) and not (out / tensors.ASIDE).exists()
    same(ours(out), ours(tmp_path / "whole"))
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    third = []
    convert.import_wan(source, out, shard_bytes=limit, progress=third.append)
    assert third == [] and times == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_another_source_replaces_the_model(source, tmp_path):
    out = tmp_path / "out"
    convert.import_wan(source, out, shard_bytes=20_000)
    (out / "vae-00001-of-00001.safetensors").write_bytes(b"of another")
    convert.import_wan(source, out, seed=1)
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json", "model-00001-of-00001.safetensors", "vae-00001-of-00001.safetensors",
    ]  # fmt: skip
    assert not np.array_equal(
        ours(out)["dit/blocks/speak/audio_k/kernel"],
        convert.load_wan(source)[1]["blocks"]["speak"]["audio_k"]["kernel"],
    )


SHARDED = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from lpm_jax import convert
from lpm_jax.tensors import flatten

mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("layers", "model"))

def shardings(path, shape):  # layers over one axis, the last dimension over the other
    spec = ["layers" if path.startswith("blocks") else None, *[None] * (len(shape) - 2), "model"]
    return NamedSharding(mesh, P(*spec[-len(shape):]))

whole = flatten(convert.load_wan(sys.argv[1])[1])
parts = flatten(convert.load_wan(sys.argv[1], shardings=shardings)[1])
for path, array in parts.items():
    np.testing.assert_array_equal(array, whole[path])
    assert array.sharding.is_equivalent_to(shardings(path, array.shape), array.ndim), path
kernel = parts["blocks/speak/q/kernel"]
assert [s.data.shape for s in kernel.addressable_shards] == [(1, 24, 12)] * 4
print("sharded")
"""


def test_straight_into_sharded_arrays(source):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", SHARDED, str(source)], env=os.environ | flags, capture_output=True, text=True
    )
    assert ran.stdout == "sharded\n", ran.stderr


# --- memory ------------------------------------------------------------------------------------------------------


def test_memory_holds_one_tensor(tmp_path, monkeypatch):
    """Peak of numpy's memory while a model of many tensors goes through, in and out."""
    config = dataclasses.replace(SMALL, width=192, ffn=3072, depth=8, audio_width=192)
    source = write(tmp_path / "wan", state(config, 1), wan_config(config, config.channels))
    largest, total = 192 * 3072 * 4, sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert total > 10 * largest
    monkeypatch.setattr(tensors, "BLOCK_BYTES", 2**18)
    shapes = convert._shapes(config)
    monkeypatch.setattr(convert, "_shapes", lambda _: shapes)  # JAX's own objects are not what is counted here
    small = convert._small_shapes(convert.source_config(source))
    monkeypatch.setattr(convert, "_small_shapes", lambda _: small)
    convert._small(convert.source_config(source), 0)
    steps = [
        lambda: convert.import_wan(source, tmp_path / "a"),
        lambda: convert.export_wan(tmp_path / "a", tmp_path / "b"),
    ]
    for step in steps:
        tracemalloc.start()
        step()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.3 * largest + 2**20, (peak, largest)


# --- what does not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, says",
    [
        ({"blocks.2.ffn.0.weight": None}, "blocks.2.ffn.0.weight: expected [40, 24], found no such tensor"),
        ({"blocks.3.cross_attn.q.bias": np.zeros(25)}, "blocks.3.cross_attn.q.bias: expected [24], found [25]"),
        ({"patch_embedding.weight": np.zeros((24, 3, 1, 2, 2))}, "expected [24, 4, 1, 2, 2], found [24, 3, 1, 2, 2]"),
        ({"blocks.4.norm3.bias": np.zeros(24)}, "blocks.4.norm3.bias: expected no such tensor, found [24]"),
        ({"head.modulation": np.zeros((1, 6, 24))}, "head.modulation: expected [1, 2, 24], found [1, 6, 24]"),
        ({"blocks.3.norm3.bias": np.zeros(24, np.float16)}, "expected float32 as before, found float16; set --dtype"),
    ],
)
def test_what_does_not_fit_is_named(change, says, tmp_path):
    weights = state(SMALL, 1)
    for key, value in change.items():
        weights[key] = value
        if value is None:
            del weights[key]
        elif value.dtype == np.float64:
            weights[key] = value.astype(np.float32)
    source = write(tmp_path / "wan", weights, wan_config(SMALL, 4))
    with pytest.raises(InputError) as error:
        convert.import_wan(source, tmp_path / "out")
    assert says in str(error.value) and str(source) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def spoil(source: Path, what: str) -> None:
    first = sorted(source.glob("*.safetensors"))[0]
    if what == "shard":
        first.unlink()
    elif what == "shard, no index":
        first.unlink()
        next(source.glob("*.index.json")).unlink()
    elif what == "cut":
        first.write_bytes(first.read_bytes()[:-100])
    elif what == "header":
        first.write_bytes(b"\0" * 8)
    elif what == "index":
        next(source.glob("*.index.json")).write_text("[]")
    elif what == "config":
        (source / "config.json").unlink()
    elif what == "sizes":
        (source / "config.json").write_text('{"dim": 24}')
    elif what == "odd":
        (source / "config.json").write_text(json.dumps(wan_config(dataclasses.replace(SMALL, depth=3), 4)))


@pytest.mark.parametrize("what", ["shard", "shard, no index", "cut", "header", "index", "config", "sizes", "odd"])
def test_broken_directories(source, tmp_path, what):
    spoil(source, what)
    with pytest.raises(InputError, match="expected .*, found") as error:
        convert.import_wan(source, tmp_path / "out")
    assert str(source) in str(error.value) and "\n" not in str(error.value)


def test_the_door(source, tmp_path, monkeypatch, capsys):
    def door(*arguments):
        monkeypatch.setattr("sys.argv", ["convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as status:
            convert.run_door(convert.main)
        return status.value.code, capsys.readouterr()

    code, said = door("wan", source, tmp_path / "a", "--dtype", "bfloat16")
    assert code == 0 and "model-00001-of-00001.safetensors" in said.out
    assert door("export", tmp_path / "a", tmp_path / "b")[0] == 0
    for arguments in (
        ("wan", source),
        ("wan", tmp_path / "none", tmp_path / "c"),
        ("wan", source, source),
        ("export", source, tmp_path / "c"),
    ):
        code, said = door(*arguments)
        assert code == 2 and said.err.startswith("convert: error: ") and said.err.count("\n") == 1
