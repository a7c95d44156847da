"""Chromium for the browser tests, cut off from the network.

Fixtures:
    browser: one Chromium for the session.
    page: a fresh page that may load `file:`, `data:` and `blob:` addresses and nothing else.
        `page.blocked` lists the addresses it was refused, `page.problems` the JavaScript errors
        and console errors it produced.
    open_page: makes such pages, with a chosen viewport or with touch, for tests that need several.
    run_in_lab: runs one cell in JupyterLab and returns the page.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
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


# -- JupyterLab ------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_lab(folder: Path) -> Iterator[tuple[str, str]]:
    """A JupyterLab that shows a folder and keeps its settings there; yields address and token."""
    port, token = free_port(), secrets.token_hex(16)
    address = f"http://127.0.0.1:{port}"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        **{
            f"JUPYTER_{name}_DIR": str(folder / f".{name.lower()}")
            for name in ("CONFIG", "RUNTIME", "DATA")
        },
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".workspaces"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"),
        "IPYTHONDIR": str(folder / ".ipython"),
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
        *(f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"),
        *(
            f"--ServerApp.root_dir={folder}",
            "--LabApp.news_url=",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ),
    ]
    log = (folder / "lab.log").open("w")
    server = subprocess.Popen(
        command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
    )
    try:
        for _ in range(240):
            if server.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"{address}/api", timeout=2).close()
                break
            except OSError:
                time.sleep(0.25)
        else:
            pytest.fail("JupyterLab did not start within a minute")
        if server.poll() is not None:
            pytest.fail(f"JupyterLab did not start:\n{(folder / 'lab.log').read_text()}")
        yield address, token
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)  # the server ends its kernels
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait(15)
        log.close()


@pytest.fixture
def run_in_lab(
    tmp_path: Path, open_page: Callable[..., Any]
) -> Iterator[Callable[[str, str], Any]]:
    """A function that runs a cell in JupyterLab; returns the page once a selector is there."""
    pytest.importorskip("jupyterlab")
    import nbformat
    from playwright.sync_api import TimeoutError as PlaywrightTimeout

    with running_lab(tmp_path) as (address, token):

        def run_in_lab(source: str, selector: str) -> Any:
            notebook = nbformat.v4.new_notebook(
                cells=[nbformat.v4.new_code_cell(source, id="live")],
                metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
            )
            nbformat.write(notebook, tmp_path / "live.ipynb")
            # On a cold or busy machine a cell may be run before the kernel or the widget manager is
            # connected. It is then silently not run, not shown, or waits for an answer for ever.
            # Do as a person does: open the page anew, and run it again.
            for patience in (30_000, 60_000, 120_000):
                page = open_page(allow=(address + "/", address.replace("http", "ws") + "/"))
                page.set_default_timeout(120_000)
                page.goto(f"{address}/lab/tree/live.ipynb?token={token}")
                cell = page.locator(".jp-Notebook .jp-CodeCell .cm-content").first
                cell.wait_for()
                with contextlib.suppress(PlaywrightTimeout):
                    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=patience)
                    page.wait_for_timeout(1000)
                    cell.click()
                    page.keyboard.press("Control+Enter")
                    page.wait_for_selector(selector, state="attached", timeout=patience)
                    return page
                page.close()
            raise AssertionError(f"{selector} did not appear in JupyterLab")

        yield run_in_lab
