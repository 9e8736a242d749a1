"""Our streaming step against the same step written plainly in PyTorch, in one run on the same processor.

    uv run python -m benchmarks.chunk_peer --torch-python PATH --rounds 15 --out benchmarks/results

PATH is a Python with torch, numpy and safetensors. The peer (``benchmarks/torch_chunk.py``) has the same weights, the
same sizes, cache, evaluations and cores, and runs eager and compiled: in float32 or, with ``--dtype bfloat16``, under
PyTorch's autocast. First both continue one stream under way with the same sound and noise: in float32 latents must
agree within 1e-3 and frames within one level of 255, in bfloat16 within what rounding makes, else nothing is timed.
Then they take turns, round by round and in both orders, so that what else the machine does falls on both. A turn is
one chunk that does not count, then ``--chunks`` that do.

The result is the median of the peer's faster mode over ours: above one we are faster. It is the clock's where the
machine was quiet (at the beginning, a load of no more than its cores). On a busy one it is the processor's time, and
only with ``--cores 1``, where no thread waits for another; else nothing is judged. The peer's idle threads spin, as is
PyTorch's habit, but on a busy machine they sleep (``OMP_WAIT_POLICY=PASSIVE``): spinning, it is several times slower.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file, save_file

from benchmarks.peer import Peer, cores, find_torch, keep_to, play, summary
from benchmarks.report import Row, table
from data_pipeline.schema import FPS
from lpm_jax import pretrained
from lpm_jax.checkpoint import write_json
from lpm_jax.environment import environment
from lpm_jax.errors import ArgumentParser, run_door
from lpm_jax.media import load_audio
from lpm_jax.models import conditions, vae
from lpm_jax.pipeline import Pipeline
from lpm_jax.streaming import generator
from lpm_jax.streaming.generator import StreamState

CHECKED = 3  # chunks that are compared
LEAD = 4  # chunks before them: the window slides
MODES = ("eager", "compiled")
#: How far latents and frames may differ, by dtype: bfloat16 keeps 8 bits of latents of about 1, over two evaluations.
CLOSE = {"float32": (1e-3, 1), "bfloat16": (0.25, 12)}
STATE = ("reference_times", "reference_valid", "anchor", "near", "text", "text_mask", "speak", "listen")


class Given(NamedTuple):
    """What both sides start from, and what we make of it."""

    state: StreamState
    speak: Float[np.ndarray, "chunks samples"]
    listen: Float[np.ndarray, "chunks samples"]
    noise: Float[np.ndarray, "chunks levels frames tokens values"]
    life: Float[np.ndarray, "chunks frames values"] | None
    latents: np.ndarray
    frames: np.ndarray


def copied(state: StreamState) -> StreamState:
    """With buffers of its own: a step eats its state."""
    return jax.tree.map(jax.numpy.copy, state)


def give(pipeline: Pipeline, picture: Any, speak: np.ndarray, listen: np.ndarray) -> Given:
    """A stream of ``picture`` after ``LEAD`` chunks, and our next ``CHECKED``."""
    config, params = pipeline.config, pipeline.params
    size = LEAD + CHECKED, generator.chunk_samples(config)
    speak, listen = (np.resize(track, size).astype(np.float32) for track in (speak, listen))
    state = pipeline.open(picture)._state
    for i in range(LEAD):
        state, _ = generator.chunk_step(config, params, state, speak[None, i], listen[None, i])
    start, speak, listen = copied(state), speak[LEAD:], listen[LEAD:]
    latent_step, hear = (jax.jit(f, static_argnums=0) for f in (generator.latent_step, generator.hear))
    shape = (1, config.stream.chunk, *state.near.shape[2:])
    noise, told, latents, frames = [], [], [], []
    for sounds in zip(speak[:, None], listen[:, None], strict=True):
        draw = jax.random.split(state.key)[1]  # as the step draws it
        keys = [jax.random.fold_in(draw, i) for i in range(len(config.stream.levels))]
        noise.append(np.stack([jax.random.normal(key, shape)[0] for key in keys]))
        if config.dit.life:
            told.append(np.asarray(hear(config, params, state, *sounds)[1].life[0]))
        latents.append(np.asarray(latent_step(config, params, state, *sounds)[1][0]))
        state, made = generator.chunk_step(config, params, state, *sounds)
        frames.append(np.asarray(made[0]))
    told = np.stack(told) if told else None
    return Given(start, speak, listen, np.stack(noise), told, np.stack(latents), np.stack(frames))


def setting(pipeline: Pipeline, weights: Path, chunks: int, dtype: str = "float32") -> dict:
    """What the peer must know besides tensors."""
    height, width = pipeline.config.pixels
    config = dataclasses.asdict(pipeline.config) | {"height": height, "width": width}
    found = {"config": config, "weights": str(weights), "chunks": chunks, "dtype": dtype}
    return found | {"threads": cores(), "modes": MODES}


def save(folder: Path, given: Given) -> None:
    """The tensors that the peer reads, without the batch's axis."""
    state = given.state
    plain = lambda x: np.asarray(x.astype(np.float32) if x.dtype == jax.numpy.bfloat16 else x)  # noqa: E731
    tensors = {name: plain(getattr(state, name)[0]) for name in STATE}
    cache = np.stack([plain(x)[:, :, 0] for x in state.cache], axis=2)  # [pairs, 2, k or v, slots, ...]
    (past,) = state.vae.values()
    tensors |= {"cache": cache.reshape(-1, *cache.shape[2:]), "past": plain(past[0])}
    tensors["chunk"] = np.asarray(state.chunk)
    if state.picture is not None:
        tensors["picture"] = plain(state.picture[0])
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / "state.safetensors")
    known = {name: getattr(given, name) for name in ("speak", "listen", "noise", "life")}
    save_file({name: x for name, x in known.items() if x is not None}, folder / "check.safetensors")


def compare(given: Given, folder: Path, modes: list[str], dtype: str = "float32") -> dict[str, dict]:
    """How far each mode's results lie from ours.

    Raises:
      RuntimeError: further than rounding; then times would compare different things.
    """
    found, close = {}, CLOSE[dtype]
    for mode in modes:
        made = load_file(folder / f"{mode}.safetensors")
        latents = float(np.abs(made["latents"] - given.latents).max())
        levels = int(np.abs(made["frames"].astype(int) - given.frames).max())
        if not (latents <= close[0] and levels <= close[1]):
            raise RuntimeError(
                f"torch {mode}: expected latents within {close[0]:g} and frames within {close[1]}, found {latents:.2g} "
                f"and {levels}"
            )
        one_off = float((made["frames"] != given.frames).mean())
        found[mode] = {"latents": latents, "levels": levels, "share_one_level_off": one_off}
    return found


class Ours:
    """Our side of the game: turns as the peer takes them."""

    def __init__(self, pipeline: Pipeline, given: Given, chunks: int):
        self.config, self.params, self.chunks = pipeline.config, pipeline.params, chunks
        self.state = copied(given.state)
        self.sounds = list(zip(given.speak[:, None], given.listen[:, None], strict=True))

    def go(self) -> dict:
        seconds, cpu = [], []
        for i in range(self.chunks + 1):
            began, busy = time.perf_counter(), time.process_time()
            sounds = self.sounds[i % len(self.sounds)]
            self.state, frames = generator.chunk_step(self.config, self.params, self.state, *sounds)
            np.asarray(frames)
            seconds.append(time.perf_counter() - began)
            cpu.append(time.process_time() - busy)
        return {"seconds": seconds[1:], "cpu": cpu[1:]}

    def parts(self, times: int = 7) -> dict[str, float]:
        """Seconds of each part, compiled alone; the transformer's is what the latent step takes less the audio's."""
        config, params, state, sounds = self.config, self.params, self.state, self.sounds[0]
        features = conditions.audio_features(config.audio)

        @jax.jit
        def hear(params, speak, listen):
            mel = features({}, speak), features({}, listen)
            heard = conditions.encode_audio(config, params, *mel, config.stream.chunk, config.stream.chunk)
            return [audio.tokens for audio in heard.values()]

        heard = [np.concatenate(x, axis=1) for x in ((state.speak, sounds[0]), (state.listen, sounds[1]))]
        latent_step = jax.jit(generator.latent_step, static_argnums=0)
        latents = latent_step(config, params, state, *sounds)[1]
        decode = jax.jit(lambda params, z, past: vae.to_pixels(vae.decode(config.vae, params, z, past)[0]))

        def seconds(run, *arguments) -> float:
            spent = []
            for _ in range(times + 1):  # the first compiles
                began = time.perf_counter()
                jax.block_until_ready(run(*arguments))
                spent.append(time.perf_counter() - began)
            return float(np.median(spent[1:]))

        audio = seconds(hear, params, *heard)
        transformer = seconds(latent_step, config, params, state, *sounds) - audio
        return {
            "audio": audio,
            "transformer": transformer,
            "decoder": seconds(decode, params["vae"], latents, state.vae),
        }


def main() -> int:
    parser = ArgumentParser("python -m benchmarks.chunk_peer", description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", required=True, help="a Python with torch, numpy and safetensors")
    parser.add_argument("--model", default="toy", help="bundled model or folder: a toy")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--chunks", type=int, default=3, help="chunks of a turn that count")
    parser.add_argument("--dtype", choices=CLOSE, default="float32")
    parser.add_argument("--cores", type=int, default=0, help="that both sides are kept to; 0: all there are")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the JSON file")
    args = parser.parse_args()
    if args.rounds < 1 or args.chunks < 1:
        parser.error("expected at least one round of at least one chunk")
    loads, busy = [os.getloadavg()[0]], os.getloadavg()[0] > cores()
    if args.cores:
        keep_to(args.cores)  # before JAX makes its threads
    python = find_torch(args.torch_python)
    pipeline, assets = Pipeline.from_pretrained(args.model, args.dtype), pretrained.BUNDLED
    sounds = (load_audio(assets / "samples" / f"{name}.flac") for name in ("story", "partner"))
    given = give(pipeline, assets / "characters" / "1-mei.png", *sounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_json(
            folder / "setting.json", setting(pipeline, pretrained.locate(args.model).resolve(), args.chunks, args.dtype)
        )
        save(folder, given)
        waits = {"OMP_WAIT_POLICY": "PASSIVE"} if busy else {}
        with Peer([python, "-m", "benchmarks.torch_chunk", str(folder)], waits | os.environ) as peer:
            equal = compare(given, folder, peer.ready["modes"], args.dtype)
            ours = Ours(pipeline, given, args.chunks)
            loads.append(os.getloadavg()[0])
            turns = play(ours, peer, args.rounds)
            loads.append(os.getloadavg()[0])
            ready = peer.ready
    found = summary(turns, pipeline.chunk_frames / FPS, "cpu" if busy else "seconds")
    judged = not busy or cores() == 1
    found["parts_milliseconds"]["ours"] = {k: round(1000 * v, 2) for k, v in ours.parts().items()}
    command = f"python -m benchmarks.chunk_peer --torch-python PATH --model {Path(args.model).name} "
    command += f"--rounds {args.rounds} --chunks {args.chunks} --dtype {args.dtype}"
    command += f" --cores {args.cores}" if args.cores else ""
    result = {"command": command} | environment()
    result["versions"]["torch"] = ready["torch"]
    told = ("at the beginning", "in the first round", "in the last")
    result |= {"cores_used": cores(), "load": {k: round(x, 1) for k, x in zip(told, loads, strict=True)}, "busy": busy}
    result |= {"equality": equal, "not_run": ready["failed"]}
    if not judged:
        found["result"] = None
    rows = [Row(f"{side}: milliseconds a chunk", x) for side, x in found["milliseconds"].items()]
    rows += [Row(f"{side}: of the processor's time", x) for side, x in found["cpu_milliseconds"].items()]
    rows += [Row(f"torch {mode} / ours, processor's time", x) for mode, x in found["cpu_ratio"].items()]
    rows += [Row(f"torch {mode} / ours", x) for mode, x in found["ratio"].items()]
    if judged:
        rows.append(Row(f"the peer ({found['peer']}) / ours, {found['of']}", found["result"], target=">= 1.0"))
    print(table(rows))
    for mode, why in ready["failed"].items():
        print(f"torch {mode}: not run: {why}")
    path = args.out / f"chunk_peer_{args.dtype}{f'_{args.cores}' if args.cores else ''}.json"
    write_json(path, result | found)
    if not judged:
        print(f"a load of {loads[0]:.1f} on {os.cpu_count()} cores: not judged; a quiet machine or --cores 1 would be")
    print(f"written: {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_door(main)
