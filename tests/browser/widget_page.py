"""Small pages that show widgets without a kernel, exactly as the book embeds them; a server."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ipywidgets.embed import dependency_state, embed_data

MOUNT_SCRIPT = Path(__file__).resolve().parents[2] / "book" / "_ext" / "static_widgets.js"


def write_page(path: Path, *widgets: Any, share: bool = False, theme: str | None = None) -> str:
    """Write a page with these widgets, as a notebook exporter would; return its file:// address.

    `share`: keep long strings in scripts of their own, as the book's build does.
    """
    # without a state of their own, every widget that this process ever made would be in the page
    own = dependency_state(widgets, drop_defaults=False)
    embedded = embed_data(views=list(widgets), drop_defaults=False, state=own)
    state, views = embedded["manager_state"], embedded["view_specs"]
    scripts = []
    if share:

        def put(text: str) -> dict[str, str]:
            name = hashlib.sha256(text.encode()).hexdigest()[:16]
            file = path.with_name(f"{name}.js")
            file.write_text(
                "self.__eosShared = self.__eosShared || {};"
                f"self.__eosShared[{json.dumps(name)}] = {json.dumps(text)};"
            )
            scripts.append(f'<script src="{file.name}"></script>')
            return {"$shared": name}

        for model in state["state"].values():
            for key in {"_esm", "_css"} & model["state"].keys():
                model["state"][key] = put(model["state"][key])
            for buffer in model.get("buffers", []):
                buffer["data"] = put(buffer["data"])

    def script(kind: str, content: Any) -> str:
        text = json.dumps(content).replace("</", "<\\/")
        return f'<script type="application/vnd.jupyter.widget-{kind}+json">{text}</script>'

    attribute = f' data-theme="{theme}"' if theme else ""
    path.write_text(
        f'<!doctype html><html lang="en"{attribute}><head><meta charset="utf-8"><title>test</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        + script("state", state)
        + "".join(scripts)
        + "</head><body style='margin: 0 auto; padding: 12px; max-width: 740px'>"
        + "".join(f"<div>{script('view', view)}</div>" for view in views)
        + f"<script>{MOUNT_SCRIPT.read_text(encoding='utf-8')}</script></body></html>",
        encoding="utf-8",
    )
    return path.as_uri()


def settle(page: Any) -> None:
    """Wait until the page has drawn all its widgets; a new width or theme is one frame late."""
    page.wait_for_function(
        """() => [...document.querySelectorAll("script[type$='widget-view+json']")]
          .every((view) => view.nextElementSibling?.hasChildNodes())"""
    )
    frame = "await new Promise(done => requestAnimationFrame(() => setTimeout(done)));"
    page.evaluate(f"async () => {{ {frame} {frame} }}")


def layout_questions(page: Any, slider: Any) -> int:
    """How often a drag of the slider asks what may make the browser lay the page out at once."""
    settle(page)  # what is asked when a widget opens, and when its size is first observed, is over
    page.evaluate(
        """() => {
          self.asked = 0;
          for (const name of ["clientWidth", "clientHeight"]) {
            const { get } = Object.getOwnPropertyDescriptor(Element.prototype, name);
            Object.defineProperty(Element.prototype, name, {
              get() { asked += 1; return get.call(this); },
            });
          }
          const style = getComputedStyle, { getBoundingClientRect: box } = Element.prototype;
          self.getComputedStyle = (...given) => { asked += 1; return style(...given); };
          Element.prototype.getBoundingClientRect = function () {
            asked += 1;
            return box.call(this);
          };
        }"""
    )
    for _ in range(3):
        slider.press("ArrowRight")
        settle(page)
    return int(page.evaluate("asked"))


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without reporting them."""

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; yield the address."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def cut_off(page: Any) -> list[str]:
    """Return texts that stick out of their drawing, and tables too wide for their box."""
    found: list[str] = page.evaluate(
        """() => [
          ...[...document.querySelectorAll("svg text")].filter((text) => {
            const { left, right } = text.closest("svg").getBoundingClientRect();
            const box = text.getBoundingClientRect();
            return box.width && (box.left < left - 1 || box.right > right + 1);
          }).map((text) => text.textContent),
          ...[...document.querySelectorAll("details.eos-table > div")]
            .filter((box) => box.scrollWidth > box.clientWidth)
            .map((box) => `a table of ${box.scrollWidth} px in ${box.clientWidth} px`),
        ]"""
    )
    return found
