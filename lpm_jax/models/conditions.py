"""What a pass is told: text, two audio branches, references; and where everything stands in the sequence.

Parameters of a model: ``{"dit", "speak", "listen", "prior", "text"[, "warp"]}``; what brings sound to the transformer
is separate for the two branches (SPEC section 2). Large models read frozen encoders: umT5 is their ``"text"``, and
wav2vec 2.0 their ``"audio"``, which both branches share; :func:`init` makes neither.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lpm_jax.config import AudioConfig, Config, DiTConfig
from lpm_jax.models import dit, umt5, warp
from lpm_jax.models.audio import FPS, SAMPLE_RATE, STRIDE, AudioEncoder, AudioFeatures, LogMel, branch, hearing_reach
from lpm_jax.models.text import TextEncoder
from lpm_jax.models.wav2vec import Wav2Vec
from lpm_jax.nn.attention import Visible
from lpm_jax.nn.rope import angles_3d

#: Reference kinds in the order of ``data_pipeline.schema.REFERENCES`` after a leading "first frame".
FIRST_FRAME, GLOBAL, VIEWS, EXPRESSIONS = 0, 1, 2, 6


def init(config: Config, key: Array) -> dict:
    """Fresh parameters of the whole model."""
    return {"dit": dit.init(config.dit, jax.random.split(key, 4)[0])} | init_small(config, key)


def init_small(config: Config, key: Array) -> dict:
    """What :func:`init` makes beside the transformer: all that an imported transformer still lacks."""
    _, k2, k3, k4 = jax.random.split(key, 4)
    tokens = jnp.zeros((1, STRIDE, audio_features(config.audio).features))
    params = {
        "speak": AudioEncoder(config.audio).init(k3, tokens)["params"],
        "listen": AudioEncoder(config.audio).init(k4, tokens)["params"],
        # Of the latent, per channel: its variance around the reference (flow.py) and what its error counts in the loss.
        "prior": {"variance": jnp.ones((config.dit.channels,)), "weight": jnp.ones((config.dit.channels,))},
    }
    if config.dit.warp:
        params["warp"] = warp.init(config)
    if config.text.umt5 is None:
        ids = jnp.ones((1, config.text.tokens), jnp.int32)
        params["text"] = TextEncoder(config.text).init(k2, ids)["params"]
    return params


def abstract(config: Config) -> dict:
    """Shapes and dtypes of :func:`init` without computing anything."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def axes(config: Config) -> dict:
    """The logical axes that parameters declare (``sharding.py``): the transformers'. The rest is small, and whole on
    every device."""
    networks = ("dit", "refiner") if config.stream.refine else ("dit",)
    return dict.fromkeys(networks, dit.axes(config.dit))


def audio_features(config: AudioConfig) -> AudioFeatures:
    """What makes tokens of sound at 24 kHz; its parameters are ``params.get("audio", {})``."""
    if config.wav2vec is None:
        return LogMel(config)
    return Wav2Vec(config.wav2vec, history=2 * SAMPLE_RATE, sample_rate=SAMPLE_RATE)


def history_tokens(config: AudioConfig) -> int:
    """Audio tokens that precede those of a window or chunk: the longer branch's reach and what the first token of it is
    heard with, in whole latent frames."""
    reach = round(max(config.speak_window, config.listen_window) * FPS) + hearing_reach(config)
    return -(-reach // STRIDE) * STRIDE


def encode_text(
    config: Config, params: dict, ids: Int[Array, "b words"] | Float[Array, "b words width"]
) -> tuple[Float[Array, "b words width"], Bool[Array, "b words"]]:
    """Encoded prompts and which words count. umT5 prompts are padded with -1 and, as in Wan, read whole: beyond a
    text's end they are zeros that count. What is encoded already, as large models train on, stays as it is."""
    if jnp.issubdtype(ids.dtype, jnp.floating):
        return ids, jnp.ones(ids.shape[:2], bool)
    if config.text.umt5 is None:
        return TextEncoder(config.text).apply({"params": params["text"]}, ids)
    there = ids >= 0
    text = umt5.encode(config.text.umt5, params["text"], jnp.maximum(ids, 0), there)
    return text, jnp.ones(ids.shape, bool)


def encode(
    config: Config,
    params: dict,
    ids: Int[Array, "b words"] | Float[Array, "b words width"],
    speak: Float[Array, "b tokens features"],
    listen: Float[Array, "b tokens features"],
    frames: int,
    chunk: int | None,
    keep: dict[str, Float[Array, " b"]] | None = None,
) -> dit.Conditions:
    """Conditions for ``frames`` latent frames whose audio ends with them (more tokens are history).

    ``keep`` switches branches per sample for guidance dropout: 1 keeps ``"text"`` or ``"audio"``, 0 drops it.
    """
    keep = keep or {}
    text, mask = encode_text(config, params, ids)
    if "text" in keep and jnp.issubdtype(ids.dtype, jnp.integer):  # encoded prompts are dropped where they are loaded
        mask = kept_words(mask, keep["text"])
    branches = encode_audio(config, params, speak, listen, frames, chunk, keep.get("audio"))
    return dit.Conditions(text.astype(speak.dtype), mask, **branches)


def kept_words(mask: Bool[Array, "b words"], keep: Float[Array, " b"]) -> Bool[Array, "b words"]:
    """Which words count where ``keep`` is 0 for dropped prompts: those are the empty prompt, its start token."""
    return mask & ((keep[:, None] > 0) | (jnp.arange(mask.shape[1]) == 0))


def encode_audio(
    config: Config,
    params: dict,
    speak: Float[Array, "b tokens features"],
    listen: Float[Array, "b tokens features"],
    frames: int,
    chunk: int | None,
    keep: Float[Array, " b"] | None = None,
) -> dict[str, dit.Audio]:
    """Both branches' tokens with their windows: ``{"speak", "listen"}``."""
    branches = {}
    for kind, mel in (("speak", speak), ("listen", listen)):
        tokens = AudioEncoder(config.audio).apply({"params": params[kind]}, mel)
        if keep is not None:
            tokens = tokens * keep[:, None, None].astype(tokens.dtype)
        window = getattr(config.audio, f"{kind}_window")
        branches[kind] = branch(tokens, config.audio, frames, window, chunk, config.dit.head_dim)
    return branches


def encode_sound(
    config: Config,
    params: dict,
    speak: Float[Array, "b samples"],
    listen: Float[Array, "b samples"],
    frames: int,
    dtype: DTypeLike,
    keep: Float[Array, " b"] | None = None,
) -> dict[str, dit.Audio]:
    """:func:`encode_audio` of one chunk of ``frames`` latent frames, from the samples that a stream has when it makes
    it: the chunk's own, after those that it remembers (``generator.history_samples``)."""
    features = audio_features(config.audio)
    heard = (features(params.get("audio", {}), x).astype(dtype) for x in (speak, listen))
    return encode_audio(config, params, *heard, frames, frames, keep)


def reference_times(config: DiTConfig, kinds: Int[Array, "*b refs"]) -> Float[Array, "*b refs"]:
    """Where each reference stands on the time axis: ``offset of its type + stride * index`` (segment RoPE)."""
    times = jnp.full(kinds.shape, config.first_frame_offset)
    for first, offset in (
        (GLOBAL, config.global_offset),
        (VIEWS, config.view_offset),
        (EXPRESSIONS, config.expression_offset),
    ):
        times = jnp.where(kinds >= first, offset - config.reference_stride * (kinds - first), times)
    return times


def visibility(frames: int, chunk: int | None, valid: Bool[Array, "b refs"]) -> Visible:
    """Which frames see which: video sees video (block-causally with ``chunk``) and valid references; references see
    references only."""
    refs = valid.shape[1]
    chunks = np.arange(frames) // (chunk or max(frames, 1))
    order = np.zeros((frames + refs, frames + refs), bool)
    order[:frames, :frames] = chunks[:, None] >= chunks[None]
    order[:, frames:] = True
    there = jnp.ones((valid.shape[0], frames), bool)
    return Visible(order, jnp.concatenate([there, valid], axis=1))


def positions(
    config: DiTConfig,
    times: Float[Array, "#b frames"],
    mask: Visible,
    grid: tuple[int, int],
    keep: Int[Array, "b kept"] | None = None,
) -> dit.Positions:
    """RoPE angles and mask of a pass without cache; ``keep`` selects patches (the same in every frame)."""
    own = angles_3d(times, *grid, config.head_dim)
    n = grid[0] * grid[1]
    if keep is not None:
        b, f = keep.shape[0], times.shape[1]
        own = jnp.broadcast_to(own.reshape(own.shape[0], f, n, -1), (b, f, n, own.shape[-1]))
        own = jnp.take_along_axis(own, keep[:, None, :, None], axis=2)
        own = own.reshape(b, f * keep.shape[1], -1)
    return dit.Positions(own, None, mask)
