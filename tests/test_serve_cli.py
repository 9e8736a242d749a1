"""serve.py from the outside: bad input is one line and the right status before JAX starts; a file is what was asked."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import serve
from lpm_jax.errors import InputError
from lpm_jax.media import load_audio
from tests.serving.fake_pipeline import Chunk, FakePipeline
from tests.test_media import tone, write_wav

ROOT = Path(__file__).parents[1]
# Runs serve.py as a script and reports on stdout whether JAX had been imported when it ended.
DOOR = """
import runpy, sys
sys.path.insert(0, {root!r})
sys.argv = ["serve.py", *sys.argv[1:]]
try:
    runpy.run_path({script!r}, run_name="__main__")
finally:
    print("jax" if "jax" in sys.modules else "no jax")
"""


@pytest.fixture
def files(tmp_path):
    Image.new("RGB", (200, 240), "orange").save(tmp_path / "me.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "dot.png")
    (tmp_path / "text.png").write_text("no picture")
    write_wav(tmp_path / "a.wav", [tone(1.3, 24_000)], 24_000)
    write_wav(tmp_path / "b.wav", [tone(2.1, 16_000)], 16_000)
    write_wav(tmp_path / "three.wav", [tone(1, 24_000)[:3]], 24_000)
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF\0\0\0\0WAVEfmt " + b"\xff" * 500)
    (tmp_path / "empty.wav").write_bytes(b"")
    return tmp_path


def door(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    code = DOOR.format(root=str(ROOT), script=str(ROOT / "serve.py"))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )


BAD = {
    "missing picture": (["--image", "none.png"], "none.png"),
    "not a picture": (["--image", "text.png"], "text.png"),
    "no face-sized image": (["--image", "dot.png"], "no face-sized image"),
    "missing sound": (["--speak", "none.wav"], "none.wav"),
    "corrupt sound": (["--speak", "corrupt.wav"], "corrupt.wav"),
    "empty sound": (["--speak", "empty.wav"], "empty.wav"),
    "three samples": (["--speak", "three.wav"], "3 samples"),
    "bad listen": (["--listen", "corrupt.wav"], "corrupt.wav"),
    "long prompt": (["--prompt", "x" * 100_000], "2,000 characters"),
    "unknown option": (["--imagine", "x"], "--imagine"),
    "seed": (["--seed", "one"], "--seed"),
    "negative seed": (["--seed", "-1"], "--seed"),
    "steps": (["--steps", "0"], "--steps"),
    "model": (["--model", "nothing-here"], "--model"),
    "reference kind": (["--reference", "view/up=me.png"], "--reference"),
    "reference file": (["--reference", "view/left=none.png"], "none.png"),
    "reference twice": (["--reference", "view/left=me.png", "--reference", "view/left=me.png"], "twice"),
    "output ending": (["--out", "talk.avi"], ".mp4"),
    "output folder": (["--out", "nowhere/talk.mp4"], "nowhere"),
    "silence and speech": (["--silent-seconds", "3"], "--silent-seconds"),
    "empty name": (["--speak", ""], "expected a file"),
    "together in a file": (["--together", "--sessions", "2"], "--together: expected without --out"),
    "together and a mesh": (["--together", "--decoder", "1"], "--together: expected on one device"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(files, case):
    arguments, word = BAD[case]
    began = time.monotonic()
    ran = door(files, "--out", "talk.mp4", "--image", "me.png", "--speak", "a.wav", *arguments)
    assert ran.returncode == 2, ran
    lines = ran.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("serve.py: error: ") and word in lines[0], ran.stderr
    assert ran.stdout.splitlines()[-1] == "no jax"
    assert time.monotonic() - began < 20
    assert not (files / "talk.mp4").exists()


def test_port_in_use(files):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = door(files, "--image", "me.png", "--port", str(port))
    assert ran.returncode == 2 and ran.stdout.splitlines()[-1] == "no jax"
    assert len(ran.stderr.splitlines()) == 1 and str(port) in ran.stderr and "free port" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "slots"), [([], 0), (["--sessions", "3"], 0), (["--sessions", "3", "--together"], 3)]
)
def test_sessions_share_when_asked(monkeypatch, arguments, slots):
    asked = []
    monkeypatch.setattr("lpm_jax.Pipeline.from_pretrained", lambda *args: asked.append(args))
    serve.load_pipeline(serve.parse(arguments))
    assert asked == [("toy", None, {}, "", 0, slots)]  # "": main has parsed it


@pytest.mark.parametrize(
    ("arguments", "word"), [(["--port", "70000"], "--port"), (["--host", "no.such.host.invalid"], "--host")]
)
def test_bad_address(files, arguments, word):
    ran = door(files, "--image", "me.png", *arguments)
    assert ran.returncode == 2 and len(ran.stderr.splitlines()) == 1 and word in ran.stderr


def test_help():
    ran = door(ROOT, "--help")
    assert ran.returncode == 0 and "--silent-seconds" in ran.stdout and not ran.stderr


# --- files, with the stand-in for the model


def write(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(serve, "load_pipeline", lambda model: FakePipeline(0.0))
    monkeypatch.setattr(sys, "argv", ["serve.py", *arguments])
    serve.main()


def video_frames(path: Path) -> int:
    with av.open(str(path)) as box:
        return sum(1 for _ in box.decode(video=0))


def test_file(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    write(
        monkeypatch, "--out", "talk.mp4", "--image", "me.png", "--speak", "a.wav", "--prompt", "smiles", "--seed", "3"
    )
    assert video_frames(files / "talk.mp4") == 32  # 1.3 s = 31.2 frames
    text = capsys.readouterr().out
    for words in ("compiled in", "time to first frame", "x real time", "talk.mp4: 1.33 s, 32 frames at 24 fps"):
        assert words in text


def test_listen_only_and_mixing(files, monkeypatch):
    monkeypatch.chdir(files)
    write(monkeypatch, "--out", "l.mp4", "--image", "me.png", "--listen", "b.wav")
    assert video_frames(files / "l.mp4") == 51 and np.abs(load_audio("l.mp4")).max() < 1e-3
    write(monkeypatch, "--out", "m.mp4", "--image", "me.png", "--speak", "a.wav", "--listen", "b.wav", "--mix-listen")
    mixed = load_audio("m.mp4")
    assert video_frames(files / "m.mp4") == 51
    assert 0.1 < np.abs(mixed[36_000:48_000]).max() < 0.3  # only the partner is left by then


def test_idle(files, monkeypatch):
    monkeypatch.chdir(files)
    write(monkeypatch, "--out", "idle.mp4", "--image", "me.png", "--silent-seconds", "2")
    assert video_frames(files / "idle.mp4") == 48
    for seconds in ("nan", "0", "-3"):
        with pytest.raises(InputError, match="--silent-seconds"):
            write(monkeypatch, "--out", "none.mp4", "--image", "me.png", "--silent-seconds", seconds)


def test_failed_run_leaves_no_file(files, monkeypatch):
    monkeypatch.chdir(files)
    monkeypatch.setattr(FakePipeline, "stream", lambda *_, **__: iter(()))
    with pytest.raises(RuntimeError, match="0 of 32"):
        write(monkeypatch, "--out", "talk.mp4", "--image", "me.png", "--speak", "a.wav")
    assert not list(files.glob("*talk*"))


def test_options_that_need_a_file(files, monkeypatch):
    monkeypatch.chdir(files)
    with pytest.raises(InputError, match="--listen"):
        write(monkeypatch, "--listen", "b.wav")


def test_a_run_that_is_told_to_stop_leaves_no_file(files, monkeypatch):
    monkeypatch.chdir(files)

    def stream(*_, **__):
        yield Chunk(np.zeros((12, 128, 128, 3), np.uint8), 0.0, "silence", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        yield Chunk(np.zeros((12, 128, 128, 3), np.uint8), 0.5, "silence", 0.0)

    monkeypatch.setattr(FakePipeline, "stream", stream)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt):
            write(monkeypatch, "--out", "talk.mp4", "--image", "me.png", "--speak", "a.wav")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list(files.glob("*talk*"))


def test_a_silent_day_takes_no_memory():
    silence, _ = serve.tracks(serve.parse(["--silent-seconds", "86400"]))
    assert len(silence) == 86_400 * 24_000 and silence.base.nbytes == 4
