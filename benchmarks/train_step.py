"""How much of the chip a real training step uses: seconds, tokens a second and model FLOPs utilisation (MFU).

    python -m benchmarks.train_step --config configs/lpm_1b.py --blocks 0 --batch 1 --latents 19 --remat names,dots \
        --torch-python PATH --out benchmarks/results
    python -m benchmarks.train_step --tiny        the same on a model of seconds, for any machine

One run measures, in turns (``timing.py``): the largest rate of bfloat16 matrix products; one transformer block forward
and backward, ours and diffusers' in PyTorch (``wan_block.py``); the training step of ``--stage`` as ``train.py`` takes
it, AdamW, moving average and guard included, on a batch of noise at the config's size; with ``--chunk`` the streaming
step; with ``--backbone CONFIG`` one network evaluation of a larger model. ``docs/benchmarks.md`` says what each figure
means. A part that fails does not stop the others; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

from benchmarks.report import Row, table
from lpm_jax.checkpoint import write_json
from lpm_jax.config import AudioConfig, Config, TextConfig, UMT5Config, WanVAEConfig, Wav2VecConfig
from lpm_jax.environment import environment
from lpm_jax.errors import ArgumentParser, InputError, one_line, run_door
from lpm_jax.nn.remat import POLICIES
from lpm_jax.options import load_config

PARTS = ("block", "train", "chunk", "backbone")
BEGAN = time.monotonic()
TARGET = ">= 0.45"  # of the measured peak, on a GPU, for the whole model


def tiny(config: Config) -> Config:
    """``config`` with every size small: 32 x 48 pixels, 6 patches a frame, 4 blocks of width 64."""
    return dataclasses.replace(
        config, size=32, width=48,
        vae=WanVAEConfig(base_dim=4, z_dim=4, dim_mult=(1, 1, 2, 2), num_res_blocks=1, latents_mean=(0.0,) * 4,
                         latents_std=(1.0,) * 4),
        audio=AudioConfig(width=64, wav2vec=Wav2VecConfig(width=16, layers=1, heads=2, ffn=32, channels=8,
                                                          position_kernel=4, position_groups=2)),
        text=TextConfig(width=32, tokens=8, umt5=UMT5Config(vocabulary=40, width=32, head_dim=8, ffn=32, layers=1,
                                                            heads=2, tokens=8)),
        dit=dataclasses.replace(config.dit, depth=4, width=64, heads=2, ffn=128, channels=4, time_width=32,
                                text_width=32, audio_width=64),
        stream=dataclasses.replace(config.stream, chunk=3, sink=1, window=1, references=1),
    )  # fmt: skip


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The options, checked as far as they can be without JAX.

    Raises:
      InputError: an option is unfit.
    """
    parser = ArgumentParser("python -m benchmarks.train_step", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--config", type=Path, default=Path("configs/lpm_1b.py"))
    add("--stage", default="base.speak", help="a diffusion stage of the config")
    add("--blocks", type=int, default=0, help="of the transformer; 0: all")
    add("--batch", type=int, default=1, help="clips; halved until they fit the memory")
    add("--latents", type=int, default=19, help="latent frames of video; references come on top")
    add("--remat", default="names", help=f"what to try, with commas between: {', '.join(POLICIES)}")
    add("--attention", default="", help="xla, cudnn or splash; the platform's flash kernel unless given")
    add("--rounds", type=int, default=7, help="of which the median is told")
    add("--chunk", action="store_true", help="also the streaming step")
    add("--backbone", type=Path, metavar="CONFIG", help="also one evaluation of this model, such as configs/lpm_17b.py")
    add("--backbone-blocks", type=int, default=0, help="measured and multiplied; 0: all, or as many as fit")
    add("--skip", default="", help="parts to leave out: block, train")
    add("--torch-python", default=sys.executable, help="a Python with torch and diffusers")
    add("--torch-mode", choices=("compile", "eager"), help="how the peer runs; compile, with --tiny eager")
    add("--tiny", action="store_true", help="a model of seconds: to see that the command works")
    add("--out", type=Path, default=Path(__file__).parent / "results", help="folder for train_step_DEVICE.json")
    args = parser.parse_args(words)
    args.remat, args.skip = ([x.strip() for x in text.split(",") if x.strip()] for text in (args.remat, args.skip))
    for option, found, known in (("--remat", args.remat, POLICIES), ("--skip", args.skip, PARTS[:2])):
        wrong = [name for name in found if name not in known]
        if wrong or (option == "--remat" and not found):
            raise InputError(f"{option}: expected of {', '.join(known)}, found {', '.join(wrong) or 'none'}")
    if {"train", "block"} <= set(args.skip) and not args.chunk and not args.backbone:
        raise InputError(f"--skip {','.join(args.skip)}: expected a part to measure, found none")
    if args.attention not in ("", "xla", "cudnn", "splash"):
        raise InputError(f"--attention: expected xla, cudnn or splash, found {args.attention!r}")
    for option, found, least in (
        ("--batch", args.batch, 1), ("--latents", args.latents, 1), ("--rounds", args.rounds, 1),
        ("--blocks", args.blocks, 0), ("--backbone-blocks", args.backbone_blocks, 0),
    ):  # fmt: skip
        if found < least:
            raise InputError(f"{option}: expected at least {least}, found {found}")
    if shutil.which(args.torch_python) is None:
        raise InputError(f"--torch-python {args.torch_python}: expected a Python interpreter, found none")
    args.torch_mode = args.torch_mode or ("eager" if args.tiny else "compile")
    return args


def configure(args: argparse.Namespace, path: Path, blocks: int, stage: str | None = None) -> Config:
    """The config in ``path`` as it is measured.

    Raises:
      InputError: it does not exist, lacks the stage, or has fewer blocks or another number of frames a chunk.
    """
    config = load_config(path)
    if args.tiny:
        config = tiny(config)
    config = config.for_stage(stage) if stage else config
    if blocks % 2 or blocks > config.dit.depth:
        raise InputError(f"blocks of {path}: expected an even number up to {config.dit.depth}, found {blocks}")
    if stage == "online.causal" and args.latents % config.stream.chunk:
        raise InputError(f"--latents: expected a multiple of a chunk, {config.stream.chunk}, found {args.latents}")
    train = dataclasses.replace(
        config.train, batch=args.batch, latents=args.latents, attention=args.attention, token_keep=1.0, accumulate=1
    )
    return dataclasses.replace(
        config, train=train, stream=dataclasses.replace(config.stream, attention=args.attention),
        dit=dataclasses.replace(config.dit, depth=blocks or config.dit.depth),
    )  # fmt: skip


def command(args: argparse.Namespace) -> str:
    """The command without this machine's paths."""
    words = ["python -m benchmarks.train_step --config", args.config.name if args.config.is_absolute() else args.config]
    for name in ("stage", "blocks", "batch", "latents", "remat", "attention", "rounds", "torch_mode"):
        value = getattr(args, name)
        value = ",".join(value) if isinstance(value, list) else value
        words += [f"--{name.replace('_', '-')}", value] if value != "" else []
    words += ["--skip", ",".join(args.skip)] if args.skip else []
    words += ["--chunk"] if args.chunk else []
    if args.backbone:
        words += ["--backbone", args.backbone.name if args.backbone.is_absolute() else args.backbone]
        words += ["--backbone-blocks", args.backbone_blocks] if args.backbone_blocks else []
    return " ".join(map(str, words + (["--tiny"] if args.tiny else [])))


def note(text: str) -> None:
    """A line about the run, with the seconds since it began."""
    print(f"[{time.monotonic() - BEGAN:5.0f} s] {text}", file=sys.stderr, flush=True)


def rows(found: dict) -> list[Row]:
    """The figures of a run as a table: times have the least possible one as their floor, rates the peak as ceiling."""
    tera, device = 1e12, found["device"]
    out: list[Row] = []
    add = lambda *args, **more: out.append(Row(*args, **more))  # noqa: E731
    for name in PARTS:
        for one in found.get(name, []):
            if "error" in one or not one.get("fits", True):
                continue
            peak, sheet = one["peak"]["median"], device["data_sheet_flops"]
            label = f"train, remat {one['remat']}" if name == "train" else name
            add(f"{label}: matrix products, TFLOP/s", peak / tera, ceiling=sheet and sheet / tera)
            if name == "block":
                for who in ("ours", "peer"):
                    if one[who]:
                        add(f"block, {who}: ms forward + backward", 1e3 * one[who]["seconds"],
                            floor=1e3 * one[who]["flops"] / peak)  # fmt: skip
                        add(f"block, {who}: TFLOP/s", one[who]["rate"] / tera, ceiling=peak / tera)
                if one["peer"]:
                    add("block: our rate over the peer's", one["rate_ratio"])
                    add("block: our time over the peer's", one["time_ratio"])
            elif name == "train":
                target = TARGET if device["platform"] == "gpu" and one["whole"] and not found["preset"] else ""
                add(f"{label}: seconds a step", one["seconds"], floor=one["flops"]["model"] / peak / device["count"])
                add(f"{label}: tokens/s", one["tokens_per_second"])
                add(f"{label}: MFU, of the measured peak", one["mfu"], ceiling=1.0, target=target)
                if sheet:
                    add(f"{label}: MFU, of the data sheet", one["mfu_data_sheet"], ceiling=1.0)
                add(f"{label}: hardware FLOPs, of the measured peak", one["hfu"], ceiling=1.0)
                add(f"{label}: compiled memory, GB", one["memory"]["total"] / 1e9,
                    ceiling=device["memory_limit"] and device["memory_limit"] / 1e9)  # fmt: skip
                if one["peak_memory"]:
                    add(f"{label}: most memory used, GB", one["peak_memory"] / 1e9)
            else:
                add(f"{name}: ms", 1e3 * one["seconds"], floor=1e3 * one["flops"] / peak)
                add(f"{name}: of the measured peak", one["share"], ceiling=1.0)
    return out


def earlier(path: Path) -> list[dict]:
    """The runs that the file holds already: none is ever replaced.

    Raises:
      InputError: it is another kind of file.
    """
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text())["runs"])
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}: expected runs of this benchmark, found something else; --out another folder"
        ) from None


def main() -> int:
    args = parse()
    config = configure(args, args.config, args.blocks, args.stage)
    if args.backbone:
        configure(args, args.backbone, args.backbone_blocks)  # refuse bad options before any work
    backbone = args.backbone and configure(args, args.backbone, 0)
    # Memory as it is needed: the peer's process comes to the same device first, and leaves.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    from benchmarks import step_parts as parts

    bench = parts.Bench(args.rounds, args.tiny, note)
    device = bench.device()
    path = args.out / f"train_step_{re.sub('[^a-z0-9]+', '_', device['kind'].lower()).strip('_')}.json"
    before = earlier(path)
    found = {"command": command(args)} | environment("jaxlib", "optax")
    found |= {"device": device, "config": config.name, "preset": "tiny" if args.tiny else None}
    work = [("block", lambda: parts.block(bench, config, args.torch_python, args.torch_mode))]
    for remat in args.remat:
        policy = dataclasses.replace(config, train=dataclasses.replace(config.train, remat=remat))
        work.append(("train", lambda policy=policy: parts.train(bench, policy, args.stage, args.blocks == 0)))
    work += [("chunk", lambda: parts.chunk(bench, config))] if args.chunk else []
    work += [("backbone", lambda: parts.backbone(bench, backbone, args.backbone_blocks))] if backbone else []
    failed = False
    for name, part in work:
        if name in args.skip:
            continue
        gc.collect()  # the arrays of the part before
        try:
            result = part()
        except InputError:
            raise
        except Exception as error:
            failed, result = True, {"error": f"{type(error).__name__}: {one_line(error)}"}
            note(f"{name}: failed: {result['error']}")
        found.setdefault(name, []).append(result)
        write_json(path, {"runs": [*before, found]})
    print(table(rows(found)))
    note(f"written: {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    run_door(main)
