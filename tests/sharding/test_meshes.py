"""Training on any mesh equals training on one device, in the declared layouts, with the collectives that we know."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden" / "collectives.json"
SMALL = ["--train.optimizer", "adamw", "--dit.depth", "2"]
MATRIX = [
    "fsdp=8", "context=4", "tensor=4", "ring=4", "fsdp=4,tensor=2", "fsdp=2,context=4", "fsdp=2,context=2,tensor=2",
    "ring=2,context=2,tensor=2", "replica=2,fsdp=2,tensor=2",
]  # fmt: skip


def runs(stage: str, steps: int, options: list[str], meshes: list[str]) -> dict[str, dict]:
    return told("train_on", stage, str(steps), *options, "--", *meshes)


def told(module: str, *words: str) -> dict[str, dict]:
    """The lines of JSON that a module beside this one prints, by mesh."""
    command = [sys.executable, "-m", f"tests.sharding.{module}", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {line["mesh"]: line for line in map(json.loads, done.stdout.splitlines())}


def compare(found: dict[str, dict]) -> None:
    one = found.pop("fsdp=1")
    assert one["losses"][-1] < 0.9 * max(one["losses"])  # it learns
    for mesh, run in found.items():
        np.testing.assert_allclose(run["losses"], one["losses"], rtol=1e-5, err_msg=mesh)
        assert run["params"] < 1e-5 and run["ema"] < 1e-5, mesh
        assert 0 < run["change"] < 2e-4, mesh  # of what training changed; weights hardly move in twenty steps
        assert run["wrong"] == [], mesh
        assert run["cut"] > 20, mesh  # arrays of the optimiser


@pytest.fixture(scope="module")
def three_axes() -> dict[str, dict]:
    return runs("online.causal", 20, SMALL, ["fsdp=2,context=2,tensor=2"])


@pytest.mark.slow
def test_three_axes_equal_one_device(three_axes):
    compare(dict(three_axes))


def golden_key() -> str:
    return "jax " + ".".join(jax.__version__.split(".")[:2])


@pytest.mark.slow
def test_collectives_are_those_that_were_reviewed(three_axes):
    """``python -m tests.sharding.test_meshes`` writes the file anew: look at what changed, and why."""
    golden = json.loads(GOLDEN.read_text())
    if golden_key() not in golden:
        pytest.skip(f"no golden collectives for {golden_key()}: compilers differ")
    for mesh, want in golden[golden_key()].items():
        if mesh in three_axes:
            assert three_axes[mesh]["collectives"] == want, mesh


@pytest.mark.slow
def test_distillation_on_a_mesh_equals_one_device():
    """Rollouts, judges and both updates: of what two steps change, a few parts in a hundred thousand differ."""
    one, mesh = told("duel_on", "2", "fsdp=2,context=2,tensor=2").values()
    np.testing.assert_allclose(mesh["losses"], one["losses"], rtol=1e-5)
    assert one["losses"][0][0] != one["losses"][1][0]  # it moves
    assert all(0 < apart < 1e-3 for apart in mesh["apart"])
    assert mesh["wrong"] == [] and mesh["cut"] > 20 > one["cut"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, options",
    [
        ("online.causal", SMALL),
        ("base.speak", ["--train.optimizer", "muon", "--train.accumulate", "2", "--train.remat", "full"]),
        ("base.speak", [*SMALL, "--train.remat", "dots", "--dit.prediction", "velocity"]),
    ],
    ids=["causal adamw", "base muon accumulated", "velocity"],
)
def test_every_mesh_equals_one_device(stage, options):
    found = runs(stage, 20, options, MATRIX if stage == "online.causal" else MATRIX[-4:])
    if "adamw" in options and stage == "online.causal":
        golden = json.loads(GOLDEN.read_text()).get(golden_key(), {})
        for mesh, want in golden.items():
            assert found[mesh]["collectives"] == want, mesh
    compare(found)


def write_golden() -> None:
    found = runs("online.causal", 0, SMALL, MATRIX)
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    golden[golden_key()] = {mesh: run["collectives"] for mesh, run in found.items() if mesh != "fsdp=1"}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    write_golden()
