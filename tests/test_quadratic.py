"""The quadratic: its settings in Python, and its mathematics in JavaScript against eoslib's."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eoslib import GradientDescent, Nesterov, Polyak
from eoslib.palette import STOPS

pytest.importorskip("anywidget")

import traitlets

from eoslib.widgets.quadratic import CURVATURE_RANGES, LR_RANGE, QuadraticExplorer
from tests.node import find_node

RULES = [
    {"momentum": momentum, "beta": beta, "lr": lr}
    for momentum, beta in (
        ("none", 0.9),
        ("polyak", 0.0),
        ("polyak", 0.5),
        ("polyak", 0.9),
        ("nesterov", 0.5),
        ("nesterov", 0.9),
    )
    for lr in (0.013, 0.1, 0.19, 0.2, 0.31, 1.7)
]
CURVATURES = [20.0, 10.0, 3.3, 1.0, 0.25, 0.0, -0.4, -2.0]


def step_matrix(rule: Any, curvature: float) -> np.ndarray:
    """The matrix by which one step multiplies (x, velocity), got by stepping from unit vectors."""
    columns = []
    for x, v in ((1.0, 0.0), (0.0, 1.0)):
        theta, state = torch.tensor([x]).double(), torch.tensor([v]).double()
        gradient_descent = rule.init(theta) is None
        theta, state = rule.step(theta, curvature * theta, None if gradient_descent else state)
        columns.append([float(theta), 0.0 if gradient_descent else float(state)])
    return np.array(columns).T


# -- settings --------------------------------------------------------------------------------


def test_settings_travel_and_come_back() -> None:
    widget = QuadraticExplorer((12, -1), lr=0.3, momentum="polyak", beta=0.5, start=(1, -2))
    state = widget.get_state()
    assert state["curvatures"] == [12, -1]
    assert state["start"] == [1, -2]
    assert {theme: colors["stops"] for theme, colors in state["colors"].items()} == {
        theme: list(stops) for theme, stops in STOPS.items()
    }
    widget.set_state({"lr": 0.05, "momentum": "nesterov", "curvatures": [5, 2.5]})  # from the page
    assert widget.rule == Nesterov(0.05, 0.5)
    assert widget.iterates()[1].tolist() == pytest.approx(
        [1 - 0.05 * 1.5 * 5, -2 + 0.1 * 1.5 * 2.5]
    )


@pytest.mark.parametrize(
    ("momentum", "rule"),
    [
        ("none", GradientDescent(0.1)),
        ("polyak", Polyak(0.1, 0.9)),
        ("nesterov", Nesterov(0.1, 0.9)),
    ],
)
def test_the_rule_is_the_librarys(momentum: Any, rule: Any) -> None:
    assert QuadraticExplorer(lr=0.1, momentum=momentum).rule == rule


def test_iterates_are_the_closed_form() -> None:
    widget = QuadraticExplorer((10, 1), lr=0.15, start=(1.2, 1.8), num_steps=30)
    steps = np.arange(31)[:, None]
    expected = np.array([1.2, 1.8]) * (1 - 0.15 * np.array([10, 1])) ** steps
    np.testing.assert_allclose(widget.iterates(), expected, rtol=1e-12)


def test_every_threshold_is_on_the_slider() -> None:
    sharpest, least = max(CURVATURE_RANGES[0]), min(CURVATURE_RANGES[0])
    for rule in (GradientDescent(1), Polyak(1, 0.99), Nesterov(1, 0.99)):
        assert LR_RANGE[0] < rule.threshold / sharpest
        assert rule.threshold / least <= LR_RANGE[1]


def test_repr_is_stable_and_says_what_is_shown() -> None:
    assert repr(QuadraticExplorer()) == "QuadraticExplorer(λ₁ 10, λ₂ 1, η 0.05)"
    widget = QuadraticExplorer((4, -0.5), lr=0.2, momentum="polyak")
    assert repr(widget) == "QuadraticExplorer(λ₁ 4, λ₂ -0.5, η 0.2, polyak β 0.9)"


BAD = [
    ({"lr": 0.001}, r"step size must lie in \[0.01, 2\], got 0.001"),
    ({"lr": math.nan}, "step size must lie in"),
    ({"curvatures": (1.0, 0.5)}, r"λ₁ must lie in \[2, 20\], got 1"),
    ({"curvatures": (10.0, -3.0)}, r"λ₂ must lie in \[-2, 10\], got -3"),
    ({"curvatures": (3.0, 4.0)}, "λ₁ is the larger curvature, got λ₁ = 3 < λ₂ = 4"),
    ({"curvatures": (3.0,)}, "curvatures must be two numbers"),
    ({"momentum": "adam"}, "momentum must be one of .* got 'adam'"),
    ({"beta": 1.0}, r"momentum β must lie in \[0, 0.99\], got 1.0"),
    ({"start": (0.0, 2.5)}, r"the start must lie in \[-2, 2\], got 2.5"),
    ({"start": (0.0, math.inf)}, "the start must lie in"),
    ({"start": (0.0, 0.0, 0.0)}, "start must be two numbers"),
    ({"num_steps": 0}, r"num_steps must lie in \[1, 200\], got 0"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuadraticExplorer(**settings)
    widget = QuadraticExplorer()
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=message):
        setattr(widget, name, list(value) if isinstance(value, tuple) else value)
    assert widget.get_state() == {
        **QuadraticExplorer().get_state(),
        "layout": widget.get_state("layout")["layout"],
    }


def test_what_nobody_changes_cannot_be_changed() -> None:
    with pytest.raises(traitlets.TraitError, match="read-only"):
        QuadraticExplorer().extent = 5.0


def test_the_program_is_small() -> None:
    own = Path(__file__).parents[1] / "eoslib" / "widgets" / "quadratic.js"
    assert own.stat().st_size <= 15 * 1024


# -- the page's mathematics ------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_node(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that evaluates an expression of `widget`, the program the page runs, in Node."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "widget.mjs").write_text(QuadraticExplorer._esm, encoding="utf-8")

    def evaluate(expression: str, *arguments: Any) -> Any:
        script = (
            "import * as widget from './widget.mjs';"
            f"console.log(JSON.stringify(({expression})(...{json.dumps(arguments)})));"
        )
        command = [find_node(), "--input-type=module", "--eval", script]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return evaluate


def python_rule(rule: dict[str, Any]) -> Any:
    return QuadraticExplorer(**rule).rule


def test_iterates_of_the_page_are_those_of_the_library(in_node: Any) -> None:
    """Same update rules, same numbers, as far as rounding allows: also where the path explodes."""
    widgets = [
        QuadraticExplorer((sharp, flat), start=start, **rule)
        for rule in RULES
        for (sharp, flat), start in (
            ((10.0, 1.0), (1.2, 1.8)),
            ((20.0, 0.0), (-0.4, 2.0)),
            ((3.3, -2.0), (0.0, -1.0)),
        )
    ]
    asked = [(rule_of(w), w.curvatures, w.start, w.num_steps) for w in widgets]
    computed = in_node(
        "(asked) => asked.map(([rule, curvatures, start, steps]) =>"
        " curvatures.map((a, i) => widget.iterate(rule, a, start[i], steps)))",
        asked,
    )
    for widget, path in zip(widgets, computed, strict=True):
        ours = widget.iterates()
        scale = np.maximum.accumulate(np.abs(ours))  # a zero crossing loses relative accuracy
        error = np.abs(np.array(path).T - ours)
        assert np.all(error <= 1e-12 * np.maximum(scale, 1e-12)), (rule_of(widget), error.max())


def rule_of(widget: QuadraticExplorer) -> dict[str, Any]:
    return {"momentum": widget.momentum, "beta": widget.beta, "lr": widget.lr}


def test_threshold_of_the_page_is_that_of_the_library(in_node: Any) -> None:
    limits = in_node("(rules) => rules.map(widget.limit)", RULES)
    expected = [python_rule(rule).threshold * rule["lr"] for rule in RULES]
    assert limits == pytest.approx(expected, rel=1e-14)


def test_factors_and_words_are_those_of_the_step_matrix(in_node: Any) -> None:
    """Against the eigenvalues of the library's own step: the dominant one, and what it means."""
    cases = [(rule, a) for rule in RULES for a in CURVATURES]
    modes = in_node("(cases) => cases.map((c) => widget.mode(...c))", cases)
    seen = set()
    for (rule, a), mode in zip(cases, modes, strict=True):
        roots = np.linalg.eigvals(step_matrix(python_rule(rule), a))
        dominant = roots[np.argmax(np.abs(roots))]
        # double roots, as at z = (1 ± √β)², split by the square root of the rounding error
        assert abs(mode["factor"]) == pytest.approx(abs(dominant), rel=1e-6, abs=1e-7), (rule, a)
        radius = abs(dominant)
        if a == 0:
            expected = "at rest"
        elif abs(radius - 1) < 1e-9:
            expected = "at the threshold"
        elif radius > 1:
            expected = "diverges"
        elif abs(dominant.imag) > 1e-6:
            expected = "oscillates"
        else:
            assert mode["factor"] == pytest.approx(dominant.real, rel=1e-6, abs=1e-7), (rule, a)
            expected = "zigzag" if dominant.real < -1e-7 else "monotone"
        assert mode["word"] == expected, (rule, a, roots)
        seen.add(mode["word"])
    assert seen == {
        "at rest", "at the threshold", "diverges", "oscillates", "zigzag", "monotone"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("lr", "curvatures", "start", "word"),
    [
        (0.05, [10, 1], [1, 1], "monotone"),
        (0.15, [10, 1], [1, 1], "zigzag"),
        (0.2, [10, 1], [1, 1], "at the threshold"),
        (0.21, [10, 1], [1, 1], "diverges"),
        (0.21, [10, 1], [0, 1], "monotone"),  # nothing moves along the sharp direction
        (0.05, [10, -1], [1, 1], "diverges"),  # negative curvature: any step size
        (0.01, [10, -0.1], [1, 1], "diverges"),
        (0.05, [10, -1], [1, 0], "monotone"),
        (0.05, [10, 0], [0, 1], "at rest"),
        (0.05, [10, 1], [0, 0], "at rest"),
    ],
)
def test_verdict_on_both_directions(
    in_node: Any, lr: float, curvatures: list[float], start: list[float], word: str
) -> None:
    rule = {"momentum": "none", "beta": 0.9, "lr": lr}
    assert in_node("widget.verdict", rule, curvatures, start) == word


# -- the chapter -----------------------------------------------------------------------------

CHAPTER = Path(__file__).parents[1] / "book" / "quadratics.ipynb"

#: Update rules that are off by two per cent, and the check cells that must notice.
SABOTAGE = """
GradientDescent.step = lambda rule, x, g, state: (x - 1.02 * rule.lr * g, None)
Polyak.threshold = property(lambda rule: 1.02 * (2 + 2 * rule.beta) / rule.lr)
"""
MUST_FAIL = {
    "check-one-dimension",
    "check-many-dimensions",
    "check-best",
    "check-thresholds",
    "check-either-side",
    "check-catapult",
    "solution-three",
    "solution-two-steps",
    "solution-saddle",
}


@pytest.mark.slow
def test_checks_of_the_chapter_fail_with_wrong_update_rules() -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(CHAPTER, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (setup,) = [cell for cell in notebook.cells if cell.id == "setup"]
    setup.source += SABOTAGE
    path = {"metadata": {"path": str(CHAPTER.parent)}}
    NotebookClient(notebook, timeout=300, allow_errors=True, resources=path).execute()
    failed = {
        cell.id: output.ename
        for cell in notebook.cells
        for output in cell.outputs
        if output.output_type == "error"
    }
    assert {failed.get(name) for name in MUST_FAIL} == {"ClaimError"}, failed
