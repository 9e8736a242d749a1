"""The training step's benchmark: counts by hand, turns, what fits, the peer's process, a tiny run from end to end."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive

from benchmarks import step_flops, step_parts, step_programs, timing, train_step
from benchmarks.executed import operations
from benchmarks.wan_block import Peer, PeerError
from lpm_jax import flops
from lpm_jax.errors import InputError
from lpm_jax.models import conditions
from lpm_jax.streaming import cache
from lpm_jax.training.flow_matching import make_loss

CONFIG = Path(__file__).parents[1] / "configs" / "lpm_1b.py"
WORDS = ["--config", str(CONFIG), "--tiny", "--latents", "2", "--rounds", "2"]
SPEC = {
    "width": 32, "heads": 2, "ffn": 64, "batch": 1, "frames": 2, "rows": 2, "columns": 3, "words": 5, "device": "cpu",
    "mode": "eager",
}  # fmt: skip


def config(*words: str, blocks: int = 0):
    args = train_step.parse([*WORDS, *words])
    return train_step.configure(args, args.config, blocks, "base.speak")


def whole(*words: str):
    """The model's true size."""
    args = train_step.parse(["--config", str(CONFIG), *words])
    return train_step.configure(args, args.config, args.blocks, "base.speak")


# ---- counts ----------------------------------------------------------------------------------------------------------


def test_the_window_is_the_issues():
    work = step_flops.window(whole())
    assert (work.frames, work.references, work.height, work.width) == (19, 2, 30, 52)
    assert step_flops.tokens(work) == 32_760


def test_attention_is_counted_where_it_is_seen():
    """The pairs are those of the mask that training uses."""
    c = whole("--batch", "2")
    work = step_flops.window(c)
    order = conditions.visibility(work.frames, None, jnp.ones((1, work.references), bool)).order
    pairs = 2 * order.sum() * 1560**2
    projections = 4 * 2 * step_flops.tokens(work) * 1536 * 1536
    assert step_flops.forward(c.dit, work)["attention"] == 30 * (4 * pairs * 1536 + projections)
    counts = step_flops.training(c.dit, work)
    assert counts["model"] == 3 * counts["forward"]
    assert 1.05 < counts["dense"] / counts["model"] < 1.08


def test_a_block_by_hand():
    c = config()
    d, ffn, n, video = 64, 128, 6, 2 * 3 * 6  # of two clips of three frames
    sounds = 2 * (conditions.history_tokens(c.audio) + 4 * 3)
    peer = 2 * video * 4 * d * d + 4 * 2 * (3 * n) ** 2 * d  # self-attention
    peer += 2 * video * 2 * d * ffn  # feed-forward
    peer += 2 * (video + 2 * 8) * 2 * d * d + 4 * video * 8 * d  # text: Q and O, K and V, attention
    audio = 2 * sounds * 2 * 64 * d + 2 * video * d * d + 4 * video * (sounds // 2) * d
    assert step_flops.block(c, 2, 3) == {"ours": 3 * (peer + audio), "peer": 3 * peer, "tokens": video}


def test_a_full_cache_is_what_the_stream_reads():
    c = whole()
    n = c.stream.sink + c.stream.window + 1  # the first chunk that does not see the first frame
    _, valid, _, _ = cache.layout(c.stream, jnp.asarray(n))
    assert bool(valid.all())
    assert step_flops.chunk(c).context == int(valid.sum()) + 2 + c.stream.references - 1


def test_executed_operations():
    w = jnp.ones((4, 8, 8))

    def loss(w, x):
        body = jax.checkpoint(lambda x, w: (jnp.sin(x @ w) @ w, None))
        return jax.lax.scan(body, x, w)[0].sum()

    one = 4 * 2 * 3 * 8 * 8  # a product of [3, 8] and [8, 8] in each of four layers
    run = jax.make_jaxpr(jax.grad(loss))
    # Two forward; of these the first again, for sin; four backward.
    assert operations(run(w, jnp.ones((3, 8)))) == {"products": (2 + 1 + 4) * one}
    branch = jax.make_jaxpr(lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: x @ x @ x, x))
    assert operations(branch(jnp.ones((8, 8)))) == {"products": 2 * 2 * 8**3}


def test_executed_flash_kernels():
    """Kernels as JAX names them on a GPU: forward has two products, backward five."""
    found = {}
    for kind in ("fwd", "bwd"):
        kernel = Primitive(f"dot_product_attention_{kind}_wrapper")
        kernel.def_abstract_eval(lambda q, k: q)
        jaxpr = jax.make_jaxpr(kernel.bind)(jnp.ones((2, 10, 3, 4)), jnp.ones((2, 20, 3, 4)))
        found |= operations(jaxpr)
    assert found == {"flash_forward": 2 * 2 * 2 * 10 * 20 * 12, "flash_backward": 5 * 2 * 2 * 10 * 20 * 12}


def test_the_step_executes_what_is_counted():
    """Without rematerialisation the loss's gradient has the dense model FLOPs; with all of it, another forward pass of
    the blocks."""
    counts = {}
    for remat in ("none", "full"):
        c = config("--latents", "6", "--attention", "xla")
        c = dataclasses.replace(c, train=dataclasses.replace(c.train, remat=remat))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), conditions.abstract(c))
        batch = jax.eval_shape(lambda c=c: step_programs.random_batch(abstract_batch(c)))
        run = jax.make_jaxpr(jax.grad(make_loss(c, False, 1.0), has_aux=True))
        counts[remat] = operations(run(shapes, batch, jax.random.key(0))).total()
    work = step_flops.window(c)
    dense = step_flops.training(c.dit, work)["dense"]
    blocks = sum(flops.costs(c.dit, work)[part].flops for part in step_flops.BLOCKS)
    assert counts["none"] == pytest.approx(dense, rel=0.08)
    assert counts["full"] - counts["none"] == pytest.approx(blocks, rel=0.08)


def abstract_batch(c) -> dict:
    from lpm_jax import sharding
    from lpm_jax.training.abstract import batch_shapes

    return batch_shapes(c, sharding.make_mesh())


def test_random_arrays_are_in_their_layout():
    """Large and small: products keep their variance, and nothing that has gradients is zero."""
    where = step_parts.sharding.replicated(one_device())
    shape = lambda *sizes, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(sizes, dtype, sharding=where)  # noqa: E731
    shapes = {"kernel": shape(2, 400, 300), "small": {"kernel": shape(100, 50), "bias": shape(50), "gain": shape(50)}}
    shapes |= {"valid": shape(3, dtype=jnp.bool_), "levels": shape(90, 900, dtype=jnp.float32)}
    made = step_programs.random_like(shapes)
    for want, found in zip(jax.tree.leaves(shapes), jax.tree.leaves(made), strict=True):
        assert (want.shape, want.dtype, want.sharding) == (found.shape, found.dtype, found.sharding)
    spread = jax.tree.map(lambda x: float(jnp.std(x.astype(jnp.float32))), made)
    assert spread["kernel"] == pytest.approx(400**-0.5, rel=0.02) and spread["levels"] == pytest.approx(1, rel=0.02)
    assert spread["small"]["kernel"] == pytest.approx(0.1, rel=0.1) and spread["small"]["bias"] > 0
    assert (made["small"]["gain"] == 1).all() and made["valid"].all()


# ---- turns -----------------------------------------------------------------------------------------------------------


def test_turns_are_taken(monkeypatch):
    calls = []

    def run(name, seconds):
        return lambda n: calls.append((name, n)) or seconds * n

    found = timing.in_turns({"slow": run("slow", 0.5), "quick": run("quick", 0.01)}, rounds=3, least=0.1)
    assert found == {"slow": [0.5] * 3, "quick": [pytest.approx(0.01)] * 3}
    assert calls[-6:] == [("slow", 1), ("quick", 10)] * 3


def test_shares_are_of_the_same_round():
    products = timing.Products((8, 16))
    peaks = products.peaks({"product 8": [1.0, 1e-3], "product 16": [1.0, 1.0]})
    assert peaks == [2 * 16**3, 2 * 8**3 / 1e-3]
    assert timing.share(100.0, [1.0, 2.0, 4.0], [200.0, 100.0, 100.0]) == pytest.approx(0.5)
    run = products.runs()["product 16"]
    assert 0 < run(2) < 10


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA B200", "b200"), ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"), ("TPU v6 lite", "v6e"), ("TPU7x", "7x"), ("cpu", None),
    ],
)  # fmt: skip
def test_devices_have_their_data_sheet(monkeypatch, kind, chip):
    monkeypatch.setattr(step_programs.jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])
    found = step_programs.chip()
    assert (found and found.name) == chip


# ---- memory ----------------------------------------------------------------------------------------------------------


class Large:
    """A step that takes 10 GB a clip."""

    def __init__(self, config, stage, mesh):
        self.memory = {"total": int(10e9) * config.train.batch}
        self.metrics = {"loss": jnp.zeros(()), "skipped": jnp.zeros(())}
        self.state, self.compiled = SimpleNamespace(step=3), SimpleNamespace(as_text=lambda: "")
        self.executed = operations(jax.make_jaxpr(lambda x: x @ x)(jnp.ones((4, 4))))

    def start(self):
        if self.memory["total"] > 35e9:  # less than the compiler's plan lets one think
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")

    def __call__(self):
        return self.metrics


@pytest.mark.parametrize(("room", "batch"), [(90e9, 2), (25e9, 2), (12e9, 1), (None, 2)])
def test_the_batch_is_halved_until_it_fits(monkeypatch, room, batch):
    notes = []
    monkeypatch.setattr(step_programs, "Step", Large)
    monkeypatch.setattr(step_programs, "free", lambda: room)
    monkeypatch.setattr(step_parts.sharding, "make_mesh", lambda *_: one_device())
    bench = step_parts.Bench(1, True, notes.append)
    found = step_parts.train(bench, config("--batch", "8"), "base.speak", True)
    assert (found["fits"], found["batch"], found["asked"]) == (True, batch, 8)
    assert sum("does not fit" in line for line in notes) == {2: 2, 1: 3}[batch]


def test_what_does_not_fit_is_said(monkeypatch):
    monkeypatch.setattr(step_programs, "Step", Large)
    monkeypatch.setattr(step_programs, "free", lambda: 4e9)
    monkeypatch.setattr(step_parts.sharding, "make_mesh", lambda *_: one_device())
    found = step_parts.train(step_parts.Bench(1, True, lambda _: None), config(), "base.speak", True)
    assert not found["fits"] and found["reason"] == "10.0 GB needed, 4.0 GB free" and found["batch"] == 1


def one_device():
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1, 1), step_parts.sharding.AXES)


class Deep:
    """A streaming step that takes 10 GB and a hundredth of a second a block."""

    def __init__(self, config, mesh):
        self.depth, self.compiled = config.dit.depth, SimpleNamespace(as_text=lambda: "")
        self.memory = {"total": int(10e9) * config.dit.depth}

    def start(self):
        pass

    def __call__(self):
        import time

        time.sleep(0.01 * self.depth)
        return jnp.ones(3)


def test_a_part_of_the_blocks_is_multiplied(monkeypatch):
    monkeypatch.setattr(step_programs, "Chunk", Deep)
    monkeypatch.setattr(step_programs, "free", lambda: 25e9)
    notes = []
    found = step_parts.backbone(step_parts.Bench(2, True, notes.append), config(), 0)
    assert (found["blocks"], found["of_blocks"], found["evaluations"]) == (2, 4, 1)
    assert found["seconds"] == pytest.approx(2 * found["measured"]["seconds"])
    assert "multiplied by 2" in notes[-1]
    work = step_flops.chunk(config())
    assert found["flops"] == sum(step_flops.forward(config().dit, work).values())
    assert not step_parts.backbone(step_parts.Bench(1, True, notes.append), config(), 4)["fits"]  # as asked, or not


# ---- the peer --------------------------------------------------------------------------------------------------------


def test_a_peer_that_cannot_run_says_so_in_a_line(tmp_path):
    with pytest.raises(PeerError, match="ended with status 1"):
        Peer("false", SPEC)
    stub = tmp_path / "python"  # an interpreter without torch
    stub.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -c \'import sys; sys.modules["torch"] = None; '
                    'path, spec = sys.argv[1:]; sys.argv = [path, spec]; import runpy; '
                    'runpy.run_path(path, run_name="__main__")\' "$@"\n')  # fmt: skip
    stub.chmod(0o755)
    with pytest.raises(PeerError, match="No module named '(torch|diffusers)|torch") as caught:
        Peer(str(stub), SPEC)
    assert "\n" not in str(caught.value)


def test_the_peer():
    python = os.environ.get("LPM_TORCH_PYTHON", sys.executable)
    wanted = "from importlib.util import find_spec as f; raise SystemExit(not (f('torch') and f('diffusers')))"
    if subprocess.run([python, "-c", wanted]).returncode:
        pytest.skip("needs torch and diffusers; LPM_TORCH_PYTHON names a Python that has them")
    peer = Peer(python, SPEC)
    assert peer.facts["way"].startswith("eager") and not peer.facts["notes"]
    assert peer(2) > 0
    assert peer.close() == {"peak_memory": None}


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--remat some", "--remat: expected of none, dots, names, offload, full, found some"),
        ("--remat ,", "--remat: expected of none, dots, names, offload, full, found none"),
        ("--skip all", "--skip: expected of block, train, found all"),
        ("--skip train,block", "--skip train,block: expected a part to measure, found none"),
        ("--batch 0", "--batch: expected at least 1, found 0"),
        ("--attention flash", "--attention: expected xla, cudnn or splash, found 'flash'"),
        ("--torch-python nowhere", "--torch-python nowhere: expected a Python interpreter, found none"),
        ("--blocks 3", "expected an even number up to 4, found 3"),
        ("--blocks 6", "expected an even number up to 4, found 6"),
        ("--stage online.causal", "--latents: expected a multiple of a chunk, 3, found 2"),
        ("--stage nothing", "--stage: expected one of base.speak"),
        ("--config nowhere.py", "config nowhere.py: expected a Python file"),
        ("--backbone nowhere.py", "config nowhere.py: expected a Python file"),
    ],
)
def test_bad_input_is_a_line(monkeypatch, words, line):
    monkeypatch.setattr(sys, "argv", ["train_step", *WORDS, *words.split()])
    with pytest.raises(InputError, match=line) as caught:
        train_step.main()
    assert "\n" not in str(caught.value)


def test_results_of_another_kind_are_not_touched(tmp_path, monkeypatch):
    path = tmp_path / "train_step_cpu.json"
    path.write_text('{"figures": []}\n')
    monkeypatch.setattr(sys, "argv", ["train_step", *WORDS, "--skip", "train", "--out", str(tmp_path)])
    with pytest.raises(InputError, match="expected runs of this benchmark"):
        train_step.main()
    assert path.read_text() == '{"figures": []}\n'


def measured(monkeypatch, folder: Path, *words: str) -> dict:
    """The command's last run. It may name no path of this machine."""
    monkeypatch.setattr(sys, "argv", ["train_step", *WORDS, "--torch-python", "false", "--out", str(folder), *words])
    assert train_step.main() == 0
    text = (folder / "train_step_cpu.json").read_text()
    assert str(folder) not in text and str(CONFIG) not in text
    return json.loads(text)["runs"][-1]


@pytest.mark.slow
def test_the_step_from_end_to_end(tmp_path, monkeypatch, capsys):
    found = measured(monkeypatch, tmp_path, "--skip", "block")
    assert "train, remat names: MFU, of the measured peak" in capsys.readouterr().out
    assert {"command", "date", "commit", "versions", "device", "preset", "train"} <= found.keys()
    assert found["command"].startswith("python -m benchmarks.train_step --config lpm_1b.py --stage base.speak")
    assert {"jax", "jaxlib", "optax"} <= found["versions"].keys() and found["device"]["kind"] == "cpu"
    (step,) = found["train"]
    assert step["fits"] and step["whole"] and step["attention"] == "xla" and step["flash_calls"] == 0
    assert np.isfinite(step["loss"]) and step["steps"] >= 4 and step["batch"] == 1
    assert step["flops"]["hardware"] > step["flops"]["model"] and step["hfu"] > step["mfu"] > 0
    assert step["fastest"] <= step["seconds"] <= step["slowest"] and step["rounds"] == 2
    low, high = (step["flops"]["model"] / s / p for s, p in (
        (step["slowest"], max(step["peak"]["rounds"])), (step["fastest"], min(step["peak"]["rounds"]))
    ))  # fmt: skip
    assert low <= step["mfu"] <= high
    assert step["tokens"] == (2 + 2) * 6 == pytest.approx(step["tokens_per_second"] * step["seconds"])
    assert step["memory"]["total"] > step["memory"]["arguments"] > 0


@pytest.mark.slow
def test_a_block_without_a_peer(tmp_path, monkeypatch, capsys):
    """A line says why; the run joins the file's others."""
    (tmp_path / "train_step_cpu.json").write_text('{"runs": [{"command": "earlier"}]}\n')
    found = measured(monkeypatch, tmp_path, "--skip", "train")
    assert "block: no peer: ended with status 1 (--torch-python" in capsys.readouterr().err
    (block,) = found["block"]
    assert block["peer"] is None and block["ours"]["seconds"] > 0 and block["no_peer"] == "ended with status 1"
    assert block["tokens"] == (2 + 2) * 6 and "train" not in found
    runs = json.loads((tmp_path / "train_step_cpu.json").read_text())["runs"]
    assert len(runs) == 2 and runs[0] == {"command": "earlier"}


def test_a_part_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("no\nluck")

    monkeypatch.setattr(step_parts, "block", fail)
    monkeypatch.setattr(step_parts, "train", lambda *_: {"fits": False})
    monkeypatch.setattr(sys, "argv", ["train_step", *WORDS, "--out", str(tmp_path)])
    assert train_step.main() == 1
    assert "block: failed: ValueError: no luck" in capsys.readouterr().err
    (run,) = json.loads((tmp_path / "train_step_cpu.json").read_text())["runs"]
    assert run["block"] == [{"error": "ValueError: no luck"}] and run["train"] == [{"fits": False}]
