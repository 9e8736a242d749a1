"""Processes find each other by what the environment says, read their own rows, and take the steps of one."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lpm_jax import distributed
from lpm_jax.errors import InputError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("environment, several", [
    ({}, False),
    ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, False),  # the batch script itself, outside srun
    ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, True),
    ({"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, False),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ({"TPU_WORKER_HOSTNAMES": "job-0.net,job-1.net"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_COORDINATOR_ADDRESS": "job-0.net"}, True),
])  # fmt: skip
def test_launchers(environment, several):
    assert distributed.launched(environment) == several


@pytest.mark.parametrize("values, message", [
    (("host:1", "2", ""), "expected all three, found no LPM_PROCESS_ID$"),
    (("", "", "1"), "expected all three, found no LPM_COORDINATOR and no LPM_PROCESSES$"),
    (("host:1", "2", "2"), "found LPM_COORDINATOR=host:1 LPM_PROCESSES=2 LPM_PROCESS_ID=2$"),
    (("host:1", "two", "0"), "expected HOST:PORT, a number of processes and one below it, found .*LPM_PROCESSES=two"),
    (("host", "2", "0"), "expected HOST:PORT.*LPM_COORDINATOR=host "),
])  # fmt: skip
def test_half_an_address_is_refused(monkeypatch, values, message):
    for name, value in zip(distributed.VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        distributed.initialize()


def test_alone_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(distributed, "launched", lambda environment: False)
    distributed.initialize()  # would raise: the backend has long started
    with pytest.raises(InputError, match="^--distributed: expected LPM_COORDINATOR, .*, found: "):
        distributed.initialize(wanted=True)


def test_alone_everything_is_simple():
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    assert distributed.primary() and distributed.batch_rows(sharding, 6) == tuple(range(6))
    distributed.barrier("nobody to wait for")
    assert [distributed.everywhere(value) for value in (True, False)] == [True, False]
    agreement = distributed.Agreement(mesh, 2)
    assert [agreement(value) for value in (False, True)] == [False, True]  # at once
    batch = distributed.put_batch({"x": np.arange(6.0)}, sharding)
    whole = distributed.fetch({"a": batch, "b": np.ones(2)})
    assert isinstance(whole["a"]["x"], np.ndarray) and whole["a"]["x"].tolist() == list(range(6))
    placed = distributed.place({"x": np.arange(6.0)}, {"x": sharding})
    assert placed["x"].sharding == sharding and placed["x"].tolist() == list(range(6))
    assert distributed.fetch(whole, keep=False) == {"a": {"x": None}, "b": None}


@pytest.mark.parametrize("devices, parts, rows", [
    ((0, 1), 4, (0, 1, 2, 3)),
    ((1, 3), 4, (2, 3, 6, 7)),  # not neighbours in the mesh
    ((0, 2), 2, (0, 1, 2, 3)),  # both hold the same rows, as devices along a ring do
])  # fmt: skip
def test_rows_are_those_of_the_process_own_devices(devices, parts, rows):
    """Four devices over ``parts`` parts of the batch."""

    def index(shape):
        size = shape[0] // parts
        return {d: (slice(d % parts * size, (d % parts + 1) * size),) for d in range(4)}

    sharding = SimpleNamespace(
        num_devices=4,
        devices_indices_map=index,
        addressable_devices_indices_map=lambda shape: {d: index(shape)[d] for d in devices},
    )
    assert distributed.batch_rows.__wrapped__(sharding, 8) == rows
    with pytest.raises(InputError, match=f"--train.batch: expected a multiple of the mesh's {parts} parts, found 7"):
        distributed.batch_rows.__wrapped__(sharding, 7)


def start(workdir: Path, *arguments: str, devices: int, processes: int = 1) -> list[subprocess.Popen]:
    """Processes of the toy stage that each have ``devices``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
    }
    children = []
    for index in range(processes):
        values = (f"127.0.0.1:{port}", str(processes), str(index))
        several = dict(zip(distributed.VARIABLES, values, strict=True)) if processes > 1 else {}
        command = [sys.executable, "-m", "tests.training.toy_stage", str(workdir), *arguments]
        children.append(
            subprocess.Popen(
                command, cwd=ROOT, env=os.environ | common | several, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
    return children


def wait_for(child: subprocess.Popen, beginning: str) -> None:
    for line in child.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(f"ended without {beginning!r}")


def finish(children: list[subprocess.Popen], status: int = 0) -> list[str]:
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [status] * len(children), "\n".join(outputs)
    return outputs


def curve(workdir: Path) -> dict[int, tuple]:
    lines = [json.loads(line) for line in (workdir / "toy" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: (line["loss"], line["first"], line["gradient_norm"]) for line in lines if "loss" in line}


def assert_alike(ours: Path, theirs: Path) -> None:
    ours, theirs = curve(ours), curve(theirs)
    assert ours.keys() == theirs.keys()
    for at in ours:
        np.testing.assert_allclose(ours[at], theirs[at], rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [[], ["--mesh.fsdp", "1", "--mesh.context", "8"]])
def test_two_processes_take_the_steps_of_one(tmp_path, mesh):
    """Two of four devices each, as one of eight: each with half of the rows, or both with all. The first writes."""
    both = start(tmp_path / "two", "12", "0", *mesh, devices=4, processes=2)
    first, second = finish(both)
    assert "toy 12/12" in first and "toy " not in second
    finish(start(tmp_path / "one", "12", "0", *mesh, devices=8))
    assert_alike(tmp_path / "two", tmp_path / "one")
    assert len(list((tmp_path / "two" / "toy" / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_one_goes_on(tmp_path):
    both = start(tmp_path / "run", "12", "0.4", devices=4, processes=2)
    wait_for(both[0], "toy 4/12")
    both[1].send_signal(signal.SIGTERM)
    for output in finish(both, 75):
        assert "and saved; the same command goes on from there" in output
    (stopped,) = [line for line in output.splitlines() if "stopped at step" in line]
    step = int(stopped.split("stopped at step ")[1].split()[0])
    assert 4 <= step < 12
    (output,) = finish(start(tmp_path / "run", "12", "0", devices=2))
    assert f"toy resumed at step {step}" in output
    finish(start(tmp_path / "whole", "12", "0", devices=1))
    assert_alike(tmp_path / "run", tmp_path / "whole")
    again = finish(start(tmp_path / "run", "14", "0", devices=2, processes=2))  # and two from where one was
    assert "toy resumed at step 12" in again[0]
