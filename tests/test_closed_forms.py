"""The objective and Lanczos on losses whose Hessian is known without any differentiation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eoslib import Objective, lanczos
from tests.oracles import (
    linear_least_squares_hessian,
    logistic_regression_hessian,
    product_hessian,
    softmax_regression_hessian,
    two_layer_linear_hessian,
)

DOUBLE = torch.float64


class Logistic(nn.Module):
    """Logistic regression as a softmax over the logits (0, wᵀx)."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_inputs))

    def forward(self, x: Tensor) -> Tensor:
        logits = x @ self.weight
        return torch.stack([torch.zeros_like(logits), logits], dim=1)


class Product(nn.Module):
    """The scalar function w₁w₂…w_L x."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(depth))

    def forward(self, x: Tensor) -> Tensor:
        return self.weights.prod() * x


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def least_squares(seed, n, d, k, chunk_size=None):
    inputs, targets = draw(seed, n, d), draw(seed + 1, n, k)
    objective = Objective(nn.Linear(d, k), inputs, targets, dtype=DOUBLE, chunk_size=chunk_size)
    return objective, draw(seed + 2, k * (d + 1)), linear_least_squares_hessian(inputs, k)


def logistic_regression(seed, n, d, k, chunk_size=None):
    inputs, theta = draw(seed, n, d), draw(seed + 2, d)
    labels = (draw(seed + 1, n) > 0).long()
    objective = Objective(
        Logistic(d), inputs, labels, "cross_entropy", dtype=DOUBLE, chunk_size=chunk_size
    )
    return objective, theta, logistic_regression_hessian(inputs, theta)


def softmax_regression(seed, n, d, k, chunk_size=None):
    inputs, theta = draw(seed, n, d), draw(seed + 2, (k + 1) * d)
    labels = torch.arange(n) % (k + 1)
    model = nn.Linear(d, k + 1, bias=False)
    objective = Objective(
        model, inputs, labels, "cross_entropy", dtype=DOUBLE, chunk_size=chunk_size
    )
    return objective, theta, softmax_regression_hessian(inputs, theta.view(k + 1, d))


def two_layer_linear(seed, n, d, k, chunk_size=None):
    hidden = 3
    inputs, targets = draw(seed, n, d), draw(seed + 1, n, k)
    theta = draw(seed + 2, hidden * (d + k))
    model = nn.Sequential(nn.Linear(d, hidden, bias=False), nn.Linear(hidden, k, bias=False))
    objective = Objective(model, inputs, targets, dtype=DOUBLE, chunk_size=chunk_size)
    first, second = theta[: hidden * d].view(hidden, d), theta[hidden * d :].view(k, hidden)
    return objective, theta, two_layer_linear_hessian(inputs, targets, first, second)


def product(seed, n, d, k, chunk_size=None):
    inputs, targets, theta = draw(seed, n, 1), draw(seed + 1, n, 1), draw(seed + 2, d + 1)
    objective = Objective(Product(d + 1), inputs, targets, dtype=DOUBLE, chunk_size=chunk_size)
    return objective, theta, product_hessian(inputs, targets, theta)


PROBLEMS = [least_squares, logistic_regression, softmax_regression, two_layer_linear, product]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_lanczos_finds_both_ends_of_the_spectrum(problem):
    objective, theta, hessian = problem(seed=7, n=40, d=5, k=4)
    exact = torch.linalg.eigvalsh(hessian)
    scale = float(exact.abs().max())
    for which, wanted in (("largest_algebraic", exact[-1]), ("smallest_algebraic", exact[0])):
        result = lanczos(objective.hessian(theta), which=which, rtol=1e-9)
        assert result.eigenvalue() == pytest.approx(float(wanted), rel=1e-6, abs=1e-12 * scale)


@pytest.mark.parametrize("problem", PROBLEMS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 12),
    d=st.integers(1, 4),
    k=st.integers(1, 3),
    chunk_size=st.none() | st.integers(1, 13),
)
def test_products_are_those_of_the_closed_form(problem, seed, n, d, k, chunk_size):
    objective, theta, hessian = problem(seed, n, d, k, chunk_size)
    operator = objective.hessian(theta)
    columns = torch.stack([operator @ e for e in torch.eye(len(theta), dtype=DOUBLE)])
    assert columns.shape == hessian.shape
    assert float((columns - hessian).norm()) <= 1e-10 * float(hessian.norm())


@pytest.mark.parametrize("depth", [2, 3, 4, 7])
def test_sharpness_of_the_balanced_minimum_of_a_product(depth):
    """At w_i = s^(1/L), fitting y = s x, the sharpness is L · s^(2 − 2/L) for mean x² = 1."""
    s = 1.7
    objective = Objective(Product(depth), torch.ones(1, 1), torch.full((1, 1), s), dtype=DOUBLE)
    theta = torch.full((depth,), s ** (1 / depth), dtype=DOUBLE)
    sharpness = lanczos(objective.hessian(theta), rtol=1e-9).eigenvalue()
    assert sharpness == pytest.approx(depth * s ** (2 - 2 / depth), rel=1e-6)


def test_the_saddle_of_a_two_layer_linear_network_has_opposite_eigenvalues():
    """At W₁ = W₂ = 0 only the mixed block is left: eigenvalues ± singular values of mean yxᵀ."""
    inputs, targets = draw(0, 30, 4), draw(1, 30, 2)
    hidden = 3
    model = nn.Sequential(nn.Linear(4, hidden, bias=False), nn.Linear(hidden, 2, bias=False))
    objective = Objective(model, inputs, targets, dtype=DOUBLE)
    origin = torch.zeros(hidden * 6, dtype=DOUBLE)
    largest = float(torch.linalg.matrix_norm(targets.T @ inputs / 30, 2))
    top = lanczos(objective.hessian(origin), hidden, rtol=1e-9)
    for index in range(hidden):  # one copy of every singular value per hidden unit
        assert top.eigenvalue(index) == pytest.approx(largest, rel=1e-6)
    bottom = lanczos(objective.hessian(origin), which="smallest_algebraic", rtol=1e-9)
    assert bottom.eigenvalue() == pytest.approx(-largest, rel=1e-6)
