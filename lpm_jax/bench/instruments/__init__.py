"""The networks that LPM-Bench measures with, and how each was trained (``python -m lpm_jax.bench.instruments``)."""
