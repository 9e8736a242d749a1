"""The real training step on a mesh: ``python -m tests.planning.one_pair``.

Prints, as JSON, the collectives and products of one pair of blocks: what one more trip of the loops over pairs adds.
"""

import json
from collections import Counter

import jax

from lpm_jax import sharding
from lpm_jax.config import AudioConfig, Config, DiTConfig, MeshConfig, TextConfig, TrainConfig, VAEConfig
from lpm_jax.planning import hlo
from lpm_jax.training.abstract import train_program

MESH = MeshConfig(fsdp=2, context=2, tensor=2)
WIDTH, FFN, AUDIO = 256, 512, 256
CONFIG = Config(
    name="pairs",
    size=64,
    width=128,
    vae=VAEConfig(channels=8, width=16, encoder_blocks=1, decoder_blocks=1),
    audio=AudioConfig(bands=6, width=AUDIO),
    text=TextConfig(vocabulary=64, tokens=8, width=64),
    dit=DiTConfig(
        depth=4, width=WIDTH, heads=8, ffn=FFN, channels=8, time_width=64, text_width=64, audio_width=AUDIO,
        prediction="velocity",
    ),
    mesh=MESH,
    train=TrainConfig(
        batch=4, latents=6, optimizer="adamw", dtype="bfloat16", remat="full", token_keep=1.0, attention="xla"
    ),
)  # fmt: skip


def compiled() -> tuple[str, dict[str, int]]:
    """Optimised HLO of the step with two pairs, and the mesh."""
    mesh = sharding.make_mesh(MESH, jax.devices())
    with sharding.on(mesh):
        step, args = train_program(CONFIG, "base.speak", mesh)
        return step.lower(*args).compile().as_text(), dict(mesh.shape)


def by_axes(count: hlo.Count) -> Counter:
    """Bytes by kind and axes, as ``"kind axis axis"``."""
    found: Counter = Counter()
    for c, times in count.collectives.items():
        found[" ".join((c.kind, *c.axes))] += times * c.bytes
    return found


def main() -> None:
    text, mesh = compiled()
    trips = '"known_trip_count":{"n":"%d"}'
    assert text.count(trips % 2) == 2, "expected two loops over pairs: forward and backward"
    two, three = (hlo.analyse(text.replace(trips % 2, trips % n), mesh, "cpu") for n in (2, 3))
    more = by_axes(three)
    more.subtract(by_axes(two))
    print(json.dumps({"bytes": more, "flops": three.all_flops - two.all_flops}))


if __name__ == "__main__":
    main()
