"""The toy's streaming step written plainly in PyTorch: the peer of ``benchmarks/chunk_peer.py``, which starts it.

    PYTHON -m benchmarks.torch_chunk FOLDER

``PYTHON`` is any interpreter with torch, numpy and safetensors. ``FOLDER`` holds ``setting.json`` (the model's config,
where its weights are, how many chunks a turn has), ``state.safetensors`` (a stream under way) and ``check.safetensors``
(sound and noise of its next chunks). In each mode, eager and compiled, it makes these chunks, writes the results to a
file of the mode's name, says that it is ready, and answers every line ``go MODE`` with the time of a turn: one chunk
that does not count, then some that do. All it says is one JSON object a line.

The step is that of ``lpm_jax/streaming/generator.py``: log-mel and audio encoders, the transformer at both levels
against the rolling cache, the VAE's decoder, uint8 frames. Noise is drawn within the timed step, as ours is.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.torch_network import (
    CELL,
    FFT,
    FPS,
    KINDS,
    LIFE,
    SIDE,
    STRIDE,
    TOKEN,
    AudioEncoder,
    Decoder,
    Transformer,
    Warp,
    angles,
    angles_3d,
    turn,
)

PARTS = ("audio", "transformer", "decoder")


class Model(nn.Module):
    """All that a chunk needs, with the names of our files; what it computes is in three parts."""

    def __init__(self, config: dict):
        super().__init__()
        vae = config["vae"]
        self.dit, self.decoder = Transformer(config["dit"]), Decoder(vae)
        self.speak, self.listen = (AudioEncoder(config["audio"]) for _ in KINDS)
        cells = (config[side] // SIDE for side in ("height", "width"))
        self.warp = Warp(config["dit"], *cells) if config["dit"]["warp"] else None
        self.prior = nn.ParameterDict({"variance": torch.zeros(config["dit"]["channels"])})
        sizes = {"basis": (CELL, vae["channels"]), "centre": (CELL,)}
        for name in ("basis", "centre", "scale", "mean", "std"):
            self.register_parameter(name, nn.Parameter(torch.zeros(sizes.get(name, (vae["channels"],)))))

    def hear(self, speak: Tensor, listen: Tensor) -> dict[str, Tensor]:
        return {"speak": self.speak(speak), "listen": self.listen(listen)}

    def decode(self, latents: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised latents ``[groups, rows, columns, channels]`` to uint8 frames, and the decoder's next ``past``."""
        z = latents * self.std + self.mean
        cells, past = self.decoder(z, past)
        cells = cells + (z / self.scale) @ self.basis.T + self.centre
        t, h, w, _ = cells.shape
        frames = cells.reshape(t, h, w, 8, 8, STRIDE, 3).permute(0, 5, 1, 3, 2, 4, 6)
        frames = frames.reshape(t * STRIDE, 8 * h, 8 * w, 3)
        return ((frames + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8), past


def load(config: dict, folder: str | Path) -> Model:
    """The model with the weights of our safetensors files, in float32 and PyTorch's layouts."""
    found: dict[str, Tensor] = {}

    def put(path: list[str], leaf: str, value: Tensor) -> None:
        if leaf == "kernel":
            leaf = "weight"
            # Linear: [in, out]. Convolution: [taps, rows, columns, in, out], taps as more input channels.
            value = value.T if value.ndim == 2 else value.permute(4, 0, 3, 1, 2).flatten(1, 2)
        elif path[-1:] == ["norm_cross"] and leaf == "scale":
            leaf = "weight"
        found[".".join([*path, leaf])] = value

    for file in sorted(f for stem in ("model", "vae") for f in Path(folder).glob(f"{stem}-*.safetensors")):
        for key, value in load_file(file).items():
            *path, leaf = key.split("/")
            if path[:2] == ["dit", "blocks"]:  # stacked over pairs
                for i, layer in enumerate(value.float()):
                    put([*path[:3], str(i), *path[3:]], leaf, layer)
            else:
                put(path, leaf, value.float())
    model = Model(config).to(memory_format=torch.channels_last)  # convolutions are faster that way
    missing, unread = model.load_state_dict(found, strict=False)
    if missing:
        raise KeyError(f"{folder}: weights lack {', '.join(missing)}")
    unread = [key for key in unread if key.startswith(("dit.", *(f"{kind}." for kind in KINDS)))]
    if unread:  # text and the encoder aren't played here
        raise KeyError(f"{folder}: weights that nothing reads: {', '.join(unread)}")
    return model.eval()


class Stream:
    """A stream under way; its state is changed in place."""

    def __init__(self, config: dict, model: Model, state: dict[str, Tensor], wrap: Callable = lambda f: f):
        """``wrap`` compiles a part, or leaves it as it is."""
        self.config, self.model, self.state = config, model, {k: v.clone() for k, v in state.items()}
        self.chunk = int(state["chunk"])
        parts = {"hear": model.hear, "evaluate": model.dit, "move": model.warp, "decode": model.decode}
        self.parts = {name: wrap(part) for name, part in parts.items() if part}
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.grid = [config[side] // (8 * config["dit"]["patch"]) for side in ("height", "width")]
        self.head_dim = config["dit"]["width"] // config["dit"]["heads"]
        self.windows = {kind: self._window(config["audio"][f"{kind}_window"]) for kind in KINDS}

    def _window(self, seconds: float) -> tuple:
        """Which audio tokens each frame of a chunk hears, and where frames and tokens stand."""
        frames, reach = self.config["stream"]["chunk"], round(seconds * FPS)
        tokens = (self.state["speak"].shape[0] - FFT) // TOKEN + STRIDE * frames
        token = torch.arange(tokens)
        first = tokens + STRIDE * (torch.arange(frames)[:, None] - frames)
        seen = (token >= first - reach) & (token < first + STRIDE + reach)
        middles = first + (STRIDE - 1) / 2
        return seen, turn(angles(middles, self.head_dim, 100.0)), turn(angles(token, self.head_dim, 100.0))

    def places(self) -> tuple[dict, int]:
        """Where everything stands at this chunk, and the slot that its keys go to (``streaming/cache.py``)."""
        n, chunk = self.chunk, self.config["stream"]["chunk"]
        sink, window = self.config["stream"]["sink"], self.config["stream"]["window"]
        valid, tokens = self.state["reference_valid"], self.grid[0] * self.grid[1]
        now = min(n, sink + window) * chunk
        ages = [(n - sink - 1 - slot) % window + 1 for slot in range(window)]
        starts = [slot * chunk for slot in range(sink)] + [now - age * chunk for age in ages]
        filled = [slot < n for slot in range(sink)] + [n - age >= sink for age in ages] + [True]
        steps = torch.arange(chunk, dtype=torch.float32)
        times = torch.cat([self.state["reference_times"], *(start + steps for start in starts)])
        if n > sink + window:  # the first frame is seen while the stream's beginning is on the axis
            valid = valid & (torch.arange(len(valid)) > 0)
        seen = torch.cat((valid, torch.tensor(filled).repeat_interleave(chunk)))
        place = {
            "own": turn(angles_3d(now + steps, *self.grid, self.head_dim)),
            "context": turn(angles_3d(times, *self.grid, self.head_dim)),
            "mask": seen.repeat_interleave(tokens)[None],
            "text": self.state["text_mask"][None],
        }
        return place, len(valid) + (n if n < sink else sink + (n - sink) % window) * chunk

    def latents(self, heard: dict[str, Tensor], noise: Tensor, life: Tensor | None) -> Tensor:
        """Both evaluations, ``noise [levels, frames, tokens, values]``; the last one's keys go into the cache."""
        cfg, state = self.config["dit"], self.state
        place, write = self.places()
        sounds = {kind: (heard[kind], *self.windows[kind]) for kind in KINDS}
        anchor, clean, copies = state["anchor"], torch.zeros_like(noise[0]), cfg["patch"] ** 2
        near = (anchor + self.config["stream"]["carry"] * (state["near"] - anchor)).expand_as(clean)
        variance = self.model.prior["variance"].repeat(copies)
        for i, (t, draw) in enumerate(zip(self.config["stream"]["levels"], noise, strict=True)):
            noisy = (1 - t) * clean + t * draw
            gain = (1 - t) * variance / ((1 - t) ** 2 * variance + t**2)
            shown = anchor + gain * (noisy - (1 - t) * anchor)
            level = torch.full(clean.shape[:1], t)
            out, new = self.parts["evaluate"](
                shown, level, near - anchor, state["text"], sounds, place, state["cache"], life
            )
            sizes = clean.shape[-1], cfg["channels"], cfg["channels"]
            change, still, carry, moves = out.split((*sizes, out.shape[-1] - sum(sizes)), dim=-1)
            still, carry = still.repeat(1, 1, copies), carry.clamp(-1, 1).repeat(1, 1, copies)
            draft = clean if i else shown
            clean = draft + still * (draft - anchor) + carry * (near - anchor) + change
            if cfg["warp"] and not i:
                clean = clean + self.parts["move"](moves, state["picture"])
        state["cache"][:, :, write : write + len(clean)] = new
        state["near"] = clean[-1:]
        (rows, columns), p = self.grid, cfg["patch"]
        return clean.reshape(-1, rows, columns, p, p, cfg["channels"]).transpose(2, 3).reshape(
            -1, rows * p, columns * p, cfg["channels"]
        )  # fmt: skip

    def step(
        self, speak: Tensor, listen: Tensor, noise: Tensor | None = None, life: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The next chunk's latents and frames; ``seconds`` gathers what each part took."""
        marks = [time.perf_counter()]
        sounds = []
        for kind, sound in zip(KINDS, (speak, listen), strict=True):
            sounds.append(torch.cat((self.state[kind], sound)))
            self.state[kind] = sounds[-1][len(sound) :]
        heard = self.parts["hear"](*sounds)
        marks.append(time.perf_counter())
        if noise is None:
            shape = self.config["stream"]["chunk"], *self.state["near"].shape[1:]
            noise = torch.randn(len(self.config["stream"]["levels"]), *shape)
            told = self.config["dit"]["life"]  # ours draws it anew: next to nothing
            life = torch.randn(self.config["stream"]["chunk"], LIFE) if told else None
        latents = self.latents(heard, noise, life)
        marks.append(time.perf_counter())
        frames, self.state["past"] = self.parts["decode"](latents, self.state["past"])
        self.chunk += 1
        marks.append(time.perf_counter())
        for part, (began, ended) in zip(PARTS, pairwise(marks), strict=True):
            self.seconds[part] += ended - began
        return latents, frames


def check(stream: Stream, given: dict[str, Tensor], path: Path) -> None:
    """Makes the chunks whose sound and noise are ``given`` and writes their latents and frames."""
    names = [name for name in ("speak", "listen", "noise", "life") if name in given]
    made = [stream.step(*chunk) for chunk in zip(*(given[name] for name in names), strict=True)]
    latents, frames = (torch.stack(x) for x in zip(*made, strict=True))
    save_file({"latents": latents.contiguous(), "frames": frames.contiguous()}, path)


def take_turn(stream: Stream, given: dict[str, Tensor], chunks: int) -> dict:
    """Seconds of each of ``chunks`` chunks after one that does not count, on the clock, of the processor's time, and
    of each part on average."""
    sounds = list(zip(given["speak"], given["listen"], strict=True))
    seconds, cpu = [], []
    for i in range(chunks + 1):
        if i == 1:
            stream.seconds = dict.fromkeys(PARTS, 0.0)
        began, busy = time.perf_counter(), time.process_time()
        stream.step(*sounds[i % len(sounds)])[1].numpy()
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - busy)
    return {"seconds": seconds[1:], "cpu": cpu[1:], "parts": {k: v / chunks for k, v in stream.seconds.items()}}


def say(**what) -> None:
    print(json.dumps(what), flush=True)


@torch.inference_mode()
def main(folder: Path) -> None:
    warnings.filterwarnings("ignore", module="torch")  # such as: complex numbers of the spectrum are not compiled
    setting = json.loads((folder / "setting.json").read_text())
    config = setting["config"]
    torch.set_num_threads(setting["threads"])
    state, given = (load_file(folder / f"{name}.safetensors") for name in ("state", "check"))
    model = load(config, setting["weights"])
    streams, failed = {}, {}
    half = torch.autocast("cpu", torch.bfloat16, enabled=setting["dtype"] == "bfloat16")  # PyTorch's own way
    freeze = partial(torch.compile, options={"freezing": True})  # weights as constants: a tenth faster
    wraps = {"eager": lambda f: f, "compiled": freeze}
    for mode in setting["modes"]:
        began = time.perf_counter()
        try:
            stream = Stream(config, model, state, wraps[mode])
            with half:
                check(stream, given, folder / f"{mode}.safetensors")
        except Exception as error:
            if mode == "eager":
                raise
            failed[mode] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            continue
        streams[mode] = stream
        print(f"torch: {mode} ready in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    say(modes=list(streams), failed=failed, torch=torch.__version__, threads=torch.get_num_threads())
    for line in sys.stdin:
        word, _, mode = line.strip().partition(" ")
        if word != "go" or mode not in streams:
            say(error=f"expected go {'|'.join(streams)}, found {line.strip()!r}")
            continue
        with half:
            say(**take_turn(streams[mode], given, setting["chunks"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
