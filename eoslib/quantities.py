"""What an experiment may record beside loss and sharpness, under names.

A quantity is made of the objective, the update rule, the tracker and its options, and is a function
of θ:

====================  ======================================================================
``accuracy``          share of the training examples classified correctly
``projection``        random projection of θ, for distances between runs (`RandomProjection`)
``between``           the largest sharpness on the way to the next iterate, and how far along
``effective``         effective smoothness over the step of gradient descent
``gauss-newton``      the largest eigenvalue of the Gauss-Newton matrix
``output-curvature``  mean trace of cross-entropy's Hessian by the outputs, Σ p(1 − p)
``taylor``            losses of gradient descent on the quadratic model at θ, step by step
``top-direction``     θ along the top eigenvector, from where it is at the threshold
``expected-change``   mean change of the loss over a mini-batch step, and its standard error
====================  ======================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eoslib._arguments import a_generator_seed, a_whole_number
from eoslib._names import look_up
from eoslib.eigen import EigenResult, lanczos
from eoslib.flows import RandomProjection
from eoslib.numerics import inner_products
from eoslib.objective import Objective
from eoslib.one_step import effective_smoothness, sharpness_between
from eoslib.recorder import Measurement, Schedule, at_steps, every
from eoslib.taylor import TaylorQuadratic
from eoslib.tracker import SharpnessTracker
from eoslib.update_rules import GradientDescent, UpdateRule, is_preconditioned

__all__ = ["DEPENDS_ON_RULE", "QUANTITIES", "Setting", "quantity"]

_Function = Callable[[Tensor], Tensor | float]


@dataclass(frozen=True)
class Setting:
    """What quantities are made of.

    Attributes:
        objective: the training loss.
        rule: the update rule; ``None`` for gradient flow.
        tracker: that of the training loop.
    """

    objective: Objective
    rule: UpdateRule | None
    tracker: SharpnessTracker

    def step_size(self, name: str) -> float:
        """The step size of gradient descent, for the quantity of that name.

        Raises:
            ValueError: another optimizer is at work, or the step size changes.
        """
        if not isinstance(self.rule, GradientDescent):
            raise ValueError(
                f"quantity {name!r} is defined for gradient descent with one step size"
            )
        return self.rule.lr


def _accuracy(setting: Setting) -> _Function:
    return setting.objective.accuracy


def _projection(setting: Setting, *, dimension: int = 100, seed: int = 7) -> _Function:
    return RandomProjection(setting.objective.num_parameters, dimension, seed=seed)


def _between(setting: Setting, *, rtol: float = 1e-3, resolution: float = 0.1) -> _Function:
    objective, lr = setting.objective, setting.step_size("between")

    def largest(theta: Tensor) -> Tensor:
        after = theta.sub(objective.gradient(theta), alpha=lr)
        found = sharpness_between(
            objective, theta, after, num_points=3, resolution=resolution, rtol=rtol
        )
        return torch.tensor([found.value, found.fraction], dtype=torch.float64)

    return largest


def _effective(setting: Setting, *, num_points: int = 10) -> _Function:
    objective, lr = setting.objective, setting.step_size("effective")
    return lambda theta: effective_smoothness(objective, theta, lr, num_points=num_points)


def _gauss_newton(setting: Setting, *, rtol: float = 1e-3) -> _Function:
    def largest(theta: Tensor) -> float:
        return lanczos(setting.objective.gauss_newton(theta), rtol=rtol).eigenvalue(
            allow_unconverged=True
        )

    return largest


def _output_curvature(setting: Setting) -> _Function:
    objective = setting.objective
    if objective.loss.name != "cross_entropy":
        raise ValueError(
            "output-curvature is the trace of the softmax's Hessian; "
            f"the loss here is {objective.loss.name}"
        )

    def trace(theta: Tensor) -> float:
        p = torch.softmax(objective.outputs(theta).double(), dim=1)
        return float((p * (1 - p)).sum(dim=1).mean())

    return trace


def _taylor(setting: Setting, *, num_steps: int = 50) -> _Function:
    objective, lr = setting.objective, setting.step_size("taylor")
    num_steps = a_whole_number("num_steps", num_steps)

    def losses(theta: Tensor) -> Tensor:
        model, point, values = TaylorQuadratic(objective, theta), theta, []
        for _ in range(num_steps + 1):
            value, gradient = model.value_and_gradient(point)
            values.append(float(value))
            point = point.sub(gradient, alpha=lr)
        return torch.tensor(values, dtype=torch.float64)

    return losses


def _expected_change(
    setting: Setting,
    *,
    batch_size: int,
    num_batches: int = 100,
    seed: int = 1,
) -> _Function:
    objective, lr = setting.objective, setting.step_size("expected-change")
    batch_size = a_whole_number("batch_size", batch_size, most=objective.num_examples)
    num_batches = a_whole_number("num_batches", num_batches, least=2)
    seed = a_generator_seed(seed)

    def change(theta: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)  # the same batches at every θ
        before, changes = float(objective.value(theta)), []
        for _ in range(num_batches):
            batch = torch.randperm(objective.num_examples, generator=generator)[:batch_size]
            after = theta.sub(objective.minibatch_gradient(theta, batch), alpha=lr)
            changes.append(float(objective.value(after)) - before)
        found = torch.tensor(changes, dtype=torch.float64)
        return torch.stack([found.mean(), found.std() / math.sqrt(num_batches)])

    return change


class _TopDirection:
    """θ along the top eigenvector last measured when the quantity first finds it at the threshold.

    That is the first θ at which the quantity is due and the sharpness last measured, maybe at an
    earlier θ, is at or above the threshold. It is NaN before and zero there.
    """

    def __init__(self, setting: Setting) -> None:
        if setting.rule is not None and is_preconditioned(setting.rule):
            raise ValueError(
                "quantity 'top-direction' is about the sharpness, and an adaptive optimizer's "
                "threshold is one for the preconditioned sharpness; leave it out"
            )
        self._tracker = setting.tracker
        self._threshold = math.inf if setting.rule is None else setting.rule.threshold
        self._direction: Tensor | None = None
        self._origin = 0.0

    def __call__(self, theta: Tensor) -> float:
        last = self._tracker.last
        if self._direction is None and isinstance(last, EigenResult):
            if not float(last.values[0]) >= self._threshold:
                return math.nan
            self._direction = last.vectors[:, 0].clone()
            self._origin = self._along(theta)
        return math.nan if self._direction is None else self._along(theta) - self._origin

    def _along(self, theta: Tensor) -> float:
        assert self._direction is not None
        return float(inner_products(self._direction[None, None], theta[None]))

    def state_dict(self) -> dict[str, Any]:
        return {"direction": self._direction, "origin": self._origin}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._direction, self._origin = state["direction"], state["origin"]


QUANTITIES: dict[str, Callable[..., _Function]] = {
    "accuracy": _accuracy,
    "projection": _projection,
    "between": _between,
    "effective": _effective,
    "gauss-newton": _gauss_newton,
    "output-curvature": _output_curvature,
    "taylor": _taylor,
    "top-direction": _TopDirection,
    "expected-change": _expected_change,
}

#: These ask for the update rule or the tracker, so runs of several step sizes cannot share them.
DEPENDS_ON_RULE = frozenset({"between", "effective", "taylor", "top-direction", "expected-change"})


def quantity(name: str, options: Mapping[str, Any], setting: Setting) -> Measurement:
    """The measurement of that name.

    Args:
        name: a key of `QUANTITIES`.
        options: ``every`` (an interval) or ``at`` (steps), and what the quantity takes.
        setting: what is trained, and how.

    Raises:
        ValueError: the name or an option is wrong, or the quantity asks for a step size where
            there is none.
    """
    make = look_up(QUANTITIES, name, "quantity")
    rest = {key: value for key, value in options.items() if key not in ("every", "at")}
    try:
        function = make(setting, **rest)
    except TypeError as error:
        raise ValueError(f"quantity {name!r}: {error}") from error
    return Measurement(name, function, schedule(name, options))


def schedule(name: str, options: Mapping[str, Any]) -> Schedule:
    """When a quantity is measured.

    Raises:
        ValueError: it is not said, or said twice.
    """
    if ("every" in options) == ("at" in options):
        raise ValueError(f"quantity {name!r} needs every=INTERVAL or at=STEPS, got {dict(options)}")
    return every(options["every"]) if "every" in options else at_steps(options["at"])
