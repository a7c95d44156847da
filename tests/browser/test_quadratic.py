"""The quadratic in a page without a kernel: every control, every kind of pointer, every width."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("anywidget")

from eoslib.palette import step_size_color
from eoslib.widgets.quadratic import EXTENT, LR_RANGE, QuadraticExplorer
from tests.browser.test_explorer import make_explorer
from tests.browser.widget_page import cut_off, layout_questions, settle, write_page

browser_test = pytest.mark.browser

PHONE = {"viewport": {"width": 360, "height": 800}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("quadratic") / "page.html"
    return write_page(path, QuadraticExplorer((10, 1), lr=0.05, title="a bowl"))


@pytest.fixture
def shown(page: Any, address: str) -> Iterator[Any]:
    """A page that shows one quadratic; afterwards: no request left it, no error was logged."""
    visit(page, address)
    yield page
    assert page.blocked == []
    assert page.problems == []


def visit(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector(".eos-q .eos-line[d^=M]", state="attached")


def picture(page: Any) -> dict[str, Any]:
    """What the first quadratic shows now."""
    settle(page)
    return page.evaluate(
        """() => {
          const root = document.querySelector(".eos-q"), $ = (s) => root.querySelector(s);
          const texts = (s) => [...root.querySelectorAll(s)].map((e) => e.textContent);
          return {
            verdict: $(".eos-status span").textContent, factors: $("small").textContent,
            values: texts(".eos-values b"), settings: texts(".eos-settings b"),
            threshold: $(".eos-track em").textContent, above: texts(".eos-above"),
            spoken: $(".eos-track input").getAttribute("aria-valuetext"),
            start: $(".eos-ring").getAttribute("aria-valuetext"),
            lines: [...root.querySelectorAll(".eos-line")].map((e) => e.getAttribute("d")),
            dots: [...root.querySelectorAll(".eos-map circle")].map(
              (e) => [Number(e.getAttribute("cx")), Number(e.getAttribute("cy")),
                e.getAttribute("class")]),
            size: $(".eos-map").clientWidth,
            eta: getComputedStyle(root).getPropertyValue("--eta").trim(),
          };
        }"""
    )


def slider(page: Any) -> Any:
    return page.get_by_role("slider", name="step size η").first


def press(control: Any, key: str, times: int = 1) -> None:
    for _ in range(times):
        control.press(key)


def ring(page: Any) -> Any:
    return page.get_by_role("slider", name="start point")


# -- the step size ---------------------------------------------------------------------------


@browser_test
def test_first_picture(shown: Any) -> None:
    now = picture(shown)
    assert now["verdict"] == "monotone"
    assert now["factors"] == "x₁ × 0.5, x₂ × 0.95 per step"
    assert now["values"] == ["0.05", "0.5", "0.05"]
    assert now["threshold"] == "2/λ₁ = 0.2"
    assert now["spoken"] == "step size 0.05, η λ₁ 0.5, η λ₂ 0.05, monotone"
    assert shown.locator(".static-widget-note").count() == 0


@browser_test
def test_keys_pass_through_every_verdict_and_stop_at_the_threshold(shown: Any) -> None:
    press(slider(shown), "Home")
    seen = [picture(shown)["verdict"]]
    values = []
    for _ in range(200):
        slider(shown).press("ArrowRight")
        now = picture(shown)
        values.append(float(now["values"][0]))
        if now["verdict"] != seen[-1]:
            seen.append(now["verdict"])
            if now["verdict"] == "at the threshold":
                assert now["values"][:2] == ["0.2", "2"]
        if now["verdict"] == "diverges":
            break
    assert seen == ["monotone", "zigzag", "at the threshold", "diverges"]
    assert np.all(np.diff(values) > 0)
    press(slider(shown), "ArrowLeft")
    assert picture(shown)["verdict"] == "at the threshold", "and on the way back"
    press(slider(shown), "PageUp")
    assert picture(shown)["verdict"] == "diverges"
    press(slider(shown), "End")
    assert picture(shown)["values"][0] == "2"


@browser_test
def test_buttons_do_what_the_keys_do(shown: Any) -> None:
    before = float(picture(shown)["values"][0])
    shown.get_by_role("button", name="larger step size").click()
    assert float(picture(shown)["values"][0]) > before
    shown.get_by_role("button", name="smaller step size").click()
    assert float(picture(shown)["values"][0]) == pytest.approx(before, rel=0.01)


@browser_test
def test_dragging_snaps_to_the_threshold(shown: Any) -> None:
    box = slider(shown).bounding_box()
    shown.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 16)
    shown.mouse.down()
    seen = set()
    for fraction in np.linspace(0.3, 0.8, 120):
        shown.mouse.move(box["x"] + box["width"] * fraction, box["y"] + 16)
        seen.add(picture(shown)["verdict"])
    shown.mouse.up()
    assert seen == {"monotone", "zigzag", "at the threshold", "diverges"}


@browser_test
def test_the_mark_is_where_the_thumb_is_at_the_threshold(shown: Any) -> None:
    while picture(shown)["verdict"] != "at the threshold":
        press(slider(shown), "ArrowRight")
    middle, mark = shown.evaluate(
        """() => {
          const input = document.querySelector(".eos-track input").getBoundingClientRect();
          const mark = document.querySelector(".eos-mark").getBoundingClientRect();
          const at = document.querySelector(".eos-track input").value / 1000;
          return [input.left + 12 + at * (input.width - 24), (mark.left + mark.right) / 2];
        }"""
    )
    assert mark == pytest.approx(middle, abs=1)


@browser_test
def test_the_verdict_is_announced_when_it_changes_and_only_then(shown: Any) -> None:
    shown.evaluate(
        """() => {
          window.spoken = [];
          new MutationObserver(() => window.spoken.push(
            document.querySelector(".eos-status span").textContent)
          ).observe(document.querySelector("[role=status]"), { childList: true });
        }"""
    )
    for _ in range(40):
        slider(shown).press("ArrowRight")
        settle(shown)
    assert picture(shown)["verdict"] == "zigzag"
    assert shown.evaluate("window.spoken") == ["zigzag"]


@browser_test
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_those_of_the_palette(shown: Any, theme: str) -> None:
    shown.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
    for key in ("Home", "PageUp", "PageUp", "End"):
        press(slider(shown), key)
        now = picture(shown)
        lr = float(now["values"][0])
        assert now["eta"] == step_size_color(lr, *LR_RANGE, theme=theme)  # type: ignore[arg-type]
    background = shown.evaluate(
        "getComputedStyle(document.querySelector('.eos-q')).getPropertyValue('--surface').trim()"
    )
    assert background == {"light": "#ffffff", "dark": "#14181e"}[theme]


# -- the picture -----------------------------------------------------------------------------


@browser_test
@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.18},
        {"lr": 0.25, "momentum": "polyak"},
        {"lr": 0.1, "momentum": "nesterov", "beta": 0.5},
        {"lr": 0.05, "curvatures": (10, -0.1), "start": (1.0, -0.2)},
    ],
)
def test_dots_are_the_iterates_of_the_library(
    page: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    widget = QuadraticExplorer(**settings)
    visit(page, write_page(tmp_path / "page.html", widget))
    now = picture(page)
    dots = np.array([dot[:2] for dot in now["dots"]])
    shown = (2 * dots / now["size"] - 1) * 1.1 * EXTENT * np.array([1, -1])  # x₂ right, x₁ up
    np.testing.assert_allclose(shown[:, ::-1], widget.iterates(), atol=0.01)
    kinds = [dot[2] for dot in now["dots"]]
    assert kinds == ["eos-full", "eos-hollow"] * (len(kinds) // 2) + ["eos-full"]


@browser_test
def test_a_diverging_path_ends_outside_the_map(shown: Any) -> None:
    press(slider(shown), "End")
    now = picture(shown)
    assert now["verdict"] == "diverges"
    assert len(now["dots"]) < 5
    assert not 0 <= now["dots"][-1][1] <= now["size"]
    assert "NaN" not in "".join(now["lines"])
    colour = "getComputedStyle(document.querySelector('.eos-status span')).color"
    assert shown.evaluate(colour) == "rgb(184, 69, 28)"


@browser_test
def test_the_table_lists_every_step(shown: Any) -> None:
    shown.locator(".eos-table summary").click()
    shown.locator(".eos-table tr").first.wait_for()  # filled a moment later
    rows = shown.locator(".eos-table tr").all_inner_texts()
    assert rows[0].split("\t") == ["step", "x₁", "x₂", "loss"]
    assert rows[2].split("\t") == ["1", "0.6", "1.71", "3.26"]
    assert len(rows) == 42


# -- the settings ----------------------------------------------------------------------------


@browser_test
def test_curvature_moves_the_threshold_and_stays_in_order(shown: Any) -> None:
    sharp = shown.get_by_role("slider", name="curvature λ₁")
    flat = shown.get_by_role("slider", name="curvature λ₂")
    press(sharp, "ArrowLeft", 10)
    now = picture(shown)
    assert now["settings"][0] == "5"
    assert now["threshold"] == "2/λ₁ = 0.4"
    press(flat, "End")
    assert picture(shown)["settings"][:2] == ["5", "5"], "λ₁ is the larger one"
    press(sharp, "Home")
    assert picture(shown)["settings"][:2] == ["2", "2"]


@browser_test
def test_negative_curvature_diverges_at_every_step_size(shown: Any) -> None:
    flat = shown.get_by_role("slider", name="curvature λ₂")
    press(flat, "Home")
    now = picture(shown)
    assert now["settings"][1] == "−2"
    assert now["above"] == ["below zero from step 1"]
    assert shown.locator(".eos-negative").count() > 0
    for key in ("Home", "End"):
        press(slider(shown), key)
        assert picture(shown)["verdict"] == "diverges"


@browser_test
def test_momentum_moves_the_threshold(shown: Any) -> None:
    beta = shown.get_by_role("slider", name="β")
    assert beta.is_disabled()
    for kind, label in (("Polyak", "3.8/λ₁ = 0.38"), ("Nesterov", "1.36/λ₁ = 0.136")):
        shown.get_by_role("radio", name=kind).check()
        now = picture(shown)
        assert now["threshold"] == label
        assert now["factors"].endswith("in the long run")
    press(beta, "ArrowLeft", 40)
    now = picture(shown)
    assert now["settings"][2] == "0.5"
    assert now["threshold"] == "1.5/λ₁ = 0.15"
    shown.get_by_role("button", name="Reset").click()
    now = picture(shown)
    assert now["threshold"] == "2/λ₁ = 0.2"
    assert shown.get_by_role("radio", name="none").is_checked()


# -- the start -------------------------------------------------------------------------------


@browser_test
def test_start_by_keyboard(shown: Any) -> None:
    assert picture(shown)["start"] == "x₁ = 1.2, x₂ = 1.8"
    press(ring(shown), "ArrowDown")
    press(ring(shown), "Shift+ArrowLeft")
    assert picture(shown)["start"] == "x₁ = 1.15, x₂ = 1.3"
    press(ring(shown), "Shift+ArrowUp", 5)
    assert picture(shown)["start"] == "x₁ = 2, x₂ = 1.3", "not beyond the map"
    press(ring(shown), "Shift+ArrowDown", 4)
    now = picture(shown)
    assert now["start"] == "x₁ = 0, x₂ = 1.3"
    assert now["factors"].startswith("x₁ stays 0, ")
    press(slider(shown), "PageUp", 4)
    now = picture(shown)
    assert float(now["values"][1]) > 2
    assert now["verdict"] == "monotone", "nothing moves along q₁"


@browser_test
def test_start_by_mouse(shown: Any) -> None:
    box = shown.locator(".eos-map").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    unit = box["width"] / (2 * 1.1 * EXTENT)
    handle = ring(shown).bounding_box()
    shown.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    shown.mouse.down()
    shown.mouse.move(middle[0] - unit, middle[1] + 0.5 * unit, steps=5)
    assert picture(shown)["start"] == "x₁ = −0.5, x₂ = −1"
    shown.mouse.move(5, 5)  # outside: the ring stays at the edge
    assert picture(shown)["start"] == "x₁ = 2, x₂ = −2"
    shown.mouse.up()
    shown.mouse.click(middle[0] + unit, middle[1])
    assert picture(shown)["start"] == "x₁ = 0, x₂ = 1"
    assert ring(shown).evaluate("(e) => e === document.activeElement")


@browser_test
def test_start_by_touch(open_page: Callable[..., Any], address: str) -> None:
    page = open_page(**PHONE)
    visit(page, address)
    size = picture(page)["size"]
    page.locator(".eos-map").tap(position={"x": size / 2, "y": size * (0.5 - 1 / 4.4)})
    assert picture(page)["start"] == "x₁ = 1, x₂ = 0"
    touch = "(selector) => getComputedStyle(document.querySelector(selector)).touchAction"
    assert page.evaluate(touch, ".eos-ring") == "none"
    assert page.evaluate(touch, ".eos-map") == "auto", "a finger on the map scrolls the page"


# -- everywhere ------------------------------------------------------------------------------


@browser_test
@pytest.mark.parametrize("width", [320, 360, 768])
def test_narrow_screens_need_no_sideways_scrolling(
    open_page: Callable[..., Any], address: str, width: int
) -> None:
    page = open_page(viewport={"width": width, "height": 800})
    visit(page, address)
    page.get_by_role("radio", name="Nesterov").check()
    page.locator(".eos-table summary").click()
    for key in ("Home", "End"):
        press(slider(page), key)
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert cut_off(page) == []
    # the column of the book is narrower than the page
    page.add_style_tag(content="body { padding: 12px 24px !important; }")
    settle(page)
    ends = page.locator(".eos-q fieldset label").evaluate_all(
        "(labels) => labels.map((label) => label.getBoundingClientRect().right)"
    )
    assert max(ends) <= width - 24


@browser_test
def test_controls_do_not_move_while_the_step_size_changes(shown: Any) -> None:
    places = set()
    for key in ("Home", "PageUp", "PageUp", "PageUp", "End"):
        press(slider(shown), key)
        settle(shown)
        boxes = [slider(shown).bounding_box(), shown.locator(".eos-settings").bounding_box()]
        places.add(str(boxes))
    assert len(places) == 1


@browser_test
@pytest.mark.parametrize(("options", "least"), [({}, 24), (PHONE, 44)])
def test_targets_are_large_enough(
    open_page: Callable[..., Any], address: str, options: dict[str, Any], least: int
) -> None:
    page = open_page(**options)
    visit(page, address)
    small = page.evaluate(
        """(least) => [...document.querySelectorAll(
            ".eos-q :is(button, summary, .eos-ring, fieldset label, .eos-settings [type=range])")]
          .filter((e) => e.getBoundingClientRect().height < least)
          .map((e) => e.outerHTML)""",
        least,
    )
    assert small == []


@browser_test
def test_every_control_has_a_name(shown: Any) -> None:
    tree = shown.locator(".eos-q").aria_snapshot()
    assert 'group "momentum"' in tree
    for name in ("step size η", "curvature λ₁", "curvature λ₂", "start point"):
        assert f'slider "{name}' in tree
    assert re.search(r"- (button|radio|slider)( \[.*\])?:?$", tree, re.MULTILINE) is None


@browser_test
def test_dragging_does_not_ask_for_the_layout(shown: Any) -> None:
    """The browser lays the page out once a frame, not once more for every question."""
    assert layout_questions(shown, slider(shown)) == 0


@browser_test
def test_each_widget_takes_a_task_of_its_own(page: Any, tmp_path: Path) -> None:
    """All that a page holds in one task would be a page that does not answer."""
    page.add_init_script(
        """
        self.order = [];
        const append = Element.prototype.append, style = getComputedStyle;
        Element.prototype.append = function (...given) {
          append.apply(this, given);
          if (this.className !== "static-widget") return;
          order.push("made");
          setTimeout(() => order.push("turn")); // timers come in the order in which they were set
        };
        self.getComputedStyle = (...given) => {
          if (document.documentElement.dataset.theme) {
            order.push("drawn");
            queueMicrotask(() => order.push("turn")); // when the task is over
          }
          return style(...given);
        };
        """
    )
    page.goto(write_page(tmp_path / "page.html", *[make_explorer() for _ in range(3)]))
    settle(page)
    assert page.evaluate("order") == 3 * ["made", "turn"]
    page.evaluate("order.length = 0, document.documentElement.dataset.theme = 'dark'")
    settle(page)
    assert page.evaluate("order") == 3 * ["drawn", "turn"]


@browser_test
def test_quadratics_and_explorers_share_a_page(page: Any, tmp_path: Path) -> None:
    """Two classes of widgets, one model shown twice; texts shared as in the book."""
    first, second = QuadraticExplorer(lr=0.05), QuadraticExplorer(lr=0.3, momentum="polyak")
    explorer = make_explorer()
    visit(page, write_page(tmp_path / "page.html", explorer, first, second, first, share=True))
    page.wait_for_selector(".eos-plot .eos-line[d^=M]", state="attached")
    settle(page)
    assert page.locator(".eos-q").count() == 3
    assert page.locator(".eos-x:not(.eos-q)").count() == 1
    sizes = page.locator(".eos-q .eos-values span:first-child b")
    assert sizes.all_inner_texts() == ["0.05", "0.3", "0.05"]
    slider(page.locator(".eos-q").first).press("ArrowRight")
    settle(page)
    after = sizes.all_inner_texts()
    assert after[0] == after[2] != "0.05", "views of one model move together"
    assert after[1] == "0.3"
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    checked = page.locator(".eos-q fieldset input:checked").evaluate_all(
        "(inputs) => inputs.map((input) => input.value)"
    )
    assert checked == ["none", "polyak", "none"]
    explorer_slider = page.locator(".eos-x:not(.eos-q) .eos-track input")
    before = page.locator(".eos-lr").inner_text()
    explorer_slider.press("ArrowRight")
    settle(page)
    assert page.locator(".eos-lr").inner_text() != before
    assert page.problems == []
    assert page.blocked == []


@browser_test
def test_a_title_is_text_not_markup(page: Any, tmp_path: Path) -> None:
    title = "<img src=x onerror='window.hacked = 1'></script>"
    visit(page, write_page(tmp_path / "page.html", QuadraticExplorer(title=title)))
    assert page.locator(".eos-title").text_content() == title
    assert page.evaluate("window.hacked") is None


# -- JupyterLab ------------------------------------------------------------------------------

LIVE_CELL = """
from eoslib.widgets.quadratic import QuadraticExplorer

quadratic = QuadraticExplorer((10, 1), lr=0.05)
quadratic.observe(lambda change: setattr(quadratic, "start", [1.0, -change["new"]]), "lr")
quadratic
"""


@pytest.mark.lab
def test_settings_stay_in_step_with_python(run_in_lab: Callable[[str, str], Any]) -> None:
    """The page tells Python of a new step size, and Python tells the page of a new start."""
    page = run_in_lab(LIVE_CELL, ".eos-q .eos-line[d^=M]")
    assert picture(page)["start"] == "x₁ = 1.2, x₂ = 1.8"
    press(slider(page), "ArrowUp")  # in JupyterLab's command mode, a key that moves between cells
    page.wait_for_function(
        """document.querySelector(".eos-ring").getAttribute("aria-valuetext")
          === "x₁ = 1, x₂ = −0.0513" """
    )
    assert picture(page)["values"][0] == "0.0513"
    assert page.blocked == []
