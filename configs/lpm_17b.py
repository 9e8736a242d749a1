"""LPM at the paper's size: Wan 2.1's 14B transformer with speak and listen audio, 17.4 B parameters.

    python -m lpm_jax.convert wan Wan2.1-I2V-14B-480P models/lpm_17b --config configs/lpm_17b.py
    python -m lpm_jax.flops configs/lpm_17b.py

Size: backbone 14.3 B, audio 3.15 B (K, V and O of 5120 x 5120 in every block; audio tokens are brought to the model's
width before the transformer). Weights: 70 GB in float32, 35 GB in bfloat16; the source's dtype is kept.

Cost (analytic, ``docs/models.md``): a pass over one second at 480p, 6 latent frames of 30 x 52 patches, is 0.32 PFLOP.
AdamW in float32 needs 279 GB for weights, gradients and both moments, before any activation.

Expected result: an import without references gives Wan's own output (float32, relative error below 1e-4, tested on
small models of the same layout). No stage has been trained at this size, so there is no quality to expect yet.
"""

from lpm_jax.config import AudioConfig, Config, DiTConfig, FlowConfig, StreamConfig, TextConfig


def get_config() -> Config:
    return Config(
        name="lpm_17b",
        size=480,
        audio=AudioConfig(width=5120),
        text=TextConfig(tokens=512, width=4096),  # umT5-XXL's
        dit=DiTConfig(
            depth=40, width=5120, heads=40, ffn=13824, channels=16, patch=2, time_width=256, text_width=4096,
            audio_width=5120, prediction="velocity",
        ),
        flow=FlowConfig(shift=5.0),  # Wan's default
        # The paper's: chunks of 1 s, a sink of 3 and a window of 2, up to 4 views and 8 expressions.
        stream=StreamConfig(chunk=6, sink=3, window=2, references=12),
    )  # fmt: skip
