"""What the laboratory's pictures show: pixels against the numbers of the run."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

pytest.importorskip("anywidget")

from eoslib.widgets.laboratory import Laboratory
from tests.browser.test_laboratory import (
    as_number,
    button,
    reach,
    recorded,
    run_to,
    set_field,
    settle,
    visit,
)
from tests.browser.widget_page import write_page

pytestmark = pytest.mark.browser

#: Keeps the texts that every canvas shows, [text, x, y, colour]: the ticks of its axes among them.
KEEP_TEXTS = """
  const { clearRect, fillText } = CanvasRenderingContext2D.prototype, texts = new WeakMap();
  self.textsOf = (selector) => texts.get(document.querySelector(selector)) ?? [];
  Object.assign(CanvasRenderingContext2D.prototype, {
    clearRect(...box) { texts.set(this.canvas, []); clearRect.apply(this, box); },
    fillText(text, x, y) {
      texts.get(this.canvas)?.push([text, x, y, this.fillStyle]);
      fillText.call(this, text, x, y);
    },
  });
"""
MAIN, MAGNIFIER = ".eos-main canvas", ".eos-magnifier canvas"


@pytest.fixture
def open_laboratory(page: Any, tmp_path: Path) -> Callable[..., Any]:
    """A function that opens a laboratory with these settings in a page whose texts are kept."""
    page.add_init_script(KEEP_TEXTS)

    def open_laboratory(**settings: Any) -> Any:
        visit(page, write_page(tmp_path / "page.html", Laboratory(settings=settings)))
        page.locator(".eos-settings").evaluate("(details) => { details.open = true; }")
        return page

    return open_laboratory


def texts(page: Any, selector: str = MAIN) -> list[list[Any]]:
    settle(page)
    return list(page.evaluate("(selector) => textsOf(selector)", selector))


def pixels(page: Any, selector: str) -> np.ndarray:
    """A canvas, (rows, columns, 4), as it is drawn at one pixel per point."""
    address = page.locator(selector).evaluate("(canvas) => canvas.toDataURL()")
    png = base64.b64decode(address.partition(",")[2])
    return np.asarray(matplotlib.image.imread(io.BytesIO(png), format="png"))


def tick(text: str) -> float | None:
    """The number of a tick label, such as 0.5, 1,000, 10⁻³ or 2×10⁻³; None: it is none."""
    text = re.sub(r"^10(?=[⁰¹²³⁴⁵⁶⁷⁸⁹⁻])", "1×10", text)
    return as_number(text) if re.fullmatch(r"−?[\d.,]+(×10[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)?", text) else None


def axis(ticks: list[tuple[float, float]], log: bool = False) -> Callable[[float], float]:
    """From values to pixels, by the ticks (value, pixel) of an axis."""
    values, places = np.array(sorted(ticks)).T
    assert len(values) >= 2
    slope, constant = np.polyfit(np.log(values) if log else values, places, 1)
    return lambda value: float(slope * (np.log(value) if log else value) + constant)


def main_axes(page: Any) -> tuple[Callable[[float], float], ...]:
    """x, the loss's y and the sharpness's y, from the labels that the picture shows."""
    labels = [(tick(t), x, y) for t, x, y, _ in texts(page) if tick(t) is not None]
    beside = [(value, y) for value, x, y in labels if x == 40]
    below = max(y for _, _, y in labels)
    across = [(value, x) for value, x, y in labels if y == below and x != 40]
    split = next(y for t, _, y, _ in texts(page) if "sharpness" in t and "loss" not in t)
    upper = [(value, y - 4) for value, y in beside if y < split]
    lower = [(value, y - 4) for value, y in beside if y > split]
    return axis(across), axis(upper, log=True), axis(lower)


def is_drawn(picture: np.ndarray, x: float, y: float, color: np.ndarray, reach: int = 3) -> bool:
    """Is there a pixel of about this colour near the place?"""
    row, column = round(y), round(x)
    near = picture[max(row - reach, 0) : row + reach + 1, column - reach : column + reach + 1]
    # A line between two columns of pixels covers each in part.
    alike = np.abs(near - color)[..., :3].max(axis=-1) < 0.25
    return bool((alike & (near[..., 3] > 0.35)).any())


def run_color(page: Any) -> np.ndarray:
    """The colour of the run, which is that of its line's label."""
    code = next(color for text, _, _, color in texts(page) if text.startswith("2/η"))
    return np.array([*(int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)), 1.0])


def test_the_picture_reaches_every_spike_of_a_long_run(open_laboratory: Callable[..., Any]) -> None:
    """4,000 steps at the edge in some 700 columns: of each, the highest and the lowest value."""
    page = open_laboratory(degree=4, hidden=[20, 20], stepSize=0.2)
    run_to(page, 4000)
    data, picture, color = recorded(page), pixels(page, MAIN), run_color(page)
    assert data["every"] >= 4
    x, loss, sharpness = main_axes(page)
    for channel, y in (("loss", loss), ("eigenvalue1", sharpness)):
        low, high = (np.array(data[side][channel], dtype=float) for side in ("low", "high"))
        spikes = np.argsort(high - low)[-25:]
        for bucket in spikes:
            for value in (low[bucket], high[bucket]):
                place = (x(bucket * data["every"]), y(value))
                assert is_drawn(picture, *place, color), f"{channel} {value} at {place}"
        # and no further: what is above all neighbours is empty
        for bucket in spikes:
            around = high[max(bucket - 6, 0) : bucket + 7].max()
            assert not is_drawn(picture, x(bucket * data["every"]), y(around) - 7, color)


def test_the_magnifier_shows_every_step(open_laboratory: Callable[..., Any]) -> None:
    """Sixty dots at the losses and sixty at the displacements; every second one is open."""
    page = open_laboratory(degree=4, hidden=[20, 20], stepSize=0.2)
    run_to(page, 600, speed="300")  # a busy machine overshoots; long records join steps
    data, picture, color = recorded(page), pixels(page, MAGNIFIER), run_color(page)
    assert data["every"] == 1
    height, width = picture.shape[:2]
    first = data["steps"] + 1 - 60
    for k, channel in enumerate(("loss", "oscillation1")):
        values = np.array(data["low"][channel][-60:])
        low, high = values.min(), values.max()
        top, bottom = k * height / 2 + 17, (k + 1) * height / 2 - 17
        filled = []
        for i, value in enumerate(values):
            x = 8 + i * (width - 16) / 59
            y = bottom + (top - bottom) * (value - low) / (high - low)
            filled.append(is_drawn(picture, x, y, color, reach=0))
            assert is_drawn(picture, x, y, color), f"{channel} of step {first + i}"
        full, open_ = filled[first % 2 :: 2], filled[1 - first % 2 :: 2]
        assert np.mean(full) > 0.8 > 0.2 > np.mean(open_), channel
    rises = int((np.diff(data["low"]["loss"][-60:]) > 0).sum())
    caption = page.locator(".eos-magnifier figcaption").inner_text()
    assert caption == f"the last 60 steps: loss rose {rises} times"


def test_what_leaves_the_picture_is_marked(open_laboratory: Callable[..., Any]) -> None:
    page = open_laboratory(degree=4, hidden=[20, 20], stepSize=0.2)
    assert "±0" in [text for text, *_ in texts(page, ".eos-phase canvas")], "nothing has moved yet"
    run_to(page, 300)
    assert not any(text.startswith("up to") for text, *_ in texts(page))
    set_field(page, "task", "quadratic")
    set_field(page, "spectrum", "100, 1")
    page.get_by_role("slider", name="step size η").first.press("End")
    button(page, "Step").click()
    reach(page, 1)
    marks = [text for text, *_ in texts(page) if text.startswith("up to")]
    assert len(marks) == 2, "the loss grew by 199 squared, and the sharpness is 100 times its line"
    assert [as_number(mark.removeprefix("up to ")) for mark in marks] == [
        pytest.approx(recorded(page)["high"][channel][at], rel=0.01)
        for channel, at in (("loss", 1), ("eigenvalue1", 0))
    ]


@pytest.mark.parametrize("every", [1, 10])
def test_what_is_measured_seldom_is_drawn(open_laboratory: Callable[..., Any], every: int) -> None:
    """Two eigenvalues; then as the shadow of a run in which every step, or fewer, are measured."""
    page = open_laboratory(degree=4, hidden=[20, 20], eigenvalues=2, measureEvery=every)
    # the engine's colours, at full strength: those of shadows and of other eigenvalues are paler
    page.evaluate("""() => {
      const stroke = CanvasRenderingContext2D.prototype.stroke;
      CanvasRenderingContext2D.prototype.stroke = function () {
        if (this.strokeStyle !== "#000000") this.globalAlpha = 1;
        stroke.call(this);
      };
    }""")
    run_to(page, 200, speed="300")
    data, picture, color = recorded(page), pixels(page, MAIN), run_color(page)
    x, _, sharpness = main_axes(page)
    for channel in ("eigenvalue1", "eigenvalue2"):
        for step in (40, 80, 120, 160):  # and between two measurements
            value = np.mean([data["high"][channel][at] for at in (step, step + every)])
            assert is_drawn(picture, x(step + every / 2), sharpness(value), color), channel
    before = data["high"]["eigenvalue1"]
    set_field(page, "measureEvery", "1" if every > 1 else "7")
    reach(page, 0)
    settle(page)
    picture, (x, _, sharpness) = pixels(page, MAIN), main_axes(page)
    for step in (40, 80, 120, 160):
        value = np.mean([before[at] for at in (step, step + every)])
        assert is_drawn(picture, x(step + every / 2), sharpness(value), color), "the shadow"


def test_thousands_of_step_sizes_cost_no_thousands_of_strokes(page: Any, tmp_path: Path) -> None:
    page.add_init_script("""
      const { stroke, clearRect } = CanvasRenderingContext2D.prototype;
      self.strokes = 0;
      Object.assign(CanvasRenderingContext2D.prototype, {
        clearRect(...box) {
          if (this.canvas.closest(".eos-main")) self.strokes = 0;
          clearRect.apply(this, box);
        },
        stroke() {
          if (this.canvas.closest(".eos-main")) self.strokes += 1;
          stroke.call(this);
        },
      });
    """)
    changes = ",".join(f"{step}:{0.1 + 0.0001 * (step % 50):.4f}" for step in range(1, 1500))
    address = write_page(tmp_path / "page.html", Laboratory(linked=True))
    visit(page, f"{address}#laboratory?task=quadratic&spectrum=2&changes={changes}&at=1500")
    reach(page, 1500)
    settle(page)
    assert 100 < page.evaluate("strokes") < 900


def test_the_line_of_a_shadow_is_that_of_its_run(open_laboratory: Callable[..., Any]) -> None:
    page = open_laboratory(degree=4, hidden=[20, 20], stepSize=0.2)
    run_to(page, 100)
    slider = page.get_by_role("slider", name="step size η").first
    for _ in range(2):
        slider.press("PageDown")
    button(page, "Reset").click()
    reach(page, 0)
    lines = [text for text, *_ in texts(page) if "/η" in text]
    assert "2/η = 10" in lines, "not that of the slider"
    assert all(line.startswith("2/η") for line in lines)


def test_an_axis_holds_one_quantity(open_laboratory: Callable[..., Any]) -> None:
    """Adam feels another curvature than gradient descent: neither is the other's shadow."""
    page = open_laboratory(degree=4, hidden=[20, 20], stepSize=0.2)
    run_to(page, 300)
    button(page, "Reset").click()
    reach(page, 0)
    page.get_by_role("slider", name="step size η").first.press("PageDown")
    run_to(page, 60)
    assert "2/η = 10" in [text for text, *_ in texts(page)], "the line of the shadow"
    set_field(page, "optimizer", "adam")
    reach(page, 0)
    run_to(page, 60)
    shown = [text for text, *_ in texts(page)]
    assert "preconditioned sharpness" in shown
    assert not [text for text in shown if text.startswith("2/η")]
    assert button(page, "Forget earlier runs").is_enabled(), "its loss is still one"
