"""The peer: diffusers' ``WanTransformerBlock``, forward and backward, in a process that needs only torch and diffusers.

    python benchmarks/wan_block.py '{"width": 1536, "heads": 12, ...}'       see SPEC

It answers a line of JSON when it is ready, then one for each number of calls that it reads: ``{"seconds": 0.31}``.
:class:`Peer` is the other end. Norms, modulation and the time embedding stay in float32, as diffusers loads Wan; noise
levels are one a clip (Wan's own form, cheaper than ours, which are one a frame). On a GPU, PyTorch's choice of
attention kernel and cuDNN's are both tried and the faster one is timed: a peer at its best.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time

SPEC = (
    "width",
    "heads",
    "ffn",
    "batch",
    "frames",
    "rows",
    "columns",
    "words",
    "device",
    "mode",
)  # mode: compile, eager


class PeerError(RuntimeError):
    """The other process cannot go on. One line."""


class Peer:
    """The block in a process of its own; calling it makes as many calls there and returns their seconds."""

    def __init__(self, python: str, spec: dict):
        # -P: this folder's modules are not on the path there.
        words = [python, "-P", __file__, json.dumps({name: spec[name] for name in SPEC})]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self._answer()

    def __call__(self, calls: int) -> float:
        self.process.stdin.write(f"{calls}\n")
        self.process.stdin.flush()
        return self._answer()["seconds"]

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with status {self.process.wait()}"}
        if "error" in answer:
            self.close()
            raise PeerError(answer["error"])
        return answer

    def close(self) -> dict:
        """Ends the process; what it says last: its peak memory."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        last = self.process.stdout.read().strip()
        self.process.stdout.close()
        self.process.wait()
        return json.loads(last.splitlines()[-1]) if last else {}


# ---- the other process -----------------------------------------------------------------------------------------------


def build(spec: dict):
    """``call()`` -> gradients, and the block that it runs, to be replaced by its compiled form."""
    import torch
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock

    device, half = spec["device"], torch.bfloat16
    torch.manual_seed(0)
    width, head = spec["width"], spec["width"] // spec["heads"]
    block = WanTransformerBlock(width, spec["ffn"], spec["heads"], "rms_norm_across_heads", True).to(device, half)
    block.norm2.float()
    block.scale_shift_table.data = block.scale_shift_table.data.float()
    frames, rows, columns = spec["frames"], spec["rows"], spec["columns"]
    rope = WanRotaryPosEmbed(head, (1, 1, 1), 1024)
    with torch.no_grad():
        angles = rope(torch.zeros(1, 1, frames, rows, columns))
    angles = tuple(x.to(device) for x in angles)

    def noise(*shape: int, dtype=half):
        return torch.randn(shape, device=device, dtype=dtype)

    b, n = spec["batch"], frames * rows * columns
    inputs = [noise(b, n, width), noise(b, spec["words"], width), noise(b, 6, width, dtype=torch.float32)]
    inputs = [x.requires_grad_() for x in inputs]
    cotangent, wanted = noise(b, n, width), [*inputs, *block.parameters()]

    def call(run):
        return torch.autograd.grad(run(*inputs, angles), wanted, cotangent)

    return block, call


def prepare(spec: dict):
    """The fastest way to run the block here: a function of the number of calls, and what it is."""
    import diffusers
    import torch
    import torch._dynamo
    from torch.nn.attention import SDPBackend, sdpa_kernel

    block, call = build(spec)
    gpu = spec["device"] == "cuda"
    ways = {"torch's choice": None, "cudnn": SDPBackend.CUDNN_ATTENTION} if gpu else {"torch's choice": None}

    def timed(backend, run, calls: int) -> float:
        with contextlib.nullcontext() if backend is None else sdpa_kernel(backend):
            wait = torch.cuda.synchronize if gpu else lambda: None
            wait()
            began = time.perf_counter()
            for _ in range(calls):
                call(run)
            wait()
            return time.perf_counter() - began

    tried, notes = {}, []
    for name, backend in ways.items():
        for mode in ("compile", "eager")[spec["mode"] == "eager" :]:
            torch._dynamo.reset()
            run = torch.compile(block) if mode == "compile" else block
            try:
                timed(backend, run, 2)
                tried[f"{mode}, attention: {name}"] = (timed(backend, run, 3) / 3, backend, run)
                break
            except Exception as error:
                notes.append(f"{mode}, attention: {name}: {' '.join(str(error).split())[:200]}")
    if not tried:
        raise RuntimeError("; ".join(notes))
    best = min(tried, key=lambda name: tried[name][0])
    _, backend, run = tried[best]
    facts = {
        "torch": torch.__version__, "diffusers": diffusers.__version__, "way": best, "notes": notes,
        "tried": {name: seconds for name, (seconds, *_) in tried.items()},
    }  # fmt: skip
    return facts, lambda calls: timed(backend, run, calls)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer

    def say(**answer) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        facts, run = prepare(json.loads(sys.argv[1]))
        say(**facts)
        for line in sys.stdin:
            say(seconds=run(int(line)))
        import torch

        say(peak_memory=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None)
    except Exception as error:
        say(error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        sys.exit(1)


if __name__ == "__main__":
    main()
