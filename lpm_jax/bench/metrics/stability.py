"""Stability: flicker, joints of chunks that can be seen, colours that drift."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lpm_jax.bench.cases import Case
from lpm_jax.bench.metrics import Context, Scores
from lpm_jax.bench.observe import Observation, seconds
from lpm_jax.bench.signals import colour_distance, region_colours


def scores(case: Case, seen: Observation, context: Context) -> Scores:
    out: Scores = dict.fromkeys(("flicker", "seam", "drift"))
    if len(seen) < 3:
        return out
    out["flicker"] = flicker(seen.thumbs)
    out["seam"] = seam(seen, context.chunk)
    colours = [region_colours(part) for part in seconds(seen.thumbs)]
    if len(colours) > 1:
        out["drift"] = max(colour_distance(part, colours[0]) for part in colours)
    return out


def flicker(thumbs: Float[np.ndarray, "frames c c 3"]) -> float:
    """Mean absolute second difference of the regions' brightness: motion is smooth, flicker is not."""
    return float(np.abs(np.diff(thumbs.mean(-1), 2, axis=0)).mean())


def seam(seen: Observation, chunk: int) -> float | None:
    """Second difference of the regions' colours across the joints of chunks, over that elsewhere.

    A joint's are the two differences that reach over it: the motion's direction and speed change there if chunks do
    not continue each other.
    """
    bend = np.abs(np.diff(seen.thumbs, 2, axis=0)).mean((1, 2, 3))  # entry i is of frames i, i + 1, i + 2
    at = np.arange(len(bend))
    joint = ((at + 1) % chunk == 0) | ((at + 2) % chunk == 0)
    if not joint.any() or joint.all():
        return None
    return float(bend[joint].mean() / max(bend[~joint].mean(), 1e-3))
