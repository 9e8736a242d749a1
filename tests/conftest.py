"""Set up once, before anything imports JAX: cheap compilation, exact products, and shape annotations that are checked."""

import os

# Tests compile many small programs and run each a few times: LLVM's expensive passes cost more than they save.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=1", "--xla_llvm_disable_expensive_passes=true"]
).strip()

from jaxtyping import install_import_hook  # noqa: E402

# Every annotated function of these packages checks its arguments' and results' shapes and types while tests run.
install_import_hook(["lpm_jax", "data_pipeline"], "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")  # equalities are tested to 1e-5
