"""Sphinx extension: the figures of the chapters, small, and drawn for both themes.

Matplotlib draws on white. A white sheet in a dark page is a lamp in the reader's eyes, and an
inverted one gives a step size another colour than its slider has. But every mark of our figures has
a colour of `eoslib.palette`, and each of those has a counterpart for the dark theme; what lies
between a mark and the paper, the soft rim of a line or a pale curve, is a mixture of the two. So
the figure for the dark theme is the same drawing with every colour replaced.

1. Every picture gets a palette of 256 colours: a third of the bytes.
2. The same picture with the colours of the dark theme stands beside it, as ``NAME-dark.png``.
3. A page holds both, and its style sheet shows the one of the theme. They say their size, so that
   nothing moves when they arrive, and are loaded when needed.
4. Both stand in a box that says how wide they have to be for their text to be read: a pixel for a
   point. On a phone the style sheet keeps to that, and the box scrolls.
"""

from __future__ import annotations

import io
import sys
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from docutils import nodes  # type: ignore[import-untyped]
from PIL import Image
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from eoslib.palette import (
    ACCENT,
    BACKGROUNDS,
    INK,
    MUTED,
    Theme,
    step_size_color,
)

SUFFIX = "-dark"
POINTS_PER_INCH = 72
LEVELS = 64  # from the paper to a colour
SHADES = 65  # from the smallest step size to the largest


def dark_name(name: str) -> str:
    """Return the name, or the address, of the twin of a picture."""
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}{SUFFIX}{path.suffix}"))


@cache
def counterparts() -> tuple[np.ndarray, np.ndarray]:
    """Return colours on white and what they become: each of the palette's, from pale to full.

    Returns:
        Two arrays ``(n, 3)`` of values from 0 to 255.
    """
    themes: tuple[Theme, Theme] = ("light", "dark")
    along = np.geomspace(0.01, 1, SHADES)
    pairs = [
        *(tuple(step_size_color(lr, 0.01, 1, theme=theme) for theme in themes) for lr in along),
        *((table["light"], table["dark"]) for table in (INK, MUTED, ACCENT)),
        ("#000000", "#ffffff"),
    ]
    amount = np.linspace(0, 1, LEVELS + 1)[:, None]
    light, dark = (
        np.concatenate([paper + amount * (rgb(pair[side]) - paper) for pair in pairs])
        for side, paper in enumerate((rgb("#ffffff"), rgb(BACKGROUNDS["dark"][0])))
    )
    return light, dark


def rgb(color: str) -> np.ndarray:
    """Return the three values of a `#rrggbb` colour."""
    return np.array(list(bytes.fromhex(color[1:])), dtype=float)


def in_dark(colors: np.ndarray) -> np.ndarray:
    """Return the counterparts in the dark theme of colours ``(n, 3)`` from 0 to 255.

    A colour that is none of the palette's, as where two lines cross, is taken for the nearest one.
    """
    light, dark = counterparts()
    distances = ((colors[:, None, :] - light) ** 2).sum(axis=-1)
    found: np.ndarray = dark[distances.argmin(axis=1)].round().astype(np.uint8)
    return found


def finish_pictures(app: Sphinx, exception: Exception | None) -> None:
    """Give the pictures of a successful build their palette, in place, and their twins.

    Sphinx copies every picture anew in a build that writes its page, so what is a palette picture
    with a twin already was finished before.
    """
    if exception is not None or app.builder.format != "html":
        return
    for path in sorted(Path(app.outdir, app.builder.imagedir).glob("*.png")):
        twin = path.with_name(dark_name(path.name))
        if path.stem.endswith(SUFFIX):
            continue
        with Image.open(path) as picture:
            if picture.mode == "P" and twin.exists():
                continue
            # Figures have no transparent pixels: matplotlib draws on white.
            small = picture.convert("RGB").quantize(256)
        shrunk = encoded(small)
        if len(shrunk) < path.stat().st_size:
            path.write_bytes(shrunk)
        palette = np.array(small.getpalette(), dtype=float).reshape(-1, 3)
        small.putpalette(in_dark(palette).tobytes())
        twin.write_bytes(encoded(small))


def encoded(picture: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return file.getvalue()


def resolution(picture: Image.Image, name: str) -> float:
    """Return the pixels per inch that a picture says it was drawn with.

    Raises:
        ExtensionError: If it does not say so.
    """
    if "dpi" not in picture.info:
        raise ExtensionError(
            f"{name} does not say how many pixels it has to an inch, which tells how large its "
            "text is: draw it with matplotlib, or save it with a resolution"
        )
    return float(picture.info["dpi"][0])


def visit_image(translator: Any, node: nodes.image) -> None:
    """Write a picture twice, once for each theme, each with its size."""
    if not node["uri"].endswith(".png"):
        type(translator).visit_image(translator, node)
        return
    with Image.open(Path(translator.builder.srcdir, node["uri"])) as picture:
        width, height = picture.size
        inches = width / resolution(picture, node["uri"])
    translator.body.append(
        f'<span class="eos-picture" style="--legible: {inches * POINTS_PER_INCH:.0f}px">'
    )
    node["loading"] = "lazy"
    uri, classes = node["uri"], node["classes"]
    for added in (["in-light"], ["in-dark", "dark-light"]):
        node["classes"] = [*classes, *added]
        type(translator).visit_image(translator, node)
        tag = translator.body[-1]
        translator.body[-1] = tag.replace("<img ", f'<img width="{width}" height="{height}" ', 1)
        # The first visit has replaced the path of the source by the address in the book.
        node["uri"] = dark_name(node["uri"])
    node["uri"], node["classes"] = uri, classes
    translator.body.append("</span>")


def depart_image(translator: Any, node: nodes.image) -> None:
    """Finish as the theme would."""
    type(translator).depart_image(translator, node)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to the events of a build."""
    app.add_node(nodes.image, override=True, html=(visit_image, depart_image))
    app.connect("build-finished", finish_pictures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
