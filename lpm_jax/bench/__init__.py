"""LPM-Bench: how well a model speaks, listens, keeps its identity, obeys, moves and stays stable; see docs/bench.md.

``python -m lpm_jax.bench run`` measures, ``cases`` writes a suite's cases, ``report``, ``compare`` and ``rate`` show.
"""
