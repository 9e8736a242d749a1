"""The Wan 2.1 VAE against golden tensors of diffusers' ``AutoencoderKLWan`` (``tests/golden/make_wan_vae.py``)."""

import functools
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.models.vae import wan
from lpm_jax.tensors import flatten
from tests import tiny
from tests.golden.tensors import gather, read

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
NAMES = ("deep", "odd")


@functools.cache
def golden(name: str) -> tuple[wan.WanVAEConfig, dict, dict]:
    """The config, our parameters and the tensors that the reference made, of one golden file."""
    fields, weights, tensors = read(f"wan_vae_{name}")
    fields["temporal_downsample"] = fields.pop("temperal_downsample")
    config = wan.WanVAEConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    params, used = gather(wan.names(config), wan.abstract(config), weights)
    assert used == weights.keys()
    tensors = {key: jnp.asarray(x) for key, x in tensors.items()}
    return config, params, tensors


@functools.cache
def jitted(function, name: str, implementation: str | None = None):
    """``encode`` or ``decode`` of one golden model: ``(x, state) -> (y, state)``."""
    config, params, _ = golden(name)
    return jax.jit(lambda x, state: function(config, params, x, state, implementation))


def in_pieces(step, x: jax.Array, sizes) -> jax.Array:
    assert sum(sizes) == x.shape[1]
    state, parts = None, []
    for piece in jnp.split(x, np.cumsum(sizes)[:-1], axis=1):
        part, state = step(piece, state)
        parts.append(part)
    return jnp.concatenate(parts, axis=1)


def relative(got, want) -> float:
    """The norm of the difference, relative to the norm of what was wanted."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.linalg.norm(want) > 1
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


# Names and shapes


def test_full_size_names_and_shapes_are_those_of_both_checkpoints():
    rows = json.loads((GOLDEN / "wan_vae_names.json").read_text())
    config = wan.WanVAEConfig()
    named = wan.names(config)
    assert {original: diffusers for (diffusers, original), _ in named.values()} == {row[0]: row[1] for row in rows}
    shapes = {row[1]: row[2] for row in rows}
    flat = flatten(wan.abstract(config))
    for path, ((key, _), permutation) in named.items():
        assert tuple(shapes[key][i] for i in permutation) == flat[path].shape, path
    assert sum(x.size for x in flat.values()) == 126_892_531
    assert (config.group, config.stride) == (4, 8)


def test_fresh_parameters():
    config = golden("odd")[0]
    params = jax.jit(partial(wan.init, config))(jax.random.key(0))
    kernel = params["decoder"]["mid_block"]["resnets"]["0"]["conv1"]["kernel"]
    assert float(jnp.std(kernel)) == pytest.approx(kernel[..., 0].size ** -0.5, rel=0.05)
    assert not params["decoder"]["mid_block"]["attention"]["proj"]["kernel"].any()
    assert (params["decoder"]["norm_out"]["gain"] == 1).all()


# Parity with the reference


@pytest.mark.parametrize("name", NAMES)
def test_encode(name):
    _, _, tensors = golden(name)
    z, _ = jitted(wan.encode, name)(tensors["video"], None)
    assert relative(z, tensors["encoded"]) < 1e-5
    np.testing.assert_allclose(z, tensors["encoded"], atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_decode(name):
    _, _, tensors = golden(name)
    frames, _ = jitted(wan.decode, name)(tensors["latents"], None)
    assert relative(frames, tensors["decoded"]) < 1e-5
    np.testing.assert_allclose(frames, tensors["decoded"], atol=2e-5)
    assert float(jnp.mean(jnp.abs(tensors["decoded"]) == 1)) < 0.01  # the comparison is not between clipped pixels


@pytest.mark.parametrize("name, sizes", [("deep", (1, 2, 1, 1)), ("odd", (1, 3))])
def test_decode_in_chunks_as_the_reference_does(name, sizes):
    _, _, tensors = golden(name)
    frames = in_pieces(jitted(wan.decode, name), tensors["latents"], sizes)
    np.testing.assert_allclose(frames, jnp.clip(tensors["decoded_in_chunks"], -1, 1), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name):
    config, params, tensors = golden(name)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    z, past = jax.jit(partial(wan.encode, config))(half, tensors["video"])
    frames, _ = jax.jit(partial(wan.decode, config))(half, tensors["latents"])
    assert {x.dtype for x in past.values()} == {jnp.dtype(jnp.bfloat16)}
    assert z.dtype == frames.dtype == jnp.float32
    assert 1e-4 < relative(z, tensors["encoded"]) < 2e-2
    assert 1e-4 < relative(frames, tensors["decoded"]) < 2e-2


@pytest.mark.slow
def test_half_precision_in_a_wider_model():
    """All stages of the published model at a quarter of its width."""
    config = wan.WanVAEConfig(base_dim=24)
    params = tiny.fill(wan.abstract(config))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), half)  # the same weights: only the computation is rounded
    params["decoder"]["conv_out"]["kernel"] *= 0.5  # few clipped pixels; exact in half precision
    half["decoder"]["conv_out"]["kernel"] *= 0.5
    latents = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 2, 2, 16)), jnp.float32)
    step = jax.jit(lambda params: wan.decode(config, params, latents)[0])
    assert 1e-4 < relative(step(half), step(params)) < 2e-2


# Blocks


def block_run(state=None) -> wan._Run:
    return wan._Run(state, None)


def encoder_block(params: dict, child: str) -> dict:
    blocks = params["encoder"]["down_blocks"]
    return next(blocks[str(i)] for i in range(len(blocks)) if child in blocks[str(i)])


@pytest.mark.parametrize("name", NAMES)
def test_residual_block(name):
    _, params, tensors = golden(name)
    y = wan.residual(encoder_block(params, "conv_shortcut"), tensors["residual_in"], block_run(), "")
    np.testing.assert_allclose(y, tensors["residual_out"], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_attention_block(name):
    _, params, tensors = golden(name)
    y = wan.attention(params["decoder"]["mid_block"]["attention"], tensors["attention_in"], block_run())
    np.testing.assert_allclose(y, tensors["attention_out"], atol=1e-5)
    assert tiny.differs(y, tensors["attention_in"], 0.1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind, sizes", [("down", (5,)), ("down", (1, 2, 2)), ("up", (5,)), ("up", (1, 1, 3))])
def test_resampling_in_time(name, kind, sizes):
    """The first frame is halved or doubled in space only, and what follows it in one call or several is the same."""
    _, params, tensors = golden(name)
    if kind == "down":
        function, block = wan.downsample, encoder_block(params, "time_conv")
    else:
        stages = params["decoder"]["up_blocks"]
        block = next(s["upsampler"] for _, s in sorted(stages.items()) if "time_conv" in s.get("upsampler", {}))
        function = wan.upsample

    def step(x, state):
        run = block_run(state)
        return function(block, x, run, "block"), run.next

    y = in_pieces(step, tensors[f"{kind}_in"], sizes)
    np.testing.assert_allclose(y, tensors[f"{kind}_out"], atol=1e-5)


# Chunks


@pytest.mark.parametrize("name, sizes", [("deep", (1, 4, 4)), ("deep", (1, 8)), ("deep", (5, 4)), ("odd", (1, 2, 2))])
def test_encoding_in_pieces_equals_the_whole(name, sizes):
    video = golden(name)[2]["video"]
    step = jitted(wan.encode, name)
    np.testing.assert_allclose(in_pieces(step, video, sizes), step(video, None)[0], atol=1e-5)


@pytest.mark.parametrize(
    "name, sizes", [("deep", (1, 1, 1, 1, 1)), ("deep", (1, 4)), ("deep", (2, 3)), ("odd", (3, 1))]
)
def test_decoding_in_pieces_equals_the_whole(name, sizes):
    latents = golden(name)[2]["latents"]
    step = jitted(wan.decode, name)
    np.testing.assert_allclose(in_pieces(step, latents, sizes), step(latents, None)[0], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_states_have_one_shape_whatever_the_chunks(name):
    config, params, tensors = golden(name)
    group = config.group

    def shapes(function, x, *sizes):
        state = None
        for piece in jnp.split(x, np.cumsum(sizes), axis=1)[:-1]:
            state = jax.eval_shape(partial(function, config, params), piece, state)[1]
        return state

    latents, video = tensors["latents"], tensors["video"]
    once = shapes(wan.decode, latents, 1)
    assert (
        once == shapes(wan.decode, latents, 3) == shapes(wan.decode, latents, 1, 1) == shapes(wan.decode, latents, 1, 3)
    )
    assert {x.shape[1] for x in once.values()} == {2}
    once = shapes(wan.encode, video, 1)
    assert once == shapes(wan.encode, video, 1, group) == shapes(wan.encode, video, 1 + group)


def test_carried_state_matters():
    """Each entry does: the chunks above do not agree by accident."""
    latents = golden("odd")[2]["latents"]
    step = jitted(wan.decode, "odd")
    _, state = step(latents[:, :3], None)
    want, _ = step(latents[:, 3:], state)
    for name, past in state.items():
        got, _ = step(latents[:, 3:], state | {name: jnp.zeros_like(past)})
        assert tiny.differs(got, want, 1e-3), name


def test_later_frames_change_no_earlier_latent():
    video = golden("deep")[2]["video"]
    step = jitted(wan.encode, "deep")
    whole = step(video, None)[0]
    for frame, first_latent in [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)]:
        changed = step(video.at[:, frame].add(0.5), None)[0]
        np.testing.assert_array_equal(changed[:, :first_latent], whole[:, :first_latent])
        assert tiny.differs(changed[:, first_latent], whole[:, first_latent], 1e-3)


def test_later_latents_change_no_earlier_frame():
    latents = golden("deep")[2]["latents"]
    step = jitted(wan.decode, "deep")
    whole = step(latents, None)[0]
    for latent, first_frame in [(0, 0), (1, 1), (2, 5), (4, 13)]:
        changed = step(latents.at[:, latent].add(0.5), None)[0]
        np.testing.assert_array_equal(changed[:, :first_frame], whole[:, :first_frame])
        assert tiny.differs(changed[:, first_frame], whole[:, first_frame], 1e-3)


# Platforms and devices


@pytest.mark.parametrize("function, key", [(wan.encode, "video"), (wan.decode, "latents")])
def test_the_other_convolution_gives_the_same(function, key):
    x = golden("odd")[2][key]
    got, want = (jitted(function, "odd", kind)(x, None)[0] for kind in ("conv3d", "sum"))
    np.testing.assert_allclose(got, want, atol=1e-5)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from jax.sharding import NamedSharding, PartitionSpec
from tests.models.test_wan_vae import golden, wan

assert jax.device_count() == 8
config, params, _ = golden("odd")
latents = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 4, 8, 3)), jnp.float32)
one = jax.jit(partial(wan.decode, config))
first, state = one(params, latents[:, :1])
second, _ = one(params, latents[:, 1:], state)
for over, devices in (("width", 8), ("height", 4)):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("space",))
    space, whole = wan.space_sharding(mesh, "space", over), NamedSharding(mesh, PartitionSpec())
    start = jax.jit(partial(wan.decode, config), in_shardings=(whole, space), out_shardings=space)
    step = jax.jit(partial(wan.decode, config), in_shardings=(whole, space, space), out_shardings=space)
    frames, past = start(params, latents[:, :1])
    compiled = step.lower(params, latents[:, 1:], past).compile()
    more, past = compiled(params, jax.device_put(latents[:, 1:], space), past)
    np.testing.assert_allclose(frames, first, atol=1e-5)
    np.testing.assert_allclose(more, second, atol=1e-5)
    axis = {"height": 2, "width": 3}[over]
    for x in (frames, more, *past.values()):
        assert x.sharding.shard_shape(x.shape)[axis] * devices == x.shape[axis]
    text = compiled.as_text()
    print(over, text.count(" collective-permute("), text.count(" all-gather("), text.count(" all-reduce("))
"""


@pytest.mark.slow
def test_decode_split_over_devices_equals_one_device():
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    out = subprocess.run([sys.executable, "-c", SHARDED], cwd=ROOT, env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    counts = {over: [int(n) for n in numbers] for over, *numbers in map(str.split, out.stdout.splitlines())}
    assert counts.keys() == {"width", "height"}
    for permutes, gathers, reduces in counts.values():
        assert permutes > 0  # edges go to neighbours
        assert (gathers, reduces) == (2, 0)  # the attention's keys and values, and nothing else


# Bad input


@pytest.mark.parametrize("frames", [0, 2, 4, 8])
def test_wrong_number_of_frames_at_the_start(frames):
    config, params, tensors = golden("deep")
    with pytest.raises(ValueError, match=rf"expected 4 k \+ 1 frames, found {frames}$"):
        wan.encode(config, params, tensors["video"][:, :frames])


@pytest.mark.parametrize("frames", [0, 1, 5])
def test_wrong_number_of_frames_going_on(frames):
    config, params, tensors = golden("deep")
    with pytest.raises(ValueError, match=rf"expected 4 k frames, found {frames}$"):
        wan.encode(config, params, tensors["video"][:, :frames], {})


def test_no_latents():
    config, params, tensors = golden("deep")
    with pytest.raises(ValueError, match="expected latent frames, found none"):
        wan.decode(config, params, tensors["latents"][:, :0])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"attn_scales": (0.5,)}, "attn_scales: expected none"),
        ({"dim_mult": (1, 2)}, "temporal_downsample: expected 1 values, found 3"),
        ({"z_dim": 4}, "latents_mean: expected 4 values, found 16"),
    ],
)
def test_configs_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        wan.WanVAEConfig(**fields)


def test_unknown_side_to_split():
    with pytest.raises(ValueError, match="expected 'height' or 'width', found 'time'"):
        wan.space_sharding(jax.sharding.Mesh(np.array(jax.devices()[:1]), ("space",)), "space", "time")
