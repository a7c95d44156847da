"""The Sphinx extension that keeps the built book offline: what can be tried without a build."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest
from docutils import nodes
from docutils.utils import new_document

from tests.extensions import load_extension
from tests.node import find_node


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
        output(**view, **picture),  # nothing says what the picture shows
    ]
    offline_book.PicturesOfWidgets(document).run()

    with_picture, without, no_widget, without_words = document.children
    script, start, image, end = with_picture.children[0].children
    assert [script.astext(), start.astext(), end.astext()] == [
        "<script></script>",
        "<noscript>",
        "</noscript>",
    ]
    assert (image["uri"], image["alt"]) == ("a.png", "The title. What is to be seen.")
    for untouched in (without, no_widget, without_words):
        assert all(len(form.children) == 1 for form in untouched.children)


PAGE = """<html data-theme="auto"><head>
    <title>Page</title>
    <link href="../_static/styles/theme.css" rel="stylesheet" />
    <script defer src="../_static/scripts/fontawesome.js?digest=5"></script>
    <link rel="preload" as="script" href="../_static/scripts/bootstrap.js?digest=5" />
    <script src="../_static/documentation_options.js?v=1"></script>
    <script src="../_static/doctools.js?v=1"></script>
    <script data-prefix="tab-" src="../_static/design-tabs.js?v=1"></script>
    <script>window.MathJax = {"src": "x"}</script>
    <script defer="defer" src="../_static/mathjax/tex-svg-full.js?v=1"></script>
    <script src="../_static/shared/0123456789abcdef.js"></script>
    <script type="application/vnd.jupyter.widget-state+json">{"state": {}}</script>
    <script src="../_static/static_widgets.js?v=1"></script>
    <script>DOCUMENTATION_OPTIONS.pagename = 'page';</script>
    <script src="../_static/searchtools.js"></script>
    <script src="../_static/language_data.js"></script>
    <script src="../searchindex.js"></script>
</head><body>
  <script type="application/vnd.jupyter.widget-view+json">{"model_id": "1"}</script>
  <script src="in-the-text.js"></script>
  <script defer src="../_static/scripts/bootstrap.js?digest=5"></script>
<script defer src="../_static/scripts/pydata-sphinx-theme.js?digest=5"></script>
</body></html>
"""


def test_scripts_come_in_the_order_in_which_a_reader_needs_them(offline_book: Any) -> None:
    page = offline_book.arrange(PAGE)
    head, _, body = page.partition("</head>")

    places = [
        head.index(mark)
        for mark in ("shared/0123", "widget-state+json", "static_widgets", "<title>", "theme.css")
    ]
    assert places == sorted(places)
    assert not re.search("search|language_data", page)
    for name in ("doctools", "design-tabs"):
        assert head.count(f"{name}.js") == 1
        assert "<script defer " in next(line for line in head.splitlines() if name in line)
    for untouched in ("documentation_options", "MathJax = ", "tex-svg-full", "pagename", "in-the-"):
        (line,) = (line for line in PAGE.splitlines() if untouched in line)
        assert line in page
    assert "<script defer" not in body
    assert "preload" not in head
    late = [body.index(name) for name in ("fontawesome.js", "bootstrap.js", "pydata-sphinx-theme")]
    assert late == sorted(late)
    assert head.index("matchMedia") > head.index("theme.css")
    assert offline_book.arrange(page) == page


BROWSER = """
const [theme, dark, source] = JSON.parse(process.argv[1]);
const log = [], listeners = {};
globalThis.document = {
  documentElement: { dataset: { theme } },
  createElement: (tag) => ({ tag }),
  body: { append: (element) => log.push(element) },
};
globalThis.matchMedia = (query) => ({ matches: query.includes("dark") && dark });
globalThis.addEventListener = (event, listener) => { listeners[event] = listener; };
globalThis.setTimeout = (callback, delay) => { log.push(delay); callback(); };
(0, eval)(source);
const atOnce = log.length;
listeners.load?.();
const { theme: chosen } = document.documentElement.dataset;
process.stdout.write(JSON.stringify({ chosen, atOnce, log }));
"""


def in_a_browser(script: str, theme: str = "auto", dark: bool = False) -> Any:
    """What an inline script does, as far as it touches the few things it should touch."""
    arguments = json.dumps([theme, dark, script])
    command = [find_node(), "-e", BROWSER, arguments]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_the_theme_is_chosen_early_and_large_scripts_come_late(offline_book: Any) -> None:
    page = offline_book.arrange(PAGE)
    added = [
        script
        for script in re.findall("<script>(.*?)</script>", page, re.DOTALL)
        if script not in PAGE
    ]
    choose, late = added

    for theme, dark, chosen in (
        ("auto", True, "dark"),
        ("auto", False, "light"),
        ("light", True, "light"),  # the reader has chosen
        ("dark", False, "dark"),
    ):
        assert in_a_browser(choose, theme, dark) == {"chosen": chosen, "atOnce": 0, "log": []}

    done = in_a_browser(late)
    delay, *scripts = done["log"]
    assert done["atOnce"] == 0  # not before all else has loaded,
    assert delay >= 100  # and the page has had time to draw
    names = [re.sub(r".*/|\?.*", "", script["src"]) for script in scripts]
    assert names == ["fontawesome.js", "bootstrap.js", "pydata-sphinx-theme.js"]
    for script in scripts:  # added scripts run as they come, unless they are told not to
        assert (script["tag"], script["async"]) == ("script", False)


def test_a_page_without_scripts_stays_as_it_is(offline_book: Any) -> None:
    page = '<meta http-equiv="Refresh" content="0; url=book/intro.html" />\n'
    assert offline_book.arrange(page) == page


def icon_script(count: int) -> str:
    path = '"M1 2z' + 200 * "h1" + '"'
    icons = [f'"icon-{k}":[512,512,[128269,"alias-{k}"],"f00{k}",{path}]' for k in range(count)]
    pairs = [f'{name}:[512,512,[],"f185",[{path},{path}]]' for name in ("sun", "moon")]
    return f"(()=>{{var p={{{','.join(pairs + icons)}}};add(p)}})();"


def test_of_the_icons_those_of_the_book_are_left(offline_book: Any) -> None:
    script = icon_script(1200)
    short = offline_book.with_icons(script, {"sun", "icon-7", "icon-1199", "lg"})
    assert [short.count(name) for name in ("sun:", '"icon-7":', '"icon-1199":')] == [1, 1, 1]
    assert short.count('"icon-') == 2 and "moon" not in short
    assert short.startswith("(()=>{var p={") and short.endswith("};add(p)})();")


def test_icons_in_another_layout_end_the_build(offline_book: Any) -> None:
    script = icon_script(1200)
    names = {f"icon-{k}" for k in range(1200)}
    for unknown in (
        icon_script(12),  # too few icons
        script + f"var more={{{'-' * len(script)}}}",  # enough, and as much that is none
    ):
        with pytest.raises(offline_book.ExtensionError, match="another layout"):
            offline_book.with_icons(unknown, {"sun"})
    with pytest.raises(offline_book.ExtensionError, match="another layout"):
        offline_book.with_icons(script, names)  # hardly anything would be gained
