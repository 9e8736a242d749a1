"""The ladder's rung of 30 M: 10 blocks of width 384.

    uv run python -m lpm_jax.scaling configs/ladder/*m.py --workdir runs/toy --steps 100,200,400 --out scaling.json

Size: transformer 27.1 M parameters, encoders 1.7 M, the toy's autoencoder beside them. Cost: a step of
``base.speak`` over 8 windows is 0.86 TFLOP. Expected result: ``docs/scaling.md``.
"""

from configs.ladder.sizes import rung
from lpm_jax.config import Config


def get_config() -> Config:
    return rung("30m", width=384, depth=10)
