"""A finished run as a model directory: ``python -m lpm_jax.training.export CONFIG WORKDIR OUT [--stage NAME]``.

What the config was changed by in training is given again (``--stream.refine 0.25``).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lpm_jax import pretrained
from lpm_jax.checkpoint import load_weights
from lpm_jax.config import load_config, override
from lpm_jax.errors import ArgumentParser, run_door
from lpm_jax.models import conditions, vae
from lpm_jax.training import distill, online, rollout


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage", default="online.causal")
    args, rest = parser.parse_known_args()
    config = override(load_config(args.config), rest)
    if args.stage == distill.REFINE:
        like = online.refined_shapes(config)
    else:
        config, like = rollout.backbone_only(config), conditions.abstract(config)
    params = load_weights(args.workdir / args.stage / "weights", "model", like)
    params["vae"] = load_weights(args.workdir / "vae" / "weights", "model", vae.abstract(config.vae))
    pretrained.save(args.out, dataclasses.replace(config, stages={}, data=""), params)
    files = sorted(args.out.glob("*.safetensors"))
    print(f"{args.out}: " + ", ".join(f"{p.name} {p.stat().st_size / 2**20:.1f} MiB" for p in files))


if __name__ == "__main__":
    run_door(main)
