"""``python -m lpm_jax.bench cases --suite small --out DIR``: a suite's cases as JSON, sound and pictures."""

from __future__ import annotations

import sys
from pathlib import Path

from lpm_jax.bench.cases import write_case
from lpm_jax.bench.suites import SUITES, specs
from lpm_jax.errors import ArgumentParser, InputError
from lpm_jax.progress import progress


def main(argv: list[str]) -> int:
    parser = ArgumentParser("python -m lpm_jax.bench cases", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the cases (made if missing)")
    parser.add_argument("--suite", default="small", help=f"{', '.join(SUITES)} (default: small)")
    args = parser.parse_args(argv)
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"--out: expected a folder, found the file {str(args.out)!r}")
    write_suite(args.suite, args.out)
    print(f"written: {args.out}", file=sys.stderr)
    return 0


def write_suite(suite: str, out: Path) -> list[Path]:
    """Writes the cases that are not there yet; the folders of all, in the suite's order."""
    from lpm_jax.bench.generate import make_case

    for spec in progress(specs(suite), "cases"):
        if not (out / spec.id / "case.json").exists():
            write_case(make_case(spec), out)
    return [out / spec.id for spec in specs(suite)]
