"""The stages by name, in the order of the recipe, and what each starts from."""

from __future__ import annotations

from pathlib import Path

from lpm_jax.config import Config
from lpm_jax.errors import InputError
from lpm_jax.training.loop import run_stage

ORDER = (
    "vae", "base.speak", "base.listen", "base.identity", "online.causal", "online.ode", "online.dmd_off",
    "online.dmd_on", "online.refine",
)  # fmt: skip


def run(stage: str, config: Config, workdir: Path) -> None:
    """Trains one stage in ``workdir / stage``."""
    workdir = Path(workdir)
    if stage == "vae":
        from lpm_jax.training.vae import make_stage

        run_stage(make_stage(config, config.data), config, workdir)
        return
    from lpm_jax.training import flow_matching, online

    earlier = ORDER[: ORDER.index(stage)]
    there = [name for name in earlier if name in config.stages] or list(earlier)
    before = config.train.init or there[-1]
    if before == "vae":
        before = "scratch"
    if before != "scratch" and "@" not in before and not (workdir / before / "weights").is_dir():
        raise InputError(f"--stage {stage}: expected the finished weights of {before} in {workdir}, found none")
    make_stage = online.make_stage if stage in online.STAGES else flow_matching.make_stage
    run_stage(make_stage(stage, before, config, workdir), config, workdir)
