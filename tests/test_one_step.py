"""Curvature from one step, against closed forms and against dense Hessians of a network."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eoslib import Objective, UnconvergedError, build, chebyshev, lanczos
from eoslib.losses import square_loss
from eoslib.one_step import (
    critical_sharpness,
    directional_smoothness,
    effective_smoothness,
    relative_progress,
    sharpness_between,
)
from tests.oracles import dense_hessian

DOUBLE = torch.float64


def quadratic(eigenvalues, dtype=DOUBLE, height=0.0):
    """L(θ) = ½ Σ λ_i θ_i² + height²/2, as a linear model with square loss."""
    size = len(eigenvalues)
    scaled = torch.tensor(eigenvalues, dtype=DOUBLE).mul(size).sqrt()
    inputs, targets = torch.diag(scaled), torch.zeros(size, 1)
    if height:  # an example that no parameter can fit
        inputs = torch.cat([inputs * math.sqrt((size + 1) / size), torch.zeros(1, size)])
        targets = torch.cat([targets, torch.full((1, 1), height * math.sqrt(size + 1))])
    return Objective(nn.Linear(size, 1, bias=False), inputs, targets, dtype=dtype)


class Scalar(nn.Module):
    """A function of one parameter, the same for every example."""

    def __init__(self, function):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.w) * x


def scalar(function, target=0.0, dtype=DOUBLE):
    """L(w) = ½ (function(w) − target)²."""
    return Objective(Scalar(function), torch.ones(1, 1), torch.full((1, 1), target), dtype=dtype)


def double_well():
    """L(w) = ½ (w² − 1)², with L′ = 2w(w² − 1) and L″ = 6w² − 2."""
    return scalar(torch.square, target=1.0)


def at(*coordinates):
    return torch.tensor(coordinates, dtype=DOUBLE)


def network(dtype=DOUBLE):
    model = build("fc-tanh", 1, 1, widths=(10, 10), init="lecun", seed=0)
    objective = Objective.from_dataset(model, chebyshev(4), dtype=dtype)
    return objective, objective.initial_point


# -- quadratics: everything is known -------------------------------------------------------------

points = st.lists(st.floats(-3, 3), min_size=3, max_size=3).map(lambda xs: at(*xs))


@settings(max_examples=40, deadline=None)
@given(theta=points, lr=st.floats(0.01, 5))
def test_one_step_on_a_quadratic(theta, lr):
    assume(float(theta.norm()) > 0.1)
    curvatures = at(0.5, 2, 7)
    objective = quadratic([0.5, 2, 7])
    gradient = curvatures * theta
    squared = float(gradient @ gradient)
    along = float(gradient @ (curvatures * gradient)) / squared  # gᵀHg/‖g‖²
    change_rate = float((curvatures * gradient).norm()) / math.sqrt(squared)  # ‖Hg‖/‖g‖
    after = theta - lr * gradient
    assert directional_smoothness(objective, theta, after) == pytest.approx(along)
    assert effective_smoothness(objective, theta, lr) == pytest.approx(change_rate)
    assert relative_progress(objective, theta, lr) == pytest.approx(-1 + lr * along / 2, abs=1e-9)
    found = critical_sharpness(objective, theta, rtol=1e-4)
    assert found.value == pytest.approx(along, rel=1e-4)
    assert found.step_size == pytest.approx(2 / found.value)


def test_the_sharpness_between_two_points_of_a_quadratic_is_that_of_the_quadratic():
    found = sharpness_between(quadratic([0.5, 2, 7]), at(1, 1, 1), at(-1, 2, 0))
    assert found.value == pytest.approx(7)
    assert torch.allclose(found.values, torch.full_like(found.values, 7))


def test_along_an_eigenvector_all_agree_with_the_sharpness():
    objective, theta = quadratic([0.5, 2, 7]), at(0, 0, 1)
    lr = 2 / 7  # on the edge: the step is reflected
    after = theta - lr * objective.gradient(theta)
    assert torch.allclose(after, -theta)
    assert directional_smoothness(objective, theta, after) == pytest.approx(7)
    assert effective_smoothness(objective, theta, lr, num_points=1) == pytest.approx(7)
    assert relative_progress(objective, theta, lr) == pytest.approx(0, abs=1e-12)
    assert critical_sharpness(objective, theta, rtol=1e-6).value == pytest.approx(7, rel=1e-6)


# -- one parameter: fourth-order losses ----------------------------------------------------------


@pytest.mark.parametrize(("start", "end"), [(1.3, 0.4), (0.4, -1.1), (-1.2, 1.2)])
def test_directional_smoothness_is_the_mean_second_derivative(start, end):
    mean = 2 * (start**2 + start * end + end**2) - 2  # of 6w² − 2 between the two
    found = directional_smoothness(double_well(), at(start), at(end))
    assert found == pytest.approx(mean)


@pytest.mark.parametrize("lr", [0.05, 0.4, 1.0])
def test_relative_progress_is_the_taylor_remainder(lr):
    w = 1.3
    slope = 2 * w * (w**2 - 1)
    nodes, weights = np.polynomial.legendre.leggauss(5)
    s = (nodes + 1) / 2
    curvature = np.sum(weights / 2 * 2 * (1 - s) * (6 * (w - s * lr * slope) ** 2 - 2))
    found = relative_progress(double_well(), at(w), lr)
    assert found == pytest.approx(-1 + lr / 2 * curvature)


def test_effective_smoothness_takes_the_largest_over_fractions_of_the_step():
    """From 1.3 to −1.1 the mean second derivative is largest over the shortest fraction."""
    w = 1.3
    lr = 2.4 / (2 * w * (w**2 - 1))

    def mean(end):
        return 2 * (w**2 + w * end + end**2) - 2

    found = effective_smoothness(double_well(), at(w), lr, num_points=4)
    assert found == pytest.approx(max(abs(mean(w - 0.6 * j)) for j in (1, 2, 3, 4)))
    assert found == pytest.approx(mean(0.7))
    assert found > mean(-1.1)


@pytest.mark.parametrize("w", [1.1, 1.3, 1.35])
def test_the_first_crossing_of_a_double_well(w):
    """Left of w the loss is back at its value at √(2 − w²), before the hump at 0."""
    slope = 2 * w * (w**2 - 1)
    wanted = (w - math.sqrt(2 - w**2)) / slope
    found = critical_sharpness(double_well(), at(w), rtol=1e-5)
    assert found.step_size == pytest.approx(wanted, rel=1e-5)
    assert found.value == pytest.approx(2 / wanted, rel=1e-5)


@pytest.mark.parametrize("guess", [1e-6, 0.03, 0.4, 50.0])
def test_the_guess_costs_passes_and_changes_nothing(guess):
    """Above √2 the hump is lower than the start, and the only crossing is at −w."""
    w = 1.7
    wanted = 2 * w / (2 * w * (w**2 - 1))
    found = critical_sharpness(double_well(), at(w), rtol=1e-3, guess=guess)
    assert found.step_size == pytest.approx(wanted, rel=1e-3)
    assert found.num_passes == 1 + math.ceil(abs(math.log2(wanted / guess))) + 10


def test_rtol_is_the_accuracy_and_passes_are_counted():
    objective, calls = double_well(), []
    value = objective.value
    objective.value = lambda theta: (calls.append(theta), value(theta))[1]
    wanted = 1 / (1.7**2 - 1)
    for rtol in (0.5, 0.1, 1e-2, 1e-4, 1e-6):
        for guess in (None, 0.6 * wanted, 0.98 * wanted, 1.05 * wanted):
            calls.clear()
            found = critical_sharpness(objective, at(1.7), rtol=rtol, guess=guess)
            assert found.step_size == pytest.approx(wanted, rel=rtol / 2)
            assert found.num_passes == len(calls) <= 5 + math.ceil(math.log2(1 / rtol))


def test_a_sharpest_point_between_two_flatter_ends():
    """L = ½ sin² w has L″ = cos 2w: largest at 0, wherever the ends are."""
    objective = scalar(torch.sin)
    for start, end in ((-0.6, 1.0), (1.0, -0.6), (-0.3, 1.3)):
        for resolution in (0.1, 0.01):
            found = sharpness_between(objective, at(start), at(end), resolution=resolution)
            assert abs(found.fraction - start / (start - end)) <= resolution
            largest = math.cos(2 * (start + found.fraction * (end - start)))
            assert found.value == pytest.approx(largest)
            assert 1 - found.value <= 2 * (resolution * (end - start)) ** 2
            assert found.value == float(found.values.max())
            assert torch.equal(found.fractions, found.fractions.sort().values)
            gaps = (found.fractions - found.fraction).abs()
            assert float(gaps[gaps > 0].min()) <= resolution
            assert found.num_products >= len(found.fractions)


def test_the_sharpest_point_at_an_end():
    """6w² − 2 is convex: the maximum over any segment is at an end, and is found exactly."""
    for start, end, fraction in ((0.2, 1.5, 1.0), (1.5, 0.2, 0.0), (-1.5, 1.0, 0.0)):
        found = sharpness_between(double_well(), at(start), at(end))
        assert found.fraction == fraction
        assert found.value == pytest.approx(6 * 1.5**2 - 2)


def test_a_resolution_that_the_first_pass_has_already():
    objective = scalar(torch.sin)
    found = sharpness_between(objective, at(-0.6), at(1.0), num_points=3, resolution=0.5)
    assert found.fractions.tolist() == [0, 0.5, 1]


def test_a_largest_eigenvalue_that_is_negative():
    found = sharpness_between(double_well(), at(-0.2), at(0.3))
    assert found.value == pytest.approx(6 * 0.3**2 - 2)
    assert directional_smoothness(double_well(), at(-0.2), at(0.3)) < 0


# -- a network -----------------------------------------------------------------------------------


def test_a_network_against_dense_hessians():
    objective, theta = network()
    lr = 2.0
    gradient = objective.gradient(theta)
    end = theta - lr * gradient
    nodes, weights = np.polynomial.legendre.leggauss(12)
    fractions = (nodes + 1) / 2
    direction = gradient / gradient.norm()
    hessians = [dense_hessian(objective, torch.lerp(theta, end, float(s))) for s in fractions]
    curvatures = np.array([float(direction @ h @ direction) for h in hessians])
    uniform = float(np.sum(weights / 2 * curvatures))
    weighted = float(np.sum(weights * (1 - fractions) * curvatures))
    assert abs(uniform - weighted) > 0.01 * abs(uniform)  # the two averages do differ here
    smoothness = directional_smoothness(objective, theta, end)
    assert smoothness == pytest.approx(uniform, rel=1e-6)
    progress = relative_progress(objective, theta, lr)
    assert progress == pytest.approx(-1 + lr / 2 * weighted, rel=1e-6)

    found = sharpness_between(objective, theta, end)
    dense = [
        torch.linalg.eigvalsh(dense_hessian(objective, torch.lerp(theta, end, float(s))))[-1]
        for s in found.fractions
    ]
    assert torch.allclose(found.values, torch.stack(dense), rtol=1e-5)
    finer = [float(torch.linalg.eigvalsh(h)[-1]) for h in hessians]
    assert found.value >= max(finer) * (1 - 1e-3)
    # the chain of bounds: one direction ≤ all directions of the gradient's change ≤ the Hessian
    effective = effective_smoothness(objective, theta, lr)
    largest = max(float(torch.linalg.matrix_norm(h, 2)) for h in hessians)
    assert smoothness <= effective <= largest * 1.01
    assert smoothness <= found.value


def test_critical_sharpness_of_a_network_is_where_the_loss_is_back():
    objective, theta = network()
    gradient = objective.gradient(theta)
    loss = objective.value(theta)
    rtol = 1e-3
    found = critical_sharpness(objective, theta, rtol=rtol)
    below, above = found.step_size * (1 - rtol), found.step_size * (1 + rtol)
    assert (
        objective.value(theta - below * gradient) < loss < objective.value(theta - above * gradient)
    )
    for fraction in torch.linspace(0.02, 0.98, 49):
        assert objective.value(theta - float(fraction) * found.step_size * gradient) < loss
    assert relative_progress(objective, theta, found.step_size) == pytest.approx(0, abs=2 * rtol)


def test_only_at_the_edge_do_they_agree_with_the_sharpness():
    objective, theta = network()
    lr = 0.3
    smoothness, progress = [], []
    for step in range(1000):
        after = theta - lr * objective.gradient(theta)
        if step == 100:
            sharpness = lanczos(objective.hessian(theta)).eigenvalue()
            assert sharpness < 0.6 * 2 / lr
            assert critical_sharpness(objective, theta).value < 0.1 * sharpness
            assert relative_progress(objective, theta, lr) == pytest.approx(-1, abs=0.02)
        if step >= 951:
            smoothness.append(directional_smoothness(objective, theta, after))
            progress.append(relative_progress(objective, theta, lr))
        theta = after
    sharpness = lanczos(objective.hessian(theta)).eigenvalue()
    assert sharpness == pytest.approx(2 / lr, rel=0.1)
    assert np.mean(smoothness) == pytest.approx(2 / lr, rel=0.01)
    assert np.mean(progress) == pytest.approx(0, abs=0.01)
    assert critical_sharpness(objective, theta).value == pytest.approx(2 / lr, rel=0.05)
    assert effective_smoothness(objective, theta, lr) == pytest.approx(2 / lr, rel=0.1)


def test_float32_agrees_where_it_can():
    objective, theta = network()
    single, _ = network(torch.float32)
    end = theta - 0.5 * objective.gradient(theta)
    for function, arguments in (
        (directional_smoothness, (theta, end)),
        (effective_smoothness, (theta, 0.5)),
        (relative_progress, (theta, 0.5)),
        (lambda *a: critical_sharpness(*a).value, (theta,)),
        (lambda *a: sharpness_between(*a).value, (theta, end)),
    ):
        wanted = function(objective, *arguments)
        assert function(single, *arguments) == pytest.approx(wanted, rel=1e-3)


# -- divergence, rounding, bad input -------------------------------------------------------------


def test_no_step_size_raises_the_loss():
    """Separable logistic regression: ever larger weights are ever better."""
    inputs, labels = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1])
    model = nn.Linear(1, 2, bias=False)
    objective = Objective(model, inputs, labels, "cross_entropy", dtype=DOUBLE)
    found = critical_sharpness(objective, at(0.1, -0.1))
    assert (found.value, found.step_size) == (0, math.inf)
    assert found.num_passes <= 45


@pytest.mark.parametrize("constant", [0.0, 2.25, 2.25 - 1e-13, 100.0])
@pytest.mark.parametrize("guess", [None, 1e-14, 1e9])
def test_neither_the_guess_nor_the_zero_of_the_loss_matters(guess, constant):
    """½ · 3 · (x² + y²) is 2.25 there, so that the loss is nearly 0 with some of the constants."""
    shifted = replace(square_loss, terms=lambda f, y: square_loss.terms(f, y) - constant)
    objective = Objective(
        nn.Linear(2, 1, bias=False), 6**0.5 * torch.eye(2), torch.zeros(2, 1), shifted, dtype=DOUBLE
    )
    found = critical_sharpness(objective, at(1, 0.5**0.5), guess=guess)
    assert found.value == pytest.approx(3, rel=0.01)
    assert found.num_passes < (12 if guess is None else 60)


@pytest.mark.parametrize("guess", [None, 1e-3, 1e3])
def test_a_loss_that_stops_to_be_finite_counts_as_raised(guess):
    """½ (log w)² from w = 2: it is back at ½ (log 2)² at w = ½, and NaN from 0 on."""
    objective = scalar(torch.log)
    slope = math.log(2) / 2
    found = critical_sharpness(objective, at(2), rtol=1e-4, guess=guess)
    assert found.step_size == pytest.approx(1.5 / slope, rel=1e-4)
    wall = scalar(lambda w: torch.sqrt(w) + 5)  # falls all the way to its edge at 0
    found = critical_sharpness(wall, at(2), rtol=1e-4, guess=guess)
    slope = (math.sqrt(2) + 5) / (2 * math.sqrt(2))
    assert found.step_size == pytest.approx(2 / slope, rel=1e-4)


def test_a_step_out_of_the_region_where_the_loss_is_finite():
    with pytest.raises(ValueError, match=r"after the step is nan: the step of size 100 leaves"):
        relative_progress(scalar(torch.log), at(2), 100)
    with pytest.raises(ValueError, match="the loss at the point is nan"):
        directional_smoothness(scalar(torch.log), at(2), at(-1))
    with pytest.raises(ValueError, match="the loss at the point is nan"):
        effective_smoothness(scalar(torch.log), at(2), 100)
    with pytest.raises(UnconvergedError, match="has the loss diverged"):
        sharpness_between(scalar(torch.log), at(2), at(-1))
    for function, arguments in ((relative_progress, (0.1,)), (critical_sharpness, ())):
        with pytest.raises(ValueError, match="the loss at the point is nan"):
            function(scalar(torch.log), at(-1), *arguments)
        with pytest.raises(ValueError, match="it or the gradient is not finite"):
            function(scalar(torch.sqrt, target=1.0), at(0), *arguments)


def test_a_minimum_to_the_precision_of_the_dtype_is_refused():
    """L = ½ + tiny: in float32 the tiny part is rounding, in float64 it is not."""
    theta = torch.tensor([1e-4, 1e-4])
    for dtype in (torch.float32, DOUBLE):
        objective = quadratic([3, 3], dtype, height=1.0)
        if dtype is DOUBLE:
            assert relative_progress(objective, theta, 0.1) == pytest.approx(-0.85, rel=1e-4)
            assert critical_sharpness(objective, theta).value == pytest.approx(3, rel=0.01)
            continue
        with pytest.raises(
            ValueError, match=r"size 0\.1 is too small or .* torch.float32.*float64"
        ):
            relative_progress(objective, theta, 0.1)
        for guess in (None, 1e-3, 1.0, 1e6):
            with pytest.raises(ValueError, match=r"precision of torch.float32.*float64"):
                critical_sharpness(objective, theta, guess=guess)
    # gradients do not suffer
    moved = directional_smoothness(quadratic([3, 3], torch.float32, height=1.0), theta, 0.5 * theta)
    assert moved == pytest.approx(3, rel=1e-3)


def test_a_gradient_that_is_zero():
    objective = quadratic([1, 2])
    for function, arguments in ((relative_progress, (0.1,)), (critical_sharpness, ())):
        with pytest.raises(ValueError, match="the gradient is zero"):
            function(objective, at(0, 0), *arguments)
    with pytest.raises(ValueError, match="coincide"):
        effective_smoothness(objective, at(0, 0), 0.1)


def test_points_that_coincide():
    theta = at(1, 2)
    for function in (sharpness_between, directional_smoothness):
        with pytest.raises(ValueError, match=r"coincide.*updated in place"):
            function(quadratic([1, 2]), theta, theta)
    nearly = theta + 1e-12
    assert directional_smoothness(quadratic([1, 1]), theta, nearly) == pytest.approx(1, rel=1e-2)
    with pytest.raises(ValueError, match=r"coincide in torch.float32"):
        directional_smoothness(quadratic([1, 1], torch.float32), theta, nearly)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (sharpness_between, (at(1, 1),)),
        (directional_smoothness, (at(1, 1),)),
        (effective_smoothness, (0.1,)),
        (relative_progress, (0.1,)),
        (critical_sharpness, ()),
    ],
)
def test_points_of_the_wrong_shape_or_not_finite(function, arguments):
    objective = quadratic([1, 2])
    for wrong in (at(1), torch.ones(3, 2, dtype=DOUBLE)):
        with pytest.raises(ValueError, match=r"one parameter vector of shape \(2,\), got shape"):
            function(objective, wrong, *arguments)
    with pytest.raises(ValueError, match="holds NaN or infinite"):
        function(objective, at(1, math.nan), *arguments)


def test_arguments_out_of_range():
    objective, theta, end = quadratic([1, 2]), at(1, 1), at(0, 1)
    for lr in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="lr must be a positive step size"):
            relative_progress(objective, theta, lr)
        with pytest.raises(ValueError, match="lr must be a positive step size"):
            effective_smoothness(objective, theta, lr)
        with pytest.raises(ValueError, match="guess must be a positive step size"):
            critical_sharpness(objective, theta, guess=lr)
    for rtol in (0.0, 1e-7, 1.0, math.nan):
        with pytest.raises(ValueError, match="rtol must lie in"):
            critical_sharpness(objective, theta, rtol=rtol)
    for num_points in (1, 0, 2.5, True):
        with pytest.raises(ValueError, match="num_points must be a whole number, at least 2"):
            sharpness_between(objective, theta, end, num_points=num_points)
    for num_points in (0, -1, 2.5):
        with pytest.raises(ValueError, match="num_points must be a positive whole number"):
            effective_smoothness(objective, theta, 0.1, num_points=num_points)
    for resolution in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="resolution must lie in"):
            sharpness_between(objective, theta, end, resolution=resolution)


def test_a_point_that_is_no_tensor():
    objective = Objective(nn.Linear(2, 1), torch.ones(3, 2), torch.ones(3, 1))
    theta = objective.initial_point
    with pytest.raises(ValueError, match="expected a parameter vector, got a ndarray"):
        sharpness_between(objective, theta.numpy(), theta + 1)
