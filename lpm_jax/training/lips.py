"""Stage ``lips``: a small network that reads from latents how far a mouth is open, for the loss of the stages after it.

How lips move is a small part of a picture's squared error, and what the toy's lips lack is not hearing but drawing
(docs/distillation.md). With ``train.lips`` above 0 a stage's loss therefore has a second term, the squared difference
between what this network reads from the estimate and from the truth: a perceptual distance (Johnson et al., "Perceptual
Losses for Real-Time Style Transfer and Super-Resolution", arXiv 1603.08155) by a network that knows one thing. It is
another network than the benchmark's reader, which sees pixels, and it is not part of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from data_pipeline.loader import RegionWeights, Window, latent_batches
from data_pipeline.schema import LATENT_STRIDE
from lpm_jax.checkpoint import load_weights
from lpm_jax.config import Config
from lpm_jax.distributed import fetch
from lpm_jax.models import dit, vae
from lpm_jax.nn.conv import conv3x3
from lpm_jax.training import latents
from lpm_jax.training.loop import Stage

WIDTH = 64
NOISE = 0.15  # standard deviation of what is added to the latents it learns from; the latent's is one
#: Where mouths are in a frame, as shares of it: top, bottom, left, right. Rendered performers face the camera.
REGION = (0.375, 0.875, 0.1875, 0.8125)


class LipReader(nn.Module):
    """Two convolutions over the lower face, and the mean and the largest of what they find within the mouth."""

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "n h w c"],
        anchor: Float[Array, "n h w c"],
        mouth: Bool[Array, "n h w"],
    ) -> Float[Array, "n 4"]:
        """The opening of the lips, 0 to 1, in each video frame of a latent one. ``anchor`` is the global reference,
        ``mouth`` the cells that the mouth is in."""
        h, w = latents.shape[1:3]
        top, bottom, left, right = (round(share * n) for share, n in zip(REGION, (h, h, w, w), strict=True))
        at = (slice(None), slice(top, bottom), slice(left, right))
        x = jnp.concatenate([latents - anchor, anchor], axis=-1)[at]
        inside = mouth[at][..., None]
        for name in ("near", "far"):
            kernel = self.param(name, nn.initializers.lecun_normal(), (3, 3, x.shape[-1], WIDTH))
            bias = self.param(f"{name}_bias", nn.initializers.zeros, (WIDTH,))
            x = nn.gelu(conv3x3(x, kernel.astype(x.dtype)) + bias.astype(x.dtype))
        x, inside = x.astype(jnp.float32), inside.astype(jnp.float32)
        mean = jnp.sum(x * inside, (1, 2)) / jnp.maximum(jnp.sum(inside, (1, 2)), 1)
        most = jnp.max(jnp.where(inside > 0, x, -1.0), (1, 2))
        return nn.Dense(LATENT_STRIDE, name="out")(jnp.concatenate([mean, most], axis=-1))


def read(
    params: dict, latents: Float[Array, "b frames h w c"], batch: dict, dtype: DTypeLike
) -> Float[Array, "b frames 4"]:
    """What the network reads from ``latents`` of the clips of ``batch``."""
    b, frames, *cells = latents.shape
    anchor = jnp.broadcast_to(batch["references"][:, 1:2], latents.shape)
    flat = (x.reshape(b * frames, *cells).astype(dtype) for x in (latents, anchor))
    mouth = batch["mouth"].reshape(b * frames, *cells[:2])
    return LipReader().apply({"params": params}, *flat, mouth).reshape(b, frames, -1)


def difference(
    config: Config,
    params: dict,
    estimates: Float[Array, "b frames tokens pc"],
    batch: dict,
    keep: Array | None,
    counts: Float[Array, "b frames"],
    read: Callable[..., Array] = read,
) -> Float[Array, ""]:
    """Mean square of what ``read`` finds in ``estimates`` less what it finds in the truth, over the frames that count.
    Patches that were not computed (all but ``keep``) are the truth's."""
    truth = batch["latents"].astype(jnp.float32)
    patches = estimates.astype(jnp.float32)
    if keep is not None:
        rows = jnp.arange(len(truth))[:, None]
        patches = dit.patchify(config.dit, truth).at[rows, :, keep].set(jnp.swapaxes(patches, 1, 2))
    made = dit.unpatchify(config.dit, patches, *truth.shape[2:4])
    found, want = (read(params, x, batch, jnp.dtype(config.train.dtype)) for x in (made, truth))
    square = jnp.mean(jnp.square(found - jax.lax.stop_gradient(want)), axis=-1)
    return jnp.sum(square * counts) / jnp.maximum(jnp.sum(counts), 1)


def shapes(config: Config) -> dict:
    """Of the network's parameters."""
    h, w = config.cells
    x = jax.ShapeDtypeStruct((1, h, w, config.vae.channels), jnp.float32)
    mouth = jax.ShapeDtypeStruct((1, h, w), bool)
    return jax.eval_shape(LipReader().init, jax.random.key(0), x, x, mouth)["params"]


def load(config: Config, workdir: Path) -> dict | None:
    """The network that stage ``lips`` trained, where ``train.lips`` asks for it.

    Raises:
      InputError: it was not trained.
    """
    return load_weights(workdir / "lips" / "weights", "model", shapes(config)) if config.train.lips else None


def make_loss(config: Config):
    """``loss(params, batch, key)``: squared error of the opening, 0 to 1, read from slightly noisy latents."""

    def loss(params: dict, batch: dict, key: Array):
        x = batch["latents"].astype(jnp.float32)
        x += NOISE * jax.random.normal(key, x.shape)
        found = read(params, x, batch, jnp.dtype(config.train.dtype))
        value = jnp.mean(jnp.square(found - grouped(batch["aperture"])))
        return value, {}

    return loss


def grouped(values: Float[Array, "b n"]) -> Float[Array, "b frames 4"]:
    """A number for each video frame, by latent frames."""
    return values.reshape(len(values), -1, LATENT_STRIDE)


def make_stage(config: Config, workdir: Path) -> Stage:
    """Assembles stage ``lips``."""
    train = config.train
    coder = load_weights(workdir / "vae" / "weights", "model", vae.abstract(config.vae))
    source = latents.LatentSource(latents.build(config, coder, "train", workdir), train.kinds)
    held_out = latents.LatentSource(latents.build(config, coder, "held_out", workdir))
    window = Window(train.latents, 0, RegionWeights(), first_frame=1.0, extra=0.0, mouth=True)

    @jax.jit
    def run(params: dict, batch: dict) -> Array:
        return read(params, batch["latents"].astype(jnp.float32), batch, jnp.float32)

    def validate(params: dict, directory: Path) -> dict[str, float]:
        """Correlation with the truth over held-out clips."""
        rng = np.random.default_rng(0)
        windows = [window.random_map(held_out[i], rng) for i in range(len(held_out))]
        batch = {name: np.stack([w[name] for w in windows]) for name in ("latents", "references", "mouth", "aperture")}
        found, truth = fetch(run(params, batch)), grouped(batch["aperture"])
        return {"aperture": float(np.corrcoef(np.ravel(found), np.ravel(truth))[0, 1])}

    def data(rows):
        return latent_batches(source, window, batch=train.batch, rows=rows, seed=train.seed, threads=train.data_threads)

    cells = (1, *config.cells)
    blank = jnp.zeros((*cells, config.vae.channels))
    return Stage(
        name="lips",
        params=LipReader().init(jax.random.key(train.seed), blank, blank, jnp.ones(cells, bool))["params"],
        data=data,
        batch=train.batch,
        fingerprint=repr(source),
        loss=make_loss(config),
        validate=validate,
        finish=lambda params: params,
    )
