"""The bundled performer: 128 x 128 at 24 fps, from rendered characters, on two CPU cores.

Cost (two AVX-512 cores, Python 3.12): see the model card in ``lpm_jax/assets/toy``; a GPU does all stages in minutes.
Recipe: ``train.py configs/toy.py --stage all --workdir runs/toy``.
"""

from lpm_jax.config import Config


def get_config() -> Config:
    dit = {"batch": 16, "learning_rate": 2e-3, "warmup": 100, "ema": 0.997}
    return Config(
        name="toy",
        stages={
            "vae": {"steps": 2000, "batch": 16, "learning_rate": 2e-3, "mouth": 3.0, "eyes": 3.0, "ema": 0.995},
            "base.speak": {**dit, "steps": 500, "kinds": ("speak", "idle")},
            "base.listen": {**dit, "steps": 400, "kinds": ()},
            "base.identity": {**dit, "steps": 200, "kinds": (), "extra_references": 0.3},
            "online.causal": {**dit, "steps": 1500, "kinds": (), "extra_references": 0.3},
        },
    )
