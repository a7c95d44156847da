"""The step-size explorer in a page without a kernel, and in JupyterLab.

The static tests build their own small page from the state of real explorers, exactly as the book
embeds it, and open it from file:// in a Chromium that has no network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eoslib.palette import step_size_color
from eoslib.runs import Outcome, Run, Series

pytest.importorskip("anywidget")

from ipywidgets import IntSlider

from eoslib.widgets import StepSizeExplorer
from tests.browser.widget_page import cut_off, layout_questions, settle, write_page

STEP_SIZES = [round(float(lr), 4) for lr in np.geomspace(0.02, 0.5, 13)]
SPIKE = 700.0  # one step only: the test of "nothing is lost by drawing"

browser_test = pytest.mark.browser


def make_run(lr: float, *, steps: int = 4000, diverges: bool = False) -> Run:
    """A made-up run with the features of a real one: zigzag at the edge, one spike, divergence."""
    threshold = 2 / lr
    steps = 31 if diverges else steps
    t = np.arange(steps + 1)
    sharpness = 5 + 45 * (1 - np.exp(-lr * t / 60))
    zigzag = np.where(sharpness > threshold, 1 + 0.5 * (-1.0) ** t, 1.0)
    loss = 0.5 * np.exp(-lr * t / 80) * zigzag
    if diverges:
        loss = 0.5 * 1.5**t
    elif steps > 1234:
        loss[1234] = SPIKE * lr
    sharp = Series(t[::5], np.minimum(sharpness, threshold * (1 + 0.02 * np.sin(t)))[::5])
    return Run(
        settings={"lr": lr, "threshold": threshold, "optimizer": "gradient descent"},
        series={"loss": Series(t, loss), "sharpness": sharp},
        outcome=Outcome("diverged" if diverges else "completed", steps, ""),
    )


def make_explorer(**options: Any) -> StepSizeExplorer:
    runs = [make_run(lr, diverges=lr == STEP_SIZES[-1]) for lr in STEP_SIZES]
    return StepSizeExplorer(runs, **{"title": "made-up runs", "start": 0.1, **options})


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(tmp_path_factory.mktemp("explorer") / "page.html", make_explorer())


@pytest.fixture
def shown(page: Any, address: str) -> Iterator[Any]:
    """A page that shows one explorer; afterwards: no request left it, no error was logged."""
    page.goto(address)
    page.wait_for_selector(".eos-line[d^=M]", state="attached")
    yield page
    assert page.blocked == []
    assert page.problems == []


def picture(page: Any) -> dict[str, Any]:
    """What the first explorer shows now."""
    settle(page)
    return page.evaluate(
        """() => {
          const root = document.querySelector(".eos-x"), $ = (s) => root.querySelector(s);
          const lines = [...root.querySelectorAll(".eos-line")].map((p) => p.getAttribute("d"));
          return {
            lines, dash: $(".eos-dash").getAttribute("d"),
            lr: $(".eos-lr").textContent, threshold: $(".eos-threshold b").textContent,
            label: $(".eos-dash-label").textContent, status: $(".eos-status").innerText.trim(),
            spoken: $("input[type=range]").getAttribute("aria-valuetext"),
            eta: root.style.getPropertyValue("--eta"),
            readout: Object.fromEntries([...root.querySelectorAll(".eos-readout div")]
              .map((d) => [d.children[0].textContent, d.children[1].textContent])),
            zigzag: $(".eos-zigzag")?.getAttribute("d") ?? "", rises: $(".eos-rises").textContent,
            crosses: root.querySelectorAll(".eos-cross").length,
            theme: getComputedStyle(root).getPropertyValue("--eos-theme").trim(),
          };
        }"""
    )


def slider(page: Any) -> Any:
    return page.locator(".eos-x input[type=range]").first


@browser_test
def test_an_adaptive_optimizers_curvature_has_its_own_name(page: Any, tmp_path: Path) -> None:
    runs = [make_run(lr, steps=300) for lr in (0.1, 0.2)]
    for run in runs:
        run.series["preconditioned_sharpness"] = run.series.pop("sharpness")
    explorer = StepSizeExplorer(runs, title="made-up runs", threshold_label="38/η")
    page.goto(write_page(tmp_path / "page.html", explorer))
    page.wait_for_selector(".eos-line[d^=M]", state="attached")
    assert "preconditioned sharpness" in page.locator(".eos-x svg").first.inner_html()
    assert any(name.startswith("preconditioned sharpness") for name in picture(page)["readout"])
    table = page.locator(".eos-table table")
    assert "last measured preconditioned sharpness ÷ 38/η" in table.text_content()
    assert page.problems == []


# -- the slider ------------------------------------------------------------------------------


@browser_test
def test_first_picture_is_the_run_nearest_to_start(shown: Any) -> None:
    now = picture(shown)
    assert now["lr"] == "0.1"
    assert now["threshold"] == "20"
    assert now["label"] == "2/η = 20"
    assert re.fullmatch(
        r"step size 0\.1, threshold 20, at the edge since step [\d,]+", now["spoken"]
    )
    assert now["status"] in now["spoken"]
    assert "13 runs computed when this book was built" in shown.inner_text(".eos-origin")
    assert shown.locator(".eos-trainer").count() == 0
    assert shown.locator(".static-widget-note").count() == 0


@browser_test
def test_keys_move_through_the_runs_and_everything_follows(shown: Any) -> None:
    before = picture(shown)
    slider(shown).press("ArrowRight")
    after = picture(shown)
    assert after["lr"] == f"{STEP_SIZES[7]:.3g}"
    for part in ("lines", "dash", "threshold", "label", "spoken", "eta"):
        assert after[part] != before[part], part
    seen = []
    slider(shown).press("Home")
    for _ in STEP_SIZES:
        seen.append(picture(shown)["lr"])
        slider(shown).press("ArrowRight")
    assert seen == [f"{lr:.3g}" for lr in STEP_SIZES]
    slider(shown).press("PageDown")
    assert picture(shown)["lr"] == f"{STEP_SIZES[-4]:.3g}"
    slider(shown).press("End")
    assert picture(shown)["lr"] == "0.5"


@browser_test
def test_dragging_snaps_to_the_runs(shown: Any) -> None:
    box = slider(shown).bounding_box()
    y = box["y"] + 16
    shown.mouse.move(box["x"] + box["width"] * 0.5, y)
    shown.mouse.down()
    seen = set()
    for fraction in np.linspace(0.5, 0.05, 60):
        shown.mouse.move(box["x"] + box["width"] * fraction, y)
        seen.add(picture(shown)["lr"])
    shown.mouse.up()
    assert seen <= {f"{lr:.3g}" for lr in STEP_SIZES}
    assert len(seen) >= 6


@browser_test
def test_small_moves_of_assistive_technology_do_not_get_stuck(shown: Any) -> None:
    assert picture(shown)["lr"] == "0.1"
    shown.evaluate(
        """() => { const s = document.querySelector("input[type=range]");
          s.value = Number(s.value) + 5; s.dispatchEvent(new Event("input")); }"""
    )
    assert picture(shown)["lr"] == f"{STEP_SIZES[7]:.3g}"


@browser_test
def test_buttons_beside_the_slider(shown: Any) -> None:
    shown.get_by_role("button", name="larger step size").click()
    assert picture(shown)["lr"] == f"{STEP_SIZES[7]:.3g}"
    slider(shown).press("End")
    settle(shown)
    assert shown.get_by_role("button", name="larger step size").is_disabled()


@browser_test
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_those_of_the_palette(shown: Any, theme: str) -> None:
    shown.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
    slider(shown).press("Home")
    for lr in STEP_SIZES:
        now = picture(shown)
        assert now["theme"] == theme
        assert now["eta"] == step_size_color(lr, 0.02, 0.5, theme=theme)  # type: ignore[arg-type]
        slider(shown).press("ArrowRight")


# -- the picture -----------------------------------------------------------------------------


@browser_test
def test_no_spike_is_lost_and_the_path_stays_short(shown: Any) -> None:
    """4001 points on some 400 pixels: the one-step spike reaches as high as it should."""
    run = make_run(STEP_SIZES[6])
    now = picture(shown)
    points = [tuple(map(float, p.split())) for p in now["lines"][0][1:].split("L")]
    assert len(points) < 4 * 500
    # two known losses fix the log scale, and with it the height that the spike must have
    (x0, y0), (x1, y1) = points[0], points[-1]
    scale = (y1 - y0) / np.log(run["loss"].values[-1] / run["loss"].values[0])
    expected = y0 + scale * np.log(run["loss"].values[1234] / run["loss"].values[0])
    assert min(y for _, y in points) == pytest.approx(expected, abs=0.3)
    spike_x = min(points, key=lambda point: point[1])[0]
    assert spike_x == pytest.approx(x0 + (x1 - x0) * 1234 / 4000, abs=0.2)


@browser_test
@pytest.mark.parametrize("scale", ["auto", "log"])
def test_threshold_line_lies_where_the_sharpness_axis_says(
    page: Any, tmp_path: Path, scale: str
) -> None:
    """Linear by default: the same axis for all runs, so the line moves when η does."""
    page.goto(write_page(tmp_path / "page.html", make_explorer(sharpness_scale=scale)))
    page.wait_for_selector(".eos-line[d^=M]", state="attached")
    label = page.locator(".eos-frame .eos-label").nth(1).text_content()
    assert label == ("sharpness, log scale" if scale == "log" else "sharpness")
    heights = {}
    slider(page).press("End")
    for lr in reversed(STEP_SIZES):
        now = picture(page)
        if now["dash"]:
            heights[lr] = float(now["dash"].split()[1].split("h")[0])
        slider(page).press("ArrowLeft")
    assert len(heights) >= 8
    thresholds = np.array([2 / lr for lr in heights])
    if scale == "log":
        thresholds = np.log(thresholds)
    slope, offset = np.polyfit(thresholds, list(heights.values()), 1)
    assert slope < 0
    np.testing.assert_allclose(slope * thresholds + offset, list(heights.values()), atol=0.2)
    # beyond the axis there is no line, but the label still tells
    slider(page).press("Home")
    now = picture(page)
    assert now["dash"] == ""
    assert now["label"] == "2/η = 100↑ above"


@browser_test
def test_a_diverged_run_is_marked_and_named(shown: Any) -> None:
    assert picture(shown)["crosses"] == 0
    slider(shown).press("End")
    now = picture(shown)
    assert now["crosses"] == 2
    assert now["status"] == "diverged at step 31"
    assert shown.locator(".eos-cross-label").text_content() == "diverged at step 31"


@browser_test
def test_magnifier_shows_the_zigzag_that_the_plot_cannot(shown: Any) -> None:
    now = picture(shown)  # at the edge: the loss alternates
    assert now["zigzag"].count("L") == 59
    assert re.search(r"rose in (29|30) of 59 steps", now["rises"])
    slider(shown).press("Home")  # far below the edge: it falls
    assert "rose in 0 of 59 steps" in picture(shown)["rises"]


@browser_test
def test_steps_and_time(shown: Any) -> None:
    steps = picture(shown)
    shown.get_by_role("radio", name="time = steps × η").check()
    time_picture = picture(shown)
    assert time_picture["lines"] != steps["lines"]
    assert shown.locator(".eos-frame .eos-label").last.text_content() == "time = steps × η"
    shown.get_by_role("radio", name="steps", exact=True).check()
    assert picture(shown)["lines"] == steps["lines"]


@browser_test
def test_zoom_halves_the_range_and_says_that_the_run_goes_on(shown: Any) -> None:
    assert shown.get_by_role("button", name="show twice the range").is_disabled()
    shown.get_by_role("button", name="show half of the range").click()
    now = picture(shown)
    assert now["readout"]["step"] == "2,000"
    assert shown.locator(".eos-more").text_content() == "to 4,000 →"
    shown.get_by_role("button", name="show twice the range").click()
    assert picture(shown)["readout"]["step"] == "4,000"


# -- groups ----------------------------------------------------------------------------------


def make_grouped(**options: Any) -> StepSizeExplorer:
    groups = {
        "fc-tanh": [make_run(lr) for lr in (0.05, 0.1, 0.2)],
        "fc-<b>relu": [make_run(lr, steps=1000) for lr in (0.02, 0.25)],
    }
    return StepSizeExplorer(groups, **{"title": "made-up networks", "start": 0.1, **options})


@browser_test
def test_a_list_chooses_the_group(page: Any, tmp_path: Path) -> None:
    """By keyboard, without a kernel: plots, table, slider and words are those of the group."""
    page.goto(write_page(tmp_path / "page.html", make_grouped(), make_explorer()))
    page.wait_for_function("document.querySelectorAll('.eos-line[d^=M]').length === 4")
    chooser = page.get_by_role("combobox", name="network")
    assert chooser.count() == 1, "an explorer without groups has no list"
    first = picture(page)
    assert first["status"].startswith("fc-tanh: at the edge")
    chooser.focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("document.querySelector('.eos-lr').textContent !== '0.1'")
    now = picture(page)
    assert now["lr"] == "0.25", "the step size nearest to the one before, on the log scale"
    assert now["threshold"] == "8"
    assert now["status"].startswith("fc-<b>relu: ")
    assert now["lines"] != first["lines"]
    assert now["readout"]["step"] == "1,000"
    assert now["eta"] == step_size_color(0.25, 0.02, 0.25)
    box = page.locator(".eos-table").first
    assert box.locator("summary").inner_text() == "2 runs of fc-<b>relu as a table"
    assert box.locator("tbody tr").count() == 2
    assert page.locator(".eos-ticks").first.locator("i").count() == 2
    slider(page).press("Home")
    assert picture(page)["lr"] == "0.02"
    chooser.focus()
    page.keyboard.press("ArrowUp")
    page.wait_for_function("document.querySelector('.eos-lr').textContent === '0.05'")
    assert picture(page)["status"].startswith("fc-tanh: ")
    assert chooser.bounding_box()["height"] >= 24
    assert page.problems == []
    assert page.blocked == []


@browser_test
def test_the_list_fits_a_phone(open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = open_page(viewport={"width": 320, "height": 800})
    long = {
        "a network whose name goes on and on and on and on": [make_run(0.1)],
        "b": [make_run(1)],
    }
    address = write_page(tmp_path / "page.html", StepSizeExplorer(long, title="names"))
    page.goto(address)
    page.wait_for_selector(".eos-line[d^=M]", state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


# -- the read-out ----------------------------------------------------------------------------


@browser_test
def test_hover_reads_the_run_off_its_data(shown: Any) -> None:
    run = make_run(STEP_SIZES[6])
    x0, x1 = (
        float(picture(shown)["lines"][0].split("L")[k].lstrip("M").split()[0]) for k in (0, -1)
    )
    box = shown.locator(".eos-plot").bounding_box()
    shown.mouse.move(box["x"] + x0 + (x1 - x0) * 0.25, box["y"] + 80)
    readout = picture(shown)["readout"]
    step = int(readout["step"].replace(",", ""))
    assert step == pytest.approx(1000, abs=10)
    assert float(readout["loss"]) == pytest.approx(run["loss"].values[step], rel=0.01)
    assert float(readout["time"]) == pytest.approx(step * run.lr, rel=0.01)
    nearest = run["sharpness"].values[round(step / 5)]
    assert float(readout["sharpness"]) == pytest.approx(nearest, rel=0.01)
    assert float(readout["÷ (2/η)"]) == pytest.approx(nearest * run.lr / 2, rel=0.01)
    assert shown.locator(".eos-cursor circle").count() == 2
    shown.mouse.move(5, 5)
    assert picture(shown)["readout"]["step"] == "4,000"


@browser_test
def test_keyboard_cursor(shown: Any) -> None:
    plot = shown.get_by_role("slider", name="cursor on the plots")
    plot.press("Home")
    assert picture(shown)["readout"]["step"] == "0"
    plot.press("Shift+ArrowRight")
    assert picture(shown)["readout"]["step"] == "1"
    plot.press("ArrowRight")
    settle(shown)
    assert 5 <= int(plot.get_attribute("aria-valuenow")) <= 20
    plot.press("PageUp")
    settle(shown)
    assert re.match(r"step 4\d\d, loss 0\.\d+, sharpness ", plot.get_attribute("aria-valuetext"))
    plot.press("Escape")
    assert picture(shown)["readout"]["step"] == "4,000"


@browser_test
def test_touch_moves_the_cursor(open_page: Callable[..., Any], address: str) -> None:
    page = open_page(viewport={"width": 360, "height": 800}, has_touch=True, is_mobile=True)
    page.goto(address)
    page.wait_for_selector(".eos-line[d^=M]", state="attached")
    page.locator(".eos-plot").tap(position={"x": 150, "y": 60})
    assert picture(page)["readout"]["step"] != "4,000"


# -- everywhere ------------------------------------------------------------------------------


@browser_test
@pytest.mark.parametrize("width", [320, 360, 768])
def test_narrow_screens_need_no_sideways_scrolling(
    open_page: Callable[..., Any], address: str, width: int
) -> None:
    page = open_page(viewport={"width": width, "height": 800})
    page.goto(address)
    page.wait_for_selector(".eos-line[d^=M]", state="attached")
    for key in ("Home", "End"):
        slider(page).press(key)
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert cut_off(page) == []
    page.locator(".eos-table summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert cut_off(page) == []


@browser_test
def test_targets_are_large_enough(shown: Any) -> None:
    small = shown.evaluate(
        """() => [...document.querySelectorAll(".eos-x :is(button, input, summary, label)")]
          .filter((e) => !e.matches(".eos-name") && e.getBoundingClientRect().height < 24)
          .map((e) => e.outerHTML)"""
    )
    assert small == []


@browser_test
def test_every_control_has_a_name_and_every_id_is_unique(shown: Any) -> None:
    tree = shown.locator(".eos-x").aria_snapshot()
    assert 'group "made-up runs"' in tree
    assert 'slider "step size η"' in tree
    assert 'group "x axis"' in tree
    assert re.search(r"- (button|radio|slider)( \[.*\])?:?$", tree, re.MULTILINE) is None
    ids = shown.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


@browser_test
def test_table_lists_all_runs(shown: Any) -> None:
    shown.locator(".eos-table summary").click()
    shown.locator(".eos-table tbody tr").first.wait_for()  # filled a moment later
    rows = shown.locator(".eos-table tbody tr").all_inner_texts()
    assert len(rows) == 13
    assert rows[-1].split("\t")[0] == "0.5"
    assert rows[-1].split("\t")[1] == "4"
    assert rows[-1].split("\t")[-1] == "diverged at step 31"
    assert shown.locator(".eos-table tr[aria-current]").inner_text().startswith("0.1\t")


@browser_test
def test_the_system_theme_counts_only_where_the_page_has_none(
    open_page: Callable[..., Any], tmp_path: Path, address: str
) -> None:
    page = open_page(color_scheme="dark")
    page.goto(address)
    page.wait_for_selector(".eos-line[d^=M]", state="attached")
    assert picture(page)["theme"] == "dark"
    page.emulate_media(color_scheme="light")
    expected = step_size_color(0.1, 0.02, 0.5)
    for _ in range(50):  # the page hears of the change a moment later
        now = picture(page)
        if now["eta"] == expected:
            break
        page.wait_for_timeout(100)
    assert now["theme"] == "light"
    assert now["eta"] == expected
    page.emulate_media(color_scheme="dark")
    page.goto(write_page(tmp_path / "light.html", make_explorer(), theme="light"))
    page.wait_for_selector(".eos-line[d^=M]", state="attached")
    assert picture(page)["theme"] == "light"


@browser_test
def test_several_explorers_do_not_disturb_each_other(page: Any, tmp_path: Path) -> None:
    """Two explorers, one of them shown twice, and a plain widget; texts shared as in the book."""
    first, second = make_explorer(), make_explorer(title="others", start=0.3)
    page.goto(write_page(tmp_path / "page.html", first, second, first, IntSlider(), share=True))
    page.wait_for_function("document.querySelectorAll('.eos-line[d^=M]').length === 6")
    sizes = page.locator(".eos-lr")
    before = sizes.all_inner_texts()
    page.locator("input[type=range]").nth(0).press("ArrowRight")
    page.locator("input[type=radio][value=time]").nth(0).check()
    settle(page)
    after = sizes.all_inner_texts()
    assert after[1] == before[1]
    assert after[0] == after[2] != before[0], "views of one explorer move together"
    checked = page.locator("input[type=radio][value=time]").evaluate_all(
        "(inputs) => inputs.map((i) => i.checked)"
    )
    assert checked == [True, False, True]
    assert page.locator(".static-widget-note").all_inner_texts() == [
        "This control needs a running kernel: open the chapter in JupyterLab to use it."
    ]
    assert page.locator("style").count() == 1
    assert page.problems == []
    assert page.blocked == []


@browser_test
def test_a_title_is_text_not_markup(page: Any, tmp_path: Path) -> None:
    title = "<img src=x onerror='window.hacked = 1'></script>"
    page.goto(write_page(tmp_path / "page.html", make_explorer(title=title)))
    page.wait_for_selector(".eos-line[d^=M]", state="attached")
    assert page.locator(".eos-title").text_content() == title
    assert page.evaluate("window.hacked") is None


@browser_test
def test_a_broken_state_says_so(page: Any, tmp_path: Path) -> None:
    address = write_page(tmp_path / "page.html", make_explorer(), share=True)
    for file in tmp_path.glob("*.js"):
        file.unlink()
    page.goto(address)
    note = page.locator(".static-widget-note")
    note.wait_for()
    assert "could not be shown: the page lacks the shared text" in note.inner_text()


@browser_test
def test_dragging_does_not_ask_for_the_layout(shown: Any) -> None:
    """The browser lays the page out once a frame, not once more for every question."""
    assert layout_questions(shown, slider(shown)) == 0


@browser_test
def test_dragging_stays_cheap(shown: Any) -> None:
    """A drag over 13 runs × 4000 steps: the work per picture is a fraction of a frame."""
    slow = shown.evaluate(
        """async () => {
          const s = document.querySelector("input[type=range]"), times = [];
          for (let k = 0; k <= 100; k++) {
            await new Promise((done) => requestAnimationFrame(done));
            s.dispatchEvent(new PointerEvent("pointerdown"));
            s.value = 10 * k;
            s.dispatchEvent(new Event("input"));
            const start = performance.now(); // the explorer's own frame callback comes next
            await new Promise((done) => requestAnimationFrame(done));
            times.push(performance.now() - start);
          }
          return times.sort((a, b) => a - b)[50];
        }"""
    )
    assert slow < 50, f"median {slow:.1f} ms per picture"


# -- JupyterLab ------------------------------------------------------------------------------

LIVE_CELL = """
import time
from types import SimpleNamespace
import numpy as np
from eoslib.runs import Outcome, Run, Series
from eoslib.widgets import StepSizeExplorer

def make_run(lr, steps, status="completed"):
    t = np.arange(steps + 1)
    series = {"loss": Series(t, np.exp(-lr * t / 9)), "sharpness": Series(t[::5], 1 + lr * t[::5])}
    settings = {"lr": lr, "threshold": 2 / lr, "optimizer": "gradient descent"}
    return Run(settings, series, Outcome(status, steps, ""))

def train(lr, report):
    if lr > 0.9:
        raise RuntimeError("made-up failure")
    for step in range(1, 2000):
        time.sleep(0.01)
        if report(SimpleNamespace(step=step, num_steps=2000, record=lambda: make_run(lr, step))):
            return make_run(lr, step, "stopped")
    return make_run(lr, 2000)

explorer = StepSizeExplorer(
    [make_run(lr, 2000) for lr in (0.05, 0.1, 0.2)], title="live", start=0.1,
    train=train, lr_range=(0.02, 1.0),
)
explorer
"""


@pytest.mark.lab
def test_live_training_in_jupyterlab(run_in_lab: Callable[..., Any]) -> None:
    """Run the cell, choose a step size, train, watch, stop; then fail; then a typing mistake."""
    page = run_in_lab(LIVE_CELL, ".eos-x .eos-line[d^=M]")
    assert page.locator(".eos-origin").inner_text() == "3 runs; train more at any η"

    # between the runs the slider is continuous, and says that there is nothing yet
    slider(page).focus()
    for _ in range(8):
        slider(page).press("ArrowRight")
    now = picture(page)
    lr = float(now["lr"])
    assert 0.1 < lr < 0.2
    assert now["status"] == f"η = {now['lr']}: not trained yet"
    assert now["lines"] == ["", ""]
    assert now["dash"], "the threshold of a step size is known before any training"

    go = page.locator(".eos-go")
    assert go.inner_text() == f"Train at η = {now['lr']}"
    go.click()
    page.wait_for_function(
        """() => document.querySelector(".eos-trainer progress").value > 0.01
          && document.querySelector(".eos-line").getAttribute("d").length > 40"""
    )
    assert picture(page)["status"] == "training…"
    assert "/ 2,000 steps" in page.locator(".eos-count").inner_text()
    short = len(picture(page)["lines"][0])
    page.wait_for_function(
        f"document.querySelector('.eos-line').getAttribute('d').length > {short}"
    )
    page.get_by_role("button", name="Stop").click()
    page.wait_for_function("document.querySelector('.eos-origin').textContent.startsWith('4 runs')")
    now = picture(page)
    assert float(now["lr"]) == lr
    assert now["status"] != "training…"
    assert page.locator(".eos-table tbody tr").count() == 4
    assert not page.locator(".eos-trainer progress").is_visible()

    # a failure is a message, and the next training is possible
    typed = page.locator(".eos-trainer input")
    typed.fill("0.95")
    typed.press("Tab")
    go.click()
    message = page.locator(".eos-message")
    page.wait_for_function(
        "document.querySelector('.eos-message').textContent.includes('made-up failure')"
    )
    assert "training at η = 0.95 failed. RuntimeError" in message.inner_text()
    assert go.is_enabled()

    for text, complaint in [("-1", "must be positive"), ("abc", "not a number"), ("7", "outside")]:
        typed.fill(text)
        go.click()
        assert complaint in message.inner_text()
        assert typed.get_attribute("aria-invalid") == "true"
    assert page.blocked == []
