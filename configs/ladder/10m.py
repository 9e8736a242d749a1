"""The ladder's rung of 10 M: 8 blocks of width 256.

    uv run python -m lpm_jax.scaling configs/ladder/*m.py --workdir runs/toy --steps 100,200,400 --out scaling.json

Size: transformer 9.97 M parameters, encoders 0.94 M, the toy's autoencoder beside them. Cost: a step of
``base.speak`` over 8 windows is 0.35 TFLOP. Expected result:
0.903 held-out after 75 steps of 4 windows (``docs/scaling.md``).
"""

from configs.ladder.sizes import rung
from lpm_jax.config import Config


def get_config() -> Config:
    return rung("10m", width=256, depth=8)
