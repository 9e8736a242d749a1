"""Memory and time of importing a Wan checkpoint that is larger than one would like to hold twice.

    python -m benchmarks.convert_memory --dir /tmp/convert [--depth 30] [--keep]

Writes a synthetic two-shard checkpoint with the shapes of ``configs/lpm_1b.py`` (2.8 GB in bfloat16 at its full depth),
imports it, exports it again and loads it straight onto the device, each in a process of its own, and prints the peak
resident memory of each. The bound: 1.3 times the largest tensor plus 1 GB, beside what the arrays on the device take.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).parents[1]
MEASURE = """
import sys
from pathlib import Path
from lpm_jax import convert
door, source, destination = sys.argv[1:]
device = 0
if door == "load":
    import jax
    config, params = convert.load_wan(source)
    device = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
else:
    {"wan": convert.import_wan, "export": convert.export_wan}[door](source, destination)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024 - device)
"""


def synthesize(folder: Path, depth: int) -> int:
    """Writes the checkpoint; bytes of its largest tensor."""
    import ml_dtypes

    from lpm_jax import convert, mapping, tensors
    from lpm_jax.models import dit_names
    from lpm_jax.options import load_config

    config = dataclasses.replace(load_config(REPOSITORY / "configs" / "lpm_1b.py").dit, depth=depth)
    shapes, targets = convert._shapes(config), {}
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    noise = np.random.default_rng(0).integers(0x3C00, 0x3F00, 2**22, np.uint16).view(bfloat16)

    def fill(shape):
        def slices():
            yield np.resize(noise, shape)

        return slices

    for path, name in dit_names.names(config).items():
        if dit_names.AUDIO.match(path):
            continue
        stacked = "{" in name.keys[0]
        shape = mapping.theirs_shape(name, shapes[path][1:] if stacked else shapes[path])
        for layer in range(depth // 2 if stacked else 1):
            targets[mapping.spell(name, layer)[-1]] = tensors.Target(bfloat16, shape, fill(shape))
    size = sum(target.nbytes for target in targets.values())
    paths, _, _ = tensors.write_shards(folder, convert.WAN, targets, {}, size // 2 + 2**27)
    tensors.publish(folder, convert.WAN, paths)
    (folder / tensors.ASIDE).rmdir()
    data = {"dim": config.width, "num_heads": config.heads, "num_layers": depth, "ffn_dim": config.ffn}
    (folder / "config.json").write_text(json.dumps(data))
    print(f"{size / 1e9:.2f} GB in {len(paths)} files", flush=True)
    return max(target.nbytes for target in targets.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=30)
    parser.add_argument("--keep", action="store_true", help="leave the files")
    args = parser.parse_args()
    source, imported, exported = (args.dir / name for name in ("wan", "lpm", "diffusers"))
    shutil.rmtree(args.dir, ignore_errors=True)
    source.mkdir(parents=True)
    largest = synthesize(source, args.depth)
    bound = 1.3 * largest + 1e9
    for door, a, b in (("wan", source, imported), ("export", imported, exported), ("load", source, source)):
        began = time.perf_counter()
        command = [sys.executable, "-c", MEASURE, door, str(a), str(b)]
        peak = int(subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout)
        seconds = time.perf_counter() - began
        fits = "within" if peak <= bound else "OVER"
        print(f"{door}: peak {peak / 1e9:.2f} GB, {fits} {bound / 1e9:.2f} GB; {seconds:.0f} s", flush=True)
    if not args.keep:
        shutil.rmtree(args.dir)


if __name__ == "__main__":
    main()
