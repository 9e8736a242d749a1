"""Parameters, floating-point operations and bytes of the transformer, by component, from the config alone.

    python -m lpm_jax.flops configs/lpm_17b.py [--frames 6 --height 30 --width 52 --context 0 ...]

A multiplication with an addition counts two operations, as XLA counts them. Counted are matrix products and attention;
norms, activations, modulations and softmax are not: a few percent at the width of small models, less than one percent
at 5120. Attention is counted dense, masked or not: backends that skip masked blocks do less. Bytes are the least that
must move: each weight, each product's input and output and each context key and value once.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from data_pipeline.schema import LATENT_STRIDE, LIFE
from lpm_jax.config import DiTConfig
from lpm_jax.errors import ArgumentParser, InputError, run_door
from lpm_jax.options import load_config

COMPONENTS = ("attention", "ffn", "text", "audio", "embed", "head")
TITLES = {
    "attention": "self-attention, with the modulation table",
    "ffn": "feed-forward",
    "text": "text cross-attention",
    "audio": "audio cross-attention",
    "embed": "patch, time and text embeddings",
    "head": "output head",
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """What one pass computes. The defaults are one second at 480 x 832: 6 latent frames of 30 x 52 patches."""

    batch: int = 1
    frames: int = 6  # latent frames of video
    height: int = 30  # patches
    width: int = 52
    references: int = 0  # latent frames of references; they skip the cross-attention
    context: int = 0  # latent frames of keys and values from a cache
    text: int = 512  # tokens
    audio: int = 24  # tokens of each branch

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < (0 if field.name in ("references", "context") else 1):
                raise InputError(f"--{field.name}: expected a positive number, found {value}")


class Cost(NamedTuple):
    """Of one component: parameters, operations of one pass, and bytes that it moves at least."""

    parameters: int
    flops: int
    bytes: int


def parameters(config: DiTConfig) -> dict[str, int]:
    """Parameters of every component, biases included; their sum is that of ``dit.init``."""
    c, d = config, config.width

    def dense(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    cells = c.patch**2 * c.channels
    clean = c.prediction == "clean"  # gates and the near latent (flow.py)
    return {
        "attention": c.depth * (4 * dense(d, d) + 2 * d + 6 * d),
        "ffn": c.depth * (dense(d, c.ffn) + dense(c.ffn, d)),
        "text": c.depth * (4 * dense(d, d) + 2 * d + 2 * d),
        "audio": c.depth * (2 * dense(c.audio_width, d) + dense(d, d) + d),
        "embed": dense(cells, d) * (2 if clean else 1)
        + (dense(len(LIFE), d) if c.life else 0)
        + (dense(c.time_width, d) + dense(d, d) + dense(d, 6 * d))
        + (dense(c.text_width, d) + dense(d, d)),
        "head": dense(d, cells)
        + 2 * d
        + (dense(d, 2 * c.channels) if clean else 0)
        + (dense(d, LATENT_STRIDE * c.warp) if c.warp else 0),
    }


def costs(config: DiTConfig, work: Workload, itemsize: int = 2) -> dict[str, Cost]:
    """Every component's :class:`Cost` for one pass of ``work``; ``itemsize`` is the bytes of a number (2: bfloat16)."""
    c, d = config, config.width
    tokens = work.height * work.width
    video = work.batch * work.frames * tokens
    own = work.batch * (work.frames + work.references) * tokens
    keys = work.batch * work.context * tokens
    frames = work.batch * (work.frames + work.references)
    cells = c.patch**2 * c.channels
    flops = dict.fromkeys(COMPONENTS, 0)
    moved = dict.fromkeys(COMPONENTS, 0)

    def product(part: str, rows: int, inputs: int, outputs: int, times: int = 1) -> None:
        flops[part] += times * 2 * rows * inputs * outputs
        moved[part] += times * rows * (inputs + outputs)

    def attend(part: str, queries: int, memory: int, times: int) -> None:
        """``queries`` and ``memory`` are tokens of the whole batch; each clip attends to its own."""
        flops[part] += times * 4 * queries * memory * d // work.batch
        moved[part] += times * 2 * (queries + memory) * d

    product("attention", own, d, d, 4 * c.depth)
    attend("attention", own, own + keys, c.depth)
    product("ffn", own, d, c.ffn, c.depth)
    product("ffn", own, c.ffn, d, c.depth)
    words, sounds = work.batch * work.text, work.batch * work.audio
    product("text", video, d, d, 2 * c.depth)
    product("text", words, d, d, 2 * c.depth)
    attend("text", video, words, c.depth)
    product("audio", sounds, c.audio_width, d, 2 * c.depth)
    product("audio", video, d, d, c.depth)  # queries are text's
    attend("audio", video, sounds, c.depth)
    product("embed", own, cells, d)
    for inputs, outputs in ((c.time_width, d), (d, d), (d, 6 * d)):
        product("embed", frames, inputs, outputs)
    for inputs in (c.text_width, d):
        product("embed", words, inputs, d)
    product("head", video, d, cells)
    if c.prediction == "clean":
        product("head", video, d, 2 * c.channels)
        product("embed", video, cells, d)
    if c.warp:
        product("head", video, d, LATENT_STRIDE * c.warp)
    if c.life:
        product("embed", work.batch * work.frames, len(LIFE), d)
    count = parameters(config)
    return {part: Cost(count[part], flops[part], itemsize * (count[part] + moved[part])) for part in COMPONENTS}


def total(parts: dict[str, Cost]) -> Cost:
    """The sum over components."""
    return Cost(*(sum(values) for values in zip(*parts.values(), strict=True)))


def table(config: DiTConfig, work: Workload, itemsize: int = 2) -> str:
    """A Markdown table: parameters, operations and bytes of every component and in all."""
    parts = costs(config, work, itemsize)
    whole = total(parts)
    lines = ["| component | parameters | share | TFLOP | GB moved |", "|---|---:|---:|---:|---:|"]
    for title, cost in [*((TITLES[part], cost) for part, cost in parts.items()), ("**in all**", whole)]:
        share = 100 * cost.parameters / whole.parameters
        lines.append(
            f"| {title} | {cost.parameters:,} | {share:.1f} % | {cost.flops / 1e12:.3g} | {cost.bytes / 1e9:.3g} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = ArgumentParser("python -m lpm_jax.flops", description="Parameters, FLOPs and bytes of a config.")
    parser.add_argument("config", type=Path)
    for field in dataclasses.fields(Workload):
        parser.add_argument(f"--{field.name}", type=int, default=field.default, help=f"default {field.default}")
    parser.add_argument("--itemsize", type=int, default=2, choices=[1, 2, 4], help="bytes of a number")
    args = parser.parse_args()
    work = Workload(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Workload)})
    print(table(load_config(args.config).dit, work, args.itemsize))


if __name__ == "__main__":
    run_door(main)
