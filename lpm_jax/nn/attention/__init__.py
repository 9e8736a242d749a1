"""Scaled dot-product attention: one function, a backend chosen by name."""

from lpm_jax.nn.attention.api import attention

__all__ = ["attention"]
