"""The Sphinx extension that keeps the built book offline: what can be tried without a build."""

from __future__ import annotations

from typing import Any

import pytest
from docutils import nodes
from docutils.utils import new_document

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
