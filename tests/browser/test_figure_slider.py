"""The figure with a slider in a page without a kernel, and in JupyterLab.

The static tests build their own small page, exactly as the book embeds widgets, and open it from
file:// in a Chromium that has no network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eoslib.palette import ACCENT, INK, MUTED, step_size_color

pytest.importorskip("anywidget")

from eoslib.widgets import FigureSlider, Frame, Line, Mark, Panel, Slider
from tests.browser.widget_page import cut_off, layout_questions, settle, write_page

pytestmark = pytest.mark.browser

STEP_SIZES = [round(float(lr), 4) for lr in np.geomspace(0.02, 0.5, 9)]
STEPS = np.arange(20_001)
SPIKE_AT, SPIKE = 12_345, 50.0
PHONE = {"viewport": {"width": 360, "height": 800}, "has_touch": True, "is_mobile": True}


def loss_of(lr: float) -> np.ndarray:
    loss = 0.5 * np.exp(-lr * STEPS / 900)
    loss[SPIKE_AT] = SPIKE * lr
    return loss


def edge_frame(lr: float) -> Frame:
    sharpness = np.minimum(5 + 45 * (1 - np.exp(-lr * STEPS[::50] / 300)), 2 / lr)
    return Frame(
        lines=[
            Line(STEPS, loss_of(lr), "loss", lr=lr),
            Line(STEPS[::50], sharpness, "sharpness", panel=1, lr=lr),
            Line(STEPS[::50], sharpness / 2, panel=1, lr=lr, pale=True),
        ],
        marks=[
            Mark(y=2 / lr, label=f"2/η = {2 / lr:.3g}", panel=1, lr=lr),
            Mark(y=(2 / lr, math.inf), label="above 2/η", panel=1, color="accent"),
        ],
        text=f"the sharpness ends at {sharpness[-1]:.3g}",
    )


def make_edge(**options: Any) -> FigureSlider:
    return FigureSlider(
        Slider("step size", "η", step_sizes=True),
        [
            Panel("step", "train loss (½ mean squared error)", ylog=True),
            Panel("step", "sharpness", ylim=(0, 60)),
        ],
        {lr: edge_frame(lr) for lr in STEP_SIZES},
        **{
            "start": STEP_SIZES[4],
            "title": "made-up runs",
            "alt": "the loss falls, the sharpness rises to a dashed line",
            "ghosts": True,
            **options,
        },
    )


def make_styles() -> FigureSlider:
    """Words on the slider, two x axes, every style, a gap, a logarithmic x axis."""
    x = np.array([1.0, 10, 100, 1000])
    y = np.array([1.0, 3, 2, 4])

    def styles(k: int) -> Frame:
        return Frame(
            [
                Line(x, k * y, "dots", style="points"),
                Line(x, [k, 2, np.nan, 1], "stems", style="stems", color="accent"),
                Line([1, 2, 3], [k, 2, 1], "counts", style="bars", panel=1),
                Line([1, 2, 3], [1, np.nan, k], "gap", panel=1, style="dotted"),
            ],
            [Mark(x=2, label="here", panel=1), Mark(x=(2.5, 3), label="tail", panel=1)],
        )

    return FigureSlider(
        Slider("method"),
        [Panel("k", "error", xlog=True), Panel("bin", "count")],
        {
            "plain": styles(1),
            "a rather long name": styles(2),
            "last": Frame([Line([1, 1000], [1, 5], "on one panel only")]),
        },
        start="plain",
        title="styles",
        alt="every style",
        background=[Line(x, y + 1, "reference", style="dashed")],
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(tmp_path_factory.mktemp("figure") / "page.html", make_edge())


@pytest.fixture(scope="module")
def styles_address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(tmp_path_factory.mktemp("styles") / "page.html", make_styles())


def show(page: Any, address: str) -> Any:
    page.goto(address)
    page.wait_for_selector(".eos-lines path", state="attached")
    return page


@pytest.fixture
def shown(page: Any, address: str) -> Iterator[Any]:
    """A page that shows the edge figure; afterwards: no request left it, no error was logged."""
    yield show(page, address)
    assert page.blocked == []
    assert page.problems == []


@pytest.fixture
def styles(page: Any, styles_address: str) -> Iterator[Any]:
    """The same for the figure with every style."""
    yield show(page, styles_address)
    assert page.blocked == []
    assert page.problems == []


def picture(page: Any) -> dict[str, Any]:
    """What the first figure shows now."""
    settle(page)
    return page.evaluate(
        """() => {
          const root = document.querySelector(".eos-figure"), $ = (s) => root.querySelector(s);
          const all = (s, f) => [...root.querySelectorAll(s)].map(f);
          return {
            lines: all(".eos-lines .eos-line", (p) => p.getAttribute("d")),
            ticks: all(".eos-axes text", (t) => t.textContent),
            dashes: all(".eos-marks path", (p) => p.getAttribute("d")),
            tint: Number($(".eos-tint")?.getAttribute("height")),
            names: all(".eos-labels text", (t) => t.textContent),
            value: $(".eos-value").textContent, text: $(".eos-status").innerText.trim(),
            spoken: $("input[type=range]").getAttribute("aria-valuetext"),
            eta: root.style.getPropertyValue("--eta"),
            colors: all(".eos-lines g", (g) => g.style.getPropertyValue("--eta")),
            legend: all(".eos-key", (k) => k.innerText.replace(/\\s+/g, " ").trim()),
            theme: getComputedStyle(root).getPropertyValue("--eos-theme").trim(),
          };
        }"""
    )


def slider(page: Any) -> Any:
    return page.locator(".eos-figure input[type=range]").first


def points(path: str) -> np.ndarray:
    return np.array([[float(v) for v in p.split()] for p in re.split("[ML]", path)[1:]])


def texts(lr: float) -> str:
    return edge_frame(lr).text


# -- the slider ------------------------------------------------------------------------------


def test_first_picture_is_the_start(shown: Any) -> None:
    now = picture(shown)
    assert now["value"] == "0.1"
    assert now["spoken"] == "step size 0.1"
    assert now["text"] == texts(0.1)
    assert now["names"] == ["loss", "sharpness", "2/η = 20"]
    assert len(now["lines"]) == 3
    assert shown.locator(".eos-track > span").all_inner_texts() == ["0.02", "0.5"]
    assert shown.locator(".eos-trainer").count() == 0


def test_keys_move_through_the_frames_and_everything_follows(shown: Any) -> None:
    before = picture(shown)
    slider(shown).press("ArrowRight")
    after = picture(shown)
    for part in ("lines", "dashes", "names", "value", "text", "spoken", "eta", "tint", "legend"):
        assert after[part] != before[part], part
    assert after["ticks"] == before["ticks"], "the axes stay"
    slider(shown).press("Home")
    seen = []
    for _ in STEP_SIZES:
        now = picture(shown)
        seen.append((now["value"], now["text"]))
        slider(shown).press("ArrowUp")
    assert seen == [(f"{lr:.4g}", texts(lr)) for lr in STEP_SIZES]
    for key, k in [("PageDown", 6), ("PageDown", 4), ("ArrowLeft", 3), ("PageUp", 5), ("End", 8)]:
        slider(shown).press(key)
        assert picture(shown)["value"] == f"{STEP_SIZES[k]:.4g}", key


def test_buttons_beside_the_slider(shown: Any) -> None:
    shown.get_by_role("button", name="next step size").click()
    assert picture(shown)["value"] == f"{STEP_SIZES[5]:.4g}"
    shown.get_by_role("button", name="previous step size").click()
    slider(shown).press("End")
    settle(shown)
    assert shown.get_by_role("button", name="next step size").is_disabled()
    assert not shown.get_by_role("button", name="previous step size").is_disabled()


def test_dragging_and_touching_the_slider(
    shown: Any, open_page: Callable[..., Any], address: str
) -> None:
    box = slider(shown).bounding_box()
    shown.mouse.move(box["x"] + box["width"] / 2, box["y"] + 16)
    shown.mouse.down()
    seen = []
    for fraction in np.linspace(0.5, 0.98, 40):
        shown.mouse.move(box["x"] + box["width"] * fraction, box["y"] + 16)
        seen.append(picture(shown)["value"])
    shown.mouse.up()
    assert list(dict.fromkeys(seen)) == [f"{lr:.4g}" for lr in STEP_SIZES[4:]]

    phone = show(open_page(**PHONE), address)
    box = slider(phone).bounding_box()
    phone.touchscreen.tap(box["x"] + 13, box["y"] + 16)
    assert picture(phone)["value"] == "0.02"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_those_of_the_palette(shown: Any, theme: str) -> None:
    shown.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
    slider(shown).press("Home")
    for lr in STEP_SIZES:
        now = picture(shown)
        expected = step_size_color(lr, 0.02, 0.5, theme=theme)  # type: ignore[arg-type]
        assert now["theme"] == theme
        assert now["eta"] == expected
        assert set(now["colors"]) == {expected}
        slider(shown).press("ArrowRight")


def test_lines_without_a_step_size_wear_ink_and_accent(
    open_page: Callable[..., Any], styles_address: str
) -> None:
    for theme in ("light", "dark"):
        page = show(open_page(color_scheme=theme), styles_address)
        now = picture(page)
        assert now["theme"] == theme
        assert now["colors"] == [INK[theme], ACCENT[theme], INK[theme], INK[theme]]
        background = page.locator(".eos-background g").first.get_attribute("style")
        assert background == f"--eta:{MUTED[theme]}"


# -- the picture -----------------------------------------------------------------------------


@pytest.mark.parametrize("width", [800, 360])
def test_no_spike_is_lost_on_the_way_to_the_screen(shown: Any, width: int) -> None:
    """20,001 points, thinned twice: the one-step spike reaches as high as it should."""
    shown.set_viewport_size({"width": width, "height": 800})
    shown.wait_for_function(f"document.querySelector('.eos-plot svg').clientWidth < {width}")
    drawn, loss = points(picture(shown)["lines"][0]), loss_of(0.1)
    assert len(drawn) <= 2000
    scale = (drawn[-1, 1] - drawn[0, 1]) / math.log(loss[-1] / loss[0])
    assert drawn[:, 1].min() == pytest.approx(
        drawn[0, 1] + scale * math.log(loss[SPIKE_AT] / loss[0]), abs=0.3
    )
    spike_x = drawn[drawn[:, 1].argmin(), 0]
    width = drawn[-1, 0] - drawn[0, 0]
    assert spike_x == pytest.approx(drawn[0, 0] + width * SPIKE_AT / STEPS[-1], abs=0.2)


def test_threshold_lies_where_the_axis_says_and_is_named_when_it_does_not(shown: Any) -> None:
    heights = {}
    slider(shown).press("End")
    for lr in reversed(STEP_SIZES):
        now = picture(shown)
        assert len(now["dashes"]) == (2 / lr <= 60)
        if now["dashes"]:
            heights[2 / lr] = float(re.split("[ h]", now["dashes"][0])[1])
            assert now["tint"] > 0
        else:
            assert f"2/η = {2 / lr:.3g} ↑ above".replace(" ", "") in [
                name.replace(" ", "") for name in now["names"]
            ]
            assert now["tint"] == 0
        slider(shown).press("ArrowLeft")
    slope, offset = np.polyfit(list(heights), list(heights.values()), 1)
    assert slope < 0
    np.testing.assert_allclose(
        slope * np.array(list(heights)) + offset, list(heights.values()), atol=0.2
    )


def test_names_do_not_cover_each_other(shown: Any) -> None:
    for lr in STEP_SIZES:
        slider(shown).evaluate(
            "(s, k) => { s.value = k; s.dispatchEvent(new Event('input')); }", STEP_SIZES.index(lr)
        )
        settle(shown)
        boxes = shown.locator(".eos-labels text").evaluate_all(
            """(all) => all.map((text) => text.getBoundingClientRect())
              .map((box) => [box.left, box.top, box.right, box.bottom])"""
        )
        for k, (left, top, right, bottom) in enumerate(boxes):
            for other in boxes[:k]:
                apart = (
                    left >= other[2]
                    or other[0] >= right
                    or top >= other[3] - 4
                    or other[1] >= bottom - 4
                )
                assert apart, (lr, boxes)


@pytest.mark.parametrize("width", [360, 800])
def test_names_of_lines_that_end_near_the_edge_stand_beside_the_panel(
    open_page: Callable[..., Any], tmp_path: Path, width: int
) -> None:
    """One under the other: a name that began in the panel would lie over the ends of the lines."""
    lines = [Line([0, end], [0.9, 1], f"until {end}", lr=0.1) for end in (1, 0.98, 0.96)]
    widget = FigureSlider(
        Slider("size"),
        [Panel("share of the run", "ratio", ylim=(0, 2))],
        {1: Frame(lines, [Mark(y=1, label="2/η")])},
        start=1,
        title="names",
        alt="three lines that end at one",
    )
    page = show(
        open_page(viewport={"width": width, "height": 800}), write_page(tmp_path / "n.html", widget)
    )
    right = page.locator(".eos-dash").evaluate("(mark) => mark.getBoundingClientRect().right")
    names = page.locator(".eos-labels text").evaluate_all(
        "(names) => names.map((name) => name.getBoundingClientRect().left)"
    )
    assert len(names) == 4
    assert min(names) > right
    assert max(names) - min(names) < 1


@pytest.mark.parametrize("width", [360, 800])
def test_the_ends_of_the_slider_are_named_above_the_chart(shown: Any, width: int) -> None:
    shown.set_viewport_size({"width": width, "height": 800})
    ends = [
        box["y"] + box["height"]
        for box in (end.bounding_box() for end in shown.locator(".eos-track > span").all())
    ]
    assert max(ends) <= shown.locator(".eos-axes text").first.bounding_box()["y"]


def test_ghosts_show_the_other_frames(shown: Any, page: Any, tmp_path: Path) -> None:
    inked = """() => { const c = document.querySelector("canvas");
      return c.getContext("2d").getImageData(0, 0, c.width, c.height).data.some((v) => v); }"""
    assert shown.evaluate(inked)
    show(page, write_page(tmp_path / "page.html", make_edge(ghosts=False)))
    assert not page.evaluate(inked)


def test_every_style_draws_its_points(styles: Any) -> None:
    drawn = styles.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll(".eos-lines g")].map((g, k) => {
          const shapes = [...g.children].map((p) => p.getAttribute("d"));
          return [["points", "stems", "bars", "dotted"][k], shapes]; }))"""
    )
    assert [d.count("M") for d in drawn["points"]] == [4]
    assert [d.count("M") for d in drawn["stems"]] == [3, 3], "the gap is left out"
    assert [d.count("z") for d in drawn["bars"]] == [3]
    assert re.fullmatch("M[^L]*h0M[^L]*h0", drawn["dotted"][0]), "two dots and no line"
    across = points(drawn["points"][0].replace("h0", ""))[:, 0]
    assert np.diff(across) == pytest.approx([np.diff(across)[0]] * 3, abs=0.2), "log axis"
    assert styles.locator(".eos-background path").count() == 1
    assert styles.locator(".eos-bands rect").count() == 1
    names = picture(styles)["names"]
    assert {"dots", "stems", "counts", "gap", "reference", "here"} <= set(names)
    ticks = picture(styles)["ticks"]
    end = ticks.index("k, log scale")
    assert ticks[end - 4 : end] == ["1", "10", "100", "1,000"]


def test_words_on_the_slider(styles: Any) -> None:
    assert slider(styles).get_attribute("aria-valuetext") == "method plain"
    slider(styles).press("ArrowRight")
    assert picture(styles)["value"] == "a rather long name"
    slider(styles).press("ArrowRight")
    assert picture(styles)["legend"][-1] == "on one panel only 5", "nothing of the empty panel"
    assert not styles.locator(".eos-status").is_visible(), "no text, no empty line"


# -- the cursor and the legend ---------------------------------------------------------------


def test_hover_reads_the_lines_off_their_data(shown: Any) -> None:
    assert picture(shown)["legend"][0] == "step 20,000"
    drawn = points(picture(shown)["lines"][1])
    box = shown.locator(".eos-plot").bounding_box()
    x = drawn[0, 0] + 0.25 * (drawn[-1, 0] - drawn[0, 0])
    shown.mouse.move(box["x"] + x, box["y"] + 60)
    keys = dict(entry.split(" ", 1) for entry in picture(shown)["legend"])
    step = int(keys["step"].replace(",", ""))
    assert step == pytest.approx(5000, abs=40)
    assert float(keys["loss"]) == pytest.approx(loss_of(0.1)[step], rel=0.01)
    measured = np.array(edge_frame(0.1).lines[1].y)
    value = float(keys["sharpness"].split()[0])
    assert value == pytest.approx(measured[round(step / 50)], rel=0.01)
    assert shown.locator(".eos-cursor circle").count() == 3
    shown.mouse.move(3, 3)
    assert picture(shown)["legend"][0] == "step 20,000"
    assert shown.locator(".eos-cursor circle").count() == 0


def test_the_legend_says_where_a_line_was_measured(styles: Any) -> None:
    """Each x axis has a cursor of its own; a line that is not there says where it was read."""
    plots = styles.get_by_role("slider", name=re.compile("cursor along the x axis"))
    assert plots.count() == 2
    plots.nth(0).press("Home")
    plots.nth(0).press("Shift+ArrowRight")
    plots.nth(0).press("Shift+ArrowRight")
    assert picture(styles)["legend"] == [
        *("k 100", "reference 3", "dots 2", "stems 2 at 10"),  # the stem at 100 is a gap
        *("bin 3", "counts 1", "gap 1"),
    ]


def test_keyboard_cursor(shown: Any) -> None:
    plot = shown.get_by_role("slider", name="cursor along the x axis, step")
    plot.press("Home")
    assert picture(shown)["legend"][0] == "step 0"
    assert plot.get_attribute("aria-valuenow") == "0"
    plot.press("ArrowRight")
    settle(shown)
    assert 20 <= float(plot.get_attribute("aria-valuenow")) <= 80, "a pixel, not a point"
    plot.press("PageUp")
    settle(shown)
    spoken = plot.get_attribute("aria-valuetext")
    assert re.match(r"step 2,\d\d\d, loss 0\.\d+, sharpness [\d.]+", spoken)
    plot.press("End")
    assert picture(shown)["legend"][0] == "step 20,000"
    plot.press("Escape")
    settle(shown)
    assert shown.locator(".eos-cursor path").count() == 0


def test_touch_moves_the_cursor(open_page: Callable[..., Any], address: str) -> None:
    page = show(open_page(**PHONE), address)
    page.locator(".eos-plot").tap(position={"x": 120, "y": 60})
    assert picture(page)["legend"][0] != "step 20,000"


# -- everywhere ------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["edge", "styles"])
@pytest.mark.parametrize("width", [320, 360, 768])
def test_narrow_screens_need_no_sideways_scrolling(
    open_page: Callable[..., Any], address: str, styles_address: str, width: int, which: str
) -> None:
    page = open_page(viewport={"width": width, "height": 800})
    show(page, address if which == "edge" else styles_address)
    page.locator("summary").click()
    for key in ("Home", "ArrowRight", "End"):
        slider(page).press(key)
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert cut_off(page) == []
    sizes = page.locator("svg text").evaluate_all(
        "(all) => all.map((t) => parseFloat(getComputedStyle(t).fontSize))"
    )
    assert min(sizes) >= 11


def test_a_figure_that_gets_another_width_is_drawn_again(shown: Any) -> None:
    before = picture(shown)["lines"]
    shown.set_viewport_size({"width": 500, "height": 800})
    shown.wait_for_function(
        "(before) => document.querySelector('.eos-lines path').getAttribute('d') !== before",
        arg=before[0],
    )
    assert points(picture(shown)["lines"][0])[:, 0].max() < 500


def test_targets_are_large_enough(shown: Any) -> None:
    small = shown.evaluate(
        """() => [...document.querySelectorAll(".eos-x :is(button, input, summary)")]
          .filter((e) => e.getBoundingClientRect().height < 24).map((e) => e.outerHTML)"""
    )
    assert small == []


def test_names_roles_and_ids(shown: Any) -> None:
    tree = shown.locator(".eos-x").aria_snapshot()
    assert 'group "made-up runs"' in tree
    assert 'slider "step size η"' in tree
    assert re.search(r"- (button|slider)( \[.*\])?:?$", tree, re.MULTILINE) is None
    described = shown.locator(".eos-x").get_attribute("aria-describedby")
    assert shown.locator(f"#{described}").text_content() == make_edge().alt
    status = shown.get_by_role("status")
    assert status.get_attribute("aria-live") == "polite"
    assert status.inner_text().strip() == texts(0.1)
    ids = shown.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


def test_tables_hold_the_frame_and_all_sentences(shown: Any) -> None:
    shown.locator("summary").click()
    shown.locator(".eos-now tr").first.wait_for()
    now = shown.locator(".eos-now tr").all_inner_texts()
    assert now[0].split("\t")[0] == "step size: 0.1"
    row = next(text.split("\t") for text in now if text.startswith("loss"))
    assert row[1] == "train loss (½ mean squared error)"
    assert row[2] == "0.5 at 0"
    assert row[4] == "5 at 12,345"
    assert any(text.split("\t")[:3] == ["2/η = 20", "sharpness", "20"] for text in now)
    every = shown.locator(".eos-all tbody tr").all_inner_texts()
    assert every == [f"{lr:.4g}\t{texts(lr)}" for lr in STEP_SIZES]
    slider(shown).press("End")
    settle(shown)
    assert shown.locator(".eos-now th").first.inner_text() == "step size: 0.5"
    assert shown.locator(".eos-all tr[aria-current]").inner_text().startswith("0.5\t")


def test_nothing_moves_by_itself(open_page: Callable[..., Any], address: str) -> None:
    page = show(open_page(reduced_motion="reduce"), address)
    moving = page.evaluate(
        """() => [...document.querySelectorAll(".eos-x, .eos-x *")].filter((e) => {
          const s = getComputedStyle(e);
          return s.animationName !== "none" || parseFloat(s.transitionDuration) > 0;
        }).map((e) => e.className)"""
    )
    assert moving == []
    assert page.evaluate("document.getAnimations().length") == 0


def test_several_figures_do_not_disturb_each_other(page: Any, tmp_path: Path) -> None:
    first, second = make_edge(), make_styles()
    show(page, write_page(tmp_path / "page.html", first, second, first, share=True))
    page.wait_for_function("document.querySelectorAll('.eos-figure .eos-lines path').length >= 10")
    values = page.locator(".eos-value")
    assert values.all_inner_texts() == ["0.1", "plain", "0.1"]
    slider(page).press("ArrowRight")
    settle(page)
    after = values.all_inner_texts()
    assert after[1] == "plain"
    assert after[0] == after[2] == f"{STEP_SIZES[5]:.4g}", "views of one figure move together"
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    assert page.problems == []
    assert page.blocked == []


def test_texts_are_text_not_markup(page: Any, tmp_path: Path) -> None:
    bad = "<img src=x onerror='window.hacked = 1'></script>"
    frame = Frame([Line([0, 1], [0, 1], bad)], [Mark(y=0.5, label=bad)], text=bad)
    widget = FigureSlider(
        Slider(bad, bad),
        [Panel(bad, bad)],
        {bad: frame, "b": frame},
        start=bad,
        title=bad,
        alt=bad,
        background=[Line([0, 1], [1, 0], bad)],
    )
    show(page, write_page(tmp_path / "page.html", widget))
    page.locator("summary").click()
    assert page.locator(".eos-title").text_content() == bad
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0


def test_dragging_does_not_ask_for_the_layout(shown: Any) -> None:
    """The browser lays the page out once a frame, not once more for every question."""
    assert layout_questions(shown, slider(shown)) == 0


def test_dragging_stays_cheap(shown: Any) -> None:
    """A drag through 9 frames of 2000 points each: the work per picture is part of a frame."""
    slow = shown.evaluate(
        """async () => {
          const s = document.querySelector("input[type=range]"), times = [];
          for (let k = 0; k <= 60; k++) {
            await new Promise((done) => requestAnimationFrame(done));
            s.value = k % 9;
            s.dispatchEvent(new Event("input"));
            const start = performance.now(); // the figure's own frame callback comes next
            await new Promise((done) => requestAnimationFrame(done));
            times.push(performance.now() - start);
          }
          return times.sort((a, b) => a - b)[30];
        }"""
    )
    assert slow < 50, f"median {slow:.1f} ms per picture"


# -- JupyterLab ------------------------------------------------------------------------------

LIVE_CELL = """
import time
from types import SimpleNamespace
from eoslib.widgets import FigureSlider, Frame, Line, Panel, Slider

def frame(k):
    return Frame([Line([0, 1, 2], [0, k, 2 * k], "error")], text=f"{k} steps")

def compute(k, report):
    if k == 9:
        raise RuntimeError("made-up failure")
    for step in range(1, 2000):
        time.sleep(0.01)
        if report(SimpleNamespace(step=step, num_steps=2000)):
            return frame(k)
    return frame(k)

figure = FigureSlider(
    Slider("Lanczos steps", "k"), [Panel("x", "y")], {k: frame(k) for k in (2, 4, 8, 16)},
    start=4, title="live", alt="a line", compute=compute,
)
figure
"""


@pytest.mark.lab
def test_computing_in_jupyterlab(run_in_lab: Callable[..., Any]) -> None:
    """Arrow keys, a value that is not stored, stop; then a failure and typing mistakes."""
    page = run_in_lab(LIVE_CELL, ".eos-figure .eos-lines path")
    slider(page).press("ArrowRight")
    now = picture(page)
    assert (now["value"], now["text"]) == ("8", "8 steps")

    typed, go = page.locator(".eos-trainer input"), page.locator(".eos-go")
    message = page.locator(".eos-message")
    for text, complaint in [("abc", "not a number"), ("99", "outside the range")]:
        typed.fill(text)
        go.click()
        assert complaint in message.inner_text()
        assert "type a number between 2 and 16" in message.inner_text()
    typed.fill("6")
    go.click()
    page.wait_for_function("document.querySelector('.eos-trainer progress').value > 0.005")
    assert "/ 2,000 steps" in page.locator(".eos-count").inner_text()
    page.get_by_role("button", name="Stop").click()
    page.wait_for_function("document.querySelector('.eos-value').textContent === '6'")
    assert picture(page)["text"] == "6 steps"
    assert page.locator(".eos-ticks i").count() == 5

    typed.fill("9")
    go.click()
    page.wait_for_function(
        "document.querySelector('.eos-message').textContent.includes('made-up failure')"
    )
    assert go.is_enabled()
    assert page.blocked == []
