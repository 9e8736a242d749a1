"""One held-out loss for every run of a study: the stage's own objective on fixed windows, noise levels and noises.

Each held-out clip of the stage's kinds is met ``draws`` times. Window, noise level and noise of a draw come from the
seed, the clip and the draw alone, so all runs answer the same questions and differences between runs are far more
certain than each loss by itself. As in training the loss weighs regions and noise levels (``flow.weighted_loss``);
unlike in training all patches count, nothing is dropped, and numbers are float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from data_pipeline.loader import RegionWeights, Window
from lpm_jax.checkpoint import load_weights
from lpm_jax.config import Config, TrainConfig
from lpm_jax.models import conditions, vae
from lpm_jax.training import latents
from lpm_jax.training.flow_matching import CAUSAL, make_loss


def held_out(config: Config, workdir: Path) -> latents.LatentSource:
    """The held-out clips of the kinds that ``config.train`` trains on."""
    coder = load_weights(workdir / "vae" / "weights", "model", vae.abstract(config.vae))
    return latents.LatentSource(latents.build(config, coder, "held_out", workdir), config.train.kinds)


@functools.lru_cache(maxsize=4)
def objective(config: Config, causal: bool) -> Callable[[dict, dict, jax.Array], jax.Array]:
    """The loss of one batch, compiled once for all runs of one size."""
    loss = make_loss(config, causal, 1.0)
    return jax.jit(lambda params, batch, key: loss(params, batch, key)[0])


def asked(config: Config) -> Config:
    """``config`` with nothing dropped, in float32, and without what only concerns how it was trained."""
    told = ("latents", "mouth", "eyes", "face", "extra_references")
    train = TrainConfig(**{name: getattr(config.train, name) for name in told})
    return dataclasses.replace(
        config,
        name="",
        data="",
        flow=dataclasses.replace(config.flow, text_dropout=0.0, audio_dropout=0.0),
        train=train,
        stages={},
    )


def losses(
    config: Config, stage: str, params: dict, source: latents.LatentSource, draws: int, seed: int = 0
) -> Float[np.ndarray, " clips"]:
    """The mean loss of every clip over its draws."""
    config = asked(config)
    train = config.train
    window = Window(
        latents=train.latents,
        history=conditions.history_tokens(config.audio),
        weights=RegionWeights(train.mouth, train.eyes, train.face),
        first_frame=1.0,  # as when it performs
        extra=train.extra_references,
    )
    loss, params = objective(config, stage in CAUSAL), jax.device_put(params)
    found = []
    for clip in range(len(source)):
        row = source[clip]
        for draw in range(draws):
            cut = window.random_map(row, np.random.default_rng([seed, clip, draw]))
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), clip), draw)
            found.append(loss(params, {name: value[None] for name, value in cut.items()}, key))
    return np.array(found, np.float64).reshape(len(source), draws).mean(1)
