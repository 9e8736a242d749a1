"""Train a sweep and fit loss against compute.

    python -m lpm_jax.scaling configs/ladder/*m.py --workdir DIR --stage base.speak --steps 50,100,200,400 \\
        --out results.json --plot docs/scaling.png [--max-flops 1e14] [--train.batch 4 ...]

Every config trains for every number of steps, each run from scratch with a schedule of its own, and is judged by one
held-out loss. The same command goes on where it was stopped; further configs, steps or seeds (``--train.seed 1``) join
the runs that ``--out`` holds. ``--fit-only`` fits and draws those again without training.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from lpm_jax.checkpoint import write_json
from lpm_jax.environment import environment
from lpm_jax.errors import ArgumentParser, InputError, run_door
from lpm_jax.options import load_config
from lpm_jax.scaling import laws, plot, report

COUNTED = (
    "training FLOPs: 3 x forward of matrix products and attention, over video patches, references, text and audio "
    "tokens, encoders included; optimiser and validation not. blocks: parameters without embeddings, encoders and head"
)


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = ArgumentParser(
        "python -m lpm_jax.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", help="Python files with get_config(), such as configs/ladder/1m.py")
    parser.add_argument("--workdir", type=Path, help="holds vae (a finished stage) and latents; runs go to scaling/")
    parser.add_argument("--stage", default="base.speak")
    parser.add_argument("--steps", default="", help="step budgets, such as 50,100,200")
    parser.add_argument("--max-flops", type=float, help="leave out runs that cost more")
    parser.add_argument("--draws", type=int, default=4, help="windows and noises of each held-out clip; default 4")
    parser.add_argument("--out", type=Path, required=True, help="results, a .json file")
    parser.add_argument("--plot", type=Path, help="loss against compute, a .png file")
    parser.add_argument("--fit-only", action="store_true", help="fit the runs of --out again")
    args, rest = parser.parse_known_args()
    if args.plot is not None:
        plot.check()
    if args.fit_only:
        if args.configs or rest:
            raise InputError(f"--fit-only: expected no runs and no settings, found {[*args.configs, *rest][0]}")
        return args, rest
    if not args.configs or args.workdir is None:
        raise InputError("expected configs and --workdir, or --fit-only (see --help)")
    if args.draws < 1:
        raise InputError(f"--draws: expected at least 1, found {args.draws}")
    args.steps = budgets(args.steps)
    return args, rest


def budgets(text: str) -> list[int]:
    """``"100,50"`` as ``[50, 100]``."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1:
        raise InputError(f"--steps: expected numbers of steps such as 50,100, found {text!r}")
    return numbers


def read(path: Path) -> dict[str, Any]:
    """What an earlier command wrote.

    Raises:
      InputError: there is no such file, or something else is in it.
    """
    if not path.is_file():
        raise InputError(f"--out {path}: expected the results of a study, found no file")
    try:
        results = json.loads(path.read_text())
        laws.points(results["runs"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"--out {path}: expected the results of a study, found something else") from None
    return results


def key(run: dict[str, Any]) -> tuple:
    return run["name"], run["steps"], run["seed"]


def joins(args: argparse.Namespace, earlier: dict[str, Any], runs: list) -> None:
    """Refuses to put runs beside one of another stage, or under the name of one with other settings."""
    from lpm_jax.scaling.sweep import settings

    where = f"--out {args.out}: {earlier['name']} {earlier['steps']}"
    wanted = {"stage": args.stage, "draws": args.draws}
    for run in runs:
        if (run.name, run.train.steps) == (earlier["name"], earlier["steps"]):
            wanted |= settings(run)
    for name, value in wanted.items():
        if earlier[name] != value:
            raise InputError(f"{where}: expected {name} {value}, found {earlier[name]}; name another file")


def train(args: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    """Runs what is missing; the results, written after every run."""
    from lpm_jax.scaling import count, sweep

    if any(option.split("=")[0] == "--train.steps" for option in rest):
        raise InputError("--train.steps: expected --steps")
    runs = sweep.plan([load_config(path) for path in args.configs], args.stage, args.steps, rest, args.max_flops)
    if not Path(runs[0].data).is_dir():
        raise InputError(f"--data {runs[0].data}: expected a folder made by data_pipeline.performers, found none")
    earlier = read(args.out)["runs"] if args.out.is_file() else []
    results = {"command": shlex.join(["python", "-m", "lpm_jax.scaling", *sys.argv[1:]])} | environment("optax")
    results |= {"stage": args.stage, "draws": args.draws, "counted": COUNTED, "runs": earlier}
    for run in earlier:
        joins(args, run, runs)
    whole = sum(count.cost(run, args.stage).flops for run in runs)
    print(f"{len(runs)} runs, {whole:.3g} FLOP in all", flush=True)

    def done(run: dict[str, Any], new: bool) -> None:
        others = [other for other in results["runs"] if key(other) != key(run)]
        results["runs"] = sorted([*others, run], key=lambda run: (run["flops"], run["seed"]))
        write_json(args.out, results)
        print(f"{report.line(run)}{'' if new else ' (done before)'}", flush=True)

    sweep.sweep(runs, args.stage, args.workdir, args.draws, done)
    return results


def main() -> None:
    args, rest = parse()
    results = read(args.out) if args.fit_only else train(args, rest)
    results["laws"] = laws.analyse(results["runs"])
    write_json(args.out, results)
    if args.plot is not None:
        plot.save(args.plot, results)
    print("\n".join([report.table(results), "", *report.sentences(results["laws"])]))


if __name__ == "__main__":
    run_door(main)
