"""Stage ``faces``: a small network that reads from latents what a face does, for the loss of ``online.rollout``.

What a prompt asks for is mostly a few dark strokes: corners of a mouth, brows, pupils. In a picture's squared error
they weigh next to nothing, and a student learns them last (docs/distillation.md). With ``train.faces`` above 0 the loss
has a third term beside the lips' (``lips.py``), of the same kind: the squared difference between what this network
reads from the estimate and from the truth. Another network than the benchmark's readers, which see pixels, and no part
of the model.
"""

from __future__ import annotations

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from data_pipeline.loader import RegionWeights, Window, latent_batches
from data_pipeline.schema import LATENT_STRIDE, PARAM_INDEX
from lpm_jax.checkpoint import load_weights
from lpm_jax.config import Config
from lpm_jax.distributed import fetch
from lpm_jax.models import vae
from lpm_jax.nn.conv import conv3x3
from lpm_jax.training import latents
from lpm_jax.training.lips import NOISE
from lpm_jax.training.loop import Stage

WIDTH = 64
#: What is read, mean over a latent's four video frames, and about how far it spreads over clips with prompts: a
#: difference of one counts as much in each.
READ = {
    "smile": 0.25, "frown": 0.25,
    "brow_inner_left": 0.35, "brow_inner_right": 0.35, "brow_outer_left": 0.35, "brow_outer_right": 0.35,
    "gaze_x": 0.3, "gaze_y": 0.3, "lid_left": 0.25, "lid_right": 0.25,
    "yaw": 8.0, "pitch": 4.0, "roll": 4.0,
}  # fmt: skip


class FaceReader(nn.Module):
    """Two convolutions over the frame, each with cells joined by two, and two layers over what is left of it."""

    @nn.compact
    def __call__(self, latents: Float[Array, "n h w c"], anchor: Float[Array, "n h w c"]) -> Float[Array, "n read"]:
        """In the units of :data:`READ`. ``anchor`` is the global reference."""
        x = jnp.concatenate([latents - anchor, anchor], axis=-1)
        for name in ("near", "far"):
            kernel = self.param(name, nn.initializers.lecun_normal((0, 1, 2)), (3, 3, x.shape[-1], WIDTH))
            bias = self.param(f"{name}_bias", nn.initializers.zeros, (WIDTH,))
            x = nn.gelu(conv3x3(x, kernel.astype(x.dtype)) + bias.astype(x.dtype))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.gelu(nn.Dense(2 * WIDTH, dtype=x.dtype, name="all")(x.reshape(len(x), -1)))
        return nn.Dense(len(READ), name="out")(x.astype(jnp.float32))


def read(
    params: dict, latents: Float[Array, "b frames h w c"], batch: dict, dtype: DTypeLike
) -> Float[Array, "b frames read"]:
    """What the network reads from ``latents`` of the clips of ``batch``."""
    b, frames, *cells = latents.shape
    anchor = jnp.broadcast_to(batch["references"][:, 1:2], latents.shape)
    flat = (x.reshape(b * frames, *cells).astype(dtype) for x in (latents, anchor))
    return FaceReader().apply({"params": params}, *flat).reshape(b, frames, -1)


def wanted(params: Float[Array, "b n columns"]) -> Float[Array, "b frames read"]:
    """What there is to read: of the performance's parameters in each video frame, by latent frames."""
    columns = params[..., np.array([PARAM_INDEX[name] for name in READ])] / np.array(list(READ.values()), np.float32)
    return columns.reshape(len(columns), -1, LATENT_STRIDE, len(READ)).mean(axis=2)


def shapes(config: Config) -> dict:
    """Of the network's parameters."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def init(config: Config, key: Array) -> dict:
    """Fresh parameters."""
    x = jnp.zeros((1, *config.cells, config.dit.channels))
    return FaceReader().init(key, x, x)["params"]


def load(config: Config, workdir: Path) -> dict | None:
    """The network that stage ``faces`` trained, where ``train.faces`` asks for it.

    Raises:
      InputError: it was not trained.
    """
    return load_weights(workdir / "faces" / "weights", "model", shapes(config)) if config.train.faces else None


def make_loss(config: Config):
    """``loss(params, batch, key)``: squared error of what is read from slightly noisy latents."""

    def loss(params: dict, batch: dict, key: Array):
        x = batch["latents"].astype(jnp.float32)
        x += NOISE * jax.random.normal(key, x.shape)
        error = read(params, x, batch, jnp.dtype(config.train.dtype)) - wanted(batch["params"])
        return jnp.mean(jnp.square(error)), {}

    return loss


def make_stage(config: Config, workdir: Path) -> Stage:
    """Assembles stage ``faces``."""
    train = config.train
    coder = load_weights(workdir / "vae" / "weights", "model", vae.abstract(config.vae))
    source = latents.LatentSource(latents.build(config, coder, "train", workdir), train.kinds)
    held_out = latents.LatentSource(latents.build(config, coder, "held_out", workdir))
    window = Window(train.latents, 0, RegionWeights(), first_frame=1.0, extra=0.0, params=True)

    @jax.jit
    def run(params: dict, batch: dict) -> Array:
        return read(params, batch["latents"].astype(jnp.float32), batch, jnp.float32)

    def validate(params: dict, directory: Path) -> dict[str, float]:
        """Correlation with the truth over held-out clips, of each."""
        rng = np.random.default_rng(0)
        windows = [window.random_map(held_out[i], rng) for i in range(len(held_out))]
        batch = {name: np.stack([w[name] for w in windows]) for name in ("latents", "references", "params")}
        found, truth = fetch(run(params, batch)), wanted(batch["params"])
        pairs = zip(READ, np.moveaxis(found, -1, 0), np.moveaxis(truth, -1, 0), strict=True)
        return {name: float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for name, a, b in pairs if b.std() > 1e-6}

    def data(rows):
        return latent_batches(source, window, batch=train.batch, rows=rows, seed=train.seed, threads=train.data_threads)

    return Stage(
        name="faces",
        params=init(config, jax.random.key(train.seed)),
        data=data,
        batch=train.batch,
        fingerprint=repr(source),
        loss=make_loss(config),
        validate=validate,
        finish=lambda params: params,
    )
