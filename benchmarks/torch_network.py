"""The toy's networks in PyTorch: the same layers, shapes and order as ``lpm_jax/models``, in PyTorch's own forms.

Nothing of ``lpm_jax`` is imported: this runs in an interpreter of its own (``benchmarks/torch_chunk.py``). Modules and
parameters are named as in our files, so that weights are found by name. One stream, so no batch axis.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = ("speak", "listen")
TOKEN, STRIDE, FFT, FPS, CELL = 1000, 4, 512, 24, 768  # samples a token, tokens a latent frame, ..., numbers in a cell
LIFE = 6  # values that tell each frame of a little life
SIDE = 8  # pixels of a cell
Turn = tuple[Tensor, Tensor]  # cosines and sines


def angles(positions: Tensor, dim: int, theta: float = 10_000.0) -> Tensor:
    return positions[..., None] * theta ** (-torch.arange(0, dim, 2) / dim)


def angles_3d(times: Tensor, rows: int, columns: int, dim: int) -> Tensor:
    """``[frames, rows * columns, dim / 2]``: time, row and column share a head as in Wan."""
    side = 2 * (dim // 6)
    parts = (
        angles(times, dim - 2 * side)[:, None, None],
        angles(torch.arange(rows), side)[None, :, None],
        angles(torch.arange(columns), side)[None, None],
    )
    return torch.cat([part.expand(len(times), rows, columns, -1) for part in parts], dim=-1).flatten(1, 2)


def turn(angles: Tensor) -> Turn:
    """The same for every head."""
    return angles.cos()[..., None, :], angles.sin()[..., None, :]


def rotate(x: Tensor, by: Turn) -> Tensor:
    """``x [..., heads, dim]``, neighbours as pairs."""
    cos, sin = by
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """``[batch, tokens, heads, dim]`` each, ``mask [batch, keys]``; heads side by side in the output."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None]).transpose(1, 2).flatten(2)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.gain, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.gain, self.eps)


class Block(nn.Module):
    """One transformer block (``lpm_jax/models/dit.py``)."""

    def __init__(self, cfg: dict):
        super().__init__()
        d, self.heads, self.eps = cfg["width"], cfg["heads"], cfg["eps"]
        self.modulation = nn.Parameter(torch.zeros(6, d))
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.text_q, self.text_k, self.text_v, self.text_o = (nn.Linear(d, d) for _ in range(4))
        self.audio_k, self.audio_v = (nn.Linear(cfg["audio_width"], d) for _ in range(2))
        self.audio_o = nn.Linear(d, d)
        self.norm_q, self.norm_k, self.norm_text_q, self.norm_text_k, self.norm_audio_k = (
            RMSNorm(d, self.eps) for _ in range(5)
        )
        self.norm_cross = nn.LayerNorm(d, self.eps)
        self.ffn_in, self.ffn_out = nn.Linear(d, cfg["ffn"]), nn.Linear(cfg["ffn"], d)

    def heads_of(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def forward(self, x: Tensor, time: Tensor, text: Tensor, heard: tuple, place: dict, past: Tensor):
        """``x [frames, tokens, width]``; ``past [2, slots, tokens, heads, dim]``: keys before rotation, and values.
        Returns the new ``x`` and its own keys and values."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (time + self.modulation)[:, :, None].unbind(1)
        y = F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale1) + shift1
        q, k, v = self.heads_of(self.norm_q(self.q(y))), self.heads_of(self.norm_k(self.k(y))), self.heads_of(self.v(y))
        keys = torch.cat((rotate(past[0], place["context"]), rotate(k, place["own"]))).flatten(0, 1)[None]
        values = torch.cat((past[1], v)).flatten(0, 1)[None]
        y = attend(rotate(q, place["own"]).flatten(0, 1)[None], keys, values, place["mask"])
        x = x + self.o(y.reshape(x.shape)) * gate1

        q = self.heads_of(self.norm_text_q(self.text_q(self.norm_cross(x))))
        tk, tv = self.heads_of(self.norm_text_k(self.text_k(text))), self.heads_of(self.text_v(text))
        told = attend(q.flatten(0, 1)[None], tk[None], tv[None], place["text"]).reshape(x.shape)
        sound, seen, query_turn, key_turn = heard
        ak = rotate(self.heads_of(self.norm_audio_k(self.audio_k(sound))), key_turn)
        av, frames = self.heads_of(self.audio_v(sound)), len(x)
        told_sound = attend(rotate(q, query_turn), ak.expand(frames, -1, -1, -1), av.expand(frames, -1, -1, -1), seen)
        x = x + self.text_o(told) + self.audio_o(told_sound)

        y = F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale2) + shift2
        return x + self.ffn_out(F.gelu(self.ffn_in(y), approximate="tanh")) * gate2, torch.stack((k, v))


class Transformer(nn.Module):
    """Noisy patches to the network's output and every block's new keys and values."""

    def __init__(self, cfg: dict):
        super().__init__()
        d, patch = cfg["width"], cfg["patch"] ** 2 * cfg["channels"]
        sizes = {"patch": (patch, d), "near": (patch, d), "time_in": (cfg["time_width"], d), "time_out": (d, d),
                 "time_modulation": (d, 6 * d), "text_in": (cfg["text_width"], d), "text_out": (d, d)}  # fmt: skip
        sizes |= {"life": (LIFE, d)} if cfg["life"] else {}
        self.embed = nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})
        pairs = cfg["depth"] // 2
        self.blocks = nn.ModuleDict({kind: nn.ModuleList(Block(cfg) for _ in range(pairs)) for kind in KINDS})
        sizes = {"projection": patch, "gate": 2 * cfg["channels"]}
        sizes |= {"warp": STRIDE * cfg["warp"]} if cfg["warp"] else {}
        self.head = nn.ModuleDict({name: nn.Linear(d, size) for name, size in sizes.items()})
        self.head.register_parameter("modulation", nn.Parameter(torch.zeros(2, d)))
        self.time_width, self.eps = cfg["time_width"], cfg["eps"]

    def forward(self, shown, level, known, words, heard: dict[str, tuple], place: dict, cache: Tensor, life):
        """``shown`` and ``known [frames, tokens, values]``, ``level [frames]``, ``words [words, width]``,
        ``cache [blocks, 2, slots, tokens, heads, dim]``, ``life [frames, values]`` or None."""
        embed = self.embed
        phase = 1000.0 * angles(level, self.time_width)
        t = embed["time_out"](F.silu(embed["time_in"](torch.cat((phase.cos(), phase.sin()), dim=-1))))
        t = t if life is None else t + embed["life"](life)
        time = embed["time_modulation"](F.silu(t)).unflatten(-1, (6, -1))
        text = embed["text_out"](F.gelu(embed["text_in"](words), approximate="tanh"))
        x, new = embed["patch"](shown) + embed["near"](known), []
        for i, past in enumerate(cache):
            kind = KINDS[i % 2]
            x, kv = self.blocks[kind][i // 2](x, time, text, heard[kind], place, past)
            new.append(kv)
        shift, scale = (t[:, None] + row for row in self.head.modulation)
        y = F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift
        return torch.cat([part(y) for part in self.head.values()], dim=-1), torch.stack(new)


class Warp(nn.Module):
    """What the anchor's latent changes by when the picture is moved (``lpm_jax/models/warp.py``)."""

    def __init__(self, cfg: dict, rows: int, columns: int):
        super().__init__()
        channels, self.patch = cfg["channels"], cfg["patch"]
        sizes = {"basis": (CELL, channels), "gain": (channels,)}
        for name, size in (sizes | {"motions": (cfg["warp"], rows, columns, 2)}).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(size)))

    def forward(self, moves: Tensor, picture: Tensor) -> Tensor:
        """What each token says and the picture, twice as fine: ``[frames, tokens, values]``."""
        frames, p = len(moves), self.patch
        rows, columns = (size // 2 for size in picture.shape[:2])
        h, w = rows // SIDE, columns // SIDE
        g = moves.mean(1).reshape(frames * STRIDE, -1)
        d = torch.einsum("tk,khwx->txhw", g, self.motions).float()  # positions in half precision are half pixels off
        d = F.interpolate(d, (rows, columns), mode="bilinear").permute(0, 2, 3, 1)
        here = torch.stack(torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy"), dim=-1)
        at = 2 * (here + d) / torch.tensor([columns - 1.0, rows - 1.0]) - 1
        fine = picture[:-1, :-1].permute(2, 0, 1).expand(len(at), -1, -1, -1)
        moved = F.grid_sample(fine, at, padding_mode="border", align_corners=True).permute(0, 2, 3, 1)
        change = (moved - picture[::2, ::2]).reshape(frames, STRIDE, h, SIDE, w, SIDE, 3)
        code = change.permute(0, 2, 4, 3, 5, 1, 6).flatten(3) @ (self.basis * self.gain)
        return (
            code.reshape(frames, h // p, p, w // p, p, -1).transpose(2, 3).reshape(frames, -1, code.shape[-1] * p * p)
        )


class AudioEncoder(nn.Module):
    """Samples to tokens: log-mel columns, a token's four together, through two layers (``lpm_jax/models/audio.py``)."""

    def __init__(self, cfg: dict):
        super().__init__()
        self.hop, width = TOKEN // cfg["hops_per_frame"], cfg["width"]
        self.add_module("in", nn.Linear(cfg["bands"] * cfg["hops_per_frame"], width))
        self.out, self.phase = nn.Linear(width, width), nn.Parameter(torch.zeros(STRIDE, width))
        self.hearing = Hearing(cfg) if cfg["hearing"] else None
        self.heard = nn.Linear(cfg["hearing_width"], width, bias=False) if cfg["hearing"] else None
        self.register_buffer("filters", mel_filters(cfg["bands"]), persistent=False)
        self.register_buffer("window", torch.hann_window(FFT, periodic=False), persistent=False)

    def forward(self, sound: Tensor) -> Tensor:
        spectrum = torch.stft(sound[self.hop :], FFT, self.hop, window=self.window, center=False, return_complex=True)
        mel = ((spectrum.abs().square().T @ self.filters + 1e-4).log() + 3.0) / 6.0
        enter = getattr(self, "in")
        mel = mel.reshape(-1, enter.in_features)
        x = (enter(mel).unflatten(0, (-1, STRIDE)) + self.phase).flatten(0, 1)
        tokens = self.out(F.gelu(x, approximate="tanh"))
        return tokens if self.hearing is None else tokens + self.heard(self.hearing(mel))


class Hearing(nn.Module):
    """What is being said, from the tokens' mel columns: residual causal convolutions, block ``i`` over ``2 ** (i + 1)``
    tokens of the past."""

    def __init__(self, cfg: dict):
        super().__init__()
        width, self.blocks = cfg["hearing_width"], cfg["hearing"]
        self.add_module("in", nn.Linear(cfg["bands"] * cfg["hops_per_frame"], width))
        for i in range(self.blocks):
            self.add_module(f"look_{i}", nn.Linear(3 * width, width))
            self.add_module(f"mix_{i}", nn.Linear(width, width, bias=False))

    def forward(self, mel: Tensor) -> Tensor:
        x = getattr(self, "in")(mel)
        for i in range(self.blocks):
            past = F.pad(F.layer_norm(x, x.shape[-1:], eps=1e-6), (0, 0, 2 * 2**i, 0))
            y = torch.cat([past[k * 2**i :][: len(x)] for k in range(3)], dim=-1)
            x = x + getattr(self, f"mix_{i}")(F.gelu(getattr(self, f"look_{i}")(y), approximate="tanh"))
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def mel_filters(bands: int) -> Tensor:
    """Triangles from 60 Hz to 8 kHz, equally spaced on the mel scale, ``[bins, bands]``."""
    ends = [2595 * math.log10(1 + f / 700) for f in (60.0, 8000.0)]
    points = 700 * (10 ** (np.linspace(*ends, bands + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(FFT, 1 / (TOKEN * FPS))[:, None]
    rise = (bins - points[None, :-2]) / (points[1:-1] - points[:-2])
    fall = (points[None, 2:] - bins) / (points[2:] - points[1:-1])
    filters = np.maximum(0, np.minimum(rise, fall))
    return torch.tensor(filters / np.maximum(filters.sum(0), 1e-3), dtype=torch.float32)


class Residual(nn.Module):
    """``x + conv(silu(conv(silu(norm(x)))))`` over ``[groups, rows, columns, channels]``, causal in time."""

    def __init__(self, width: int, taps: int):
        super().__init__()
        self.gain, self.taps = nn.Parameter(torch.ones(width)), taps
        self.conv1 = nn.Conv2d(taps * width, width, 3, padding=1)  # earlier groups as more channels
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """``past``: the groups that the first convolution looks back to; the block's without any returns it as is."""
        y = F.silu(F.rms_norm(x, x.shape[-1:], self.gain, 1e-6))
        if self.taps > 1:
            y = torch.cat((past, y))
            past = y[1 - self.taps :]
            y = torch.cat([y[self.taps - 1 - k : len(y) - k] for k in range(self.taps)], dim=-1)
        y = self.conv2(F.silu(self.conv1(y.permute(0, 3, 1, 2))))  # channels last in memory
        return x + y.permute(0, 2, 3, 1), past


class Decoder(nn.Module):
    """The latent to the network's part of the cells (``lpm_jax/models/vae/toy.py``)."""

    def __init__(self, cfg: dict):
        super().__init__()
        width = cfg["width"]
        self.add_module("in", nn.Linear(cfg["channels"], width))
        self.blocks = [f"block{i}" for i in range(cfg["decoder_blocks"])]
        for name in self.blocks:
            self.add_module(name, Residual(width, 2 if name == "block0" else 1))
        self.gain, self.out = nn.Parameter(torch.ones(width)), nn.Linear(width, CELL)

    def forward(self, z: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        x = getattr(self, "in")(z)
        for name in self.blocks:
            x, past = getattr(self, name)(x, past)
        return self.out(F.silu(F.rms_norm(x, x.shape[-1:], self.gain, 1e-6))), past
