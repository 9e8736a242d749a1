"""Every metric tells the true video from its floor, and falls with a defect that grows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("espeakng_loader")

from lpm_jax.bench import check
from lpm_jax.bench.cases import Segment
from lpm_jax.bench.metrics import Context, control, listening, scores, speaking, stability
from lpm_jax.bench.metrics.identity import picture_colours, slope
from lpm_jax.bench.observe import Observation
from lpm_jax.bench.schema import METRICS
from lpm_jax.bench.score import FLOORS, defects
from lpm_jax.bench.statistics import Moments, bootstrap, effect, frechet, frechet_stat
from tests.bench.drawn import case, instruments, shifted, true, video

KINDS = ("speaking", "listening", "conversation", "motion")


def context(kind: str, index: int = 0) -> Context:
    others = [case(k, i) for k in KINDS for i in range(2) if (k, i) != (kind, index)]
    colours = [picture_colours(c.first.astype(float)) for c in (case(kind, index), *others)]
    return Context(truth=true(kind, index), colours=colours[0], others=np.stack(colours[1:]))


def score(kind: str, seen: Observation, index: int = 0) -> dict:
    return scores(case(kind, index), seen, context(kind, index))


def seen(frames: np.ndarray) -> Observation:
    return instruments().observe([frames])


def falling(values: list[float], better: str) -> bool:
    signed = np.diff(values) * (1 if better == "higher" else -1)
    return bool((signed <= 1e-9).all() and signed.sum() < 0)


# --- planted defects ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(3))
def test_lip_sync_falls_with_every_shift(index):
    found = [score("speaking", seen(shifted(video("speaking", index), k)), index) for k in (0, 2, 4, 8)]
    assert found[0]["lip_r"] > 0.95
    assert [f["lip_lag"] for f in found] == [0, 2, 4, 8]
    assert falling([f["lip_r"] for f in found[:3]], "higher")
    assert found[3]["lip_r"] < 0.4 < found[0]["lip_r"]
    assert found[0]["bilabial_f1"] > max(f["bilabial_f1"] for f in found[1:])


def test_frozen_frames_are_counted():
    frames = video("speaking")
    found = []
    for share in (0, 0.25, 0.5, 1):
        index = np.arange(len(frames))
        index[: round(share * len(frames))] = 0
        found.append(score("speaking", seen(frames[index])))
    assert [f["frozen"] for f in found] == pytest.approx([0, 0.25, 0.5, 1], abs=0.03)
    assert falling([f["motion_amount"] for f in found], "higher")
    assert falling([f["motion_diversity"] for f in found], "higher")
    assert falling([f["lip_r"] for f in found], "higher") and found[-1]["lip_r"] == 0


def test_nods_that_are_removed_are_missed():
    made = case("listening")
    pitch = made.truth["pitch"]
    nods = listening.events(pitch, listening.NOD)
    assert nods
    found = []
    for kept in range(len(nods), -1, -1):
        still = np.asarray(true("listening").read["pitch"]).copy()
        for at in nods[kept:]:
            still[max(0, int(at * 24) - 14) : int(at * 24) + 15] = np.median(pitch)
        changed = true("listening").read | {"pitch": still}
        video_without = Observation(**{**vars(true("listening")), "read": changed})
        found.append(score("listening", video_without)["nod_f1"])
    assert found[0] > 0.6 and found[-1] == 0 and falling(found, "higher")


def test_identity_falls_as_somebody_else_shows():
    mine, other = video("speaking")[:48], video("speaking", 1)[:48]
    shares = (0, 0.25, 0.5, 0.75, 1)
    blended = [np.round((1 - s) * mine + s * other).astype(np.uint8) for s in shares]
    short = check._cut(case("speaking"), 48)
    found = [scores(short, seen(frames), context("speaking"))["identity_colour"] for frames in blended]
    assert found[0] < 0.2 < found[2] and falling(found, "lower")


def test_a_video_that_turns_into_another_drifts():
    mine, other = true("conversation"), true("conversation", 1)
    clean, spoilt = score("conversation", mine), score("conversation", mine.blended(other))
    assert spoilt["drift"] > 4 * clean["drift"] and spoilt["identity_slope"] > 60 > abs(clean["identity_slope"])


def test_seams_and_flicker_rise_with_the_defect():
    frames = video("motion").astype(np.float32)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(len(frames), 1, 1, 1))
    flickering = [seen((frames + k * noise).clip(0, 255).astype(np.uint8)) for k in (0, 2, 6)]
    assert falling([stability.flicker(x.thumbs) for x in flickering], "lower")
    jumps = np.cumsum(np.arange(len(frames)) % 12 == 0) % 2
    seams = [seen((frames + k * jumps[:, None, None, None]).clip(0, 255).astype(np.uint8)) for k in (0, 3, 12)]
    assert falling([stability.seam(x, 12) for x in seams], "lower")
    assert stability.seam(seams[0], 12) < 1.5


def test_a_mouth_that_goes_on_closes_late():
    made = next(case("conversation", i) for i in range(4) if score("conversation", true("conversation", i), i)["stop_delay"] is not None)  # fmt: skip  # noqa: E501
    index = next(i for i in range(4) if case("conversation", i) is made)
    found = [score("conversation", seen(shifted(video("conversation", index), k)), index)["stop_delay"]
             for k in (0, 4, 8)]  # fmt: skip
    assert found[0] < 0.1 and found[2] > found[0] + 0.2 and falling(found, "lower")


def test_prompts_are_seen_where_they_are_performed():
    from data_pipeline.performers.character import sample_held_out_character
    from data_pipeline.performers.prompts import Prompt, pose
    from data_pipeline.performers.render import neutral_params, render
    from data_pipeline.schema import PARAMS

    def performed(action: str) -> Observation:
        curves = dict(zip(PARAMS, neutral_params(72).T.astype(float), strict=True))
        pose(Prompt(action=action), curves)
        params = np.stack([np.clip(curves[n], *((0, 1) if n.startswith("lid") else (-40, 40))) for n in PARAMS], 1)
        return seen(render(sample_held_out_character(77), params))

    still = performed("")
    for action in ("nod", "close_eyes"):
        asked = Segment(0.0, 3.0, "", action=action)
        assert control.judge(asked, performed(action)) == [True]
        assert control.judge(asked, still) == [False]
    assert control.judge(Segment(0.0, 3.0, "", action="turn_left"), still) == []  # nobody reads it without weights


def perfectly_read(kind: str, index: int) -> Observation:
    """The true video as readers without any error would read it."""
    truth = case(kind, index).truth
    both = lambda name: (truth[f"{name}_left"] + truth[f"{name}_right"]) / 2  # noqa: E731
    read = {name: truth[name] for name in ("aperture", "pitch", "yaw", "roll", "gaze_x", "gaze_y", "smile", "frown")}
    read |= {"eyes": both("lid"), "brow": (both("brow_inner") + both("brow_outer")) / 2}
    return dataclasses.replace(true(kind, index), read=read)


def test_thresholds_fit_what_performances_do():
    """Prompts, smiles and brow flashes, were they read without error: all of a true video's, few of another's."""
    wanted = (
        [("motion", i) for i in range(5)] + [("speaking", i) for i in range(8)] + [("listening", i) for i in range(3)]
    )
    own, wrong, events = [], [], []
    for n, (kind, i) in enumerate(wanted):
        best, other = perfectly_read(kind, i), perfectly_read(*wanted[n - 1])
        known = dataclasses.replace(context(kind, i), truth=best)
        found = scores(case(kind, i), best, known)
        own.append(found["prompt_recall"])
        wrong.append(scores(case(kind, i), other.fitted(len(best)), known)["prompt_recall"])
        events += [found["smile_f1"], found["brow_f1"]]
    own, wrong = ([x for x in side if x is not None] for side in (own, wrong))
    assert len(own) >= 8 and np.mean(own) == 1
    assert np.mean(wrong) < 0.4
    known = [x for x in events if x is not None]
    assert len(known) >= 3 and np.mean(known) > 0.9


def test_onsets_are_rises_not_peaks():
    ramp = np.clip(np.arange(96) - 30, 0, 6) / 6  # up between the 30th frame and the 36th, then it stays
    assert listening.onsets(0.5 * ramp, 0.25) == pytest.approx([33 / 24], abs=1 / 24)
    assert listening.onsets(0.2 * ramp, 0.25) == [] and listening.onsets(-0.5 * ramp, 0.25) == []
    twice = 0.5 * ramp - 0.5 * np.roll(ramp, 20) * (np.arange(96) > 40) + 0.5 * np.roll(ramp, 40) * (np.arange(96) > 60)
    assert len(listening.onsets(twice, 0.25)) == 2


def test_what_cannot_be_seen_does_not_count():
    """Of a listening case whose brows are read perfectly, or not at all, in the true video."""
    index = next(i for i in range(3) if brow_f1(i, perfectly_read("listening", i)) is not None)
    best = perfectly_read("listening", index)
    assert brow_f1(index, best) == 1
    blind = dataclasses.replace(best, read=best.read | {"brow": np.roll(best.read["brow"], 40)})
    assert brow_f1(index, blind) is None
    segment = Segment(0.0, 3.0, "", action="raise_brows")
    raised = dataclasses.replace(best, read={"brow": np.ones(len(best))})
    flat = dataclasses.replace(best, read={"brow": np.zeros(len(best))})
    assert control.judge(segment, flat, raised) == [False] and control.judge(segment, raised, flat) == []


def brow_f1(index: int, truth: Observation) -> float | None:
    """Of the perfectly read true video, where the readers saw ``truth`` in it."""
    known = dataclasses.replace(context("listening", index), truth=truth)
    return scores(case("listening", index), perfectly_read("listening", index), known)["brow_f1"]


# --- floors ------------------------------------------------------------------------------------------------------


def test_true_video_lies_far_from_its_floor():
    """Cohen's d over a few clips of each kind; the whole small suite is in docs/bench.md."""
    ceiling, floor = {name: [] for name in FLOORS}, {name: [] for name in FLOORS}
    for kind in ("speaking", "listening", "conversation"):
        for i in range(4):
            planted = defects(true(kind, i), true(kind, (i + 1) % 4), true("speaking", 3), 12, instruments())
            best = score(kind, true(kind, i), i)
            found = {name: score(kind, seen, i) for name, seen in planted.items()}
            for name, defect in FLOORS.items():
                ceiling[name].append(best.get(name))
                floor[name].append(found[defect].get(name))
    d = {name: effect(ceiling[name], floor[name], METRICS[name].better) for name in FLOORS}
    known = {name: x for name, x in d.items() if x is not None}
    assert set(known) >= {"lip_r", "lip_lag", "bilabial_f1", "nod_f1", "mouth_still", "identity_colour", "frozen",
                          "sharpness", "flicker", "seam", "drift", "motion_amount"}  # fmt: skip
    weak = {name: x for name, x in known.items() if x < 2}
    assert not weak


def test_every_metric_has_a_floor():
    assert set(FLOORS) == set(METRICS)


# --- pieces with known answers -----------------------------------------------------------------------------------


def test_synchrony_finds_true_pairs_and_their_lag():
    rng = np.random.default_rng(0)
    heard = rng.normal(size=(96, 8))
    lips = heard + 0.3 * rng.normal(size=heard.shape)
    confidence, distance, lag = speaking.synchrony(lips, heard)
    shuffled = speaking.synchrony(lips, np.roll(heard, 40, 0))
    assert confidence > 2 and distance < 1.2 and lag == 0
    assert shuffled[0] < 0.5 and shuffled[1] > 3
    for late in (-3, 5):
        _, near, lag = speaking.synchrony(np.roll(lips, late, 0), heard)
        assert lag == late and near == pytest.approx(distance, abs=0.1)


def test_events_match_one_to_one():
    assert listening.f1([1.0, 2.0], [1.1, 2.1]) == 1
    assert listening.f1([1.0, 2.0], [1.1, 1.2]) == 0.5
    assert listening.f1([1.0], [2.0]) == 0
    t = np.arange(96) / 24
    assert listening.events(8 * np.exp(-((t - 2) ** 2) / 0.02), 4.5) == [2.0]


def test_slope_is_per_minute():
    assert slope(np.array([1.0, 1.5, 2.0])) == pytest.approx(30)
    assert slope(np.array([1.0])) is None


def test_frechet_distance_of_known_normals():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 3))
    near = frechet(Moments.of(x), Moments.of(rng.normal(size=(20_000, 3))))
    far = frechet(Moments.of(x), Moments.of(2 * x + [1, 0, 0]))
    assert near == pytest.approx(0, abs=0.01)
    assert far == pytest.approx(1 + 3 * (2 - 1) ** 2, rel=0.05)  # |m|^2 + sum (s_a - s_b)^2
    parts = [Moments.of(x[i : i + 100]) for i in range(0, 2000, 100)]
    found = frechet_stat(parts, [Moments.of(x[i : i + 100] + 1) for i in range(0, 2000, 100)])
    assert found["low"] <= found["value"] == pytest.approx(3, rel=0.05) and found["n"] == 20


def test_bootstrap_interval_covers_the_mean_and_skips_what_is_missing():
    found = bootstrap([None, *np.random.default_rng(0).normal(5, 1, 100)])
    assert found["n"] == 100 and found["low"] < 5 < found["high"]
    assert 0.3 < found["high"] - found["low"] < 0.5  # 2 x 1.96 / 10
    assert bootstrap([None]) is None
    assert effect([1.0, 1.2], [0.0, 0.2], "higher") == pytest.approx(7.07, abs=0.01)
    assert effect([1.0, 1.2], [0.0, 0.2], "lower") < 0


def test_a_video_in_blocks_is_seen_as_one():
    frames = video("speaking")[:50]
    whole, parts = seen(frames), instruments().observe([frames[:7], frames[7:31], frames[31:]])
    assert np.array_equal(whole.thumbs, parts.thumbs) and np.array_equal(whole.change, parts.change)
    assert np.allclose(whole.read["aperture"], parts.read["aperture"], atol=1e-5)
