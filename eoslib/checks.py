"""The vocabulary of check cells: state a claim, compare it with what was measured, fail loudly.

A check prints one line and raises when the claim fails, so that the plain execution of a chapter
fails too, not only the comparison with stored outputs.

That comparison (nbval) wants the same line on every machine. Before the edge a run is reproducible
to many digits; at the edge two runs that differ by rounding decorrelate, and only bands survive. So
a check says which of the two its number is: ``=`` before an exact one, which is compared digit by
digit, ``≈`` before one that only has to lie in its band (``scripts/nbval.cfg`` masks it).
"""

from __future__ import annotations

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
) -> None:
    """Print the verdict on ``low ≤ value ≤ high``, and raise when it is not so.

    Args:
        claim: the claim's number, for instance ``"C6"``.
        quantity: what was measured, in words.
        value: the measured number; ``None`` when there was nothing to measure, which fails.
        low: smallest value at which the claim holds.
        high: largest value at which the claim holds.
        digits: decimals printed.
        exact: whether the digits printed are the same on every machine.

    Raises:
        ClaimError: the value is missing, is not a number, or lies outside the band.
        ValueError: no bound was given. Such a check could not fail.
    """
    if math.isinf(low) and math.isinf(high):
        raise ValueError(f"check {claim!r} has neither a lower nor an upper bound: it cannot fail")
    band = (
        f"≥ {low:g}" if math.isinf(high) else f"≤ {high:g}" if math.isinf(low)
        else f"in [{low:g}, {high:g}]"
    )  # fmt: skip
    if value is None:
        raise ClaimError(f"{claim}: {quantity}: nothing was measured, expected {band}")
    if not (low <= value <= high and math.isfinite(value)):  # NaN and infinity never hold
        raise ClaimError(f"{claim}: {quantity} = {value:.6g}, expected {band}")
    shown = 0.0 if round(value, digits) == 0 else value  # no "-0.00"
    print(f"{claim} holds: {quantity} {'=' if exact else '≈'} {shown:.{digits}f}, expected {band}")
