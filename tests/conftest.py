"""Set up once, before anything imports JAX: cheap compilation, exact products, annotations that are checked."""

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version

# Tests compile many small programs and run each a few times: LLVM's expensive passes cost more than they save, and so
# do the fusion emitters that jaxlib 0.10 may do without (half of its time to compile; later ones lack the flag).
flags = ["--xla_backend_optimization_level=1", "--xla_llvm_disable_expensive_passes=true"]
if version("jaxlib").startswith("0.10."):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
# What one of the workers has compiled none of the others compiles again, in this run.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="lpm-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05"}

from jaxtyping import install_import_hook  # noqa: E402

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
