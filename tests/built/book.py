"""What the built book should contain, read from its sources."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"


def toc_entries() -> list[str]:
    """Return the names of all pages in `_toc.yml`, in order, without endings."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))

    def walk(node: Any) -> list[str]:
        if isinstance(node, list):
            return [name for entry in node for name in walk(entry)]
        own = [node["file"]] if "file" in node else []
        return own + [
            name for key in ("parts", "chapters", "sections") for name in walk(node.get(key, []))
        ]

    return [toc["root"], *walk(toc)]


def source(entry: str) -> Path:
    """Return the file a page is made from."""
    found = [path for ending in (".md", ".ipynb") if (path := ROOT / (entry + ending)).is_file()]
    assert len(found) == 1, f"{entry} in _toc.yml has {len(found)} source files"
    return found[0]


def html_path(entry: str) -> Path:
    """Return the file of a built page."""
    return HTML / f"{entry}.html"


def cells(entry: str) -> list[dict[str, Any]]:
    """Return the code cells of a page's notebook; none for a page of prose."""
    path = source(entry)
    if path.suffix != ".ipynb":
        return []
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def prose(entry: str) -> str:
    """Return the Markdown of a page."""
    path = source(entry)
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    notebook = json.loads(text)
    return "\n\n".join(
        "".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"
    )


def title(entry: str) -> str:
    """Return the first heading of a page."""
    found = re.search(r"^# +(.+?)\s*$", prose(entry), flags=re.MULTILINE)
    assert found, f"{entry} has no title"
    return found[1]


def has_widget(entry: str) -> bool:
    """Return whether a page's notebook shows a widget."""
    return any("widget" in cell["metadata"].get("tags", []) for cell in cells(entry))


def has_maths(entry: str) -> bool:
    """Return whether a page's prose has formulas."""
    return re.search(r"\$[^$]+\$|\{math\}|\\begin\{(align|equation)", prose(entry)) is not None
