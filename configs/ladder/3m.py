"""The ladder's rung of 3 M: 6 blocks of width 160.

    uv run python -m lpm_jax.scaling configs/ladder/*m.py --workdir runs/toy --steps 100,200,400 --out scaling.json

Size: transformer 3.13 M parameters, encoders 0.51 M, the toy's autoencoder beside them. Cost: a step of
``base.speak`` over 8 windows is 0.12 TFLOP. Expected result:
0.683 held-out after 300 steps of 4 windows (``docs/scaling.md``).
"""

from configs.ladder.sizes import rung
from lpm_jax.config import Config


def get_config() -> Config:
    return rung("3m", width=160, depth=6)
