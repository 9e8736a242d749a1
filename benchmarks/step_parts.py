"""The parts of ``benchmarks/train_step.py``: each measures in turns with matrix products and returns its figures."""

from __future__ import annotations

import dataclasses
import functools
import gc
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import step_flops, step_programs, timing
from benchmarks.wan_block import Peer, PeerError
from lpm_jax import sharding
from lpm_jax.config import Config, MeshConfig
from lpm_jax.errors import one_line

SIZES = {"cpu": (1024, 2048), "gpu": (4096, 8192, 16384), "tpu": (4096, 8192, 16384)}  # of matrix products


@dataclasses.dataclass
class Bench:
    """What all parts share: the number of rounds, the products to compare with, and where to say what goes on."""

    rounds: int
    tiny: bool
    note: Callable[[str], None]

    def __post_init__(self) -> None:
        self.platform = jax.default_backend()
        self.products = timing.Products((256, 512) if self.tiny else SIZES[self.platform])

    def device(self) -> dict[str, Any]:
        """What JAX runs on."""
        chip, limit = step_programs.chip(), step_programs.device_memory()["limit"]
        return {
            "kind": jax.devices()[0].device_kind,
            "platform": self.platform,
            "count": len(jax.devices()),
            "memory_limit": limit and int(limit),
            "data_sheet_flops": chip and chip.flops,
        }

    def measure(self, runs: dict[str, timing.Run]) -> tuple[dict[str, list[float]], list[float], dict]:
        """Seconds a call and each round's peak, and the peak as it is told."""
        least = 0.02 if self.tiny else timing.LEAST
        seconds = timing.in_turns(self.products.runs() | runs, self.rounds, least)
        peaks = self.products.peaks(seconds)
        return seconds, peaks, {"median": statistics.median(peaks), "fastest": max(peaks), "rounds": peaks}

    def backend(self, config: Config) -> str:
        """The self-attention kernel that runs: what the config says or the platform's."""
        return config.train.attention or {"gpu": "cudnn", "tpu": "splash"}.get(self.platform, "xla")


class Attempt(NamedTuple):
    """A program that runs, or None and why it does not fit; the memory that the compiler planned, if it came so far."""

    program: Any
    reason: str
    memory: dict[str, int] | None


def attempt(make: Callable[[], Any]) -> Attempt:
    """Compiles a program, makes its arrays and runs it once, if the device has the memory."""
    room, program = step_programs.free(), None
    try:
        program = make()
        total = program.memory["total"]
        if room is not None and total > room:
            return Attempt(None, f"{total / 1e9:.1f} GB needed, {room / 1e9:.1f} GB free", program.memory)
        program.start()
        timing.waiting(program)(1)
        return Attempt(program, "", program.memory)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        return Attempt(None, one_line(error, 120), program and program.memory)


# ---- one block, beside PyTorch's -------------------------------------------------------------------------------------


def block(bench: Bench, config: Config, python: str, mode: str) -> dict:
    """Forward and backward of one block over as many tokens as a training step has, ours and diffusers'."""
    train, (rows, columns) = config.train, config.grid
    frames = train.latents + 2
    flops = step_flops.block(config, train.batch, frames)
    spec = {
        "width": config.dit.width, "heads": config.dit.heads, "ffn": config.dit.ffn, "batch": train.batch,
        "frames": frames, "rows": rows, "columns": columns, "words": config.text.tokens, "mode": mode,
        "device": "cuda" if bench.platform == "gpu" else "cpu",
    }  # fmt: skip
    bench.note(f"block: {flops['tokens']} tokens of width {config.dit.width}, ours and PyTorch's ({mode})")
    peer, why = None, "PyTorch does not run here on a TPU"
    if bench.platform != "tpu":
        try:
            peer, why = Peer(python, spec), ""
        except PeerError as error:
            why = str(error)
    if peer is None:
        bench.note(f"block: no peer: {why} (--torch-python names a Python with torch and diffusers)")
    runs = {"ours": timing.waiting(step_programs.block(config, train.batch, frames))}
    if peer is not None:
        runs["peer"] = peer
    try:
        seconds, peaks, peak = bench.measure(runs)
    finally:
        last = peer.close() if peer is not None else {}
    gc.collect()
    found = {name: timing.summary(seconds[name]) | {"flops": flops[name]} for name in runs}
    for name, one in found.items():
        one |= {"rate": flops[name] / one["seconds"], "share": timing.share(flops[name], seconds[name], peaks)}
    result = {"tokens": flops["tokens"], "attention": bench.backend(config), "peak": peak, "peer": None, **found}
    if peer is None:
        return result | {"no_peer": why}
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["peer"], strict=True)]
    result["peer"] |= peer.facts | {"peak_memory": last.get("peak_memory")}
    time_ratio = statistics.median(ratios)
    return result | {"time_ratio": time_ratio, "rate_ratio": flops["ours"] / flops["peer"] / time_ratio}


# ---- the training step -----------------------------------------------------------------------------------------------


def train(bench: Bench, config: Config, stage: str, whole: bool) -> dict:
    """The stage's training step over all devices, weights in shards, with the largest batch that fits: the config's,
    or a half, a quarter ... of it."""
    mesh = sharding.make_mesh(MeshConfig())
    said = {"stage": stage, "remat": config.train.remat, "blocks": config.dit.depth, "whole": whole}
    said |= {"dtype": config.train.dtype, "latents": config.train.latents, "pixels": config.pixels}
    asked, label = config.train.batch, f"train, remat {config.train.remat}"
    while True:
        batch = config.train.batch
        bench.note(f"{label}: compiling {config.dit.depth} blocks, batch {batch}")
        found = attempt(functools.partial(step_programs.Step, config, stage, mesh))
        if found.program is not None:
            break
        gc.collect()
        bench.note(f"{label}: batch {batch} does not fit: {found.reason}")
        if batch % 2 or (batch // 2) % mesh.size:
            return said | {"fits": False, "batch": batch, "memory": found.memory, "reason": found.reason}
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch=batch // 2))
    step = found.program
    seconds, peaks, peak = bench.measure({"step": timing.waiting(step)})
    metrics = {name: float(step.metrics[name]) for name in ("loss", "skipped")}
    if metrics["skipped"] or not np.isfinite(metrics["loss"]):
        raise FloatingPointError(f"loss {metrics['loss']}, skipped {metrics['skipped']}: no step to time")
    work = step_flops.window(config)
    backend = bench.backend(config)
    flops = step_flops.training(config.dit, work) | {"hardware": step.executed.total()}
    per_device = {name: x / mesh.size for name, x in flops.items()}
    chip, summary = step_programs.chip(), timing.summary(seconds["step"])
    result = said | summary | {"fits": True, "batch": config.train.batch, "asked": asked, "mesh": dict(mesh.shape)}
    result |= {"tokens": step_flops.tokens(work), "tokens_per_second": step_flops.tokens(work) / summary["seconds"]}
    result |= {"flops": flops, "peak": peak, "mfu": timing.share(per_device["model"], seconds["step"], peaks)}
    result |= {"hfu": timing.share(per_device["hardware"], seconds["step"], peaks)}
    result |= {"mfu_data_sheet": chip and per_device["model"] / summary["seconds"] / chip.flops}
    result |= {"executed": dict(step.executed), "attention": backend}
    result |= {"flash_calls": step_programs.flash_calls(step.compiled), "memory": step.memory}
    result |= {"peak_memory": step_programs.device_memory()["peak"]}
    return result | {"steps": int(step.state.step), "loss": metrics["loss"]}


# ---- streaming -------------------------------------------------------------------------------------------------------


def chunk(bench: Bench, config: Config) -> dict:
    """The streaming step on one device: all evaluations of a chunk of ``stream.chunk`` latent frames."""
    return _stream(bench, config, "chunk", config.dit.depth)


def backbone(bench: Bench, config: Config, blocks: int) -> dict:
    """One network evaluation of a chunk, cache and all: of the whole model where it fits, else of as many blocks as
    do (or of ``blocks``), multiplied."""
    config = dataclasses.replace(config, stream=dataclasses.replace(config.stream, levels=config.stream.levels[:1]))
    return _stream(bench, config, "backbone", blocks)


def _stream(bench: Bench, config: Config, name: str, blocks: int) -> dict:
    """The streaming step with ``blocks`` blocks; 0: as many as fit, all at first."""
    whole, levels = config.dit.depth, len(config.stream.levels)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    depth = blocks or whole
    said = {"config": config.name, "of_blocks": whole, "evaluations": levels, "pixels": config.pixels}
    while True:
        bench.note(f"{name}: compiling {depth} of {whole} blocks of {config.name}")
        found = attempt(functools.partial(step_programs.Chunk, step_programs.with_depth(config, depth), mesh))
        if found.program is not None:
            break
        gc.collect()
        bench.note(f"{name}: {depth} blocks do not fit: {found.reason}")
        room = step_programs.free()
        part = 0.9 * room / found.memory["total"] if room and found.memory else 0.5
        less = 2 * int(depth * min(part, 0.9) / 2)
        if blocks or less < 2:
            return said | {"fits": False, "blocks": depth, "memory": found.memory, "reason": found.reason}
        depth = less
    step = found.program
    seconds, peaks, peak = bench.measure({name: timing.waiting(step)})
    if not np.isfinite(np.asarray(step(), np.float32)).all():
        raise FloatingPointError(f"{name}: latents that are not finite: no step to time")
    times = [x * whole / depth for x in seconds[name]]
    flops = levels * sum(step_flops.forward(config.dit, step_flops.chunk(config)).values())
    if depth < whole:
        bench.note(f"{name}: measured on {depth} of {whole} blocks and multiplied by {whole / depth:g}")
    result = said | timing.summary(times) | {"fits": True, "blocks": depth, "measured": timing.summary(seconds[name])}
    result |= {"flops": flops, "peak": peak, "share": timing.share(flops, times, peaks)}
    result |= {"attention": bench.backend(config), "flash_calls": step_programs.flash_calls(step.compiled)}
    return result | {"memory": step.memory, "peak_memory": step_programs.device_memory()["peak"]}
