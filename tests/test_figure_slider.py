"""The Python side of the figure with a slider: frames, limits, envelope, packing, computing."""

from __future__ import annotations

import base64
import json
import math
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("anywidget")

from eoslib.widgets import FigureSlider, Frame, Line, Mark, Panel, Slider
from eoslib.widgets.frames import envelope

T = np.arange(101)


def frame(value: float = 1.0, **options: Any) -> Frame:
    return Frame([Line(T, value * (1 + T), "curve")], **options)


def figure(frames: Any = None, **options: Any) -> FigureSlider:
    settings: dict[str, Any] = {
        "slider": Slider("batch size", "B"),
        "panels": [Panel("step", "loss")],
        "frames": {1: frame(1), 2: frame(2), 4: frame(4)} if frames is None else frames,
        "start": 2,
        "title": "test",
        "alt": "a rising curve",
        **options,
    }
    return FigureSlider(
        settings.pop("slider"), settings.pop("panels"), settings.pop("frames"), **settings
    )


def unpack(widget: FigureSlider, spec: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    numbers, n = np.frombuffer(widget.data, dtype="<f4"), spec["n"]
    y = numbers[spec["y"] : spec["y"] + n]
    if "x" in spec:
        return numbers[spec["x"] : spec["x"] + n], y
    return spec["first"] + spec["every"] * np.arange(n), y


def line_of(widget: FigureSlider, index: int = 0) -> dict[str, Any]:
    return widget.meta["frames"][index]["lines"][0]


# -- what travels ----------------------------------------------------------------------------------


def test_numbers_are_sorted_and_words_keep_their_order() -> None:
    widget = figure({4: frame(), 0.5: frame(), np.int64(2): frame()}, start=4)
    assert [f["value"] for f in widget.meta["frames"]] == ["0.5", "2", "4"]
    assert [f["number"] for f in widget.meta["frames"]] == [0.5, 2, 4]
    assert (widget.index, widget.value) == (2, 4)
    words = figure({"sgd": frame(), "adam": frame()}, start="adam")
    assert [f["value"] for f in words.meta["frames"]] == ["sgd", "adam"]
    assert words.value == "adam"


def test_lines_travel_complete_with_gaps_and_without_infinities() -> None:
    y = np.array([1.0, np.nan, 1e300, -np.inf, 5.0])
    x = np.array([0.0, 1.0, 2.5, 3.0, np.nan])
    widget = figure({1: Frame([Line(x, y)])}, start=1)
    got_x, got_y = unpack(widget, line_of(widget))
    np.testing.assert_array_equal(np.isnan(got_y), np.isnan(y))
    np.testing.assert_array_equal(np.isnan(got_x), np.isnan(x))
    limit = np.finfo(np.float32).max
    np.testing.assert_array_equal(got_y[[0, 2, 3]], np.float32([1, limit, -limit]))


def test_evenly_spaced_steps_and_repeated_numbers_need_no_room() -> None:
    same = np.sin(T)
    frames = {k: Frame([Line(T, same), Line(T, k * T)]) for k in (1, 2, 4)}
    widget = figure(frames, background=[Line(T, same)])
    assert len(widget.data) == 4 * T.size * 4  # sin once, k * T three times, no x at all
    for spec in (line_of(widget), widget.meta["background"][0]):
        np.testing.assert_array_equal(unpack(widget, spec)[0], T)
        np.testing.assert_array_equal(unpack(widget, spec)[1], same.astype("float32"))


def test_a_chapter_sized_figure_stays_small() -> None:
    """Twelve runs of 100,000 steps: each at most 4 × 500 points with their steps."""
    t = np.arange(100_000)
    rng = np.random.default_rng(0)
    frames = {k: Frame([Line(t, rng.standard_normal(t.size), "loss")]) for k in range(12)}
    widget = figure(frames)
    assert len(widget.data) <= 12 * 2000 * 2 * 4
    assert len(json.dumps(widget.meta)) < 5000


def test_colours_are_names_or_step_sizes() -> None:
    lines = [Line(T, T), Line(T, T, color="catapulting"), Line(T, T, lr=0.1)]
    marks = [Mark(y=1), Mark(y=2, lr=0.4)]
    widget = figure({2: Frame(lines, marks)}, background=[Line(T, T)])
    described = widget.meta["frames"][0]
    assert [one.get("color") for one in described["lines"]] == ["ink", "catapulting", None]
    assert described["lines"][2]["lr"] == 0.1
    assert [one.get("color") for one in described["marks"]] == ["muted", None]
    assert widget.meta["background"][0]["color"] == "muted"
    assert widget.lr_range == [0.1, 0.4]
    assert figure(lr_range=(0.01, 1)).lr_range == [0.01, 1]
    steps = figure({0.1: frame(), 0.3: frame()}, slider=Slider("η", step_sizes=True), start=0.1)
    assert steps.lr_range == [0.1, 0.3]


def test_marks_say_where_they_are() -> None:
    marks = [Mark(y=3), Mark(x=4), Mark(y=(5, math.inf)), Mark(x=(-math.inf, 6))]
    described = figure({2: frame(marks=marks)}).meta["frames"][0]["marks"]
    assert [(one["along"], one["at"]) for one in described] == [
        ("y", [3]),
        ("x", [4]),
        ("y", [5, None]),
        ("x", [None, 6]),
    ]


# -- limits ----------------------------------------------------------------------------------------


def limits(*lines: Line, marks: tuple[Mark, ...] = (), **options: Any) -> dict[str, Any]:
    widget = figure({2: Frame(lines, marks)}, panels=[Panel("step", "loss", **options)])
    return widget.meta["panels"][0]


def test_limits_are_those_of_all_frames_and_of_the_background() -> None:
    widget = figure(background=[Line(T, T - 7)])
    panel = widget.meta["panels"][0]
    assert panel["xlim"] == [0, 100]
    low, high = panel["ylim"]
    assert low == pytest.approx(-7 - 0.05 * 411)
    assert high == pytest.approx(404 + 0.05 * 411)


def test_limits_of_numbers_that_are_not_negative_stay_at_zero() -> None:
    assert limits(Line(T, T))["ylim"] == pytest.approx([0, 105])
    assert limits(Line(T + 1, T), xlog=True)["xlim"] == pytest.approx([1, 101])


def test_logarithmic_limits_ignore_what_cannot_be_shown() -> None:
    low, high = limits(Line(T, 10.0 ** (T / 10) * (T >= 50)), ylog=True)["ylim"]
    assert math.log10(low) == pytest.approx(5 - 0.25)
    assert math.log10(high) == pytest.approx(10 + 0.25)
    with pytest.raises(ValueError, match=r"y axis of panel 0 \(loss\).*no positive number"):
        limits(Line(T, -T), ylog=True)


def test_marks_near_the_data_count_and_others_do_not() -> None:
    near = limits(Line(T, T), marks=(Mark(y=120), Mark(y=-20)))["ylim"]
    assert near == pytest.approx([-20 - 0.05 * 140, 120 + 0.05 * 140])
    assert limits(Line(T, T), marks=(Mark(y=130), Mark(y=(110, 115))))["ylim"] == pytest.approx(
        [0, 105]
    )


def test_given_limits_win_and_half_given_ones_are_completed() -> None:
    assert limits(Line(T, T), ylim=(None, 9), xlim=(10, 20)) | {"group": 0} == {
        "x": "step",
        "y": "loss",
        "xlog": False,
        "ylog": False,
        "xlim": [10, 20],
        "ylim": [0, 9],
        "group": 0,
    }
    with pytest.raises(ValueError, match="would go from 200 to 105; change the limit you gave"):
        limits(Line(T, T), ylim=(200, None))


def test_a_constant_gets_an_axis_too() -> None:
    assert limits(Line(T, 0 * T))["ylim"] == [0, 0.5]
    assert limits(Line(T, 0 * T + 4))["ylim"] == [2, 6]
    low, high = limits(Line([3], [4]), ylog=True)["ylim"]
    assert (low, high) == (pytest.approx(2), pytest.approx(8))


def test_bars_and_stems_have_room_and_stand_on_zero() -> None:
    panel = limits(Line([1, 2, 3], [7, 8, 9], style="bars"))
    assert panel["xlim"][0] < 0.55
    assert panel["xlim"][1] > 3.45
    assert panel["ylim"][0] == 0
    assert limits(Line([1, 2], [-3, -2], style="stems"))["ylim"][1] > 0


def test_neighbouring_panels_with_one_x_label_share_their_axis() -> None:
    panels = [Panel("step", "a"), Panel("step", "b"), Panel("time", "c"), Panel("step", "d")]
    lines = [Line(T * (k + 1), T, panel=k) for k in range(4)]
    described = figure({2: Frame(lines)}, panels=panels).meta["panels"]
    assert [panel["group"] for panel in described] == [0, 0, 1, 2]
    assert [panel["xlim"][1] for panel in described] == [200, 200, 300, 400]


# -- the envelope ----------------------------------------------------------------------------------


def columns_of(x: np.ndarray, low: float, high: float, columns: int) -> np.ndarray:
    return np.floor(columns * np.clip((x - low) / (high - low), -1e-9, 1))


@settings(max_examples=200, deadline=None)
@given(
    y=st.lists(
        st.floats(-1e6, 1e6) | st.just(math.nan) | st.sampled_from([0.0, 1.0]),
        min_size=1,
        max_size=300,
    ),
    columns=st.integers(1, 12),
    shuffled=st.booleans(),
)
def test_every_extremum_of_every_column_survives(
    y: list[float], columns: int, shuffled: bool
) -> None:
    values, x = np.array(y), np.arange(len(y), dtype=float)
    if shuffled:  # x need not increase: a path in a plane
        np.random.default_rng(len(y)).shuffle(x)
    kept = envelope(x, values, (0, len(y)), columns=columns)
    assert np.all(np.diff(kept) > 0)
    gone = np.setdiff1d(np.arange(len(y)), kept)
    if len(y) <= 4 * columns:
        assert gone.size == 0
        return
    column = columns_of(x, 0, len(y), columns)
    column[np.isnan(values)] = np.nan
    # neighbours in a column; every gap is a neighbourhood of its own
    start = 0
    for end in range(1, len(y) + 1):
        if end < len(y) and (
            column[end] == column[start] or (np.isnan(column[end]) and np.isnan(column[start]))
        ):
            continue
        inside = kept[(kept >= start) & (kept < end)]
        assert inside.size, "no neighbourhood disappears, gaps included"
        if not np.isnan(column[start]):
            assert {start, end - 1} <= set(inside)
            assert values[inside].min() == values[start:end].min()
            assert values[inside].max() == values[start:end].max()
            assert inside.size <= 4
        start = end


def test_one_spike_in_a_million_points_travels() -> None:
    t = np.arange(1_000_000)
    y = np.sin(t / 1e5)
    y[123_457] = 9.0
    widget = figure({2: Frame([Line(t, y)])})
    x, values = unpack(widget, line_of(widget))
    assert x.size <= 2000
    assert x[np.argmax(values)] == 123_457
    assert values.max() == 9


def test_the_envelope_follows_a_logarithmic_axis() -> None:
    x = np.arange(1, 100_001)
    kept = envelope(x, np.cos(np.pi * x), (1, 100_000), log=True, columns=10)
    assert np.all(np.diff(np.searchsorted(kept, 10.0 ** np.arange(6))) >= 2)
    assert kept.size <= 40


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: Line([1, 2], [1, 2, 3]), r"one and the same shape.*\(2,\) and \(3,\)"),
        (lambda: Line([[1]], [[1]], "λ₁"), r"line 'λ₁': x and y must have.*\(1, 1\)"),
        (lambda: Line([], []), "no point"),
        (lambda: Line([1, 2], [math.nan, math.nan]), "no point"),
        (lambda: Line(["a"], [1]), "x must be numbers"),
        (lambda: Line([1], [1], style="wavy"), "'wavy' is none of solid, dashed"),
        (lambda: Line([1], [1], color="red"), "'red' is none of accent, ink, muted"),
        (lambda: Line([1], [1], color="ink", lr=1), "the step size is its colour"),
        (lambda: Line([1], [1], lr=0), "positive step size"),
        (lambda: Mark(), "x or y, and not both"),
        (lambda: Mark(x=1, y=1), "x or y, and not both"),
        (lambda: Mark(y=math.nan, label="2/η"), "mark '2/η' must be at a finite number"),
        (lambda: Mark(y=(2, 1)), "lower to an upper end"),
        (lambda: Mark(y=(math.nan, 1)), "lower to an upper end"),
        (lambda: Frame([]), "at least one line"),
        (lambda: Panel("x", "y", ylim=(1, 1)), r"ylim must be \(lower, upper\)"),
        (lambda: Panel("x", "y", ylim=(0, math.inf)), "ylim must be finite"),
        (lambda: Panel("x", "y", xlog=True, xlim=(0, 1)), "xlim must be positive"),
        (lambda: figure({}), "at least one frame"),
        (lambda: figure({1: "frame"}, start=1), "at 1 there is 'frame'"),
        (lambda: figure(panels=[]), "at least one panel"),
        (lambda: figure(panels=[Panel("x", "a"), Panel("x", "b")]), r"panel 1 \(b\) has no line"),
        (lambda: figure(start=3), "start 3 is not a value.*those are 1, 2, 4"),
        (lambda: figure({1: frame(), "a": frame()}, start=1), "all finite numbers or all words"),
        (lambda: figure({True: frame()}, start=True), "all finite numbers or all words"),
        (lambda: figure({math.nan: frame()}, start=1), "all finite numbers or all words"),
        (
            lambda: figure({0: frame()}, start=0, slider=Slider("η", step_sizes=True)),
            "positive numbers; one is 0",
        ),
        (lambda: figure({2: Frame([Line(T, T, "b", panel=1)])}), "panels 0 to 0, but 'b' is in 1"),
        (
            lambda: figure({2: frame(marks=[Mark(y=1, label="m", panel=-1)])}),
            "panels 0 to 0, but 'm' is in -1",
        ),
        (lambda: figure(lr_range=(1, 0.1)), "lr_range"),
        (lambda: figure(alt=" "), "alt"),
        (
            lambda: figure({"a": frame()}, start="a", compute=lambda value, report: frame()),
            "slider of numbers",
        ),
        (lambda: figure().plot(3), "no frame at 3; there are 1, 2, 4"),
    ],
)
def test_bad_input_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# -- representations -------------------------------------------------------------------------------


def test_the_output_brings_a_picture_and_a_description() -> None:
    widget = figure()
    data, _ = widget._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == "test. a rising curve"
    assert "application/vnd.jupyter.widget-view+json" in data
    assert repr(widget) == "FigureSlider('test', 3 frames, at 2)"


def test_the_picture_shows_the_frame_with_the_limits_of_the_figure() -> None:
    import matplotlib.pyplot as plt

    styles = ("solid", "dashed", "dotted", "points", "stems", "bars")
    lines = [Line(T + 1, T + 2, style, style=style, pale=style == "dotted") for style in styles]
    lines.append(Line(T + 1, T + 1, "second", panel=1, lr=0.1))
    marks = [Mark(y=3, label="2/η"), Mark(x=(4, 9)), Mark(y=(50, math.inf), panel=1), Mark(x=7)]
    widget = figure(
        {k: Frame(lines, marks) for k in (1, 2)},
        panels=[Panel("step", "loss", xlog=True, ylog=True), Panel("step", "", xlog=True)],
        background=[Line(T + 1, 9 + 0 * T, "old")],
    )
    drawn = widget.plot(1)
    for ax, panel in zip(drawn.axes, widget.meta["panels"], strict=True):
        assert ax.get_xlim() == pytest.approx(panel["xlim"])
        assert ax.get_ylim() == pytest.approx(panel["ylim"])
    assert drawn.axes[0].get_legend_handles_labels()[1] == ["old", *styles]
    assert [text.get_text() for text in drawn.axes[0].texts] == ["2/η"]
    assert drawn.get_suptitle() == "batch size B = 1"
    plt.close(drawn)


# -- frames that are not stored --------------------------------------------------------------------


def progress(step: int = 1) -> SimpleNamespace:
    return SimpleNamespace(step=step, num_steps=10)


def live(compute: Any, **options: Any) -> FigureSlider:
    widget = figure(compute=compute, **options)
    widget.update_interval = 0
    return widget


def test_computing_adds_and_shows_the_frame() -> None:
    said = []

    def compute(value: float, report: Any) -> Frame:
        assert not report(progress())
        return frame(value)

    widget = live(compute)
    widget.observe(lambda change: said.append(change["new"]["state"]), "computing")
    assert widget.compute_at(3.0)
    assert widget.wait(10)
    assert list(widget.frames) == [1, 2, 3, 4]
    assert (widget.value, widget.index) == (3, 2)
    assert type(widget.value) is int
    np.testing.assert_array_equal(unpack(widget, line_of(widget, 2))[1], 3 * (1 + T))
    assert said == ["running", "running", "done"]
    assert not widget.compute_at(4), "what is stored is only shown"
    assert widget.value == 4


def test_computing_can_be_stopped() -> None:
    started = threading.Event()

    def compute(value: float, report: Any) -> Frame:
        while not report(progress()):
            started.set()
        return frame(value)

    widget = live(compute)
    widget._receive(widget, {"do": "compute", "value": 3}, [])
    assert started.wait(10)
    assert widget.is_computing
    assert not widget.compute_at(3), "one at a time"
    widget._receive(widget, {"do": "stop"}, [])
    assert widget.wait(10)
    assert widget.value == 3


@pytest.mark.parametrize("result", [None, Frame([Line(T, T, panel=5)]), RuntimeError("no memory")])
def test_a_failure_is_shown_and_changes_nothing(result: Any) -> None:
    def compute(value: float, report: Any) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    widget = live(compute)
    before = widget.meta
    assert widget.compute_at(3)
    assert widget.wait(10)
    assert widget.computing["state"] == "failed"
    assert type(widget.last_error).__name__ in widget.computing["message"]
    assert widget.meta == before
    assert list(widget.frames) == [1, 2, 4]


@pytest.mark.parametrize(
    "value,message",
    [
        (0, "between 1 and 4"),
        (5, "between 1 and 4"),
        (math.nan, "between 1 and 4"),
        ("3", "between 1 and 4"),
        (True, "between 1 and 4"),
        (2.5, "whole number"),
    ],
)
def test_bad_values_get_a_message(value: Any, message: str) -> None:
    widget = live(lambda value, report: frame())
    assert not widget.compute_at(value)
    assert widget.computing["state"] == "failed"
    assert message in widget.computing["message"]


def test_without_compute_nothing_can_be_computed() -> None:
    widget = figure()
    assert not widget.computable
    assert not widget.compute_at(3)
    assert "nothing to compute" in widget.computing["message"]
