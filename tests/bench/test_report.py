"""The report: one file that loads nothing and shows the run's figures, pictures, clips and votes."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import av
import numpy as np
import pytest
from PIL import Image

from lpm_jax.bench import plots, report
from lpm_jax.bench.gallery import worst
from lpm_jax.bench.runs import open_run
from lpm_jax.bench.stills import clip, frames_at, length, strip
from lpm_jax.bench.votes import DIMENSIONS, HEADER
from lpm_jax.errors import InputError
from tests.bench.fake_run import METRICS, change, write_run, write_video

EMPTY = ("meta", "br", "img", "input", "link", "line", "path", "circle", "rect", "polyline")


class Reader(HTMLParser):
    """Collects attributes that could load something, and checks that elements close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "href", "srcset", "poster", "action", "data")]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in EMPTY:
            self.handle_endtag(tag)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<(style|svg).*?</\1>", " ", html, flags=re.S)).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "mine", 10)


@pytest.fixture(scope="module")
def html(folder):
    report.main([str(folder), "--out", str(folder / "page.html")])
    return (folder / "page.html").read_text()


def write_votes(path, choices, run="mine", other="theirs", dimension="overall"):
    """``choices`` are the cases: of each a word with one letter a rater: g, s, b; the sides alternate."""
    lines = [",".join(HEADER)]
    for i, word in enumerate(choices):
        for rater, letter in zip(("ann", "bob", "cy"), word, strict=False):
            flip = (i + len(rater)) % 2
            left, right = (other, run) if flip else (run, other)
            choice = "same" if letter == "s" else "left" if (letter == "g") != bool(flip) else "right"
            lines.append(f"{rater},t,speaking-{i:03d},speaking,{left},{right},{dimension},{choice}")
    path.write_text("\n".join(lines) + "\n")


# --- the page


def test_loads_nothing_and_is_well_formed(html):
    reader = read(html)
    assert all(source.startswith(("data:", "#")) for source in reader.sources)
    assert "script" not in reader.tags and "http://" not in html and "https://" not in html and "url(" not in html
    assert "default-src 'none'" in html


def test_shows_every_figure_with_its_interval_floor_and_ceiling(folder, html):
    run, text = open_run(folder), text_of(html)
    for name, (_, title, *_) in METRICS.items():
        metric, show = run.metrics[name], plots.show
        assert title in text
        result, floor, ceiling = (metric[key] for key in ("result", "floor", "ceiling"))
        way = (result["value"] - floor["value"]) / (ceiling["value"] - floor["value"])
        figures = f"{show(floor['value'])} {show(result['value'])} {show(result['low'])} to {show(result['high'])}"
        assert f"{figures} {show(ceiling['value'])} {way:.0%} 3.0 {result['n']}" in text
    assert "10 cases, 0.1 minutes: 2 speaking, 2 listening, 2 conversation, 2 motion, 2 generalisation." in text
    assert "bench run --out mine" in text and "jax 0.10.2" in text and "0123456789ab" in text


def test_sheets_and_clips_are_media_that_open(html):
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert len(pictures) == 20  # two cases of five kinds, the model's and the true one
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size == (8 * 126 + 7 * 2, 126)
    clips = re.findall(r'src="data:video/mp4;base64,([^"]+)"', html)
    assert 1 <= len(clips) <= 4
    with av.open(io.BytesIO(base64.b64decode(clips[0]))) as box:
        assert box.streams.video[0].width == 2 * 192 and len(box.streams.audio) == 1


def test_what_a_file_says_is_shown_and_not_obeyed(html):
    assert "nods &lt;b&gt;0&lt;/b&gt; times &amp; smiles" in html and "<b>0</b>" not in html


def test_hostile_names_are_text(tmp_path):
    folder = write_run(tmp_path / "run", 2, videos=False, model="<script>alert(1)</script>")
    evil = '"><img src=x onerror=alert(1)>'
    change(folder, lambda data: data["metrics"]["lip_r"].update(title=evil, unit=evil))
    change(folder, lambda data: data["cases"][0].update(character=evil, style=evil))
    change(folder, lambda data: data.update(command=evil, odd={evil: evil}))
    reader = read(report.build(open_run(folder)))
    assert "script" not in reader.tags and "img" not in reader.tags


def test_without_truth_videos_and_some_scores(tmp_path):
    folder = write_run(tmp_path / "run", 4, videos=False, truth=False)

    def strip_down(data):
        for metric in data["metrics"].values():
            metric.update(floor=None, ceiling=None, effect=None)
        for case in data["cases"]:
            case.update(floor={}, ceiling={}, prompt="")
        data["metrics"]["lip_r"]["result"] = {"value": None, "low": None, "high": None, "n": 0}
        data["cases"][1]["scores"]["drift"] = float("nan")

    change(folder, strip_down)
    html = report.build(open_run(folder))
    read(html)
    assert "NaN" not in html and "None" not in text_of(html) and "<video" not in html


def test_clips_end_at_the_cap(folder):
    run = open_run(folder)
    assert "<video" not in report.build(run, megabytes=0.001) and "Beyond that, without a clip: " in report.build(
        run, megabytes=0.001
    )
    assert 'id="worst"' not in report.build(run, worst=0) and 'id="sheets"' not in report.build(run, sheets=0)


def test_a_broken_video_costs_its_picture_only(tmp_path, capsys):
    folder = write_run(tmp_path / "run", 3)
    (folder / "videos" / "speaking-000.mp4").write_bytes(b"not a video")
    assert "speaking-000: the video cannot be read." in report.build(open_run(folder))
    assert "note: speaking-000:" in capsys.readouterr().err


# --- votes


def test_votes_become_the_papers_table(folder, tmp_path):
    votes = tmp_path / "votes.csv"
    # good, good by two of three, bad, bad before the third has voted, split, open
    write_votes(votes, ["ggg", "ggb", "bbs", "bb", "gsb", "g"])
    text = text_of(report.build(open_run(folder), votes, worst=0, sheets=0))
    # 5 decided: 40 % good, 20 % same, 40 % bad; kappa of 4 cases: P = (1 + 1/3 + 1/3 + 0) / 4 = 5/12;
    # frequencies 6/12, 2/12, 4/12 -> Pe = 14/36; kappa = (5/12 - 14/36) / (22/36) = 1/22
    assert "Against theirs" in text and "15 votes stand. By rater: ann 6, bob 5, cy 4." in text
    assert re.search(r"overall 40\.0 % 20\.0 % 40\.0 % \+0\.0 -80 to \+80 5 0\.05", text)
    assert "1 with all votes and no majority count as same; 1 still lack votes" in text
    other = report.build(open_run(folder), votes, raters=1, worst=0, sheets=0)
    assert "more than half of 1 rater said" in other


def test_grades_become_a_table_by_kind(folder, tmp_path):
    votes = tmp_path / "votes.csv"
    rows = [("ann", "speaking-000", "speaking", 5), ("bob", "speaking-000", "speaking", 4)]
    rows += [("ann", "listening-001", "listening", 2), ("bob", "listening-001", "listening", 1)]
    lines = [f"{rater},t,{case},{kind},mine,,{DIMENSIONS[0]},{choice}" for rater, case, kind, choice in rows]
    votes.write_text("\n".join([",".join(HEADER), *lines]) + "\n")
    text = text_of(report.build(open_run(folder), votes, worst=0, sheets=0))
    assert "speaking 4.50 listening 1.50 all 3.00 1.50 to 4.50" in text
    # grades 1, 2, 4, 5, one each. The ordinal distance of neighbours is 1, of 1 and 4 or 2 and 5 it is 4, of 1 and 5 9.
    # Do = 4 * 1 (two pairs, both ways), De = 2 * (3 * 1 + 2 * 4 + 9) / 3 = 40/3; alpha = 1 - 12/40
    assert "Krippendorff’s α 0.70 votes 4" in text


def test_votes_on_other_runs_are_an_error(folder, tmp_path):
    write_votes(tmp_path / "votes.csv", ["ggg"], run="x")
    with pytest.raises(InputError, match="votes.csv: expected votes on 'mine', found votes on theirs, x"):
        report.build(open_run(folder), tmp_path / "votes.csv")


# --- worst cases, plots, pictures


def test_the_worst_case_is_the_one_with_the_lowest_mean_rank(tmp_path):
    folder = write_run(tmp_path / "run", 4, videos=False)
    # lip_r higher, sync_d lower: ranks 0, 1.5, 1.5, 3 and 3, 2, 1, 0 of 3, so means 1.5, 1.75, 1.25, 1.5
    scores = {"lip_r": [0.1, 0.5, 0.5, 0.9], "sync_d": [1, 2, 3, 4]}

    def edit(data):
        for i, case in enumerate(data["cases"]):
            case["scores"] = {name: values[i] for name, values in scores.items()}

    change(folder, edit)
    run = open_run(folder)
    order = [key for key, _ in worst(run, "speaking", 4)]
    assert order == ["conversation-002", "motion-003", "speaking-000", "listening-001"]
    assert worst(run, "speaking") == [("conversation-002", {"lip_r": 0.5, "sync_d": 3.0})]
    assert worst(run, "listening") == []


def test_ticks_are_round_and_inside():
    assert plots.ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1.0]
    assert plots.ticks(-3.2, 9) == [0, 5]
    assert plots.ticks(0.013, 0.014) == [0.013, 0.01325, 0.0135, 0.01375, 0.014]
    assert plots.ticks(2, 2) == [2]


def test_the_better_end_is_on_the_right():
    places = {}
    for better, floor, ceiling in (("higher", 0.0, 1.0), ("lower", 1.0, 0.0)):
        one = lambda v: {"value": v, "low": None, "high": None, "n": 3}  # noqa: E731
        svg = plots.between(one(0.5), one(floor), one(ceiling), better)
        x = lambda kind, svg=svg: float(re.search(rf'mark {kind}" d="M([\d.]+) ', svg)[1])  # noqa: E731
        places[better] = (x("floor"), float(re.search(r'cx="([\d.]+)"', svg)[1]), x("ceiling"))
    assert places["higher"] == places["lower"] and sorted(places["higher"]) == list(places["higher"])
    assert places["higher"][1] == pytest.approx(110)


def test_plots_of_nothing_are_empty():
    assert plots.between(None, None, None, "higher") == ""
    assert plots.distributions([("result", "result", [])], "x") == ""
    assert plots.over_length([5.0, 5.5], [("result", [1.0, 2.0])], "x") == ""
    assert plots.over_length([0.0], [("result", [1.0])], "x") == ""
    assert "polyline" in plots.over_length(list(range(1, 21)), [("result", [0.1 * i for i in range(20)])], "x")


def test_pictures_are_those_of_their_moments(tmp_path):
    path = tmp_path / "x.mp4"
    write_video(path, 2.0, 120)
    assert length(path) == pytest.approx(2.0)
    with av.open(str(path)) as box:
        every = [frame.to_ndarray(format="rgb24") for frame in box.decode(video=0)]
    found = frames_at(path, [0.0, 1.0, 1.9, 99.0])
    for picture, i in zip(found, (0, 24, 45, 47), strict=True):
        assert np.array_equal(picture, every[i])
    assert Image.open(io.BytesIO(strip(path, 3, 16))).size == (3 * 16 + 2 * 2, 16)


def test_clips_keep_time_and_sound(tmp_path):
    path, other = tmp_path / "x.mp4", tmp_path / "y.mp4"
    write_video(path, 2.0, 120)
    write_video(other, 1.5, 220)
    data, first = clip(path, other, 1.0, 4.0, 32)
    assert first.shape == (32, 64, 3)
    with av.open(io.BytesIO(data)) as box:
        pictures = [frame.to_ndarray(format="rgb24") for frame in box.decode(video=0)]
    with av.open(io.BytesIO(data)) as box:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in box.decode(audio=0)])
    assert len(pictures) == 24 and pictures[0].shape == (32, 64, 3)
    expected = frames_at(path, [1.0])[0].astype(float)
    assert np.abs(pictures[0][:, :32] - expected).mean() < 12  # coded twice
    assert np.abs(pictures[-1][:, 32:] - frames_at(other, [9.0])[0].astype(float)).mean() < 12  # the shorter one waits
    assert len(sound) / 24_000 == pytest.approx(1.0, abs=0.1)
    assert np.sqrt((sound[2000:-4000] ** 2).mean()) == pytest.approx(0.2 / 2**0.5, rel=0.1)


# --- bad input


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(schema=2), "results.json: schema: expected 1, found 2"),
        (lambda d: d.pop("schema"), "expected the results of a run, found no 'schema'"),
        (lambda d: d.pop("cases"), "results.json: cases: expected a list, found NoneType"),
        (lambda d: d["metrics"]["lip_r"].update(dimension="x"), "lip_r: dimension: expected one of speaking"),
        (lambda d: d["metrics"]["lip_r"].update(better=""), "lip_r: better: expected higher or lower, found ''"),
        (lambda d: d["metrics"]["lip_r"].update(floor=3), "lip_r: floor: expected a value and its interval"),
        (lambda d: d["cases"][0].update(ceiling=[1]), "speaking-000: ceiling: expected a number per metric"),
        (lambda d: d["cases"][0].update(id="../x"), "cases: expected an id of letters"),
        (lambda d: d["cases"][0].update(id="listening-001"), "expected each id once, found listening-001 twice"),
        (lambda d: d["cases"][0].update(kind="talking"), "speaking-000: kind: expected one of speaking"),
        (lambda d: d["cases"][0].update(scores=None), "speaking-000: scores: expected a number per metric"),
    ],
)
def test_broken_results_are_one_line(tmp_path, edit, message):
    folder = write_run(tmp_path / "run", 2, videos=False)
    change(folder, edit)
    with pytest.raises(InputError, match=message):
        report.main([str(folder)])
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none: expected the folder of a run, found nothing"),
        (["."], "expected a run with a results.json, found none"),
        (["RUN", "--out", "x.txt"], "--out: expected a name ending in .html, found 'x.txt'"),
        (["RUN", "--out", "no/x.html"], "--out: expected a folder that can be written to"),
        (["RUN", "--votes", "no.csv"], "no.csv: expected a file of votes, found nothing"),
        (["RUN", "--clip-megabytes", "nan"], "--clip-megabytes: expected 0 to 500, found nan"),
        (["RUN", "--worst", "-1"], "--worst: expected 0 to 20, found -1"),
        (["RUN", "--raters", "x"], "--raters: invalid int value"),
    ],
)
def test_bad_options_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "RUN", 1, videos=False)
    with pytest.raises(InputError, match=message):
        report.main(arguments)


def test_no_json(tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(InputError, match="results.json: expected JSON, found Expecting"):
        open_run(tmp_path)
