"""The tool that asks whether checks notice errors: it reads any quantity, and tells what it saw."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from eoslib import checks
from scripts import mutate_chapters

#: One line, at least, for each error that can be planted.
EVERYTHING = """
from eoslib import GradientDescent, Objective, Polyak, build, chebyshev, digits, every, train
from eoslib.checks import check
from eoslib.flows import gradient_flow

net = build("fc-tanh", 1, 1, widths=(4,), seed=1)
curve = Objective.from_dataset(net, chebyshev(degree=2, num_points=5), "square", dtype="float64")
images = Objective.from_dataset(build("fc-tanh", 64, 10, widths=(4,)), digits(20), "cross_entropy")
for rule in (GradientDescent(0.1), Polyak(0.1, 0.5)):
    run = train(curve, rule, num_steps=5, sharpness_schedule=every(1))
    for name in ("loss", "sharpness"):
        check("Run", f"{rule.name}: {name}", run[name].values[-1], high=1e9, digits=6, exact=True)
    check("Run", f"{rule.name}: threshold", rule.threshold, high=1e9, exact=True)
check("Loss", "images", images.value(images.initial_point), high=9, digits=4, exact=True)
flow = gradient_flow(curve, duration=2.0)
check("Flow", "loss", flow["loss"].values[-1], high=1e9, digits=6, exact=True)
"""

#: One check that a wrong threshold moves, one that it does not, and one that nothing moves.
CHAPTER = """
from eoslib import GradientDescent, Polyak
from eoslib.checks import check
print("something else")
check("C24", "|threshold| of Polyak", Polyak(0.1, 0.5).threshold, high=31)
check("C24", "of both, the ratio", Polyak(0.1, 0.5).threshold / GradientDescent(0.1).lr, low=290)
check("Toy", "one half", 0.5, high=1, exact=True)
"""


@pytest.fixture
def reporting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "check", checks.check)  # undone after the test
    exec(mutate_chapters.PRELUDE, {})


@pytest.mark.usefixtures("reporting")
def test_a_line_is_read_back_whatever_its_quantity_holds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    quantities = ["growth of log |swing| per step", 'a "quoted" one: with a colon', "η = 0.1"]
    print("@ a reader's own line")
    for quantity in quantities:
        checks.check("C4", quantity, 0.3, low=0)
    assert list(mutate_chapters.reports(capsys.readouterr().out)) == [
        f"C4: {q}" for q in quantities
    ]


@pytest.mark.usefixtures("reporting")
@pytest.mark.parametrize(
    ("value", "options", "verdict"),
    [
        (0.3, {"low": 0}, "in its band"),
        (0.3, {"low": 0, "exact": True}, "0.30"),
        (-0.3, {"low": 0}, "outside"),
        (0.3, {"low": 0, "reproduces": False}, "outside"),
        (-0.3, {"low": 0, "reproduces": False}, "in its band"),
        (None, {"low": 0, "reproduces": False}, "outside"),
        (float("nan"), {"low": 0, "reproduces": False}, "outside"),
        (float("inf"), {"low": 0}, "outside"),
    ],
)
def test_the_verdict_is_that_of_a_check(
    value: float | None,
    options: dict[str, bool | float],
    verdict: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checks.check("C4", "swing", value, **options)  # type: ignore[arg-type]
    assert mutate_chapters.reports(capsys.readouterr().out)["C4: swing"].verdict == verdict


def test_a_line_whose_name_holds_a_count_is_found_again_and_has_noticed() -> None:
    inside = mutate_chapters.Said("in its band", 1.0)
    slope, plateau = "C8: {} step sizes: slope", "C6: η = 0.{}: plateau"
    right = dict.fromkeys([slope.format(7), plateau.format(1), plateau.format(2)], inside)
    wrong = dict.fromkeys([slope.format(12), plateau.format(2)], inside)
    # One of the two plateaus is missing: the other one is no substitute for it.
    assert mutate_chapters.aligned(right, wrong) == {
        slope.format(7): mutate_chapters.Said("another name", 1.0),
        plateau.format(2): inside,
    }


def test_a_line_that_no_error_came_to_is_not_one_that_none_moved() -> None:
    assert mutate_chapters.how_blind(1.5, []) == "1.5; no run with an error came to it"


@pytest.mark.slow
def test_what_noticed_nothing_is_listed_with_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "every threshold a quarter too high"
    monkeypatch.setattr(mutate_chapters, "MUTATIONS", {name: mutate_chapters.MUTATIONS[name]})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CHAPTER)])
    nbformat.write(notebook, tmp_path / "chapter.ipynb")
    mutate_chapters.main([str(tmp_path / "chapter.ipynb")])
    assert capsys.readouterr().out.splitlines() == [
        "chapter.ipynb: 1 of 3 check lines noticed an error",
        f"    {name}: 1 noticed",
        "    noticed nothing: C24: of both, the ratio: 300; 375 to 375 with 1 error",
        "    noticed nothing: Toy: one half: 0.5, and the same with 1 error",
    ]


@pytest.mark.slow
def test_every_error_can_be_planted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(EVERYTHING)])
    nbformat.write(notebook, tmp_path / "chapter.ipynb")
    mutate_chapters.main([str(tmp_path / "chapter.ipynb")])
    summary, *said = capsys.readouterr().out.splitlines()
    assert summary == "chapter.ipynb: 8 of 8 check lines noticed an error"
    assert [re.sub(r"[1-8] noticed", "some", line) for line in said] == [
        f"    {name}: some" for name in mutate_chapters.MUTATIONS
    ]


def test_an_error_that_a_chapter_could_not_show_takes_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = []

    def verdicts(path: Path, mutation: str) -> dict[str, mutate_chapters.Said]:
        planted.append(mutation)
        return {}

    monkeypatch.setattr(mutate_chapters, "verdicts", verdicts)
    # What the prose mentions does not count.
    prose, code = nbformat.v4.new_markdown_cell("Polyak"), nbformat.v4.new_code_cell("Nesterov")
    for cells in ([prose], [prose, code]):
        notebook = nbformat.v4.new_notebook(cells=cells)
        nbformat.write(notebook, tmp_path / "chapter.ipynb")
        mutate_chapters.main([str(tmp_path / "chapter.ipynb")])
    assert planted.count(mutate_chapters.MUTATIONS["half the momentum"]) == 1
    assert planted.count(mutate_chapters.MUTATIONS["steps a quarter too long"]) == 2
    assert mutate_chapters.CONCERNS.keys() <= mutate_chapters.MUTATIONS.keys()
