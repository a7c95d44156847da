"""Node for tests of the widgets' JavaScript: the one on the PATH, or the one playwright brings."""

from __future__ import annotations

import shutil
import sys
from importlib import util
from pathlib import Path


def find_node() -> str:
    """Return the path of Node.

    Raises:
        FileNotFoundError: there is none, which needs an environment without playwright.
    """
    candidates = [shutil.which("node")]
    if (package := util.find_spec("playwright")) and package.submodule_search_locations:
        driver = Path(package.submodule_search_locations[0]) / "driver"
        candidates.append(str(driver / ("node.exe" if sys.platform == "win32" else "node")))
    for path in candidates:
        if path and Path(path).is_file():
            return path
    raise FileNotFoundError("no Node found; `make environment` brings one, inside playwright")
