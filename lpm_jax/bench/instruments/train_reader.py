"""``python -m lpm_jax.bench.instruments reader`` trains the reader (about 25 CPU minutes) and measures it.

Frames are rendered from training characters with poses drawn independently of each other, blurred, quantised and
tinted at random so that it also reads a generative model's frames. It is taught every style of drawing, also the one
that models are not, or it could not tell how well they cope with it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from data_pipeline.schema import PARAM_INDEX
from lpm_jax.bench.instruments.drawn import augment, labels_of, sample_poses, training_frames
from lpm_jax.bench.instruments.fitting import fit
from lpm_jax.bench.instruments.reader import Network, Reader
from lpm_jax.bench.instruments.trained import FOLDER
from lpm_jax.bench.signals import correlation, pooled_correlation
from lpm_jax.checkpoint import save_weights, write_json
from lpm_jax.errors import ArgumentParser

_HELD_OUT_CLIPS = 1 << 41  # seeds of the clips that judge the reader: no other code uses this range


def _loss(params: dict, batch: tuple[Array, Array], key: Array) -> Array:
    frames, labels = batch
    x = augment(frames.astype(jnp.float32) / 127.5 - 1, key)
    y, _ = Network().apply({"params": params}, x)
    near = lambda e, soft: jnp.mean(jnp.sqrt(e * e + soft**2) - soft)  # noqa: E731
    numbers = 4 * near(y[:, 0] - labels[:, 0], 0.02) + 3 * near(y[:, 1] - labels[:, 1], 0.02)
    numbers += near(y[:, 2] - labels[:, 2], 0.05)
    return numbers + 0.5 * jnp.mean(optax.sigmoid_binary_cross_entropy(y[:, 3:], labels[:, 3:]))


def train(
    frames: np.ndarray,
    labels: np.ndarray,
    steps: int,
    batch: int = 128,
    rate: float = 3e-3,
    seed: int = 0,
    params: dict | None = None,
) -> dict:
    """Parameters after ``steps`` of :func:`fit`, from ``params`` where they are given; frames come in random rounds."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(frames)) for _ in range(-(-steps * batch // len(frames)))])

    def batch_of(step: int) -> tuple[np.ndarray, np.ndarray]:
        pick = order[step * batch : (step + 1) * batch]
        return frames[pick], labels[pick]

    return fit(_loss, Reader.initial(seed) if params is None else params, batch_of, steps, rate, seed)


# --- accuracy ----------------------------------------------------------------------------------------------------


def accuracy(reader: Reader, clips: int = 24, characters: int = 300) -> dict:
    """How well true frames of held-out characters are read: performances, and stills for glasses and beards."""
    from data_pipeline.performers.character import STYLES, sample_held_out_character
    from data_pipeline.performers.clip import frames_of, make_clip
    from data_pipeline.performers.render import render

    rows = {"speak": [], "listen": []}
    for kind, out in rows.items():
        for i in range(clips):
            style = STYLES[i % len(STYLES)]
            record = make_clip(_HELD_OUT_CLIPS + i, held_out=True, style=style, kind=kind)
            params = record["params"]
            truth = [params[:, PARAM_INDEX[n]] for n in ("aperture", "pitch", "lid_left", "lid_right")]
            out.append((style, reader.read(frames_of(record)), truth))

    def joined(kind: str, style: str | None) -> tuple[np.ndarray, ...]:
        chosen = [(r, t) for s, r, t in rows[kind] if style in (None, s)]
        read = [np.concatenate([r[k] for r, _ in chosen]) for k in range(3)]
        return *read, *(np.concatenate([t[k] for _, t in chosen]) for k in range(4))

    rng = np.random.default_rng(1)
    stills = {style: [] for style in STYLES}
    for i in range(characters):
        character = sample_held_out_character(20_000_000 + i)
        params = sample_poses(rng, 4)
        read, truth = reader.read(render(character, params)), labels_of(character, params)
        stills[character.style].append(
            (np.mean((read.glasses > 0) == truth[:, 3]), np.mean((read.beard > 0) == truth[:, 4]))
        )

    def centred(kind: str, style: str | None, read: int, truth: int) -> float:
        chosen = [(r[read], t[truth]) for s, r, t in rows[kind] if style in (None, s)]
        return pooled_correlation(*zip(*chosen, strict=True))

    def scores(style: str | None) -> dict[str, float]:
        aperture, _, eyes, truth, _, left, right = joined("speak", style)
        silent, pitch, *_, nods, _, _ = joined("listen", style)
        flags = np.array([x for s, v in stills.items() if style in (None, s) for x in v])
        return {
            "aperture_r": correlation(aperture, truth),
            "aperture_r_within_clips": centred("speak", style, 0, 0),
            "aperture_error": float(np.abs(aperture - truth).mean()),
            "aperture_amplitude": float(np.percentile(aperture, 95) / np.percentile(truth, 95)),
            "stillness": float(silent.mean() / aperture.mean()),
            "pitch_r": correlation(pitch, nods),
            "pitch_r_within_clips": centred("listen", style, 1, 1),
            "pitch_error_degrees": float(np.abs(pitch - nods).mean()),
            "eyes_r": correlation(eyes, (left + right) / 2),
            "glasses_accuracy": float(flags[:, 0].mean()),
            "beard_accuracy": float(flags[:, 1].mean()),
        }

    return {"all": scores(None)} | {style: scores(style) for style in STYLES}


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser("reader", description="Train the reader and measure it on held-out characters.")
    parser.add_argument("--out", type=Path, default=FOLDER / "reader")
    parser.add_argument("--frames", type=int, default=16_000)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of characters, poses and first weights")
    parser.add_argument("--init", type=Path, help="folder of a reader to go on from")
    args = parser.parse_args(argv)
    began = time.process_time()
    frames, labels = training_frames(args.frames, args.seed)
    before = Reader.load(args.init).params if args.init else None
    params = train(frames, labels, args.steps, rate=args.rate, seed=args.seed, params=before)
    save_weights(args.out, "reader", params, jnp.bfloat16)
    made = {"frames": args.frames, "steps": args.steps, "rate": args.rate, "seed": args.seed}
    made["cpu_seconds"] = round(time.process_time() - began)
    rounds = json.loads((args.init / "accuracy.json").read_text())["training"] if args.init else []
    scores = accuracy(Reader.load(args.out))
    rounded = {k: {n: round(v, 4) for n, v in row.items()} for k, row in scores.items()}
    write_json(args.out / "accuracy.json", {"training": [*rounds, made], "held_out": rounded})
    for name in rounded["all"]:
        print(f"{name:24} " + "  ".join(f"{k} {row[name]:.3f}" for k, row in rounded.items()))
    return 0
