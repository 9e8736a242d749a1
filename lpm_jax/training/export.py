"""A finished run as a model directory: ``python -m lpm_jax.training.export CONFIG WORKDIR OUT [--stage NAME]``.

What the config was changed by in training is given again (``--stream.refine 0.25``). ``--stage STAGE@latest``, or
``@STEP``, exports the average of a run that is still on its way.

``--blend MODEL --share 0.6`` exports 0.6 of the run's weights and 0.4 of those that MODEL, which it started from, has:
between a model and one fine-tuned from it, averages of weights keep much of both (Wortsman et al., "Robust fine-tuning
of zero-shot models", arXiv 2109.01903).

A large model's frozen encoders are copied from ``--train.encoders MODEL``, as they were read in training.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp

from lpm_jax import pretrained
from lpm_jax.checkpoint import load_weights
from lpm_jax.errors import ArgumentParser, InputError, run_door
from lpm_jax.models import conditions, vae
from lpm_jax.options import load_config, override
from lpm_jax.training import distill, encoders, online, rollout
from lpm_jax.training.flow_matching import starting_weights


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage", default="online.causal")
    parser.add_argument("--blend", metavar="MODEL", help="a bundled model or a folder to average the weights with")
    parser.add_argument("--share", type=float, default=0.5, help="of the run's weights in that average")
    args, rest = parser.parse_known_args()
    if not 0 <= args.share <= 1:
        raise InputError(f"--share: expected 0 to 1, found {args.share:g}")
    config = override(load_config(args.config), rest)
    if args.stage.partition("@")[0] in (distill.REFINE, distill.STREAM_AUDIO):
        like = online.refined_shapes(config)
    else:
        config, like = rollout.backbone_only(config), conditions.abstract(config)
    params = starting_weights(args.workdir, args.stage, like)
    if args.blend:
        params = blend(params, pretrained.load(args.blend, jnp.float32)[1], args.share)
    params["vae"] = load_weights(args.workdir / "vae" / "weights", "model", vae.abstract(config.vae))
    if encoders.is_large(config):
        source = encoders.folder(config)
        params |= pretrained.load(source, only=encoders.STEMS)[1]
        args.out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "tokenizer.json", args.out / "tokenizer.json")
    train = dataclasses.replace(config.train, encoders="")
    pretrained.save(args.out, dataclasses.replace(config, train=train, stages={}, data=""), params)
    files = sorted(args.out.glob("*.safetensors"))
    print(f"{args.out}: " + ", ".join(f"{p.name} {p.stat().st_size / 2**20:.1f} MiB" for p in files))


def blend(params: dict, other: dict, share: float) -> dict:
    """``share`` of ``params`` and the rest of ``other``, which may have more parts.

    Raises:
      InputError: they are not of one shape.
    """
    other = {name: other.get(name) for name in params}
    if jax.tree.map(jnp.shape, other) != jax.tree.map(jnp.shape, params):
        raise InputError("--blend: expected a model of the run's own shape, found another")
    return jax.tree.map(lambda a, b: share * jnp.asarray(a) + (1 - share) * jnp.asarray(b), params, other)


if __name__ == "__main__":
    run_door(main)
