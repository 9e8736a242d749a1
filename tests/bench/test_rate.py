"""The rating page's server: blind, resumable, strict about who asks and what for."""

from __future__ import annotations

import json
import os

import pytest
from fastapi.testclient import TestClient

from lpm_jax.bench import rate
from lpm_jax.bench.ballot import Ballot, hint
from lpm_jax.bench.rate import Booth, create_app
from lpm_jax.bench.runs import open_run
from lpm_jax.bench.votes import DIMENSIONS, VoteFile, read_votes
from lpm_jax.errors import InputError
from tests.bench.fake_run import change, write_run

CASES = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return write_run(root / "zebra", CASES), write_run(root / "quokka", CASES, shift=0.2, truth=False)


@pytest.fixture
def runs(folders):
    return [open_run(folder) for folder in folders]


class Page:
    """A rater's browser, and the server that can be started anew."""

    def __init__(self, runs, path, raters=3, **ballot):
        self.runs, self.path, self.raters, self.ballot, self.file = runs, path, raters, ballot, None
        self.start()

    def start(self):
        if self.file is not None:
            self.file.close()
        self.file = VoteFile(self.path)
        self.booth = Booth(Ballot(self.runs, **self.ballot), self.file, self.raters)
        self.client = TestClient(create_app(self.booth))

    def state(self, rater="ann"):
        return self.client.get("/v1/state", params={"rater": rater}).json()

    def vote(self, choice, rater="ann"):
        question = self.state(rater)["question"]["number"]
        return self.client.post("/v1/votes", json={"rater": rater, "question": question, "choice": choice}).json()

    def undo(self, rater="ann"):
        return self.client.post("/v1/undo", json={"rater": rater})


@pytest.fixture
def page(runs, tmp_path):
    page = Page(runs, tmp_path / "votes.csv")
    yield page
    page.file.close()


# --- the ballot


def test_every_rater_has_an_order_of_their_own_and_half_of_the_sides(runs):
    ballot = Ballot(runs, "pairs")
    orders = {rater: [screen.case for screen in ballot.screens(rater)] for rater in ("ann", "bob", "cy")}
    assert len({tuple(order) for order in orders.values()}) == 3
    for rater, order in orders.items():
        assert sorted(order) == sorted(runs[0].cases)
        assert sum(screen.left for screen in ballot.screens(rater)) == CASES / 2
    assert len({tuple(sorted((s.case, s.left) for s in ballot.screens(f"r{i}"))) for i in range(8)}) > 1
    assert ballot.screens("ann") == Ballot(runs, "pairs").screens("Ann")
    assert ballot.screens("ann") != Ballot(runs, "pairs", seed=1).screens("ann")


def test_both_asks_pairs_first_and_then_every_video(runs):
    ballot = Ballot(runs)
    screens = ballot.screens("ann")
    assert [screen.right is None for screen in screens] == [False] * CASES + [True] * 2 * CASES
    assert {(s.case, s.left) for s in screens[CASES:]} == {(case, run) for case in runs[0].cases for run in (0, 1)}
    assert len(ballot.questions("ann")) == 3 * CASES * 5
    assert [dimension for _, dimension in ballot.questions("ann")[:5]] == list(DIMENSIONS)


def test_fewer_cases_are_drawn_evenly_and_sides_stay(runs):
    ballot = Ballot(runs, "pairs", limit=5)
    assert {ballot.kind(case) for case in ballot.cases} == {
        "speaking",
        "listening",
        "conversation",
        "motion",
        "generalisation",
    }
    side = {screen.case: screen.left for screen in Ballot(runs, "pairs").screens("ann")}
    assert {screen.case: screen.left for screen in ballot.screens("ann")}.items() <= side.items()


def test_hints_follow_the_kind():
    assert "does not speak" in hint("audio-video sync", "listening")
    assert hint("overall", "listening") == hint("overall", "speaking")


# --- votes over HTTP


def test_votes_are_saved_under_the_runs_names(page):
    screen = page.booth.ballot.screens("ann")[0]
    asked = page.state()
    assert (asked["done"], asked["total"], asked["undo"]) == (0, 3 * CASES * 5, False)
    assert asked["question"]["dimension"] == "motion dynamics" and asked["question"]["pair"]
    after = page.vote("left")
    assert after["done"] == 1 and after["question"]["dimension"] == "identity consistency"
    (saved,) = read_votes(page.path)
    names = [page.runs[screen.left].name, page.runs[screen.right].name]
    assert [saved.left, saved.right] == names and saved.choice == "left"
    assert (saved.rater, saved.case, saved.dimension) == ("ann", screen.case, "motion dynamics")
    assert saved.kind == page.runs[0].cases[screen.case]["kind"] and saved.time.endswith("+00:00")


def test_nothing_on_the_page_tells_the_runs(page):
    told = json.dumps(page.state())
    video = page.client.get("/v1/screens/0/left", params={"rater": "ann"})
    told += str(video.headers) + page.client.get("/").text
    assert not any(word in told for word in ("zebra", "quokka", str(page.runs[0].folder)))


def test_the_videos_are_those_of_the_sides(page):
    for number, screen in enumerate(page.booth.ballot.screens("ann")[:4]):
        for side, place in (("left", screen.left), ("right", screen.right)):
            answer = page.client.get(f"/v1/screens/{number}/{side}", params={"rater": "ann"})
            run = page.runs[place]
            assert answer.content == run.video(run.cases[screen.case]).read_bytes()
            assert answer.headers["content-type"] == "video/mp4"
    part = page.client.get("/v1/screens/0/left", params={"rater": "ann"}, headers={"Range": "bytes=0-9"})
    assert part.status_code == 206 and len(part.content) == 10
    picture = page.client.get("/v1/screens/0/reference", params={"rater": "ann"})
    assert picture.headers["content-type"] == "image/jpeg" and picture.content[:2] == b"\xff\xd8"


def test_goes_on_after_a_restart_and_a_half_written_line(page):
    for choice in ("left", "same", "right", "left", "left", "right", "same"):
        before = page.vote(choice)
    page.file.close()
    with page.path.open("ab") as file:
        file.write(b"ann,2026-01-02T03:04")  # the power went
    page.start()
    assert page.state() == before and before["done"] == 7
    page.vote("same")
    assert [vote.choice for vote in read_votes(page.path)] == [
        "left",
        "same",
        "right",
        "left",
        "left",
        "right",
        "same",
        "same",
    ]


def test_undo_asks_again_and_goes_further_back(page):
    first = page.vote("left")
    page.vote("right")
    back = page.undo().json()
    assert back == first
    again = page.undo().json()
    assert again["done"] == 0 and again["undo"] is False and again["question"]["number"] == 0
    refused = page.undo()
    assert refused.status_code == 400 and refused.json()["error"] == "undo: expected a vote to take back, found none"
    page.vote("same")
    assert [vote.choice for vote in read_votes(page.path)] == ["left", "right", "undo", "undo", "same"]
    assert page.state()["done"] == 1


def test_an_answer_sent_twice_counts_once(page):
    for _ in range(2):
        body = {"rater": "ann", "question": 0, "choice": "left"}
        assert page.client.post("/v1/votes", json=body).json()["done"] == 1
    assert page.state()["question"]["number"] == 1


def test_grades(runs, tmp_path):
    page = Page(runs[:1], tmp_path / "votes.csv", ask="likert")
    assert page.state()["total"] == CASES * 5 and not page.state()["question"]["pair"]
    assert "choice: expected 1, 2, 3, 4, 5, found 'left'" in page.vote("left")["error"]
    for _ in range(CASES * 5):
        last = page.vote("4")
    assert last["question"] is None and last["done"] == last["total"]
    assert {(vote.left, vote.right, vote.choice) for vote in read_votes(page.path)} == {("zebra", "", "4")}
    missing = page.client.get("/v1/screens/0/right", params={"rater": "ann"})
    assert missing.status_code == 404
    page.file.close()


def test_three_raters_and_no_fourth(page):
    for rater in ("ann", "bob", "cy"):
        page.vote("left", rater)
    refused = page.client.get("/v1/state", params={"rater": "dee"})
    assert refused.status_code == 400
    assert refused.json()["error"] == "rater: expected one of the 3 raters who began (ann, bob, cy), found dee"
    body = {"rater": "dee", "question": 0, "choice": "left"}
    assert page.client.post("/v1/votes", json=body).status_code == 400
    assert page.state(" ANN ")["rater"] == "ann" and page.state("bob")["done"] == 1
    assert len(read_votes(page.path)) == 3


def test_votes_on_other_runs_in_the_file_take_no_seat(page):
    text = "".join(f"r{i},t,speaking-000,speaking,x,y,overall,left\n" for i in range(3))
    page.file.close()
    page.path.write_text(page.path.read_text() + text)
    page.start()
    assert page.vote("left")["done"] == 1


def test_a_vote_that_cannot_be_saved_is_not_confirmed(page, monkeypatch):
    page.state()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    client = TestClient(create_app(page.booth), raise_server_exceptions=False)
    answer = client.post("/v1/votes", json={"rater": "ann", "question": 0, "choice": "left"})
    assert answer.status_code == 507 and "was not saved" in answer.json()["error"]
    monkeypatch.undo()
    assert page.state()["done"] == 0 and read_votes(page.path) == []


# --- strangers and odd requests


def test_other_sites_and_other_names_are_refused(page):
    body = {"rater": "ann", "question": 0, "choice": "left"}
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
        assert page.client.post("/v1/votes", json=body, headers=headers).status_code == 403
        assert page.client.get("/v1/state?rater=ann", headers=headers).status_code == 403
    assert read_votes(page.path) == []
    assert page.client.post("/v1/votes", json=body, headers={"Origin": "http://testserver"}).status_code == 200
    assert "default-src 'self'" in page.client.get("/").headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/screens/0/..%2f..%2fresults.json",
        "/v1/screens/..%2f0/left",
        "/v1/screens/0/truth",
        "/v1/screens/99999/left",
        "/v1/screens/x/left",
        "/..%2frate.py",
        "/%2e%2e/rate.py",
        "/../../pyproject.toml",
        "//etc/passwd",
        "/videos/speaking-000.mp4",
    ],
)
def test_only_the_pages_files_and_the_two_runs_videos(page, path):
    answer = page.client.get(path, params={"rater": "ann"})
    assert answer.status_code in (400, 404)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"rater": "ann", "question": 0, "choice": "best"}, "choice: expected left, same, right, found 'best'"),
        ({"rater": "ann", "question": 0, "choice": "undo"}, "choice: expected left, same, right, found 'undo'"),
        ({"rater": "ann", "question": 10_000, "choice": "left"}, "question: expected 0 to 89, found 10000"),
        ({"rater": "ann", "question": -1, "choice": "left"}, "question: "),
        ({"rater": "a,b", "question": 0, "choice": "left"}, "rater: expected a name"),
        ({"rater": "=HYPERLINK(1)", "question": 0, "choice": "left"}, "rater: expected a name"),
        ({"rater": "ann", "choice": "left"}, "question: Field required"),
        ([], "request: "),
    ],
)
def test_odd_answers_are_one_line_and_nothing_is_saved(page, body, message):
    answer = page.client.post("/v1/votes", json=body)
    assert answer.status_code == 400 and answer.json()["error"].startswith(message)
    assert "\n" not in answer.json()["error"] and read_votes(page.path) == []


# --- runs that cannot be rated, and options


def test_videos_outside_the_run_are_refused(tmp_path):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"x")
    for name in ("../secret.mp4", str(secret), "results.json", "videos/link.mp4"):
        folder = write_run(tmp_path / "run", 2, videos=False)
        (folder / "videos").mkdir(exist_ok=True)
        (folder / "videos" / "link.mp4").unlink(missing_ok=True)
        (folder / "videos" / "link.mp4").symlink_to(secret)
        change(folder, lambda data, name=name: data["cases"][0].update(video=name))
        with pytest.raises(InputError, match=r"speaking-000: video: expected an .mp4 inside"):
            Ballot([open_run(folder)], "likert")


def test_cases_without_a_video_are_left_out(tmp_path, folders):
    folder = write_run(tmp_path / "third", CASES)
    (folder / "videos" / "speaking-000.mp4").unlink()
    ballot = Ballot([open_run(folder), open_run(folders[0])], "pairs")
    assert ballot.skipped == ["speaking-000"] and len(ballot.cases) == CASES - 1
    empty = write_run(tmp_path / "empty", 2, videos=False)
    with pytest.raises(InputError, match="empty: expected videos to rate, found none"):
        Ballot([open_run(empty)], "likert")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "RUN"], "different names, found 'run' twice"),
        (["RUN", "--ask", "pairs"], "--ask: expected likert for a single run"),
        (["RUN", "none"], "none: expected the folder of a run, found nothing"),
        (["RUN", "--raters", "0"], "--raters: expected 1 to 99, found 0"),
        (["RUN", "--cases", "0"], "--cases: expected 1 or more, found 0"),
        (["RUN", "--port", "70000"], "--port: expected 0 to 65535, found 70000"),
        (["RUN", "--port", "0", "--votes", "no/votes.csv"], "--votes: expected an existing folder"),
        (["RUN", "--port", "0", "--votes", "RUN"], "--votes: expected a file that can be written"),
        (["RUN", "OTHER"], "expected runs of one suite, found 'small' and 'large'"),
        ([], "the following arguments are required: A"),
    ],
)
def test_bad_options_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    names = {"RUN": str(write_run(tmp_path / "run", 1)), "OTHER": str(write_run(tmp_path / "other", 1, suite="large"))}
    with pytest.raises(InputError, match=message) as caught:
        rate.main([names.get(word, word) for word in arguments])
    assert "\n" not in str(caught.value)
