"""The LPM diffusion transformer (SPEC section 2): Wan 2.1's backbone with speak and listen branches.

Tokens are ``frames x height x width`` of the patched latent, noisy video first, references (with the first frame)
appended at the end of the self-attention sequence. Each block is

    x <- x + g1 * SelfAttention(mod1(LN(x)))                     AdaLN from the frame's own noise level
    x <- x + W_o^txt A(q, text) + W_o^aud A(rot(q), audio)       q = RMS(W_q LN(x)) is shared
    x <- x + g2 * FFN(mod2(LN(x)))

Even blocks read the speak audio, odd ones the listen audio, each video frame within its window. References carry noise
level 0, read only each other and skip the cross-attention, so their keys and values never change and can be pinned.

The module :class:`Block` is stateless: it runs inside a raw ``lax.scan`` over pairs of blocks, whose parameters are
stacked. Attention to a cache is the same code: ``context`` brings keys (before RoPE) and values of earlier chunks.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from data_pipeline.schema import LATENT_STRIDE, LIFE
from lpm_jax import sharding
from lpm_jax.config import DiTConfig
from lpm_jax.nn.attention import Visible, attention
from lpm_jax.nn.linear import Dense, gated, modulate
from lpm_jax.nn.quantized import restored, stored_like
from lpm_jax.nn.remat import named_weights, rematerialised
from lpm_jax.nn.rope import rotate

KINDS = ("speak", "listen")  # even, odd


class Audio(NamedTuple):
    """One branch's audio as a chunk of video sees it."""

    tokens: Float[Array, "b audio width"]
    mask: Bool[Array, "b frames audio"]  # which tokens each video frame may read
    query_angles: Float[Array, "frames half"]
    key_angles: Float[Array, "audio half"]


class Conditions(NamedTuple):
    """What a pass reads besides its latents."""

    text: Float[Array, "b words width"]
    text_mask: Bool[Array, "b words"]
    speak: Audio
    listen: Audio
    life: Float[Array, "b frames values"] | None = None  # of each frame of video; None: not told


class Context(NamedTuple):
    """Keys before RoPE and values that a block attends to besides its own tokens, and where they stand."""

    k: Float[Array, "b slots tokens heads dim"]
    v: Float[Array, "b slots tokens heads dim"]


class Positions(NamedTuple):
    """RoPE angles of the pass's own tokens and of its context, and which frames the pass's own see of context + own."""

    own: Float[Array, "#b n half"]
    context: Float[Array, "#b m half"] | None
    mask: Bool[Array, "#b #frames all"] | Visible | None


def layer_norm(x: Array, eps: float) -> Array:
    """Layer norm without parameters, in float32."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    return (y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + eps)).astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain, over the whole width (Wan's QK norm acts across heads)."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*b width"]) -> Float[Array, "*b width"]:
        gain = self.param("gain", nn.initializers.ones, (x.shape[-1],))
        sharding.declare(self, "gain", "heads")
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
        return (y * gain).astype(x.dtype)


XAVIER, LECUN = nn.initializers.xavier_uniform(), nn.initializers.lecun_normal()


class Block(nn.Module):
    """One transformer block; ``kind`` only names the audio it reads, all blocks have the same parameters."""

    config: DiTConfig
    implementation: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b frames tokens width"],
        time: Float[Array, "b frames 6 width"],
        video: int,
        text: Float[Array, "b words width"],
        text_mask: Bool[Array, "b words"],
        audio: Audio,
        positions: Positions,
        context: Context | None = None,
    ) -> tuple[Float[Array, "b frames tokens width"], tuple[Array, Array]]:
        """``video`` is the number of leading frames that are video; the rest are references.

        Returns the new tokens and this block's own keys (before RoPE) and values ``[b, frames, tokens, heads, dim]``.
        """
        cfg = self.config
        b, f, n, d = x.shape

        def dense(name: str, features: int = d, init=XAVIER, axes=("embed", "heads")):
            return Dense(features, init, axes, name=name)

        def heads(y: Array) -> Array:
            return y.reshape(*y.shape[:-1], cfg.heads, cfg.head_dim)

        def turned(y: Array, angles: Array) -> Array:
            return rotate(y, angles.reshape(-1, *y.shape[1:3], angles.shape[-1]))

        def laid_out(y: Array) -> Array:
            return sharding.constrain(y, "batch", None, "tokens", None)

        back = ("heads", "embed")
        table = self.param("modulation", nn.initializers.normal(d**-0.5), (6, d))
        sharding.declare(self, "modulation", None, "embed")
        modulation = time + table.astype(time.dtype)
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation[:, :, i] for i in range(6))

        # ---- self-attention over context, video and references
        y = modulate(layer_norm(x, cfg.eps), scale1, shift1)
        q = heads(RMSNorm(cfg.eps, name="norm_q")(dense("q")(y)))
        k = heads(RMSNorm(cfg.eps, name="norm_k")(dense("k")(y)))
        v = heads(dense("v")(y))
        keys, values = turned(k, positions.own), v
        if context is not None:
            keys = jnp.concatenate([turned(context.k, positions.context), keys], axis=1)
            values = jnp.concatenate([context.v, values], axis=1)
        y = attention(turned(q, positions.own), keys, values, positions.mask, self.implementation)
        y = checkpoint_name(y.reshape(b, f, n, d), "self_attention")
        x = laid_out(x + gated(dense("o", axes=back)(y), gate1))

        # ---- text and audio cross-attention, summed; video only
        if video:
            clip = x[:, :video]
            y = nn.LayerNorm(epsilon=cfg.eps, dtype=x.dtype, name="norm_cross")(clip)
            q = heads(RMSNorm(cfg.eps, name="norm_text_q")(dense("text_q")(y)))
            tk = heads(RMSNorm(cfg.eps, name="norm_text_k")(dense("text_k")(text)))
            tv = heads(dense("text_v")(text))
            a_text = attention(q, tk[:, :, None], tv[:, :, None], text_mask[:, None], "xla")

            ak = heads(RMSNorm(cfg.eps, name="norm_audio_k")(dense("audio_k")(audio.tokens)))
            av = heads(dense("audio_v", init=nn.initializers.zeros)(audio.tokens))
            q = rotate(q, audio.query_angles[:, None])
            ak = rotate(ak, audio.key_angles)
            a_audio = attention(q, ak[:, :, None], av[:, :, None], audio.mask, "xla")
            shape = (b, video, n, d)
            crossed = dense("text_o", axes=back)(a_text.reshape(shape)) + dense("audio_o", axes=back)(
                a_audio.reshape(shape)
            )
            clip = laid_out(clip + checkpoint_name(crossed, "cross_attention"))
            x = jnp.concatenate([clip, x[:, video:]], axis=1)

        # ---- feed-forward
        y = modulate(layer_norm(x, cfg.eps), scale2, shift2)
        y = nn.gelu(dense("ffn_in", cfg.ffn, axes=("embed", "hidden"))(y), approximate=True)
        y = dense("ffn_out", axes=("hidden", "embed"))(y)
        return laid_out(x + gated(y, gate2)), (k, v)


def time_features(levels: Float[Array, "*b"], dim: int) -> Float[Array, "*b dim"]:
    """Sinusoidal features of ``1000 * level``, cosines first, as Wan."""
    frequencies = 10_000.0 ** (-jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2))
    angles = 1000.0 * levels[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Embed(nn.Module):
    """Patches, noise levels and text into the transformer's width."""

    config: DiTConfig

    @nn.compact
    def __call__(self, patches, levels, text, near=None, life=None):
        cfg = self.config

        def dense(name: str, features: int = cfg.width, axes=(None, "embed"), init=LECUN):
            return Dense(features, init, axes, name=name)

        x = dense("patch")(patches)
        if near is not None:
            x = x.at[:, : near.shape[1]].add(dense("near", init=nn.initializers.zeros)(near))
        t = time_features(levels, cfg.time_width).astype(patches.dtype)
        t = dense("time_in")(t)
        t = dense("time_out", axes=("embed", None))(nn.silu(t))
        if life is not None:
            t = t.at[:, : life.shape[1]].add(dense("life", init=nn.initializers.normal(0.05))(life.astype(t.dtype)))
        e = dense("time_modulation", 6 * cfg.width, axes=("embed", None))(nn.silu(t))
        y = dense("text_in")(text)
        y = dense("text_out", axes=("embed", None))(nn.gelu(y, approximate=True))
        return x, t, e.reshape(*e.shape[:-1], 6, cfg.width), y


class Head(nn.Module):
    """Final modulation and projection to patches, with their channels' gates behind them for ``"clean"``, and
    how much of each principal motion there is for ``warp``."""

    config: DiTConfig

    @nn.compact
    def __call__(self, x, t):
        cfg = self.config
        table = self.param("modulation", nn.initializers.normal(cfg.width**-0.5), (2, cfg.width))
        sharding.declare(self, "modulation", None, "embed")
        shift, scale = (t + row for row in table.astype(t.dtype))
        y = modulate(layer_norm(x, cfg.eps), scale, shift)

        def dense(name: str, features: int):
            return Dense(features, nn.initializers.zeros, ("embed", None), name=name)

        out = dense("projection", cfg.patch**2 * cfg.channels)(y)
        if cfg.prediction == "clean":  # besides, two gates for each channel (flow.py)
            out = jnp.concatenate([out, dense("gate", 2 * cfg.channels)(y)], axis=-1)
        if cfg.warp:  # and this token's say in how the picture moves
            out = jnp.concatenate([out, dense("warp", LATENT_STRIDE * cfg.warp)(y)], axis=-1)
        return out


@functools.partial(jax.jit, static_argnums=0)  # so that a config's parts are traced once, however often they are made
def _modules(config: DiTConfig, key: Array) -> dict:
    """What ``init`` of the parts returns, for one block."""
    dim, half, zeros = config.patch**2 * config.channels, config.head_dim // 2, jnp.zeros
    keys = jax.random.split(key, 3)
    patches = zeros((1, 1, 1, dim))
    near = patches if config.prediction == "clean" else None
    audio = Audio(zeros((1, 1, config.audio_width)), jnp.ones((1, 1, 1), bool), zeros((1, half)), zeros((1, half)))
    x, e = zeros((1, 1, 1, config.width)), zeros((1, 1, 6, config.width))
    life = zeros((1, 1, len(LIFE))) if config.life else None
    text, positions = zeros((1, 1, config.width)), Positions(zeros((1, 1, half)), None, None)
    return {
        "embed": Embed(config).init(keys[0], patches, zeros((1, 1)), zeros((1, 1, config.text_width)), near, life),
        "block": Block(config).init(keys[1], x, e, 1, text, jnp.ones((1, 1), bool), audio, positions),
        "head": Head(config).init(keys[2], x, zeros((1, 1, config.width))),
    }


def init(config: DiTConfig, key: Array) -> dict:
    """Fresh parameters: ``embed``, ``blocks`` (``speak`` and ``listen``, each stacked over pairs) and ``head``."""
    ends, *keys = jax.random.split(key, 1 + config.depth)
    fresh = _modules(config, ends)
    pairs = config.depth // 2
    blocks = jax.vmap(lambda key: _modules(config, key)["block"]["params"])
    return {
        "embed": fresh["embed"]["params"],
        "blocks": {"speak": blocks(jnp.stack(keys[:pairs])), "listen": blocks(jnp.stack(keys[pairs:]))},
        "head": fresh["head"]["params"],
    }


@functools.cache
def axes(config: DiTConfig) -> dict:
    """The logical axes that parameters declare, in the structure of :func:`init`; stacked ones lack the stack's."""
    found = jax.eval_shape(lambda: _modules(config, jax.random.key(0)))
    block = found["block"]["axes"]
    return {
        "embed": found["embed"]["axes"],
        "blocks": dict.fromkeys(KINDS, block),
        "head": found["head"]["axes"],
    }


def patchify(config: DiTConfig, latents: Float[Array, "b f h w c"]) -> Float[Array, "b f tokens pc"]:
    """Spatial patches of ``patch x patch`` cells as vectors, channels last within a cell."""
    p = config.patch
    b, f, h, w, c = latents.shape
    x = latents.reshape(b, f, h // p, p, w // p, p, c).swapaxes(3, 4)
    return x.reshape(b, f, (h // p) * (w // p), p * p * c)


def unpatchify(config: DiTConfig, x: Float[Array, "b f tokens pc"], h: int, w: int) -> Float[Array, "b f h w c"]:
    """The inverse of :func:`patchify` for a latent of ``h x w`` cells."""
    p = config.patch
    b, f = x.shape[:2]
    x = x.reshape(b, f, h // p, w // p, p, p, -1).swapaxes(3, 4)
    return x.reshape(b, f, h, w, -1)


def split_moves(config: DiTConfig, out: Array) -> tuple[Array, Array | None]:
    """The output of :func:`forward`, and what of it says how the picture moves (``models/warp.py``), if any."""
    if not config.warp:
        return out, None
    out, moves = jnp.split(out, [out.shape[-1] - LATENT_STRIDE * config.warp], axis=-1)
    return out, moves


class Cache(NamedTuple):
    """Keys (before RoPE) and values per layer, ``[shelves * pairs, 2, b, slots, tokens, heads, dim]``; arrays, or
    quantised (``nn/quantized.py``)."""

    k: Any
    v: Any


def forward(
    config: DiTConfig,
    params: dict,
    patches: Float[Array, "b f tokens pc"],
    levels: Float[Array, "b f"],
    video: int,
    conditions: Conditions,
    positions: Positions,
    cache: Cache | None = None,
    write_at: Any = None,
    implementation: str | None = None,
    remat: str = "none",
    unroll: bool = False,
    near: Float[Array, "b video tokens pc"] | None = None,
    shelf: int = 0,
) -> tuple[Float[Array, "b video tokens out"], Cache | None]:
    """The network's output for ``f`` latent frames of patches, the first ``video`` video and the rest references.

    A frame's tokens may be any subset of its patches, as long as ``positions.own`` tells where they stand.
    With a ``cache`` every block attends to all its slots before its own tokens (``positions.context`` and
    ``positions.mask`` say where they stand and which count), and, if ``write_at`` is given, stores its own keys and
    values from that slot on. The scan only reads the cache and stacks what is new; one update after it writes all
    layers, in place when donated (an update inside the scan makes XLA copy the whole cache in every iteration).
    A cache may hold several histories one after the other on its first axis, and ``shelf`` is this pass's.
    ``near`` is what "clean" prediction knows of the near latent, less the anchor (flow.py), for each frame of video.
    ``unroll`` writes the scan out: gradients need no copies of each layer's activations, but compiling takes longer.
    ``remat`` says what gradients keep of each pair of blocks (``nn/remat.py``). On a mesh, a pair's weights are
    gathered when their turn comes.
    """
    b, f, n, _ = patches.shape
    declared = axes(config)
    ends = {name: sharding.gather(declared[name], params[name]) for name in ("embed", "head")}
    life = conditions.life if config.life and video else None
    x, t, e, text = Embed(config).apply({"params": ends["embed"]}, patches, levels, conditions.text, near, life)
    x = sharding.constrain(x, "batch", None, "tokens", None)
    block = Block(config, implementation)

    def of_layer(index, which):
        return lambda stacked: jax.lax.dynamic_index_in_dim(stacked, index, 0, keepdims=False)[which]

    def pair(x, layer):
        weights, index = layer
        weights = named_weights(sharding.gather(declared["blocks"], restored(weights)))
        written = []
        for which, kind in enumerate(KINDS):
            context = None
            if cache is not None:
                context = Context(*restored(jax.tree.map(of_layer(index, which), cache)))
            x, kv = block.apply(
                {"params": weights[kind]},
                x, e, video, text, conditions.text_mask, getattr(conditions, kind), positions, context,
            )  # fmt: skip
            written.append(kv)
        return x, None if write_at is None else jax.tree.map(lambda *new: jnp.stack(new), *written)

    pair = rematerialised(pair, remat, sharded=bool(sharding.sizes()))
    pairs = config.depth // 2
    layers = jnp.arange(shelf * pairs, (shelf + 1) * pairs)
    x, new = jax.lax.scan(pair, x, (params["blocks"], layers), unroll=unroll)
    if write_at is not None:
        shape = (pairs, len(KINDS), b, f, n, config.heads, config.head_dim)
        at = (shelf * pairs, 0, 0, write_at, 0, 0, 0)
        new = Cache(*(stored_like(old, kv.reshape(shape)) for old, kv in zip(cache, new, strict=True)))
        cache = jax.tree.map(lambda old, kv: jax.lax.dynamic_update_slice(old, kv, at), cache, new)
    return Head(config).apply({"params": ends["head"]}, x[:, :video], t[:, :video]), cache
