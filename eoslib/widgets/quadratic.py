"""Gradient descent on a quadratic with two curvatures, and a slider for the step size.

The front end (`quadratic.js`) computes every path itself, in Jupyter as in a page without a kernel.
Nothing but the settings travels; they stay in step with Python, which can compute the same path.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import anywidget
import numpy as np
import torch
import traitlets

from eoslib.update_rules import GradientDescent, Nesterov, Polyak, UpdateRule
from eoslib.widgets._shared import COLORS, front_end

#: Smallest and largest step size of the slider; every threshold lies between the two.
LR_RANGE = (0.01, 2.0)
#: What the sliders of λ₁ and λ₂ offer.
CURVATURE_RANGES = ((2.0, 20.0), (-2.0, 10.0))
#: The start may lie in the square [-EXTENT, EXTENT]².
EXTENT = 2.0


class QuadraticExplorer(anywidget.AnyWidget):
    r"""Contours of a quadratic, the path of the iterates, and the loss against the step.

    The loss is :math:`L(x) = \tfrac12(\lambda_1 x_1^2 + \lambda_2 x_2^2)`, in the coordinates of
    its eigenvectors. All settings are traits: change one, and the picture follows; the reader
    changes one, and it changes here.

    Args:
        curvatures: the eigenvalues λ₁ ≥ λ₂, in [2, 20] and [-2, 10].
        lr: step size η, in [0.01, 2].
        momentum: "none", "polyak" or "nesterov", each as in `eoslib.update_rules`.
        beta: momentum β, in [0, 0.99]; without effect when `momentum` is "none".
        start: the first iterate (x₁, x₂), each in [-2, 2].
        num_steps: steps shown, between 1 and 200.
        title: heading and accessible name of the figure.

    Raises:
        ValueError: a setting lies outside its range, or λ₁ < λ₂. Assigning to a trait raises too.
        traitlets.TraitError: a setting is of the wrong type.
    """

    _esm, _css = front_end("quadratic")

    title = traitlets.Unicode().tag(sync=True)
    lr = traitlets.Float().tag(sync=True)
    curvatures = traitlets.List(traitlets.Float()).tag(sync=True)
    momentum = traitlets.Unicode().tag(sync=True)
    beta = traitlets.Float().tag(sync=True)
    start = traitlets.List(traitlets.Float()).tag(sync=True)
    num_steps = traitlets.Int(40).tag(sync=True)
    # what the front end has to know and nobody changes
    lr_range = traitlets.List(list(LR_RANGE), read_only=True).tag(sync=True)
    curvature_ranges = traitlets.List([list(r) for r in CURVATURE_RANGES], read_only=True).tag(
        sync=True
    )
    extent = traitlets.Float(EXTENT, read_only=True).tag(sync=True)
    colors = traitlets.Dict(COLORS, read_only=True).tag(sync=True)

    def __init__(
        self,
        curvatures: tuple[float, float] = (10.0, 1.0),
        *,
        lr: float = 0.05,
        momentum: Literal["none", "polyak", "nesterov"] = "none",
        beta: float = 0.9,
        start: tuple[float, float] = (1.2, 1.8),
        num_steps: int = 40,
        title: str = "Gradient descent on a quadratic",
    ) -> None:
        super().__init__(
            curvatures=list(curvatures),
            lr=lr,
            momentum=momentum,
            beta=beta,
            start=list(start),
            num_steps=num_steps,
            title=title,
        )

    def __repr__(self) -> str:
        """Say what is shown; no memory address, so that outputs stay the same between builds."""
        sharp, flat = self.curvatures
        momentum = "" if self.momentum == "none" else f", {self.momentum} β {self.beta:g}"
        return f"QuadraticExplorer(λ₁ {sharp:g}, λ₂ {flat:g}, η {self.lr:g}{momentum})"

    @property
    def rule(self) -> UpdateRule:
        """The update rule that is shown; `rule.threshold` is its stability threshold."""
        if self.momentum == "polyak":
            return Polyak(self.lr, self.beta)
        if self.momentum == "nesterov":
            return Nesterov(self.lr, self.beta)
        return GradientDescent(self.lr)

    def iterates(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The path that is shown, ``(num_steps + 1, 2)``, computed by `rule` in float64."""
        curvatures = torch.tensor(self.curvatures, dtype=torch.float64)
        point = torch.tensor(self.start, dtype=torch.float64)
        rule, path = self.rule, [point]
        state = rule.init(point)
        for _ in range(self.num_steps):
            point, state = rule.step(point, curvatures * point, state)
            path.append(point)
        return torch.stack(path).numpy()

    @traitlets.validate("lr")
    def _check_lr(self, proposal: Any) -> float:
        return _within("the step size", proposal.value, *LR_RANGE)

    @traitlets.validate("curvatures")
    def _check_curvatures(self, proposal: Any) -> list[float]:
        sharp, flat = _pair("curvatures", proposal.value)
        _within("λ₁", sharp, *CURVATURE_RANGES[0])
        _within("λ₂", flat, *CURVATURE_RANGES[1])
        if flat > sharp:
            raise ValueError(f"λ₁ is the larger curvature, got λ₁ = {sharp:g} < λ₂ = {flat:g}")
        return [sharp, flat]

    @traitlets.validate("momentum")
    def _check_momentum(self, proposal: Any) -> str:
        known = ("none", "polyak", "nesterov")
        if proposal.value not in known:
            raise ValueError(f"momentum must be one of {known}, got {proposal.value!r}")
        return str(proposal.value)

    @traitlets.validate("beta")
    def _check_beta(self, proposal: Any) -> float:
        return _within("the momentum β", proposal.value, 0, 0.99)

    @traitlets.validate("start")
    def _check_start(self, proposal: Any) -> list[float]:
        return [_within("the start", x, -EXTENT, EXTENT) for x in _pair("start", proposal.value)]

    @traitlets.validate("num_steps")
    def _check_num_steps(self, proposal: Any) -> int:
        return int(_within("num_steps", proposal.value, 1, 200))


def _within(name: str, value: float, low: float, high: float) -> float:
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value!r}")
    return value


def _pair(name: str, values: list[float]) -> list[float]:
    if len(values) != 2:
        raise ValueError(f"{name} must be two numbers, got {values!r}")
    return values
