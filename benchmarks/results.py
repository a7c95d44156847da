"""What a benchmark found: the record, its JSON file and its table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["Bar", "ProblemReport", "Report", "Row"]

SCHEMA = 2


@dataclass(frozen=True)
class Row:
    """One tool with one setting on one problem.

    Attributes:
        tool: its name.
        setting: its arguments.
        warm: whether every measurement starts from the one before.
        default: whether these are the tool's defaults.
        seconds: time of a measurement: the best of the repeats at each point, averaged over points.
        products: Hessian-vector products a measurement, on average.
        error: largest relative error of the sharpness over the points.
        points: how many points were measured.
        repeats: how often each was.
        failure: the error's text if the tool failed; then the numbers are ``None``.
    """

    tool: str
    setting: str
    warm: bool
    default: bool
    seconds: float | None = None
    products: float | None = None
    error: float | None = None
    points: int = 0
    repeats: int = 0
    failure: str | None = None


@dataclass(frozen=True)
class Bar:
    """A number that has to lie on one side of a limit.

    Attributes:
        name: what it says.
        value: the number; ``None`` if there was nothing to compare with.
        limit: the bar; ``None`` for a number that is only told.
        at_most: whether the number must lie below the limit, or above it.
        note: with what it was compared.
    """

    name: str
    value: float | None
    limit: float | None = None
    at_most: bool = True
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the bar is met; ``None`` without a limit or a value."""
        if self.limit is None or self.value is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit


@dataclass(frozen=True)
class ProblemReport:
    """Everything found on one problem.

    Attributes:
        name: the problem's name.
        description: network, data and loss.
        facts: sizes, step size, threads and the like.
        rows: the tools.
        bars: the numbers that the tools' and eoslib's own times have to meet.
        data: where the data come from and what was done to them.
    """

    name: str
    description: str
    facts: dict[str, float | int]
    rows: list[Row] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    data: str = ""


@dataclass(frozen=True)
class Report:
    """One run of the benchmark on one machine.

    Attributes:
        machine: hardware, versions and date.
        absent: what could not be measured, and why.
        problems: in the order measured.
    """

    machine: dict[str, str | int]
    absent: dict[str, str]
    problems: list[ProblemReport]

    def save(self, path: Path) -> None:
        """Write the report as JSON, with every bar's verdict."""
        plain = {"schema": SCHEMA, **asdict(self)}
        for stored, problem in zip(plain["problems"], self.problems, strict=True):
            for entry, bar in zip(stored["bars"], problem.bars, strict=True):
                entry["passed"] = bar.passed
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read a report.

        Raises:
            ValueError: the file is of another schema.
        """
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain.get("schema") != SCHEMA:
            raise ValueError(
                f"{path.name} has schema {plain.get('schema')}, this code reads {SCHEMA}; "
                "run the benchmark again"
            )
        problems = [
            ProblemReport(
                stored["name"],
                stored["description"],
                stored["facts"],
                [Row(**row) for row in stored["rows"]],
                [Bar(**{k: v for k, v in bar.items() if k != "passed"}) for bar in stored["bars"]],
                stored["data"],
            )
            for stored in plain["problems"]
        ]
        return cls(plain["machine"], plain["absent"], problems)

    def table(self) -> str:
        """The report as text."""
        lines = [", ".join(f"{name} {value}" for name, value in self.machine.items())]
        lines += [f"absent: {what}: {why}" for what, why in self.absent.items()]
        for problem in self.problems:
            facts = ", ".join(f"{name} {value:.4g}" for name, value in problem.facts.items())
            lines += ["", f"{problem.name}: {problem.description}", problem.data, facts, ""]
            lines += [_row_line(row) for row in problem.rows]
            lines += [""] if problem.rows else []
            lines += [_bar_line(bar) for bar in problem.bars]
        return "\n".join(lines)


def _row_line(row: Row) -> str:
    name = f"{row.tool}: {row.setting}"
    if row.failure is not None:
        return f"  {name:<68} failed: {row.failure}"
    return (
        f"  {name:<68} {1e3 * (row.seconds or 0):9.1f} ms {row.products:6.1f} products"
        f"   error {row.error:.1e}   {row.points} points, {row.repeats}x"
    )


def _bar_line(bar: Bar) -> str:
    verdict = {True: "met", False: "NOT MET", None: ""}[bar.passed]
    value = "nothing to compare" if bar.value is None else f"{bar.value:.3g}"
    limit = "" if bar.limit is None else f"{'≤' if bar.at_most else '≥'} {bar.limit:g}"
    note = f"   ({bar.note})" if bar.note else ""
    return f"  {bar.name:<68} {value:>10} {limit:<8} {verdict}{note}"
