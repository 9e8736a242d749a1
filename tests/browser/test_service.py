"""The whole service in a real browser: ``serve.py`` with the bundled model, as the README's first command starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.browser.test_page import CHROMIUM, browser  # noqa: F401

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]


@pytest.fixture(scope="module")
def address():
    """Where ``serve.py`` says that it is."""
    command = [sys.executable, "serve.py", "--port", "0", "--speak", "lpm_jax/assets/samples/hello.flac"]
    service = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    for line in service.stdout:
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        if found:
            break
    yield found[0]
    service.send_signal(signal.SIGINT)
    service.wait(20)


def test_the_bundled_character_speaks_listens_and_rests(browser, address):  # noqa: F811
    page = browser.new_page(bypass_csp=True)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{address}/?autospeak=1")
    page.wait_for_function("document.body.dataset.connection === 'live'", timeout=120_000)
    page.wait_for_function("document.body.dataset.state === 'speak'", timeout=30_000)
    said = time.monotonic()
    page.wait_for_function("document.body.dataset.state === 'silence'", timeout=30_000)
    assert 2 < time.monotonic() - said < 20  # the command line's five and a half seconds
    assert page.locator("#samples button").first.text_content() == "yours"
    page.click("#microphone")  # the browser's own sound, a beep every second
    page.wait_for_function("document.body.dataset.state === 'listen'", timeout=30_000)
    before = int(page.evaluate("document.body.dataset.frames"))
    page.wait_for_timeout(2000)
    assert int(page.evaluate("document.body.dataset.frames")) - before > 30  # of 48
    assert not problems
    page.close()
