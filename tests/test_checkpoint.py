"""Finished models on disk: whole, sharded, refused when broken, never half written."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax import checkpoint
from lpm_jax.checkpoint import load_weights, save_weights, write_json
from lpm_jax.errors import InputError


@pytest.fixture
def weights() -> dict:
    rng = np.random.default_rng(0)
    return {
        "dit": {"head": {"kernel": rng.normal(size=(8, 16)), "bias": rng.normal(size=16)}},
        "text": {"table": rng.normal(size=(32, 8))},
        "scale": np.float32(3.5),
    }


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.float32), tree)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, np.asarray(y, np.float32))


def test_round_trip(tmp_path, weights):
    paths = save_weights(tmp_path / "new", "model", weights)
    assert [p.name for p in paths] == ["model-00001-of-00001.safetensors"]
    loaded = load_weights(tmp_path / "new", "model", shapes(weights))
    assert_same(loaded, weights)
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


def test_shards(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 520)  # the kernel has 512 bytes, the table 1,024
    paths = save_weights(tmp_path, "model", weights)
    assert len(paths) == 3
    assert [p.name for p in paths] == [f"model-{i + 1:05d}-of-{len(paths):05d}.safetensors" for i in range(len(paths))]
    assert_same(load_weights(tmp_path, "model", shapes(weights)), weights)
    # Written again in one file, the old shards go; another tree's files stay.
    save_weights(tmp_path, "vae", {"x": np.ones(3)})
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 2**20)
    save_weights(tmp_path, "model", weights)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model-00001-of-00001.safetensors", "vae-00001-of-00001.safetensors",
    ]  # fmt: skip
    assert_same(load_weights(tmp_path, "model"), weights)


def test_shards_stay_below_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 1000)
    paths = save_weights(tmp_path, "model", {f"w{i:02d}": np.zeros(30) for i in range(40)})  # 120 bytes each
    assert len(paths) == 5  # eight a file
    for path in paths:
        header = int.from_bytes(path.read_bytes()[:8], "little")
        assert path.stat().st_size - 8 - header <= 1000


def test_bfloat16(tmp_path, weights):
    save_weights(tmp_path, "model", weights, jnp.bfloat16)
    loaded = load_weights(tmp_path, "model", shapes(weights))
    assert_same(loaded, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32).astype(jnp.bfloat16), weights))


@pytest.mark.parametrize("change, message", [
    (lambda w: w["text"].update(table=np.zeros((32, 9))), r"text/table: expected \(32, 9\), found \(32, 8\)"),
    (lambda w: w["text"].update(more=np.zeros(3)), r"text/more: expected \(3,\), found nothing"),
    (lambda w: w["text"].pop("table"), r"text/table: expected nothing, found \(32, 8\)"),
])  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, weights, change, message):
    save_weights(tmp_path, "model", weights)
    change(weights)
    with pytest.raises(InputError, match=message) as caught:
        load_weights(tmp_path, "model", shapes(weights))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_missing_files(tmp_path, weights, monkeypatch):
    with pytest.raises(InputError, match=r"expected model-\*.safetensors, found none"):
        load_weights(tmp_path / "nowhere", "model")
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 520)
    paths = save_weights(tmp_path, "model", weights)
    paths[1].unlink()
    with pytest.raises(InputError, match=r"expected all model files of one save, found .*-00001-of-00003.*"):
        load_weights(tmp_path, "model")


def test_mixed_saves_are_refused(tmp_path, weights):
    save_weights(tmp_path, "model", weights)
    (tmp_path / "model-00001-of-00001.safetensors").rename(tmp_path / "model-00002-of-00003.safetensors")
    save_weights(tmp_path / "other", "model", weights)
    (tmp_path / "other" / "model-00001-of-00001.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match="expected all model files of one save"):
        load_weights(tmp_path, "model")


@pytest.mark.parametrize("damage", [
    lambda data: data[: len(data) // 2],  # cut
    lambda data: b"",
    lambda data: b"not a tensor in sight, but long enough to look like a header of something",
    lambda data: data[:8] + b"X" * 40 + data[48:],
    lambda data: (2**60).to_bytes(8, "little") + data[8:],
])  # fmt: skip
def test_broken_files_are_named(tmp_path, weights, damage):
    (path,) = save_weights(tmp_path, "model", weights)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"model-00001-of-00001.safetensors: expected a safetensors file") as caught:
        load_weights(tmp_path, "model", shapes(weights))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_an_interrupted_write_leaves_the_old_weights(tmp_path, weights, monkeypatch, failing):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 520)
    assert len(save_weights(tmp_path, "model", weights)) == 3
    calls = []

    def save_half(shard, path):
        calls.append(path)
        if len(calls) == failing:
            path.write_bytes(b"half")
            raise OSError("no space left on device")
        real(shard, path)

    real = checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", save_half)
    with pytest.raises(OSError, match="no space"):
        save_weights(tmp_path, "model", jax.tree.map(lambda x: x + 1, weights))
    assert_same(load_weights(tmp_path, "model", shapes(weights)), weights)
    monkeypatch.setattr(checkpoint, "save_file", real)
    newer = jax.tree.map(lambda x: x + 2, weights)
    save_weights(tmp_path, "model", newer)
    assert_same(load_weights(tmp_path, "model", shapes(weights)), newer)
    assert not list(tmp_path.glob("*.tmp"))


def test_json_appears_whole(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "config.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
