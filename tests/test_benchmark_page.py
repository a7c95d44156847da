"""The page of the book on what measuring costs: it shows what the records say, and finds flaws."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from benchmarks import comparison, page
from benchmarks.problems import PROBLEMS
from benchmarks.results import Bar, ProblemReport, Report, Row

matplotlib.use("agg")

ROWS = [
    Row("eoslib", "SharpnessTracker", True, True, 0.01, 3.0, 1e-4, 50, 3),
    Row("eoslib", "first", False, False, 0.03, 9.0, 1e-5, 50, 3),
    Row("procedure of 2021", "eigsh(k=2)", False, True, 0.25, 44.0, 1e-7, 50, 3),
    Row("quick", "defaults", False, True, 0.02, 5.0, 3e-2, 50, 3),
    Row("quick", "tol=<1e-6>", False, False, 0.05, 30.0, 9e-5, 50, 3),
    Row("rough", "defaults", False, True, 0.02, 8.0, 2e-2, 50, 3),
    Row("rough", "v0=last", True, False, 0.02, 8.0, 5e-5, 50, 3),
    Row("broken", "defaults", False, True, failure="ValueError: no"),
]
MACHINE: dict[str, str | int] = {**dict.fromkeys(page.PROVENANCE, "x"), "threads": 2, "cpu": "C&A"}


def network(name: str = "digits-fc-tanh", rows: list[Row] = ROWS) -> ProblemReport:
    facts = {"parameters": 3, "mean_sharpness_over_threshold": 1.02}
    costs = [Bar("a step / a plain loop's", 1.2, 1.1), Bar("told", 5.0)]
    return ProblemReport(name, "a network", facts, rows, comparison.bars(rows) + costs, "T_3")


def report() -> Report:
    together = ProblemReport(
        page.TOGETHER, "eight runs", {"runs": 8}, bars=[Bar("at once", 5.0, 4, at_most=False)],
        data="T_4",
    )  # fmt: skip
    absent = {name: "not here" for name in PROBLEMS if name != "digits-fc-tanh"}
    return Report(MACHINE, absent, [network(), together])


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., page.Record]:
    def stored(change: Callable[[dict[str, Any]], object] = lambda plain: None) -> page.Record:
        path = tmp_path / "machine.json"
        report().save(path)
        plain = json.loads(path.read_text(encoding="utf-8"))
        change(plain)
        path.write_text(json.dumps(plain), encoding="utf-8")
        (record,) = page.load_records(tmp_path)
        return record

    return stored


def test_a_sound_record_has_no_flaw(stored):
    assert list(page.flaws(stored())) == []


def test_a_folder_without_a_record_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"benchmarks\.run makes one"):
        page.load_records(tmp_path)


FLAWS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no commit": (lambda plain: plain["machine"].pop("commit"), "commit is missing"),
    "no problem": (lambda plain: plain["problems"].pop(), "neither measured nor said"),
    "no reason": (lambda plain: plain["absent"].pop("digits-cnn-bn"), "digits-cnn-bn is neither"),
    "no source": (
        lambda plain: plain["problems"][0].update(data=""),
        "where the data come from is missing",
    ),
    "no tools": (lambda plain: plain["problems"][0].update(rows=[]), "no tool was measured"),
    "edited verdict": (
        lambda plain: plain["problems"][0]["bars"][-2].update(passed=True),
        "not that of the numbers",
    ),
    "edited time": (
        lambda plain: plain["problems"][0]["rows"][0].update(seconds=0.001),
        "do not follow from the rows",
    ),
    "row cut short": (
        lambda plain: plain["problems"][0]["rows"][3].update(seconds=None),
        "the row of quick, defaults, is incomplete",
    ),
}


@pytest.mark.parametrize("name", FLAWS)
def test_a_flaw_is_found(stored, name):
    change, message = FLAWS[name]
    assert any(message in flaw for flaw in page.flaws(stored(change)))


def test_bars_are_shown_with_their_verdicts(stored):
    table = page.bars_table(stored())
    assert "1.2 missed" in table and "3 met" in table and "5 told only" in table
    assert "≤ 0.001" in table and "≥ 20" in table
    assert "C&amp;A, 2 threads" in table
    verdicts = page.verdicts_list([stored()])
    limits = [bar for problem in report().problems for bar in problem.bars if bar.limit]
    judged = [bar for bar in limits if bar.passed is not None]
    met = sum(bool(bar.passed) for bar in judged)
    assert f"{met} of {len(judged)} bars are met, {len(judged) - met} missed" in verdicts
    assert "a step / a plain loop&#x27;s, 1.2 where the limit is ≤ 1.1" in verdicts


def test_what_is_missing_is_said(stored):
    told = page.absences_list([stored()])
    assert "cifar10-fc-tanh was not measured (not here)" in told
    complete = dataclasses.replace(stored(), report=Report(MACHINE, {}, report().problems))
    assert "Nothing is missing" in page.absences_list([complete])


def test_tables_hold_every_setting_and_escape_it(stored):
    (one,) = page.comparisons([stored()])
    table = page.rows_table(one)
    assert "tol=&lt;1e-6&gt;" in table and "failed: ValueError: no" in table
    assert table.count("<tr>") == len(ROWS) + 1
    assert "T_4" in page.problems_table(stored()) and "runs 8" in page.problems_table(stored())
    assert "machine.json" in page.machines_table([stored()])


def test_the_bars_of_the_figure_are_bars_of_the_comparison(stored):
    (one,) = page.comparisons([stored()])
    assert (one.limit(page.ERROR_BAR), one.limit(page.PRODUCTS_BAR)) == (1e-3, 4)
    assert one.mean_ratio == 1.02


def words(figure: Any) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_times_are_those_of_the_fastest_setting_as_accurate_as_the_tracker(stored):
    figure = page.draw_times(page.comparisons([stored()]))
    told = words(figure)
    assert {"1", "3", "25", "5", "2"} <= set(
        told
    )  # tracked, cold, 2021, quick, rough from the last
    assert any(text.startswith("2, errs by 2e-02") for text in told)  # rough without help
    assert "not measured" in told  # broken
    assert any("digits-fc-tanh" in text for text in told)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[0] == "eoslib, tracked" and "rough, from the last" in names


def test_a_figure_has_a_panel_for_each_network(stored):
    record = stored()
    shown = [page.Comparison(record, network(name)) for name in ("one", "two")]
    for figure in (page.draw_times(shown), page.draw_errors(shown)):
        assert len(figure.axes) == 2
    without = page.Comparison(record, network("two", ROWS[:3]))
    assert "not measured" in words(page.draw_times([shown[0], without]))


def test_errors_below_rounding_lie_on_the_border(stored):
    figure = page.draw_errors(page.comparisons([stored()]))
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["procedure of 2021"].get_ydata() == [comparison.ROUNDING]
    assert list(lines["quick"].get_xdata()) == [5.0, 30.0]
    assert "broken" not in lines


@pytest.mark.parametrize(("load", "busy"), [("0.10", False), ("7.50", True), ("unknown", False)])
def test_a_record_from_a_busy_machine_is_told(stored, load, busy):
    record = stored(lambda plain: plain["machine"].update(load_before=load))
    assert (load in page.busy_machines([record])) is busy
