"""The Python side of the step-size explorer: data, validation, training in the background."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eoslib.runs import Outcome, Run, Series

pytest.importorskip("anywidget")

from eoslib.widgets import StepSizeExplorer


def make_run(lr: float, steps: int = 50, status: str = "completed", **series: Any) -> Run:
    t = np.arange(steps + 1)
    return Run(
        settings={"lr": lr, "threshold": 2 / lr, "optimizer": "gradient descent"},
        series={
            "loss": Series(t, np.exp(-lr * t)),
            "sharpness": Series(t[::5], np.minimum(t[::5] * lr, 2 / lr)),
            **series,
        },
        outcome=Outcome(status, steps, ""),
    )


def explorer(*step_sizes: float, **options: Any) -> StepSizeExplorer:
    return StepSizeExplorer([make_run(lr) for lr in step_sizes], title="test", **options)


def unpack(widget: StepSizeExplorer, spec: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.frombuffer(widget.data, dtype="<f4")
    n = spec["n"]
    values = numbers[spec["values"] : spec["values"] + n]
    if "steps" in spec:
        return numbers[spec["steps"] : spec["steps"] + n], values
    return spec["first"] + spec["every"] * np.arange(n), values


# -- data ------------------------------------------------------------------------------------


def test_runs_travel_sorted_and_complete() -> None:
    uneven = Series(np.array([0, 1, 5, 40]), np.array([1.0, 2, 3, 4]))
    runs = [make_run(0.4, steps=31), make_run(0.1, sharpness=uneven)]
    widget = StepSizeExplorer(runs, title="test")
    described = widget.meta["runs"]
    assert [run["lr"] for run in described] == [0.1, 0.4]
    assert [run["threshold"] for run in described] == [20, 5]
    for run, spec in zip([runs[1], runs[0]], described, strict=True):
        assert spec["words"] == run.describe()
        for name in ("loss", "sharpness"):
            steps, values = unpack(widget, spec[name])
            np.testing.assert_array_equal(steps, run[name].steps)
            np.testing.assert_array_equal(values, run[name].values.astype("float32"))


def test_numbers_beyond_float32_stay_finite_and_unknown_ones_are_dropped() -> None:
    wild = Series(np.arange(4), np.array([1.0, 1e30, 1e300, np.inf]))
    gaps = Series(np.arange(4), np.array([1.0, np.nan, 3.0, 4.0]))
    widget = StepSizeExplorer([make_run(0.1, loss=wild, sharpness=gaps)], title="test")
    spec = widget.meta["runs"][0]
    assert np.all(np.isfinite(unpack(widget, spec["loss"])[1]))
    np.testing.assert_array_equal(unpack(widget, spec["sharpness"]), [[0, 2, 3], [1, 3, 4]])


def test_of_adaptive_optimizers_what_the_threshold_is_for_is_shown() -> None:
    curved = Series([0, 10], [1.5, 2.5])
    runs = [make_run(lr, preconditioned_sharpness=curved) for lr in (0.1, 0.2)]
    widget = StepSizeExplorer(runs, title="test", threshold_label="38/η")
    assert widget.threshold_label == "38/η"
    assert widget.curvature_label == "preconditioned sharpness"
    _, values = unpack(widget, widget.meta["runs"][0]["sharpness"])
    np.testing.assert_allclose(values, [1.5, 2.5])
    assert explorer(0.1).curvature_label == "sharpness"
    assert explorer(0.1).threshold_label == "2/η"
    for run in runs:
        run.settings["threshold"] = 38 / run.lr
    assert StepSizeExplorer(runs, title="test").threshold_label == "38/η"
    runs[0].settings["threshold"] = 6 / runs[0].lr
    assert StepSizeExplorer(runs, title="test").threshold_label == "threshold"
    with pytest.raises(ValueError, match="give each kind an explorer of its own"):
        StepSizeExplorer([*runs, make_run(0.4)], title="test")


def test_start_selects_the_nearest_run_on_the_log_scale() -> None:
    assert explorer(0.1, 1.0, start=0.3).lr == 0.1
    assert explorer(0.1, 1.0, start=0.33).lr == 1.0
    assert explorer(0.1, 0.2, 0.4).lr == 0.2


def test_repr_is_stable_and_says_what_is_shown() -> None:
    assert repr(explorer(0.5, 0.02, 0.1)) == "StepSizeExplorer(3 runs, η 0.02 to 0.5)"
    assert repr(explorer(0.5)) == "StepSizeExplorer(1 run, η 0.5)"


@pytest.mark.parametrize(
    "step_sizes,options,message",
    [
        ((), {}, "at least one run"),
        ((0.1, 0.1), {}, "share the step size"),
        ((0.1,), {"start": -1}, "positive"),
        ((0.1,), {"start": float("nan")}, "positive"),
        ((0.1,), {"lr_range": (0, 1)}, "lr_range"),
        ((0.1,), {"lr_range": (1, 0.5)}, "lr_range"),
        ((0.1, 3.0), {"lr_range": (0.1, 1)}, "does not contain"),
    ],
)
def test_bad_arguments_are_refused(
    step_sizes: tuple[float, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        explorer(*step_sizes, **options)


def grouped(**options: Any) -> StepSizeExplorer:
    groups = {
        "first": [make_run(0.4), make_run(0.1)],
        "second": [make_run(0.1), make_run(0.2), make_run(0.8)],
    }
    return StepSizeExplorer(groups, title="test", **options)


def test_groups_travel_under_their_names() -> None:
    widget = grouped()
    described = [(run["group"], run["lr"]) for run in widget.meta["runs"]]
    assert described == [
        ("first", 0.1), ("first", 0.4), ("second", 0.1), ("second", 0.2), ("second", 0.8),
    ]  # fmt: skip
    assert widget.group_names == ["first", "second"]
    assert (widget.group, widget.lr, widget.group_label) == ("first", 0.4, "network")
    assert widget.lr_range == [0.1, 0.8], "one range, so that a step size keeps its colour"
    assert grouped(start=0.8).lr == 0.4, "a run of the group that is shown"
    assert repr(widget) == "StepSizeExplorer(5 runs in 2 groups, η 0.1 to 0.8)"
    assert [run.lr for run in widget.runs] == [0.1, 0.4, 0.1, 0.2, 0.8]


def test_one_list_of_runs_has_no_groups() -> None:
    widget = explorer(0.1, 0.4)
    assert (widget.group_names, widget.group) == ([], "")
    assert list(widget.groups) == [""]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_changes": [[3, 0.2]]}, "got a run whose step size changes"),
        ({"lr": "nan", "optimizer": "inverse-sharpness"}, "got one of inverse-sharpness"),
        ({"optimizer": "gradient flow", "tick": 1.0}, "got one of gradient flow"),
    ],
)
def test_runs_without_one_step_size_are_refused(settings: dict[str, Any], message: str) -> None:
    run = make_run(0.1)
    if "tick" in settings:
        del run.settings["lr"]
    run.settings |= settings
    with pytest.raises(ValueError, match=message):
        StepSizeExplorer([make_run(0.2), run], title="test")


def test_any_iterable_of_runs_will_do_and_a_change_after_the_end_is_none() -> None:
    run = make_run(0.1)
    run.settings["lr_changes"] = [[10**6, 0.2]]
    assert len(StepSizeExplorer({"a": iter([run, make_run(0.2)])}, title="test").runs) == 2


@pytest.mark.parametrize(
    "groups,message",
    [
        ({}, "at least one run"),
        ({"a": [0.1], "b": []}, "at least one run of b"),
        ({"a": [0.1], "b": [0.2, 0.2]}, "two runs of b share the step size 0.2"),
    ],
)
def test_bad_groups_are_refused(groups: dict[str, list[float]], message: str) -> None:
    runs = {name: [make_run(lr) for lr in sizes] for name, sizes in groups.items()}
    with pytest.raises(ValueError, match=message):
        StepSizeExplorer(runs, title="test")


def test_importing_the_library_does_not_import_the_widgets() -> None:
    code = "import sys, eoslib; sys.exit('anywidget' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- training --------------------------------------------------------------------------------


def progress(lr: float, step: int) -> SimpleNamespace:
    return SimpleNamespace(step=step, num_steps=10**9, record=lambda: make_run(lr, steps=9))


def live(train: Callable[..., Run]) -> StepSizeExplorer:
    widget = explorer(0.1, 1.0, train=train, lr_range=(0.05, 2.0))
    widget.update_interval = 0
    return widget


def test_training_adds_and_selects_the_run() -> None:
    shown = []

    def train(lr: float, report: Any) -> Run:
        for step in range(3):
            assert not report(progress(lr, step))
        return make_run(lr)

    widget = live(train)
    widget.observe(lambda change: shown.append(change["new"]), "training")
    assert widget.train_at(0.3)
    assert widget.wait(10)
    assert [run.lr for run in widget.runs] == [0.1, 1.0, 0.3]
    assert [run["lr"] for run in widget.meta["runs"]] == [0.1, 0.3, 1.0]
    assert widget.lr == 0.3
    assert [state["state"] for state in shown] == ["running"] * 4 + ["done"]
    assert shown[1]["meta"]["runs"][0]["loss"]["n"] == 10
    assert not widget.is_training


def test_a_training_of_another_kind_is_not_mixed_in() -> None:
    curved = Series([0, 10], [1.5, 2.5])
    widget = live(lambda lr, report: make_run(lr, preconditioned_sharpness=curved))
    assert widget.train_at(0.3)
    assert widget.wait(10)
    assert "an explorer of its own" in str(widget.last_error)
    assert [run.lr for run in widget.runs] == [0.1, 1.0]


def test_training_in_a_group_goes_to_that_group() -> None:
    asked, shown = [], []

    def train(group: str, lr: float, report: Any) -> Run:
        asked.append((group, lr))
        report(progress(lr, 1))
        return make_run(lr)

    widget = grouped(train=train)
    widget.update_interval = 0
    widget.observe(lambda change: shown.append(change["new"]), "training")
    widget._receive(widget, {"do": "train", "lr": 0.3, "group": "second"}, [])
    assert widget.wait(10)
    assert asked == [("second", 0.3)]
    assert {state["group"] for state in shown[:-1]} == {"second"}
    assert (widget.group, widget.lr) == ("second", 0.3)
    assert [run.lr for run in widget.groups["second"]] == [0.1, 0.2, 0.8, 0.3]
    of_second = [run["lr"] for run in widget.meta["runs"] if run["group"] == "second"]
    assert of_second == [0.1, 0.2, 0.3, 0.8]
    assert widget.training["message"].startswith("second, η = 0.3: ")
    assert widget.train_at(0.15), "by default in the group that is shown"
    assert widget.wait(10)
    assert asked[-1] == ("second", 0.15)
    for bad in ("third", 3):
        assert not widget.train_at(0.3, bad)
        assert f"there is no network {bad!r} here" in widget.training["message"]


def test_stop_ends_a_training_and_keeps_what_it_has() -> None:
    started = threading.Event()

    def train(lr: float, report: Any) -> Run:
        step = 0
        while not report(progress(lr, step)):
            started.set()
            step += 1
        return make_run(lr, steps=5, status="stopped")

    widget = live(train)
    widget._receive(widget, {"do": "train", "lr": 0.3}, [])
    assert started.wait(10)
    assert not widget.train_at(0.4), "only one training at a time"
    widget._receive(widget, {"do": "stop"}, [])
    assert widget.wait(10)
    assert widget.runs[-1].outcome.status == "stopped"
    assert widget.train_at(0.5), "a new training does not inherit the stop"
    widget.stop()
    assert widget.wait(10)


@pytest.mark.parametrize("error", [RuntimeError("no memory"), SystemExit(3), KeyboardInterrupt()])
def test_a_failure_is_shown_and_the_next_training_works(error: BaseException) -> None:
    failures: list[BaseException] = [error]

    def train(lr: float, report: Any) -> Run:
        if failures:
            raise failures.pop()
        return make_run(lr)

    widget = live(train)
    assert widget.train_at(0.3)
    assert widget.wait(10)
    assert widget.training["state"] == "failed"
    assert type(error).__name__ in widget.training["message"]
    assert widget.last_error is error
    assert len(widget.runs) == 2
    assert widget.train_at(0.3)
    assert widget.wait(10)
    assert widget.last_error is None
    assert len(widget.runs) == 3


def test_a_result_that_is_no_run_is_a_failure() -> None:
    widget = live(lambda lr, report: None)  # type: ignore[arg-type, return-value]
    assert widget.train_at(0.3)
    assert widget.wait(10)
    assert widget.training["state"] == "failed"
    assert len(widget.runs) == 2


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), "0.1", None, True, 0.01, 5])
def test_bad_step_sizes_get_a_message(bad: object) -> None:
    widget = live(lambda lr, report: make_run(lr))
    assert not widget.train_at(bad)
    assert widget.training["state"] == "failed"
    assert "step size" in widget.training["message"]
    assert not widget.is_training


def test_without_a_train_callable_nothing_can_be_trained() -> None:
    widget = explorer(0.1, 1.0)
    assert not widget.trainable
    assert not widget.train_at(0.3)
    assert "nothing to train" in widget.training["message"]
