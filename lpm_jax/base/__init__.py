"""Base LPM, the bidirectional teacher, offline: one window of video, or a long one in segments."""

from lpm_jax.base.video import Base

__all__ = ["Base"]
