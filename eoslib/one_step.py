r"""What two iterates, or one step of gradient descent, say about curvature.

For g = ∇L(θ), the step Δ = −ηg and its unit direction u, Taylor's theorem with its remainder gives

.. math:: \frac{L(\theta + \Delta) - L(\theta)}{\eta \lVert g \rVert^2}
          = -1 + \frac{\eta}{2} \int_0^1 2(1-s)\, u^\top \nabla^2 L(\theta + s\Delta)\, u \; ds

for *any* smooth loss: the step lowers the loss exactly when the curvature averaged along it, with
the weight 2(1 − s), is below 2/η. That average is seen by two forward passes, no Hessian needed.
At the edge of stability the loss neither falls nor rises much from step to step, so it is near 2/η.
The functions here measure it, its relatives, and the sharpness that bounds them all. They are not
the sharpness: each averages the curvature along one direction only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eoslib._arguments import a_number, a_whole_number, an_objective
from eoslib.eigen import lanczos

if TYPE_CHECKING:
    from eoslib.objective import Objective

__all__ = [
    "CriticalSharpness",
    "SharpnessBetween",
    "critical_sharpness",
    "directional_smoothness",
    "effective_smoothness",
    "relative_progress",
    "sharpness_between",
]

#: A change of the loss counts when it is so many rounding units of the loss: two digits are left.
_ROUNDING_UNITS = 100
#: The search for a step size that raises the loss ends where θ has moved so many times its norm.
_FAR = 2.0**40


@dataclass(frozen=True)
class SharpnessBetween:
    """The sharpness along the segment between two points.

    Attributes:
        value: the largest sharpness found, in loss / parameter².
        fraction: where on the segment: 0 at its start, 1 at its end.
        fractions: ``(m,)`` float64, ascending: all fractions at which the sharpness was computed.
        values: ``(m,)`` float64, the sharpness there.
        num_products: Hessian-vector products spent.
    """

    value: float
    fraction: float
    fractions: Tensor
    values: Tensor
    num_products: int


def sharpness_between(
    objective: Objective,
    start: Tensor,
    end: Tensor,
    *,
    num_points: int = 5,
    resolution: float = 0.02,
    rtol: float = 1e-4,
) -> SharpnessBetween:
    r"""The largest sharpness on the segment between two points, such as two iterates.

    .. math:: \max_{s \in [0, 1]} \lambda_{\max}\bigl(\nabla^2 L((1-s)\,\theta + s\,\theta')\bigr)

    This, not the sharpness at the iterates, is what a descent lemma needs to be below 2/η.

    The sharpness is computed at ``num_points`` evenly spaced points, ends included, and then
    halfway between the sharpest point and its neighbours, again and again until these are
    ``resolution`` apart. The result is a lower bound of the maximum over the whole segment: a peak
    that rises and falls between two points of the first pass, neither of them the sharpest, is not
    seen. If the sharpness has one peak between the neighbours of the sharpest point, that peak lies
    within ``resolution`` of the fraction returned.

    Args:
        objective: P parameters.
        start: θ, ``(P,)``.
        end: θ′, ``(P,)``.
        num_points: points of the first pass, at least 2.
        resolution: spacing of the points around the sharpest one, as a fraction of the segment.
        rtol: passed on to `lanczos`.

    Raises:
        ValueError: a point is not finite or has the wrong shape, the points coincide, or an
            argument is out of range.
        UnconvergedError: the sharpness at some point was not found to ``rtol``, or products there
            were NaN or infinite.

    Cost: a Lanczos solve at each of about num_points + 2 log₂(1/(num_points · resolution)) points.
    Each begins from a random vector: one that began from the neighbour's top eigenvector could
    follow it past a crossing.

    Source: Cohen et al. (2021) look between the iterates of networks with batch normalisation; the
    search is ours.
    """
    start, end = _points(objective, start, end)
    _distance(start, end)
    num_points = a_whole_number("num_points", num_points, least=2)
    if not 0 < a_number("resolution", resolution) <= 1:
        raise ValueError(f"resolution must lie in (0, 1], got {resolution}")
    sharpness: dict[float, float] = {}
    products = 0

    def measure(fraction: float) -> None:
        nonlocal products
        result = lanczos(objective.hessian(torch.lerp(start, end, fraction)), rtol=rtol)
        sharpness[fraction] = result.eigenvalue()
        products += result.num_products

    for index in range(num_points):
        measure(index / (num_points - 1))
    spacing = 1 / (num_points - 1)
    sharpest = max(sharpness, key=sharpness.__getitem__)
    while spacing > resolution:
        spacing /= 2
        for fraction in (sharpest - spacing, sharpest + spacing):
            if 0 <= fraction <= 1:
                measure(fraction)
        sharpest = max(sharpness, key=sharpness.__getitem__)
    fractions = sorted(sharpness)
    return SharpnessBetween(
        value=sharpness[sharpest],
        fraction=sharpest,
        fractions=torch.tensor(fractions, dtype=torch.float64),
        values=torch.tensor([sharpness[fraction] for fraction in fractions], dtype=torch.float64),
        num_products=products,
    )


def directional_smoothness(objective: Objective, start: Tensor, end: Tensor) -> float:
    r"""The average curvature along the segment between two points, from two gradients.

    .. math:: \frac{\langle \nabla L(\theta') - \nabla L(\theta),\, \theta' - \theta \rangle}
                   {\lVert \theta' - \theta \rVert^2}
              = \int_0^1 u^\top \nabla^2 L(\theta + s(\theta' - \theta))\, u \; ds,
              \qquad u = \frac{\theta' - \theta}{\lVert \theta' - \theta \rVert}

    It is at most the largest sharpness on the segment. Between two iterates of gradient descent it
    is ⟨g, g − g′⟩ / (η‖g‖²), and equals 2/η exactly when the gradient component along the step is
    reversed, ⟨g, g′⟩ = −‖g‖².

    Args:
        objective: P parameters.
        start: θ, ``(P,)``.
        end: θ′, ``(P,)``.

    Returns:
        A number in loss / parameter²; negative where the loss is concave along the segment. Its
        rounding error is of the order of ε ‖∇L‖ / ‖θ′ − θ‖ with the machine epsilon ε of the
        objective's dtype: for a step of gradient descent ε/η, which is harmless.

    Raises:
        ValueError: a point or the gradient at it is not finite, a point has the wrong shape, or the
            points coincide.

    Source: Ahn, Zhang and Sra (2022).
    """
    start, end = _points(objective, start, end)
    distance = _distance(start, end)
    change = _gradient(objective, end) - _gradient(objective, start)
    return float(change @ (end - start).double()) / distance**2


def effective_smoothness(
    objective: Objective, theta: Tensor, lr: float, *, num_points: int = 10
) -> float:
    r"""The largest rate at which the gradient changes over a step of gradient descent.

    .. math:: \max_{0 < \gamma \le \eta}
              \frac{\lVert \nabla L(\theta) - \nabla L(\theta - \gamma g) \rVert}
                   {\gamma \lVert g \rVert}, \qquad g = \nabla L(\theta)

    over γ = η/m, 2η/m, …, η: a lower bound of the maximum over all γ. It is at least the
    `directional_smoothness` of the step, because it counts the change of the gradient in all
    directions, and at most the largest |eigenvalue| of the Hessian on the segment.

    Args:
        objective: P parameters.
        theta: θ, ``(P,)``.
        lr: the step size η.
        num_points: m; the cost is m + 1 gradients.

    Returns:
        A number in loss / parameter².

    Raises:
        ValueError: the point or a gradient is not finite, the step does not move θ, or an argument
            is out of range.

    Source: Santurkar, Tsipras, Ilyas and Mądry (2018), "effective β-smoothness".
    """
    (theta,) = _points(objective, theta)
    _check_lr(lr)
    num_points = a_whole_number("num_points", num_points)
    gradient = _gradient(objective, theta)
    largest = 0.0
    for index in range(1, num_points + 1):
        point = theta - (index / num_points * lr * gradient).to(theta)
        change = (_gradient(objective, point) - gradient).norm()
        largest = max(largest, float(change) / _distance(theta, point))
    return largest


def relative_progress(objective: Objective, theta: Tensor, lr: float) -> float:
    r"""What a step of gradient descent gains, relative to what the gradient promises.

    .. math:: \frac{L(\theta - \eta g) - L(\theta)}{\eta \lVert g \rVert^2}
              = -1 + \frac{\eta}{2} \bar\kappa, \qquad g = \nabla L(\theta),
              \qquad \bar\kappa = \int_0^1 2(1-s)\, u^\top \nabla^2 L(\theta - s\eta g)\, u \; ds

    with u = g/‖g‖: near −1 where the loss is flat on the scale of the step, and 0 where the step
    gains nothing, which is where the average curvature is 2/η. On a quadratic it is
    −1 + (η/2) gᵀHg/‖g‖². In general the average is weighted towards the start of the step, unlike
    that of `directional_smoothness`.

    Args:
        objective: P parameters.
        theta: θ, ``(P,)``.
        lr: the step size η.

    Returns:
        A pure number, at least −1 on a convex loss; positive when the step raises the loss.

    Raises:
        ValueError: the point has the wrong shape; it, the loss or the gradient there, or the loss
            after the step is not finite; the step size is not a positive number; the change the
            gradient promises is lost in the rounding of the loss, as near a minimum in float32.

    Cost: a gradient and a forward pass.

    Source: Ahn, Zhang and Sra (2022).
    """
    (theta,) = _points(objective, theta)
    _check_lr(lr)
    loss, gradient = _loss_and_gradient(objective, theta)
    promised = lr * _squared_norm(gradient)
    _check_rounding(
        promised,
        loss,
        theta.dtype,
        f"the step size {lr:g} is too small or the point a minimum",
        "take a larger step size",
    )
    after = float(objective.value(theta - (lr * gradient).to(theta)))
    if not math.isfinite(after):
        raise ValueError(
            f"the loss after the step is {after}: the step of size {lr:g} leaves the region where "
            "the loss is finite; use a smaller one"
        )
    return (after - loss) / promised


@dataclass(frozen=True)
class CriticalSharpness:
    """The step size at which gradient descent stops to lower the loss, as a curvature.

    Attributes:
        value: λ_c = 2/η_c, in loss / parameter²; 0 when no step size raises the loss.
        step_size: η_c; infinite when no step size raises the loss.
        num_passes: forward passes over the data spent on the search.
    """

    value: float
    step_size: float
    num_passes: int


def critical_sharpness(
    objective: Objective, theta: Tensor, *, rtol: float = 0.01, guess: float | None = None
) -> CriticalSharpness:
    r"""The critical sharpness, from forward passes along the gradient.

    .. math:: \lambda_c = 2/\eta_c, \qquad
              \eta_c = \inf\{\eta > 0 : L(\theta - \eta g) > L(\theta)\},
              \qquad g = \nabla L(\theta)

    On a quadratic with Hessian H it is the curvature along the gradient, gᵀHg/‖g‖², or 0 where that
    is negative. So it is at most the sharpness there, and comes near it only where the gradient
    points along the top eigenvector, as it does at the edge of stability; before the edge it may
    be smaller by orders of magnitude.

    The search doubles or halves the step size until one lowers the loss and its double raises it,
    then bisects. A loss that is NaN or infinite counts as raised. Where the loss along the line
    rises, falls again and rises, the crossing found need not be the first one.

    Args:
        objective: P parameters.
        theta: θ, ``(P,)``.
        rtol: the relative width of the bracket at the end; λ_c is known to half of that.
        guess: a step size to begin with; that of the run, or η_c at the iterate before, saves
            passes and a gradient. Default: 2 over the curvature along the gradient, by a second
            gradient near θ, but no more than a step of length ‖θ‖, or |L|/‖g‖² if that is longer.

    Returns:
        A `CriticalSharpness`; ``step_size`` is infinite and ``value`` 0 if a step of length 2⁴⁰ ‖θ‖
        (at least 2⁴⁰) does not raise the loss.

    Raises:
        ValueError: the point has the wrong shape; it, the loss or the gradient there is not finite;
            an argument is out of range; the dip of the loss along the line is lost in the rounding
            of the loss, as near a minimum in float32.

    Cost: a gradient, a second one without a guess, and some log₂(1/rtol) + 3 forward passes; one
    more for every factor of 2 by which the guess is wrong, 40 and more where no step raises the
    loss.

    Source: Kalra et al. (2026), who move along the optimizer's update; the search is ours.
    """
    (theta,) = _points(objective, theta)
    if not 1e-6 <= a_number("rtol", rtol) < 1:
        raise ValueError(f"rtol must lie in [1e-6, 1), got {rtol}")
    loss, gradient = _loss_and_gradient(objective, theta)
    squared_norm = _squared_norm(gradient)
    size, speed = float(theta.double().norm()), math.sqrt(squared_norm)
    if guess is None:
        guess = (size or 1.0) / speed
        nearby = 1e-3 * guess
        after = objective.gradient(theta - (nearby * gradient).to(theta)).double()
        curvature = float((gradient - after) @ gradient) / (nearby * squared_norm)
        guess = max(guess, abs(loss) / squared_norm)
        if 0 < curvature < math.inf:
            guess = min(guess, 2 / curvature)
    _check_lr(guess, "guess")
    # No smaller step changes the loss by more than its rounding.
    step = max(guess, 2 * _least_change(loss, theta.dtype) / squared_norm)
    low, high, passes = 0.0, math.inf, 0
    while high > (1 + rtol) * low:
        passes += 1
        if float(objective.value(theta - (step * gradient).to(theta))) <= loss:
            low = step
        else:  # raised, or NaN
            high = step
        if math.isinf(high):
            if low * speed >= _FAR * max(size, 1.0):
                return CriticalSharpness(0.0, math.inf, passes)
            step = 2 * low
        else:
            _check_rounding(
                high * squared_norm, loss, theta.dtype, "the point is a minimum", "measure earlier"
            )
            step = (low + high) / 2
    return CriticalSharpness(2 / step, step, passes)


def _points(objective: Objective, *points: Tensor) -> list[Tensor]:
    an_objective(objective)
    like = objective.initial_point
    for point in points:
        if not isinstance(point, Tensor):
            raise ValueError(f"expected a parameter vector, got a {type(point).__name__}")
        if point.shape != like.shape:
            raise ValueError(
                f"expected one parameter vector of shape {tuple(like.shape)}, "
                f"got shape {tuple(point.shape)}"
            )
        if not bool(torch.isfinite(point).all()):
            raise ValueError(
                "a parameter vector holds NaN or infinite values: has the run diverged?"
            )
    return [point.detach().to(like) for point in points]


def _distance(start: Tensor, end: Tensor) -> float:
    distance = float((end - start).double().norm())
    if distance == 0:
        raise ValueError(
            f"the two points coincide in {start.dtype}, so there is no segment between them. Were "
            "they updated in place (keep a clone), or is the gradient zero?"
        )
    return distance


def _loss_and_gradient(objective: Objective, theta: Tensor) -> tuple[float, Tensor]:
    """Loss and gradient, both finite, in float64."""
    value, gradient = objective.value_and_gradient(theta)
    if not (bool(torch.isfinite(value)) and bool(torch.isfinite(gradient).all())):
        raise ValueError(
            f"the loss at the point is {float(value)}, and it or the gradient is not finite: has "
            "the run diverged?"
        )
    return float(value), gradient.double()


def _gradient(objective: Objective, theta: Tensor) -> Tensor:
    return _loss_and_gradient(objective, theta)[1]


def _squared_norm(gradient: Tensor) -> float:
    squared_norm = float(gradient @ gradient)
    if squared_norm == 0:
        raise ValueError("the gradient is zero: gradient descent has no step to look at here")
    return squared_norm


def _check_lr(lr: float, name: str = "lr") -> None:
    if not (a_number(name, lr) > 0 and math.isfinite(lr)):
        raise ValueError(f"{name} must be a positive step size, got {lr}")


def _least_change(loss: float, dtype: torch.dtype) -> float:
    return _ROUNDING_UNITS * torch.finfo(dtype).eps * abs(loss)


def _check_rounding(
    change: float, loss: float, dtype: torch.dtype, cause: str, advice: str
) -> None:
    """Refuse a change of the loss too small to be seen.

    A loss near zero that is the difference of larger numbers is rounded more coarsely than this
    assumes; the check is necessary, not sufficient.
    """
    least = _least_change(loss, dtype)
    if change <= least:
        raise ValueError(
            f"along the gradient the loss changes by about {change:.2g}, but {loss:.6g} is rounded "
            f"to {least / _ROUNDING_UNITS:.2g}: {cause} to the precision of {dtype}. Use an "
            f"Objective in float64, or {advice}"
        )
