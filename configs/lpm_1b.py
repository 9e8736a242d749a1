"""A small LPM: Wan 2.1's 1.3B transformer with speak and listen audio, 1.63 B parameters.

    python -m lpm_jax.convert wan Wan2.1-T2V-1.3B-Diffusers models/lpm_1b     with its VAE, umT5 and tokenizer
    python -m lpm_jax.convert audio wav2vec2-base-960h models/lpm_1b          as safetensors
    python -m lpm_jax.base --model models/lpm_1b --image me.png --speak a.wav --out talk.mp4
    python -m lpm_jax.flops configs/lpm_1b.py

Size: backbone 1.42 B, audio 0.21 B (K, V and O of 1536 x 1536 in every block). Weights: 6.5 GB in float32, 3.3 GB in
bfloat16; the source's dtype is kept. Beside it: umT5-XXL 5.68 B, the VAE 0.127 B, wav2vec 2.0 base 0.094 B, adapters of
sound 0.007 B.

Cost (analytic, ``docs/models.md``): a pass over one second at 480p, 6 latent frames of 30 x 52 patches, is 0.04 PFLOP.
AdamW in float32 needs 26 GB for weights, gradients and both moments, before any activation.

Expected result: as ``lpm_17b.py``. The 1.3B model is text-to-video only: the first frame must be learned.
"""

from lpm_jax.config import (
    AudioConfig,
    Config,
    DiTConfig,
    FlowConfig,
    SampleConfig,
    StreamConfig,
    TextConfig,
    TrainConfig,
    UMT5Config,
    WanVAEConfig,
    Wav2VecConfig,
)


def get_config() -> Config:
    return Config(
        name="lpm_1b",
        size=480,
        width=832,
        vae=WanVAEConfig(),
        audio=AudioConfig(width=1536, wav2vec=Wav2VecConfig()),  # wav2vec 2.0 base
        text=TextConfig(tokens=512, width=4096, umt5=UMT5Config()),  # umT5-XXL
        dit=DiTConfig(
            depth=30, width=1536, heads=12, ffn=8960, channels=16, patch=2, time_width=256, text_width=4096,
            audio_width=1536, prediction="velocity",
        ),
        flow=FlowConfig(shift=5.0),  # Wan's default
        sample=SampleConfig(shift=3.0),  # as at 17 B; Wan's text-to-video default is 5
        stream=StreamConfig(chunk=6, sink=3, window=2, references=12),  # the paper's
        train=TrainConfig(
            batch=16, latents=19, optimizer="adamw", learning_rate=1e-5, warmup=1000, steps=20_000, ema=0.999,
            dtype="bfloat16", remat="names", token_keep=1.0, mouth=1.0, eyes=1.0, face=1.0,
        ),
        stages={
            "base.speak": {"kinds": ("speak", "idle")},
            "base.listen": {},
            "base.identity": {"extra_references": 0.3},
            "online.causal": {"extra_references": 0.3, "latents": 18},
        },
    )  # fmt: skip
