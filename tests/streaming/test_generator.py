"""The streaming step equals models without a cache, compiles once, owns its memory and never ages."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.config import StreamConfig
from lpm_jax.flow import add_noise, clean_from_output, network_input
from lpm_jax.models import conditions, dit, life
from lpm_jax.models.audio import FFT, TOKEN, log_mel
from lpm_jax.models.text import tokenize
from lpm_jax.models.vae import toy
from lpm_jax.models.warp import Warp, picture
from lpm_jax.nn.rope import angles_3d
from lpm_jax.streaming import generator
from tests import tiny

CONFIG = dataclasses.replace(tiny.CONFIG, stream=StreamConfig(chunk=2, sink=1, window=2))
CFG, STREAM = CONFIG.dit, CONFIG.stream
CHUNKS = 7  # the window slides from chunk 4 on
REACH = STREAM.sink + STREAM.window
VALID = (True, True, True, False)  # first frame, global, one expression, an empty slot
KINDS = (0, 1, 7, 2)
REFS, TOKENS, DIM = 4, 4, 32
SAMPLES = STREAM.chunk * 4 * TOKEN
SEED = 5

latent_step = jax.jit(generator.latent_step, static_argnums=0)


def ids(prompt: str) -> np.ndarray:
    return tokenize(CONFIG.text, prompt)[None]


def begin(seed: int = SEED, prompt: str = "smiles") -> generator.StreamState:
    pictures = np.stack([tiny.picture(i) for i in (0, 0, 1, 2)])[None]
    return generator.start(
        CONFIG,
        tiny.params(CONFIG),
        pictures,
        np.array([KINDS], np.int32),
        np.array([VALID]),
        ids(prompt),
        jax.random.key(seed),
    )


def track(name: str) -> np.ndarray:
    """One stream's sound, with a quiet and a loud half."""
    sound = tiny.sound(CHUNKS * SAMPLES, seed=len(name), loudness=0.2)
    sound[: len(sound) // 2] *= 0.05
    return sound


def sounds(n: int) -> list[np.ndarray]:
    return [track(name)[None, n * SAMPLES : (n + 1) * SAMPLES] for name in dit.KINDS]


def copy(state):
    """Own buffers, as the streaming step eats its state."""
    return jax.tree.map(jnp.copy, state)


@pytest.fixture(scope="module")
def latents() -> list[jax.Array]:
    """What the stream makes of the sounds, chunk by chunk."""
    state, out = begin(), []
    for n in range(CHUNKS):
        state, chunk = latent_step(CONFIG, tiny.params(CONFIG), state, *sounds(n))
        out.append(chunk)
    return out


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    state, out = begin(), []
    for n in range(CHUNKS):
        state, chunk = generator.chunk_step(CONFIG, tiny.params(CONFIG), state, *sounds(n))
        out.append(np.asarray(chunk))
    return out


# --- equality with models that have no cache -----------------------------------------------------------------------


class Reference:
    """The stream computed in the open: references, sounds and noise from the same inputs, no ring, no cache."""

    def __init__(self):
        self.params = tiny.params(CONFIG)
        pictures = np.stack([tiny.picture(i) for i in (0, 0, 1, 2)])
        encoded = toy.encode(CONFIG.vae, self.params["vae"], toy.to_unit(pictures[:, None]))[0]
        self.latents = encoded[:, 0][None]
        self.references = dit.patchify(CFG, self.latents)
        self.anchor = self.references[:, 1:2]
        warp = self.params["warp"]
        self.warp = Warp(CFG, warp, picture(warp, self.latents[:, 1]))
        self.valid = jnp.array([VALID])
        self.reference_times = conditions.reference_times(CFG, jnp.array([KINDS]))

    def shown(self, noisy, levels):
        return network_input(CFG.prediction, noisy, levels, self.anchor, self.params["prior"]["variance"])

    def clean(self, out, shown, levels, near, draft=None):
        """The estimate of the network's output."""
        out, moves = dit.split_moves(CFG, out)
        return clean_from_output(CFG.prediction, out, shown, levels, self.anchor, near, draft, self.warp(moves))

    def near(self, last):
        return self.anchor + STREAM.carry * (last - self.anchor)

    def told(self, chunks: int):
        """Conditions of the first ``chunks`` chunks in one piece."""
        history = np.zeros(generator.history_samples(CONFIG), np.float32)
        mel = [
            jnp.asarray(log_mel(CONFIG.audio, np.concatenate([history, track(name)[: chunks * SAMPLES]]), np))[None]
            for name in dit.KINDS
        ]
        encoded = conditions.encode(
            CONFIG, self.params, jnp.asarray(ids("smiles")), *mel, chunks * STREAM.chunk, STREAM.chunk
        )
        key, lives = jax.random.key(SEED), []
        state = life.begin(jax.random.fold_in(key, 3), 1)
        for _ in range(chunks):
            state, drawn = life.onward(state, STREAM.chunk, jax.random.fold_in(key, 2))
            key = jax.random.split(key)[0]
            lives.append(drawn)
        return encoded._replace(life=jnp.concatenate(lives, axis=1))

    def noise(self) -> list[list[jax.Array]]:
        """``[chunk][evaluation]`` as the stream draws it."""
        key, out = jax.random.key(SEED), []
        for _ in range(CHUNKS):
            key, draw = jax.random.split(key)
            shape = (1, STREAM.chunk, TOKENS, DIM)
            out.append([jax.random.normal(jax.random.fold_in(draw, i), shape) for i in range(2)])
        return out


@pytest.fixture(scope="module")
def reference():
    return Reference()


def test_stream_equals_the_block_causal_model(reference, latents):
    """While the window has not slid: one plain pass over all chunks, the past ones at T1, and no cache."""
    ref, chunks = reference, REACH + 1
    count = chunks * STREAM.chunk
    told = ref.told(chunks)
    times = jnp.concatenate([jnp.arange(float(count))[None], ref.reference_times], axis=1)
    mask = conditions.visibility(count, STREAM.chunk, ref.valid)
    positions = conditions.positions(CFG, times, mask, (2, 2))

    @jax.jit
    def plain(video, levels, near, draft):
        levels = jnp.concatenate([jnp.repeat(levels, STREAM.chunk), jnp.zeros(REFS)])[None]
        shown = ref.shown(video, levels[:, :count])
        patches = jnp.concatenate([shown, ref.references], axis=1)
        known = near - ref.anchor
        out, _ = dit.forward(CFG, ref.params["dit"], patches, levels, count, told, positions, near=known)
        return ref.clean(out, shown, levels[:, :count], near, draft)

    t0, t1 = STREAM.levels
    video, noise, worst = jnp.zeros((1, count, TOKENS, DIM)), ref.noise(), 0.0
    near, last = jnp.zeros_like(video), ref.references[:, :1]
    for n in range(chunks):
        at = slice(n * STREAM.chunk, (n + 1) * STREAM.chunk)
        video, near = video.at[:, at].set(noise[n][0]), near.at[:, at].set(ref.near(last))
        nothing = jnp.broadcast_to(ref.anchor, video.shape)
        clean = plain(video, jnp.full(chunks, t1).at[n].set(t0), near, nothing)[:, at]
        video = video.at[:, at].set(add_noise(clean, noise[n][1], jnp.full((1, STREAM.chunk), t1)))
        clean = plain(video, jnp.full(chunks, t1), near, nothing.at[:, at].set(clean))[:, at]
        last = clean[:, -1:]
        worst = max(worst, float(jnp.abs(dit.unpatchify(CFG, clean, 4, 4) - latents[n]).max()))
    assert jnp.std(latents[0]) > 0.5
    assert worst < 1e-4


def test_stream_equals_lists_of_keys_past_the_slide(reference, latents):
    """Each chunk's keys and values, kept in a list per block, with the true ages of those that count."""
    ref = reference
    told = ref.told(CHUNKS)
    blocks = [
        jax.tree.map(lambda x, pair=pair: x[pair], ref.params["dit"]["blocks"][kind])
        for pair in range(CFG.depth // 2)
        for kind in dit.KINDS
    ]
    module = dit.Block(CFG)

    def evaluate(patches, levels, near, video, hear, alive, own_times, past, past_times, mask):
        """All blocks, each with its own list of earlier keys and values; returns the output and the new ones."""
        embed = {"params": ref.params["dit"]["embed"]}
        x, t, e, text = dit.Embed(CFG).apply(embed, patches, levels, told.text, near - ref.anchor, alive)
        own = angles_3d(own_times, 2, 2, CFG.head_dim)
        positions = dit.Positions(own, angles_3d(past_times, 2, 2, CFG.head_dim), mask)
        new = []
        for i, weights in enumerate(blocks):
            context = dit.Context(*(jnp.concatenate([kv[i][which] for kv in past], axis=1) for which in (0, 1)))
            x, kv = module.apply(
                {"params": weights}, x, e, video, text, told.text_mask, hear[i % 2], positions, context
            )
            new.append(kv)
        out = dit.Head(CFG).apply({"params": ref.params["dit"]["head"]}, x[:, :video], t[:, :video])
        return out, new

    # The references among themselves, before any video.
    see = conditions.visibility(0, None, ref.valid)
    x, _, e, text = dit.Embed(CFG).apply(
        {"params": ref.params["dit"]["embed"]}, ref.references, jnp.zeros((1, REFS)), told.text
    )
    pinned = []
    for weights in blocks:
        own = dit.Positions(angles_3d(ref.reference_times, 2, 2, CFG.head_dim), None, see)
        x, kv = module.apply({"params": weights}, x, e, 0, text, told.text_mask, told.speak, own)
        pinned.append(kv)

    blank = [tuple(jnp.zeros((1, STREAM.chunk, TOKENS, CFG.heads, CFG.head_dim)) for _ in "kv") for _ in blocks]
    step = jax.jit(partial(evaluate, video=STREAM.chunk))
    kept: list[list] = []  # per chunk, per block
    noise, worst, last = ref.noise(), [], ref.references[:, :1]
    for n in range(CHUNKS):
        seen = [c for c in range(n) if c < STREAM.sink or n - c <= STREAM.window]
        now = float(min(n, REACH) * STREAM.chunk)
        starts = [c * STREAM.chunk if c < STREAM.sink else now - (n - c) * STREAM.chunk for c in seen]
        missing = REACH - len(seen)  # only so that shapes stay the same
        past = [pinned, *(kept[c] for c in seen), *[blank] * missing]
        offsets = np.arange(STREAM.chunk)
        times = [np.asarray(ref.reference_times[0]), *(s + offsets for s in starts), *[offsets] * missing]
        present = np.array(VALID) & np.array([n <= REACH, True, True, True])  # the first frame leaves the axis
        mask = [present, *[np.ones(STREAM.chunk, bool)] * len(seen), *[np.zeros(STREAM.chunk, bool)] * missing]
        mask = np.concatenate([*mask, np.ones(STREAM.chunk, bool)])
        hear = []
        for kind in dit.KINDS:
            audio = getattr(told, kind)
            at = slice(n * STREAM.chunk, (n + 1) * STREAM.chunk)
            hear.append(audio._replace(mask=audio.mask[:, at], query_angles=audio.query_angles[at]))
        arguments = {
            "hear": hear,
            "alive": told.life[:, n * STREAM.chunk : (n + 1) * STREAM.chunk],
            "own_times": jnp.asarray(now + offsets)[None],
            "past": past,
            "past_times": jnp.asarray(np.concatenate(times), jnp.float32)[None],
            "mask": jnp.asarray(mask)[None, None],
        }
        t0, t1 = (jnp.full((1, STREAM.chunk), level) for level in STREAM.levels)
        near = jnp.broadcast_to(ref.near(last), noise[n][0].shape)
        shown = ref.shown(noise[n][0], t0)
        out, _ = step(shown, t0, near, **arguments)
        draft = ref.clean(out, shown, t0, near)
        shown = ref.shown(add_noise(draft, noise[n][1], t1), t1)
        out, new = step(shown, t1, near, **arguments)
        kept.append(new)
        clean = ref.clean(out, shown, t1, near, draft)
        last = clean[:, -1:]
        clean = dit.unpatchify(CFG, clean, 4, 4)
        worst.append(float(jnp.abs(clean - latents[n]).max()))
    assert max(worst) < 1e-4, worst


def test_frames_equal_decoding_everything_at_once(reference, latents, frames):
    whole = jnp.concatenate([reference.latents[:, :1], *latents], axis=1)
    video, _ = toy.decode(CONFIG.vae, tiny.params(CONFIG)["vae"], whole)
    want = np.asarray(toy.to_pixels(video))[:, 1:].astype(int)  # the picture itself is not shown again
    got = np.concatenate(frames, axis=1).astype(int)
    assert got.shape == want.shape == (1, CHUNKS * STREAM.chunk * 4, 32, 32, 3)
    assert np.abs(got - want).max() <= 1  # rounding
    assert got.std() > 20


# --- conditions ----------------------------------------------------------------------------------------------------


def test_same_seed_same_frames(frames):
    state, other = begin(), begin(seed=SEED + 1)
    for n in range(2):
        state, ours = generator.chunk_step(CONFIG, tiny.params(CONFIG), state, *sounds(n))
        other, theirs = generator.chunk_step(CONFIG, tiny.params(CONFIG), other, *sounds(n))
        np.testing.assert_array_equal(ours, frames[n])
        assert (np.asarray(theirs) != frames[n]).mean() > 0.5


@pytest.mark.parametrize("kind", [0, 1])
def test_sound_is_heard_at_once_and_remembered(latents, kind):
    """Silence in place of chunk 0's sound changes chunk 0, and through the history chunk 1 as well."""
    quiet = sounds(0)
    quiet[kind] = np.zeros_like(quiet[kind])
    state, chunk = latent_step(CONFIG, tiny.params(CONFIG), begin(), *quiet)
    assert tiny.differs(chunk, latents[0], 1e-3)
    history = getattr(state, dit.KINDS[kind])
    keep = generator.history_samples(CONFIG)
    assert history.shape == (1, keep) and not history.any()
    _, heard = latent_step(CONFIG, tiny.params(CONFIG), begin(), *sounds(0))
    np.testing.assert_array_equal(heard, latents[0])


def test_history_is_the_end_of_what_was_heard():
    state = begin()
    for n in range(3):
        state, _ = latent_step(CONFIG, tiny.params(CONFIG), state, *sounds(n))
    keep = generator.history_samples(CONFIG)
    assert keep == 44 * TOKEN + FFT  # the listen window's 1.5 s, and what its first token hears before it
    for kind in dit.KINDS:
        heard = np.concatenate([np.zeros(keep, np.float32), track(kind)[: 3 * SAMPLES]])
        np.testing.assert_array_equal(getattr(state, kind)[0], heard[-keep:])


def test_prompt_changes_the_text_only():
    before = begin()
    before, _ = latent_step(CONFIG, tiny.params(CONFIG), before, *sounds(0))
    after = generator.set_prompt(CONFIG, tiny.params(CONFIG), before, ids("looks left"))
    for name in before._fields:
        if name in ("text", "text_mask"):
            continue
        for a, b in zip(jax.tree.leaves(getattr(before, name)), jax.tree.leaves(getattr(after, name)), strict=True):
            if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
            np.testing.assert_array_equal(a, b, err_msg=name)
    fresh = begin(prompt="looks left")
    np.testing.assert_array_equal(after.text, fresh.text)
    np.testing.assert_array_equal(after.text_mask, fresh.text_mask)
    _, old = latent_step(CONFIG, tiny.params(CONFIG), before, *sounds(1))
    _, new = latent_step(CONFIG, tiny.params(CONFIG), after, *sounds(1))
    assert tiny.differs(old, new, 1e-3)


def test_absent_reference_slot_counts_for_nothing(latents):
    state = begin()
    start = REFS - 1  # the slot that is not valid
    loud = jax.tree.map(lambda x: x.at[:, :, :, start].set(9.0), state.cache)
    _, chunk = latent_step(CONFIG, tiny.params(CONFIG), state._replace(cache=loud), *sounds(0))
    np.testing.assert_allclose(chunk, latents[0], atol=1e-5)
    loud = jax.tree.map(lambda x: x.at[:, :, :, start - 1].set(9.0), state.cache)
    _, chunk = latent_step(CONFIG, tiny.params(CONFIG), state._replace(cache=loud), *sounds(0))
    assert tiny.differs(chunk, latents[0], 1e-3)


# --- a stream of any length ------------------------------------------------------------------------------------------


def test_one_compilation_for_a_whole_stream(frames):
    """Also after a new prompt, another seed and a late clock; ``frames`` made the one program there is."""
    assert len(frames) == CHUNKS
    config = dataclasses.replace(CONFIG, name="compiled once")
    params = tiny.params(CONFIG)
    made = generator.chunk_step._cache_size()
    state = generator.start(
        config, params, np.stack([tiny.picture(i) for i in range(4)])[None], np.array([KINDS], np.int32),
        np.array([VALID]), ids(""), jax.random.key(0),
    )  # fmt: skip
    for n in range(REACH + 3):
        if n == 2:
            state = generator.set_prompt(config, params, state, ids("nods"))
        state, _ = generator.chunk_step(config, params, state, *sounds(0))
    assert generator.chunk_step._cache_size() == made + 1


def test_the_millionth_chunk_is_like_an_early_one():
    state = begin()
    for n in range(REACH + 1):
        state, _ = latent_step(CONFIG, tiny.params(CONFIG), state, *sounds(n))
    assert int(state.chunk) == REACH + 1
    late = state._replace(chunk=state.chunk + STREAM.window * 10**6)
    for n in range(2):
        state, early = latent_step(CONFIG, tiny.params(CONFIG), state, *sounds(n))
        late, out = latent_step(CONFIG, tiny.params(CONFIG), late, *sounds(n))
        assert jnp.isfinite(out).all()
        np.testing.assert_array_equal(out, early)
    assert int(late.chunk) - int(state.chunk) == STREAM.window * 10**6


def test_state_never_grows():
    state = begin()
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for n in range(REACH + 2):
        state, _ = latent_step(CONFIG, tiny.params(CONFIG), state, *sounds(n))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes


def test_state_is_donated_and_the_cache_updated_in_place():
    params, state = tiny.params(CONFIG), copy(begin())
    compiled = generator.chunk_step.lower(CONFIG, params, state, *sounds(0)).compile()
    memory = compiled.memory_analysis()
    cache = sum(x.nbytes for x in state.cache)
    carried = cache + state.speak.nbytes + state.listen.nbytes + sum(x.nbytes for x in state.vae.values())
    assert memory.alias_size_in_bytes >= carried
    after, _ = generator.chunk_step(CONFIG, params, state, *sounds(0))
    assert state.cache.k.is_deleted() and state.cache.v.is_deleted() and state.speak.is_deleted()
    assert not after.cache.k.is_deleted()


def test_no_second_cache_is_allocated():
    """With a cache far larger than everything else, temporaries stay far below it: only single layers are copied."""
    config = dataclasses.replace(
        CONFIG,
        dit=dataclasses.replace(CFG, depth=16),
        stream=dataclasses.replace(STREAM, window=200),
    )
    b = jax.ShapeDtypeStruct
    params = conditions.abstract(config) | {"vae": tiny.params(CONFIG)["vae"]}
    shapes = jax.eval_shape(
        partial(generator.start, config),
        params,
        b((1, 4, 32, 32, 3), jnp.uint8), b((1, 4), jnp.int32), b((1, 4), bool), b((1, 8), jnp.int32),
        jax.eval_shape(lambda: jax.random.key(0)),
    )  # fmt: skip
    sound = b((1, SAMPLES), jnp.float32)
    memory = generator.chunk_step.lower(config, params, shapes, sound, sound).compile().memory_analysis()
    cache = 2 * int(np.prod(shapes.cache.k.shape)) * 4
    assert cache > 5e6
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes < cache / 3
