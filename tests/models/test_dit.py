"""The transformer: which token may hear, read or see which, and where everything stands."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.config import DiTConfig
from lpm_jax.models import conditions, dit
from lpm_jax.models.text import tokenize
from tests import tiny

CONFIG = tiny.CONFIG
CFG = CONFIG.dit
FRAMES, CHUNK, REFERENCES, TOKENS = 6, 3, 3, 4
HISTORY = 8  # audio tokens before the first frame


def draw(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(scope="module")
def params():
    return {k: v for k, v in tiny.params().items() if k != "vae"}


@pytest.fixture(scope="module")
def batch():
    """Everything a pass reads; two clips."""
    audio = (2, HISTORY + 4 * FRAMES, tiny.FEATURES)
    return {
        "noisy": draw(0, 2, FRAMES, TOKENS, 32),
        "near": draw(4, 2, FRAMES, TOKENS, 32),
        "levels": jnp.tile(jnp.linspace(0.2, 1.0, FRAMES), (2, 1)),
        "references": draw(1, 2, REFERENCES, TOKENS, 32),
        "kinds": jnp.array([[0, 1, 3], [0, 1, 7]]),
        "valid": jnp.array([[True, True, True], [True, True, False]]),
        "text": jnp.asarray(np.stack([tokenize(CONFIG.text, "smiles, nods"), tokenize(CONFIG.text, "")])),
        "speak": draw(2, *audio),
        "listen": draw(3, *audio),
        "life": draw(5, 2, FRAMES, 6),
    }


def run(chunk, params, batch, order=None, text=(1.0, 1.0), audio=(1.0, 1.0)):
    """:func:`_run` with the branches kept that ``text`` and ``audio`` say for each clip."""
    return _run(chunk, params, batch, order, {"text": jnp.array(text), "audio": jnp.array(audio)})


@partial(jax.jit, static_argnums=0)
def _run(chunk, params, batch, order, keep):
    """Output for the video frames, and the keys and values of every layer and frame."""
    told = conditions.encode(CONFIG, params, batch["text"], batch["speak"], batch["listen"], FRAMES, chunk, keep)
    told = told._replace(life=batch["life"])
    patches, near = jnp.concatenate([batch["noisy"], batch["references"]], axis=1), batch["near"]
    levels = jnp.concatenate([batch["levels"], jnp.zeros((2, REFERENCES))], axis=1)
    times = jnp.concatenate(
        [jnp.tile(jnp.arange(float(FRAMES)), (2, 1)), conditions.reference_times(CFG, batch["kinds"])], axis=1
    )
    mask = conditions.visibility(FRAMES, chunk, batch["valid"])
    at = conditions.positions(CFG, times, mask, (2, 2), order)
    if order is not None:
        patches, near = (jnp.take_along_axis(x, order[:, None, :, None], axis=2) for x in (patches, near))
    # A cache that nothing reads, only to see what the blocks would store.
    slots = FRAMES + REFERENCES
    cache = dit.Cache(*[jnp.zeros((CFG.depth // 2, 2, 2, slots, TOKENS, CFG.heads, CFG.head_dim))] * 2)
    mask = jnp.concatenate([jnp.zeros((2, slots, slots), bool), at.mask.dense()], 2)
    at = dit.Positions(at.own, jnp.zeros((1, slots * TOKENS, CFG.head_dim // 2)), mask)
    return dit.forward(CFG, params["dit"], patches, levels, FRAMES, told, at, cache, 0, near=near)


@pytest.fixture(scope="module")
def base(params, batch):
    """Output and cache of the teacher, bidirectional."""
    return run(None, params, batch)


@pytest.fixture(scope="module")
def causal(params, batch):
    return run(CHUNK, params, batch)


def without_values(params: dict, kind: str) -> dict:
    """``params`` whose blocks of one kind have no audio values."""
    block = params["dit"]["blocks"][kind]
    block = block | {"audio_v": jax.tree.map(jnp.zeros_like, block["audio_v"])}
    return params | {"dit": params["dit"] | {"blocks": params["dit"]["blocks"] | {kind: block}}}


# --- audio -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, other", [("speak", "listen"), ("listen", "speak")])
def test_each_sound_moves_only_through_its_own_blocks(params, batch, base, kind, other):
    def louder(which):
        return batch | {which: batch[which] + 1.0}

    assert tiny.differs(run(None, params, louder(kind))[0], base[0], 1e-3)
    mute = without_values(params, kind)
    quiet = run(None, mute, batch)[0]
    np.testing.assert_array_equal(run(None, mute, louder(kind))[0], quiet)
    assert tiny.differs(run(None, mute, louder(other))[0], quiet, 1e-3)


def test_speak_blocks_come_first(params, batch, base):
    """Even blocks speak, odd ones listen: only from the second pair on do the speak blocks' keys know the listening."""
    _, heard = run(None, params, batch | {"listen": batch["listen"] + 1.0})
    _, spoken = run(None, params, batch | {"speak": batch["speak"] + 1.0})
    same = lambda a, pair, which: not tiny.differs(a.k[pair, which], base[1].k[pair, which], 1e-6)  # noqa: E731
    assert [same(heard, *at) for at in ((0, 0), (0, 1), (1, 0), (1, 1))] == [True, True, False, False]
    assert [same(spoken, *at) for at in ((0, 0), (0, 1), (1, 0), (1, 1))] == [True, False, False, False]


def test_fresh_model_does_not_hear(batch):
    fresh = jax.jit(partial(conditions.init, CONFIG))(jax.random.key(0))
    assert not fresh["dit"]["head"]["projection"]["kernel"].any()
    for kind in dit.KINDS:
        assert fresh["dit"]["blocks"][kind]["audio_v"]["kernel"].shape == (2, 16, 32)
        assert not fresh["dit"]["blocks"][kind]["audio_v"]["kernel"].any()
    louder = batch | {"speak": batch["speak"] + 1.0, "listen": batch["listen"] - 1.0}
    assert not run(None, fresh, batch)[0].any()  # nothing comes out of a fresh head
    head = fresh["dit"]["head"] | {"projection": tiny.params()["dit"]["head"]["projection"]}
    opened = fresh | {"dit": fresh["dit"] | {"head": head}}
    out = run(None, opened, batch)[0]
    assert jnp.std(out) > 0.1
    np.testing.assert_array_equal(run(None, opened, louder)[0], out)
    assert tiny.differs(run(None, opened, batch | {"text": batch["text"][::-1]})[0], out, 1e-3)  # but it reads


def test_audio_shares_its_queries_with_text(params):
    for kind in dit.KINDS:
        block = params["dit"]["blocks"][kind]
        assert {name for name in block if "audio" in name} == {"audio_k", "audio_v", "audio_o", "norm_audio_k"}
        assert {name for name in block if "text" in name} == {
            "text_q", "text_k", "text_v", "text_o", "norm_text_q", "norm_text_k",
        }  # fmt: skip


def test_dropped_branches(params, batch, base):
    without = run(None, params, batch, audio=(0.0, 1.0))[0]
    louder = batch | {"speak": batch["speak"] + 1.0, "listen": batch["listen"] + 1.0}
    with_louder = run(None, params, louder, audio=(0.0, 1.0))[0]
    np.testing.assert_array_equal(with_louder[0], without[0])
    assert tiny.differs(with_louder[1], without[1], 1e-3)
    # Dropped text is the empty prompt.
    empty = run(None, params, batch | {"text": batch["text"][1:].repeat(2, 0)})[0]
    np.testing.assert_allclose(run(None, params, batch, text=(0.0, 1.0))[0][0], empty[0], atol=1e-5)
    assert tiny.differs(empty[0], base[0][0], 1e-3)


# --- references --------------------------------------------------------------------------------------------------


def test_references_are_appended_and_do_not_come_out(params, batch, base):
    assert base[0].shape == (
        2,
        FRAMES,
        TOKENS,
        32 + 2 * 8 + 4 * 3,
    )  # a patch's values, its channels' gates, motions in four frames
    # Their order among each other does not matter as long as each keeps its place on the time axis.
    other = batch | {name: batch[name][:, ::-1] for name in ("references", "kinds", "valid")}
    out, cache = run(None, params, other)
    np.testing.assert_allclose(out, base[0], atol=1e-4)
    np.testing.assert_allclose(cache.k[:, :, :, FRAMES:], base[1].k[:, :, :, FRAMES:][:, :, :, ::-1], atol=1e-4)


@pytest.mark.parametrize("chunk", [None, CHUNK])
@pytest.mark.parametrize("what", ["noisy", "levels", "speak", "listen", "text"])
def test_references_read_nothing_but_references(params, batch, base, causal, chunk, what):
    _, before = causal if chunk else base
    changed = batch | {what: batch[what][::-1] if what == "text" else 0.7 * batch[what]}
    _, after = run(chunk, params, changed)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new[:, :, :, FRAMES:], old[:, :, :, FRAMES:])
        assert tiny.differs(new[-1, :, :, :FRAMES], old[-1, :, :, :FRAMES], 1e-3)


def test_references_read_each_other(params, batch, base):
    _, after = run(None, params, batch | {"references": batch["references"].at[:, 1].add(1.0)})
    assert tiny.differs(after.k[-1, :, :, FRAMES], base[1].k[-1, :, :, FRAMES], 1e-3)


def test_absent_references_count_for_nothing(params, batch, base):
    changed = batch | {"references": batch["references"].at[:, 2].add(1.0)}
    out, cache = run(None, params, changed)
    assert tiny.differs(out[0], base[0][0], 1e-3)  # valid in the first clip
    np.testing.assert_array_equal(out[1], base[0][1])  # absent in the second
    np.testing.assert_array_equal(cache.k[:, :, 1, : FRAMES + 2], base[1].k[:, :, 1, : FRAMES + 2])
    assert jnp.isfinite(cache.k).all() and jnp.isfinite(cache.v).all()


def test_a_reference_means_something_by_its_kind(params, batch, base):
    out, _ = run(None, params, batch | {"kinds": jnp.array([[0, 1, 9], [0, 1, 9]])})
    assert tiny.differs(out[0], base[0][0], 1e-4)
    np.testing.assert_array_equal(out[1], base[0][1])


def test_reference_times():
    config = DiTConfig(
        first_frame_offset=-1.0, global_offset=-8.0, view_offset=-16.0, expression_offset=-32.0, reference_stride=0.5
    )
    times = conditions.reference_times(config, jnp.arange(14))
    assert times.tolist() == [
        -1, -8, -16, -16.5, -17, -17.5, -32, -32.5, -33, -33.5, -34, -34.5, -35, -35.5,
    ]  # fmt: skip


# --- time --------------------------------------------------------------------------------------------------------


def test_visibility_by_hand():
    mask = conditions.visibility(4, 2, jnp.array([[True, False]])).dense()
    assert mask[0].astype(int).tolist() == [
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 0],
    ]
    whole = conditions.visibility(4, None, jnp.array([[True, False]])).dense()
    assert whole[0, :4].astype(int).tolist() == [[1, 1, 1, 1, 1, 0]] * 4


def later(batch: dict, what: str) -> dict:
    """``batch`` with something of the second chunk changed."""
    start = HISTORY + 4 * CHUNK if what in ("speak", "listen") else CHUNK
    return batch | {what: batch[what].at[:, start:].multiply(0.5)}


@pytest.mark.parametrize("what", ["noisy", "levels", "speak", "listen"])
def test_a_later_chunk_changes_nothing_earlier(params, batch, base, causal, what):
    out, cache = run(CHUNK, params, later(batch, what))
    np.testing.assert_array_equal(out[:, :CHUNK], causal[0][:, :CHUNK])
    np.testing.assert_array_equal(cache.v[:, :, :, :CHUNK], causal[1].v[:, :, :, :CHUNK])
    assert tiny.differs(out[:, CHUNK:], causal[0][:, CHUNK:], 1e-3)
    # The teacher sees both ways.
    assert tiny.differs(run(None, params, later(batch, what))[0][:, :CHUNK], base[0][:, :CHUNK], 1e-4)


def test_an_earlier_chunk_changes_what_follows(params, batch, causal):
    out, _ = run(CHUNK, params, batch | {"noisy": batch["noisy"].at[:, 0].add(1.0)})
    assert tiny.differs(out[:, CHUNK:], causal[0][:, CHUNK:], 1e-3)
    assert tiny.differs(out[:, 1:CHUNK], causal[0][:, 1:CHUNK], 1e-3)  # within a chunk, both ways


def test_modulation_follows_each_frames_own_level(params, batch, base):
    """Another noise level changes its own frame by far the most; the others only through attention."""
    out, _ = run(None, params, batch | {"levels": batch["levels"].at[:, 4].set(0.0)})
    change = jnp.abs(out - base[0]).mean((0, 2, 3))
    assert int(change.argmax()) == 4 and change[4] > 3 * jnp.delete(change, 4).max()


def test_clips_of_a_batch_do_not_mix(params, batch, base):
    out, _ = run(None, params, batch | {"noisy": batch["noisy"].at[0].add(1.0)})
    np.testing.assert_allclose(out[1], base[0][1], atol=1e-6)


# --- patches -----------------------------------------------------------------------------------------------------


def test_patches():
    x = jnp.arange(2 * 3 * 4 * 6 * 5.0).reshape(2, 3, 4, 6, 5)
    patches = dit.patchify(CFG, x)
    assert patches.shape == (2, 3, 6, 20)
    np.testing.assert_array_equal(patches[1, 2, 4], x[1, 2, 2:4, 2:4].reshape(-1))  # row 1, column 1 of 2 x 3
    np.testing.assert_array_equal(dit.unpatchify(CFG, patches, 4, 6), x)


def test_a_permuted_selection_of_patches_gives_the_permuted_output(params, batch, causal):
    order = jnp.array([[2, 0, 3, 1], [1, 3, 0, 2]])
    out, _ = run(CHUNK, params, batch, order)
    want = jnp.take_along_axis(causal[0], order[:, None, :, None], axis=2)
    np.testing.assert_allclose(out, want, atol=1e-4)


def test_selected_patches_stand_where_they_stood():
    mask = conditions.visibility(2, None, jnp.array([[True], [False]]))
    times = jnp.array([[0.0, 1.0, -8.0], [0.0, 1.0, -8.0]])
    whole = conditions.positions(CFG, times, mask, (2, 3))
    keep = jnp.array([[0, 4], [2, 3]])
    some = conditions.positions(CFG, times, mask, (2, 3), keep)
    angles = whole.own.reshape(2, 3, 6, -1)
    for b in range(2):
        np.testing.assert_array_equal(some.own.reshape(2, 3, 2, -1)[b], angles[b][:, keep[b]])
    assert some.mask is mask and whole.mask is mask


# --- parameters --------------------------------------------------------------------------------------------------


def count(tree) -> int:
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def formula(c: DiTConfig) -> tuple[int, int]:
    """Parameters of the backbone, and what the audio branches add."""
    d, f, pixels = c.width, c.ffn, c.patch**2 * c.channels
    dense = lambda i, o: i * o + o  # noqa: E731
    block = 8 * dense(d, d) + 4 * d + 2 * d + dense(d, f) + dense(f, d) + 6 * d
    audio = 2 * dense(c.audio_width, d) + dense(d, d) + d
    ends = dense(pixels, d) + dense(c.time_width, d) + dense(d, d) + dense(d, 6 * d)
    ends += dense(c.text_width, d) + dense(d, d) + 2 * d + dense(d, pixels)
    ends += dense(d, 2 * c.channels) + dense(pixels, d) if c.prediction == "clean" else 0  # gates, near latent
    ends += dense(6, d) if c.life else 0
    ends += dense(d, 4 * c.warp) if c.warp else 0
    return c.depth * block + ends, c.depth * audio


LARGE = DiTConfig(
    depth=40, width=5120, heads=40, ffn=13824, channels=16, text_width=4096, audio_width=5120, prediction="velocity"
)


@pytest.mark.parametrize("config", [CFG, DiTConfig(), LARGE], ids=["tiny", "toy", "17B"])
def test_parameter_count(config):
    shapes = jax.eval_shape(lambda: dit.init(config, jax.random.key(0)))
    assert count(shapes) == sum(formula(config))
    audio = {k: v for kind in dit.KINDS for k, v in shapes["blocks"][kind].items() if "audio" in k}
    assert 2 * count(audio) == formula(config)[1]


def test_the_large_model_has_the_papers_size():
    backbone, audio = formula(LARGE)
    assert backbone == pytest.approx(14.3e9, rel=0.01)
    assert audio == pytest.approx(3.15e9, rel=0.01)


def test_every_parameter_reaches_the_output(params, batch, base):
    idle = []
    leaves, tree = jax.tree.flatten(params)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for i, name in enumerate(names):
        if name.startswith(("['prior']", "['warp']")):  # belong to flow.py
            continue
        noise = np.random.default_rng(i).normal(size=leaves[i].shape).astype(np.float32)
        changed = jax.tree.unflatten(tree, [*leaves[:i], leaves[i] + noise, *leaves[i + 1 :]])
        if not tiny.differs(run(None, changed, batch)[0], base[0], 1e-5):
            idle.append(name)
    assert idle == []


def test_depth_is_in_pairs():
    shapes = jax.eval_shape(lambda: dit.init(dataclasses.replace(CFG, depth=6), jax.random.key(0)))
    for kind in dit.KINDS:
        assert shapes["blocks"][kind]["q"]["kernel"].shape == (3, 32, 32)
