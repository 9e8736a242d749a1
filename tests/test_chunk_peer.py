"""The game with a peer: how it is played and told when it fails, and that PyTorch computes the same."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks import chunk_peer
from benchmarks.peer import Peer, find_torch, play, summary
from lpm_jax import pretrained
from lpm_jax.errors import InputError
from lpm_jax.pipeline import Pipeline
from tests import tiny

CONFIG = dataclasses.replace(tiny.CONFIG, vae=dataclasses.replace(tiny.CONFIG.vae, decoder_blocks=2))
READY = {"modes": ["eager", "compiled"], "failed": {}, "torch": "2", "threads": 1}


def speaker(tmp_path: Path, *answers: object) -> list[str]:
    """The command of a process that says each of ``answers``, the first at once, the others when spoken to."""
    lines = [answer if isinstance(answer, str) else json.dumps(answer) for answer in answers]
    script = tmp_path / "peer.py"
    script.write_text(f"for line in {lines!r}:\n    print(line, flush=True)\n    input()\n")
    return [sys.executable, str(script)]


def turn(*seconds: float, **parts: float) -> dict:
    return {"seconds": list(seconds), "cpu": [2 * s for s in seconds]} | ({"parts": parts} if parts else {})


class Ours:
    def __init__(self):
        self.log: list[str] = []

    def go(self) -> dict:
        self.log.append("ours")
        return turn(0.1, 0.1)


def test_turns_interleave_and_go_back(tmp_path):
    ours = Ours()
    with Peer(speaker(tmp_path, READY, *[turn(float(i), audio=1.0) for i in range(4)])) as peer:
        real = peer.go
        peer.go = lambda mode: (ours.log.append(mode), real(mode))[1]
        turns = play(ours, peer, 2)
    assert peer.process.returncode is not None
    assert ours.log == ["ours", "eager", "compiled", "compiled", "eager", "ours"]
    assert [t["seconds"] for t in turns["eager"]] == [[0.0], [3.0]]
    assert [t["seconds"] for t in turns["compiled"]] == [[1.0], [2.0]]


@pytest.mark.parametrize(
    "answer, told", [({"error": "no"}, "the peer: no"), ("what?", "found 'what\\?'"), (None, "ended with status 0")]
)
def test_a_peer_that_fails_is_told(tmp_path, answer, told):
    answers = [READY] if answer is None else [READY, answer]
    with Peer(speaker(tmp_path, *answers)) as peer, pytest.raises(RuntimeError, match=told):
        peer.go("eager")


def test_a_peer_that_does_not_begin_is_told():
    with pytest.raises(RuntimeError, match="status 3"):
        Peer([sys.executable, "-c", "raise SystemExit(3)"])


def test_summary():
    turns = {
        "ours": [turn(0.1, 0.1), turn(0.3, 0.1)],
        "eager": [turn(0.2, 0.2, audio=0.5), turn(0.2, 0.2, audio=0.7)],
        "compiled": [turn(0.1, 0.2, audio=0.1), turn(0.2, 0.1, audio=0.1)],
    }
    found = summary(turns, chunk_seconds=0.5)
    assert found["milliseconds"] == {"ours": 100, "eager": 200, "compiled": 150}
    assert found["cpu_milliseconds"]["eager"] == 400
    assert found["times_real_time"]["ours"] == 5
    assert found["ratio"] == found["cpu_ratio"] == {"eager": 2, "compiled": 1.5}
    assert (found["peer"], found["result"]) == ("compiled", 1.5)
    assert found["ratio_within_rounds"]["eager"] == [1.25, 1.5, 1.75]  # 2 and 1
    assert found["parts_milliseconds"]["eager"] == {"audio": 600}
    assert found["rounds_milliseconds"]["ours"] == [100, 200]
    json.dumps(found, allow_nan=False)
    turns["eager"][0]["cpu"] = turns["eager"][1]["cpu"] = [0.05, 0.05]
    found = summary(turns, 0.5, "cpu")
    assert (found["of"], found["peer"], found["result"]) == ("processor's time", "eager", 0.25)
    assert found["ratio"]["eager"] == 2


@pytest.mark.parametrize("python", ["/nowhere/python", "/", "true", sys.executable])
def test_a_bad_interpreter_is_one_line(python, monkeypatch):
    monkeypatch.setattr("benchmarks.peer.NEEDS", "nothing_that_exists")
    with pytest.raises(InputError, match="--torch-python .*: expected a Python with torch.*, found") as caught:
        find_torch(python)
    assert "\n" not in str(caught.value)


def test_the_door_refuses_before_anything_is_loaded(monkeypatch):
    for arguments in (["--torch-python", "/nowhere"], ["--torch-python", "/nowhere", "--rounds", "0"], []):
        monkeypatch.setattr(sys, "argv", ["chunk_peer", *arguments])
        with pytest.raises(InputError, match="expected a Python|at least one round|required: --torch-python"):
            chunk_peer.main()


class Played:
    """Stands for the peer in :func:`chunk_peer.main`: gives our own results back, takes a millisecond."""

    ready = READY | {"modes": ["eager"], "failed": {"compiled": "no compiler"}}

    def __init__(self, command: list[str], environment: dict[str, str]):
        folder = Path(command[-1])
        assert set(load_file(folder / "check.safetensors")) == {"speak", "listen", "noise", "life"}
        assert json.loads((folder / "setting.json").read_text())["config"]["height"] == 32
        Played.environment = environment
        save_file({"latents": Played.given.latents, "frames": Played.given.frames}, folder / "eager.safetensors")

    def go(self, mode: str) -> dict:
        return turn(0.001, audio=0.001)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("load, judged", [(0.0, True), (99.0, False)])
def test_the_file_says_what_was_measured(pipeline, given, load, judged, tmp_path, monkeypatch, capsys):
    Played.given = given
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(chunk_peer, "Peer", Played)
    monkeypatch.setattr(chunk_peer, "give", lambda *_: given)
    monkeypatch.setattr(chunk_peer, "find_torch", lambda python: python)
    monkeypatch.setattr(chunk_peer.Pipeline, "from_pretrained", lambda *_: pipeline)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    python = str(tmp_path / "python")
    arguments = ["--torch-python", python, "--rounds", "2", "--chunks", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["chunk_peer", *arguments])
    assert chunk_peer.main() == 0
    text = (tmp_path / "chunk_peer_float32.json").read_text()
    found = json.loads(text)
    assert python not in text
    assert {"jax", "torch"} <= set(found["versions"])
    assert found["not_run"] == {"compiled": "no compiler"}
    assert found["equality"]["eager"]["levels"] == 0
    assert set(found["parts_milliseconds"]) == {"eager", "ours"}
    assert found["load"]["in the last"] == load and found["busy"] is not judged
    assert (found["result"] is not None) is judged
    assert len(found["rounds_milliseconds"]["ours"]) == 2
    assert (Played.environment.get("OMP_WAIT_POLICY") == "PASSIVE") is not judged
    said = capsys.readouterr().out
    assert "torch compiled: not run: no compiler" in said
    assert ("not judged" in said) is not judged


# --- the step itself ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(CONFIG, tiny.params(CONFIG))


@pytest.fixture(scope="module")
def given(pipeline) -> chunk_peer.Given:
    samples = (chunk_peer.LEAD + chunk_peer.CHECKED) * 12_000
    return chunk_peer.give(pipeline, tiny.picture(), tiny.sound(samples, 1), tiny.sound(samples, 2, 0.1))


def test_what_is_given_goes_on_as_the_stream_does(pipeline, given):
    ours = chunk_peer.Ours(pipeline, given, chunks=1)
    assert len(ours.go()["seconds"]) == 1
    assert int(ours.state.chunk) == chunk_peer.LEAD + 2 and int(given.state.chunk) == chunk_peer.LEAD
    assert given.frames.dtype == np.uint8 and given.frames.shape == (3, 12, 32, 32, 3)
    assert given.noise.shape == (3, 2, 3, 4, 32)
    assert given.latents.std() > 0.1
    assert set(ours.parts(1)) == {"audio", "transformer", "decoder"}


def test_results_that_differ_are_not_timed(given, tmp_path):
    same = {"latents": given.latents, "frames": given.frames}
    save_file(same, tmp_path / "same.safetensors")
    assert chunk_peer.compare(given, tmp_path, ["same"])["same"]["levels"] == 0
    save_file(same | {"latents": given.latents + 2e-3}, tmp_path / "off.safetensors")
    with pytest.raises(RuntimeError, match="torch off: expected latents within 0.001"):
        chunk_peer.compare(given, tmp_path, ["same", "off"])
    save_file(same | {"latents": given.latents * np.nan}, tmp_path / "nan.safetensors")
    with pytest.raises(RuntimeError, match="torch nan"):
        chunk_peer.compare(given, tmp_path, ["nan"])


@pytest.fixture(scope="module")
def torch_python() -> str:
    """``LPM_TORCH_PYTHON``, or this interpreter where it has torch."""
    try:
        return find_torch(os.environ.get("LPM_TORCH_PYTHON", sys.executable))
    except InputError as error:
        pytest.skip(str(error))


def test_torch_computes_the_same(pipeline, given, torch_python, tmp_path):
    """The real peer, eager only (compiling takes a minute), on a small model; and its side of the protocol."""
    pretrained.save(tmp_path / "model", CONFIG, pipeline.params, jnp.float32)
    setting = chunk_peer.setting(pipeline, tmp_path / "model", 2) | {"modes": ["eager"], "threads": 1}
    (tmp_path / "setting.json").write_text(json.dumps(setting))
    chunk_peer.save(tmp_path, given)
    with Peer([torch_python, "-m", "benchmarks.torch_chunk", str(tmp_path)]) as peer:
        assert peer.ready["modes"] == ["eager"] and peer.ready["threads"] == 1
        found = chunk_peer.compare(given, tmp_path, ["eager"])["eager"]
        assert found["latents"] < 1e-4
        made = peer.go("eager")
        assert len(made["seconds"]) == 2 and min(made["seconds"]) > 0
        assert sum(made["parts"].values()) <= np.mean(made["seconds"])
        with pytest.raises(RuntimeError, match="expected go eager, found 'go fast'"):
            peer.go("fast")
    assert load_file(tmp_path / "eager.safetensors")["frames"].shape == given.frames.shape
