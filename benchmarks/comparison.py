"""The sharpness along a stretch of training, by every tool: time, products and error of each."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.clock import timed
from benchmarks.problems import Problem, Stretch
from benchmarks.results import Bar, Row
from benchmarks.tools import LADDERS, OF_2021, OURS, OURS_COLD, Reading, Setting

__all__ = ["bars", "compare"]

#: The relative error allowed of a tracked sharpness.
ACCURACY = 1e-3

#: Relative errors below this are float32's rounding, and count as equal.
ROUNDING = 1e-6

#: Fewer points are not taken, however long one takes.
MIN_POINTS = 3


@dataclass(frozen=True)
class Pass:
    """Time, products and relative error at each point of one pass over the stretch."""

    seconds: np.ndarray
    products: np.ndarray
    errors: np.ndarray


def compare(
    problem: Problem, stretch: Stretch, absent: Sequence[str], repeats: int, pass_seconds: float
) -> list[Row]:
    """Measure with eoslib, with the procedure of 2021, and with every peer that is there.

    Of each way of using a peer, settings of rising accuracy are tried until one is as accurate as
    eoslib; its defaults are tried in any case. What is timed again, in turn, is the first setting
    that reaches each of the accuracies that matter.

    Args:
        problem: what is measured.
        stretch: where.
        absent: the tools to leave out.
        repeats: passes over the stretch, of which the best time at each point counts.
        pass_seconds: a peer's pass ends early once it took so long.
    """
    passes: dict[Setting, list[Pass]] = {}
    failures: dict[Setting, str] = {}

    def measure(setting: Setting, limit: float = pass_seconds) -> None:
        known = passes.setdefault(setting, [])
        num_points = len(known[0].seconds) if known else None
        try:
            known.append(_one_pass(setting, problem, stretch, limit, num_points))
        except Exception as error:  # a peer's failure is a result
            failures[setting] = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"  {setting.tool}: {setting.arguments}", file=sys.stderr, flush=True)

    def error(setting: Setting) -> float:
        return math.inf if setting in failures else float(passes[setting][0].errors.max())

    measure(OURS, limit=math.inf)
    for setting in (OURS_COLD, OF_2021):
        measure(setting)
    goals = [max(ROUNDING, goal) for goal in (ACCURACY, error(OURS), error(OURS_COLD))]
    chosen = [OURS, OURS_COLD, OF_2021]
    for ladder in LADDERS:
        for setting in ladder:
            missing = [g for g in goals if not any(error(s) <= g for s in ladder if s in passes)]
            if setting.tool not in absent and (missing or setting.default):
                measure(setting)
                if any(error(setting) <= goal for goal in missing):
                    chosen.append(setting)
    for _ in range(repeats - 1):
        for setting in chosen:
            if setting not in failures:
                measure(setting)
    return [_row(setting, known, failures.get(setting)) for setting, known in passes.items()]


def _one_pass(
    setting: Setting, problem: Problem, stretch: Stretch, limit: float, num_points: int | None
) -> Pass:
    """Measure at some points of the stretch, after a first that warms up and is not kept.

    A warm tool needs consecutive points; the others get as many, spread over the stretch.
    """

    def measure(index: int, state: object) -> tuple[Reading, float]:
        theta = stretch.points[index]
        problem.place(theta)
        return timed(partial(setting.measure, problem, theta, state), theta.device)

    last = len(stretch.points) - 1
    reading, seconds = measure(0, None)
    count = num_points or int(np.clip(limit / seconds, MIN_POINTS, last))
    indices = np.arange(count) + 1 if setting.warm else np.linspace(1, last, count).round()
    taken = []
    for index in indices.astype(int):
        reading, seconds = measure(index, reading.state if setting.warm else None)
        if not math.isfinite(reading.value):
            raise RuntimeError(f"the sharpness measured is {reading.value}")
        error = abs(reading.value / stretch.sharpness[index] - 1)
        taken.append((seconds, reading.products, error))
    return Pass(*np.array(taken).T)


def _row(setting: Setting, passes: list[Pass], failure: str | None) -> Row:
    if failure is not None:
        return Row(setting.tool, setting.arguments, setting.warm, setting.default, failure=failure)
    best = np.min([one.seconds for one in passes], axis=0)
    return Row(
        setting.tool,
        setting.arguments,
        setting.warm,
        setting.default,
        seconds=float(best.mean()),
        products=float(passes[0].products.mean()),
        error=float(passes[0].errors.max()),
        points=len(best),
        repeats=len(passes),
    )


def bars(rows: Sequence[Row]) -> list[Bar]:
    """What eoslib's times have to reach against those of the others."""
    tracked = next(row for row in rows if row.tool == OURS.tool and row.warm)
    cold = next(row for row in rows if row.tool == OURS.tool and not row.warm)
    of_2021 = [row for row in rows if row.tool == OF_2021.tool]
    peers = [row for row in rows if row.tool not in (OURS.tool, OF_2021.tool)]
    unaided = [row for row in peers if not row.warm]
    as_ours = math.inf if tracked.error is None else tracked.error
    as_cold = math.inf if cold.error is None else cold.error
    return [
        Bar("tracked: largest relative error", tracked.error, ACCURACY),
        Bar("tracked: products a measurement", tracked.products, 4),
        _speedup("tracked: times as fast as the procedure of 2021", tracked, of_2021, math.inf, 20),
        _speedup("tracked: times as fast as the fastest tool", tracked, unaided, as_ours, 6),
        _speedup("... which may err by 1e-3", tracked, unaided, ACCURACY),
        _speedup(
            "... which may err by 1e-3, and starts from the last vector", tracked, peers, ACCURACY
        ),
        _speedup("cold: times as fast as the fastest tool", cold, unaided, as_cold, 2.5),
    ]


def _speedup(
    name: str, ours: Row, others: Sequence[Row], goal: float, limit: float | None = None
) -> Bar:
    """How many times as long the fastest takes of those that err by no more than the goal."""
    equals = [row for row in others if row.error is not None and row.error <= max(goal, ROUNDING)]
    if ours.seconds is None or not equals:
        return Bar(name, None, limit, at_most=False, note="none measured as accurately")
    fastest = min(equals, key=lambda row: row.seconds or math.inf)
    ratio = (fastest.seconds or math.inf) / ours.seconds
    return Bar(name, ratio, limit, at_most=False, note=f"{fastest.tool}: {fastest.setting}")
