"""Identity: does the video show the character of the first frame, and go on doing so?"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lpm_jax.bench.cases import Case
from lpm_jax.bench.metrics import Context, Scores
from lpm_jax.bench.observe import Observation, seconds
from lpm_jax.bench.signals import CELLS, colour_distance, region_colours


def scores(case: Case, seen: Observation, context: Context) -> Scores:
    out: Scores = dict.fromkeys(("identity_colour", "identity_slope", "identity_similarity", "identity_auc"))
    mean = region_colours(seen.thumbs.mean(0))
    if len(context.others):
        others = np.mean([colour_distance(mean, other) for other in context.others])
        out["identity_colour"] = colour_distance(mean, context.colours) / max(others, 1e-9)
    out["identity_slope"] = slope(away(seen.thumbs, context.colours))
    if seen.looks is not None and context.look is not None:
        similar = seen.looks @ context.look
        out["identity_similarity"] = similar.mean()
        if context.other_looks is not None and len(context.other_looks):
            out["identity_auc"] = ((seen.looks @ context.other_looks.T) < similar[:, None]).mean()
    return out


def away(
    thumbs: Float[np.ndarray, "frames c c 3"], colours: Float[np.ndarray, "cells 3"]
) -> Float[np.ndarray, " seconds"]:
    """Distance of each second's mean colours from ``colours``."""
    return np.array([colour_distance(region_colours(part), colours) for part in seconds(thumbs)])


def slope(distances: Float[np.ndarray, " seconds"]) -> float | None:
    """Growth a minute by least squares; None for less than two seconds."""
    if len(distances) < 2:
        return None
    return float(np.polyfit(np.arange(len(distances)) / 60, distances, 1)[0])


def picture_colours(picture: np.ndarray) -> Float[np.ndarray, "cells 3"]:
    """The first frame's colours by region."""
    return region_colours(picture, CELLS)
