"""What is recorded along a trajectory, and when: schedules, measurements, stop rules, the recorder.

Discrete training (`eoslib.train`) and gradient flow (`eoslib.flows`) record alike: a series entry
at step t belongs to θ_t, before the update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eoslib._arguments import a_function, a_number, a_whole_number, shown
from eoslib.checkpoint import Checkpoint
from eoslib.numerics import device_name, hardware_stamp
from eoslib.objective import Objective
from eoslib.runs import Outcome, Run, Series, plain_json
from eoslib.taylor import TaylorQuadratic

__all__ = [
    "Measurement",
    "Recorder",
    "Schedule",
    "Snapshot",
    "StopRule",
    "accuracy_above",
    "at_steps",
    "every",
    "log_spaced",
    "loss_below",
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
    interval = a_whole_number("an interval of steps", interval)

    def due(step: int) -> bool:
        count, rest = divmod(step, interval)
        return rest == (count % 2 if interval % 2 == 0 else 0)

    return due


def at_steps(steps: Iterable[int]) -> Schedule:
    """Measure at exactly these steps.

    Raises:
        ValueError: they are no whole numbers.
    """
    given: object = steps
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise ValueError(f"expected a list of steps, got {shown(given)}; for instance [0, 10, 100]")
    return frozenset(a_whole_number("a step", step, least=0) for step in steps).__contains__


def log_spaced(per_decade: float = 20, last: float = 10**7) -> Schedule:
    """Measure at step 0 and at about ``per_decade`` steps in every factor of ten up to ``last``."""
    per_decade, last = a_number("per_decade", per_decade), a_number("last", last)
    if not (per_decade > 0 and 1 <= last < np.inf):
        raise ValueError(f"need per_decade > 0 and last ≥ 1, got {per_decade} and {last}")
    exponents = np.arange(0, np.log10(last) + 1e-9, 1 / per_decade)
    return at_steps([0, *np.unique(np.rint(10**exponents).astype(int)).tolist()])


@dataclass(frozen=True)
class Measurement:
    """A quantity to record: any function of θ.

    Attributes:
        name: its name among the run's series.
        function: maps θ, ``(P,)``, to a number or a vector ``(d,)``. One that remembers something
            from call to call has the methods ``state_dict`` and ``load_state_dict``, as a module
            has, so that checkpoints can hold it.
        schedule: at which steps.

    Raises:
        ValueError: the name is no text, or the function or the schedule cannot be called.
    """

    name: str
    function: Callable[[Tensor], Tensor | float]
    schedule: Schedule

    def __post_init__(self) -> None:
        """Refuse what would fail at the first step that is measured."""
        if not isinstance(self.name, str):
            raise ValueError(f"a measurement's name must be a text, got {shown(self.name)}")
        a_function(f"the function of {self.name!r}", self.function, "it is called with theta")
        a_function(f"the schedule of {self.name!r}", self.schedule, "for instance every(5)")


def state_of(measurements: Iterable[Measurement]) -> dict[str, Any]:
    """What the functions of measurements remember, by name, for a checkpoint."""
    return {
        m.name: m.function.state_dict() for m in measurements if hasattr(m.function, "state_dict")
    }


def restore(measurements: Iterable[Measurement], state: Mapping[str, Any]) -> None:
    """Give the functions of measurements back what they remembered."""
    for measurement in measurements:
        if hasattr(measurement.function, "load_state_dict"):
            measurement.function.load_state_dict(state[measurement.name])


@dataclass(frozen=True)
class Snapshot:
    """What stop rules and progress reports see.

    Attributes:
        step: the step whose measurements were just taken.
        num_steps: the step at which the run would end.
        loss: L(θ_t); with mini-batches, the last one measured.
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
    """Stop when the loss falls below ``goal``.

    Raises:
        ValueError: the goal is no number.
    """
    goal = a_number("the goal", goal, nan=False)
    return lambda now: f"loss {now.loss:.3g} < {goal:g}" if now.loss < goal else None


def accuracy_above(objective: Objective, goal: float, *, interval: int = 10) -> StopRule:
    """Stop when the training accuracy exceeds ``goal`` (strictly); looked at every ``interval``.

    Raises:
        ValueError: the goal is no number, or the interval is not a positive integer.
    """
    goal, interval = a_number("the goal", goal, nan=False), a_whole_number("the interval", interval)

    def rule(now: Snapshot) -> str | None:
        if now.step % interval:
            return None
        share = objective.accuracy(now.theta)
        return f"training accuracy {share:.2%} > {100 * goal:.4g}%" if share > goal else None

    return rule


def check_recorded(
    sharpness: object,
    measurements: object,
    stop: object,
    report: object,
    settings: object,
    checkpoint: object,
) -> None:
    """Refuse arguments of a training or a flow that are of another type.

    Raises:
        ValueError: one is.
    """
    if not (sharpness is None or hasattr(sharpness, "keep_runs")):
        raise ValueError(f"sharpness must be a SharpnessTracker(objective), got {shown(sharpness)}")
    for name, given, example in (
        ("measurements", measurements, "[Measurement(name, function, every(5))]"),
        ("stop", stop, "[loss_below(0.1)]"),
    ):
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise ValueError(f"{name} must be a list, got {shown(given)}; for instance {example}")
        for one in given:
            if not (isinstance(one, Measurement) if name == "measurements" else callable(one)):
                raise ValueError(f"{name} must be a list like {example}, but holds {shown(one)}")
    if report is not None:
        a_function("report", report, "it is called with a Snapshot after every step")
    if not isinstance(settings, Mapping | None):
        raise ValueError(f"settings must be a dictionary, got {shown(settings)}")
    if not isinstance(checkpoint, Checkpoint | None):
        raise ValueError(
            f'checkpoint must be Checkpoint("run.checkpoint"), got {shown(checkpoint)}'
        )


class Recorder:
    """Collects series along a trajectory and turns them into a `Run`."""

    def __init__(
        self,
        objective: Objective | TaylorQuadratic,
        given: Mapping[str, Any],
        method: Mapping[str, Any],
        *,
        num_runs: int = 1,
        preconditioned: bool = False,
    ) -> None:
        """Begin a record.

        Args:
            objective: what is trained.
            given: the caller's settings (data set, architecture, seed, …).
            method: the settings of the method; these win.
            num_runs: how many runs share the computation.
            preconditioned: whether the method's threshold is for the preconditioned sharpness.

        Raises:
            TypeError: the settings hold something that JSON has no place for.
        """
        self._objective, self._num_runs = objective, num_runs
        # They exist in every run, even one whose first loss is not finite.
        names = ["loss", "sharpness", *(["preconditioned_sharpness"] if preconditioned else [])]
        self._steps: dict[str, list[int]] = {name: [] for name in names}
        self._values: dict[str, list[Any]] = {name: [] for name in names}
        self._started = time.perf_counter()
        self._gradients, self._products = objective.num_gradients, objective.num_products
        self._resumed: list[dict[str, Any]] = []
        self._settings = plain_json({**given, **method}, "settings") | {
            "loss": objective.loss.name,
            "num_parameters": objective.num_parameters,
            "num_examples": objective.num_examples,
            "dtype": str(objective.dtype).removeprefix("torch."),
        }

    def add(self, name: str, step: int, value: Any) -> None:
        """Record a number or a vector ``(d,)`` under that name.

        Raises:
            ValueError: its shape is another than before.
        """
        # A copy: the function measured may reuse its tensor.
        if isinstance(value, Tensor):
            value = value.detach().resolve_conj().cpu()
            value = (value if value.is_complex() else value.double()).numpy()
        if isinstance(value, np.ndarray | np.generic) and np.iscomplexobj(value):
            raise ValueError(
                f"measurement {name!r} gave complex numbers at step {step}, expected a number or a "
                "vector; give real and imaginary part as a vector"
            )
        try:
            plain = np.array(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"measurement {name!r} gave {shown(value)} at step {step}, expected a number or a "
                f"vector ({error})"
            ) from error
        if value is None:  # NumPy's NaN
            raise ValueError(
                f"measurement {name!r} gave None at step {step}, expected a number or a vector; "
                "has its function no return?"
            )
        known = self._values.setdefault(name, [])
        if plain.ndim > 1 or (known and known[0].shape != plain.shape):
            was = f"after {known[0].shape} before" if known else "expected a number or a vector"
            raise ValueError(f"measurement {name!r} gave shape {plain.shape} at step {step}, {was}")
        self._steps.setdefault(name, []).append(step)
        known.append(plain)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the run will carry; a copy."""
        return dict(self._settings)

    @property
    def num_gradients(self) -> float:
        """Gradients spent since the record began."""
        return self._objective.num_gradients - self._gradients

    @property
    def num_products(self) -> int:
        """Hessian-vector products spent since the record began."""
        return self._objective.num_products - self._products

    def state_dict(self) -> dict[str, Any]:
        """The record so far, for a checkpoint."""
        return {
            "steps": {name: torch.tensor(steps) for name, steps in self._steps.items()},
            "values": {
                name: torch.from_numpy(np.array(values)) for name, values in self._values.items()
            },
            "seconds": time.perf_counter() - self._started,
            "num_gradients": self.num_gradients,
            "num_products": self.num_products,
            "resumed": list(self._resumed),
            "stamp": hardware_stamp(self._objective.device),
        }

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Go on with the record of a checkpoint made at the beginning of a step."""
        self._steps = {name: steps.tolist() for name, steps in state["steps"].items()}
        self._values = {name: list(values.numpy()) for name, values in state["values"].items()}
        self._started = time.perf_counter() - state["seconds"]
        self._gradients = self._objective.num_gradients - state["num_gradients"]
        self._products = self._objective.num_products - state["num_products"]
        date = hardware_stamp(self._objective.device)["date"]
        # The stamp of the whole run is that of its end; what computed it so far is kept here.
        stamp = state["stamp"]
        before = {"device_before": device_name(stamp), "torch_before": stamp["torch"]}
        self._resumed = [*state["resumed"], {"step": step, "date": date, **before}]

    def snapshot(self, outcome: Outcome | None = None) -> Run:
        """The run so far, or as it ended."""
        series = {
            name: Series(np.array(steps), np.array(self._values[name], dtype=np.float64))
            for name, steps in self._steps.items()
        }
        last = self._steps["loss"][-1] if self._steps["loss"] else 0
        provenance: dict[str, Any] = hardware_stamp(self._objective.device) | {
            "seconds": round(time.perf_counter() - self._started, 3),
            "num_gradients": self.num_gradients,
            "num_products": self.num_products,
            "runs_together": self._num_runs,
            "unconverged_measurements": sum(
                int(np.isnan(series[name].values).sum())
                for name in ("sharpness", "preconditioned_sharpness")
                if name in series
            ),
        }
        if self._resumed:
            provenance["resumed"] = list(self._resumed)
        return Run(
            settings=self.settings,
            series=series,
            outcome=outcome or Outcome("stopped", last, "still running"),
            provenance=provenance,
        )
