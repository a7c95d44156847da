"""The training loop: follow an update rule, measure on a schedule, record everything.

Each step in order: loss and gradient at θ_t → measurements at θ_t → stop rules → update to
θ_{t+1}. So every series entry at step t belongs to θ_t, before the update. Where the sharpness is
measured, the step's own gradient graph serves the Hessian-vector products.

`train_together` follows several update rules from one starting point in one batched computation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eoslib.numerics import hardware_stamp, limited_threads
from eoslib.objective import Objective
from eoslib.runs import Outcome, Run, Series, plain_json
from eoslib.tracker import SharpnessTracker
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
    "train_together",
]

Schedule = Callable[[int], bool]


def every(interval: int) -> Schedule:
    """Measure every ``interval`` steps, seeing both sides of an oscillation of period 2.

    At the edge of stability the iterate nearly repeats every second step, so a strictly even
    stride would see one side of the oscillation only and bias what it measures. An odd interval
    alternates by itself: 0, 5, 10, …. An even one is made to: 0, 21, 40, 61, 80, … for 20.

    Raises:
        ValueError: the interval is not a positive integer.
    """
    if interval != int(interval) or interval < 1:
        raise ValueError(f"an interval must be a positive whole number of steps, got {interval}")

    def due(step: int) -> bool:
        count, rest = divmod(step, interval)
        return rest == (count % 2 if interval % 2 == 0 else 0)

    return due


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
        sharpness: the tracker; default tracks one eigenvalue to a relative accuracy of 1e-3.
            Recorded as ``sharpness`` ``(m,)``, and also as ``eigenvalues`` ``(m, k)`` if it
            reports several.
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
    (run,) = train_together(
        objective,
        [rule],
        num_steps=num_steps,
        theta=theta,
        sharpness=sharpness,
        sharpness_schedule=sharpness_schedule,
        measurements=measurements,
        stop=stop,
        report=report,
        divergence_factor=divergence_factor,
        settings=settings,
    )
    return run


def train_together(
    objective: Objective,
    rules: Sequence[UpdateRule],
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
) -> list[Run]:
    """Train once with each rule, all from one θ, as one batched computation.

    The arguments are those of `train`, applied to every run; ``report`` is called for every run at
    every step. Each run equals, up to rounding, what `train` would have returned for its rule: at
    the edge of stability rounding grows, as it does between machines. A run that has ended makes
    room for the others.

    Returns:
        One `Run` for each rule, in order. The products and seconds in their provenance are those of
        the computation they shared.

    Cost: for a small network, a step of R runs costs about as much as two or three of one run.
    """
    if num_steps != int(num_steps) or num_steps < 1:
        raise ValueError(f"num_steps must be a positive whole number, got {num_steps}")
    if not rules:
        raise ValueError("no update rule was given; pass at least one")
    num_steps = int(num_steps)
    tracker = sharpness or SharpnessTracker(objective)
    names = ["loss", "sharpness", "eigenvalues", *(m.name for m in measurements)]
    if len(set(names)) != len(names):
        raise ValueError(f"measurement names must be unique and new, got {names[3:]}")
    start = (objective.initial_point if theta is None else theta).detach()
    given = dict(settings or {})
    progresses = [
        _Progress(rule, start.clone(), _Recorder(objective, rule, len(rules), num_steps, given))
        for rule in rules
    ]
    loop = _Loop(
        objective,
        tracker,
        sharpness_schedule or every(5),
        tuple(measurements),
        tuple(stop),
        report,
        divergence_factor,
        num_steps,
    )
    with limited_threads(objective.num_parameters * objective.num_examples):
        loop.run(progresses)
    return [progress.result for progress in progresses if progress.result is not None]


class _Progress:
    """One run under way: where it is, and its record so far."""

    def __init__(self, rule: UpdateRule, point: Tensor, record: _Recorder) -> None:
        self.rule, self.point, self.record = rule, point, record
        self.state = rule.init(point)
        self.limit = np.inf
        self.result: Run | None = None

    def finish(self, status: str, step: int, message: str) -> None:
        self.result = self.record.snapshot(Outcome(status, step, message))
        self.result.final_point = self.point.detach().cpu().numpy()


@dataclass(frozen=True)
class _Loop:
    objective: Objective
    tracker: SharpnessTracker
    due: Schedule
    measurements: tuple[Measurement, ...]
    stop: tuple[StopRule, ...]
    report: Callable[[Snapshot], bool | None] | None
    divergence_factor: float
    num_steps: int

    def run(self, active: list[_Progress]) -> None:
        for step in range(self.num_steps + 1):
            active, losses, gradients = self._evaluate(step, active)
            for progress, loss in zip(active, losses, strict=True):
                self._measure(step, progress, loss)
            going = [index for index, progress in enumerate(active) if progress.result is None]
            for index in going:
                progress = active[index]
                if step == self.num_steps:
                    progress.finish("completed", step, f"all {step:,} steps done")
                else:
                    progress.point, progress.state = progress.rule.step(
                        progress.point, gradients[index], progress.state
                    )
            active = self._keep(active, going)
            if not active:
                return

    def _evaluate(
        self, step: int, active: list[_Progress]
    ) -> tuple[list[_Progress], list[float], list[Tensor]]:
        """Losses and gradients of the runs that have not diverged, and their sharpness if due."""
        while active:
            points = _stacked([progress.point for progress in active])
            hessian = self.objective.hessian(points) if self.due(step) else None
            if hessian is None:
                values, gradients = self.objective.value_and_gradient(points)
            else:
                values, gradients = hessian.value, hessian.gradient
            losses = [float(value) for value in _unstacked(values, 0)]
            going = []
            for index, (progress, loss) in enumerate(zip(active, losses, strict=True)):
                if step == 0:
                    tiny = torch.finfo(self.objective.dtype).tiny
                    progress.limit = self.divergence_factor * max(loss, tiny)
                if np.isfinite(loss) and loss <= progress.limit:
                    going.append(index)
                    continue
                size = f"{loss:.3g}" if np.isfinite(loss) else "no longer finite"
                lr = progress.rule.lr
                message = f"the loss was {size} at step {step} with step size {lr:g}"
                progress.finish("diverged", step, message)
            if len(going) < len(active):  # once more, for the others
                active = self._keep(active, going)
                continue
            if hessian is not None:
                eigenvalues = _unstacked(self.tracker(points, hessian), 1)
                for progress, row in zip(active, eigenvalues, strict=True):
                    progress.record.add("sharpness", step, row[0])
                    if self.tracker.max_k > 1:
                        progress.record.add("eigenvalues", step, row)
            return active, losses, _unstacked(gradients, 1)
        return [], [], []

    def _measure(self, step: int, progress: _Progress, loss: float) -> None:
        progress.record.add("loss", step, loss)
        for measurement in self.measurements:
            if measurement.schedule(step):
                progress.record.add(measurement.name, step, measurement.function(progress.point))
        now = Snapshot(step, self.num_steps, loss, progress.point, progress.record.snapshot)
        for stop_rule in self.stop:
            if (reason := stop_rule(now)) is not None:
                progress.finish("goal reached", step, reason)
                return
        if self.report is not None and self.report(now):
            progress.finish("stopped", step, f"stopped on request at step {step}")

    def _keep(self, active: list[_Progress], going: list[int]) -> list[_Progress]:
        if len(going) < len(active):
            self.tracker.keep_runs(going)
        return [active[index] for index in going]


def _stacked(vectors: list[Tensor]) -> Tensor:
    """One run's vector as it is, which is the faster path; several as rows."""
    return vectors[0] if len(vectors) == 1 else torch.stack(vectors)


def _unstacked(values: Tensor, ndim: int) -> list[Tensor]:
    return [values] if values.ndim == ndim else list(values)


class _Recorder:
    """Collects series while training and turns them into a `Run`."""

    def __init__(
        self,
        objective: Objective,
        rule: UpdateRule,
        num_runs: int,
        num_steps: int,
        settings: dict[str, Any],
    ) -> None:
        self._objective, self._num_runs = objective, num_runs
        # Both exist in every run, even one whose first loss is not finite.
        self._steps: dict[str, list[int]] = {"loss": [], "sharpness": []}
        self._values: dict[str, list[Any]] = {"loss": [], "sharpness": []}
        self._started = time.perf_counter()
        self._gradients, self._products = objective.num_gradients, objective.num_products
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
            "runs_together": self._num_runs,
            "unconverged_measurements": int(np.isnan(series["sharpness"].values).sum()),
        }
        return Run(
            settings=dict(self._settings),
            series=series,
            outcome=outcome or Outcome("stopped", last, "still running"),
            provenance=provenance,
        )
