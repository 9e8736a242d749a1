"""A finished run as a model directory: ``python -m lpm_jax.training.export CONFIG WORKDIR OUT [--stage NAME]``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lpm_jax import pretrained
from lpm_jax.checkpoint import load_weights
from lpm_jax.config import load_config
from lpm_jax.errors import ArgumentParser, run_door
from lpm_jax.models import conditions, vae


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage", default="online.causal")
    args = parser.parse_args()
    config = load_config(args.config)
    params = load_weights(args.workdir / args.stage / "weights", "model", conditions.abstract(config))
    params["vae"] = load_weights(args.workdir / "vae" / "weights", "model", vae.abstract(config.vae))
    pretrained.save(args.out, dataclasses.replace(config, stages={}, data=""), params)
    files = sorted(args.out.glob("*.safetensors"))
    print(f"{args.out}: " + ", ".join(f"{p.name} {p.stat().st_size / 2**20:.1f} MiB" for p in files))


if __name__ == "__main__":
    run_door(main)
