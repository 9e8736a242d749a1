"""The ladder of sizes for scaling studies: the toy with another width and depth.

Latent space, prediction, gates, data and stages are the toy's, so every rung reads one workdir's ``vae`` and
``latents``; as when the ladder was measured, sound alone is encoded without ``audio.hearing``, lips and motions have no
terms of their own, and no life is told. Heads have 32 channels, the feed-forward is three times the width, encoders
are as wide as the transformer.

The learning rate is the toy's at every size, and was tuned at none. Muon with ``consistent_rms`` gives each weight the
same root-mean-square step at any width, as AdamW's rates are often carried over (Liu et al. 2025, arXiv 2502.16982);
bounding the step's spectral norm instead would ask for a rate that falls with the root of the width (Yang et al. 2023,
arXiv 2310.17813), half as high at the ladder's top as at its bottom. ``--train.learning_rate`` tells them apart.
"""

import dataclasses

from configs.toy import get_config as toy
from lpm_jax.config import Config

HEAD = 32  # channels of a head


def rung(name: str, width: int, depth: int) -> Config:
    """The toy's config at ``width`` (a multiple of 32) and ``depth`` (even: speak and listen)."""
    base = toy()
    dit = dataclasses.replace(
        base.dit, depth=depth, width=width, heads=width // HEAD, ffn=3 * width, text_width=width, audio_width=width,
        life=False, warp=0,
    )  # fmt: skip
    audio = dataclasses.replace(base.audio, width=width, hearing=0)
    text = dataclasses.replace(base.text, width=width)
    stages = {stage: {**settings, "lips": 0.0, "moves": 0.0} for stage, settings in base.stages.items()}
    return dataclasses.replace(base, name=name, dit=dit, audio=audio, text=text, stages=stages)
