"""The training loop: what it writes, and that stopping and going on changes nothing."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.checkpoint import load_weights
from lpm_jax.errors import InputError, Paused
from lpm_jax.options import from_dict
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

    start = {"layer": {"kernel": jnp.full((8, 3), 0.1), "bias": jnp.full(3, 0.7)}}
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

    message = (
        r"^toy: loss or gradients are not finite in 10 steps in a row up to step 10; the last checkpoint is step 5$"
    )
    with pytest.raises(FloatingPointError, match=message):
        run_stage(toy_stage.make(loss=loss), toy_stage.CONFIG, tmp_path)
    assert not (tmp_path / "toy" / "weights").exists()


def test_a_step_that_is_not_finite_is_skipped_and_the_run_goes_on(straight, tmp_path, capsys):
    def loss(params, batch, key):
        value, metrics = toy_stage.loss(params, batch, key)
        bad = batch["index"][0] == int(records(straight[0])[6]["first"])  # step 6 of any run
        return jnp.where(bad, jnp.nan, value), metrics

    weights = run_stage(toy_stage.make(loss=loss), config(steps=8), tmp_path)
    found = records(tmp_path, "first")
    told = {at: ("loss" in line, line.get("skipped")) for at, line in found.items()}
    assert told == {at: (at != 6, 1.0 if at > 5 else None) for at in range(1, 9)}
    assert "toy step 6 skipped: its loss or gradients are not finite (1 so far)" in capsys.readouterr().out
    assert np.isfinite(weights["layer"]["kernel"]).all() and found[7]["loss"] < 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(straight, tmp_path, number, capsys):
    def validate(params, directory):
        if directory.name == "000007":
            os.kill(os.getpid(), number)
        return {"norm": 0.0}

    before = signal.getsignal(number)
    with pytest.raises(Paused, match="^toy: stopped at step 8 and saved; the same command goes on from there$"):
        run_stage(toy_stage.make(validate=validate), config(validate_every=1), tmp_path)
    assert signal.getsignal(number) is before
    assert sorted(p.name for p in (tmp_path / "toy" / "checkpoints").iterdir()) == ["5", "8"]
    assert set(curves(tmp_path)) == set(range(1, 9))  # what was under way was told of
    resumed = run_stage(toy_stage.make(), toy_stage.CONFIG, tmp_path)
    assert "resumed at step 8" in capsys.readouterr().out
    assert curves(tmp_path) == curves(straight[0])
    jax.tree.map(np.testing.assert_array_equal, resumed, straight[1])
    assert sorted(records(tmp_path, "validation")) == [*range(1, 9), 12]  # that of step 8 was made up for


def test_a_signal_in_the_last_step_ends_the_run_whole(tmp_path):
    def validate(params, directory):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(Paused, match="^toy: finished; the same command goes on with what comes after it$"):
        run_stage(toy_stage.make(validate=validate), config(steps=3), tmp_path)
    assert (tmp_path / "toy" / "weights").is_dir()
    run_stage(toy_stage.make(), config(steps=3), tmp_path)


def test_another_seed_or_other_data_are_refused(tmp_path):
    run_stage(toy_stage.make(), config(steps=2), tmp_path)
    written = (tmp_path / "toy" / "config.json").read_text()
    with pytest.raises(InputError, match="^--train.seed: expected 0 as in .*toy/checkpoints/2, found 1 "):
        run_stage(toy_stage.make(), config(steps=4, seed=1), tmp_path)
    with pytest.raises(InputError, match="^--data: expected '64 points' as in .*, found 'others' "):
        run_stage(toy_stage.make(fingerprint="others"), config(steps=4), tmp_path)
    assert (tmp_path / "toy" / "config.json").read_text() == written
    assert set(curves(tmp_path)) == {1, 2}


def test_a_broken_checkpoint_is_told_of_and_the_run_ends_alike(straight, tmp_path, capsys):
    with pytest.raises(Stop):
        run_stage(toy_stage.make(validate=stop_at(11)), config(validate_every=1), tmp_path)
    checkpoints = tmp_path / "toy" / "checkpoints"
    (checkpoints / "10" / "state" / "manifest.ocdbt").unlink()
    resumed = run_stage(toy_stage.make(), toy_stage.CONFIG, tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if "resumed" in line]
    assert said[0].startswith("toy resumed at step 5; checkpoint 10 cannot be read (")
    assert said[0].endswith(") and is now 10.broken")
    assert curves(tmp_path) == curves(straight[0])
    jax.tree.map(np.testing.assert_array_equal, resumed, straight[1])


def test_a_batch_that_cannot_be_split_is_refused(tmp_path, monkeypatch):
    def rows(sharding, batch):
        raise InputError("--train.batch: expected a multiple of the mesh's 3 parts, found 8")

    monkeypatch.setattr("lpm_jax.distributed.batch_rows", rows)
    with pytest.raises(InputError, match="--train.batch"):
        run_stage(toy_stage.make(), toy_stage.CONFIG, tmp_path)
    assert not (tmp_path / "toy").exists()


def test_a_trace_at_a_named_step_and_when_asked(tmp_path, capsys):
    def validate(params, directory):
        if directory.name == "000005":
            os.kill(os.getpid(), signal.SIGUSR1)
        return {}

    changes = {"steps": 9, "profile_at": 2, "validate_every": 1}
    run_stage(toy_stage.make(validate=validate), config(**changes), tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if "traced" in line]
    assert [line.split(": ")[0] for line in said] == ["toy steps 2 to 4 traced", "toy steps 6 to 8 traced"]
    for line in said:
        assert list(Path(line.split("--logdir ")[1]).glob("plugins/profile/*/*.xplane.pb"))
    assert sorted(curves(tmp_path)) == list(range(1, 10))


def test_waiting_for_data_is_told(tmp_path):
    run_stage(toy_stage.make(pause=0.1), config(steps=12, log_every=6, validate_every=12, save_every=12), tmp_path)
    line = records(tmp_path)[12]
    assert 0.5 < line["speed/data_wait"] <= 1 and line["speed/seconds_per_step"] > 0.05


def start(workdir: Path, pause: float, devices: int = 1) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.training.toy_stage", str(workdir), "20", str(pause)]
    # Compiled as a user's run is: sums of eight and of one device's shares are nearer to each other so.
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def at_random_steps(*ranges: tuple[int, int]) -> list[int]:
    seed = time.time_ns()
    rng = np.random.default_rng(seed)
    stops = [int(rng.integers(*bounds)) for bounds in ranges]
    print(f"seed {seed}: stopped around steps {stops} of 20")
    return stops


def wait_for(child: subprocess.Popen, step: int) -> None:
    for line in child.stdout:
        found = re.match(r"toy (\d+)/20", line)
        if found and int(found[1]) >= step:
            return
    raise AssertionError(f"ended before step {step}")


@pytest.mark.slow
def test_killed_at_random_and_restarted_it_ends_alike(tmp_path):
    whole = start(tmp_path / "whole", 0.0)
    (stop,) = at_random_steps((4, 18))
    child = start(tmp_path / "killed", 0.2)
    wait_for(child, stop)
    child.kill()
    assert child.wait() == -9
    assert not (tmp_path / "killed" / "toy" / "weights").exists()
    again = start(tmp_path / "killed", 0.0)
    output = again.communicate()[0]
    assert again.returncode == 0, output
    assert stop < 9 or "resumed at step" in output  # before that the first checkpoint may still have been on its way
    assert whole.communicate()[0] and whole.returncode == 0
    assert curves(tmp_path / "killed") == curves(tmp_path / "whole")
    ours, theirs = (load_weights(tmp_path / name / "toy" / "weights", "model") for name in ("killed", "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_stopped_and_killed_at_random_and_resumed_on_other_devices(tmp_path):
    """SIGTERM on eight devices, SIGKILL on four, SIGTERM on one, the end on two: the losses of an undisturbed run."""
    whole = start(tmp_path / "whole", 0.0, devices=8)
    stops = at_random_steps((2, 5), (10, 12), (15, 17))
    for stop, number, devices in zip(stops, (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM), (8, 4, 1), strict=True):
        child = start(tmp_path / "stopped", 0.4, devices)
        wait_for(child, stop)
        child.send_signal(number)
        output = child.communicate()[0]
        assert child.returncode == (75 if number == signal.SIGTERM else -9), output
        if number == signal.SIGTERM:
            assert output.splitlines()[-1].endswith("and saved; the same command goes on from there")
    again = start(tmp_path / "stopped", 0.0, devices=2)
    output = again.communicate()[0]
    assert again.returncode == 0 and "resumed at step" in output, output
    assert whole.communicate()[0] and whole.returncode == 0
    ours, theirs = curves(tmp_path / "stopped"), curves(tmp_path / "whole")
    assert sorted(ours) == sorted(theirs) == list(range(1, 21))
    for at in ours:
        np.testing.assert_allclose(ours[at], theirs[at], rtol=1e-6, atol=1e-7)


def test_the_curves_have_each_step_once(straight, tmp_path):
    with pytest.raises(Stop):
        run_stage(toy_stage.make(validate=stop_at(7)), config(validate_every=1), tmp_path)
    run_stage(toy_stage.make(), toy_stage.CONFIG, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "toy" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
