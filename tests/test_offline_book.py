"""The Sphinx extension that keeps the built book offline: what can be tried without a build."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docutils import nodes
from docutils.utils import new_document
from PIL import Image, ImageDraw

from tests.extensions import load_extension


@pytest.fixture(scope="module")
def offline_book() -> Any:
    return load_extension("offline_book")


def output(**forms: Any) -> Any:
    """An output as myst-nb keeps it until it knows what is built: one container per form."""
    bundle = nodes.container(nb_element="mime_bundle")
    bundle += [nodes.container("", node, mime_type=name) for name, node in forms.items()]
    return bundle


def test_a_widget_with_a_picture_shows_it_where_no_script_runs(offline_book: Any) -> None:
    view = {offline_book.WIDGET_VIEW: nodes.raw("", "<script></script>", format="html")}
    picture = {"image/png": nodes.image(uri="a.png")}
    text = {"text/plain": nodes.literal_block("", "The title. What is to be seen.")}
    document = new_document("page")
    document += [
        output(**view, **picture, **text),
        output(**view, **text),
        output(**picture, **text),
    ]
    offline_book.PicturesOfWidgets(document).run()

    with_picture, without, no_widget = document.children
    script, start, image, end = with_picture.children[0].children
    assert [script.astext(), start.astext(), end.astext()] == [
        "<script></script>",
        "<noscript>",
        "</noscript>",
    ]
    assert (image["uri"], image["alt"]) == ("a.png", "The title. What is to be seen.")
    for untouched in (without, no_widget):
        assert all(len(form.children) == 1 for form in untouched.children)


def test_pictures_get_a_palette_once_and_look_the_same(offline_book: Any, tmp_path: Path) -> None:
    folder = tmp_path / "_images"
    folder.mkdir()
    drawing = Image.new("RGBA", (300, 200), "white")
    ImageDraw.Draw(drawing).line([(10, 190), (150, 20), (290, 150)], fill="#2d6a8e", width=3)
    drawing.save(folder / "a.png")
    builder = SimpleNamespace(format="html", imagedir="_images")
    app = SimpleNamespace(outdir=tmp_path, builder=builder)
    before = (folder / "a.png").stat().st_size
    offline_book.shrink_pictures(app, None)
    small = (folder / "a.png").read_bytes()
    assert len(small) < before
    with Image.open(folder / "a.png") as now:
        assert now.mode == "P"
        assert now.convert("RGBA").tobytes() == drawing.tobytes()

    offline_book.shrink_pictures(app, None)
    assert (folder / "a.png").read_bytes() == small
    drawing.save(folder / "b.png")
    offline_book.shrink_pictures(app, RuntimeError("the build failed"))
    assert (folder / "b.png").stat().st_size == before
