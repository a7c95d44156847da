"""Every built page in Chromium, served and as a file, without a network: it works, unasked.

That is: no request leaves the book, nothing that it asks itself for is missing, and the browser's
console has nothing to report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.browser.widget_page import served
from tests.built import book

pytestmark = pytest.mark.browser

ENTRIES = book.toc_entries()
WITH_WIDGETS = [entry for entry in ENTRIES if book.has_widget(entry)]
PAGES_AROUND = ("genindex", "search")
PHONE = {"width": 360, "height": 740}

# Maths set, fonts loaded, and a moment for whatever starts late. (Playwright's "networkidle" is no
# help here: for pages opened as files it sometimes never comes.)
AT_REST = """async () => {
  await window.MathJax?.startup?.promise;
  await document.fonts.ready;
  await new Promise((resolve) => setTimeout(resolve, 800)); // the late scripts start after 200
}"""

DRAWN = """() => [...document.querySelectorAll("article .cell_output :is(svg path, canvas)")]
  .map((mark) => mark.getAttribute("d") ?? mark.toDataURL()).join()"""

# Drawn, and done with drawing.
SETTLED = f"""async () => {{
  const before = ({DRAWN})();
  await new Promise((resolve) => setTimeout(resolve, 500));
  return before !== "" && before === ({DRAWN})();
}}"""

STICKING_OUT = """() => [...document.querySelectorAll("article *")]
  .filter((element) => element.getBoundingClientRect().right > window.innerWidth + 1)
  .slice(0, 8).map((element) => `${element.tagName}.${element.getAttribute("class")}`)"""

# Equations that do not show whole; those within the text are wider than it.
CUT_OFF = """() => [
  ...[...document.querySelectorAll("article div.math mjx-container")]
    .filter((equation) => equation.scrollWidth > equation.clientWidth + 1),
  ...[...document.querySelectorAll("article span.math mjx-container")].filter((equation) =>
    equation.getBoundingClientRect().right
      > equation.closest("p, li, td, th, dd, div").getBoundingClientRect().right + 1),
].map((equation) => equation.closest("div.math")?.id || equation.textContent.slice(0, 60))"""


# Pictures narrower than their text needs to be read, and those that a reader cannot scroll to.
TOO_SMALL = """() => [...document.querySelectorAll("article .eos-picture")].filter((box) => {
  const shown = [...box.children].find((image) => image.getClientRects().length);
  if (!shown) return false; // in an answer that is not open
  const { width } = shown.getBoundingClientRect();
  return width < parseFloat(box.style.getPropertyValue("--legible")) - 1
    || Math.max(box.scrollWidth, box.clientWidth) < width - 1;
}).map((box) => box.firstChild.src)"""

# The colour of a picture's first pixel. (Chromium lets no page read pictures that it opened as
# files, so this is for pages that are served.)
PAPER = """(image) => {
  const context = document.createElement("canvas").getContext("2d");
  context.drawImage(image, 0, 0);
  return `rgb(${[...context.getImageData(0, 0, 1, 1).data].slice(0, 3).join(", ")})`;
}"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Serve the built book on this machine; yield its address."""
    assert book.HTML.joinpath("index.html").is_file(), "no built book: `make book` builds it"
    with served(book.HTML) as address:
        yield address


@pytest.fixture(params=["served", "file"])
def address(request: pytest.FixtureRequest, server: str) -> str:
    """Return where the book is: at an address of this machine, or in a folder."""
    return server if request.param == "served" else book.HTML.as_uri()


@pytest.fixture
def visit(open_page: Callable[..., Any], address: str) -> Callable[..., Any]:
    """Return a function that opens a page of the book and lets its scripts come to rest.

    The page's `problems` also get warnings, requests that failed, and answers that are errors.
    """

    def visit(path: str, **options: Any) -> Any:
        page = open_page(allow=(address,), **options)
        problems = page.problems
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        page.on(
            "response",
            lambda answer: (
                problems.append(f"status {answer.status}: {answer.url}")
                if answer.status >= 400
                else None
            ),
        )
        page.on(
            "console",
            lambda message: problems.append(message.text) if message.type == "warning" else None,
        )
        page.goto(f"{address}/{path}", wait_until="load")
        if path == "index.html":  # sends the reader on to the first page
            page.wait_for_url(f"{address}/{ENTRIES[0]}.html", wait_until="load")
        page.evaluate(AT_REST)
        return page

    return visit


def assert_nothing_happened(page: Any) -> None:
    assert page.blocked == []
    assert page.problems == []


def assert_the_first_slider_changes_a_plot(page: Any) -> None:
    slider = page.locator("article input[type=range]").first
    slider.wait_for(timeout=10_000)
    page.wait_for_function(SETTLED, timeout=10_000)
    before = page.evaluate(DRAWN)
    at_the_end = slider.evaluate("(e) => Number(e.value) === Number(e.max)")
    slider.focus()
    page.keyboard.press("ArrowLeft" if at_the_end else "ArrowRight")
    page.wait_for_function(f"(before) => ({DRAWN})() !== before", arg=before, timeout=10_000)


@pytest.mark.parametrize("entry", [*ENTRIES, *PAGES_AROUND])
def test_page_works_without_network_or_complaint(visit: Callable[..., Any], entry: str) -> None:
    page = visit(f"{entry}.html")
    if entry in ENTRIES:
        assert page.locator("article h1").first.is_visible()
        if book.has_maths(entry):
            assert page.locator("mjx-container").count() > 0
    assert page.locator("[data-mjx-error], mjx-merror").count() == 0
    if entry in WITH_WIDGETS:
        assert_the_first_slider_changes_a_plot(page)
    assert_nothing_happened(page)


def test_the_file_to_open_leads_to_the_first_page(visit: Callable[..., Any]) -> None:
    page = visit("index.html")
    assert page.locator("article h1").first.is_visible()
    assert_nothing_happened(page)


# How wide a page is does not depend on where it came from.
@pytest.mark.parametrize("address", ["file"], indirect=True)
@pytest.mark.parametrize("entry", ENTRIES)
def test_page_fits_a_phone(visit: Callable[..., Any], entry: str) -> None:
    page = visit(f"{entry}.html", viewport=PHONE)
    too_wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert too_wide <= 0, f"{too_wide} px of sideways scrolling: {page.evaluate(STICKING_OUT)}"
    assert page.evaluate(CUT_OFF) == []
    assert page.evaluate(TOO_SMALL) == []
    assert_nothing_happened(page)


def test_search_finds_a_page(visit: Callable[..., Any]) -> None:
    page = visit("search.html?q=sharpness")
    page.locator("#search-results li").first.wait_for(timeout=10_000)
    assert_nothing_happened(page)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_colour_scheme_of_the_system_is_followed(visit: Callable[..., Any], theme: str) -> None:
    page = visit(f"{ENTRIES[0]}.html", color_scheme=theme)
    assert page.locator("html").get_attribute("data-theme") == theme
    assert_nothing_happened(page)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("entry", [ENTRIES[0], WITH_WIDGETS[-1]])
def test_figures_are_drawn_for_the_theme(
    visit: Callable[..., Any], address: str, entry: str, theme: str
) -> None:
    page = visit(f"{entry}.html", color_scheme=theme)
    figures = page.locator("article figure").filter(has=page.locator("img")).all()
    assert figures
    for figure in figures:
        figure.scroll_into_view_if_needed()
        shown = [image for image in figure.locator("img").all() if image.is_visible()]
        assert [f"in-{theme}" in image.get_attribute("class").split() for image in shown] == [True]
        shown[0].evaluate("(image) => image.decode()")
        if address.startswith("http"):
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert shown[0].evaluate(PAPER) == background
        assert figure.locator("figcaption").is_visible()
    page.emulate_media(media="print", color_scheme=theme)  # paper is white
    for figure in figures:
        assert figure.locator("img.in-light").is_visible()
        assert not figure.locator("img.in-dark").is_visible()
    assert_nothing_happened(page)
