"""The ladder's rung of 1 M: 4 blocks of width 96.

    uv run python -m lpm_jax.scaling configs/ladder/*m.py --workdir runs/toy --steps 100,200,400 --out scaling.json

Size: transformer 0.876 M parameters, encoders 0.28 M, the toy's autoencoder beside them. Cost: a step of
``base.speak`` over 8 windows is 0.04 TFLOP. Expected result:
0.657 held-out after 600 steps of 4 windows (``docs/scaling.md``).
"""

from configs.ladder.sizes import rung
from lpm_jax.config import Config


def get_config() -> Config:
    return rung("1m", width=96, depth=4)
