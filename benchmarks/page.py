"""Records as tables and figures, for the page of the book on what measuring costs.

Everything shown is read from the records: no number, no limit of a bar and no name of a tool is
written here. A record without some problem or tool gives a page that says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.comparison import ROUNDING, bars
from benchmarks.problems import PROBLEMS
from benchmarks.results import Bar, ProblemReport, Report, Row
from benchmarks.together import TOGETHER
from eoslib.palette import ACCENT, INK, MUTED
from eoslib.plotting import book_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "RESULTS",
    "ERROR_BAR",
    "PRODUCTS_BAR",
    "Comparison",
    "Record",
    "absences_list",
    "bars_table",
    "busy_machines",
    "comparisons",
    "draw_errors",
    "draw_times",
    "flaws",
    "load_records",
    "machines_table",
    "problems_table",
    "rows_table",
    "verdicts_list",
]

RESULTS = Path(__file__).resolve().parent / "results"

#: What a record has to say of the machine and the code that it was made with.
PROVENANCE = (
    *("eoslib", "commit", "python", "torch", "numpy", "scipy"),
    *("platform", "device", "cpu", "threads", "date", "load_before"),
)

#: With no more running processes than this, on average, a machine counts as idle.
IDLE = 0.5

#: The names of the two bars that the figure of errors shows as lines.
ERROR_BAR = "tracked: largest relative error"
PRODUCTS_BAR = "tracked: products a measurement"

_VERDICTS = {True: "met", False: "missed", None: "told only"}
_MARKERS = "sD^v<>ph"


@dataclass(frozen=True)
class Record:
    """A file of results.

    Attributes:
        path: where it lies.
        report: what it says.
        stored_verdicts: for each problem, for each of its bars, the verdict as it was stored.
    """

    path: Path
    report: Report
    stored_verdicts: list[list[bool | None]]

    @property
    def machine(self) -> str:
        """The machine in a few words."""
        machine = self.report.machine
        if "gpu" in machine:
            return str(machine["gpu"])
        threads = machine["threads"]
        return f"{machine['cpu']}, {threads} thread{'' if threads == 1 else 's'}"


@dataclass(frozen=True)
class Comparison:
    """The tools on one problem of one record."""

    record: Record
    problem: ProblemReport

    @property
    def tracked(self) -> Row:
        """The row of eoslib's tracker."""
        return next(row for row in self.problem.rows if row.tool == "eoslib" and row.warm)

    @property
    def label(self) -> str:
        """The problem, and the machine on which it was measured."""
        return f"{self.problem.name} · {self.record.machine}"

    @property
    def mean_ratio(self) -> float:
        """Mean sharpness over threshold, along the stretch that was measured."""
        return float(self.problem.facts["mean_sharpness_over_threshold"])

    def limit(self, name: str) -> float | None:
        """The limit of the bar of this name, if there is such a bar."""
        return next((bar.limit for bar in self.problem.bars if bar.name == name), None)

    def as_accurate(self, row: Row) -> bool:
        """Whether a row errs by no more than the tracker, float32's rounding being allowed."""
        allowed = max(ROUNDING, self.tracked.error or 0.0)
        return row.error is not None and row.error <= allowed

    def ways(self) -> dict[str, list[Row]]:
        """The rows by the way of measuring, eoslib's first."""
        found: dict[str, list[Row]] = {}
        for row in self.problem.rows:
            found.setdefault(_way(row), []).append(row)
        return found


def load_records(folder: Path = RESULTS) -> list[Record]:
    """All records of a folder, by name.

    Raises:
        FileNotFoundError: there is none.
        ValueError: one is of another schema.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"no record in {folder}: python -m benchmarks.run makes one")
    return [_load(path) for path in paths]


def _load(path: Path) -> Record:
    report = Report.load(path)
    plain = json.loads(path.read_text(encoding="utf-8"))
    stored = [[bar["passed"] for bar in problem["bars"]] for problem in plain["problems"]]
    return Record(path, report, stored)


def comparisons(records: Iterable[Record]) -> list[Comparison]:
    """Every problem on which tools were compared."""
    return [
        Comparison(record, problem)
        for record in records
        for problem in record.report.problems
        if problem.rows
    ]


def busy_machines(records: Sequence[Record]) -> str:
    """A warning for each record that was made while the machine did other things too."""
    items = [
        f"{record.path.name}: {load} processes were running before the first measurement"
        for record in records
        if (load := str(record.report.machine.get("load_before", ""))).replace(".", "").isdigit()
        and float(load) > IDLE
    ]
    if not items:
        return ""
    return _list("Measured on a busy machine, so that the times mean little:", items)


def flaws(record: Record) -> Iterator[str]:
    """Everything that is missing from a record, or that contradicts itself."""
    report = record.report
    for entry in PROVENANCE:
        if not report.machine.get(entry):
            yield f"the machine's {entry} is missing"
    measured = [problem.name for problem in report.problems]
    for name in (*PROBLEMS, TOGETHER):
        if name not in measured and name not in report.absent:
            yield f"{name} is neither measured nor said to be absent"
    for problem, stored in zip(report.problems, record.stored_verdicts, strict=True):
        where = problem.name
        if not problem.data:
            yield f"{where}: where the data come from is missing"
        if not problem.bars:
            yield f"{where}: there is no bar"
        for bar, verdict in zip(problem.bars, stored, strict=True):
            if bar.passed is not verdict:
                yield f"{where}: {bar.name}: the stored verdict is not that of the numbers"
        if problem.rows:
            expected = bars(problem.rows)
            if problem.bars[: len(expected)] != expected:
                yield f"{where}: the bars do not follow from the rows"
        elif problem.name != TOGETHER:
            yield f"{where}: no tool was measured"
        for row in problem.rows:
            numbers = (row.seconds, row.products, row.error, row.points, row.repeats)
            if row.failure is None and not all(n and math.isfinite(n) for n in numbers):
                yield f"{where}: the row of {row.tool}, {row.setting}, is incomplete"


# -- Tables ----------------------------------------------------------------------------------------


def machines_table(records: Sequence[Record]) -> str:
    """What each record was made with, one column a record."""
    names = dict.fromkeys(name for record in records for name in record.report.machine)
    rows = [
        [name, *(str(record.report.machine.get(name, "–")) for record in records)] for name in names
    ]
    return _table(["record", *(record.path.name for record in records)], rows)


def problems_table(record: Record) -> str:
    """What was measured: network, data, sizes."""
    rows = []
    for problem in record.report.problems:
        facts = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in problem.facts.items()]
        rows.append([problem.name, problem.description, problem.data, "; ".join(facts)])
    header = ["problem", "network, data and loss", "source of the data", "facts"]
    return _table(header, rows, title=record.machine)


def bars_table(record: Record) -> str:
    """Every bar, its limit, and for each problem the number found and the verdict."""
    problems = record.report.problems
    names = dict.fromkeys(bar.name for problem in problems for bar in problem.bars)
    rows = []
    for name in names:
        found = [
            next((bar for bar in problem.bars if bar.name == name), None) for problem in problems
        ]
        limits = {_limit(bar) for bar in found if bar is not None and bar.limit is not None}
        cells = [_verdict(bar) for bar in found]
        rows.append([name, " or ".join(sorted(limits)) or "none", *cells])
    return _table(
        ["bar", "limit", *(problem.name for problem in problems)], rows, title=record.machine
    )


def verdicts_list(records: Sequence[Record]) -> str:
    """How many bars are met, and, folded, one item for each that is not."""
    found = [
        (f"{problem.name} · {record.machine}", bar)
        for record in records
        for problem in record.report.problems
        for bar in problem.bars
        if bar.limit is not None
    ]
    judged = [(where, bar) for where, bar in found if bar.passed is not None]
    missed = [(where, bar) for where, bar in judged if not bar.passed]
    items = [f"missed: {where}: {bar.name}, {_number(bar)}" for where, bar in missed]
    items += [
        f"nothing to compare: {where}: {bar.name}" for where, bar in found if bar.passed is None
    ]
    summary = f"{len(judged) - len(missed)} of {len(judged)} bars are met, {len(missed)} missed."
    if not missed:
        return _list(summary, items)
    return f"<details><summary>{escape(summary)}</summary>{_list('', items)}</details>"


def absences_list(records: Sequence[Record]) -> str:
    """One item for everything that a record says it lacks."""
    items = [
        f"{record.machine}: {what} was not measured ({why})"
        for record in records
        for what, why in record.report.absent.items()
    ]
    return _list("Missing from the records:" if items else "Nothing is missing.", items)


def rows_table(comparison: Comparison) -> str:
    """Every tool with every setting that was tried on one problem, folded."""
    tracked = comparison.tracked
    rows = []
    for row in comparison.problem.rows:
        name = [f"{row.tool}: {row.setting}", "yes" if row.default else ""]
        if row.failure is not None:
            rows.append([*name, f"failed: {row.failure}", "", "", "", ""])
            continue
        seconds, products, error = (n or 0.0 for n in (row.seconds, row.products, row.error))
        rows.append(
            [
                *name,
                f"{1e3 * seconds:.3g}",
                f"{seconds / (tracked.seconds or math.nan):.3g}",
                f"{products:.1f}",
                f"{error:.1e}",
                f"{row.points} × {row.repeats}",
            ]
        )
    header = [
        *("tool and setting", "its default", "ms a measurement", "times eoslib's tracker"),
        *("products", "largest relative error", "points × repeats"),
    ]
    summary = escape(comparison.label)
    return f"<details><summary>{summary}</summary>{_table(header, rows)}</details>"


def _verdict(bar: Bar | None) -> str:
    if bar is None:
        return "–"
    if bar.value is None:
        return "nothing to compare"
    return f"{bar.value:.3g} {_VERDICTS[bar.passed]}" + (f" ({bar.note})" if bar.note else "")


def _number(bar: Bar) -> str:
    told = f"{bar.value:.3g} where the limit is {_limit(bar)}"
    return told + (f" ({bar.note})" if bar.note else "")


def _limit(bar: Bar) -> str:
    return f"{'≤' if bar.at_most else '≥'} {bar.limit:g}"


def _list(summary: str, items: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(item)}</li>" for item in items)
    told = f"<p>{escape(summary)}</p>" if summary else ""
    return told + (f"<ul>{lines}</ul>" if lines else "")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> str:
    """An HTML table that scrolls in its own box; the first column heads the rows."""
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    lines = [
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in others)
        + "</tr>"
        for first, *others in rows
    ]
    return (
        '<div class="pst-scrollable-table-container"><table class="table dataframe">'
        f"{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


# -- Figures ---------------------------------------------------------------------------------------


def draw_times(shown: Sequence[Comparison]) -> Figure:
    """The time of one measurement as a multiple of the tracker's, a row for each tool.

    Filled: the fastest setting that errs by no more than the tracker. Hollow: the tool's defaults
    where they err by more, with their error.
    """
    ways = list(dict.fromkeys(way for comparison in shown for way in comparison.ways()))

    def draw(ax: Axes, comparison: Comparison) -> None:
        own = comparison.tracked.seconds or math.nan
        ax.axvline(1, color=ACCENT["light"], linewidth=0.8)
        for height, way in enumerate(ways):
            rows = [row for row in comparison.ways().get(way, []) if row.failure is None]
            color = _color(way)
            accurate = [row for row in rows if comparison.as_accurate(row)]
            if accurate:
                ratio = min(row.seconds or math.inf for row in accurate) / own
                ax.plot(ratio, height, "o", color=color, markersize=7)
                _beside(ax, ratio, height, f"{ratio:.3g}", color)
            for row in rows:
                if row.default and row not in accurate:
                    ratio = (row.seconds or math.nan) / own
                    ax.plot(ratio, height, "o", color=color, markerfacecolor="none", markersize=7)
                    if not accurate:
                        told = f"{ratio:.3g}, errs by {row.error:.0e}"
                        _beside(ax, ratio, height, told, color)
            if not any(row.default for row in rows) and not accurate:
                _beside(ax, 1, height, "not measured" if not rows else "less accurate", color)
        ax.set_yticks(range(len(ways)), ways)
        ax.set_ylim(len(ways) - 0.5, -0.5)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.margins(x=0.25)

    axis = "time of a measurement / that of eoslib's tracker (log axis)"
    return _panels(shown, draw, height=0.5 + 0.26 * len(ways), xlabel=axis)


def draw_errors(shown: Sequence[Comparison]) -> Figure:
    """The largest relative error against the products of one measurement, log axes."""
    others = list(
        dict.fromkeys(
            way
            for comparison in shown
            for way in comparison.ways()
            if _color(way) != ACCENT["light"]
        )
    )
    markers = dict(zip(others, _MARKERS, strict=False))

    def draw(ax: Axes, comparison: Comparison) -> None:
        for way, rows in comparison.ways().items():
            drawn = sorted(
                (row.products or math.nan, max(row.error or 0.0, ROUNDING))
                for row in rows
                if row.failure is None
            )
            if not drawn:
                continue
            ax.plot(
                *zip(*drawn, strict=True),
                marker=markers.get(way, "o"),
                color=_color(way),
                markerfacecolor=_color(way) if rows[0].tool == "eoslib" else "white",
                markersize=9 if rows[0] is comparison.tracked else 6,
                linewidth=0.7,
                linestyle="-",
                label=way,
                clip_on=False,
                zorder=3,
            )
        for name, line in (
            (ERROR_BAR, ax.axhline),
            (PRODUCTS_BAR, ax.axvline),
        ):
            limit = comparison.limit(name)
            if limit is not None:
                line(limit, color=MUTED["light"], linestyle=(0, (5, 3)), linewidth=0.9)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(bottom=ROUNDING)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_ylabel("largest relative error\nlog axis")

    figure = _panels(shown, draw, height=2.6, xlabel="products a measurement (log axis)")
    figure.axes[0].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, handlelength=1.5)
    return figure


def _panels(
    shown: Sequence[Comparison],
    draw: Callable[[Axes, Comparison], None],
    *,
    height: float,
    xlabel: str,
) -> Figure:
    """One panel for each comparison, below one another, with one x axis."""
    from matplotlib import pyplot as plt

    with book_style():
        figure, grid = plt.subplots(
            len(shown), 1, sharex=True, squeeze=False, figsize=(7.2, height * len(shown) + 0.4)
        )
        for ax, comparison in zip(grid[:, 0], shown, strict=True):
            draw(ax, comparison)
            ax.annotate(
                comparison.label,
                (0, 1),
                xycoords="axes fraction",
                xytext=(0, 4),
                textcoords="offset points",
                fontsize=9,
                color=MUTED["light"],
            )
        grid[-1, 0].set_xlabel(xlabel)
    return figure


def _beside(ax: Axes, x: float, y: float, text: str, color: str) -> None:
    ax.annotate(
        text,
        (x, y),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=color,
    )


def _way(row: Row) -> str:
    if row.tool == "eoslib":
        return "eoslib, tracked" if row.warm else "eoslib, cold start"
    return f"{row.tool}, from the last" if row.warm else row.tool


def _color(way: str) -> str:
    return ACCENT["light"] if way.startswith("eoslib") else INK["light"]
