"""Wan's VAE, umT5 and wav2vec 2.0 in the places of the toy's encoders: the same live stream, the same offline video."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax import Pipeline, mapping, pretrained
from lpm_jax.base import Base
from lpm_jax.config import SampleConfig
from lpm_jax.errors import InputError
from lpm_jax.models import conditions, umt5, vae
from lpm_jax.models.vae import wan
from tests import tiny

QUICK = SampleConfig(steps=2, shift=3.0, text_scale=2.0, audio_scale=3.0, segment=25, overlap=2)


def play(pipe: Pipeline, **inputs) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in pipe.stream(image=tiny.picture(), **inputs)])


@pytest.mark.slow
def test_a_live_stream():
    pipe = Pipeline(tiny.LARGE, tiny.params(tiny.LARGE), tiny.letters)
    sound = tiny.sound(30_000)
    frames = play(pipe, audio=sound, prompt="smiles")
    assert frames.shape == (30, 32, 32, 3) and frames.dtype == np.uint8 and frames.std() > 5
    np.testing.assert_array_equal(frames, play(pipe, audio=sound, prompt="smiles"))
    for other in ({"audio": -sound[::-1].copy(), "prompt": "smiles"}, {"audio": sound, "prompt": "nods"}):
        assert np.abs(frames.astype(int) - play(pipe, **other)).max() > 0
    whole = np.pad(sound, (0, 6_000))
    np.testing.assert_array_equal(play(pipe, audio=whole, prompt="smiles")[:24], frames[:24])  # nothing of the future


@pytest.mark.slow
def test_offline_video():
    base = Base(tiny.LARGE, tiny.params(tiny.LARGE), tiny.letters)
    sound = tiny.sound(40_000)
    run = lambda **more: np.concatenate(  # noqa: E731
        list(base.generate(tiny.picture(), sound, prompt="smiles", sample=QUICK, **more))
    )
    frames = run(size=(32, 48))
    assert frames.shape == (40, 32, 48, 3) and frames.std() > 5
    np.testing.assert_array_equal(frames, run(size=(32, 48)))
    assert np.abs(frames.astype(int) - run(size=(32, 48), seed=1)).max() > 0


def test_prompts_are_read_as_wan_reads_them():
    """Zeros beyond the text, and no mask."""
    params = tiny.params(tiny.LARGE)
    ids = jnp.asarray(tiny.letters("nods"))[None]
    text, mask = conditions.encode_text(tiny.LARGE, params, ids)
    assert mask.all() and mask.shape == (1, 12)
    np.testing.assert_array_equal(text[0, 5:], 0)
    alone = umt5.encode(tiny.LARGE.text.umt5, params["text"], ids[:, :5], jnp.ones((1, 5), bool))
    np.testing.assert_allclose(text[:, :5], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_vae_is_the_one_of_the_config():
    params = tiny.params(tiny.LARGE)["vae"]
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 5, 32, 32, 3)), jnp.float32)
    z, _ = vae.encode(tiny.LARGE.vae, params, video)
    np.testing.assert_array_equal(z, wan.encode(tiny.LARGE.vae, params, video)[0])
    assert z.shape == (1, 2, 4, 4, 4) and (tiny.LARGE.vae.group, tiny.LARGE.vae.stride) == (4, 8)
    assert (tiny.CONFIG.vae.group, tiny.CONFIG.vae.stride) == (4, 8)


@pytest.mark.slow
def test_disk(tmp_path):
    """All parts come back, in the files' dtype or another; without a tokenizer the prompt cannot be read."""
    params = tiny.params(tiny.LARGE)
    pretrained.save(tmp_path, tiny.LARGE, params)
    stems = {path.name.split("-")[0] for path in tmp_path.glob("*.safetensors")}
    assert stems == {"model", "vae", "text", "audio"}
    config, half = pretrained.load(tmp_path)
    assert config == tiny.LARGE
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}
    assert jax.tree.structure(half) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, half, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    _, full = pretrained.load(tmp_path, jnp.float32)
    assert {x.dtype for x in jax.tree.leaves(full)} == {jnp.dtype(jnp.float32)}
    with pytest.raises(InputError, match="tokenizer.json"):
        Base.from_pretrained(tmp_path)
    half_base = Base(config, half, tiny.letters)  # the whole path in half precision
    frames = np.concatenate(list(half_base.generate(tiny.picture(), seconds=0.4, sample=QUICK)))
    full_base = Base(config, params, tiny.letters)
    exact = np.concatenate(list(full_base.generate(tiny.picture(), seconds=0.4, sample=QUICK)))
    assert np.abs(frames.astype(int) - exact).mean() < 0.1 * exact.std()


@pytest.mark.slow
def test_large_weights_are_read_by_rows(tmp_path, monkeypatch):
    params = tiny.params(tiny.LARGE)
    pretrained.save(tmp_path, tiny.LARGE, params, jnp.float32)
    monkeypatch.setattr(mapping, "LARGE", 100)
    leaves = mapping.saved_leaves(tmp_path, "model", conditions.abstract(tiny.LARGE))
    assert any(leaf.stacked for leaf in leaves.values())
    _, loaded = pretrained.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
