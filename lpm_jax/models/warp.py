"""Moves the picture: where the network says how it has moved, nobody has to draw it anew.

A token of the toy is 384 values and its transformer is 256 wide, so of a head that turns it drew a third at best
(docs/distillation.md). How its parts have moved needs few numbers; what they look like then is in the picture. So the
network's output says besides, for each video frame, how much ``g`` there is of some *principal motions* ``M`` (the mean
of what the tokens say), and at level 1, where nothing else is known, its estimate begins with a moved anchor:

    W(a, g) = a + L(warp(P, sum_k g_k M_k) - P)        P = L^-1(a), a picture

``L`` is the autoencoder's linear part (principal components of cells): it takes the anchor back to pixels and codes
what was moved. ``M`` are fields of displacements of cells, interpolated between their middles: a frame shows at ``p``
what the picture shows at ``p`` and the displacement there. They are principal components too, of optical flow in
rendered clips (``training/latents.principal_motions``): 16 of them leave 0.07 of it on held-out characters. Nothing
here is trained. Others predict flow and warp pictures or their features (Monkey-Net, arXiv 1812.08861; first-order
motion, arXiv 2003.00196).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lpm_jax.config import Config, DiTConfig, VAEConfig
from lpm_jax.errors import InputError
from lpm_jax.models.dit import patchify
from lpm_jax.models.vae import toy

FINE = 2  # samples of the kept picture a pixel: between them, lines are nearly as good as cubics


def init(config: Config) -> dict:
    """Parameters where nothing was measured yet.

    Raises:
      InputError: the model is not the toy's, whose latents have such a part.
    """
    cfg = config.dit
    if cfg.prediction != "clean" or not isinstance(config.vae, VAEConfig):
        raise InputError('dit.warp: expected the toy\'s autoencoder and dit.prediction "clean", found another model')
    return {
        "basis": jnp.zeros((toy.CELL, cfg.channels)),
        "gain": jnp.ones((cfg.channels,)),
        "base": jnp.zeros((toy.CELL,)),
        "motions": jnp.zeros((cfg.warp, *config.cells, 2)),
    }


def measured(coder: dict, motions: Float[ArrayLike, "count h8 w8 2"]) -> dict:
    """``L`` of the toy's autoencoder, what it codes as nothing, and the motions, in pixels."""
    centre = coder["centre"] + (coder["mean"] / coder["scale"]) @ coder["basis"].T
    return {"basis": coder["basis"], "gain": coder["scale"] / coder["std"], "base": centre, "motions": motions}


def fine(picture: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Twice as many samples: the picture's own and, between two of them, a cubic's (-1, 9, 9, -1) / 16."""
    for axis in (1, 2):
        size = picture.shape[axis]
        edges = [(0, 0)] * 4
        edges[axis] = (1, 2)
        wide = jnp.pad(picture, edges, mode="edge")
        taps = [jax.lax.slice_in_dim(wide, i, i + size, axis=axis) for i in range(4)]
        between = (9 * (taps[1] + taps[2]) - taps[0] - taps[3]) / 16
        shape = list(picture.shape)
        shape[axis] *= FINE
        picture = jnp.stack([picture, between], axis=axis + 1).reshape(shape)
    return picture


def picture(params: dict, anchor: Float[Array, "b h w c"]) -> Float[Array, "b h16 w16 3"]:
    """``P`` of latents of pictures, in about -1..1, finely sampled, in float32."""
    basis, gain, base = (params[name].astype(jnp.float32) for name in ("basis", "gain", "base"))
    cells = (anchor.astype(jnp.float32) / gain) @ basis.T + base
    return jax.lax.stop_gradient(fine(toy.unpack(cells[:, None])[:, 0].mean(axis=1)))


def sampled(
    picture: Float[Array, "b h2 w2 c"], field: Float[Array, "b frames h w 2"]
) -> Float[Array, "b frames h w c"]:
    """The picture at ``p + field`` (``(x, y)`` in pixels), linearly between fine samples; its edges go on for ever."""
    b, rows, columns, channels = picture.shape
    h, w = field.shape[2:4]
    at = FINE * (jnp.stack(jnp.mgrid[:h, :w], axis=-1) + field[..., ::-1])
    at = jnp.clip(at, 0.0, jnp.array([rows, columns]) - float(FINE))
    corner = jnp.floor(at).astype(jnp.int32)
    corner = jnp.clip(corner, 0, jnp.array([rows, columns]) - 2)  # in bounds even where the field is not a number
    down, right = jnp.split(at - corner, 2, axis=-1)
    index = corner[..., 0] * columns + corner[..., 1]

    def tap(offset: int) -> Array:
        take = lambda p, i: p.reshape(-1, channels).at[i + offset].get(mode="promise_in_bounds")  # noqa: E731
        return jax.vmap(take)(picture, index)

    top = (1 - right) * tap(0) + right * tap(1)
    return (1 - down) * top + down * ((1 - right) * tap(columns) + right * tap(columns + 1))


def field(params: dict, moves: Float[Array, "b frames tokens values"]) -> Float[Array, "b video h8 w8 2"]:
    """Displacements in pixels of the cells of each video frame."""
    motions = params["motions"].astype(jnp.float32)
    g = moves.astype(jnp.float32).mean(axis=2).reshape(len(moves), -1, len(motions))
    return jnp.einsum("btk,khwx->bthwx", g, motions)


class Warp(NamedTuple):
    """``W(a, g) - a`` of patches, for :func:`lpm_jax.flow.clean_from_output`."""

    config: DiTConfig
    params: dict
    picture: Float[Array, "b h16 w16 3"]  # of the anchor

    def __call__(self, moves: Float[Array, "b frames tokens values"]) -> Float[Array, "b frames patches pc"]:
        """Of all patches of a frame, whichever tokens speak, in float32."""
        b, frames = moves.shape[:2]
        height, width = (side // FINE for side in self.picture.shape[1:3])
        cells = field(self.params, moves)
        pixels = jax.image.resize(cells, (*cells.shape[:2], height, width, 2), "linear")
        change = sampled(self.picture, pixels) - self.picture[:, None, ::FINE, ::FINE]
        change = toy.pack(change.reshape(b, frames, toy.GROUP, height, width, 3))
        code = self.params["basis"].astype(jnp.float32) * self.params["gain"].astype(jnp.float32)
        return patchify(self.config, change @ code)
