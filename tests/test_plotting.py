"""Figures are asserted on their artists: the line's data, the threshold's height, the labels."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from eoslib.palette import step_size_color
from eoslib.plotting import draw_threshold, plot_runs
from eoslib.runs import Series
from tests.test_runs import make_run

mpl.use("Agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_two_runs_against_steps():
    slow, fast = make_run([0.3, 0.5, 0.7]), make_run([0.5, 1.0, 1.1, 1.0], lr=0.4)
    figure = plot_runs([fast, slow])
    top, bottom = figure.axes
    assert top.get_yscale() == "log"
    assert "½ mean squared error" in top.get_ylabel()
    assert bottom.get_xlabel() == "step"
    np.testing.assert_array_equal(top.lines[0].get_ydata(), slow["loss"].values)
    np.testing.assert_array_equal(bottom.lines[1].get_ydata(), fast["sharpness"].values)
    assert to_hex(top.lines[0].get_color()) == step_size_color(0.1, 0.1, 0.4)
    heights = [line.get_ydata()[0] for line in bottom.lines[2:]]
    assert heights == [5.0]  # the slow run's threshold, 20, lies above everything measured
    assert [text.get_text() for text in bottom.texts] == ["2/η = 5"]


def test_a_threshold_in_the_thousands_is_written_out():
    (_, bottom) = plot_runs([make_run([900.0, 2000.0], lr=2 / 1400)]).axes
    assert [text.get_text() for text in bottom.texts] == ["2/η = 1,400"]


def test_time_is_steps_times_eta():
    run = make_run(lr=0.25)
    _, bottom = run.plot(axis="time").axes
    np.testing.assert_allclose(bottom.lines[0].get_xdata(), run["sharpness"].steps * 0.25)
    assert bottom.get_xlabel() == "time = steps × η"


def test_a_step_size_that_changes_bends_time_and_threshold():
    run = make_run(lr=0.25)
    run.settings["lr_changes"] = [[20, 0.5]]
    _, bottom = run.plot(axis="time").axes
    steps = run["sharpness"].steps
    x = bottom.lines[0].get_xdata()
    np.testing.assert_allclose(x, np.where(steps < 20, 0.25 * steps, 5 + 0.5 * (steps - 20)))
    dashed = bottom.lines[1]
    np.testing.assert_allclose(dashed.get_xdata(), [0, 5, 5, 5 + 0.5 * 29])
    np.testing.assert_allclose(dashed.get_ydata(), [8, 8, 4, 4])
    assert [text.get_text() for text in bottom.texts] == ["2/η = 4"]


def test_a_threshold_that_left_the_picture_is_drawn_as_far_as_it_is_in_it():
    run = make_run([0.9, 1.0, 1.0, 0.1, 0.1], lr=0.5)
    run.settings["lr_changes"] = [[25, 0.05]]
    _, bottom = run.plot(axis="time").axes
    np.testing.assert_allclose(bottom.lines[1].get_ydata(), [4, 4, 40, 40])
    assert [text.get_text() for text in bottom.texts] == ["2/η = 4"]
    assert bottom.get_xlabel() == "time τ"  # no multiple of one step size


def test_a_loss_of_the_users_own_is_named():
    run = make_run()
    run.settings["loss"] = "HuberLoss"
    assert run.plot().axes[0].get_ylabel() == "train loss (HuberLoss)\nlog axis"


def test_a_run_without_a_step_size_has_no_time():
    run = make_run()
    run.settings |= {"lr": "nan", "optimizer": "inverse-sharpness"}
    with pytest.raises(ValueError, match=r"inverse-sharpness has no step size.*axis='steps'"):
        run.plot(axis="time")


def test_a_run_without_a_threshold_has_no_line():
    flow, other = make_run(), make_run()
    del flow.settings["lr"]
    flow.settings |= {"tick": 0.1, "threshold": "inf"}
    other.settings |= {"lr": "nan", "threshold": "nan"}
    _, ax = plt.subplots()
    for run in (flow, other):
        draw_threshold(ax, run, "black")
    assert not ax.lines and not ax.texts


def test_style_is_put_back():
    before = dict(mpl.rcParams)
    plot_runs([make_run()])
    assert dict(mpl.rcParams) == before


def test_of_an_adaptive_optimizer_the_preconditioned_sharpness_is_drawn_with_its_own_line():
    run = make_run([0.3, 0.5, 1.0], lr=0.1)
    run.settings["threshold"] = 380.0
    steps = run["sharpness"].steps
    run.series["preconditioned_sharpness"] = Series(steps, [100.0, 200.0, 390.0])
    (_, bottom) = plot_runs([run]).axes
    np.testing.assert_array_equal(bottom.lines[0].get_ydata(), [100, 200, 390])
    assert bottom.get_ylabel() == "preconditioned\nsharpness"
    run.series["eigenvalues"] = Series(steps, np.ones((3, 2)))  # of H: they do not belong here
    assert len(plot_runs([run]).axes[1].lines) == len(bottom.lines)
    assert [text.get_text() for text in bottom.texts] == ["38/η = 380"]
    with pytest.raises(ValueError, match="draw them in a figure of their own"):
        plot_runs([run, make_run()])


def test_wrong_arguments():
    with pytest.raises(ValueError, match="at least one run"):
        plot_runs([])
    with pytest.raises(ValueError, match="'steps' or 'time'"):
        plot_runs([make_run()], axis="epochs")
