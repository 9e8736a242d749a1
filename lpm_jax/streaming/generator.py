"""The causal streaming step: sound in, frames out, one compilation, constant memory.

    chunk_step(params, state, speak, listen) -> state, frames        jitted once, state donated

      noise --net at T0--> estimate --re-noise to T1--> net at T1, writing the cache --> latent --> VAE --> frames

Both evaluations read one cache, written by the T1 pass: its history is noisy (level T1), so it needs no extra clean
pass, and unlike a cache of pure-noise passes it tells the T0 evaluation where the head is. (SPEC section 4 keeps one
cache per step; with a regression-trained student the T0 history holds nothing to continue from.)
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, UInt8

from lpm_jax.config import Config
from lpm_jax.flow import add_noise, carried, clean_from_output, network_input
from lpm_jax.models import conditions, dit, vae
from lpm_jax.models.audio import STRIDE, TOKEN, branch
from lpm_jax.nn.attention import Visible
from lpm_jax.nn.quantized import quantized_weights
from lpm_jax.nn.rope import angles_3d
from lpm_jax.streaming import cache as rolling

CACHE_SLOTS = 3  # the cache's axis of latent frames


class StreamState(NamedTuple):
    """Everything a stream carries from chunk to chunk. A pytree of arrays; a copy of it is a snapshot."""

    cache: dit.Cache
    reference_times: Float[Array, "b refs"]
    reference_valid: Bool[Array, "b refs"]
    anchor: Float[Array, "b 1 tokens pc"]
    near: Float[Array, "b 1 tokens pc"]  # the last latent frame made, at first the picture's
    text: Float[Array, "b words width"]
    text_mask: Bool[Array, "b words"]
    speak: Float[Array, "b history"]  # the last samples of each track
    listen: Float[Array, "b history"]
    vae: dict[str, Array]
    chunk: Int[Array, ""]  # index of the next chunk
    key: Array


class Undo(NamedTuple):
    """What the next chunk will overwrite: enough to take it back (:func:`before`, :func:`rollback`)."""

    cache: dit.Cache  # the slots that it writes
    near: Array
    speak: Array
    listen: Array
    vae: dict[str, Array]
    chunk: Array
    key: Array


def stored(config: Config, params: dict) -> dict:
    """``params`` as a stream keeps them: the transformer's kernels in 8 bits where ``stream.weights`` says so."""
    if not config.stream.weights:
        return params
    dit_params = params["dit"]
    blocks = quantized_weights(dit_params["blocks"], config.stream.weights)
    return params | {"dit": dit_params | {"blocks": blocks}}


def history_samples(config: Config) -> int:
    """Samples of sound kept from chunk to chunk: tokens before the chunk's own, and what the first of them needs."""
    return conditions.history_tokens(config.audio) * TOKEN + conditions.audio_features(config.audio).history


def chunk_samples(config: Config) -> int:
    return config.stream.chunk * STRIDE * TOKEN


@partial(jax.jit, static_argnums=0)
def start(
    config: Config,
    params: dict,
    pictures: UInt8[Array, "b refs h w 3"],
    kinds: Int[Array, "b refs"],
    valid: Bool[Array, "b refs"],
    ids: Int[Array, "b words"],
    key: Array,
) -> StreamState:
    """A stream's first state. ``pictures[:, 0]`` is the first frame, ``[:, 1]`` the global appearance, the rest views
    and expressions; ``kinds`` as in ``models/conditions.py``; ``valid`` says which are there."""
    cfg = config.dit
    b, refs = pictures.shape[:2]
    flat = vae.to_unit(pictures).reshape(b * refs, 1, *pictures.shape[2:])
    latents = vae.encode(config.vae, params["vae"], flat)[0]
    latents = latents.reshape(b, refs, *latents.shape[2:])
    patches = dit.patchify(cfg, latents.astype(jnp.float32))
    tokens, dtype = patches.shape[2], params["dit"]["embed"]["patch"]["kernel"].dtype
    cache = rolling.empty(config.stream, cfg, refs, b, tokens, dtype)
    times = conditions.reference_times(cfg, kinds)
    text, mask = conditions.encode_text(config, params, ids)

    history = rolling.slots(config.stream, refs)
    # Nothing of the cache counts yet: its keys are masked out.
    full = Visible(None, jnp.concatenate([jnp.zeros((b, history), bool), valid], axis=1))
    own = angles_3d(times, *config.grid, cfg.head_dim)
    context = jnp.zeros((1, history * tokens, cfg.head_dim // 2))
    silence = _silent_conditions(config, params, text, mask)
    positions = dit.Positions(own, context, full)
    shown = patches.astype(dtype)
    _, cache = dit.forward(cfg, params["dit"], shown, jnp.zeros((b, refs)), 0, silence, positions, cache, 0)
    _, decoder = vae.decode(config.vae, params["vae"], latents[:, :1])
    samples = jnp.zeros((b, history_samples(config)))
    return StreamState(
        cache,
        times,
        valid,
        patches[:, 1:2],
        patches[:, :1],
        text,
        mask,
        samples,
        samples,
        decoder,
        jnp.zeros((), jnp.int32),
        key,
    )


def _silent_conditions(config: Config, params: dict, text: Array, mask: Array) -> dit.Conditions:
    b = text.shape[0]
    tokens = jnp.zeros((b, STRIDE, config.audio.width))
    audio = branch(tokens, config.audio, 1, config.audio.speak_window, None, config.dit.head_dim)
    return dit.Conditions(text, mask, audio, audio)


#: A prompt's encoded words and which of them count.
encode_prompt = jax.jit(conditions.encode_text, static_argnums=0)


def set_prompt(config: Config, params: dict, state: StreamState, ids: Int[ArrayLike, "b words"]) -> StreamState:
    """Another prompt from the next chunk on; motion and identity stay. Only the text is computed: a state that went
    through a compiled program would be copied, cache and all."""
    text, mask = encode_prompt(config, {"text": params["text"]}, ids)
    return state._replace(text=text, text_mask=mask)


@partial(jax.jit, static_argnums=0)
def before(config: Config, state: StreamState) -> Undo:
    """A copy of what the next :func:`chunk_step` changes: one chunk of the cache, not all of it. Prompts, references
    and other chunks of the cache are not a step's to change."""
    write = rolling.layout(config.stream, state.chunk)[3] + state.reference_times.shape[1]
    slots = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, write, config.stream.chunk, axis=CACHE_SLOTS), state.cache
    )
    kept = (state.near, state.speak, state.listen, state.vae, state.chunk, state.key)
    return Undo(slots, *jax.tree.map(jnp.copy, kept))  # the step donates the originals


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def rollback(config: Config, state: StreamState, undo: Undo) -> StreamState:
    """The stream as it was at :func:`before`, bit for bit, but with the prompt that it has now. ``state`` is donated,
    and is the one that the very next step returned."""
    write = rolling.layout(config.stream, undo.chunk)[3] + state.reference_times.shape[1]
    cache = jax.tree.map(
        lambda x, old: jax.lax.dynamic_update_slice_in_dim(x, old, write, axis=CACHE_SLOTS), state.cache, undo.cache
    )
    return state._replace(**undo._asdict() | {"cache": cache})


def latent_step(
    config: Config,
    params: dict,
    state: StreamState,
    speak: Float[Array, "b samples"],
    listen: Float[Array, "b samples"],
) -> tuple[StreamState, Float[Array, "b chunk h w c"]]:
    """One chunk of normalised latents; everything of :func:`chunk_step` but the decoder."""
    cfg, stream = config.dit, config.stream
    b, refs = state.reference_valid.shape
    chunk = stream.chunk
    height, width = config.grid
    tokens = height * width

    sound = {"speak": jnp.concatenate([state.speak, speak], axis=1)}
    sound["listen"] = jnp.concatenate([state.listen, listen], axis=1)
    features = conditions.audio_features(config.audio)
    cache, dtype = state.cache, state.cache.k.dtype
    heard = {name: features(params.get("audio", {}), x).astype(dtype) for name, x in sound.items()}
    encoded = conditions.encode_audio(config, params, heard["speak"], heard["listen"], chunk, chunk)
    told = dit.Conditions(state.text, state.text_mask, **encoded)

    times, valid, own_times, write = rolling.layout(stream, state.chunk)
    # The first frame stands just before the stream's beginning, so it is seen while that is on the axis.
    first = jnp.arange(refs) != conditions.FIRST_FRAME
    see = state.reference_valid & (first | (state.chunk <= stream.sink + stream.window))
    context_times = jnp.concatenate([state.reference_times, jnp.broadcast_to(times, (b, len(times)))], axis=1)
    context_valid = jnp.concatenate([see, jnp.broadcast_to(valid, (b, len(valid)))], axis=1)
    mask = Visible(None, jnp.concatenate([context_valid, jnp.ones((b, chunk), bool)], axis=1))
    positions = dit.Positions(
        angles_3d(own_times[None], height, width, cfg.head_dim),
        angles_3d(context_times, height, width, cfg.head_dim),
        mask,
    )

    key, draw = jax.random.split(state.key)
    clean = jnp.zeros((b, chunk, tokens, cfg.patch**2 * cfg.channels))  # float32: the network alone is in ``dtype``
    near = jnp.broadcast_to(carried(state.near, state.anchor, stream.carry), clean.shape)
    known = near - state.anchor if cfg.prediction == "clean" else None
    for i, level in enumerate(stream.levels):
        noise = jax.random.normal(jax.random.fold_in(draw, i), clean.shape, clean.dtype)
        levels = jnp.full((b, chunk), level)
        noisy = add_noise(clean, noise, levels)
        shown = network_input(cfg.prediction, noisy, levels, state.anchor, params["prior"]["variance"])
        last = i == len(stream.levels) - 1
        out, cache = dit.forward(
            cfg,
            params["dit"],
            shown.astype(dtype),
            levels,
            chunk,
            told,
            positions,
            cache,
            refs + write if last else None,
            implementation=stream.attention or None,
            near=None if known is None else known.astype(dtype),
        )
        clean = clean_from_output(cfg.prediction, out.astype(jnp.float32), shown, levels, state.anchor, near)

    keep = state.speak.shape[1]
    state = state._replace(
        cache=cache,
        near=clean[:, -1:],
        speak=sound["speak"][:, -keep:],
        listen=sound["listen"][:, -keep:],
        chunk=state.chunk + 1,
        key=key,
    )
    return state, dit.unpatchify(cfg, clean, *config.cells)


def step(
    config: Config,
    params: dict,
    state: StreamState,
    speak: Float[Array, "b samples"],
    listen: Float[Array, "b samples"],
) -> tuple[StreamState, UInt8[Array, "b frames h w 3"]]:
    """The next chunk: ``chunk_samples(config)`` samples of each track at 24 kHz to ``4 * chunk`` frames.

    ``params`` as :func:`lpm_jax.pretrained.load` returns them.
    """
    state, latents = latent_step(config, params, state, speak, listen)
    frames, decoder = vae.decode(config.vae, params["vae"], latents, state.vae)
    return state._replace(vae=decoder), vae.to_pixels(frames)


#: :func:`step`, compiled. ``state`` is donated: use only the one returned.
chunk_step = jax.jit(step, static_argnums=0, donate_argnums=2)
