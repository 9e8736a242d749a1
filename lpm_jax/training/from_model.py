"""A model as the start of a run, the inverse of ``export``: ``python -m lpm_jax.training.from_model MODEL WORKDIR``.

Writes what ``train.py --workdir WORKDIR --train.init seed`` starts from: the weights of the transformer and its small
encoders as stage ``seed``, and the autoencoder's as stage ``vae``. A model can be given parts that it does not have
(``--dit.life true --dit.warp 24``): they are as in a model from scratch. A Refiner stays behind, and so do a large
model's frozen encoders: ``--train.encoders MODEL`` names them to ``train.py``. ``--hearing RUN`` takes what stage
``audio`` trained in that run in place of the model's own.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from lpm_jax import pretrained
from lpm_jax.checkpoint import save_weights
from lpm_jax.errors import ArgumentParser, InputError, run_door
from lpm_jax.models import conditions
from lpm_jax.options import override
from lpm_jax.tensors import flatten, unflatten
from lpm_jax.training.flow_matching import with_hearing
from lpm_jax.training.rollout import backbone_only


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a bundled model or a folder")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--name", default="seed", help="of the stage that its weights become")
    parser.add_argument("--hearing", type=Path, help="a run whose stage audio is finished")
    args, rest = parser.parse_known_args()
    config, params = pretrained.load(args.model, jnp.float32, only=("model", "vae"))
    coder, new = params.pop("vae"), []
    if rest:
        params, new = widened(params, conditions.init(override(backbone_only(config), rest), jax.random.key(0)))
    if args.hearing:
        if not config.audio.hearing:
            raise InputError(f"--hearing: expected a model with audio.hearing above 0, found {args.model}")
        params = with_hearing(params, args.hearing)
    parts = {args.workdir / stage / "weights": weights for stage, weights in ((args.name, params), ("vae", coder))}
    for folder in parts:
        if any(folder.glob("*.safetensors")):
            raise InputError(f"{folder}: expected a folder without this stage, found one")
    for folder, weights in parts.items():
        save_weights(folder, "model", weights)
    print(f"{args.workdir}: {args.name} and vae" + (f", new: {', '.join(new)}" if new else ""))


def widened(params: dict, fresh: dict) -> tuple[dict, list[str]]:
    """``params`` with the parts of ``fresh`` that they lack, and the names of those.

    Raises:
      InputError: a part is not in ``fresh``, or not in that shape.
    """
    old, whole = flatten(params), flatten(fresh)
    for name, value in old.items():
        expected = whole[name].shape if name in whole else "nothing"
        if expected != value.shape:
            raise InputError(f"{name}: expected {expected} in the new model, found {value.shape}")
    return unflatten(whole | old), sorted(whole.keys() - old.keys())


if __name__ == "__main__":
    run_door(main)
