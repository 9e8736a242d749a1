"""Attention over frames of tokens: one function, a file per backend."""

from lpm_jax.nn.attention.api import Visible, attention

__all__ = ["Visible", "attention"]
