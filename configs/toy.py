"""The bundled performer: 128 x 128 at 24 fps, from rendered characters, trainable on two CPU cores.

    uv run python -m data_pipeline.performers --out runs/performers --clips 1600 --held-out 64 --seed 0
    uv run train.py configs/toy.py --stage all --workdir runs/toy

Size: autoencoder 2.6 M parameters, transformer 7.6 M, encoders 0.9 M. Cost and figures of the bundled run are in the
model card, ``lpm_jax/assets/toy/README.md``. With more machine, raise ``train.steps`` first, then ``dit.depth`` to 8
and ``train.token_keep`` to 1.
"""

from lpm_jax.config import Config


def get_config() -> Config:
    # Muon's updates are scaled as AdamW's (0.2 RMS), so these rates are higher than its usual ones. Measured on one
    # batch: 2e-3 leaves the error as it was after 140 steps, 1e-2 removes three quarters of it within 32.
    half = {"dtype": "bfloat16"}  # five times faster matrix products on AMX cores, and on GPU and TPU
    vae = {**half, "steps": 2200, "batch": 24, "crops_per_clip": 6, "learning_rate": 6e-3, "mouth": 5.0, "eyes": 3.0}
    dit = {**half, "batch": 8, "learning_rate": 3e-3, "warmup": 40, "ema": 0.99, "token_keep": 0.4, "unroll": True}
    return Config(
        name="toy",
        stages={
            "vae": {**vae, "ema": 0.998},
            "base.speak": {**dit, "steps": 250, "kinds": ("speak", "idle")},
            "base.listen": {**dit, "steps": 300},
            "base.identity": {**dit, "steps": 100, "extra_references": 0.3},
            "online.causal": {**dit, "steps": 3400, "extra_references": 0.3},
        },
    )
