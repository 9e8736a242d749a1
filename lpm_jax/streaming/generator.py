"""The causal streaming step: sound in, frames out, one compilation, constant memory.

    chunk_step(params, state, speak, listen) -> state, frames        jitted once, state donated

      noise --Backbone at T0--> estimate --re-noise to T1--> Backbone at T1 --> coarse latent
            --re-noise to T2--> Refiner, where there is one --> latent --> VAE --> frames

What the evaluations leave for later chunks is ``stream.history`` (``streaming/denoise.py``). By default both read one
cache, written by the T1 pass: its history is noisy, so it needs no extra clean pass, and unlike a cache of pure-noise
passes it tells the T0 evaluation where the head is. (SPEC section 4 keeps one cache per step, ``"each"``; with a
regression-trained student the T0 history holds nothing to continue from.)
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, UInt8

from lpm_jax.config import Config
from lpm_jax.models import conditions, dit, life, vae, warp
from lpm_jax.models.audio import STRIDE, TOKEN, branch
from lpm_jax.nn.quantized import quantized_weights
from lpm_jax.streaming import cache as rolling
from lpm_jax.streaming import denoise, refiner
from lpm_jax.streaming.refiner import RefinerState

CACHE_SLOTS = 3  # the cache's axis of latent frames


class StreamState(NamedTuple):
    """Everything a stream carries from chunk to chunk. A pytree of arrays; a copy of it is a snapshot."""

    cache: dit.Cache
    reference_times: Float[Array, "b refs"]
    reference_valid: Bool[Array, "b refs"]
    anchor: Float[Array, "b 1 tokens pc"]
    picture: Float[Array, "b h16 w16 3"] | None  # the anchor's, where it is moved (``models/warp.py``)
    near: Float[Array, "b 1 tokens pc"]  # the last latent frame made, at first the picture's
    text: Float[Array, "b words width"]
    text_mask: Bool[Array, "b words"]
    speak: Float[Array, "b history"]  # the last samples of each track
    listen: Float[Array, "b history"]
    vae: dict[str, Array]
    chunk: Int[Array, ""]  # index of the next chunk
    key: Array
    refiner: RefinerState | None = None  # where there is a Refiner
    life: Float[Array, "b life"] | None = None  # where it stands, where there is any (``models/life.py``)


class Undo(NamedTuple):
    """What the next chunk will overwrite: enough to take it back (:func:`before`, :func:`rollback`)."""

    cache: dit.Cache  # the slots that it writes
    near: Array
    speak: Array
    listen: Array
    vae: dict[str, Array]
    chunk: Array
    key: Array
    refiner: TrackUndo | None
    life: Array | None


class TrackUndo(NamedTuple):
    """The same of a Refiner."""

    cache: dit.Cache
    near: Array
    chunk: Array
    key: Array


def stored(config: Config, params: dict) -> dict:
    """``params`` as a stream keeps them: the transformer's kernels in 8 bits where ``stream.weights`` says so."""
    if not config.stream.weights:
        return params
    networks = {name: params[name] for name in ("dit", "refiner") if name in params}
    return params | {
        name: network | {"blocks": quantized_weights(network["blocks"], config.stream.weights)}
        for name, network in networks.items()
    }


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
    latents, decoder = seen(config, params["vae"], pictures)
    text, mask = conditions.encode_text(config, params, ids)
    return begin(config, params, latents, kinds, valid, text, mask, key)._replace(vae=decoder)


def seen(
    config: Config, coder: dict, pictures: UInt8[Array, "b refs h w 3"]
) -> tuple[Float[Array, "b refs rows columns channels"], dict[str, Array]]:
    """Latents of the references, and the decoder's state after the first of them."""
    b, refs = pictures.shape[:2]
    flat = vae.to_unit(pictures).reshape(b * refs, 1, *pictures.shape[2:])
    latents = vae.encode(config.vae, coder, flat)[0]
    latents = latents.reshape(b, refs, *latents.shape[2:])
    return latents, vae.decode(config.vae, coder, latents[:, :1])[1]


def begin(
    config: Config,
    params: dict,
    references: Float[Array, "b refs h w c"],
    kinds: Int[Array, "b refs"],
    valid: Bool[Array, "b refs"],
    text: Float[Array, "b words width"],
    text_mask: Bool[Array, "b words"],
    key: Array,
) -> StreamState:
    """The first state from latents of the references and the encoded prompt; it has no decoder's."""
    b = references.shape[0]
    patches, times, valid, _ = given = shown(config, references, kinds, valid, text, text_mask)
    cache = denoise.pin(config, params["dit"], denoise.backbone_way(config), *given)
    refined = None
    if config.stream.refine:
        refined = refiner.begin(config, params, *given, jax.random.fold_in(key, 1))
    samples = jnp.zeros((b, history_samples(config)))
    near, count = patches[:, :1], jnp.zeros((), jnp.int32)
    anchor = patches[:, 1:2]
    picture = warp.picture(params["warp"], references[:, 1]) if config.dit.warp else None
    moving = life.begin(jax.random.fold_in(key, 3), b) if config.dit.life else None
    return StreamState(
        cache, times, valid, anchor, picture, near, text, text_mask, samples, samples, {}, count, key, refined, moving
    )


def shown(
    config: Config,
    references: Float[Array, "b refs h w c"],
    kinds: Int[Array, "b refs"],
    valid: Bool[Array, "b refs"],
    text: Float[Array, "b words width"],
    text_mask: Bool[Array, "b words"],
) -> tuple[Array, Array, Array, dit.Conditions]:
    """What a network is shown before the first chunk: patches and times of the references, which are there, silence."""
    patches = dit.patchify(config.dit, references.astype(jnp.float32))
    tokens = jnp.zeros((text.shape[0], STRIDE, config.audio.width))
    audio = branch(tokens, config.audio, 1, config.audio.speak_window, None, config.dit.head_dim)
    silence = dit.Conditions(text, text_mask, audio, audio)
    return patches, conditions.reference_times(config.dit, kinds), valid, silence


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
    slots = _slots(config, state, state.chunk)
    kept = (state.near, state.speak, state.listen, state.vae, state.chunk, state.key)
    refined = None if state.refiner is None else track_before(config, state.refiner)
    kept, moving = jax.tree.map(jnp.copy, (kept, state.life))  # the step donates the originals
    return Undo(slots, *kept, refined, moving)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def rollback(config: Config, state: StreamState, undo: Undo) -> StreamState:
    """The stream as it was at :func:`before`, bit for bit, but with the prompt that it has now. ``state`` is donated,
    and is the one that the very next step returned."""
    fine = None if state.refiner is None else track_rollback(config, state.refiner, undo.refiner)
    return state._replace(**undo._asdict() | {"cache": _put_back(config, state, undo), "refiner": fine})


def unless(config: Config, active: Bool[Array, ""], state: StreamState, undo: Undo) -> StreamState:
    """``state``, which a step has returned, where it is ``active``; else as it was at ``undo``. What a step does not
    change is not touched: a choice between whole states would need two of them."""
    fine = state.refiner
    if fine is not None:
        fine = fine._replace(**_either(config, active, fine, undo.refiner))
    return state._replace(**_either(config, active, state, undo), refiner=fine)


def _either(config: Config, active: Array, track: denoise.Track, undo: Undo | TrackUndo) -> dict:
    """What a step changes of ``track``: as it is now, or as it was."""

    def choose(now: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(active, a, b), now, old)

    old = {name: value for name, value in undo._asdict().items() if name not in ("cache", "refiner")}
    slots = choose(_slots(config, track, undo.chunk), undo.cache)
    changed = {name: choose(getattr(track, name), value) for name, value in old.items()}
    return changed | {"cache": _put_back(config, track, undo._replace(cache=slots))}


@partial(jax.jit, static_argnums=0)
def track_before(config: Config, track: RefinerState) -> TrackUndo:
    """:func:`before` of a Refiner."""
    return TrackUndo(_slots(config, track, track.chunk), *jax.tree.map(jnp.copy, (track.near, track.chunk, track.key)))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def track_rollback(config: Config, track: RefinerState, undo: TrackUndo) -> RefinerState:
    """:func:`rollback` of a Refiner."""
    return track._replace(**undo._asdict() | {"cache": _put_back(config, track, undo)})


def written(config: Config, track: denoise.Track, chunk: Array) -> Array:
    """The first slot of the cache that chunk number ``chunk`` is written to."""
    return rolling.layout(config.stream, chunk)[3] + track.reference_times.shape[1]


def _slots(config: Config, track: denoise.Track, chunk: Array) -> dit.Cache:
    at, count = written(config, track, chunk), config.stream.chunk
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, at, count, axis=CACHE_SLOTS), track.cache)


def _put_back(config: Config, track: denoise.Track, undo: Undo | TrackUndo) -> dit.Cache:
    at = written(config, track, undo.chunk)
    put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=at, axis=CACHE_SLOTS)
    return jax.tree.map(put, track.cache, undo.cache)


def hear(
    config: Config,
    params: dict,
    state: StreamState,
    speak: Float[Array, "b samples"],
    listen: Float[Array, "b samples"],
) -> tuple[StreamState, dit.Conditions]:
    """What the next chunk is told, and the state with its sound remembered."""
    sound = {"speak": jnp.concatenate([state.speak, speak], axis=1)}
    sound["listen"] = jnp.concatenate([state.listen, listen], axis=1)
    encoded = conditions.encode_sound(config, params, **sound, frames=config.stream.chunk, dtype=state.cache.k.dtype)
    keep, moved = state.speak.shape[1], None
    state = state._replace(speak=sound["speak"][:, -keep:], listen=sound["listen"][:, -keep:])
    if state.life is not None:
        moving, moved = life.onward(state.life, config.stream.chunk, jax.random.fold_in(state.key, 2))
        state = state._replace(life=moving)
    return state, dit.Conditions(state.text, state.text_mask, **encoded, life=moved)


def generate(
    config: Config, params: dict, state: StreamState, told: dit.Conditions, remat: str = "none"
) -> tuple[StreamState, denoise.Made]:
    """What the Backbone makes of the next chunk."""
    key, draw = jax.random.split(state.key)
    way, variance = denoise.backbone_way(config), params["prior"]["variance"]
    moving = warp.Warp(config.dit, params["warp"], state.picture) if config.dit.warp else None
    made, cache = denoise.evaluate(config, params["dit"], variance, state, told, way, draw, None, remat, moving)
    near = made.estimates[-1][:, -1:]
    return state._replace(cache=cache, near=near, chunk=state.chunk + 1, key=key), made


def latent_step(
    config: Config,
    params: dict,
    state: StreamState,
    speak: Float[Array, "b samples"],
    listen: Float[Array, "b samples"],
) -> tuple[StreamState, Float[Array, "b chunk h w c"]]:
    """One chunk of normalised latents; everything of :func:`chunk_step` but the decoder."""
    state, told = hear(config, params, state, speak, listen)
    state, made = generate(config, params, state, told)
    latents = made.estimates[-1]
    if state.refiner is not None:
        refined, latents = refiner.refine(config, params, state.refiner, told, latents)
        state = state._replace(refiner=refined)
    return state, dit.unpatchify(config.dit, latents, *config.cells)


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
