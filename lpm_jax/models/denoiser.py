"""The network over whole windows of video, without a cache: what training, validation and Base sampling call."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lpm_jax.config import Config, StreamConfig
from lpm_jax.flow import carried, clean_from_output, network_input
from lpm_jax.models import conditions, dit, warp


def take(x: Array, keep: Int[Array, "b kept"] | None) -> Array:
    """Selected patches of ``[b, frames, tokens, ...]``."""
    if keep is None:
        return x
    index = keep[:, None, :].reshape(keep.shape[0], 1, -1, *(1,) * (x.ndim - 3))
    return jnp.take_along_axis(x, index, axis=2)


def previous(
    clean: Float[Array, "b frames tokens pc"],
    first: Float[Array, "b 1 tokens pc"],
    anchor: Float[Array, "b 1 tokens pc"],
    config: StreamConfig,
) -> Float[Array, "b frames tokens pc"]:
    """Each frame's near latent as in streaming: what is carried over of the last frame of the chunk before its own, of
    ``first`` before the first chunk."""
    chunk = config.chunk
    ends = clean[:, chunk - 1 :: chunk][:, : clean.shape[1] // chunk - 1]
    last = jnp.concatenate([first.astype(clean.dtype), ends], axis=1)
    return jnp.repeat(carried(last, anchor.astype(clean.dtype), config.carry), chunk, axis=1)


class Denoiser:
    """Conditions, references and masks of a batch of windows, prepared once; then any noisy input.

    ``batch`` holds ``text`` ids ``[b, words]``, audio features ``speak`` and ``listen`` ``[b, tokens, features]`` that
    end with the window, ``life`` of each frame where the model is told of it, and ``references``
    ``[b, refs, h, w, c]`` (latents; the second is the global appearance) with ``reference_kinds`` and
    ``reference_valid`` ``[b, refs]``. ``keep`` selects patches, ``drop`` is the ``keep`` of
    :func:`lpm_jax.models.conditions.encode`, ``chunk`` makes it block-causal.
    """

    def __init__(
        self,
        config: Config,
        params: dict,
        batch: dict,
        frames: int,
        chunk: int | None = None,
        keep: Int[Array, "b kept"] | None = None,
        drop: dict | None = None,
    ):
        self.config, self.params, self.frames, self.keep = config, params, frames, keep
        cfg = config.dit
        dtype = params["dit"]["embed"]["patch"]["kernel"].dtype
        heard = (batch[name].astype(dtype) for name in ("speak", "listen"))
        told = conditions.encode(config, params, batch["text"], *heard, frames, chunk, drop)
        self.conditions = told._replace(life=batch.get("life"))
        h, w = batch["references"].shape[2:4]
        self.references = take(dit.patchify(cfg, batch["references"].astype(dtype)), keep)
        self.anchor = self.references[:, 1:2]
        self.warp = None
        if cfg.warp:
            picture = warp.picture(params["warp"], batch["references"][:, 1])
            self.warp = warp.Warp(cfg, params["warp"], picture)
        first = batch["reference_valid"][:, :1, None, None]
        self.first = jnp.where(first, self.references[:, :1], self.anchor)  # what is known before the window
        mask = conditions.visibility(frames, chunk, batch["reference_valid"])
        own = jnp.broadcast_to(jnp.arange(frames, dtype=jnp.float32), (batch["text"].shape[0], frames))
        times = jnp.concatenate([own, conditions.reference_times(cfg, batch["reference_kinds"])], axis=1)
        self.positions = conditions.positions(cfg, times, mask, (h // cfg.patch, w // cfg.patch), keep)

    def __call__(
        self,
        noisy: Float[Array, "b frames tokens pc"],
        level: Float[Array, "b frames"],
        near: Float[Array, "b #frames tokens pc"] | None = None,
        draft: Float[Array, "b frames tokens pc"] | None = None,
    ) -> Array:
        """The estimate of ``x_0``. ``near`` is each frame's near latent (flow.py), by default the first frame, or the
        anchor where that is absent; ``draft`` the estimate under the noise, where ``noisy`` is one (the anchor at level
        1, where there is none)."""
        return self.look(noisy, level, near, draft)[0]

    def look(
        self,
        noisy: Float[Array, "b frames tokens pc"],
        level: Float[Array, "b frames"],
        near: Float[Array, "b #frames tokens pc"] | None = None,
        draft: Float[Array, "b frames tokens pc"] | None = None,
    ) -> tuple[Array, Array | None]:
        """The estimate of ``x_0``, and what the network says of how the picture moves, where it does."""
        cfg = self.config.dit
        near = self.first if near is None else near
        near = jnp.broadcast_to(near, noisy.shape).astype(self.references.dtype)
        known = near - self.anchor if cfg.prediction == "clean" else None
        shown = network_input(cfg.prediction, noisy, level, self.anchor, self.params["prior"]["variance"])
        x = jnp.concatenate([shown.astype(self.references.dtype), self.references], axis=1)
        levels = jnp.concatenate([level, jnp.zeros((level.shape[0], self.references.shape[1]))], axis=1)
        out, _ = dit.forward(
            cfg, self.params["dit"], x, levels, self.frames, self.conditions, self.positions,
            implementation=self.config.train.attention or None, remat=self.config.train.remat,
            unroll=self.config.train.unroll, near=known,
        )  # fmt: skip
        draft = None if draft is None else draft.astype(out.dtype)
        out, moves = dit.split_moves(cfg, out)
        moved = take(self.warp(moves), self.keep).astype(out.dtype) if self.warp else None
        clean = clean_from_output(cfg.prediction, out, shown, level, self.anchor, near, draft, moved)
        return clean, moves
