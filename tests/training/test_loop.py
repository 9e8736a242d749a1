"""The training loop: what it writes, and that stopping and going on changes nothing."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.checkpoint import load_weights
from lpm_jax.config import from_dict
from lpm_jax.training.curves import Progress
from lpm_jax.training.loop import run_stage
from tests.training import toy_stage

ROOT = Path(__file__).parents[2]


def records(workdir: Path, kind: str = "loss") -> dict[int, dict]:
    """The lines of ``metrics.jsonl`` by step."""
    lines = [json.loads(line) for line in (workdir / "toy" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if kind in line}


def curves(workdir: Path) -> dict[int, tuple]:
    return {at: (r["loss"], r["gradient_norm"], r["first"]) for at, r in records(workdir).items()}


def config(**changes):
    return dataclasses.replace(toy_stage.CONFIG, train=dataclasses.replace(toy_stage.CONFIG.train, **changes))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Twelve steps without a stop: the folder and the finished weights."""
    workdir = tmp_path_factory.mktemp("straight")
    return workdir, run_stage(toy_stage.make(), toy_stage.CONFIG, workdir)


class Stop(Exception):
    """What a test stops a run with."""


def stop_at(step: int):
    """A ``validate`` that ends the run at ``step`` the first time."""

    def validate(params, directory):
        if directory.name == f"{step:06d}":
            raise Stop
        return {"norm": 0.0}

    return validate


def test_the_loss_falls_and_everything_is_written(straight):
    workdir, weights = straight
    loss = [r["loss"] for r in records(workdir).values()]
    assert len(loss) == 12 and np.mean(loss[-3:]) < 0.5 * np.mean(loss[:3])
    assert {"speed/seconds_per_step", "speed/data_wait"} <= set(records(workdir)[1])
    assert list(records(workdir, "validation")) == [4, 8, 12]
    directory = workdir / "toy"
    loaded = load_weights(directory / "weights", "model", weights)
    np.testing.assert_array_equal(loaded["layer"]["kernel"], weights["layer"]["kernel"])
    assert from_dict(json.loads((directory / "config.json").read_text())) == toy_stage.CONFIG
    assert list((directory / "tensorboard").iterdir())
    assert sorted(p.name for p in (directory / "checkpoints").iterdir()) == ["10", "12"]  # the newest two


def test_the_same_seed_takes_the_same_steps(straight, tmp_path):
    again = run_stage(toy_stage.make(), toy_stage.CONFIG, tmp_path)
    assert curves(tmp_path) == curves(straight[0])
    jax.tree.map(np.testing.assert_array_equal, again, straight[1])
    run_stage(toy_stage.make(), config(seed=1), tmp_path / "other")
    assert curves(tmp_path / "other") != curves(straight[0])


@pytest.mark.parametrize("stop", [4, 7, 11])
def test_resuming_equals_going_on(straight, tmp_path, stop, capsys):
    """Stopped at 4 nothing is saved yet, at 7 step 5 is, at 11 step 10: the same batches, losses and weights."""
    with pytest.raises(Stop):
        run_stage(toy_stage.make(validate=stop_at(stop)), config(validate_every=1), tmp_path)
    assert set(curves(tmp_path)) == set(range(1, stop + 1))
    resumed = run_stage(toy_stage.make(), toy_stage.CONFIG, tmp_path)
    printed = capsys.readouterr().out
    assert f"resumed at step {5 * (stop // 5)}" in printed if stop > 5 else "resumed" not in printed
    assert curves(tmp_path) == curves(straight[0])
    jax.tree.map(np.testing.assert_array_equal, resumed, straight[1])


def test_a_finished_run_is_left_alone(straight, capsys):
    workdir, weights = straight
    before = curves(workdir)
    again = run_stage(toy_stage.make(), toy_stage.CONFIG, workdir)
    assert "resumed at step 12" in capsys.readouterr().out
    assert curves(workdir) == before
    jax.tree.map(np.testing.assert_array_equal, again, weights)


def test_a_longer_run_goes_on_from_the_shorter(straight, tmp_path):
    run_stage(toy_stage.make(), config(steps=5), tmp_path)
    run_stage(toy_stage.make(), config(steps=8), tmp_path)
    assert set(curves(tmp_path)) == set(range(1, 9))
    first = [r["first"] for r in records(tmp_path).values()]
    assert first == [r["first"] for r in records(straight[0]).values()][:8]  # the data went on, not from the start


def test_every_so_many_steps_take_the_other_loss(tmp_path):
    def other(params, batch, key):
        value, metrics = toy_stage.loss(params, batch, key)
        return value, metrics | {"first": jnp.float32(-1)}

    run_stage(toy_stage.make(other_loss=other, other_every=3), config(steps=7), tmp_path)
    assert [at for at, line in records(tmp_path).items() if line["first"] == -1] == [3, 6]
    run_stage(toy_stage.make(), config(steps=7), tmp_path / "alone")
    assert not [at for at, line in records(tmp_path / "alone").items() if line["first"] == -1]


def test_frozen_leaves_stay(tmp_path):
    def frozen(params):
        return {"layer": {"kernel": False, "bias": True}}

    start = {"layer": {"kernel": jnp.full((6, 3), 0.1), "bias": jnp.full(3, 0.7)}}
    weights = run_stage(toy_stage.make(params=start, frozen=frozen), config(steps=3, ema=0.0), tmp_path)
    np.testing.assert_array_equal(weights["layer"]["bias"], np.full(3, np.float32(0.7)))
    assert np.abs(weights["layer"]["kernel"] - 0.1).max() > 1e-3


def test_finish_and_validate_see_the_average(tmp_path):
    seen = []

    def validate(params, directory):
        seen.append(params)
        assert directory == tmp_path / "toy" / "validation" / "000003"
        return {}

    def finish(params):
        jax.tree.map(np.testing.assert_array_equal, params, seen[-1])
        return {"sum": params["layer"]["kernel"] + 1.0}

    weights = run_stage(toy_stage.make(validate=validate, finish=finish), config(steps=3, validate_every=3), tmp_path)
    np.testing.assert_array_equal(load_weights(tmp_path / "toy" / "weights", "model")["sum"], weights["sum"])


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    def loss(params, batch, key):
        value, metrics = toy_stage.loss(params, batch, key)
        return value * jnp.nan, metrics

    with pytest.raises(FloatingPointError, match=r"^toy: loss is nan at step 1$"):
        run_stage(toy_stage.make(loss=loss), toy_stage.CONFIG, tmp_path)
    assert not (tmp_path / "toy" / "weights").exists()


def start(workdir: Path, pause: float) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.training.toy_stage", str(workdir), "20", str(pause)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_killed_at_random_and_restarted_it_ends_alike(tmp_path):
    whole = start(tmp_path / "whole", 0.0)
    stop = int(np.random.default_rng(time.time_ns()).integers(4, 18))
    print(f"killed after step {stop} of 20")
    child = start(tmp_path / "killed", 0.2)
    for line in child.stdout:
        if line.startswith(f"toy {stop}/20"):
            break
    child.kill()
    assert child.wait() == -9
    assert not (tmp_path / "killed" / "toy" / "weights").exists()
    again = start(tmp_path / "killed", 0.0)
    output = again.communicate()[0]
    assert again.returncode == 0, output
    assert "resumed at step" in output
    assert whole.communicate()[0] and whole.returncode == 0
    assert curves(tmp_path / "killed") == curves(tmp_path / "whole")
    ours, theirs = (load_weights(tmp_path / name / "toy" / "weights", "model") for name in ("killed", "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_plain_progress_lines(capsys):
    progress = Progress("vae", 100, 200)
    assert progress.bar is None  # no terminal here
    progress.show(150, {"loss": 0.25, "psnr": 31.0})
    progress.note("step 150 validation")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("vae 150/200  loss 0.25  psnr 31  left 0.0 min")
    assert lines[1] == "vae step 150 validation"


def test_the_curves_have_each_step_once(straight, tmp_path):
    """What a resumed run writes again, and a line that a kill cut off, are dropped first."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n{"step": 2, "validation": {}}\n{"step": 3, "loss": 1}\n{"step": 4, "lo')
    with open_log(path, 2) as log:
        log.write("new\n")
    assert path.read_text() == '{"step": 1, "loss": 2}\n{"step": 2, "validation": {}}\nnew\n'
    with pytest.raises(Stop):
        run_stage(toy_stage.make(validate=stop_at(7)), config(validate_every=1), tmp_path)
    run_stage(toy_stage.make(), toy_stage.CONFIG, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "toy" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
