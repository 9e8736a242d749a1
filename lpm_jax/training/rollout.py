"""The student on its own: chunks one after the other through the very step that streams (``streaming/``), from a
training batch's features instead of sound.

Gradients are cut between chunks and reach the last few only (Self-Forcing, arXiv 2506.08009). What a chunk finds in the
cache, noise of earlier mistakes included, is what it would find when it streams. The part without gradients is as long
as a number in the step says, so one program sees streams of every age, the sliding of the window among them.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lpm_jax.config import Config
from lpm_jax.models import conditions, dit
from lpm_jax.models.audio import STRIDE, TOKEN
from lpm_jax.streaming import denoise, generator, refiner
from lpm_jax.streaming.generator import StreamState


def cut(config: Config, batch: dict, first: Int[Array, ""] | int, chunks: int) -> dict:
    """The windows of ``chunks`` chunks that begin with chunk ``first``: sound, weights, and, at the very beginning, the
    first frame."""
    frames, history = chunks * config.stream.chunk, conditions.history_tokens(config.audio)
    start = first * config.stream.chunk
    window = dict(batch)
    for name in ("speak", "listen"):
        window[name] = jax.lax.dynamic_slice_in_dim(batch[name], STRIDE * start, history + STRIDE * frames, axis=1)
        if f"{name}_sound" in batch:
            count = generator.history_samples(config) + STRIDE * TOKEN * frames
            sound = jax.lax.dynamic_slice_in_dim(batch[f"{name}_sound"], STRIDE * TOKEN * start, count, axis=1)
            window[f"{name}_sound"] = sound
    for name in ("latents", "weights", "mouth", "life", "moves"):
        if name in batch:
            window[name] = jax.lax.dynamic_slice_in_dim(batch[name], start, frames, axis=1)
    valid = jnp.asarray(batch["reference_valid"])
    window["reference_valid"] = valid.at[:, 0].set(valid[:, 0] & (start == 0))
    return window


class Player:
    """A batch to be performed: ``text`` ids, features ``speak`` and ``listen`` of whole windows, references as in
    :class:`lpm_jax.models.denoiser.Denoiser`. ``before`` are ids of another prompt, told until chunk ``change``.
    ``keep`` is 0 for clips that are told neither prompt nor sound, 1 for others (guidance dropout). Where samples are
    there, ``speak_sound`` and ``listen_sound`` (int16, those that a stream remembers before them), each chunk hears
    them as a stream does, through its own window."""

    def __init__(
        self,
        config: Config,
        batch: dict,
        before: Int[Array, "b words"] | None = None,
        change: Int[Array, ""] | int = 0,
        keep: Float[Array, " b"] | None = None,
    ):
        self.config, self.batch = config, jax.tree.map(jnp.asarray, batch)
        self.before, self.change, self.keep = before, change, keep

    def told(self, params: dict, chunk: Int[Array, ""] | int) -> dit.Conditions:
        """What chunk number ``chunk`` is told."""
        config, batch = self.config, self.batch
        dtype = params["dit"]["embed"]["patch"]["kernel"].dtype
        text, mask = conditions.encode_text(config, params, batch["text"])
        if self.before is not None:
            old, old_mask = conditions.encode_text(config, params, self.before)
            text, mask = (jnp.where(chunk < self.change, a, b) for a, b in ((old, text), (old_mask, mask)))
        if self.keep is not None:
            mask = conditions.kept_words(mask, self.keep)
        names = ("speak", "listen", "speak_sound", "listen_sound", "reference_valid", "life")
        window = cut(config, {k: batch[k] for k in names if k in batch}, chunk, 1)
        size = config.stream.chunk
        if "speak_sound" in window:
            sound = (window[f"{name}_sound"].astype(jnp.float32) / 32768 for name in ("speak", "listen"))
            encoded = conditions.encode_sound(config, params, *sound, size, dtype, self.keep)
        else:
            heard = (window[name].astype(dtype) for name in ("speak", "listen"))
            encoded = conditions.encode_audio(config, params, *heard, size, size, self.keep)
        return dit.Conditions(text.astype(dtype), mask, **encoded, life=window.get("life"))

    def start(self, params: dict, key: Array) -> StreamState:
        """The stream's first state. A first frame that is not shown is replaced by the global appearance, as the near
        latent too."""
        batch = self.batch
        valid, references = batch["reference_valid"], batch["references"].astype(jnp.float32)
        first = jnp.where(valid[:, 0, None, None, None], references[:, 0], references[:, 1])
        references = references.at[:, 0].set(first)
        text, mask = conditions.encode_text(self.config, params, batch["text"])
        kinds = batch["reference_kinds"]
        return generator.begin(self.config, params, references, kinds, valid, text, mask, key)

    def step(
        self, params: dict, state: StreamState, chunk: Int[Array, ""] | int, remat: str = "none"
    ) -> tuple[StreamState, denoise.Made]:
        """The next chunk: the Backbone's estimates and, where the model has a Refiner, its result as one more.
        Gradients of that reach the Refiner alone: sound and text come to it encoded, as the Backbone's do."""
        told = self.told(params, chunk)
        state, made = generator.generate(self.config, params, state, told, remat)
        if state.refiner is None:
            return state, made
        coarse = jax.lax.stop_gradient(made.estimates[-1])
        told = jax.lax.stop_gradient(told)
        fine, latents = refiner.refine(self.config, params, state.refiner, told, coarse, remat)
        return state._replace(refiner=fine), made._replace(estimates=[*made.estimates, latents])


def play(config: Config, params: dict, batch: dict, chunks: int, key: Array) -> Float[Array, "b frames tokens pc"]:
    """A performance without gradients: what a stream makes of the batch's sound."""
    player = Player(config, batch)

    def step(state: StreamState, chunk: Array) -> tuple[StreamState, Array]:
        state, made = player.step(params, state, chunk)
        return state, made.estimates[-1]

    _, made = jax.lax.scan(step, player.start(params, key), jnp.arange(chunks))
    return joined(made)


def joined(chunks: Float[Array, "n b chunk tokens pc"]) -> Float[Array, "b frames tokens pc"]:
    """Chunks one behind the other."""
    n, b, frames, *rest = chunks.shape
    return jnp.moveaxis(chunks, 0, 1).reshape(b, n * frames, *rest)


def roll(
    player: Player, params: dict, warm: Int[Array, ""] | int, count: int, exits: Int[Array, " b"], key: Array
) -> Float[Array, "b frames tokens pc"]:
    """:func:`estimates` of which ``exits`` says whose is a clip's result: trained on all, each is worth something by
    itself. All evaluations are computed and differentiated, so that one program serves; those that come after a clip's
    exit only write its history.
    """
    made, *_ = estimates(player, params, warm, count, key)
    return made[jnp.minimum(exits, len(made) - 1), jnp.arange(len(exits))]


def estimates(
    player: Player, params: dict, warm: Int[Array, ""] | int, count: int, key: Array, other: Player | None = None
) -> tuple[
    Float[Array, "evaluations b frames tokens pc"],
    Float[Array, "evaluations b frames tokens pc"] | None,
    Float[Array, "b frames tokens values"] | None,
]:
    """``count`` chunks that gradients reach, after ``warm`` without any, as each evaluation made them; those that
    ``other`` would have had in place of each, without gradients; and what the player says of how the picture moves."""
    config = player.config
    start_key, noise = jax.random.split(key)
    fixed = jax.lax.stop_gradient(params)
    remat = config.train.remat

    def onward(state: StreamState, chunk: Array) -> StreamState:
        state = player.step(fixed, state, chunk)[0]
        return corrupted(config, state, jax.random.fold_in(noise, chunk))

    def last(state: StreamState, chunk: Array) -> tuple[StreamState, tuple[Array | None, ...]]:
        after, made = player.step(params, state, chunk, remat)
        without = jnp.stack(other.step(fixed, state, chunk)[1].estimates) if other is not None else None
        state = corrupted(config, after, jax.random.fold_in(noise, chunk))
        return jax.tree.map(jax.lax.stop_gradient, state), (jnp.stack(made.estimates), without, made.moves)

    if remat != "none":  # a chunk's inputs stay, the cache among them; the rest is computed again
        last = jax.checkpoint(last, prevent_cse=False)
    state = jax.lax.fori_loop(0, warm, lambda n, state: onward(state, n), player.start(fixed, start_key))
    state = jax.tree.map(jax.lax.stop_gradient, state)
    made, without, moves = jax.lax.scan(last, state, warm + jnp.arange(count))[1]
    made, without = jax.tree.map(lambda x: jax.vmap(joined)(jnp.moveaxis(x, 1, 0)), (made, without))
    return made, without, None if moves is None else joined(moves)


def corrupted(config: Config, state: StreamState, key: Array) -> StreamState:
    """``state`` with noise on what the last chunk left: its near latent and its keys and values, each as large as
    ``distill.corrupt`` times their own spread (LiveAvatar's history corruption, arXiv 2512.04677)."""
    share = config.distill.corrupt
    if not share:
        return state
    at = generator.written(config, state, state.chunk - 1)
    size = config.stream.chunk
    keys = iter(jax.random.split(key, 3))

    def off(x: Array) -> Array:
        spread = jnp.std(x.astype(jnp.float32), axis=tuple(range(1, x.ndim)), keepdims=True)
        return x + (share * spread * jax.random.normal(next(keys), x.shape)).astype(x.dtype)

    def slots(x: Array) -> Array:
        new = off(jax.lax.dynamic_slice_in_dim(x, at, size, generator.CACHE_SLOTS))
        return jax.lax.dynamic_update_slice_in_dim(x, new, at, generator.CACHE_SLOTS)

    return state._replace(near=off(state.near), cache=jax.tree.map(slots, state.cache))


def backbone_only(config: Config) -> Config:
    """``config`` of a model without a Refiner."""
    return dataclasses.replace(config, stream=dataclasses.replace(config.stream, refine=0.0))
