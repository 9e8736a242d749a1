"""XLA's options for programs that run a few times: compiling costs tests more than what it saves them.

LLVM's passes are left out, and so are the fusion emitters that jaxlib 0.10 may do without (later ones lack the flag).
The default run, two cores and jax 0.10.2: 7 minutes, where level 1 with the emitters took 11.
"""

from importlib.metadata import version

FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
EIGHT = f"{FLAGS} --xla_force_host_platform_device_count=8"
