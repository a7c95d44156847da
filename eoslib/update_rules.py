r"""Update rules: how a point becomes the next point. They know vectors, not networks.

Every rule knows its own *stability threshold*: the largest curvature a at which it still
converges on the quadratic ½ a x². For gradient descent :math:`x_{t+1} = (1 - \eta a) x_t`
converges iff :math:`|1 - \eta a| < 1`, that is :math:`a < 2/\eta` (Cohen et al. 2021, §2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

__all__ = ["GradientDescent", "UpdateRule"]


class UpdateRule(Protocol):
    """What the training loop needs of an optimizer."""

    @property
    def name(self) -> str:
        """Its name in settings and run records."""

    @property
    def lr(self) -> float:
        """Step size η."""

    @property
    def threshold(self) -> float:
        """Largest stable curvature on a quadratic, for the full-batch rule."""

    def init(self, theta: Tensor) -> Any:
        """State before the first step."""

    def step(self, theta: Tensor, gradient: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The next point and the next state; the arguments are left as they are."""


def checked_step_size(lr: float) -> float:
    """Return the step size as a float.

    Raises:
        ValueError: it is not a finite number above zero.
    """
    try:
        value = float(lr)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the step size must be a number, got {lr!r}") from error
    if not math.isfinite(value) or value <= 0:
        raise ValueError(
            f"the step size must be finite and above 0, got {lr!r}; "
            "a good first guess is 1/sharpness at the initial point"
        )
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
    def threshold(self) -> float:
        """2/η."""
        return 2 / self.lr

    def init(self, theta: Tensor) -> None:
        """Gradient descent has no state."""

    def step(self, theta: Tensor, gradient: Tensor, state: None) -> tuple[Tensor, None]:
        """θ − η ∇L(θ)."""
        return theta.sub(gradient, alpha=self.lr), None
