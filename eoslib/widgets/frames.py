"""What a figure with a slider shows: panels, and for each value of the slider lines and marks.

`eoslib.widgets.figure_slider` draws them; its text has an example.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eoslib.widgets._shared import COLORS, FLOAT32_MAX

Value = float | int | str
Limits = tuple[float | None, float | None]

STYLES = ("solid", "dashed", "dotted", "points", "stems", "bars")
_COLOR_NAMES = tuple(name for name in COLORS["light"] if name != "stops")
_TINY = 1e-300  # where a logarithmic axis ends in any case
_COLUMNS = 500  # of the envelope: about as many as a figure in the text column has pixels


@dataclass(frozen=True)
class Slider:
    """What the slider chooses.

    Attributes:
        label: the quantity, "step size".
        symbol: its symbol, "η", if it has one.
        format: how its numbers are written.
        step_sizes: its values are step sizes; the slider then wears their colours.
    """

    label: str
    symbol: str = ""
    format: str = "{:.4g}"
    step_sizes: bool = False

    def write(self, value: Value) -> str:
        """Return a value as the reader sees it."""
        return value if isinstance(value, str) else self.format.format(value)


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        x, y: what the axes show, with units and conventions. Panels that follow one another and
            have the same `x` share their x axis. A y axis without a name has no numbers: for
            marks on a line, such as a spectrum.
        xlog, ylog: logarithmic axes.
        xlim, ylim: the ends of the axes; None: those of the data of all frames.
    """

    x: str
    y: str
    xlog: bool = False
    ylog: bool = False
    xlim: Limits = (None, None)
    ylim: Limits = (None, None)

    def __post_init__(self) -> None:
        """Refuse limits that are none."""
        for name, (low, high), log in (
            ("xlim", self.xlim, self.xlog),
            ("ylim", self.ylim, self.ylog),
        ):
            for end in (low, high):
                if end is not None and not (math.isfinite(end) and (end > 0 or not log)):
                    kind = "positive, since the axis is logarithmic," if log else "finite"
                    raise ValueError(f"{name} must be {kind} or None, got {end!r}")
            if low is not None and high is not None and not low < high:
                raise ValueError(f"{name} must be (lower, upper), got {(low, high)!r}")


@dataclass(frozen=True, eq=False)
class Line:
    """Points (x, y), drawn as a line or otherwise.

    Attributes:
        x, y: numbers, `(n,)` each. NaN in either is a gap.
        label: names the line at its end, in the legend and in the table. Lines without a label
            are drawn only.
        panel: index of the panel.
        style: "solid", "dashed", "dotted", "points", "stems" or "bars".
        lr: the step size whose colour it wears.
        color: a name from the palette instead; by default "ink", in the background "muted".
        pale: a paler stroke, for what belongs to another line, such as λ₂ beside λ₁.
    """

    x: ArrayLike
    y: ArrayLike
    label: str = ""
    panel: int = 0
    style: str = "solid"
    lr: float | None = None
    color: str | None = None
    pale: bool = False

    def __post_init__(self) -> None:
        """Cast, and refuse what cannot be drawn."""
        who = f"line {self.label!r}" if self.label else "a line"
        for name in ("x", "y"):
            try:
                numbers = np.asarray(getattr(self, name), dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{who}: {name} must be numbers ({error})") from error
            object.__setattr__(self, name, numbers)
        if self.points[0].ndim != 1 or self.points[0].shape != self.points[1].shape:
            shapes = " and ".join(str(numbers.shape) for numbers in self.points)
            raise ValueError(f"{who}: x and y must have one and the same shape (n,), got {shapes}")
        if np.isnan(self.points[0] + self.points[1]).all():
            raise ValueError(f"{who} has no point with two numbers")
        if self.style not in STYLES:
            raise ValueError(f"{who}: style {self.style!r} is none of {', '.join(STYLES)}")
        _check_color(who, self.lr, self.color)

    @property
    def points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Both coordinates, `(n,)` each."""
        return self.x, self.y  # type: ignore[return-value]  # arrays since __post_init__

    @property
    def bar_width(self) -> float:
        """How wide its bars are, in units of x: 0.9 of the smallest distance, 0 without bars."""
        if self.style != "bars":
            return 0.0
        gaps = np.diff(np.unique(self.points[0][~np.isnan(self.points[0])]))
        return float(0.9 * gaps.min()) if gaps.size else 0.9


@dataclass(frozen=True)
class Mark:
    """A straight line across a panel, or a tinted band.

    Attributes:
        x, y: exactly one of them: a number for a vertical or horizontal line, (from, to) for a
            band, which may be open: `y=(2 / lr, math.inf)`.
        label: stands beside it; for a threshold "2/η = 40".
        panel: index of the panel.
        lr: the step size whose colour it wears.
        color: a name from the palette instead, by default "muted".
    """

    x: float | tuple[float, float] | None = None
    y: float | tuple[float, float] | None = None
    label: str = ""
    panel: int = 0
    lr: float | None = None
    color: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is no place."""
        who = f"mark {self.label!r}" if self.label else "a mark"
        if (self.x is None) == (self.y is None):
            raise ValueError(f"{who} needs x or y, and not both")
        ends = self.ends
        if len(ends) == 1 and not math.isfinite(ends[0]):
            raise ValueError(f"{who} must be at a finite number, got {ends[0]!r}")
        if len(ends) == 2 and not ends[0] < ends[1]:
            raise ValueError(f"{who} must go from a lower to an upper end, got {ends!r}")
        _check_color(who, self.lr, self.color)

    @property
    def ends(self) -> tuple[float, ...]:
        """Where it is: one number for a line, two for a band."""
        place = self.x if self.y is None else self.y
        return tuple(place) if isinstance(place, tuple) else (float(place),)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Frame:
    """What the figure shows at one value of the slider.

    Attributes:
        lines: at least one.
        marks: thresholds, bands and the like.
        text: one sentence: what is to be seen here. It stands under the figure and is spoken.
    """

    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    text: str = ""

    def __post_init__(self) -> None:
        """Refuse an empty frame."""
        if not self.lines:
            raise ValueError("a frame needs at least one line")


def envelope(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    limits: Sequence[float],
    *,
    log: bool = False,
    columns: int = _COLUMNS,
) -> NDArray[np.intp]:
    """Return the indices of the points that a plot of `columns` pixel columns needs.

    Of all points that follow one another in a column these are the first, lowest, highest and
    last: no spike is lost, and an oscillation keeps its height. Gaps stay gaps. Lines of at most
    `4 * columns` points are kept whole.

    Args:
        x: `(n,)`; NaN is a gap, here and in `y`.
        y: `(n,)`.
        limits: the ends of the x axis.
        log: whether that axis is logarithmic.
        columns: number of columns between the limits.
    """
    n = len(y)
    if n <= 4 * columns:
        return np.arange(n)
    low, high = limits
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.log(x / low) / np.log(high / low) if log else (x - low) / (high - low)
    known = ~np.isnan(fraction + y)
    column = np.full(n, -2)
    column[known] = np.floor(columns * np.clip(fraction[known], -1e-9, 1))
    run = np.cumsum(np.diff(column, prepend=column[0]) != 0)  # which series of neighbours
    starts = np.flatnonzero(np.diff(run, prepend=-1))
    ends = np.append(starts[1:], n) - 1
    filled = np.where(known, y, 0.0)
    kept = [starts, ends[known[ends]]]
    for extremum in (np.minimum, np.maximum):
        reached = np.flatnonzero(filled == extremum.reduceat(filled, starts)[run])
        kept.append(reached[np.unique(run[reached], return_index=True)[1]])
    return np.unique(np.concatenate(kept))


def axis_limits(
    numbers: Iterable[NDArray[np.float64]],
    given: Limits,
    *,
    log: bool,
    padding: float,
    what: str,
    marks: Iterable[float] = (),
) -> list[float]:
    """Return the ends of an axis: those given, else those of the numbers and of marks near them."""
    every = np.concatenate(list(numbers))
    known = np.clip(every[~np.isnan(every)], -FLOAT32_MAX, FLOAT32_MAX)
    known = known[known > 0] if log else known
    low, high = given
    if low is None or high is None:
        if not known.size:
            raise ValueError(f"{what} is logarithmic, but there is no positive number to show")
        scaled = np.log(known) if log else known
        first, last = float(scaled.min()), float(scaled.max())
        places = [math.log(mark) if log else mark for mark in marks if mark > 0 or not log]
        reach = (last - first) / 4
        near = [place for place in places if first - reach <= place <= last + reach]
        first, last = min(first, *near, last), max(last, *near, first)
        if last > first:
            margin = padding * (last - first)
        else:
            margin = math.log(2) if log else abs(first) / 2 or 0.5
        bottom, top = first - margin, last + margin
        if log:
            bottom, top = max(math.exp(bottom), _TINY), math.exp(top)
        elif first >= 0:
            bottom = max(bottom, 0.0)
        low, high = bottom if low is None else low, top if high is None else high
    if not low < high:
        raise ValueError(f"{what} would go from {low:g} to {high:g}; change the limit you gave")
    return [float(low), float(high)]


def _check_color(who: str, lr: float | None, color: str | None) -> None:
    if lr is not None and color is not None:
        raise ValueError(f"{who} has a colour and a step size: the step size is its colour")
    if lr is not None and not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"{who}: lr must be a positive step size, got {lr!r}")
    if color is not None and color not in _COLOR_NAMES:
        raise ValueError(f"{who}: color {color!r} is none of {', '.join(_COLOR_NAMES)}")
