"""Chromium for the browser tests, cut off from the network.

Fixtures:
    browser: one Chromium for the session.
    page: a fresh page that may load `file:`, `data:` and `blob:` addresses and nothing else.
        `page.blocked` lists the addresses it was refused, `page.problems` the JavaScript errors
        and console errors it produced.
    open_page: makes such pages, with a chosen viewport or with touch, for tests that need several.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CANDIDATES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
)
# --no-sandbox: containers run as root; the rest keeps Chromium from calling home.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
LOCAL_SCHEMES = ("file:", "data:", "blob:", "about:")


def find_chromium() -> str:
    """Return the path of a Chromium, or skip the test; in CI, fail instead of skipping."""
    wanted = os.environ.get("EOS_CHROMIUM")
    found = [wanted] if wanted else [shutil.which(name) for name in CANDIDATES]
    for path in found:
        if path and Path(path).is_file():
            return path
    looked = wanted or ", ".join(CANDIDATES)
    message = (
        f"NO BROWSER TESTS: no Chromium found (looked for {looked}). Install one "
        "(`apt-get install chromium`, `brew install --cask chromium`) or set EOS_CHROMIUM to the "
        "path of a Chromium or Chrome."
    )
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One headless Chromium, driven through playwright."""
    path = find_chromium()
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens a new page; its keywords are those of a playwright context.

    `allow`: address prefixes that may be loaded besides local ones, such as a server of the test.
    """
    contexts = []

    def open_page(allow: tuple[str, ...] = (), **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.blocked, page.problems = [], []

        def gate(route: Any) -> None:
            if route.request.url.startswith((*LOCAL_SCHEMES, *allow)):
                route.continue_()
            else:
                page.blocked.append(route.request.url)
                route.abort()

        context.route("**/*", gate)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on(
            "console",
            lambda message: page.problems.append(message.text) if message.type == "error" else None,
        )
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page: Callable[..., Any]) -> Any:
    """A page on a desk, without a network."""
    return open_page()
