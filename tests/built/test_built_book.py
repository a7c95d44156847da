"""The built book itself: every page is there, complete, and free of errors and outside requests."""

from __future__ import annotations

import configparser
import json
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml
from bs4 import BeautifulSoup, Tag
from PIL import Image

from tests.built import book
from tests.extensions import load_extension

pytestmark = pytest.mark.built

ENTRIES = book.toc_entries()
CLAIMS = book.ROOT / "book" / "claims.yml"
PAGES_AROUND = ("index", "genindex", "search")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
SIZE_BUDGET = 1_500_000  # bytes of one page with the images and shared data that only it brings


@cache
def soup(entry: str) -> BeautifulSoup:
    """The page as a tree, which no test changes: to read the largest takes two seconds."""
    path = book.html_path(entry)
    assert path.is_file(), f"{path} is missing: `make book` builds it"
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def article(entry: str) -> Tag:
    found = soup(entry).find("article")
    assert isinstance(found, Tag), f"{entry} has no article"
    return found


def letters(text: str) -> str:
    """Drop markup, marks and spaces, which Sphinx may change."""
    text = re.sub(r"\{[a-z:]+\}|<.*?>", "", text)
    return "".join(character for character in text if character.isalnum()).casefold()


def without_machine_digits(text: str) -> str:
    """Mask what nbval does not compare either: numbers at the edge, which differ by machine."""
    masks = configparser.ConfigParser(interpolation=None)
    masks.read(book.ROOT / "scripts" / "nbval.cfg")
    for name in masks.sections():
        text = re.sub(masks[name]["regex"], masks[name]["replace"], text)
    return text


@pytest.mark.parametrize("entry", ENTRIES)
def test_scripts_load_in_the_order_in_which_a_reader_needs_them(entry: str) -> None:
    head = soup(entry).head
    assert head is not None
    parts = head.find_all(["script", "link"])
    style = next(i for i, part in enumerate(parts) if part.get("rel") == ["stylesheet"])
    for index, part in enumerate(parts):
        source = part.get("src", "")
        if part.name != "script" or not source:
            continue
        assert not re.search("searchindex|searchtools|language_data", source)
        assert not re.search("fontawesome|bootstrap|pydata-sphinx-theme", source)
        assert index < style or part.has_attr("defer") or "documentation_options" in source, source


def test_the_toc_lists_every_source_once() -> None:
    sources = {path for path in book.ROOT.glob("book/**/*") if path.suffix in {".ipynb", ".md"}}
    sources = {path for path in sources if not any(p.startswith((".", "_")) for p in path.parts)}
    listed = [book.source(entry) for entry in ENTRIES]
    assert len(listed) == len(set(listed))
    assert set(listed) == sources


@pytest.mark.parametrize("entry", ENTRIES)
def test_page_exists_with_its_title(entry: str) -> None:
    heading = article(entry).find("h1")
    assert isinstance(heading, Tag)
    assert letters(book.title(entry)) in letters(heading.get_text())


@pytest.mark.parametrize("entry", ENTRIES)
def test_page_has_every_figure_its_notebook_declares(entry: str) -> None:
    declared = [c for c in book.cells(entry) if "figure" in c["metadata"].get("mystnb", {})]
    figures = [
        figure
        for figure in article(entry).find_all("figure")
        if figure.find("img") or figure.find("script", type=WIDGET_VIEW)
    ]
    assert len(figures) >= len(declared)
    for figure in figures:
        caption = figure.find("figcaption")
        assert caption and caption.get_text(strip=True), f"a figure of {entry} has no caption"


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_image_exists_and_says_what_it_shows(entry: str) -> None:
    for image in article(entry).find_all("img"):
        alternative = image.get("alt", "").strip()
        path = (book.html_path(entry).parent / unquote(image["src"])).resolve()
        assert path.is_file() and path.stat().st_size > 0
        assert alternative, f"{image['src']} of {entry} has no alternative text"
        assert not alternative.startswith(("../", "_images", "<Figure")), alternative


@pytest.mark.parametrize("entry", ENTRIES)
def test_figures_have_colours_that_the_dark_theme_knows(entry: str) -> None:
    """A colour that is not in the palette would be replaced by some other without a word."""
    known, _ = load_extension("pictures").counterparts()
    for image in article(entry).select("img.in-light"):
        path = book.html_path(entry).parent / unquote(image["src"])
        with Image.open(path) as picture:
            found = picture.convert("RGB").getcolors(1 << 20)
        counts = np.array([count for count, _ in found])
        colors = np.array([color for _, color in found], dtype=float)
        distance = np.sqrt(((colors[:, None] - known) ** 2).sum(axis=-1)).min(axis=1)
        drawn = counts[(colors < 250).any(axis=1)].sum()
        # Where two curves cross, some pixels are mixtures of both: 4 % in the worst figure.
        assert counts[distance > 24].sum() < 0.05 * drawn, f"{path.name} of {entry}"


@pytest.mark.parametrize("entry", ENTRIES)
def test_page_shows_no_error(entry: str) -> None:
    content = article(entry)
    assert not content.select(
        ".output.traceback, .cell_output .stderr, .system-message, .problematic"
    )
    assert "Traceback (most recent call last)" not in content.get_text()


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_table_is_shown_as_its_source(entry: str) -> None:
    shown = [paragraph.get_text() for paragraph in article(entry).find_all("p")]
    assert not [text for text in shown if text.startswith("| ")]


@pytest.mark.parametrize("entry", ENTRIES)
def test_check_cells_print_what_the_notebook_stores(entry: str) -> None:
    shown = without_machine_digits(article(entry).get_text())
    for cell in book.cells(entry):
        for output in cell["outputs"]:
            for line in without_machine_digits("".join(output.get("text", []))).splitlines():
                assert line in shown, f"{entry} does not show {line!r}"


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if book.has_widget(entry)] or [None])
def test_widgets_have_their_state(entry: str | None) -> None:
    if entry is None:
        pytest.skip("no chapter has a widget")
    page = soup(entry)
    models = {}
    for script in page.find_all("script", type="application/vnd.jupyter.widget-state+json"):
        models |= json.loads(script.string)["state"]
    views = page.find_all("script", type=WIDGET_VIEW)
    tagged = [c for c in book.cells(entry) if "widget" in c["metadata"].get("tags", [])]
    assert len(views) >= len(tagged)
    loaded = {Path(s["src"].partition("?")[0]).stem for s in page.find_all("script", src=True)}
    for view in views:
        model = models[json.loads(view.string)["model_id"]]
        for value in [model["state"]["_esm"], *(b["data"] for b in model.get("buffers", []))]:
            assert isinstance(value, str) or value["$shared"] in loaded


@pytest.mark.parametrize("entry", [*ENTRIES, *PAGES_AROUND])
def test_page_names_no_outside_file(entry: str) -> None:
    page = soup(entry)
    names = [tag["src"] for tag in page.find_all(src=True)]
    names += [tag["href"] for tag in page.find_all("link", href=True)]
    assert not [name for name in names if urlsplit(name).scheme or name.startswith("//")]


@pytest.mark.parametrize("entry", ENTRIES)
def test_local_links_lead_somewhere(entry: str) -> None:
    here = book.html_path(entry)
    page = soup(entry)
    ids = {tag["id"] for tag in page.find_all(id=True)}
    for link in page.find_all("a", href=True):
        parts = urlsplit(link["href"])
        if parts.scheme or parts.netloc:
            continue
        target = (here.parent / unquote(parts.path)).resolve() if parts.path else here
        assert target.is_file(), f"{entry} links to {link['href']}"
        if parts.fragment and target == here:
            assert unquote(parts.fragment) in ids, f"{entry} links to {link['href']}"


@pytest.mark.parametrize("entry", ENTRIES)
def test_page_keeps_its_size_budget(entry: str) -> None:
    path = book.html_path(entry)
    page = soup(entry)
    own = {(path.parent / unquote(image["src"])).resolve() for image in page.find_all("img")}
    own |= {
        (path.parent / unquote(urlsplit(script["src"]).path)).resolve()
        for script in page.find_all("script", src=re.compile("_static/shared/"))
    }
    size = path.stat().st_size + sum(part.stat().st_size for part in own)
    assert size <= SIZE_BUDGET, f"{entry} weighs {size / 1e6:.2f} MB"


def test_shared_files_are_all_used() -> None:
    stored = {path.stem for path in (book.HTML / "_static" / "shared").glob("*.js")}
    pages = "".join(book.html_path(entry).read_text(encoding="utf-8") for entry in ENTRIES)
    assert {name for name in stored if f"shared/{name}.js" in pages} == stored


def test_mathjax_is_one_local_file() -> None:
    files = [path.name for path in (book.HTML / "_static" / "mathjax").iterdir()]
    assert files == ["tex-svg-full.js"]


def test_the_laboratory_opens_without_mathjax() -> None:
    """It takes a third of a second of the main thread; that page writes its few symbols itself."""
    assert "tex-svg-full" in book.html_path("book/quadratics").read_text(encoding="utf-8")
    assert "tex-svg-full" not in book.html_path("book/laboratory").read_text(encoding="utf-8")


def test_the_ledger_holds_every_check_of_a_numbered_claim() -> None:
    printed = [
        match
        for entry in ENTRIES
        for cell in book.cells(entry)
        for output in cell["outputs"]
        for line in "".join(output.get("text", [])).splitlines()
        if (match := re.match(r"(C\d+) (holds|does not hold): (.*) [=≈] ", line))
    ]
    assert printed
    tables = article("book/claims_ledger").select(".eos-ledger-table")
    rows = [
        [cell.get_text(" ", strip=True) for cell in row.find_all("td")]
        for table in tables[1:-1]  # the first is the overview, the last what has not been run
        for row in table.select("tbody tr")
    ]
    assert sorted((row[1], row[4]) for row in rows) == sorted(
        (" ".join(match[3].split()), match[2]) for match in printed
    )
    overview = [row.find("td").get_text() for row in tables[0].select("tbody tr")]
    assert set(overview) == set(yaml.safe_load(CLAIMS.read_text(encoding="utf-8")))
