"""Peak speeds of the chips that JAX names, to put a run's speed in proportion.

Dense bfloat16 operations a second of one JAX device, as the makers state them: cloud.google.com/tpu/docs (v4 and v5p
chips are one device each, a v7x chip is two) and NVIDIA's data sheets, without sparsity.
"""

from __future__ import annotations

PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


def peak(kind: str) -> float | None:
    """Of ``jax.devices()[0].device_kind``; None where it is not known, as on CPU. The longest name that fits counts."""
    fitting = [name for name in PEAK if name in kind]
    return PEAK[max(fitting, key=len)] if fitting else None
