"""LPM 1.0 in JAX: one character image becomes a performer that speaks, listens, reacts and idles in live video."""

__all__ = ["Pipeline"]


def __getattr__(name: str):
    # Imported on first use, so that the command-line doors can reject bad input before JAX starts.
    if name == "Pipeline":
        from lpm_jax.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'lpm_jax' has no attribute {name!r}")
