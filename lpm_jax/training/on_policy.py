"""``online.rollout``: the student streams, and regresses on the clip that it should have streamed.

In ``online.causal`` a chunk's history is at most one estimate away from the truth; in a stream it is the result of all
chunks before. What a student leaves wrong there it meets again, and what it was never shown it doesn't mend: errors,
grain among them, grow from chunk to chunk. Here chunks come from a rollout through the streaming step
(``rollout.py``), as in Self-Forcing (arXiv 2506.08009), and every evaluation's estimate is compared with the truth, as
when a learner asks the expert about the states that it came to by itself (DAgger, Ross et al. 2011, arXiv 1011.0686).
No teacher is needed. Where a performance is not decided by sound and prompt, the mean of what may follow is learnt:
lips open less wide than they should.

``distill.guidance`` mends that as guidance does, inside the one network that streams (Tang et al., "Diffusion Models
without Classifier-Free Guidance", arXiv 2502.12154): what a chunk would have been without sound and prompt is computed
beside it, and the clip that it is compared with is moved by so much of the difference where the mouth is. (Everywhere,
it drew ghosts: a latent beyond that of a turned head is not one of a head turned further.) The network learns to do
without from clips whose sound and prompt are dropped.

``online.stream_audio``, the last stage, has the same objective on sound as a stream hears it: each chunk's tokens are
made of samples through its own window, what the stream remembers and the chunk itself. Log-mel tokens are the same
through one. An encoder that looks around, as wav2vec 2.0 does, makes others of it than of a whole clip. Where there is
a Refiner, Backbone and Refiner learn side by side, as they stream; without one in the weights before, it starts as the
Backbone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lpm_jax.config import Config
from lpm_jax.flow import weighted_loss
from lpm_jax.models import dit
from lpm_jax.training import faces, rollout
from lpm_jax.training.distill import STREAM_AUDIO, in_dtype, switched
from lpm_jax.training.flow_matching import by_kind, follow, patch_weights
from lpm_jax.training.lips import difference
from lpm_jax.training.voices import as_other_voices

ROLLOUT = "online.rollout"
STAGES = (ROLLOUT, STREAM_AUDIO)


def make_loss(config: Config, reader: dict | None = None, face_reader: dict | None = None):
    """``loss(params, batch, key)`` of windows of whole rollouts, ``distill.rollout`` chunks; the last
    ``distill.gradient`` of as many as were drawn count. ``reader`` is stage ``lips``' network, ``face_reader``
    stage ``faces``'. A Refiner that ``config`` has learns too."""
    train, distill = config.train, config.distill
    levels = {f"x0_at_{level:g}": level for level in config.stream.levels}  # noise levels by what is logged of them
    if config.stream.refine:
        levels["x0_refined"] = config.stream.refine

    def loss(params: dict, batch: dict, key: Array):
        k_warm, k_roll = jax.random.split(key)
        batch = as_other_voices(config, batch, jax.random.fold_in(key, 2))
        warm = jax.random.randint(k_warm, (), 0, distill.rollout - distill.gradient + 1)
        before, other, keep = None, None, None
        if distill.switch:
            change = jax.random.bernoulli(jax.random.fold_in(key, 3), distill.switch, (batch["text"].shape[0],))
            batch, before = switched(config, batch, warm, change)
        if distill.guidance:
            b = batch["text"].shape[0]
            keep = jax.random.bernoulli(jax.random.fold_in(key, 1), 1 - config.flow.audio_dropout, (b,))
            keep = keep.astype(jnp.float32)
            other = rollout.Player(config, batch, before, warm, jnp.zeros(b))
        player = rollout.Player(config, batch, before, warm, keep)
        computed = in_dtype(config, params)
        made, without, moves = rollout.estimates(player, computed, warm, distill.gradient, k_roll, other)
        window = rollout.cut(config, batch, warm, distill.gradient)
        truth = dit.patchify(config.dit, window["latents"].astype(jnp.float32))
        inside = patch_weights(config, window["mouth"].astype(jnp.float32))[..., None] if distill.guidance else 0.0
        weight, channels = patch_weights(config, window["weights"]), params["prior"]["weight"]
        every, total, metrics, last = jnp.ones(truth.shape[:2]), 0.0, {}, None
        for i, (name, clean) in enumerate(zip(levels, made, strict=True)):
            wanted, seen = truth, window
            if without is not None:
                wanted = truth + distill.guidance * inside * jax.lax.stop_gradient(clean - without[i])
                seen = window | {"latents": dit.unpatchify(config.dit, wanted, *config.cells)}
            at = jnp.full(truth.shape[:2], levels[name])
            value, last = weighted_loss(clean, wanted, at, weight, channels, config.flow)
            total += value / len(levels)
            metrics |= {name: jnp.mean(last)}
            if reader:
                metrics["lips"] = difference(config, reader, clean, seen, None, every)
                total += train.lips * metrics["lips"] / len(levels)
            if face_reader:
                metrics["faces"] = difference(config, face_reader, clean, window, None, every, faces.read)
                total += train.faces * metrics["faces"] / len(levels)
        total, metrics = follow(config, total, metrics, params, moves, window, every > 0)
        return total, metrics | by_kind(last, window)

    return loss
