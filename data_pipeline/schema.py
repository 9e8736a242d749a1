"""The record: one clip of one performer, with everything a training stage or a metric may ask of it.

Clock: 24 video frames a second, sound at 24 kHz, so exactly 1,000 samples belong to each frame. Frame ``i`` is shown
during ``[i / 24, (i + 1) / 24)`` seconds and sample ``1000 * i`` is heard when it appears. A clip has ``4 k + 1``
frames: the first stands alone, every further latent frame of the causal VAE covers four.

The two sound tracks are never mixed: ``speak`` is what the character says, ``listen`` what its partner says.
"""

from __future__ import annotations

FPS = 24
SAMPLE_RATE = 24_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
LATENT_STRIDE = 4  # video frames per latent frame

#: Per-frame performance parameters, in the column order of every ``params`` array (float32 ``[frames, len(PARAMS)]``).
#: Angles in degrees, positions in head widths, everything else 0..1 unless noted.
PARAMS = (
    "yaw", "pitch", "roll",  # head pose; positive: to the viewer's right, chin down, clockwise
    "shift_x", "shift_y", "scale", "lean", "breath",  # scale is a factor around 1
    "gaze_x", "gaze_y",  # -1..1, positive: viewer's right, down
    "lid_left", "lid_right", "squint", "pupil",  # lids: 0 closed .. 1 fully open
    "brow_inner_left", "brow_inner_right", "brow_outer_left", "brow_outer_right",  # -1 lowered .. 1 raised
    "smile", "frown", "cheek",
    "jaw_open", "lip_width", "lip_pucker", "lip_upper", "lip_lower", "tongue", "teeth",
    "aperture",  # vertical opening between the lips, in mouth widths: what a viewer sees of the speech
)  # fmt: skip
PARAM_INDEX = {name: i for i, name in enumerate(PARAMS)}

#: A little life that neither sound nor prompt foretells, in the column order of every ``life`` array (float32
#: ``[frames, len(LIFE)]``), and the size of one unit: how the head sways (degrees), where the eyes glance, how far a
#: blink has closed them.
LIFE = {"yaw": 1.2, "roll": 0.8, "pitch": 0.4, "gaze_x": 0.2, "gaze_y": 0.1, "blink": 1.0}

#: What the character does in a frame. ``both``: it and its partner speak at once.
STATES = ("silence", "speak", "listen", "both")

#: Reference kinds, in slot order: one global appearance, four body views, eight expressions.
VIEWS = ("front", "left", "right", "back")
EXPRESSIONS = ("neutral", "happy", "sad", "angry", "surprised", "afraid", "disgusted", "thinking")
REFERENCES = ("global", *(f"view/{v}" for v in VIEWS), *(f"expression/{e}" for e in EXPRESSIONS))

#: Regions of the picture that losses weight and metrics read: boxes (top, left, bottom, right) in 0..1.
REGIONS = ("mouth", "eyes", "face")
