"""Are the joints of a long offline video visible? Flicker at them against flicker elsewhere, with held-out performers.

    uv run python -m benchmarks.long_video --model runs/base --clips 6 --seconds 20 --out benchmarks/results

Flicker is the mean absolute change of the picture from one frame to the next, in units of 0..255. A *joint* is the
transitions into, within and out of the frames that two segments share; *elsewhere* is every other stretch of the same
length (those of the first second excepted). Told are the ratio of the mean flicker, the ratio of the mean of each
stretch's largest change (what an eye would catch), both with a 95 % interval from resampling the stretches, and the
share of joints whose largest change lies above the 95th percentile of those elsewhere: 5 % if joints are like the rest.
Rows vary how a segment starts: from the tail taken back to a noise level, or without any overlap.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from benchmarks.clips import build_clips
from data_pipeline.schema import SAMPLE_RATE
from lpm_jax.checkpoint import write_json
from lpm_jax.config import SampleConfig
from lpm_jax.environment import environment
from lpm_jax.errors import ArgumentParser, run_door
from lpm_jax.progress import progress


def flicker(frames: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, " n_less_one"]:
    """The mean absolute change between neighbouring frames; entry ``i`` is from frame ``i`` to ``i + 1``."""
    return np.array([np.abs(b.astype(np.int16) - a).mean() for a, b in zip(frames, frames[1:], strict=False)])


def stretches(
    change: Float[np.ndarray, " n"], step: int, overlap: int, group: int = 4
) -> tuple[Float[np.ndarray, "joints length"], Float[np.ndarray, "others length"]]:
    """Changes at the joints and in stretches of the same length elsewhere.

    ``step`` and ``overlap`` are latent frames: segment ``k`` begins with latent frame ``k step``, whose first video
    frame is ``1 + group k step``. Stretches elsewhere begin with a latent frame, too, for the picture changes more from
    one latent frame to the next than within one; neighbours share their outermost change.
    """
    length = group * overlap + 1
    starts = list(range(group * step, len(change) - length + 1, group * step))
    joints = [change[s : s + length] for s in starts]
    taken = np.zeros(len(change), bool)
    for s in starts:
        taken[s : s + length] = True
    others, at = [], 24 // group * group
    while at + length <= len(change):
        if taken[at : at + length].any():
            at += group
            continue
        others.append(change[at : at + length])
        at += length - 1
    return np.array(joints).reshape(-1, length), np.array(others).reshape(-1, length)


def ratio(
    joints: Float[np.ndarray, " n"], others: Float[np.ndarray, " m"], seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of the means, and its 95 % interval by bootstrap over stretches."""
    rng = np.random.default_rng(seed)
    draw = lambda x: rng.choice(x, (2000, len(x))).mean(1)  # noqa: E731
    low, high = np.percentile(draw(joints) / draw(others), [2.5, 97.5])
    return float(joints.mean() / others.mean()), float(low), float(high)


def summary(joints: np.ndarray, others: np.ndarray) -> dict:
    peaks = joints.max(1), others.max(1)
    return {
        "joints": len(joints),
        "elsewhere": len(others),
        "flicker_elsewhere": round(float(others.mean()), 3),
        "mean_ratio": [round(x, 3) for x in ratio(joints.mean(1), others.mean(1))],
        "peak_ratio": [round(x, 3) for x in ratio(*peaks)],
        "joints_above_95th_percentile": round(float((peaks[0] > np.percentile(peaks[1], 95)).mean()), 3),
    }


def main() -> int:
    parser = ArgumentParser("python -m benchmarks.long_video", description=__doc__)
    parser.add_argument("--model", required=True, help="the folder of a model")
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--segment", type=int, default=37, help="frames: what the model's stage was trained on")
    parser.add_argument("--scale", type=float, default=1.0, help="guidance, both kinds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--sheet", type=Path, help="PNG of the frames around two joints")
    args = parser.parse_args()
    from lpm_jax.base import Base
    from lpm_jax.training.sheets import save_sheet

    base = Base.from_pretrained(args.model)
    latents = (args.segment - 1) // base.config.vae.group
    clips = build_clips("speak", args.clips, 4.0)
    usual = SampleConfig(
        steps=args.steps, shift=1.0, text_scale=args.scale, audio_scale=args.scale, segment=args.segment, overlap=2
    )
    ways = {f"overlap 2, tail at {t:g}": dataclasses.replace(usual, tail_level=t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)}
    ways["no overlap"] = dataclasses.replace(usual, overlap=0)
    rows: dict[str, dict] = {}
    for name, sample in ways.items():
        joints, others = [], []
        for i, clip in enumerate(progress(clips, name)):
            sound = np.resize(clip.record["speak"].astype(np.float32) / 32767, round(args.seconds * SAMPLE_RATE))
            made = base.generate(clip.reference, sound, prompt=clip.record["prompt"], seed=i, sample=sample)
            frames = np.concatenate(list(made))
            # Without an overlap the joint is one transition; look at a stretch as long as the others'.
            there, rest = stretches(flicker(frames), latents - sample.overlap, sample.overlap or 2)
            joints.append(there)
            others.append(rest)
            if args.sheet and i < 2 and name == "overlap 2, tail at 0.5":
                at = 4 * (latents - sample.overlap)
                row = np.concatenate([clip.reference[None], frames[at - 4 : at + 14 : 2]])
                save_sheet(args.sheet.with_stem(f"{args.sheet.stem}_{i}"), [row])
        rows[name] = summary(np.concatenate(joints), np.concatenate(others))
        mean, peak = rows[name]["mean_ratio"], rows[name]["peak_ratio"]
        print(
            f"{name:24}  mean {mean[0]:.2f} ({mean[1]:.2f} to {mean[2]:.2f})  peak {peak[0]:.2f} ({peak[1]:.2f} to "
            f"{peak[2]:.2f})  above 95th percentile {rows[name]['joints_above_95th_percentile']:.0%}",
            flush=True,
        )
    command = f"python -m benchmarks.long_video --clips {args.clips} --seconds {args.seconds:g} --steps {args.steps} "
    command += f"--segment {args.segment} --scale {args.scale:g}"
    write_json(
        args.out / "long_video.json", {"command": command} | environment("opencv-python-headless") | {"ways": rows}
    )
    print(f"written: {args.out / 'long_video.json'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_door(main)
