"""Operations that a training step, a block and a streaming step need, for shares of the peak.

``lpm_jax/flops.py`` counts attention dense. Here the pairs that no query sees are left out: references do not read the
video, and flash kernels skip them, so counting them would flatter the step (at 480 x 832 and 19 latents by 6 %).

A step's *model FLOPs* are three times its forward pass's: the backward pass has two products for each of the forward's.
What is computed again besides, for memory or inside flash kernels, is what ``executed.py`` counts.

Counted are the transformer's matrix products and attention; not encoders of sound, norms, softmax or the optimiser.
"""

from __future__ import annotations

import dataclasses
import math

from lpm_jax import flops
from lpm_jax.config import Config, DiTConfig
from lpm_jax.flops import Workload
from lpm_jax.models.audio import STRIDE
from lpm_jax.models.conditions import history_tokens

BLOCKS = ("attention", "ffn", "text", "audio")  # of flops.COMPONENTS


def window(config: Config) -> Workload:
    """A training step's forward pass."""
    train = config.train
    rows, columns = config.grid
    return Workload(
        batch=train.batch, frames=train.latents, height=rows, width=columns,
        references=3 if train.extra_references else 2, text=config.text.tokens,
        audio=history_tokens(config.audio) + STRIDE * train.latents,
    )  # fmt: skip


def chunk(config: Config) -> Workload:
    """One evaluation of a streaming step whose cache is full and whose references are all there. By then the first
    frame's slot is not read any more."""
    stream = config.stream
    rows, columns = config.grid
    return Workload(
        frames=stream.chunk, height=rows, width=columns, text=config.text.tokens,
        context=1 + stream.references + (stream.sink + stream.window) * stream.chunk,
        audio=history_tokens(config.audio) + STRIDE * stream.chunk,
    )  # fmt: skip


def tokens(work: Workload) -> int:
    """Length of the self-attention sequences, video and references, over the batch."""
    return work.batch * (work.frames + work.references) * work.height * work.width


def unseen(config: DiTConfig, work: Workload) -> int:
    """Operations on pairs of a reference and the video, which the dense count has and nobody needs."""
    frame = work.height * work.width
    return 4 * work.batch * (work.references * frame) * (work.frames * frame) * config.width * config.depth


def forward(config: DiTConfig, work: Workload) -> dict[str, int]:
    """Operations of one pass, by component."""
    found = {part: cost.flops for part, cost in flops.costs(config, work).items()}
    found["attention"] -= unseen(config, work)
    return found


def training(config: DiTConfig, work: Workload) -> dict[str, int]:
    """A step's FLOPs: one ``forward``, the whole step (``model``), and ``dense``, which ignores masks."""
    whole = sum(forward(config, work).values())
    return {"forward": whole, "model": 3 * whole, "dense": 3 * flops.total(flops.costs(config, work)).flops}


def block(config: Config, batch: int, frames: int) -> dict[str, int]:
    """Forward and backward of one block over ``frames`` frames of video that all see each other, ``ours`` with audio
    cross-attention, which the ``peer`` does not have."""
    rows, columns = config.grid
    work = Workload(
        batch=batch, frames=frames, height=rows, width=columns, text=config.text.tokens,
        audio=history_tokens(config.audio) + STRIDE * frames,
    )  # fmt: skip
    parts = forward(dataclasses.replace(config.dit, depth=1), work)
    ours = 3 * sum(parts[name] for name in BLOCKS)
    return {"ours": ours, "peer": ours - 3 * parts["audio"], "tokens": batch * frames * math.prod(config.grid)}
