"""What a training run costs: parameters, tokens and floating-point operations, from the config alone.

A step's operations are three times those of its forward passes: the backward pass computes two products for each of
the forward's. Counted forward (``flops.py``): matrix products and attention of the transformer over the patches that
the step computes, over the references and over the text and audio tokens that it reads, and the products of the text
and audio encoders. Every ``whole_every``-th step computes all patches and counts as such. Not counted: norms, softmax
and activations, the optimiser (Muon's iterations cost the same whatever the batch), validation, and the making of
latents.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from lpm_jax import flops
from lpm_jax.config import AudioConfig, Config, DiTConfig, TextConfig
from lpm_jax.models import conditions
from lpm_jax.models.audio import STRIDE
from lpm_jax.models.conditions import audio_features, history_tokens
from lpm_jax.tensors import flatten
from lpm_jax.training.flow_matching import CAUSAL

BLOCKS = ("attention", "ffn", "text", "audio")  # of flops.COMPONENTS: the rest are embeddings and the head
ITERATIONS = 5  # optax's default for Muon


class Cost(NamedTuple):
    """Of one run: ``parameters`` in all (of transformer and encoders), those of its ``blocks`` alone, video ``tokens``
    that it trained on, ``flops``, and those of Muon, which are no part of them."""

    parameters: int
    blocks: int
    tokens: int
    flops: int
    muon_flops: int


def patches(config: Config) -> int:
    """Patches of a latent frame."""
    return (config.size // config.vae.stride // config.dit.patch) ** 2


def workload(config: Config, kept: int) -> flops.Workload:
    """One forward pass of a training step over ``kept`` patches a frame. References lose the same patches."""
    train = config.train
    return flops.Workload(
        batch=train.batch,
        frames=train.latents,
        height=1,
        width=kept,
        references=3 if train.extra_references else 2,  # the first frame, the appearance and, at times, one more
        text=config.text.tokens,
        audio=history_tokens(config.audio) + STRIDE * train.latents,
    )


def encoder_flops(config: Config) -> int:
    """The products of the text encoder and of both audio encoders, over one clip."""
    sounds, features = history_tokens(config.audio) + STRIDE * config.train.latents, audio_features(config.audio)
    width = config.audio.width
    heard = config.audio.hearing_width * width if config.audio.hearing else 0
    audio = 2 * sounds * 2 * (features.features * width + width**2 + heard)
    return audio + 2 * config.text.tokens * 3 * config.text.width**2


def hearing_flops(config: Config) -> int:
    """The products of what hears in both branches, over one clip: frozen, so forward is all there is."""
    audio, features = config.audio, audio_features(config.audio)
    sounds = history_tokens(audio) + STRIDE * config.train.latents
    width = audio.hearing_width
    return 2 * 2 * sounds * (features.features * width + audio.hearing * 4 * width**2) if audio.hearing else 0


def encoder_parameters(config: Config) -> int:
    """Parameters of the text encoder and of both audio encoders, what hears included."""
    text, audio = config.text, config.audio
    words = (text.vocabulary + text.tokens) * text.width + 3 * text.width**2 + text.width
    features = audio_features(audio).features
    sound = features * audio.width + audio.width**2 + (2 + STRIDE) * audio.width
    if audio.hearing:
        width = audio.hearing_width
        sound += (features + 1) * width + audio.hearing * (4 * width**2 + width) + width * audio.width
    return words + 2 * sound


def step_flops(config: Config, stage: str, kept: int) -> int:
    """Operations of one training step over ``kept`` patches a frame."""
    forward = flops.total(flops.costs(config.dit, workload(config, kept))).flops
    passes = 2 if stage in CAUSAL else 1  # with the noise levels swapped in the second
    batch = config.train.batch
    return 3 * (passes * forward + batch * encoder_flops(config)) + batch * hearing_flops(config)


@functools.lru_cache
def _kernels(dit: DiTConfig, audio: AudioConfig, text: TextConfig) -> list[tuple[int, ...]]:
    tree = conditions.abstract(Config(name="", dit=dit, audio=audio, text=text))
    learning = (item for item in flatten(tree).items() if "hearing" not in item[0])
    return [leaf.shape for path, leaf in learning if path.endswith("kernel")]


def muon_flops(config: Config) -> int:
    """Operations of one of Muon's updates: per kernel five times ``x <- a x + (b g + c g g) x``, ``g = x x^T``."""
    if config.train.optimizer != "muon":
        return 0
    flops = 0
    for shape in _kernels(config.dit, config.audio, config.text):
        least, most = sorted(shape[-2:])
        flops += math.prod(shape[:-2]) * ITERATIONS * 2 * (2 * least**2 * most + least**3)
    return flops


def cost(config: Config, stage: str) -> Cost:
    """What ``config.train.steps`` steps of ``stage`` cost."""
    train, all_patches = config.train, patches(config)
    share = min(train.token_keep, 1.0)
    kept = int(share * all_patches)
    whole = train.steps // train.whole_every if share < 1 and train.whole_every else 0
    counts = flops.parameters(config.dit)
    return Cost(
        parameters=sum(counts.values()) + encoder_parameters(config),
        blocks=sum(counts[part] for part in BLOCKS),
        tokens=train.batch * train.latents * ((train.steps - whole) * kept + whole * all_patches),
        flops=(train.steps - whole) * step_flops(config, stage, kept) + whole * step_flops(config, stage, all_patches),
        muon_flops=train.steps * muon_flops(config),
    )
