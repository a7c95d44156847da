r"""Gradient flow, the limit of gradient descent at small step sizes: dθ/dτ = −∇L(θ).

Gradient descent is Euler's method for it with the step η, so k steps correspond to the time τ = ηk.
We integrate it by the classical Runge-Kutta method of order 4, whose steps must be small too: along
an eigenvector with eigenvalue a the flow is dx/dτ = −ax, and a step h multiplies x by

.. math:: R(-ha) = 1 - ha + \frac{(ha)^2}{2} - \frac{(ha)^3}{6} + \frac{(ha)^4}{24},
          \qquad |R| \le 1 \iff ha \le 2.7853

So h = α/λ₁ with α ≤ 1 is stable with room for the sharpness to grow until it is measured again, and
accurate: at ha = 1 the factor is 0.375 where it should be exp(−1) = 0.368, and the error falls like
h⁴ (Cohen et al. 2021 use this rule). Along a negative eigenvalue x grows, and at ha = −1 the factor
is 2.708 where it should be 2.718. Where the most negative eigenvalue is larger in size than λ₁, as
at a small initialisation, it takes the place of λ₁ in the rule.

Progressive sharpening makes the flow expensive: the steps shrink as the sharpness grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eoslib._arguments import a_number, a_tensor, a_whole_number, an_objective, starting_point
from eoslib.checkpoint import DIGESTS, Checkpoint, moved
from eoslib.eigen import lanczos
from eoslib.numerics import digest, limited_threads
from eoslib.objective import Objective
from eoslib.recorder import (
    Measurement,
    Recorder,
    Snapshot,
    StopRule,
    check_recorded,
    restore,
    state_of,
)
from eoslib.runs import Outcome, Run
from eoslib.taylor import TaylorQuadratic
from eoslib.tracker import SharpnessTracker

__all__ = ["RandomProjection", "gradient_flow", "runge_kutta_step"]

#: Products that the search for the most negative eigenvalue may spend: at the first tick, later.
_FIRST_PRODUCTS, _MORE_PRODUCTS = 12, 3

#: While it is less than half of λ₁ in size, it is looked for at every so many ticks.
_SELDOM = 10


def runge_kutta_step(slope: Callable[[Tensor], Tensor], theta: Tensor, step: float) -> Tensor:
    """One step of the classical Runge-Kutta method of order 4 for dθ/dτ = slope(θ).

    Args:
        slope: the vector field, of θ's shape.
        theta: where the step begins.
        step: h > 0. The error of a step is of order h⁵.

    Cost: four evaluations of ``slope``.

    Source: Kutta (1901); Hairer, Nørsett and Wanner (1993), table II.1.2.
    """
    k1 = slope(theta)
    k2 = slope(theta.add(k1, alpha=step / 2))
    k3 = slope(theta.add(k2, alpha=step / 2))
    k4 = slope(theta.add(k3, alpha=step))
    return theta.add(k1 + 2 * (k2 + k3) + k4, alpha=step / 6)


def gradient_flow(
    objective: Objective | TaylorQuadratic,
    *,
    duration: float,
    tick: float = 1.0,
    alpha: float = 1.0,
    theta: Tensor | None = None,
    sharpness: SharpnessTracker | None = None,
    measurements: Sequence[Measurement] = (),
    stop: Sequence[StopRule] = (),
    report: Callable[[Snapshot], bool | None] | None = None,
    max_gradients: float = math.inf,
    settings: Mapping[str, Any] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Run:
    """Follow gradient flow from θ for ``duration`` units of time, measuring once a tick.

    Each tick is divided into equal Runge-Kutta steps of at most α/λ₁, with the sharpness λ₁ at its
    beginning, or of α/|λ_min| where the smallest eigenvalue is larger in size. The record's "steps"
    are ticks: step k is the time k × tick.

    Args:
        objective: the training loss.
        duration: how long, in units of time; rounded up to whole ticks.
        tick: time between two measurements, > 0.
        alpha: Runge-Kutta step times sharpness, in (0, 2.7]; smaller is more accurate.
        theta: where to start, ``(P,)``, on any device; default: the objective's initial point.
        sharpness: the tracker; default tracks one eigenvalue to a relative accuracy of 1e-3.
        measurements: further quantities; their schedules count ticks.
        stop: stop rules, asked after the measurements of each tick.
        report: called after every tick, for progress; returning True ends the run as "stopped".
        max_gradients: the run ends as "stopped" before the tick that would exceed this budget.
        settings: what to add to the run's settings (data set, architecture, seed, …).
        checkpoint: where to save the state now and then, and to go on from; see `eoslib.train`.

    Returns:
        A `Run` with ``tick`` and ``alpha`` in its settings and an infinite threshold. Its
        provenance holds ``largest_step_times_sharpness``, with the sharpness measured *after* each
        tick: well below 2.7 means that every step was stable.

    Raises:
        ValueError: an argument is of another type or out of its range, two measurements share a
            name, or the checkpoint is another training's.

    Cost: about 4 λ₁/α gradients per unit of time, and the measurements. Up to a dozen products more
    at first tell whether a negative eigenvalue is the larger one, and up to three later: at every
    tenth tick, or at every tick where it is more than half as large.
    """
    an_objective(objective)
    check_recorded(sharpness, measurements, stop, report, settings, checkpoint)
    duration, tick = a_number("duration", duration), a_number("tick", tick)
    alpha = a_number("alpha", alpha)
    max_gradients = a_number("max_gradients", max_gradients, nan=False)
    for name, value in (("duration", duration), ("tick", tick)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be finite and above 0, got {value!r}")
    if not 0 < alpha <= 2.7:
        raise ValueError(f"alpha must lie in (0, 2.7], got {alpha!r}: beyond, steps are unstable")
    names = ["loss", "sharpness", "eigenvalues", *(m.name for m in measurements)]
    if len(set(names)) != len(names):
        raise ValueError(f"measurement names must be unique and new, got {names[3:]}")
    num_ticks = max(1, math.ceil(duration / tick - 1e-9))
    tracker = SharpnessTracker(objective) if sharpness is None else sharpness
    point = starting_point(objective, theta).clone()
    method = {
        "optimizer": "gradient flow",
        "tick": tick,
        "alpha": alpha,
        "threshold": math.inf,
        "num_steps": num_ticks,
    }
    recorder = Recorder(objective, settings or {}, method)
    identity: dict[str, Any] = {
        "runs": [recorder.settings],
        "start": digest(point),
        "tracker": tracker.settings,
        "measurements": names[3:],
    }
    if checkpoint is not None:
        identity[DIGESTS] = objective.digests()
    largest, step, first = 0.0, 0.0, 0
    lowest, depth = None, 0.0  # of the most negative eigenvalue: the vector, and how far below zero
    if checkpoint is not None and (state := checkpoint.load(identity)) is not None:
        first, largest, step = state["ticks"], state["largest"], state["step"]
        point, lowest = moved([state["point"], state.get("lowest")], point.device)
        depth = state.get("depth", 0.0)
        recorder.load_state_dict(state["record"], first)
        tracker.load_state_dict(state["tracker"])
        restore(measurements, state["measurements"])

    def descent(at: Tensor) -> Tensor:
        return -objective.gradient(at)

    def finished(status: str, ticks: int, message: str) -> Run:
        run = recorder.snapshot(Outcome(status, ticks, message))
        run.final_point = point.cpu().numpy()
        run.provenance["largest_step_times_sharpness"] = round(largest, 3)
        return run

    def state_now() -> dict[str, Any]:
        return {
            "ticks": ticks,
            "largest": largest,
            "step": step,
            "point": point,
            "lowest": lowest,
            "depth": depth,
            "record": recorder.state_dict(),
            "tracker": tracker.state_dict(),
            "measurements": state_of(measurements),
        }

    with limited_threads(objective.num_parameters * objective.num_examples):
        for ticks in range(first, num_ticks + 1):
            if checkpoint is not None:
                checkpoint.offer(identity, state_now)
            hessian = objective.hessian(point)
            loss = float(hessian.value)
            if not math.isfinite(loss):
                return finished("diverged", ticks, f"the loss was {loss} at time {ticks * tick:g}")
            own = tracker.objective is objective
            eigenvalues = tracker(point, hessian if own else None)
            top = float(eigenvalues[0])
            largest = max(largest, step * top) if math.isfinite(top) else largest
            recorder.add("loss", ticks, loss)
            recorder.add("sharpness", ticks, top)
            if tracker.max_k > 1:
                recorder.add("eigenvalues", ticks, eigenvalues)
            for measurement in measurements:
                if measurement.schedule(ticks):
                    recorder.add(measurement.name, ticks, measurement.function(point))
            now = Snapshot(ticks, num_ticks, loss, point, recorder.snapshot)
            for rule in stop:
                if (reason := rule(now)) is not None:
                    return finished("goal reached", ticks, reason)
            if report is not None and report(now):
                return finished("stopped", ticks, f"stopped on request at time {ticks * tick:g}")
            if not math.isfinite(top):
                message = (
                    f"the sharpness was not found at time {ticks * tick:g}; raise max_products"
                )
                return finished("stopped", ticks, message)
            if ticks == num_ticks:
                break
            # Only a value larger than λ₁ matters, and that one converges at once. Others go on
            # from tick to tick, and seldom while they are small.
            if lowest is None or 2 * depth > top or ticks % _SELDOM == 0:
                below = lanczos(
                    hessian if own else tracker.objective.hessian(point),
                    which="smallest_algebraic",
                    start=lowest,
                    rtol=0.1,
                    max_products=_FIRST_PRODUCTS if lowest is None else _MORE_PRODUCTS,
                )
                lowest = below.vectors[:, 0]
                depth = -below.eigenvalue(allow_unconverged=True)
            num_steps = max(1, math.ceil(tick * max(top, depth) / alpha))
            spent = recorder.num_gradients
            if spent + 4 * num_steps > max_gradients:
                message = f"out of gradients after {spent:,.0f}; raise max_gradients"
                return finished("stopped", ticks, message)
            step = tick / num_steps
            for _ in range(num_steps):
                point = runge_kutta_step(descent, point, step)
    return finished("completed", num_ticks, f"time {num_ticks * tick:g} reached")


class RandomProjection:
    r"""A fixed random linear map R^P → R^d that nearly keeps distances, for records of θ.

    Whole iterates of a network are too large to keep. With entries N(0, 1/d),

    .. math:: \mathbb E \lVert A\theta - A\theta' \rVert^2 = \lVert \theta - \theta' \rVert^2,

    with a relative standard deviation of √(2/d) (Johnson and Lindenstrauss 1984). Cohen et al.
    (2021) used entries N(0, 1), so that their distances are √d times ours: about 22.4 at d = 500.

    Use it as the function of a `Measurement`; it maps ``(P,)`` to ``(d,)``.

    Memory: P × d numbers of θ's dtype; when they are drawn, at the first θ and at one of another
    dtype or device, twice as much in float64 for a moment.
    """

    def __init__(self, num_parameters: int, dimension: int = 500, *, seed: int = 7) -> None:
        """Say which map it is.

        Raises:
            ValueError: one of the sizes is not a positive integer, or the seed is negative or none.
        """
        self._num_parameters = a_whole_number("num_parameters", num_parameters)
        self._dimension = a_whole_number("dimension", dimension)
        self._seed = a_whole_number("seed", seed, least=0)
        self._map = torch.empty(0, dtype=torch.int64)  # not drawn yet

    def __call__(self, theta: Tensor) -> Tensor:
        """A θ, ``(d,)``.

        Raises:
            ValueError: θ has another shape than ``(P,)``.
        """
        size = self._num_parameters
        if a_tensor("theta", theta).shape != (size,):
            raise ValueError(f"expected theta of shape ({size},), got {tuple(theta.shape)}")
        if self._map.dtype != theta.dtype or self._map.device != theta.device:
            random = np.random.default_rng(self._seed)
            draw = random.standard_normal((self._dimension, size))
            draw /= math.sqrt(self._dimension)
            self._map = torch.from_numpy(draw).to(theta)
        return self._map @ theta
