"""What is told of a run: means that leave out skipped steps, times that add up, curves, and pictures."""

import io
import json
import struct
import time

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from data_pipeline.video import encode_mp4
from lpm_jax.training import observe
from lpm_jax.training.curves import Curves, Progress, as_gif, keep_until
from lpm_jax.training.observe import AHEAD, SKIPS, Clock, Means, Observer


def board(directory) -> dict[str, list]:
    """Everything in TensorBoard's files by tag, as ``(step, value)``."""
    found: dict[str, list] = {}
    for path in sorted(directory.glob("events*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                what = value.image if value.HasField("image") else value.simple_value
                found.setdefault(value.tag, []).append((event.step, what))
    return found


def lines(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def metrics(loss: float, **more) -> dict:
    return {"loss": jnp.float32(loss)} | {name: jnp.asarray(value, jnp.float32) for name, value in more.items()}


def test_means_weigh_pairs_and_leave_out_what_is_not_finite():
    means = Means()
    means.add({"loss": np.float32(1), "x0/idle": np.array([6.0, 2.0]), "x0/speak": np.array([0.0, 0.0])})
    means.add({"loss": np.float32(3), "x0/idle": np.array([4.0, 8.0]), "x0/speak": np.array([0.0, 0.0])})
    means.add({"loss": np.float32("nan"), "x0/idle": np.array([np.inf, 1.0])})
    assert means.read() == (3, {"loss": 2.0, "x0/idle": 1.0})  # 10 / 10; nobody spoke
    assert means.read() == (0, {})


def test_the_clock_tells_parts_of_the_whole():
    clock = Clock()
    with clock("data"):
        time.sleep(0.02)
    with pytest.raises(KeyError), clock("save"):
        time.sleep(0.01)
        raise KeyError
    seconds, parts = clock.read()
    assert 0.02 <= parts["data"] < seconds and parts["save"] >= 0.01 and parts["data"] + parts["save"] <= seconds
    assert clock.read()[1] == {}


def test_a_step_is_told_of_when_later_ones_are_on_their_way(tmp_path, capsys):
    observer = Observer("toy", tmp_path, 0, 6, 1, 0.0)
    for at in range(1, 7):
        observer.step(at, metrics(at))
        assert [line["step"] for line in lines(tmp_path)] == list(range(1, at - AHEAD + 1))
    observer.flush()
    observer.close()
    assert [line["loss"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("toy ")]) == 6
    assert [value for _, value in board(tmp_path / "tensorboard")["train/loss"]] == [1, 2, 3, 4, 5, 6]


def test_names_in_tensorboard_and_means_over_a_window(tmp_path):
    observer = Observer("toy", tmp_path, 0, 4, 2, 0.0)
    for at in range(1, 5):
        with observer.clock("data"):
            time.sleep(0.002)
        more = {"gradient/dit": at, "x0/idle": [float(at), at % 2]}
        observer.step(at, metrics(at, **more))
    observer.flush()
    observer.close()
    assert [line["loss"] for line in lines(tmp_path)] == [1.5, 3.5]
    assert [line["x0/idle"] for line in lines(tmp_path)] == [3.0, 7.0]  # 1 + 2 over one frame, 3 + 4 over one
    found = board(tmp_path / "tensorboard")
    assert [step for step, _ in found["gradient/dit"]] == [2, 4]
    for name in ("seconds_per_step", "steps_per_second", "data_wait", "put", "dispatch", "log", "save"):
        assert f"speed/{name}" in found
    first = lines(tmp_path)[0]
    assert 0.002 <= first["speed/seconds_per_step"] < 1 and 0.05 < first["speed/data_wait"] <= 1
    assert "speed/tflops" not in found and "skipped" not in found


def test_speed_is_that_of_the_steps_without_saves_and_validations(tmp_path, monkeypatch):
    monkeypatch.setattr(observe, "peak", lambda kind: 8e9)
    observer = Observer("toy", tmp_path, 0, 2, 2, flops=4e8)
    for at in (1, 2):
        with observer.clock("validate"):
            time.sleep(0.1)
        time.sleep(0.05)
        observer.step(at, metrics(1))
    observer.flush()  # 0.3 s for two steps, of which 0.2 were a validation's
    observer.close()
    (line,) = lines(tmp_path)
    assert 0.05 <= line["speed/seconds_per_step"] < 0.1
    assert line["speed/tflops"] == pytest.approx(4e8 / line["speed/seconds_per_step"] / 1e12)
    assert line["speed/mfu"] == pytest.approx(line["speed/tflops"] * 1e12 / 8e9)


def test_skipped_steps_are_counted_and_left_out(tmp_path, capsys):
    observer = Observer("toy", tmp_path, 0, 8, 8, 0.0)
    for at in range(1, 9):
        observer.step(at, metrics(np.nan if at in (2, 3) else at, skipped=at in (2, 3, 6)))
    observer.flush()
    observer.close()
    (line,) = lines(tmp_path)
    assert line["skipped"] == 3 and line["loss"] == pytest.approx(np.mean([1, 4, 5, 6, 7, 8]))
    said = [text for text in capsys.readouterr().out.splitlines() if "skipped:" in text]
    assert said[0] == "toy step 2 skipped: its loss or gradients are not finite (1 so far)"
    assert [text.split()[2] for text in said] == ["2", "3", "6"]


@pytest.mark.parametrize("start, saved", [(0, "there is no checkpoint"), (40, "the last checkpoint is step 40")])
def test_many_skipped_steps_in_a_row_stop_the_run(tmp_path, start, saved):
    observer = Observer("toy", tmp_path, start, 100, 50, 0.0)
    at = start
    with pytest.raises(FloatingPointError) as caught:
        while True:
            at += 1
            assert at < start + 60
            observer.step(at, metrics(1, skipped=at != start + 9))  # nine do not matter where one works
    observer.close()
    assert at == start + 9 + SKIPS + AHEAD
    expected = (
        f"toy: loss or gradients are not finite in {SKIPS} steps in a row up to step {start + 9 + SKIPS}; {saved}"
    )
    assert str(caught.value) == expected


def test_what_a_validation_drew_is_shown(tmp_path):
    drawn = tmp_path / "validation" / "000004"
    drawn.mkdir(parents=True)
    Image.new("RGB", (30, 20), (255, 0, 0)).save(drawn / "sheet.png")
    clip = np.zeros((9, 32, 64, 3), np.uint8)
    clip[:, :, :32] = np.arange(255, 0, -30, dtype=np.uint8)[:, None, None, None]
    (drawn / "clip.mp4").write_bytes(encode_mp4(clip))
    curves = Curves(tmp_path, 0)
    curves.validation(4, {"mouth": 0.5}, drawn)
    curves.validation(8, {"mouth": 0.25}, tmp_path / "nothing drawn")
    curves.close()
    found = board(tmp_path / "tensorboard")
    assert found["validation/mouth"] == [(4, 0.5), (8, 0.25)]
    ((step, sheet),) = found["validation/sheet"]
    assert step == 4 and (sheet.width, sheet.height) == (30, 20)
    ((_, moving),) = found["validation/clip"]
    gif = Image.open(io.BytesIO(moving.encoded_image_string))
    assert gif.format == "GIF" and gif.n_frames == 5 and gif.size == (64, 32)
    assert np.asarray(gif.convert("L"))[16, [10, 50]].tolist() == pytest.approx([255, 0], abs=20)
    gif.seek(2)
    assert np.asarray(gif.convert("L"))[16, [10, 50]].tolist() == pytest.approx([135, 0], abs=20)  # every other frame
    assert lines(tmp_path) == [{"step": 4, "validation": {"mouth": 0.5}}, {"step": 8, "validation": {"mouth": 0.25}}]


def test_wide_clips_are_made_smaller():
    gif = Image.open(io.BytesIO(as_gif(np.zeros((3, 100, 2000, 3), np.uint8))))
    assert gif.size == (768, 38)


def test_resumed_curves_have_each_step_once(tmp_path):
    """What a resumed run writes again, and a line that a kill cut off, are dropped first."""
    path = tmp_path / "metrics.jsonl"
    text = '{"step": 1, "loss": 2}\n{"step": 2, "validation": {}}\n{"step": 3, "loss": 1}\n{"step": 4, "lo'
    path.write_text(text)
    curves = Curves(tmp_path, 2)
    curves.scalars(3, {"loss": 5.0})
    curves.close()
    assert curves.validations == {2}
    assert lines(tmp_path) == [{"step": 1, "loss": 2}, {"step": 2, "validation": {}}, {"step": 3, "loss": 5.0}]
    assert keep_until(tmp_path / "absent.jsonl", 3) == []


def test_plain_progress_lines(capsys):
    progress = Progress("vae", 100, 200)
    assert progress.bar is None  # no terminal here
    values = {"loss": 0.25, "psnr": 31.0, "gradient/dit": 2.0, "speed/seconds_per_step": 1.5, "speed/data_wait": 0.01}
    progress.show(150, values | {"speed/mfu": 0.4})
    progress.note("step 150 validation")
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "vae 150/200  loss 0.25  psnr 31  1.5 s/step  data wait 1.0 %  MFU 40.0 %  left 0.0 min",
        "vae step 150 validation",
    ]


@pytest.mark.parametrize("kind, speed", [
    ("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("TPU v5", 459e12), ("TPU v6 lite", 918e12),
    ("NVIDIA H100 80GB HBM3", 989.5e12), ("cpu", None),
])  # fmt: skip
def test_peaks(kind, speed):
    assert observe.peak(kind) == speed
