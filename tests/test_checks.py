"""Check cells fail when they should; the progress bar stays quiet where there is no notebook."""

from __future__ import annotations

import math

import pytest

from eoslib.checks import ClaimError, check
from eoslib.progress import ProgressBar, progress


def test_a_claim_that_holds_prints_one_steady_line(capsys):
    check("C6", "median ratio", 1.0149, low=0.97, high=1.15)
    check("C1", "growth", 2.0, low=1.5, digits=0, exact=True)
    check("C7", "rises before", -0.0001, high=0.01)
    assert capsys.readouterr().out.splitlines() == [
        "C6 holds: median ratio ≈ 1.01, expected in [0.97, 1.15]",
        "C1 holds: growth = 2, expected ≥ 1.5",
        "C7 holds: rises before ≈ 0.00, expected ≤ 0.01",
    ]


@pytest.mark.parametrize("value", [0.9, 1.2, math.nan, math.inf, None])
def test_a_claim_that_fails_raises(value, capsys):
    with pytest.raises(ClaimError, match="C6: median ratio"):
        check("C6", "median ratio", value, low=0.97, high=1.15)
    if value is not None and value > 1.15:
        value = math.inf  # an infinite value must not hold a one-sided claim either
        with pytest.raises(ClaimError, match="C6: median ratio"):
            check("C6", "median ratio", value, low=0.97)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("value", "bounds", "line"),
    [
        (0.9985, {"high": 0.999}, "holds: ratio ≈ 0.999, expected ≤ 0.999"),
        (0.0004, {"low": 0.0003}, "holds: ratio ≈ 0.0004, expected ≥ 0.0003"),
        (1 - 5e-7, {"low": 1 - 1e-7}, "does not hold: ratio ≈ 0.9999995, expected ≥ 0.9999999"),
        (0.97, {"low": 0.971}, "does not hold: ratio ≈ 0.97, expected ≥ 0.971"),
        (-1e-4, {"low": 0.0}, "does not hold: ratio ≈ -0.0001, expected ≥ 0"),
        (1.0, {"low": 1 - 1e-9, "high": 1 + 1e-9}, "holds: ratio ≈ 1.00, expected in [1, 1]"),
    ],
)
def test_rounding_takes_no_value_across_a_bound(value, bounds, line, capsys):
    check("C6", "ratio", value, **bounds, reproduces="not" not in line)
    assert capsys.readouterr().out == f"C6 {line}\n"


def test_rounding_takes_no_value_across_a_bound_where_a_claim_fails():
    with pytest.raises(ClaimError, match=r"ratio = 1\.0000001, expected ≤ 1$"):
        check("C6", "ratio", 1.0000001, high=1)
    with pytest.raises(ClaimError, match=r"ratio = inf, expected ≥ 1$"):
        check("C6", "ratio", math.inf, low=1)


def test_a_check_that_cannot_fail_is_refused():
    with pytest.raises(ValueError, match="cannot fail"):
        check("C6", "median ratio", 1.0)
    for low, high in ((math.nan, 1), (0, math.nan), (2, 1)):
        with pytest.raises(ValueError, match=f"no values between {low} and {high}"):
            check("C6", "median ratio", 1.5, low=low, high=high, reproduces=False)


def test_progress_outside_a_notebook(capsys):
    assert list(progress("abc", "letters")) == ["a", "b", "c"]
    with ProgressBar(3, "work") as bar:
        bar.update(2)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError, match="total above 0"):
        list(progress([], "nothing"))


def test_a_claim_that_does_not_reproduce_is_stated_and_guarded(capsys):
    check("C16", "growth", 0.5, low=1, reproduces=False)
    assert capsys.readouterr().out == "C16 does not hold: growth ≈ 0.50, expected ≥ 1\n"
    for value in (1.5, float("nan"), float("inf"), None):
        with pytest.raises(ClaimError):
            check("C16", "growth", value, low=1, high=2, reproduces=False)
