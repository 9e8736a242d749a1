"""The bundled performer: 128 x 128 at 24 fps, from rendered characters, trainable on two CPU cores.

    uv run python -m data_pipeline.performers --out runs/performers --clips 1600 --held-out 64 --seed 0 --from-rest
    uv run train.py configs/toy.py --stage all --workdir runs/toy

Size: autoencoder 5.1 M parameters, transformer 7.8 M, encoders 2.0 M. Cost and figures of the bundled run are in the
model card, ``lpm_jax/assets/toy/README.md``. On two AMX cores a step of ``vae`` takes 0.8 s; on two without, one of
``online.causal``, which computes two passes, 6.1 s and one of ``online.rollout`` 8 s (with
``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000`` in the environment).
With more machine, raise ``train.steps`` first, then ``dit.depth`` to 8.
"""

from lpm_jax.config import AudioConfig, Config, DistillConfig, DiTConfig, SampleConfig


def get_config() -> Config:
    half = {"dtype": "bfloat16"}  # five times faster matrix products on AMX cores, and on GPU and TPU
    vae = {**half, "steps": 2200, "batch": 24, "crops_per_clip": 6, "learning_rate": 6e-3, "mouth": 5.0, "eyes": 3.0}
    audio = {
        "dtype": "float32",
        "steps": 1200,
        "batch": 32,
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "ema": 0.995,
        "voices": 0.5,
    }
    lips = {**half, "steps": 2500, "batch": 8, "optimizer": "adamw", "learning_rate": 2e-3, "ema": 0.99}
    dit = {**half, "batch": 8, "learning_rate": 4e-3, "warmup": 40, "ema": 0.99, "token_keep": 1.0, "unroll": True}
    shown = {**dit, "voices": 0.7, "from_picture": 0.3}
    drawn = {**shown, "moves": 6.0}
    streamed = {**shown, "mouth": 8.0, "eyes": 4.0, "face": 2.0, "extra_references": 0.3, "lips": 16.0, "faces": 0.3}
    streamed |= {"from_picture": 0.5, "moves": 3.0}
    ode = {**dit, "steps": 320, "learning_rate": 3e-3, "mouth": 8.0, "init": "online.causal"}
    duel = {
        **half, "batch": 4, "optimizer": "adamw", "learning_rate": 1e-5, "beta1": 0.0, "beta2": 0.99, "warmup": 10,
        "steps": 400, "ema": 0.98, "clip": 1.0, "weight_decay": 0.0, "mouth": 8.0, "init": "online.causal",
    }  # fmt: skip
    return Config(
        name="toy",
        # Base offline (``python -m lpm_jax.base``): segments as long as a training window, no guidance.
        sample=SampleConfig(steps=8, shift=1.0, text_scale=1.0, audio_scale=1.0, segment=37),
        distill=DistillConfig(
            audio_scale=2.0,
            windows=400,
            generator_every=2,
            critic_learning_rate=1e-4,
            low=0.4,
            perceptual=0.1,
            guidance=0.35,
            switch=0.2,
        ),
        audio=AudioConfig(hearing=3),
        dit=DiTConfig(life=True, warp=24),
        stages={
            "vae": {**vae, "ema": 0.998},
            "audio": audio,
            "lips": lips,
            "faces": lips,
            "base.speak": {**drawn, "steps": 250, "kinds": ("speak", "idle")},
            "base.listen": {**drawn, "steps": 300},
            "base.identity": {**drawn, "steps": 100, "extra_references": 0.3, "lips": 4.0},
            "online.causal": {**drawn, "steps": 2500, "extra_references": 0.3, "lips": 4.0},
            "online.rollout": {**streamed, "steps": 400},
            "online.ode": ode,
            "online.dmd_off": {**duel, "token_keep": 1.0},
            "online.dmd_on": duel,
            "online.refine": {**duel, "init": "online.dmd_on"},
            "online.stream_audio": {**streamed, "steps": 100, "voices": 0.0, "init": "online.rollout"},
        },
        recipe=(
            "vae",
            "audio",
            "lips",
            "faces",
            "base.speak",
            "base.listen",
            "base.identity",
            "online.causal",
            "online.rollout",
        ),
    )
