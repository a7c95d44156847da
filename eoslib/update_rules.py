r"""Update rules: how a point becomes the next point. They know vectors, not networks.

Every rule knows its own *stability threshold*: the largest curvature a at which it still
converges on the quadratic ½ a x². For gradient descent :math:`x_{t+1} = (1 - \eta a) x_t`
converges iff :math:`|1 - \eta a| < 1`, that is :math:`a < 2/\eta` (Cohen et al. 2021, §2).

With momentum the pair (x_t, x_{t-1}) is multiplied by a 2 × 2 matrix. With z = ηa its eigenvalues
solve r² − (1 + β − z) r + β = 0 (Polyak) or r² − (1 + β)(1 − z) r + β(1 − z) = 0 (Nesterov). As z
grows, the first to leave the unit circle is r = −1, a flip of period 2 as for gradient descent:
at z = 2 + 2β (Polyak) and at z = (2 + 2β)/(1 + 2β) (Nesterov).

RMSProp and Adam divide each coordinate of their step by a number of its own, the diagonal of a
*preconditioner* D that changes from step to step. With D held fixed they are gradient descent, or
averaged gradients, in the coordinates D^{1/2} θ, where the Hessian is D^{-1/2} H D^{-1/2}. So their
threshold is one for the *preconditioned sharpness*, the largest eigenvalue of D⁻¹H (Cohen et al.
2022, arXiv:2207.14484).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from eoslib._arguments import a_number, a_whole_number, shown
from eoslib.eigen import EigenStatus

if TYPE_CHECKING:
    from eoslib.tracker import SharpnessTracker

__all__ = [
    "Adam",
    "GradientDescent",
    "InverseSharpness",
    "Nesterov",
    "NoStepError",
    "Polyak",
    "Preconditioned",
    "RMSProp",
    "RuleWithStepSize",
    "StepSizeChanges",
    "UpdateRule",
    "is_preconditioned",
    "preconditioner_of",
]


class NoStepError(ValueError):
    """A rule has no next point from here; `eoslib.train` ends the run as "stopped"."""


class UpdateRule(Protocol):
    """What the training loop needs of an optimizer.

    One that has a method ``preconditioner`` too is taken for `Preconditioned`.
    """

    @property
    def name(self) -> str:
        """Its name in settings and run records."""

    @property
    def lr(self) -> float:
        """Step size η."""

    @property
    def settings(self) -> dict[str, Any]:
        """Its numbers, ``lr`` among them, for the run record."""

    @property
    def threshold(self) -> float:
        """Largest stable curvature on a quadratic, for the full-batch rule.

        For a rule that is `Preconditioned`, the largest stable eigenvalue of D⁻¹H.
        """

    def init(self, theta: Tensor) -> Any:
        """State before the first step."""

    def step(self, theta: Tensor, gradient: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The next point and the next state; the arguments are left as they are."""


@runtime_checkable
class Preconditioned(Protocol):
    """What an update rule has besides if it divides each coordinate of its step by its own number.

    `eoslib.train` records the preconditioned sharpness of such a rule beside the sharpness.
    """

    def preconditioner(self, gradient: Tensor, state: Any) -> Tensor:
        """The diagonal of D in the step from here, all positive, of the gradient's shape."""


def is_preconditioned(rule: UpdateRule) -> bool:
    """Whether the rule, or the one whose step size changes, is `Preconditioned`."""
    return isinstance(rule.rule if isinstance(rule, StepSizeChanges) else rule, Preconditioned)


def preconditioner_of(rule: UpdateRule, gradient: Tensor, state: Any) -> Tensor:
    """The diagonal that the rule's step from here divides by; ones where it divides by nothing.

    Raises:
        ValueError: a rule's ``preconditioner`` gave something else.
    """
    if isinstance(rule, StepSizeChanges):
        rule, (_, state) = rule.rule, state
    if not isinstance(rule, Preconditioned):
        return torch.ones_like(gradient)
    diagonal: object = rule.preconditioner(gradient, state)
    if not isinstance(diagonal, Tensor) or diagonal.shape != gradient.shape:
        raise ValueError(
            f"the preconditioner of {rule.name!r} must give a diagonal of the gradient's shape "
            f"{tuple(gradient.shape)}, got {shown(diagonal)}"
        )
    return diagonal


def checked_step_size(lr: float, guess: str = "1/sharpness at the initial point") -> float:
    """Return the step size as a float; ``guess`` is what an error recommends.

    Raises:
        ValueError: it is not a finite number above zero, or beyond float32.
    """
    value = a_number("the step size", lr)
    if not math.isfinite(value) or value <= 0:
        raise ValueError(
            f"the step size must be finite and above 0, got {lr!r}; a good first guess is {guess}"
        )
    if value > 3.4e38:
        raise ValueError(f"the step size must be a number that float32 has, got {lr!r}")
    return value


@dataclass(frozen=True)
class GradientDescent:
    r"""Gradient descent, :math:`\theta_{t+1} = \theta_t - \eta \nabla L(\theta_t)`.

    Attributes:
        lr: step size η > 0.

    Raises:
        ValueError: the step size is not a finite number above zero.
    """

    lr: float

    def __post_init__(self) -> None:
        """Refuse a step size that is no step size."""
        object.__setattr__(self, "lr", checked_step_size(self.lr))

    @property
    def name(self) -> str:
        """``"gd"``."""
        return "gd"

    @property
    def settings(self) -> dict[str, float]:
        """The step size."""
        return {"lr": self.lr}

    @property
    def threshold(self) -> float:
        """2/η."""
        return 2 / self.lr

    def init(self, theta: Tensor) -> None:
        """Gradient descent has no state."""

    def step(self, theta: Tensor, gradient: Tensor, state: None) -> tuple[Tensor, None]:
        """θ − η ∇L(θ)."""
        return theta.sub(gradient, alpha=self.lr), None


@dataclass(frozen=True)
class _Momentum:
    """What Polyak's and Nesterov's rules share: a velocity v ← βv + ∇L(θ), zero at first.

    Attributes:
        lr: step size η > 0.
        beta: momentum β in [0, 1).

    Raises:
        ValueError: the step size is not a finite number above zero, or β is not in [0, 1).
    """

    lr: float
    beta: float

    def __post_init__(self) -> None:
        """Refuse numbers that are no step size or no momentum."""
        object.__setattr__(self, "lr", checked_step_size(self.lr))
        object.__setattr__(self, "beta", a_number("the momentum", self.beta))
        if not 0 <= self.beta < 1:
            raise ValueError(f"the momentum must lie in [0, 1), got {self.beta!r}")

    @property
    def settings(self) -> dict[str, float]:
        """Step size and momentum."""
        return {"lr": self.lr, "beta": self.beta}

    def init(self, theta: Tensor) -> Tensor:
        """The velocity before the first step, zero."""
        return theta.new_zeros(theta.shape)


@dataclass(frozen=True)
class Polyak(_Momentum):
    r"""Gradient descent with Polyak momentum ("heavy ball"), as PyTorch's ``SGD`` computes it.

    .. math:: v_{t+1} = \beta v_t + \nabla L(\theta_t), \qquad
              \theta_{t+1} = \theta_t - \eta v_{t+1}
    """

    @property
    def name(self) -> str:
        """``"polyak"``."""
        return "polyak"

    @property
    def threshold(self) -> float:
        """(2 + 2β)/η, above that of gradient descent."""
        return (2 + 2 * self.beta) / self.lr

    def step(self, theta: Tensor, gradient: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next point and velocity."""
        velocity = state.mul(self.beta).add_(gradient)
        return theta.sub(velocity, alpha=self.lr), velocity


@dataclass(frozen=True)
class Nesterov(_Momentum):
    r"""Gradient descent with Nesterov momentum, as PyTorch's ``SGD`` computes it.

    .. math:: v_{t+1} = \beta v_t + \nabla L(\theta_t), \qquad
              \theta_{t+1} = \theta_t - \eta (\nabla L(\theta_t) + \beta v_{t+1})
    """

    @property
    def name(self) -> str:
        """``"nesterov"``."""
        return "nesterov"

    @property
    def threshold(self) -> float:
        """(2 + 2β)/((1 + 2β) η), below that of gradient descent."""
        return (2 + 2 * self.beta) / ((1 + 2 * self.beta) * self.lr)

    def step(self, theta: Tensor, gradient: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next point and velocity."""
        velocity = state.mul(self.beta).add_(gradient)
        return theta.sub(gradient.add(velocity, alpha=self.beta), alpha=self.lr), velocity


class _Adaptive:
    """What RMSProp and Adam share: averages s ← β₂s + (1 − β₂)∇L(θ)² of the squared gradient."""

    lr: float
    beta2: float
    epsilon: float
    _averages: ClassVar[tuple[str, ...]] = ("beta2",)

    def __post_init__(self) -> None:
        """Refuse numbers that are no step size, no average's and no epsilon."""
        object.__setattr__(self, "lr", checked_step_size(self.lr, "0.001"))
        for name in (*self._averages, "epsilon"):
            object.__setattr__(self, name, a_number(name, getattr(self, name)))
        for name in self._averages:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)!r}")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be finite and above 0, got {self.epsilon!r}")

    @property
    def settings(self) -> dict[str, float]:
        """Step size, averages and epsilon."""
        return {name: getattr(self, name) for name in ("lr", *self._averages, "epsilon")}

    def _squares(self, gradient: Tensor, squares: Tensor) -> Tensor:
        return squares.mul(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)


@dataclass(frozen=True)
class RMSProp(_Adaptive):
    r"""Gradient descent divided by the root mean square of recent gradients, as in PyTorch.

    .. math:: s_{t+1} = \beta_2 s_t + (1 - \beta_2) \nabla L(\theta_t)^2, \qquad
              D = \sqrt{s_{t+1}} + \epsilon, \qquad
              \theta_{t+1} = \theta_t - \eta D^{-1} \nabla L(\theta_t)

    squares, roots and quotients being taken coordinate by coordinate. (Tieleman & Hinton 2012;
    PyTorch calls :math:`\beta_2` ``alpha``.)

    Attributes:
        lr: step size η > 0.
        beta2: β₂ in [0, 1).
        epsilon: ε > 0.

    Raises:
        ValueError: the step size or ε is not a finite number above zero, or β₂ is not in [0, 1).
    """

    lr: float
    beta2: float = 0.99
    epsilon: float = 1e-8

    @property
    def name(self) -> str:
        """``"rmsprop"``."""
        return "rmsprop"

    @property
    def threshold(self) -> float:
        """2/η, for the preconditioned sharpness."""
        return 2 / self.lr

    def init(self, theta: Tensor) -> Tensor:
        """The averaged squares before the first step, zero."""
        return theta.new_zeros(theta.shape)

    def preconditioner(self, gradient: Tensor, state: Tensor) -> Tensor:
        """√s + ε, with this gradient's squares in s already."""
        return self._squares(gradient, state).sqrt_().add_(self.epsilon)

    def step(self, theta: Tensor, gradient: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next point and averaged squares."""
        scale = self.preconditioner(gradient, state)
        return theta.addcdiv(gradient, scale, value=-self.lr), self._squares(gradient, state)


@dataclass(frozen=True)
class Adam(_Adaptive):
    r"""Adam: averaged gradients divided by the root mean square of recent ones, as in PyTorch.

    .. math:: m_t = \beta_1 m_{t-1} + (1 - \beta_1) \nabla L(\theta_{t-1}), \qquad
              s_t = \beta_2 s_{t-1} + (1 - \beta_2) \nabla L(\theta_{t-1})^2,

    .. math:: D_t = (1 - \beta_1^t) \left(\sqrt{s_t / (1 - \beta_2^t)} + \epsilon\right), \qquad
              \theta_t = \theta_{t-1} - \eta D_t^{-1} m_t

    The corrections for the averages' beginning at zero are part of D. (Kingma & Ba 2015; D as in
    Cohen et al. 2022.)

    Attributes:
        lr: step size η > 0.
        beta1: β₁ in [0, 1).
        beta2: β₂ in [0, 1).
        epsilon: ε > 0.

    Raises:
        ValueError: the step size or ε is not a finite number above zero, or a β is not in [0, 1).
    """

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    _averages: ClassVar[tuple[str, ...]] = ("beta1", "beta2")

    @property
    def name(self) -> str:
        """``"adam"``."""
        return "adam"

    @property
    def threshold(self) -> float:
        """(2 + 2β₁)/((1 − β₁) η), for the preconditioned sharpness: 38/η for β₁ = 0.9."""
        return (2 + 2 * self.beta1) / ((1 - self.beta1) * self.lr)

    def init(self, theta: Tensor) -> tuple[int, Tensor, Tensor]:
        """No step done, and both averages zero."""
        return 0, theta.new_zeros(theta.shape), theta.new_zeros(theta.shape)

    def preconditioner(self, gradient: Tensor, state: tuple[int, Tensor, Tensor]) -> Tensor:
        """D of the step from here, with this gradient's squares in s already."""
        count, _, squares = state
        root = self._squares(gradient, squares).div_(1 - self.beta2 ** (count + 1)).sqrt_()
        return root.add_(self.epsilon).mul_(1 - self.beta1 ** (count + 1))

    def step(
        self, theta: Tensor, gradient: Tensor, state: tuple[int, Tensor, Tensor]
    ) -> tuple[Tensor, tuple[int, Tensor, Tensor]]:
        """The next point, count and averages."""
        count, mean, squares = state
        mean = mean.mul(self.beta1).add_(gradient, alpha=1 - self.beta1)
        scale = self.preconditioner(gradient, state)
        after = (count + 1, mean, self._squares(gradient, squares))
        return theta.addcdiv(mean, scale, value=-self.lr), after


#: The rules whose step size is a number of their own, and may change.
RuleWithStepSize = GradientDescent | Polyak | Nesterov | RMSProp | Adam


class StepSizeChanges:
    """Another rule whose step size changes at given steps.

    Attributes:
        rule: the rule before the first change.
        changes: pairs (t, η), t increasing: from the update of θ_t on, the step size is η.

    ``lr`` and ``threshold`` are those before the first change.

    Raises:
        ValueError: the rule is another, the steps are none or do not increase, or a step size is
            not a finite number above zero.
    """

    def __init__(self, rule: RuleWithStepSize, changes: Sequence[tuple[int, float]]) -> None:
        """Make a rule for every stretch between two changes."""
        self.rule = rule
        if not isinstance(rule, RuleWithStepSize):
            raise ValueError(
                "the rule must be GradientDescent, Polyak, Nesterov, RMSProp or Adam, got "
                f"{shown(rule)}"
            )
        if not isinstance(changes, Sequence) or any(
            not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2
            for pair in changes
        ):
            raise ValueError(
                f"expected a list of pairs (step, step size), got {shown(changes)}; for instance "
                "[(1000, 0.02)]"
            )
        self.changes = [
            (a_whole_number("the step of a change", step, least=0), checked_step_size(lr))
            for step, lr in changes
        ]
        steps = [-1, *(step for step, _ in self.changes)]
        if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
            raise ValueError(f"the steps of step-size changes must increase, got {steps[1:]}")
        self._rules = [rule, *(replace(rule, lr=lr) for _, lr in self.changes)]

    @property
    def name(self) -> str:
        """That of the rule."""
        return self.rule.name

    @property
    def lr(self) -> float:
        """The first step size."""
        return self.rule.lr

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the rule, and the changes."""
        return {**self.rule.settings, "lr_changes": [list(change) for change in self.changes]}

    @property
    def threshold(self) -> float:
        """That of the first step size."""
        return self.rule.threshold

    def init(self, theta: Tensor) -> tuple[int, Any]:
        """No step done, and the rule's own state."""
        return 0, self.rule.init(theta)

    def step(self, theta: Tensor, gradient: Tensor, state: tuple[int, Any]) -> tuple[Tensor, Any]:
        """The next point, with the step size of the time."""
        count, inner = state
        rule = self._rules[sum(step <= count for step, _ in self.changes)]
        point, inner = rule.step(theta, gradient, inner)
        return point, (count + 1, inner)


class InverseSharpness:
    """Gradient descent with η = 1/λ₁, the sharpness last measured; half the threshold at all times.

    Attributes:
        tracker: whose last measurement counts: that of the training loop, which measures at every
            step if the rule is to be followed to the letter.

    It has no step size of its own: ``lr`` is NaN, and so is ``threshold``, which is 2λ₁ throughout.
    Where the sharpness was not found, or is not above zero, there is no step, and the run ends.
    """

    name = "inverse-sharpness"
    lr = math.nan
    threshold = math.nan

    def __init__(self, tracker: SharpnessTracker) -> None:
        """Follow a tracker.

        Raises:
            ValueError: it is none.
        """
        if not hasattr(tracker, "last"):
            raise ValueError(f"expected a SharpnessTracker(objective), got {shown(tracker)}")
        self.tracker = tracker

    @property
    def settings(self) -> dict[str, Any]:
        """A step size of NaN."""
        return {"lr": self.lr}

    def init(self, theta: Tensor) -> None:
        """It has no state but the tracker's."""

    def step(self, theta: Tensor, gradient: Tensor, state: None) -> tuple[Tensor, None]:
        """θ − ∇L(θ)/λ₁.

        Raises:
            ValueError: nothing was measured, or several runs share the tracker.
            NoStepError: the sharpness was not found, or is not positive.
        """
        last = self.tracker.last
        if last is None or isinstance(last, list):
            raise ValueError("the rule η = 1/λ₁ needs a tracker of one run that has measured")
        sharpness = float(last.values[0])
        error = float(last.error_estimates[0])
        if last.status is not EigenStatus.CONVERGED and not (
            error <= self.tracker.settings["rtol"] * abs(sharpness)  # only further ones are missing
        ):
            # What is at hand is too small, and its step too large.
            raise NoStepError(f"the rule η = 1/λ₁ needs the sharpness, but: {last.status.value}")
        if not sharpness > 0:
            raise NoStepError(f"the rule η = 1/λ₁ has no step size at a sharpness of {sharpness:g}")
        return theta.sub(gradient, alpha=1 / sharpness), None
