"""The training loop: follow an update rule, measure on a schedule, record everything.

Each step in order: loss and gradient at θ_t → measurements at θ_t → stop rules → update to
θ_{t+1}. So every series entry at step t belongs to θ_t, before the update. Where the sharpness is
measured, the step's own gradient graph serves the Hessian-vector products.

`train_together` follows several update rules from one starting point in one batched computation.

With `Minibatches` the update follows the gradient of a few examples at a time (stochastic gradient
descent), while everything that is measured stays a quantity of the full batch.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eoslib._arguments import (
    a_function,
    a_generator_seed,
    a_number,
    a_whole_number,
    an_objective,
    shown,
    starting_point,
)
from eoslib.checkpoint import DIGESTS, Checkpoint, moved
from eoslib.numerics import digest, limited_threads
from eoslib.objective import Objective
from eoslib.recorder import (
    Measurement,
    Recorder,
    Schedule,
    Snapshot,
    StopRule,
    check_recorded,
    every,
    restore,
    state_of,
)
from eoslib.runs import Outcome, Run
from eoslib.taylor import TaylorQuadratic
from eoslib.tracker import SharpnessTracker
from eoslib.update_rules import NoStepError, UpdateRule, is_preconditioned, preconditioner_of

if TYPE_CHECKING:
    from eoslib.objective import Hessian
    from eoslib.taylor import QuadraticHessian

__all__ = ["Minibatches", "train", "train_together"]


@dataclass(frozen=True)
class Minibatches:
    """Which examples each step of stochastic gradient descent sees: epochs of shuffled batches.

    In every epoch the n examples are shuffled and dealt out ``size`` at a time; the last batch of
    an epoch takes what is left. So every example is seen once an epoch.

    Attributes:
        size: examples in a batch, 1 to n; n is full-batch gradient descent in another order.
        seed: seed of the order.

    Raises:
        ValueError: the size is not a positive whole number, or the seed is none.
    """

    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a size that is none, and a seed."""
        size = a_whole_number("a batch's number of examples", self.size)
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "seed", a_generator_seed(self.seed))

    def epochs(self, num_examples: int) -> Iterator[Tensor]:
        """Yield the indices of one batch after another, ``(b,)`` int64, without end.

        Raises:
            ValueError: a batch is larger than the data set.
        """
        if self.size > num_examples:
            raise ValueError(
                f"a batch of {self.size} examples cannot be drawn from {num_examples}; "
                "choose a smaller batch"
            )
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            order = torch.randperm(num_examples, generator=generator, device="cpu")
            yield from order.split(self.size)


def train(
    objective: Objective | TaylorQuadratic,
    rule: UpdateRule,
    *,
    num_steps: int,
    theta: Tensor | None = None,
    sharpness: SharpnessTracker | None = None,
    sharpness_schedule: Schedule | None = None,
    batches: Minibatches | None = None,
    measurements: Sequence[Measurement] = (),
    stop: Sequence[StopRule] = (),
    report: Callable[[Snapshot], bool | None] | None = None,
    divergence_factor: float = 1e6,
    settings: Mapping[str, Any] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Run:
    """Train from θ (default: the objective's initial point) and return the record.

    Args:
        objective: the training loss, or its quadratic model.
        rule: the optimizer.
        num_steps: updates to make, ≥ 1; steps 0..num_steps are measured.
        theta: where to start, ``(P,)``, on any device.
        sharpness: the tracker; default tracks one eigenvalue to a relative accuracy of 1e-3. It
            measures its own objective, which may be another one (of fewer examples, say) than the
            one that is trained.
            Recorded as ``sharpness`` ``(m,)``, and also as ``eigenvalues`` ``(m, k)`` if it
            reports several. Where the rule divides by a preconditioner D (`Adam`, `RMSProp`), the
            largest eigenvalue of D⁻¹H is recorded too, as ``preconditioned_sharpness``: D is the
            one of the step from θ_t.
        sharpness_schedule: when to measure it; default every 5 steps.
        batches: follow the gradients of mini-batches (default: of the full batch). The training
            loss, which then costs more than a step, is measured with the sharpness only.
        measurements: further quantities.
        stop: stop rules, asked after the measurements of each step; the first that answers ends
            the run with status "goal reached".
        report: called after every step, for progress; returning True ends the run as "stopped".
        divergence_factor: the run has diverged when its loss is not finite or exceeds this
            multiple of the initial loss (of 1, or of its size, if that is not positive). Divergence
            is an outcome on record, not an error.
        settings: what to add to the run's settings (data set, architecture, seed, …).
        checkpoint: where to save the state now and then, and to go on from if there is one: the
            record is then that of a run which was never cut off, to the bit on the same machine,
            as long as the measurements and stop rules are functions of their arguments. Its
            provenance says where it was resumed. Other settings, other data or another model than
            the checkpoint's are refused; see `eoslib.checkpoint`.

    Raises:
        ValueError: an argument is of another type or out of its range, two measurements share a
            name, a measurement's shape changes, or the checkpoint is another training's.
        TypeError: the settings hold something that JSON has no place for.

    Cost: one gradient a step plus the measurements, which with an adaptive rule are twice as many;
    with mini-batches of b of n examples, b/n of a gradient a step.
    """
    (run,) = train_together(
        objective,
        [rule],
        num_steps=num_steps,
        theta=theta,
        sharpness=sharpness,
        sharpness_schedule=sharpness_schedule,
        batches=batches,
        measurements=measurements,
        stop=stop,
        report=report,
        divergence_factor=divergence_factor,
        settings=settings,
        checkpoint=checkpoint,
    )
    return run


def train_together(
    objective: Objective | TaylorQuadratic,
    rules: Sequence[UpdateRule],
    *,
    num_steps: int,
    theta: Tensor | None = None,
    sharpness: SharpnessTracker | None = None,
    sharpness_schedule: Schedule | None = None,
    batches: Minibatches | None = None,
    measurements: Sequence[Measurement] = (),
    stop: Sequence[StopRule] = (),
    report: Callable[[Snapshot], bool | None] | None = None,
    divergence_factor: float = 1e6,
    settings: Mapping[str, Any] | None = None,
    checkpoint: Checkpoint | None = None,
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
    an_objective(objective)
    num_steps = a_whole_number("num_steps", num_steps)
    _check_rules(rules)
    check_recorded(sharpness, measurements, stop, report, settings, checkpoint)
    if sharpness_schedule is not None:
        a_function("sharpness_schedule", sharpness_schedule, "for instance every(5)")
    if not isinstance(batches, Minibatches | None):
        raise ValueError(f"batches must be Minibatches(size, seed), got {shown(batches)}")
    divergence_factor = a_number("divergence_factor", divergence_factor)
    if not divergence_factor >= 1:
        raise ValueError(
            f"divergence_factor is a multiple of the first loss, at least 1, got "
            f"{divergence_factor:g}"
        )
    tracker = SharpnessTracker(objective) if sharpness is None else sharpness
    own = ["loss", "sharpness", "eigenvalues", "preconditioned_sharpness"]
    names = [m.name for m in measurements]
    if len({*own, *names}) != len(own) + len(names):
        raise ValueError(
            f"measurement names must be unique and new, got {names}; {', '.join(own)} are the "
            "training's own"
        )
    start = starting_point(objective, theta)
    given = dict(settings or {})
    if batches is not None:
        given |= {"batch_size": batches.size, "batch_seed": batches.seed}
    progresses = [
        _Progress(
            rule,
            start.clone(),
            Recorder(
                objective,
                given,
                _method(rule, num_steps),
                num_runs=len(rules),
                preconditioned=is_preconditioned(rule),
            ),
        )
        for rule in rules
    ]
    identity: dict[str, Any] = {
        "runs": [progress.record.settings for progress in progresses],
        "start": digest(start),
        "tracker": tracker.settings,
        "measurements": names,
        "divergence_factor": divergence_factor,
    }
    if checkpoint is not None:
        identity[DIGESTS] = objective.digests()
    loop = _Loop(
        objective,
        tracker,
        _preconditioned_tracker(tracker, rules),
        every(5) if sharpness_schedule is None else sharpness_schedule,
        None if batches is None else _batch_gradients(objective, batches),
        tuple(measurements),
        tuple(stop),
        report,
        divergence_factor,
        num_steps,
        checkpoint,
        identity,
    )
    with limited_threads(objective.num_parameters * objective.num_examples):
        loop.run(progresses)
    return [progress.result for progress in progresses if progress.result is not None]


def _preconditioned_tracker(
    tracker: SharpnessTracker, rules: Sequence[UpdateRule]
) -> SharpnessTracker | None:
    """What measures the preconditioned sharpness, if a rule has one; as accurate as the other."""
    if not any(map(is_preconditioned, rules)):
        return None
    names = ("rtol", "cold_every", "max_products", "seed")
    return SharpnessTracker(tracker.objective, **{name: tracker.settings[name] for name in names})


def _check_rules(rules: object) -> None:
    if not isinstance(rules, Sequence) or isinstance(rules, str):
        raise ValueError(
            f"expected a list of update rules, got {shown(rules)}; for instance "
            "[GradientDescent(0.01), GradientDescent(0.02)]"
        )
    if not rules:
        raise ValueError("no update rule was given; pass at least one")
    for rule in rules:
        wanted = ("name", "lr", "settings", "threshold", "init", "step")
        if isinstance(rule, type) or not all(hasattr(rule, name) for name in wanted):
            known = {
                "polyak": "Polyak(0.01, 0.9)",
                "nesterov": "Nesterov(0.01, 0.9)",
                "adam": "Adam(0.001)",
                "rmsprop": "RMSProp(0.001)",
            }
            name = rule.__name__ if isinstance(rule, type) else str(rule)
            example = known.get(name.lower(), "GradientDescent(0.01)")
            raise ValueError(
                f"expected an update rule, which knows its step size, got {shown(rule)}; for "
                f"instance {example}"
            )


def _method(rule: UpdateRule, num_steps: int) -> dict[str, Any]:
    return {
        "optimizer": rule.name,
        **rule.settings,
        "threshold": rule.threshold,
        "num_steps": num_steps,
    }


def _batch_gradients(
    objective: Objective | TaylorQuadratic, batches: Minibatches
) -> Iterator[Callable[[Tensor], Tensor]]:
    """For each step, the gradient of its mini-batch as a function of θ."""
    if not hasattr(objective, "minibatch_gradient"):
        raise ValueError(
            f"batches need an Objective to draw examples from, got {shown(objective)}; leave "
            "batches out"
        )
    return (
        partial(objective.minibatch_gradient, indices=indices)
        for indices in batches.epochs(objective.num_examples)
    )


class _Progress:
    """One run under way: where it is, and its record so far."""

    def __init__(self, rule: UpdateRule, point: Tensor, record: Recorder) -> None:
        self.rule, self.point, self.record = rule, point, record
        self.state = rule.init(point)
        self.loss = self.limit = np.nan  # until the first loss is known
        self.result: Run | None = None

    def finish(self, status: str, step: int, message: str) -> None:
        self.result = self.record.snapshot(Outcome(status, step, message))
        self.result.final_point = self.point.detach().cpu().numpy()

    def state_dict(self) -> dict[str, Any]:
        if self.result is not None:
            file = io.BytesIO()
            self.result.write(file)
            return {"result": torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)}
        return {
            "point": self.point,
            "state": self.state,
            "loss": self.loss,
            "limit": self.limit,
            "record": self.record.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        if "result" in state:
            self.result = Run.read(io.BytesIO(state["result"].numpy().tobytes()))
            return
        self.point, self.state = moved([state["point"], state["state"]], self.point.device)
        self.loss, self.limit = state["loss"], state["limit"]
        self.record.load_state_dict(state["record"], step)


@dataclass(frozen=True)
class _Loop:
    objective: Objective | TaylorQuadratic
    tracker: SharpnessTracker
    preconditioned: SharpnessTracker | None  # where a rule has a preconditioner
    due: Schedule
    batch_gradients: Iterator[Callable[[Tensor], Tensor]] | None
    measurements: tuple[Measurement, ...]
    stop: tuple[StopRule, ...]
    report: Callable[[Snapshot], bool | None] | None
    divergence_factor: float
    num_steps: int
    checkpoint: Checkpoint | None
    identity: Mapping[str, Any]

    def run(self, progresses: list[_Progress]) -> None:
        first = self._resume(progresses)
        active = [progress for progress in progresses if progress.result is None]
        for step in range(first, self.num_steps + 1):
            if self.checkpoint is not None:
                self.checkpoint.offer(self.identity, partial(self._state, step, progresses))
            active, gradients = self._evaluate(step, active)
            for progress in active:
                self._measure(step, progress)
            going = [index for index, progress in enumerate(active) if progress.result is None]
            for index in going:
                progress = active[index]
                if step == self.num_steps:
                    progress.finish("completed", step, f"all {step:,} steps done")
                    continue
                try:
                    progress.point, progress.state = progress.rule.step(
                        progress.point, gradients[index], progress.state
                    )
                except NoStepError as error:
                    progress.finish("stopped", step, f"{error} (at step {step})")
            active = self._keep(active, [i for i in going if active[i].result is None])
            if not active:
                return

    def _state(self, step: int, progresses: list[_Progress]) -> dict[str, Any]:
        """Everything that the steps from this one on depend on."""
        state = {
            "step": step,
            "runs": [progress.state_dict() for progress in progresses],
            "tracker": self.tracker.state_dict(),
            "measurements": state_of(self.measurements),
        }
        if self.preconditioned is not None:
            state["preconditioned"] = self.preconditioned.state_dict()
        return state

    def _resume(self, progresses: list[_Progress]) -> int:
        """Go back to the checkpoint, if there is one; the step to begin with."""
        state = None if self.checkpoint is None else self.checkpoint.load(self.identity)
        if state is None:
            return 0
        step: int = state["step"]
        for progress, stored in zip(progresses, state["runs"], strict=True):
            progress.load_state_dict(stored, step)
        self.tracker.load_state_dict(state["tracker"])
        if self.preconditioned is not None:
            self.preconditioned.load_state_dict(state["preconditioned"])
        restore(self.measurements, state["measurements"])
        if self.batch_gradients is not None:  # those of the steps done
            next(islice(self.batch_gradients, step, step), None)
        return step

    def _evaluate(self, step: int, active: list[_Progress]) -> tuple[list[_Progress], list[Tensor]]:
        """The runs that have not diverged, and their gradients; records loss and sharpness."""
        batch_gradient = None if self.batch_gradients is None else next(self.batch_gradients)
        due = self.due(step)
        while active:
            points = _stacked([progress.point for progress in active])
            losses: Tensor | None = None
            if due:
                hessian = self.objective.hessian(points)
                losses, gradients = hessian.value, hessian.gradient
            elif batch_gradient is None:
                losses, gradients = self.objective.value_and_gradient(points)
            if batch_gradient is not None:
                gradients = batch_gradient(points)
            going = self._not_diverged(step, active, losses, gradients)
            if len(going) < len(active):  # once more, for the others
                active = self._keep(active, going)
                continue
            if due:
                own = self.tracker.objective is self.objective
                of_tracker = hessian if own else None
                eigenvalues = self.tracker(points, of_tracker).numpy().reshape(len(active), -1)
                for progress, row in zip(active, eigenvalues, strict=True):
                    progress.record.add("sharpness", step, row[0])
                    if self.tracker.max_k > 1:
                        progress.record.add("eigenvalues", step, row)
                if self.preconditioned is not None and any(
                    is_preconditioned(progress.rule) for progress in active
                ):
                    self._measure_preconditioned(step, active, points, gradients, of_tracker)
            return active, _unstacked(gradients, 1)
        return [], []

    def _measure_preconditioned(
        self,
        step: int,
        active: list[_Progress],
        points: Tensor,
        gradients: Tensor,
        hessian: Hessian | QuadraticHessian | None,
    ) -> None:
        assert self.preconditioned is not None
        diagonals = [
            preconditioner_of(progress.rule, gradient, progress.state)
            for progress, gradient in zip(active, _unstacked(gradients, 1), strict=True)
        ]
        # A run that is about to diverge may have no preconditioner any more.
        good = [bool(((d > 0) & torch.isfinite(d)).all()) for d in diagonals]
        usable = [d if ok else torch.ones_like(d) for d, ok in zip(diagonals, good, strict=True)]
        found = self.preconditioned(points, hessian, preconditioner=_stacked(usable))
        for progress, row, ok in zip(active, _unstacked(found, 1), good, strict=True):
            if is_preconditioned(progress.rule):
                value = row[0] if ok else np.nan
                progress.record.add("preconditioned_sharpness", step, value)

    def _not_diverged(
        self, step: int, active: list[_Progress], losses: Tensor | None, gradients: Tensor
    ) -> list[int]:
        """Which runs go on. If all do, their losses are recorded where they are known."""
        known = losses is not None
        # Between measurements of the loss, a gradient that is not finite tells of an explosion.
        signs = losses if losses is not None else gradients.sum(dim=-1)
        numbers = signs.reshape(-1).tolist()
        going = []
        for index, (progress, number) in enumerate(zip(active, numbers, strict=True)):
            if known and np.isnan(progress.limit):
                # A first loss of zero or less is no measure of what would be too much.
                scale = number if number > 0 else max(1.0, -number)
                progress.limit = self.divergence_factor * scale
            if np.isfinite(number) and not (known and number > progress.limit):
                going.append(index)
                continue
            size = f"{number:.3g}" if np.isfinite(number) else "no longer finite"
            what = "loss" if known else "gradient"
            message = f"the {what} was {size} at step {step} with step size {progress.rule.lr:g}"
            progress.finish("diverged", step, message)
        if known and len(going) == len(active):
            for progress, number in zip(active, numbers, strict=True):
                progress.loss = number
                progress.record.add("loss", step, number)
        return going

    def _measure(self, step: int, progress: _Progress) -> None:
        for measurement in self.measurements:
            if measurement.schedule(step):
                progress.record.add(measurement.name, step, measurement.function(progress.point))
        now = Snapshot(
            step, self.num_steps, progress.loss, progress.point, progress.record.snapshot
        )
        for stop_rule in self.stop:
            if (reason := stop_rule(now)) is not None:
                progress.finish("goal reached", step, reason)
                return
        if self.report is not None and self.report(now):
            progress.finish("stopped", step, f"stopped on request at step {step}")

    def _keep(self, active: list[_Progress], going: list[int]) -> list[_Progress]:
        if len(going) < len(active):
            self.tracker.keep_runs(going)
            if self.preconditioned is not None:
                self.preconditioned.keep_runs(going)
        return [active[index] for index in going]


def _stacked(vectors: list[Tensor]) -> Tensor:
    """One run's vector as it is, which is the faster path; several as rows."""
    return vectors[0] if len(vectors) == 1 else torch.stack(vectors)


def _unstacked(values: Tensor, ndim: int) -> list[Tensor]:
    return [values] if values.ndim == ndim else list(values)
