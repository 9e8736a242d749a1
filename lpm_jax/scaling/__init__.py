"""Scaling studies: a sweep of sizes and step budgets, one held-out loss for all, and laws of loss against compute.

``docs/scaling.md`` says how to run one and what it found.
"""
