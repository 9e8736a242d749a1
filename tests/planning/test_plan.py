"""The planner's door, its memory, its reports and its sweep."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from lpm_jax import plan as door
from lpm_jax import sharding
from lpm_jax.config import MeshConfig, TrainConfig
from lpm_jax.errors import InputError
from lpm_jax.planning import analytic, memory, report, sweep, topology
from lpm_jax.planning.hlo import Collective, Count, Kernel
from lpm_jax.planning.hlo_text import Shape
from lpm_jax.planning.kernels import add, operations
from lpm_jax.planning.memory import Memory
from lpm_jax.planning.network import Pod, places
from lpm_jax.planning.programs import CHUNK, Program, attention_flops, model_flops, stage_config
from lpm_jax.planning.roofline import roofline
from lpm_jax.planning.traffic import Traffic
from lpm_jax.training.abstract import train_program
from tests.planning.eight import ROOT
from tests.tiny import CONFIG

CONFIG_FILE = """
import dataclasses
from tests.tiny import CONFIG

def get_config():
    train = dataclasses.replace(CONFIG.train, optimizer="adamw", dtype="bfloat16", remat="full", batch=8, latents=3)
    dit = dataclasses.replace(CONFIG.dit, heads=4)
    return dataclasses.replace(CONFIG, dit=dit, train=train, stages={"base.speak": {}, "vae": {}, "audio": {}})
"""
STAGED = dataclasses.replace(
    CONFIG,
    dit=dataclasses.replace(CONFIG.dit, heads=4),
    train=TrainConfig(batch=16, latents=4, optimizer="adamw", dtype="bfloat16", remat="full", token_keep=1.0),
    stages={"base.speak": {}, "online.causal": {"latents": 6}, "online.ode": {"latents": 6}, "online.refine": {}},
)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG_FILE)
    return path


def run(*words, check: bool = True) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "lpm_jax.plan", *map(str, words)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert not check or done.returncode == 0, done.stderr
    return done


# ---- the door --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_streaming_step_from_the_command_line(config_file, tmp_path):
    out = tmp_path / "plan.json"
    done = run(config_file, "--stage", "chunk", "--topology", "h100:4", "--mesh", "fsdp=1,tensor=4", "--json", out)
    assert "the cache is updated in place" in done.stdout and "estimate from simulated CPU devices" in done.stdout
    data = json.loads(out.read_text())
    assert data["command"].startswith("python -m lpm_jax.plan") and data["versions"]["jax"]
    assert data["fits"] and data["estimate"] and data["mesh"]["tensor"] == 4
    # Keys and values: 4 blocks, 4 references and 2 chunks of 3, 4 patches, heads cut over tensor, bfloat16.
    cache = 2 * 4 * (4 + 2 * 3) * 4 * 32 * 2 // 4
    assert data["memory"]["arguments"]["cache"] == cache <= data["memory"]["aliased"]
    assert {row["axes"] for row in data["collectives"]} == {"tensor"}
    # Two evaluations of four blocks, four sums each.
    assert sum(row["times"] for row in data["collectives"] if "/dot_general" in row["where"]) == 2 * 4 * 4
    assert data["step_seconds"]["overlapped"] <= data["step_seconds"]["serial"]


@pytest.mark.slow
def test_a_training_step_and_its_sweep_from_the_command_line(config_file, tmp_path):
    out = tmp_path / "plan.json"
    words = ["--stage", "base.speak", "--topology", "cpu:4", "--chip", "v5e", "--json", out]
    run(config_file, *words, "--mesh", "fsdp=2,context=2", "--batch", 4)
    data = json.loads(out.read_text())
    assert data["settings"]["batch"] == 4 and data["settings"]["remat"] == "full"
    parts = data["memory"]["arguments"]
    assert parts["optimiser"] == pytest.approx(2 * parts["weights"], rel=0.01) and parts["average"] == parts["weights"]
    done = run(config_file, *words, "--sweep", "--compile", 1)
    data = json.loads(out.read_text())
    assert "RECOMMENDED" in done.stdout and "recommended: --mesh" in done.stdout
    assert data["recommended"] and sum(c["plan"] is not None for c in data["candidates"]) == 1


@pytest.mark.parametrize(
    ("stage", "pod", "more", "complaint"),
    [
        ("chunk", "v5p", "", "expected CHIP:SIZES such as v5p:4x4x4"),
        ("chunk", "a100:8", "", "expected a chip of v5e, v5p, v6e, 7x, h100, h200, b200, found 'a100'"),
        ("chunk", "v5p:4x4", "", "expected 3 sizes for v5p, such as 4x4x4, found 'v5p:4x4'"),
        ("chunk", "cpu:8", "", "expected --chip too, one of v5e, v5p"),
        ("base.shout", "h100:4", "", "--stage: expected chunk or one of base.speak, vae, audio, found 'base.shout'"),
        ("vae", "h100:4", "", "expected chunk or a diffusion stage"),
        ("audio", "h100:4", "", "expected chunk or a diffusion stage"),
        ("chunk", "h100:4", "--mesh fsdp=3", "expected axes whose product is 4 devices"),
        ("chunk", "h100:4", "--mesh data=4", "--mesh: expected AXIS=SIZE with an axis of replica, fsdp"),
        ("base.speak", "h100:4", "--remat some", "train.remat: expected one of none, dots"),
        ("base.speak", "h100:4", "--train.batch x", "--train.batch: expected int, found 'x'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(config_file, monkeypatch, stage, pod, more, complaint):
    monkeypatch.setattr(topology, "prepare", lambda where: None)  # it sets the environment of this process
    words = ["plan", str(config_file), "--stage", stage, "--topology", pod, *more.split()]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(InputError) as error:
        door.main()
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_bad_input_is_one_line(config_file):
    done = run(config_file, "--stage", "chunk", "--topology", "v5p", check=False)
    assert done.returncode == 2 and not done.stdout and len(done.stderr.strip().splitlines()) == 1


def test_meshes_are_read():
    assert door.parse_mesh("fsdp=16,context=4") == MeshConfig(fsdp=16, context=4)
    assert door.parse_mesh("tensor=8") == MeshConfig(fsdp=-1, tensor=8)
    with pytest.raises(InputError, match="found 'tensor'"):
        door.parse_mesh("tensor")


def test_topologies_are_read():
    found = topology.parse("2*v6e:4x4", estimate=True)
    assert (found.devices, found.chips, found.slices, found.compiler) == (32, 32, 2, "cpu")
    assert topology.parse("tpu7x:2x2x1", estimate=True).devices == 8  # two devices a chip
    assert topology.parse("h100:2x8").devices == 16


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (26.09G) exceeds "
        "available HBM (15.75G).",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 26.09G of "
        "15.75G hbm. Exceeded hbm capacity by 10.34G.",
        "INTERNAL: E1000: CompileTimeHbmOom: 26.09G > 15.75G",
    ],
)
def test_what_does_not_fit_is_a_plan(words):
    """libtpu's errors, in three versions' words."""
    found = memory.exceeded(Program(None, (), ()), RuntimeError(words), 1e9)
    assert found.total == round(26.09 * 2**30) and found.limit == round(15.75 * 2**30) and not found.fits
    assert report.verdict(found) == "does not fit: needs 26.09 GiB, has 15.75 GiB per device"
    assert memory.exceeded(Program(None, (), ()), RuntimeError("INVALID_ARGUMENT: mesh"), 1e9) is None


def test_estimates_of_what_is_stored():
    """Weights, average and two moments in float32, those with an ``embed`` axis cut over fsdp and context."""
    config = stage_config(STAGED, "base.speak", "cpu")
    config = dataclasses.replace(config, dit=dataclasses.replace(config.dit, warp=0))  # its tables are on every device
    whole = analytic.memory(config, "base.speak", sizes(), 1e9).arguments
    cut = analytic.memory(config, "base.speak", sizes(fsdp=4, context=2), 1e9).arguments
    assert whole["optimiser"] == 2 * whole["weights"] == 2 * whole["average"]
    assert whole["weights"] / 8 < cut["weights"] < whole["weights"] / 4
    more = [
        analytic.memory(remat(config, r), "base.speak", sizes(), 1e9).total for r in ("full", "names", "dots", "none")
    ]
    assert more == sorted(more) and more[0] < more[-1]


def remat(config, policy):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, remat=policy))


def sizes(**axes) -> dict[str, int]:
    return {"replica": 1, "fsdp": 1, "ring": 1, "context": 1, "tensor": 1} | axes


# ---- operations ------------------------------------------------------------------------------------------------------


def test_kernels():
    """The masks come first among splash's operands; keys are longer than queries."""
    masks = (Shape("s8", (1, 4, 4)),) * 2
    q, k = Shape("bf16", (2, 8, 512, 128)), Shape("bf16", (2, 8, 1024, 128))
    forward = Kernel("tpu_custom_call", "x/splash_mha_fwd_segmented_residuals/pallas_call", (*masks, q, k, k), (q,))
    product = 2 * 2 * 8 * 512 * 1024 * 128
    assert operations(forward) == ("bf16", 2 * product)
    assert operations(forward._replace(label="x/splash_mha_dkv_no_residuals/pallas_call"))[1] == 4 * product
    assert operations(forward._replace(label="x/splash_mha_dq_no_residuals/pallas_call"))[1] == 3 * product
    count = Count(kernels=Counter({forward: 3, Kernel("my_kernel", "y", (), ()): 2}))
    assert add(count) == {"my_kernel": 2} and count.flops == {"bf16": 6 * product}


def test_what_a_model_needs():
    """References see references only; a causal student sees what came before, twice."""
    base, causal = (stage_config(STAGED, s, "cpu") for s in ("base.speak", "online.causal"))
    width, depth, patches = 32, 4, 4
    assert attention_flops(base, "base.speak") == 4 * 16 * (4 * 4 + 4 * 2 + 2 * 2) * patches**2 * width * depth
    seen = 3 * 3 + 3 * 6  # two chunks of three frames
    assert attention_flops(causal, "online.causal") == 4 * 16 * (seen + 6 * 2 + 4) * patches**2 * width * depth
    ode = stage_config(STAGED, "online.ode", "cpu")
    assert model_flops(ode, "online.ode") == model_flops(causal, "online.causal")  # each learns from two passes
    with pytest.raises(InputError, match="--stream.refine: expected T2"):
        train_program(stage_config(STAGED, "online.refine", "cpu"), "online.refine", sharding.make_mesh(MeshConfig()))
    chunk = stage_config(STAGED, CHUNK, "cpu")
    assert model_flops(chunk, CHUNK) == 2 * (model_flops(chunk, CHUNK) // 2)  # two evaluations


# ---- reports ---------------------------------------------------------------------------------------------------------


def made(config, fits: bool = True, seconds: float = 1.0, need: float = 1.0) -> report.Plan:
    """A plan of a program that computes for ``seconds`` on four v5e chips."""
    where = topology.parse("v5e:2x2", estimate=True)
    mesh = {k: (v if v > 0 else 1) for k, v in dataclasses.asdict(config.mesh).items()}
    pod = Pod(where.chip, mesh, (2, 2, 1), places(where.chip, (2, 2)))
    count = Count(Counter(bf16=round(seconds * where.chip.flops)), Traffic(10**9, 0))
    axis = next((name for name, n in mesh.items() if n > 1), None)
    if axis:
        label = "jit(step)/transpose(jvp())/while/body/closed_call/checkpoint/Block/ffn_out/dot_general"
        count.collectives[Collective("all-reduce", (axis,), mesh[axis], 2**20, "bf16", "all-reduce.1", label)] = 7
    needs = Memory({"weights": 2**30}, 2**20, 0, 0, round(need * 2**30), round(2**30 * (2 if fits else 0.5)))
    line = roofline(count, pod)
    return report.Plan(
        where,
        "small",
        "base.speak",
        mesh,
        {"remat": config.train.remat},
        needs,
        10**12,
        count,
        line,
        report.rows(count, pod),
    )


def test_reports():
    plan = made(dataclasses.replace(STAGED, mesh=MeshConfig(fsdp=4)))
    data = report.to_json(plan)
    assert json.loads(json.dumps(data)) == data
    row = data["collectives"][0]
    assert (row["where"], row["times"], row["axes"]) == ("backward ffn_out/dot_general", 7, "fsdp")
    assert data["collective_bytes_sent_per_device"]["fsdp"] == 7 * 2 * 2**20 * 3 / 4
    text = report.table(plan)
    assert "fits: needs 1.00 GiB, has 2.00 GiB per device" in text and "bound by compute" in text
    assert f"{report.size(2**20)}      7" in text
    lacking = dataclasses.replace(plan, count=None, roofline=None, memory=plan.memory._replace(limit=2**29))
    text = report.table(lacking)
    assert "does not fit: needs 1.00 GiB, has 0.50 GiB per device" in text and "not compiled" in text
    assert "step_seconds" not in report.to_json(lacking)


# ---- the sweep -------------------------------------------------------------------------------------------------------

WHERE = topology.parse("v5e:2x2", estimate=True)


def test_meshes_of_a_pod():
    found = list(sweep.meshes(8, 2))
    assert all(m["replica"] == 2 and m["fsdp"] * m["ring"] * m["context"] * m["tensor"] == 4 for m in found)
    assert len(found) == 10 and len({tuple(m.values()) for m in found}) == 10  # 2^2 over four axes


def test_the_fastest_that_fits_is_recommended():
    """The second to be compiled is the fastest, the third does not fit."""
    asked = []

    def compile(config):
        asked.append(config)
        return made(config, fits=len(asked) != 3, seconds=0.5 if len(asked) == 2 else 1.0)

    config = stage_config(STAGED, "base.speak", "cpu")
    best, found = sweep.sweep(config, "base.speak", WHERE, compile, most=3)
    assert len(asked) == 4 and best.plan.roofline.compute == pytest.approx(0.5, rel=0.01)
    compiled = [c for c in found if c.plan]
    assert [c.reason.split(":")[0] for c in compiled] == [
        f"slower than {best.name}",
        "",
        "does not fit",
        f"slower than {best.name}",
    ]
    # They were asked for in the order of their estimates, and everything else says why not.
    assert [c.seconds for c in compiled] == sorted(c.seconds for c in compiled)
    assert all(c.reason for c in found if c is not best)
    text = sweep.table(best, found)
    assert "RECOMMENDED" in text and f"--remat {best.remat}" in text
    # 16 clips and 4 patches: no mesh of four devices cuts 4 heads by tensor x context = 16.
    assert any("estimated slower" in c.reason for c in found)


def test_nothing_fits():
    config = stage_config(STAGED, "base.speak", "cpu")
    best, found = sweep.sweep(config, "base.speak", WHERE, lambda c: made(c, fits=False), most=2)
    assert best is None and sum(c.plan is not None for c in found) == 4
    assert "nothing fits: use more or larger chips" in sweep.table(best, found)


def test_what_cannot_be_cut_says_so():
    """Three heads: no tensor axis; a stream is one clip."""
    odd = dataclasses.replace(STAGED, dit=dataclasses.replace(STAGED.dit, heads=1))
    found = sweep.candidates(stage_config(odd, "base.speak", "cpu"), "base.speak", WHERE)
    tensor = [c for c in found if c.mesh["tensor"] > 1]
    assert tensor and all("expected a divisor of dit.heads, 1" in c.reason for c in tensor)
    found = sweep.candidates(stage_config(STAGED, CHUNK, "cpu"), CHUNK, WHERE)
    assert all("a stream is one clip" in c.reason for c in found if c.mesh["fsdp"] > 1)
    assert not found[0].reason


def test_a_model_that_is_too_large_is_not_compiled():
    huge = dataclasses.replace(STAGED, dit=dataclasses.replace(STAGED.dit, width=2**16, ffn=2**18))
    config = stage_config(huge, "base.speak", "cpu")
    best, found = sweep.sweep(config, "base.speak", WHERE, lambda c: pytest.fail("compiled"), most=2)
    assert best is None and any(c.reason.startswith("does not fit: estimated") for c in found)
