"""The benchmark's instruments: metrics with known answers, the reader on a sweep, the table on truth and a freeze."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import clips as clips_of
from benchmarks import toy, voices
from benchmarks.long_stream import long_stream
from benchmarks.report import Row, table
from lpm_jax.bench import signals as metrics
from lpm_jax.environment import environment
from lpm_jax.errors import InputError


def waves(count: int = 6, frames: int = 96, seed: int = 0) -> list[np.ndarray]:
    """Smooth signals in 0..1 that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, frames + 16))
    smooth = np.stack([np.convolve(row, np.hanning(9), "same")[8:-8] for row in noise])
    smooth -= smooth.min(1, keepdims=True)
    return list(smooth / smooth.max(1, keepdims=True))


def test_correlation_ignores_scale_and_a_clips_own_level():
    truth = waves()
    result = [0.3 * x + i for i, x in enumerate(truth)]
    assert metrics.pooled_correlation(result, truth) == pytest.approx(1)
    assert metrics.pooled_correlation([-x for x in result], truth) == pytest.approx(-1)
    assert metrics.pooled_correlation([np.ones(96)] * 6, truth) == 0


@pytest.mark.parametrize("lag", [-7, 0, 1, 12])
def test_best_lag_finds_a_shift_and_its_sign(lag):
    truth = waves(frames=120)
    late = [np.roll(x, lag) for x in truth]
    found, score = metrics.best_lag(late, truth)
    assert found == lag
    assert score == pytest.approx(1)


def test_signals_of_different_length_are_refused():
    with pytest.raises(ValueError, match="expected 96 frames, found 95"):
        metrics.pooled_correlation([x[:-1] for x in waves()], waves())


def test_amplitude_and_spread():
    truth = waves()
    assert metrics.amplitude_ratio([0.5 * x + 0.2 for x in truth], truth) == pytest.approx(0.5)
    assert metrics.spread_ratio([0.5 * x + 0.2 for x in truth], truth) == pytest.approx(0.5)


def test_stillness_is_zero_for_shut_mouths():
    assert metrics.stillness([np.zeros(9)], waves()) == 0
    assert metrics.stillness(waves(), waves()) == pytest.approx(1)


def test_the_wrong_sound_is_the_least_alike():
    a, b = waves(2)
    truth = [a, a, b, b]  # turned by one, half are the same; by two, none
    turn = metrics.least_alike(truth)
    scores = [abs(metrics.pooled_correlation(metrics.rotate(truth, k), truth)) for k in (1, 2, 3)]
    assert scores[turn - 1] == min(scores)
    assert metrics.rotate([1, 2, 3], 1) == [2, 3, 1]


def test_recall_counts_frames_of_those_who_have_it():
    logits = [np.array([1.0, 1, -1, -1]), np.array([5.0, 5, 5, 5]), np.array([-1.0, -1, -1, 2])]
    assert metrics.recall(logits, np.array([True, True, False])) == (0.75, 0.25)
    assert np.isnan(metrics.recall(logits, np.zeros(3, bool))[0])


def test_lab_of_known_colours():
    known = metrics.lab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]]))
    assert np.abs(known - [[100, 0, 0], [0, 0, 0], [53.2, 80.1, 67.2]]).max() < 0.2


def test_identity_knows_who_is_who():
    rng = np.random.default_rng(0)
    people = [np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((8, 8, 1))) for _ in range(5)]
    same = metrics.identity([x + 1 for x in people], people)
    assert same["nearest"] == 5
    assert same["ratio"] < 0.05
    assert metrics.identity(metrics.rotate(people, 1), people)["nearest"] == 0


def test_drift_is_the_largest_departure_from_the_first_minute():
    assert metrics.drift([5.0, 5.5, 4.0, 5.0]) == pytest.approx(0.2)


def test_blur_takes_sharpness():
    frames = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3)).astype(np.uint8)
    blurred = (frames[:, 1:] // 2 + frames[:, :-1] // 2).astype(np.uint8)
    assert metrics.sharpness(blurred) < 0.9 * metrics.sharpness(frames)


def test_table_says_what_passed():
    rows = [Row("good", 0.9, 0.1, 1.0, ">= 0.8"), Row("bad", 0.3, target="<= 0.1"), Row("unjudged", 3)]
    rows.append(Row("unmeasured", float("nan"), target="<= 1"))
    assert [r.passed for r in rows] == [True, False, None, False]
    lines = table(rows).splitlines()
    assert lines[1].split() == ["good", "0.100", "0.900", "1.000", ">=", "0.8", "pass"]
    assert lines[2].split()[-1] == "FAIL"
    assert lines[3].split() == ["unjudged", "-", "3", "-"]
    json.dumps([r.to_json() for r in rows], allow_nan=False)


def test_environment_names_no_host():
    import platform

    found = environment()
    assert found["cpu"] and found["versions"]["jax"]
    assert platform.node() not in json.dumps(found).split('"')


# --- with pictures -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader():
    pytest.importorskip("cv2")
    from lpm_jax.bench.instruments.reader import Reader

    return Reader.load()


def sweep(name: str, values: np.ndarray, characters: int = 6) -> list[np.ndarray]:
    """Held-out characters, each with one parameter swept: frames."""
    from data_pipeline.performers.character import sample_held_out_character
    from data_pipeline.performers.render import neutral_params, render
    from data_pipeline.schema import PARAM_INDEX

    params = neutral_params(len(values))
    params[:, PARAM_INDEX[name]] = values
    return [render(sample_held_out_character(500 + i), params) for i in range(characters)]


def test_reader_follows_the_mouth(reader):
    values = np.linspace(0, 1, 11)
    for frames in sweep("aperture", values):
        read = reader.read(frames).aperture
        assert metrics.correlation(read, values) > 0.9
        assert (np.diff(read[::2]) > 0).all()
        assert read[0] < 0.1


def test_reader_follows_the_head(reader):
    values = np.linspace(-8, 16, 9)
    for frames in sweep("pitch", values):
        read = reader.read(frames).pitch
        assert metrics.correlation(read, values) > 0.9
        assert np.abs(read - values).mean() < 4


def test_reader_refuses_other_sizes(reader):
    with pytest.raises(ValueError, match="expected 128 x 128"):
        reader.read(np.zeros((1, 64, 64, 3), np.uint8))


@pytest.fixture(scope="module")
def clips():
    pytest.importorskip("cv2")
    pytest.importorskip("espeakng_loader")
    return {kind: clips_of.build_clips(kind, 4, 3.0) for kind in ("speak", "listen")}


def test_clips_are_held_out_distinct_and_aligned(clips):
    from data_pipeline.performers.clip import frames_of

    voices = set()
    for kind, group in clips.items():
        for clip in group:
            record = clip.record
            assert record["kind"] == kind
            assert record["seed"] > 2**32  # no data set draws such a seed
            assert np.array_equal(clip.frames, frames_of(record)[1:])
            speak, listen = clips_of.tracks(clip, clip)
            assert len(clip.frames) * 1000 == len(speak) == len(listen)
            assert len(clip.truth("pitch")) == len(clip.frames)
            voices.add(record["voice"])
    assert len(voices) == 8
    assert len({json.dumps(c.character) for group in clips.values() for c in group}) == 8


class TruePipeline:
    """Streams the true video of whichever clip's sound it is given, in chunks like a model's."""

    def __init__(self, clips: dict[str, list[clips_of.Clip]]):
        self.clips = clips

    def stream(self, image, audio, listen, prompt, seed):
        from lpm_jax.pipeline import Chunk

        for kind, sound in (("speak", audio), ("listen", listen)):
            for clip in self.clips[kind]:
                if np.array_equal(clips_of.tracks(clip, clip)[kind == "listen"].astype(np.float32) / 32767, sound):
                    for i in range(0, len(clip.frames), 4):
                        yield Chunk(clip.frames[i : i + 4], i / 24, kind, 0.0)
                    return
        raise AssertionError("nobody's sound")


def verdicts(rows: list[Row], *names: str) -> list[bool]:
    return [r.passed for r in rows if r.passed is not None and any(r.name.startswith(n) for n in names)]


def test_the_true_video_passes_through_the_streaming_path(clips, reader, tmp_path):
    perform = toy.Streamer(TruePipeline(clips))
    rows, details, made = toy.measure(perform, clips["speak"], clips["listen"], reader)
    assert (
        verdicts(rows, "mouth: corr", "mouth: best", "mouth: ampl", "mouth: opening", "nods: corr", "nods: best")
        == [True] * 6
    )
    assert verdicts(rows, "identity: nearest") == [True]
    assert len(details) == 8
    assert len(perform.delays) == 16 and perform.played == pytest.approx(16 * len(clips["speak"][0].frames) / 24)
    by_name = {r.name: r for r in rows}
    assert (
        by_name["mouth: correlation within one frame"].result == by_name["mouth: correlation within one frame"].ceiling
    )
    assert by_name["picture: sharpness against truth"].result == pytest.approx(1)

    places = toy.choose(clips["speak"])
    assert len(set(places)) == 3
    shown = toy.picture([clips["speak"][i] for i in places], [made["speak"][i] for i in places])
    toy.save_sheet(tmp_path / "sheet.png", shown)
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def test_a_data_sets_own_clips_are_held_out_ones(tmp_path):
    pytest.importorskip("espeakng_loader")
    from data_pipeline.performers.builder import build, open_split
    from data_pipeline.performers.clip import frames_of, references_of

    build(tmp_path, clips=1, held_out=3, seed=5, seconds=0.5)
    records = open_split(tmp_path, "held_out")
    kinds = [records[i]["kind"].decode() for i in range(3)]
    (clip,) = clips_of.open_clips(tmp_path, "held_out", kinds[1:2], 1)
    record = records[kinds.index(kinds[1])]
    assert clip.record["kind"] == kinds[1] and clip.record["prompt"] == record["prompt"].decode()
    assert clip.character == json.loads(record["character"])
    np.testing.assert_array_equal(clip.frames, frames_of(record)[1:])
    np.testing.assert_array_equal(clip.reference, references_of(record)["global"])
    with pytest.raises(InputError, match=f"expected 9 clips of {kinds[1]} in held_out, found {kinds.count(kinds[1])}"):
        clips_of.open_clips(tmp_path, "held_out", kinds[1:2], 9)
    (tmp_path / "empty").mkdir()
    for folder, split in (("nowhere", "held_out"), ("empty", "held_out"), (".", "spare")):
        with pytest.raises(InputError, match="expected a folder made by .* with a split"):
            clips_of.open_clips(tmp_path / folder, split, kinds, 1)


def test_voices_and_faces_that_were_learnt_by_heart_are_told_apart(clips, reader):
    sets = {"train": clips["speak"][:2], "held_out": clips["speak"][2:]}
    known_voices = [c.record["speak"] for c in sets["train"]]
    known_faces = [c.reference for c in sets["train"]]

    def by(known, field):
        """Moves as it should where it knows the clip's sound or face, else like another clip."""

        def perform(clip, heard):
            if any(field(clip) is x for x in known):
                return clip.frames
            return clips["speak"][0].frames[::-1]

        found = voices.cross(perform, sets, reader)
        assert [(x["faces"], x["sounds"]) for x in found] == [
            ("train", "train"), ("held_out", "train"), ("train", "held_out"), ("held_out", "held_out")
        ]  # fmt: skip
        assert all(x["true"] > 0.9 for x in found)
        return [x["r"] == x["true"] for x in found]

    assert by(known_voices, lambda c: c.record["speak"]) == [True, True, False, False]
    assert by(known_faces, lambda c: c.reference) == [True, False, True, False]


def test_frozen_frames_fail(clips, reader):
    def frozen(clip, heard):
        return np.repeat(clip.reference[None], len(clip.frames), 0)

    rows, _, _ = toy.measure(frozen, clips["speak"], clips["listen"], reader)
    assert verdicts(rows, "mouth: corr", "mouth: ampl", "nods: corr") == [False] * 3
    assert verdicts(rows, "identity: nearest") == [True]  # a photograph looks like its character


def test_autoencoder_rows_measure_what_is_lost(clips, reader):
    perfect = toy.autoencoder_rows(lambda v: v / 127.5 - 1.0, clips["speak"], clips["listen"], reader)
    assert all(r.passed for r in perfect[:3])
    assert perfect[4].result == pytest.approx(perfect[4].ceiling, abs=1e-3)

    def grey(video):
        return np.zeros(video.shape, np.float32)

    lost = toy.autoencoder_rows(grey, clips["speak"], clips["listen"], reader)
    assert not any(r.passed for r in lost[:3]) and not lost[4].passed


class LongPipeline:
    """Streams one clip's true video again and again; with ``fades`` it is still from the second time on."""

    chunk_frames = 12

    def __init__(self, clip: clips_of.Clip, fades: bool):
        from data_pipeline.performers.clip import frames_of

        self.frames, self.fades, self.at = frames_of(clip.record)[:72], fades, 0

    def open(self, image, seed):
        return self

    def step(self, speak, listen):
        from lpm_jax.pipeline import Chunk

        assert len(speak) == len(listen) == 12_000
        again, place = divmod(self.at, len(self.frames))
        self.at += 12
        part = self.frames[place : place + 12]
        return Chunk(np.repeat(part[:1], 12, 0) if again and self.fades else part, 0.0, "speak", 0.0)


@pytest.mark.parametrize("fades", [False, True])
def test_a_long_stream_is_compared_with_its_first_minute(clips, reader, fades):
    clip = clips["speak"][0]
    rows, log = long_stream(LongPipeline(clip, fades), [clip], 2, reader, seconds=3)
    found = {r.name: r for r in rows}
    assert log[0]["mouth"] > 0.9 and log[0]["amplitude"] == pytest.approx(1, abs=0.2) and len(log) == 2
    assert found["long stream: mouth, change by the end"].passed is not fades
    assert found["long stream: flicker, change by the end"].passed is not fades
    assert found["long stream: sharpness, change by the end"].passed
