"""The rating page in a real browser: twenty votes by keyboard, a reload and a restart in the middle, nothing lost, and
the report shows them.

Needs Debian's chromium, as `test_page.py`. Screenshots go to the folder in LPM_SCREENSHOTS, if set.
"""

from __future__ import annotations

import re
import socket
import threading

import pytest

from lpm_jax.bench import report
from lpm_jax.bench.ballot import Ballot
from lpm_jax.bench.runs import open_run
from lpm_jax.bench.votes import DIMENSIONS, VoteFile, read_votes
from tests.bench.fake_run import write_run
from tests.browser.test_page import CHROMIUM, browser, screenshot, wait  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]
CASES = 4  # of five dimensions: twenty votes


class Server:
    """The rating page on its own thread; can be stopped and started on the same port."""

    def __init__(self, folders, path):
        self.folders, self.path, self.port = folders, path, 0
        self.start()

    def start(self):
        import uvicorn

        from lpm_jax.bench.rate import Booth, create_app

        self.ballot = Ballot([open_run(folder) for folder in self.folders], "pairs", limit=CASES)
        self.votes = VoteFile(self.path)
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            create_app(Booth(self.ballot, self.votes, 3)), log_level="critical", timeout_graceful_shutdown=1
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()

    def stop(self):
        self.server.should_exit = True
        self.thread.join(5)
        assert not self.thread.is_alive()
        self.votes.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return write_run(root / "zebra", 5), write_run(root / "quokka", 5, shift=0.2)


@pytest.fixture
def server(folders, tmp_path):
    server = Server(folders, tmp_path / "votes.csv")
    yield server
    server.stop()


@pytest.fixture
def page(browser, server):  # noqa: F811
    context = browser.new_context(viewport={"width": 1280, "height": 900}, bypass_csp=True)  # Playwright waits by eval
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda line: page.problems.append(line.text) if line.type == "error" else None)
    page.address = f"http://127.0.0.1:{server.port}"
    yield page
    context.close()


def begin(page, name="ann"):
    page.goto(page.address)
    page.wait_for_selector("#welcome")
    page.keyboard.type(name)  # the field has the focus
    page.keyboard.press("Enter")
    wait(page, "document.body.dataset.view == 'task'")


def press(page, key, done):
    page.keyboard.press(key)
    wait(page, f"document.body.dataset.done == '{done}' && !document.body.dataset.busy")


def test_twenty_votes_by_keyboard_with_a_reload_and_a_restart(page, server, browser, folders, tmp_path):  # noqa: F811
    keys = ["1", "2", "3", "ArrowLeft", "ArrowDown", "ArrowRight", "1", "3", "1", "2"] * 2
    choices = ["left", "same", "right", "left", "same", "right", "left", "right", "left", "same"] * 2
    begin(page)
    wait(page, "document.getElementById('left').readyState >= 2 && document.getElementById('right').readyState >= 2")
    screenshot(page, "rate")
    for done, key in enumerate(keys[:7], 1):
        press(page, key, done)
    assert page.inner_text("#dimension").lower() == DIMENSIONS[2]
    page.reload()
    wait(page, "document.body.dataset.done == '7'")
    assert page.inner_text("#dimension").lower() == DIMENSIONS[2]
    for done, key in enumerate(keys[7:12], 8):
        press(page, key, done)

    server.stop()
    page.keyboard.press("1")  # nobody there: not saved, and it says so
    page.wait_for_selector("#toasts p")
    assert "nothing was lost" in page.inner_text("#toasts p")
    assert page.evaluate("document.body.dataset.done") == "12"
    page.problems.clear()  # the refused connection
    server.start()
    for done, key in enumerate(keys[12:], 13):
        press(page, key, done)
    wait(page, "document.body.dataset.view == 'end'")
    assert "All 20 answers are saved" in page.inner_text("#sum")
    assert page.problems == []

    votes = read_votes(server.path)
    assert [vote.choice for vote in votes] == choices and {vote.rater for vote in votes} == {"ann"}
    assert [vote.dimension for vote in votes] == list(DIMENSIONS) * CASES
    asked = server.ballot.screens("ann")
    names = [run.name for run in server.ballot.runs]
    assert [(v.case, v.left, v.right) for v in votes[::5]] == [(s.case, names[s.left], names[s.right]) for s in asked]

    overall = [vote for vote in votes if vote.dimension == "overall"]
    good = sum({"left": v.left, "right": v.right}.get(v.choice) == "quokka" for v in overall)
    same = sum(v.choice == "same" for v in overall)
    out = tmp_path / "report.html"
    report.main([str(folders[1]), "--votes", str(server.path), "--raters", "1", "--out", str(out)])
    shown = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    asked_for = []
    shown.on("request", lambda request: asked_for.append(request.url))
    shown.goto(out.as_uri())
    line = " ".join(shown.inner_text("#votes tbody tr:last-child").split())
    assert re.match(rf"overall {25 * good:.1f} % {25 * same:.1f} % {25 * (4 - good - same):.1f} %", line)
    assert "20 votes stand. By rater: ann 20." in shown.inner_text("#votes")
    assert all(url.startswith(("file:", "data:")) for url in asked_for)  # the page itself, nothing from anywhere else
    shown.context.close()


def test_undo_play_and_focus_by_keyboard(page, server):
    begin(page)
    press(page, "1", 1)
    press(page, "u", 0)
    press(page, "3", 1)
    assert [vote.choice for vote in read_votes(server.path)] == ["left", "undo", "right"]

    left = "document.getElementById('left')"
    page.keyboard.press("r")
    wait(page, f"{left}.currentTime > 0.1")
    assert page.evaluate("[left.muted, right.muted]") == [False, True]
    page.keyboard.press("d")
    wait(page, "document.getElementById('right').currentTime > 0.1")
    assert page.evaluate("[left.paused, right.muted]") == [True, False]
    page.focus("[data-choice=same]")
    page.keyboard.press(" ")  # plays or pauses, and does not press the button that has the focus
    page.wait_for_timeout(200)
    assert page.evaluate("document.body.dataset.done") == "1"
    page.keyboard.press("Enter")
    wait(page, "document.body.dataset.done == '2'")
    assert read_votes(server.path)[-1].choice == "same" and page.problems == []


def test_the_page_keeps_its_own_policy(browser, server):  # noqa: F811
    with browser.new_context() as context:
        page = context.new_page()
        problems = []
        page.on("console", lambda line: problems.append(line.text) if line.type in ("error", "warning") else None)
        page.goto(f"http://127.0.0.1:{server.port}")
        page.wait_for_selector("#welcome")
        page.keyboard.type("ann")
        page.keyboard.press("Enter")
        page.wait_for_selector("#task")
        page.keyboard.press("1")
        page.wait_for_selector("body[data-done='1']")
        page.wait_for_selector("#reference")
        assert page.evaluate("document.getElementById('bar').firstElementChild.style.width") == "5%"
        assert problems == []


def test_a_key_held_down_votes_once(page, server):
    begin(page)
    page.keyboard.down("1")
    for _ in range(5):
        page.keyboard.down("1")  # a repeat
    page.keyboard.up("1")
    wait(page, "document.body.dataset.done == '1' && !document.body.dataset.busy")
    assert len(read_votes(server.path)) == 1


def test_a_fourth_rater_is_told(page, server):
    for name in ("bob", "cy", "dee"):
        server.votes.add(server.ballot.vote(name, "t", *server.ballot.questions(name)[0], "left"))
    page.goto(page.address)
    page.wait_for_selector("#welcome")
    page.keyboard.type("ann")
    page.keyboard.press("Enter")
    page.wait_for_selector("#toasts p")
    assert "expected one of the 3 raters who began (bob, cy, dee), found ann" in page.inner_text("#toasts p")
    assert page.is_visible("#welcome")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_fits_the_screen(browser, folders, tmp_path, scheme, width):  # noqa: F811
    out = tmp_path / "report.html"
    report.main([str(folders[0]), "--out", str(out)])
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.goto(out.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colours = "(e) => { const s = getComputedStyle(e); return s.color + s.backgroundColor; }"
    assert ("rgb(13, 14, 19)" in page.eval_on_selector("body", colours)) == (scheme == "dark")
    page.wait_for_function("[...document.querySelectorAll('video')].every((v) => v.readyState >= 1 && v.duration > 0)")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "A"
    screenshot(page, f"report-{scheme}-{width}")
    context.close()
