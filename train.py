"""Train a stage: ``train.py CONFIG --stage NAME --workdir DIR [--train.steps 100 ...]``; ``--stage all`` is the recipe.

A run that was stopped goes on where it was: the same command resumes from its newest checkpoint. SIGTERM or Ctrl-C save
first and exit with status 75. Several hosts, what is logged and the rest: docs/training.md.
"""

import argparse
from pathlib import Path

from lpm_jax.errors import ArgumentParser, InputError, run_door
from lpm_jax.options import load_config, override


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a Python file with get_config(), such as configs/toy.py")
    parser.add_argument(
        "--stage", required=True, help="all, or one of the config's: vae, base.*, online.* (docs/training.md)"
    )
    parser.add_argument("--workdir", required=True, type=Path, help="where checkpoints, curves and sheets go")
    parser.add_argument("--distributed", action="store_true", help="one of several processes (Slurm and GKE are seen)")
    args, rest = parser.parse_known_args()
    config = load_config(args.config)
    stages = list(config.recipe or config.stages) if args.stage == "all" else [args.stage]
    runs = [(stage, override(config.for_stage(stage), rest)) for stage in stages]  # refuse bad options before any work
    if not Path(config.data if not rest else runs[0][1].data).is_dir():
        raise InputError(
            f"--data {runs[0][1].data}: expected a folder made by 'python -m data_pipeline.performers', found none"
        )
    from lpm_jax import distributed

    distributed.initialize(args.distributed)
    from lpm_jax.compilation import keep_programs
    from lpm_jax.training import stages as recipes

    keep_programs()

    for stage, stage_config in runs:
        recipes.run(stage, stage_config, args.workdir)


if __name__ == "__main__":
    run_door(main)
