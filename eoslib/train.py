"""The training loop: follow an update rule, measure on a schedule, record everything.

Each step in order: loss and gradient at θ_t → measurements at θ_t → stop rules → update to
θ_{t+1}. So every series entry at step t belongs to θ_t, before the update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eoslib.eigen import SharpnessTracker
from eoslib.numerics import hardware_stamp, limited_threads
from eoslib.objective import Objective
from eoslib.runs import Outcome, Run, Series, plain_json
from eoslib.update_rules import UpdateRule

__all__ = [
    "Measurement",
    "Schedule",
    "Snapshot",
    "at_steps",
    "every",
    "log_spaced",
    "loss_below",
    "accuracy_above",
    "train",
]

Schedule = Callable[[int], bool]


def every(interval: int) -> Schedule:
    """Measure at steps 0, interval, 2·interval, ….

    At the edge of stability the iterate nearly repeats with period 2, so an even interval sees one
    side of the oscillation only and biases what it measures; prefer an odd one.

    Raises:
        ValueError: the interval is not a positive integer.
    """
    if interval != int(interval) or interval < 1:
        raise ValueError(f"an interval must be a positive whole number of steps, got {interval}")
    return lambda step: step % interval == 0


def at_steps(steps: Iterable[int]) -> Schedule:
    """Measure at exactly these steps."""
    return frozenset(int(step) for step in steps).__contains__


def log_spaced(per_decade: int = 20, last: int = 10**7) -> Schedule:
    """Measure at step 0 and at about ``per_decade`` steps in every factor of ten up to ``last``."""
    if not (per_decade > 0 and last >= 1):
        raise ValueError(f"need per_decade > 0 and last ≥ 1, got {per_decade} and {last}")
    exponents = np.arange(0, np.log10(last) + 1e-9, 1 / per_decade)
    return at_steps([0, *np.unique(np.rint(10**exponents).astype(int)).tolist()])


@dataclass(frozen=True)
class Measurement:
    """A quantity to record: any function of θ.

    Attributes:
        name: its name among the run's series.
        function: maps θ, ``(P,)``, to a number or a vector ``(d,)``.
        schedule: at which steps.
    """

    name: str
    function: Callable[[Tensor], Tensor | float]
    schedule: Schedule


@dataclass(frozen=True)
class Snapshot:
    """What stop rules and progress reports see.

    Attributes:
        step: the step whose measurements were just taken.
        num_steps: the step at which the run would end.
        loss: L(θ_t).
        theta: θ_t, ``(P,)``.
        record: a function returning the `Run` so far, for live plots.
    """

    step: int
    num_steps: int
    loss: float
    theta: Tensor
    record: Callable[[], Run]


StopRule = Callable[[Snapshot], str | None]


def loss_below(goal: float) -> StopRule:
    """Stop when the loss falls below ``goal``."""
    return lambda now: f"loss {now.loss:.3g} < {goal:g}" if now.loss < goal else None


def accuracy_above(objective: Objective, goal: float, *, interval: int = 10) -> StopRule:
    """Stop when the training accuracy exceeds ``goal`` (strictly); looked at every ``interval``."""

    def rule(now: Snapshot) -> str | None:
        if now.step % interval:
            return None
        share = objective.accuracy(now.theta)
        return f"training accuracy {share:.2%} > {goal:.0%}" if share > goal else None

    return rule


def train(
    objective: Objective,
    rule: UpdateRule,
    *,
    num_steps: int,
    theta: Tensor | None = None,
    sharpness: SharpnessTracker | None = None,
    sharpness_schedule: Schedule | None = None,
    measurements: Sequence[Measurement] = (),
    stop: Sequence[StopRule] = (),
    report: Callable[[Snapshot], bool | None] | None = None,
    divergence_factor: float = 1e6,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Train from θ (default: the objective's initial point) and return the record.

    Args:
        objective: the training loss.
        rule: the optimizer.
        num_steps: updates to make, ≥ 1; steps 0..num_steps are measured.
        theta: where to start, ``(P,)``.
        sharpness: the tracker; default tracks one eigenvalue at rtol 1e-3. Recorded as
            ``sharpness`` ``(m,)``, and with k > 1 also as ``eigenvalues`` ``(m, k)``.
        sharpness_schedule: when to measure it; default every 5 steps.
        measurements: further quantities.
        stop: stop rules, asked after the measurements of each step; the first that answers ends
            the run with status "goal reached".
        report: called after every step, for progress; returning True ends the run as "stopped".
        divergence_factor: the run has diverged when its loss is not finite or exceeds this
            multiple of the initial loss. Divergence is an outcome on record, not an error.
        settings: what to add to the run's settings (data set, architecture, seed, …).

    Raises:
        ValueError: ``num_steps`` is not a positive integer, two measurements share a name, or a
            measurement's shape changes.
        TypeError: the settings hold something that JSON has no place for.

    Cost: one gradient a step plus the measurements.
    """
    if num_steps != int(num_steps) or num_steps < 1:
        raise ValueError(f"num_steps must be a positive whole number, got {num_steps}")
    num_steps = int(num_steps)
    tracker = sharpness or SharpnessTracker(objective)
    names = ["loss", "sharpness", "eigenvalues", *(m.name for m in measurements)]
    if len(set(names)) != len(names):
        raise ValueError(f"measurement names must be unique and new, got {names[3:]}")
    due = sharpness_schedule or every(5)
    record = _Recorder(objective, rule, tracker, num_steps, dict(settings or {}))
    point = (objective.initial_point if theta is None else theta).detach().clone()
    state = rule.init(point)
    limit = np.inf
    with limited_threads(objective.num_parameters * objective.num_examples):
        for step in range(num_steps + 1):
            loss_tensor, gradient = objective.value_and_gradient(point)
            loss = float(loss_tensor)
            if step == 0:
                limit = divergence_factor * max(loss, torch.finfo(objective.dtype).tiny)
            if not (np.isfinite(loss) and loss <= limit):
                size = f"{loss:.3g}" if np.isfinite(loss) else "no longer finite"
                message = f"the loss was {size} at step {step} with step size {rule.lr:g}"
                return record.finish(point, "diverged", step, message)
            record.add("loss", step, loss)
            if due(step):
                eigenvalues = tracker(point)
                record.add("sharpness", step, eigenvalues[0])
                if tracker.k > 1:
                    record.add("eigenvalues", step, eigenvalues)
            for measurement in measurements:
                if measurement.schedule(step):
                    record.add(measurement.name, step, measurement.function(point))
            now = Snapshot(step, num_steps, loss, point, record.snapshot)
            for stop_rule in stop:
                if (reason := stop_rule(now)) is not None:
                    return record.finish(point, "goal reached", step, reason)
            if report is not None and report(now):
                return record.finish(point, "stopped", step, f"stopped on request at step {step}")
            if step < num_steps:
                point, state = rule.step(point, gradient, state)
        return record.finish(point, "completed", num_steps, f"all {num_steps:,} steps done")


class _Recorder:
    """Collects series while training and turns them into a `Run`."""

    def __init__(
        self,
        objective: Objective,
        rule: UpdateRule,
        tracker: SharpnessTracker,
        num_steps: int,
        settings: dict[str, Any],
    ) -> None:
        self._objective, self._tracker = objective, tracker
        # Both exist in every run, even one whose first loss is not finite.
        self._steps: dict[str, list[int]] = {"loss": [], "sharpness": []}
        self._values: dict[str, list[Any]] = {"loss": [], "sharpness": []}
        self._started = time.perf_counter()
        self._gradients, self._products = objective.num_gradients, objective.num_products
        self._unconverged = tracker.unconverged
        self._settings = plain_json(settings, "settings") | {
            "optimizer": rule.name,
            **rule.settings,
            "threshold": rule.threshold,
            "loss": objective.loss.name,
            "num_steps": num_steps,
            "num_parameters": objective.num_parameters,
            "num_examples": objective.num_examples,
            "dtype": str(objective.dtype).removeprefix("torch."),
        }

    def add(self, name: str, step: int, value: Any) -> None:
        # A copy: the function measured may reuse its tensor.
        if isinstance(value, Tensor):
            value = value.detach().double().cpu().numpy()
        plain = np.array(value, dtype=np.float64)
        known = self._values.setdefault(name, [])
        if plain.ndim > 1 or (known and known[0].shape != plain.shape):
            was = f"after {known[0].shape} before" if known else "expected a number or a vector"
            raise ValueError(f"measurement {name!r} gave shape {plain.shape} at step {step}, {was}")
        self._steps.setdefault(name, []).append(step)
        known.append(plain)

    def snapshot(self, outcome: Outcome | None = None) -> Run:
        series = {
            name: Series(np.array(steps), np.array(self._values[name], dtype=np.float64))
            for name, steps in self._steps.items()
        }
        last = self._steps["loss"][-1] if self._steps["loss"] else 0
        provenance = hardware_stamp(self._objective.device) | {
            "seconds": round(time.perf_counter() - self._started, 3),
            "num_gradients": self._objective.num_gradients - self._gradients,
            "num_products": self._objective.num_products - self._products,
            "unconverged_measurements": self._tracker.unconverged - self._unconverged,
        }
        return Run(
            settings=dict(self._settings),
            series=series,
            outcome=outcome or Outcome("stopped", last, "still running"),
            provenance=provenance,
        )

    def finish(self, point: Tensor, status: str, step: int, message: str) -> Run:
        run = self.snapshot(Outcome(status, step, message))
        run.final_point = point.detach().cpu().numpy()
        return run
