"""Lanes and layouts on 8 simulated devices equal one device."""

import dataclasses
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from lpm_jax.config import MeshConfig
from lpm_jax.errors import InputError
from lpm_jax.pipeline import Pipeline
from lpm_jax.streaming.generator import chunk_samples
from lpm_jax.streaming.lanes import Lanes
from lpm_jax.streaming.layout import spread
from tests import tiny


@pytest.mark.slow
def test_every_layout_equals_one_device():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.streaming.lanes_on"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ways = [json.loads(line) for line in done.stdout.splitlines()]
    assert [way["refiner"] for way in ways] == [False] * 7 + [True] * 4
    for way in ways:
        assert way["frames"] <= 1  # rounding
        assert way["cache"] < 1e-5 * way["scale"]
        assert way["taken back"] and set(way["compiled"]) == {1}
        assert way["sharded"] == bool(way["mesh"])
        for lane in (
            "generator",
            *["refiner"] * way["refiner"],
            "vae",
        ):  # each worked on every chunk, in order, one at a time
            runs = [run for run in way["runs"] if run[0] == lane]
            assert [chunk for _, chunk, _, _ in runs] == list(range(6)) or [c for _, c, _, _ in runs][:5] == [*range(5)]
            assert all(a[3] <= b[2] + 1e-9 for a, b in zip(runs, runs[1:], strict=False))


@pytest.mark.slow
def test_pipelines_on_meshes_equal_one_device():
    command = [sys.executable, "-m", "tests.streaming.lanes_on", "pipelines"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ways = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(way["refiner"], way["devices"]) for way in ways] == [(False, 8), (True, 6)]
    for way in ways:
        assert way["file"] <= 1 and way["live"] <= 1  # rounding
        assert way["frames"] == [70, 64, 64, 3]
        assert way["again"] and way["prompt heard"] and way["sharded"]


@pytest.mark.parametrize(
    "mesh, decoder, message",
    [
        ({"tensor": 3}, None, "mesh: tensor x context is 3: expected a divisor of dit.heads, 2"),
        ({"context": 3}, None, "mesh: ring x context is 3: expected a divisor of a frame's patches, 4"),
        ({}, 3, "VAE: expected devices that divide 4 columns, found 3"),
    ],
)
def test_what_does_not_divide_is_named(mesh, decoder, message):
    one = jax.devices()[0]
    with pytest.raises(InputError, match=message):
        Lanes(
            tiny.CONFIG,
            {},
            [one] * max([1, *mesh.values()]),
            MeshConfig(**({"fsdp": 1} | mesh)),
            [one] * (decoder or 1),
        )


@pytest.mark.parametrize(
    "mesh, decoder, count, found",
    [
        ({"tensor": 2}, 2, 8, ([0, 1], [2, 3], [6, 7])),
        ({"tensor": 2, "context": 2}, 2, 8, ([0, 1, 2, 3], None, [6, 7])),  # two are left: too few for a Refiner's own
        ({"tensor": 4}, 0, 4, ([0, 1, 2, 3], None, [0])),
        ({}, 0, 1, ([0], None, [0])),
    ],
)
def test_devices_are_dealt_out(mesh, decoder, count, found):
    config = dataclasses.replace(tiny.CONFIG, stream=dataclasses.replace(tiny.CONFIG.stream, refine=0.4))
    assert spread(config, list(range(count)), MeshConfig(**({"fsdp": 1} | mesh)), decoder) == found
    assert spread(tiny.CONFIG, list(range(count)), MeshConfig(**({"fsdp": 1} | mesh)), decoder).refiner is None


def test_too_few_devices_are_named():
    with pytest.raises(InputError, match="--mesh, --decoder: expected at most the 4 devices there are, found 4 and 1"):
        spread(tiny.CONFIG, [0, 1, 2, 3], MeshConfig(fsdp=1, tensor=4), 1)
    with pytest.raises(InputError, match="--mesh: expected axes tensor, context and ring"):
        spread(tiny.CONFIG, [0, 1, 2, 3], MeshConfig(fsdp=2, tensor=2), 0)


def test_a_lane_that_stalls_is_named_and_ends_its_stream_alone():
    pipe = Pipeline(tiny.CONFIG, tiny.params())
    lanes = Lanes(tiny.CONFIG, pipe.params, jax.devices()[:1])
    sound = np.zeros((1, chunk_samples(tiny.CONFIG)), np.float32)
    stream = lanes.open(pipe.open(tiny.picture())._state)
    want = stream.step(sound, sound).get()
    decode, go_on = lanes._decode, threading.Event()

    def stalled(*given):
        go_on.wait(60)
        return decode(*given)

    lanes._decode, lanes.limit = stalled, 0.3
    began = time.monotonic()
    chunk = stream.step(sound, sound)
    for ask in (chunk.get, stream.step(sound, sound).get, stream.before):
        with pytest.raises(RuntimeError, match=r"the vae lane stalled: chunk 1 was not there within 0.3 s"):
            ask()
    assert time.monotonic() - began < 10
    lanes._decode, lanes.limit = decode, 60.0
    go_on.set()
    again = lanes.open(pipe.open(tiny.picture())._state)
    np.testing.assert_array_equal(again.step(sound, sound).get(), want)
    with pytest.raises(RuntimeError, match="the vae lane stalled"):  # it does not come back
        stream.step(sound, sound).get()
    for each in (stream, again):
        each.close()


def test_a_lane_that_fails_is_heard_where_its_frames_are_asked_for():
    pipe = Pipeline(tiny.CONFIG, tiny.params())
    lanes = Lanes(tiny.CONFIG, pipe.params, jax.devices()[:1])
    sound = np.zeros((1, chunk_samples(tiny.CONFIG)), np.float32)
    ours, theirs = (lanes.open(pipe.open(tiny.picture(), seed=seed)._state) for seed in (0, 1))
    want = theirs.step(sound, sound).get()
    decode = lanes._decode

    def broken(*_):
        raise RuntimeError("no decoder today")

    lanes._decode = broken
    chunks = [ours.step(sound, sound) for _ in range(4)]  # more than may be on their way
    for chunk in chunks:
        with pytest.raises(RuntimeError, match="no decoder today"):
            chunk.get()
    lanes._decode = decode
    # The Generator went on meanwhile: what it would send now belongs to another moment than the decoder's state.
    with pytest.raises(RuntimeError, match="ended before chunk 4: no decoder today"):
        ours.step(sound, sound).get()
    with pytest.raises(RuntimeError, match="the stream has ended: no decoder today"):
        ours.before()
    again = lanes.open(pipe.open(tiny.picture(), seed=1)._state)
    np.testing.assert_array_equal(again.step(sound, sound).get(), want)
    for stream in (ours, theirs, again):
        stream.close()
