"""The page in a real browser: it moves without a gesture, speaks with one, listens, and stops when told.

Needs Debian's chromium (`apt-get install chromium`) and talks to 127.0.0.1 only: `uv run pytest -m browser`.
Screenshots go to the folder in LPM_SCREENSHOTS, if set.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest

from lpm_jax.serving.library import ASSETS, Library
from tests.serving.fake_pipeline import FakePipeline, draw_characters

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    import uvicorn

    from lpm_jax.serving.app import create_app

    root = tmp_path_factory.mktemp("assets")
    draw_characters(root / "characters")
    shutil.copytree(ASSETS / "samples", root / "samples")
    app = create_app(lambda: FakePipeline(0.1), library=Library(root))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(5)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as tool:
        launched = tool.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, bypass_csp=True)  # a fresh profile
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda line: page.problems.append(line.text) if line.type == "error" else None)
    page.address = address
    yield page
    context.close()
    time.sleep(0.3)  # the one place is free again


def body(page, name: str) -> str:
    return page.evaluate(f"document.body.dataset.{name}")


def wait(page, condition: str, seconds: float = 15) -> None:
    page.wait_for_function(condition, timeout=1000 * seconds)


def pixels(page) -> list[int]:
    pen = "document.getElementById('view').getContext('2d')"
    return page.evaluate(f"[...{pen}.getImageData(0, 0, 768, 768).data.filter((_, i) => i % 97 == 0)]")


def screenshot(page, name: str) -> None:
    if folder := os.environ.get("LPM_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_moves_at_once_and_speaks_unasked(page):
    page.goto(page.address + "/?autospeak=1")
    wait(page, "document.body.dataset.frames > 5")
    assert body(page, "connection") == "live" and body(page, "clock") == "wall"  # no gesture yet
    assert page.is_visible("#disclosure") and page.inner_text("#disclosure") == "AI-generated"
    assert page.is_visible("#sound")
    pictures = []
    for _ in range(4):
        pictures.append(pixels(page))
        time.sleep(0.4)
    assert all(a != b for a, b in zip(pictures, pictures[1:], strict=False))
    assert max(pictures[0]) > 150
    wait(page, "document.body.dataset.state == 'speak'")
    screenshot(page, "page")
    began, first = time.monotonic(), int(body(page, "frames"))
    time.sleep(3)
    rate = (int(body(page, "frames")) - first) / (time.monotonic() - began)
    assert 19 < rate < 28
    assert float(page.inner_text("#factor").split()[0]) > 1
    assert page.problems == []


def test_gesture_turns_sound_on_and_interrupt_stops_speech(page):
    page.goto(page.address)
    wait(page, "document.body.dataset.frames > 5")
    assert body(page, "state") == "silence"
    page.click("#samples button")
    wait(page, "document.body.dataset.clock == 'audio'")
    wait(page, "document.body.dataset.state == 'speak'")
    assert not page.is_visible("#sound")
    page.click("#interrupt")
    began = time.monotonic()
    wait(page, "document.body.dataset.state == 'silence'")
    assert time.monotonic() - began < 2.0
    wait(page, "document.getElementById('silence').textContent != '–'")
    assert page.problems == []


def test_listens_to_the_microphone_and_to_the_recorded_partner(page):
    page.goto(page.address)
    wait(page, "document.body.dataset.frames > 5")
    page.click("#microphone")  # the browser's fake device beeps
    wait(page, "document.body.dataset.state == 'listen'")
    page.click("#microphone")
    wait(page, "document.body.dataset.state == 'silence'")
    page.click("#partner")
    wait(page, "document.body.dataset.state == 'listen'")
    screenshot(page, "listening")
    assert page.problems == []


def test_pictures_prompts_and_errors(page, tmp_path):
    page.goto(page.address)
    wait(page, "document.body.dataset.frames > 5")
    before = pixels(page)
    page.click(".tile[data-name=cy]")
    time.sleep(2)
    after = pixels(page)
    assert sum(abs(a - b) for a, b in zip(before, after, strict=True)) / len(after) > 20
    page.click("#presets button")
    assert page.input_value("#prompt") == "smiles"
    page.set_input_files("#speech", ASSETS / "samples" / "hello.flac")
    wait(page, "document.body.dataset.state == 'speak'")
    (tmp_path / "x.png").write_text("no picture")
    page.set_input_files("#image", tmp_path / "x.png")
    page.wait_for_selector("#toasts p")
    assert "x.png: expected a picture" in page.inner_text("#toasts p")


def test_without_webcodecs(page):
    page.add_init_script("delete window.VideoDecoder")
    page.goto(page.address)
    wait(page, "document.body.dataset.frames > 30")
    assert page.problems == []


def test_second_page_waits_for_its_turn(page, browser):
    page.goto(page.address)
    wait(page, "document.body.dataset.frames > 5")
    with browser.new_context(bypass_csp=True) as context:
        other = context.new_page()
        other.goto(page.address)
        wait(other, "document.body.dataset.connection == 'busy'")
        assert "another session" in other.inner_text("#veil")
        page.goto("about:blank")
        wait(other, "document.body.dataset.connection == 'live'")
