"""A small LPM: Wan 2.1's 1.3B transformer with speak and listen audio, 1.63 B parameters.

    python -m lpm_jax.convert wan Wan2.1-T2V-1.3B models/lpm_1b --config configs/lpm_1b.py
    python -m lpm_jax.flops configs/lpm_1b.py

Size: backbone 1.42 B, audio 0.21 B (K, V and O of 1536 x 1536 in every block). Weights: 6.5 GB in float32, 3.3 GB in
bfloat16; the source's dtype is kept.

Cost (analytic, ``docs/models.md``): a pass over one second at 480p, 6 latent frames of 30 x 52 patches, is 0.04 PFLOP.
AdamW in float32 needs 26 GB for weights, gradients and both moments, before any activation.

Expected result: as ``lpm_17b.py``. The 1.3B model is text-to-video only: the first frame must be learned.
"""

from lpm_jax.config import AudioConfig, Config, DiTConfig, FlowConfig, StreamConfig, TextConfig


def get_config() -> Config:
    return Config(
        name="lpm_1b",
        size=480,
        audio=AudioConfig(width=1536),
        text=TextConfig(tokens=512, width=4096),  # umT5-XXL's
        dit=DiTConfig(
            depth=30, width=1536, heads=12, ffn=8960, channels=16, patch=2, time_width=256, text_width=4096,
            audio_width=1536, prediction="velocity",
        ),
        flow=FlowConfig(shift=5.0),  # Wan's default
        stream=StreamConfig(chunk=6, sink=3, window=2, references=12),  # the paper's
    )  # fmt: skip
