"""The vocabulary of check cells: state a claim, compare it with what was measured, fail loudly.

A check prints one line and raises when the claim fails, so that the plain execution of a chapter
fails too, not only the comparison with stored outputs.

That comparison (nbval) wants the same line on every machine. Before the edge a run is reproducible
to many digits; at the edge two runs that differ by rounding decorrelate, and only bands survive. So
a check says which of the two its number is: ``=`` before an exact one, which is compared digit by
digit, ``≈`` before one that only has to lie in its band (``scripts/nbval.cfg`` masks it).

A claim of the paper that does *not* reproduce in some setting is stated too, with
``reproduces=False``: the line says so, and the check fails if the claim should hold after all. The
book's ledger of claims is made of these lines (``book/_ext/claims_ledger.py``).
"""

from __future__ import annotations

import itertools
import math

__all__ = ["ClaimError", "check"]


class ClaimError(AssertionError):
    """A claim does not hold for the runs at hand."""


def check(
    claim: str,
    quantity: str,
    value: float | None,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    digits: int = 2,
    exact: bool = False,
    reproduces: bool = True,
) -> None:
    """Print the verdict on ``low ≤ value ≤ high``, and raise when it is not the one stated.

    Args:
        claim: the claim's number, for instance ``"C6"``.
        quantity: what was measured, in words.
        value: the measured number; ``None`` when there was nothing to measure, which fails.
        low: smallest value at which the claim holds.
        high: largest value at which the claim holds.
        digits: decimals printed; more, of the value and of the band, where a value beside a bound
            would be rounded to its other side.
        exact: whether the digits printed are the same on every machine.
        reproduces: ``False`` states that the claim does not hold here: the value is a number
            outside the band.

    Raises:
        ClaimError: the value is missing, is not a number, or lies outside the band; with
            ``reproduces=False``, inside it.
        ValueError: no bound was given, or no value lies between them. Such a check, or one with
            ``reproduces=False``, could not fail.
    """
    if math.isinf(low) and math.isinf(high):
        raise ValueError(f"check {claim!r} has neither a lower nor an upper bound: it cannot fail")
    if not low <= high:  # or one is NaN
        raise ValueError(f"check {claim!r} has no values between {low:g} and {high:g}; swap them?")
    if value is None:
        _, band = _told(math.nan, low, high, "g", 6)
        raise ClaimError(f"{claim}: {quantity}: nothing was measured, expected {band}")
    if _holds(value, low, high) != reproduces or not math.isfinite(value):
        stated = "" if reproduces else ", and the page states that this is not so"
        told, band = _told(value, low, high, "g", 6)
        raise ClaimError(f"{claim}: {quantity} = {told}, expected {band}{stated}")
    verdict = "holds" if reproduces else "does not hold"
    sign = "=" if exact else "≈"
    told, band = _told(value, low, high, "f", digits)
    print(f"{claim} {verdict}: {quantity} {sign} {told}, expected {band}")


def _told(value: float, low: float, high: float, kind: str, digits: int) -> tuple[str, str]:
    """Value and band in words, with as few digits more as show on which side of a bound it is."""
    inside = _holds(value, low, high)
    for more in itertools.count():
        told = f"{value:.{digits + more}{kind}}"
        if float(told) == 0:
            told = told.removeprefix("-")  # no "-0.00"
        bounds = f"{low:.{6 + more}g}", f"{high:.{6 + more}g}"
        if _holds(float(told), *map(float, bounds)) == inside:
            break
    band = (
        f"≥ {bounds[0]}" if math.isinf(high) else f"≤ {bounds[1]}" if math.isinf(low)
        else f"in [{bounds[0]}, {bounds[1]}]"
    )  # fmt: skip
    return told, band


def _holds(value: float, low: float, high: float) -> bool:
    return low <= value <= high and math.isfinite(value)  # NaN and infinity never hold
