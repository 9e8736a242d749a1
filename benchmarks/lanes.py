"""Lanes at work on different chunks: a timeline, and what their overlap brings.

    uv run python -m benchmarks.lanes --devices 8 --mesh tensor=4 --decoder 4 --plot docs/lanes.png
    uv run python -m benchmarks.lanes --mesh tensor=2 --decoder 4 --refine 0.25 --plot docs/lanes_refiner.png

The bundled toy streams on simulated CPU devices: the Generator on the first of them, laid out as ``--mesh`` says, the
VAE on the last ``--decoder``. ``--refine`` puts a Refiner, of the Backbone's own weights, on as many devices after the
Generator's: what a trained one would cost, not what it would do. The same chunks are made on one device and must be the
same (one level of 255). Simulated devices share the processor's cores, so the figures show that lanes overlap, not how
fast a pod would be.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from benchmarks.report import Row, table
from lpm_jax.checkpoint import write_json
from lpm_jax.environment import environment
from lpm_jax.errors import ArgumentParser, InputError, run_door
from lpm_jax.options import parse_mesh


def overlap(runs: list) -> float:
    """Share of the time, from the first to the last begin or end, in which two or more lanes work on a chunk. ``runs``:
    lane, chunk, begin and end."""
    edges = sorted({t for run in runs for t in run[2:]})
    busy = 0.0
    for begin, end in zip(edges, edges[1:], strict=False):
        working = {lane for lane, _, a, b in runs if a <= begin and end <= b}
        busy += (end - begin) * (len(working) > 1)
    return busy / (edges[-1] - edges[0])


def lanes_of(runs: list) -> list[str]:
    """The lanes that there are, in their order."""
    from lpm_jax.streaming.lanes import LANES

    return [lane for lane in LANES if any(run[0] == lane for run in runs)]


def plot(runs: list, path: Path) -> None:
    """Bars of each lane's chunks over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.8 + 0.7 * len(lanes_of(runs))), layout="constrained")
    colours = plt.get_cmap("tab10").colors
    start = min(run[2] for run in runs)
    lanes = lanes_of(runs)
    for lane, chunk, begin, end in runs:
        row = lanes.index(lane)
        axes.barh(row, 1000 * (end - begin), left=1000 * (begin - start), color=colours[chunk % 10], edgecolor="white")
        axes.text(1000 * ((begin + end) / 2 - start), row, str(chunk), ha="center", va="center", fontsize=8)
    names = {"generator": "Generator", "refiner": "Refiner", "vae": "VAE"}
    axes.set_yticks(range(len(lanes)), [names[lane] for lane in lanes])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds; numbers and colours are chunks")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def stream(lanes, state, sounds: list, watch: bool) -> list[np.ndarray]:
    """The frames of all chunks."""
    live = lanes.open(state, watch=watch)
    pending = [live.step(*tracks) for tracks in sounds]
    live.close()
    return [chunk.get() for chunk in pending]


def main() -> int:
    parser = ArgumentParser("python -m benchmarks.lanes", description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--mesh", default="tensor=4", help="of the Generator's devices")
    parser.add_argument("--decoder", type=int, default=4, help="devices of the VAE, the last ones")
    parser.add_argument("--refine", type=float, default=0.0, help="a Refiner from this noise level, too; 0: none")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--plot", type=Path, help="PNG of the timeline; needs matplotlib")
    args = parser.parse_args()
    if not 1 <= args.decoder <= args.devices <= 64 or args.chunks < 4:
        raise InputError("--decoder, --devices, --chunks: expected 1 <= decoder <= devices <= 64, and 4 chunks or more")
    import jax

    jax.config.update("jax_num_cpu_devices", args.devices)
    from lpm_jax import Pipeline, pretrained
    from lpm_jax.media import load_audio
    from lpm_jax.streaming.generator import chunk_samples
    from lpm_jax.streaming.lanes import Lanes

    devices, mesh = jax.devices("cpu"), parse_mesh(args.mesh)
    shared = args.decoder == args.devices
    rest = devices if shared else devices[: args.devices - args.decoder]
    generator, refiner = (
        (rest[: len(rest) // 2], rest[len(rest) // 2 :]) if args.refine and not shared else (rest, None)
    )
    pipe = Pipeline.from_pretrained("toy", "float32")
    if args.refine:
        config = dataclasses.replace(pipe.config, stream=dataclasses.replace(pipe.config.stream, refine=args.refine))
        pipe = Pipeline(config, pipe.params | {"refiner": pipe.params["dit"]})
    size = chunk_samples(pipe.config)
    speech = np.resize(load_audio(pretrained.BUNDLED / "samples" / "story.flac"), (args.chunks, 1, size))
    sounds = [(x.astype(np.float32), np.zeros_like(x, np.float32)) for x in speech]
    picture = pretrained.BUNDLED / "characters" / "1-mei.png"
    one = Lanes(pipe.config, pipe.params, devices[:1])
    many = Lanes(pipe.config, pipe.params, generator, mesh, devices[-args.decoder :], refiner=refiner)
    expected = stream(one, pipe.open(picture)._state, sounds, False)
    stream(many, pipe.open(picture)._state, sounds[:3], False)  # compiles
    found = stream(many, pipe.open(picture)._state, sounds, True)
    off = max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(found, expected, strict=True))
    runs = [tuple(run) for run in many.runs]
    rows = [Row("levels of 255 off one device", off, target="<= 1"), Row("two lanes busy, of the time", overlap(runs))]
    for lane in lanes_of(runs):
        spent = [1000 * (end - begin) for name, _, begin, end in runs if name == lane]
        rows.append(Row(f"{lane}: milliseconds a chunk", float(np.median(spent))))
    print(table(rows))
    command = f"python -m benchmarks.lanes --devices {args.devices} --mesh {args.mesh} --decoder {args.decoder}"
    command += f" --refine {args.refine:g}" if args.refine else ""
    name = "lanes_refiner.json" if args.refine else "lanes.json"
    result = {"command": f"{command} --chunks {args.chunks}"} | environment()
    result |= {
        "figures": [row.to_json() for row in rows],
        "runs": [[*r[:2], *np.round(r[2:], 4).tolist()] for r in runs],
    }
    write_json(args.out / name, result)
    if args.plot:
        plot(runs, args.plot)
    print(f"written: {args.out / name}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_door(main)
