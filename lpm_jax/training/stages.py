"""The stages by name, in the order of the recipe, and what each starts from."""

from __future__ import annotations

from pathlib import Path

from lpm_jax.config import Config
from lpm_jax.errors import InputError
from lpm_jax.training.loop import Stage, run_stage

ORDER = (
    "vae", "audio", "lips", "faces", "base.speak", "base.listen", "base.identity", "online.causal",
    "online.rollout", "online.ode", "online.dmd_off", "online.dmd_on", "online.refine", "online.stream_audio",
)  # fmt: skip
PARTS = ("vae", "audio", "lips", "faces")  # of them, those that train no transformer


def run(stage: str, config: Config, workdir: Path) -> None:
    """Trains one stage in ``workdir / stage``."""
    workdir = Path(workdir)
    if stage in PARTS:
        run_stage(_part(stage, config, workdir), config, workdir)
        return
    from lpm_jax.training import flow_matching, online

    earlier = ORDER[: ORDER.index(stage)]
    there = [name for name in earlier if name in config.stages] or list(earlier)
    before = config.train.init or there[-1]
    if before in PARTS:
        before = "scratch"
    distils = stage in online.STAGES
    needed = ["audio"] if before == "scratch" and config.audio.hearing else [before]
    needed += ["lips"] if config.train.lips else []
    needed += ["faces"] if config.train.faces and stage in online.on_policy.STAGES else []
    for name in needed:
        if name != "scratch" and "@" not in name and not (workdir / name / "weights").is_dir():
            raise InputError(f"--stage {stage}: expected the finished weights of {name} in {workdir}, found none")
    make_stage = online.make_stage if distils else flow_matching.make_stage
    run_stage(make_stage(stage, before, config, workdir), config, workdir)


def _part(stage: str, config: Config, workdir: Path) -> Stage:
    from lpm_jax.training import faces, hearing, lips, vae

    if stage == "vae":
        return vae.make_stage(config)
    return {"audio": hearing, "lips": lips, "faces": faces}[stage].make_stage(config, workdir)
