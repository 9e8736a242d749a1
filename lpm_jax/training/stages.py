"""The stages by name, in the order of the recipe, and what each starts from."""

from __future__ import annotations

from pathlib import Path

from lpm_jax.config import Config
from lpm_jax.errors import InputError
from lpm_jax.training.loop import run_stage

ORDER = (
    "vae", "audio", "base.speak", "base.listen", "base.identity", "online.causal", "online.ode", "online.dmd_off",
    "online.dmd_on", "online.refine",
)  # fmt: skip


def run(stage: str, config: Config, workdir: Path) -> None:
    """Trains one stage in ``workdir / stage``."""
    workdir = Path(workdir)
    if stage == "vae":
        from lpm_jax.training.vae import make_stage

        run_stage(make_stage(config, config.data), config, workdir)
        return
    if stage == "audio":
        from lpm_jax.training.hearing import make_stage as make_audio

        run_stage(make_audio(config, workdir), config, workdir)
        return
    from lpm_jax.training import flow_matching, online

    earlier = ORDER[: ORDER.index(stage)]
    there = [name for name in earlier if name in config.stages] or list(earlier)
    before = config.train.init or there[-1]
    if before in ("vae", "audio"):
        before = "scratch"
    needed = "audio" if before == "scratch" and config.audio.hearing else before
    if needed != "scratch" and "@" not in needed and not (workdir / needed / "weights").is_dir():
        raise InputError(f"--stage {stage}: expected the finished weights of {needed} in {workdir}, found none")
    make_stage = online.make_stage if stage in online.STAGES else flow_matching.make_stage
    run_stage(make_stage(stage, before, config, workdir), config, workdir)
