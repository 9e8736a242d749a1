"""Set up once, before anything imports JAX: cheap compilation, exact products, annotations that are checked."""

import os

from tests.cheap import FLAGS

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()

from jaxtyping import install_import_hook

# Every annotated function of these modules checks its arguments' and results' shapes and types while tests run.
MODULES = (
    "nn models streaming flow checkpoint config sharding convert convert_files convert_parts mapping tensors flops "
    "scaling distributed compilation planning bench.cases bench.generate bench.instruments bench.metrics bench.observe "
    "bench.score bench.signals bench.statistics"
)
TRAINING = (
    "curves distill dmd duel faces flow_matching latents lips loop lora observe ode on_policy online passes profiler "
    "resume rollout signals stages state step trajectories vae validation voices"
)
CHECKED = [f"lpm_jax.{name}" for name in MODULES.split()]
CHECKED += [f"lpm_jax.training.{name}" for name in TRAINING.split()]
CHECKED += ["data_pipeline.loader", "data_pipeline.moves", "data_pipeline.video"]
install_import_hook(CHECKED, "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")  # equalities are tested to 1e-5
