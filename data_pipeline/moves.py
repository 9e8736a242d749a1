"""Where the picture went: optical flow from a clip's frames to its reference, for models that move pictures."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from data_pipeline.performers.render import opencv
from data_pipeline.schema import LATENT_STRIDE

CELL = 8  # pixels


def moves(
    picture: UInt8[np.ndarray, "h w 3"], frames: UInt8[np.ndarray, "frames h w 3"]
) -> Float[np.ndarray, "latents 4 h8 w8 2"]:
    """The displacement ``(x, y)``, in pixels, of each cell in each frame of a latent one. A frame shows at ``p`` what
    ``picture`` shows at ``p`` and the displacement. Zeros for the first latent frame, which is one picture. Dense
    inverse search (Kroeger et al., arXiv 1603.03590), as OpenCV has it (extra ``data``)."""
    cv2 = opencv()
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (picture, *frames[1:])]
    flow = np.stack([search.calc(frame, grey[0], None) for frame in grey[1:]])
    count, h, w = len(flow) // LATENT_STRIDE, *(side // CELL for side in picture.shape[:2])
    cells = flow.reshape(count, LATENT_STRIDE, h, CELL, w, CELL, 2).mean((3, 5))
    return np.concatenate([np.zeros_like(cells[:1]), cells])
