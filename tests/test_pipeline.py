"""The object a user holds, with small random weights: lengths, labels, references, refusals, and the way to disk."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import lpm_jax
from lpm_jax import Pipeline, pretrained
from lpm_jax.errors import InputError
from lpm_jax.models import vae
from lpm_jax.pipeline import convolves_by_tiles, native_dtype
from lpm_jax.streaming import generator
from tests import tiny

CHUNK = 12_000  # samples of a chunk of three latent frames


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(tiny.CONFIG, tiny.params())


def play(pipe: Pipeline, **inputs) -> list:
    return list(pipe.stream(image=tiny.picture(), **inputs))


def frames_of(chunks: list) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


def test_attributes(pipe):
    assert lpm_jax.Pipeline is Pipeline
    assert (pipe.size, pipe.fps, pipe.sample_rate, pipe.chunk_frames) == ((32, 32), 24, 24_000, 12)


def test_chunks(pipe):
    sound = tiny.sound(2 * CHUNK)
    chunks = play(pipe, audio=sound)
    assert [len(c.frames) for c in chunks] == [12, 12]
    assert [c.time for c in chunks] == [0.0, 0.5]
    for chunk in chunks:
        assert chunk.frames.dtype == np.uint8 and chunk.frames.shape[1:] == (32, 32, 3)
        assert chunk.seconds > 0
    assert frames_of(chunks).std() > 10


@pytest.mark.parametrize("samples, frames", [(2_000, 2), (12_000, 12), (12_001, 13), (12_999, 13), (19_200, 20)])
def test_video_lasts_as_long_as_the_sound(pipe, samples, frames):
    """ceil(seconds * 24) frames: the last chunk is cut."""
    chunks = play(pipe, audio=tiny.sound(samples))
    assert len(frames_of(chunks)) == frames == -(-samples * 24 // 24_000)
    assert len(chunks) == -(-frames // 12)


def test_the_longer_sound_counts(pipe):
    assert len(frames_of(play(pipe, audio=tiny.sound(2_000), listen=tiny.sound(15_000)))) == 15
    assert len(frames_of(play(pipe, audio=tiny.sound(15_000), listen=tiny.sound(2_000)))) == 15


@pytest.mark.parametrize("seconds, frames", [(0.5, 12), (0.8, 20), (0.75, 18)])
def test_length_in_seconds(pipe, seconds, frames):
    assert len(frames_of(play(pipe, seconds=seconds))) == frames
    assert len(frames_of(play(pipe, audio=tiny.sound(3 * CHUNK), seconds=seconds))) == frames


def test_states(pipe):
    quiet, loud = np.zeros(CHUNK, np.float32), tiny.sound(CHUNK)
    speak = np.concatenate([quiet, loud, quiet, loud])
    listen = np.concatenate([quiet, quiet, loud, loud])
    assert [c.state for c in play(pipe, audio=speak, listen=listen)] == ["silence", "speak", "listen", "both"]
    stream = pipe.open(tiny.picture())
    assert stream.step(1e-4 * loud, None).state == "silence"  # noise in the line
    assert stream.step(None, 0.1 * loud).state == "listen"


def test_sound_is_cut_at_the_frames_it_belongs_to(pipe):
    """A stream stepped by hand on the same samples gives the same frames; short tracks are padded with silence."""
    speak, listen = tiny.sound(CHUNK + 5_000, 1), tiny.sound(2 * CHUNK, 2)
    whole = play(pipe, audio=speak, listen=listen, prompt="nods", seed=3)
    stream = pipe.open(tiny.picture(), "nods", 3)
    first = stream.step(speak[:CHUNK], listen[:CHUNK])
    second = stream.step(np.pad(speak[CHUNK:], (0, CHUNK - 5_000)), listen[CHUNK:])
    np.testing.assert_array_equal(whole[0].frames, first.frames)
    np.testing.assert_array_equal(whole[1].frames, second.frames)
    assert (first.time, second.time, stream.time) == (0.0, 0.5, 1.0)


def test_seed_prompt_sound_and_image_matter(pipe):
    base = {"audio": tiny.sound(CHUNK), "seed": 1, "prompt": "smiles"}
    first = frames_of(play(pipe, **base))
    np.testing.assert_array_equal(frames_of(play(pipe, **base)), first)
    for change in ({"seed": 2}, {"prompt": "frowns"}, {"audio": tiny.sound(CHUNK, 9)}, {"listen": tiny.sound(CHUNK)}):
        assert (frames_of(play(pipe, **base | change)) != first).any(), change
    other = list(pipe.stream(image=tiny.picture(8), **base))
    assert (frames_of(other) != first).mean() > 0.5


def test_prompt_changes_from_the_next_chunk_on(pipe):
    kept, changed = (pipe.open(tiny.picture(), "smiles", 1) for _ in range(2))
    np.testing.assert_array_equal(kept.step().frames, changed.step().frames)
    changed.set_prompt("looks left")
    assert (kept.step().frames != changed.step().frames).any()


def test_streams_are_independent(pipe):
    alone = [pipe.open(tiny.picture(), seed=1)]
    wanted = [alone[0].step(tiny.sound(CHUNK, i)).frames for i in range(3)]
    one, two = pipe.open(tiny.picture(), seed=1), pipe.open(tiny.picture(5), seed=2)
    for i in range(3):
        np.testing.assert_array_equal(one.step(tiny.sound(CHUNK, i)).frames, wanted[i])
        two.step(None, tiny.sound(CHUNK, 7))


def test_sources_of_pictures(pipe, tmp_path):
    array = tiny.picture()
    Image.fromarray(array).save(tmp_path / "me.png")
    want = pipe.open(array).step().frames
    for source in (tmp_path / "me.png", str(tmp_path / "me.png"), Image.fromarray(array)):
        np.testing.assert_array_equal(pipe.open(source).step().frames, want)


def test_warm_up_compiles_what_a_stream_needs(pipe):
    pipe.warm_up()
    assert pipe.compile_seconds > 0
    programs = [f._cache_size() for f in (generator.start, generator.chunk_step, generator.encode_prompt)]
    before = pipe.compile_seconds
    pipe.warm_up()
    assert pipe.compile_seconds == before  # nothing to do any more
    stream = pipe.open(tiny.picture(), "nods", 5, {"view/left": tiny.picture(1)})
    for track in (
        None,
        tiny.sound(CHUNK),
        tiny.sound(100),
        tiny.sound(5 * CHUNK),
        tiny.sound(CHUNK).astype(np.float64),
    ):
        stream.step(track, track)
        stream.set_prompt("smiles")
    assert [f._cache_size() for f in (generator.start, generator.chunk_step, generator.encode_prompt)] == programs


# --- references ----------------------------------------------------------------------------------------------------


def test_references_are_seen(pipe):
    def first(references):
        return pipe.open(tiny.picture(), seed=1, references=references).step().frames

    plain = first(None)
    np.testing.assert_array_equal(first({}), plain)
    assert (first({"expression/happy": tiny.picture(1)}) != plain).any()
    assert (first({"expression/happy": tiny.picture(1)}) != first({"expression/sad": tiny.picture(1)})).any()
    two = {"view/left": tiny.picture(1), "expression/happy": tiny.picture(2)}
    assert (first(two) != first({"view/left": tiny.picture(1)})).any()
    # Which slot a reference is in does not matter, only what it is.
    order = first(dict(reversed(two.items()))).astype(int)
    assert np.abs(order - first(two)).max() <= 1


@pytest.mark.parametrize("names, message", [
    (("view/left", "view/right", "view/back"), r"references: expected at most 2, found 3"),
    (("view/top",), r"reference 'view/top': expected one of view/front, view/left, .*expression/thinking"),
    (("global",), r"reference 'global': expected one of view/front, .*"),
])  # fmt: skip
def test_references_are_refused(pipe, names, message):
    with pytest.raises(InputError, match="^" + message + "$"):
        pipe.open(tiny.picture(), references={name: tiny.picture(1) for name in names})


# --- refusals ------------------------------------------------------------------------------------------------------


def test_bad_inputs_are_refused_before_the_first_chunk(pipe, tmp_path):
    """``stream`` itself raises, not the first ``next``."""
    good = {"image": tiny.picture(), "audio": tiny.sound(CHUNK)}
    for change, message in [
        ({"num_inference_steps": 4}, r"^num_inference_steps: this model was distilled for 2, found 4$"),
        ({"chunk_size": 24}, r"^chunk_size: this model was distilled for 12, found 24$"),
        ({"audio": None}, r"^audio: expected speech, listening audio or a length in seconds, found none$"),
        ({"audio": tmp_path / "no.wav"}, r"no.wav: expected a file, found nothing there$"),
        ({"audio": np.zeros((2, CHUNK), np.float32)}, r"^audio: expected mono samples"),
        ({"listen": np.full(CHUNK, np.nan, np.float32)}, r"^audio: expected finite samples"),
        ({"image": tmp_path / "no.png"}, r"no.png: expected a file, found nothing there$"),
        ({"image": np.zeros((8, 8, 3), np.uint8)}, r"no face-sized image"),
        ({"prompt": "x" * 2001}, r"^prompt: expected at most 2,000 characters, found 2,001"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            pipe.stream(**good | change)
        assert "\n" not in str(caught.value)
    ok = pipe.stream(**good, num_inference_steps=2, chunk_size=12)
    assert isinstance(ok, types.GeneratorType)


def test_prompt_too_long_for_a_live_stream(pipe):
    stream = pipe.open(tiny.picture())
    before = stream.step().frames
    with pytest.raises(InputError, match="2,000 characters"):
        stream.set_prompt("x" * 2001)
    assert before.shape == stream.step().frames.shape  # and goes on


# --- disk ----------------------------------------------------------------------------------------------------------


def test_save_and_load(pipe, tmp_path):
    pipe.save(tmp_path / "model")
    names = sorted(p.name for p in (tmp_path / "model").iterdir())
    assert names == ["config.json", "model-00001-of-00001.safetensors", "vae-00001-of-00001.safetensors"]
    loaded = Pipeline.from_pretrained(tmp_path / "model", "float32")
    assert loaded.config == pipe.config and hash(loaded.config) == hash(pipe.config)
    found, given = (params | {"vae": vae.plain(params["vae"])} for params in (loaded.params, pipe.params))
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), given)
    jax.tree.map(np.testing.assert_array_equal, found, rounded)
    ours, theirs = frames_of(play(pipe, seconds=0.5)), frames_of(play(loaded, seconds=0.5))
    assert np.abs(ours.astype(int) - theirs).mean() < 0.1 * ours.std()  # bfloat16 rounds to three digits
    pipe.save(tmp_path / "exact", jnp.float32)
    exact = Pipeline.from_pretrained(str(tmp_path / "exact"), "float32")
    jax.tree.map(np.testing.assert_array_equal, exact.params, pipe.params)


def test_a_folder_without_a_model_does_not_hide_the_bundled_one(tmp_path, monkeypatch):
    (tmp_path / "toy").mkdir()
    monkeypatch.chdir(tmp_path)
    assert pretrained.locate("toy") == pretrained.BUNDLED / "toy"


def test_missing_and_broken_models(pipe, tmp_path):
    with pytest.raises(
        InputError, match=r"^--model nobody: expected a bundled model \(.*\) or a folder with config.json$"
    ):
        Pipeline.from_pretrained("nobody")
    with pytest.raises(InputError, match="stream: expected settings among chunk, .* found 'chunks'"):
        Pipeline.from_pretrained("toy", stream={"chunks": 6})
    with pytest.raises(InputError, match="expected a bundled model"):
        Pipeline.from_pretrained(tmp_path)
    pipe.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    good = json.loads(path.read_text())
    for text, message in [
        ("{", r"config.json: expected a model's config, found .*"),
        ("{}", r"config.json: config: .*name.*"),
        ("\xff", r"config.json: expected a model's config, found .*"),
        (json.dumps(good | {"size": "32"}), r"config: Config.size: expected int, found '32'"),
        ("[]", r"config: expected fields of Config, found \[\]"),
        (json.dumps(good | {"colour": 1}), r"config: expected fields of Config, found 'colour'"),
        (json.dumps(good | {"dit": good["dit"] | {"width": 64}}), r"expected \[.*\], found \[.*\]"),
        (json.dumps(good | {"vae": good["vae"] | {"channels": 4}}), r"expected \[.*\], found \[.*\]"),
    ]:
        path.write_text(text, "latin-1")
        with pytest.raises(InputError, match=message) as caught:
            Pipeline.from_pretrained(tmp_path / "model")
        assert "\n" not in str(caught.value)
    path.write_text(json.dumps(good))
    next((tmp_path / "model").glob("vae-*")).unlink()
    with pytest.raises(InputError, match=r"expected vae\*.safetensors, found none"):
        Pipeline.from_pretrained(tmp_path / "model")


def test_configs_of_equal_content_share_their_programs(pipe):
    play(pipe, seconds=0.5)
    programs = generator.chunk_step._cache_size()
    play(Pipeline(dataclasses.replace(tiny.CONFIG), tiny.params()), seconds=0.5)
    assert generator.chunk_step._cache_size() == programs


@pytest.mark.parametrize("flags", ["avx2", "avx512_bf16", "avx512_bf16 amx_bf16"])
def test_the_decoder_convolves_by_tiles_where_that_is_faster(flags, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags} sse2\n")
    assert convolves_by_tiles(jnp.float32, tmp_path / "cpuinfo")
    assert convolves_by_tiles(jnp.bfloat16, tmp_path / "cpuinfo") == ("amx" not in flags)


def test_prepared_weights_decode_alike_and_are_not_saved(pipe, tmp_path):
    prepared = pipe.params["vae"]["decoder"]["block0"]["conv1"]
    assert prepared["winograd"].shape == (*prepared["kernel"].shape[:1], 16, *prepared["kernel"].shape[-2:])
    config, plain = pipe.config, vae.plain(pipe.params["vae"])
    assert "winograd" not in plain["decoder"]["block0"]["conv1"]
    latents = jax.random.normal(jax.random.key(0), (1, 3, *config.cells, config.vae.channels))
    frames = [vae.decode(config.vae, params, latents)[0] for params in (pipe.params["vae"], plain)]
    np.testing.assert_allclose(*frames, atol=1e-4)
    pipe.save(tmp_path / "copy", jnp.float32)
    assert jax.tree.structure(pretrained.load(tmp_path / "copy")[1]["vae"]) == jax.tree.structure(plain)


@pytest.mark.parametrize(
    ("flags", "version", "dtype"),
    [
        ("avx512f", (0, 12, 0), jnp.float32),
        ("avx512f amx_bf16", (0, 10, 2), jnp.bfloat16),
        ("avx512_bf16", (0, 10, 2), jnp.float32),
        ("avx512_bf16", (0, 12, 0), jnp.bfloat16),
    ],
)
def test_bfloat16_where_it_is_faster(flags, version, dtype, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags} sse2\n")
    monkeypatch.setattr(jax, "__version_info__", version)
    assert native_dtype(tmp_path / "cpuinfo") == dtype
    assert native_dtype(tmp_path / "nothing") == jnp.float32
