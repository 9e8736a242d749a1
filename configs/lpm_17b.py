"""LPM at the paper's size: Wan 2.1's 14B transformer with speak and listen audio, 17.4 B parameters.

    python -m lpm_jax.convert wan Wan2.1-I2V-14B-480P-Diffusers models/lpm_17b     with its VAE, umT5 and tokenizer
    python -m lpm_jax.convert audio wav2vec2-base-960h models/lpm_17b              as safetensors
    python -m lpm_jax.base --model models/lpm_17b --image me.png --speak a.wav --out talk.mp4
    python -m lpm_jax.flops configs/lpm_17b.py

Size: backbone 14.3 B, audio 3.15 B (K, V and O of 5120 x 5120 in every block; audio tokens are brought to the model's
width before the transformer). Weights: 70 GB in float32, 35 GB in bfloat16; the source's dtype is kept. Beside it:
umT5-XXL 5.68 B, the VAE 0.127 B, wav2vec 2.0 base 0.094 B, adapters of sound 0.060 B.

Cost (analytic, ``docs/models.md``): a pass over one second at 480p, 6 latent frames of 30 x 52 patches, is 0.32 PFLOP.
AdamW in float32 needs 279 GB for weights, gradients and both moments, before any activation.

The paper's Online pair, a cache for each evaluation and a Refiner, is ``--stream.history each --stream.refine 0.25``
(T2 is ours); distillation is in docs/distillation.md.

Expected result: an import without references gives Wan's own output (float32, relative error below 1e-4, tested on
small models of the same layout). No stage has been trained at this size, so there is no quality to expect yet.
"""

from lpm_jax.config import (
    AudioConfig,
    Config,
    DistillConfig,
    DiTConfig,
    FlowConfig,
    MeshConfig,
    SampleConfig,
    StreamConfig,
    TextConfig,
    TrainConfig,
    UMT5Config,
    WanVAEConfig,
    Wav2VecConfig,
)


def get_config() -> Config:
    # Self-Forcing's: 600 updates of the student, a critic's five each, a global batch of 64; in four parts it fits a
    # pod of 128 v5p (docs/planning.md).
    dmd = {
        "extra_references": 0.3, "batch": 64, "accumulate": 4, "steps": 3000, "learning_rate": 2e-6, "warmup": 0,
        "beta1": 0.0, "beta2": 0.999, "clip": 10.0, "ema": 0.99,
    }  # fmt: skip
    return Config(
        name="lpm_17b",
        size=480,
        width=832,
        vae=WanVAEConfig(),
        audio=AudioConfig(width=5120, wav2vec=Wav2VecConfig()),  # wav2vec 2.0 base
        text=TextConfig(tokens=512, width=4096, umt5=UMT5Config()),  # umT5-XXL
        dit=DiTConfig(
            depth=40, width=5120, heads=40, ffn=13824, channels=16, patch=2, time_width=256, text_width=4096,
            audio_width=5120, prediction="velocity",
        ),
        flow=FlowConfig(shift=5.0),  # Wan's default
        sample=SampleConfig(shift=3.0),  # Wan's for pictures to video at 480p
        # The paper's: chunks of 1 s, a sink of 3 and a window of 2, up to 4 views and 8 expressions.
        stream=StreamConfig(chunk=6, sink=3, window=2, references=12),
        distill=DistillConfig(text_scale=4.0, audio_scale=4.0),  # Self-Forcing's guidance of the real score
        mesh=MeshConfig(context=4),  # the rest is fsdp
        train=TrainConfig(
            batch=16, latents=19, optimizer="adamw", learning_rate=1e-5, warmup=1000, steps=20_000, ema=0.999,
            dtype="bfloat16", remat="full", token_keep=1.0, mouth=1.0, eyes=1.0, face=1.0,
        ),
        stages={
            "base.speak": {"kinds": ("speak", "idle")},
            "base.listen": {},
            "base.identity": {"extra_references": 0.3},
            "online.causal": {"extra_references": 0.3, "latents": 18},
            "online.ode": {"extra_references": 0.3, "latents": 18, "init": "base.identity"},
            "online.dmd_off": {**dmd, "latents": 18, "init": "online.causal"},
            "online.dmd_on": {**dmd, "init": "online.causal"},
            "online.refine": {**dmd, "init": "online.dmd_on"},
            "online.stream_audio": {**dmd, "steps": 600, "init": "online.refine"},
        },
    )  # fmt: skip
