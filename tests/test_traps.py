"""Ways to measure a wrong curvature that look right, each shut off."""

from __future__ import annotations

import gc
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn
from torch.overrides import TorchFunctionMode

from eoslib import (
    EigenStatus,
    GradientDescent,
    Objective,
    SharpnessTracker,
    SymmetricOperator,
    UnconvergedError,
    at_steps,
    build,
    digits,
    eigen,
    every,
    lanczos,
    power_iteration,
    sharpness,
    spectral_density,
    spectrum,
    train,
)
from eoslib.numerics import full_precision
from eoslib.spectrum import trace
from tests.oracles import with_spectrum

DOUBLE = torch.float64


@pytest.fixture
def saddle():
    """A network whose most negative eigenvalue is larger in magnitude than its sharpness."""
    model = build("fc-gelu", 64, 10, widths=(32, 32, 32), seed=5, dtype=DOUBLE)
    return model, digits(200)


def test_largest_is_algebraic_everywhere(saddle):
    model, data = saddle
    objective = Objective.from_dataset(model, data, "cross_entropy", dtype=DOUBLE)
    theta = objective.initial_point
    linear = objective.hessian(theta).to_scipy()
    in_magnitude, algebraic = (
        float(eigsh(linear, k=1, which=which, return_eigenvectors=False)[0])
        for which in ("LM", "LA")
    )
    assert in_magnitude < -1.05 * algebraic < 0  # the trap is there
    found = [
        lanczos(objective.hessian(theta)).eigenvalue(),
        float(SharpnessTracker(objective)(theta)[0]),
        sharpness(model, data, "cross_entropy"),
    ]
    assert found == pytest.approx([algebraic] * 3, rel=1e-3)
    by_power = power_iteration(objective.hessian(theta), rtol=1e-3).eigenvalue()
    assert by_power == pytest.approx(in_magnitude, rel=1e-3)  # as its docstring warns


def test_power_iteration_does_not_stop_where_the_estimate_hardly_changes():
    eigenvalues = torch.cat([torch.tensor([1.0, 0.97]), torch.linspace(0, 0.5, 60)]).double()
    operator, _ = with_spectrum(eigenvalues)
    estimates = []
    result = power_iteration(
        operator, rtol=1e-4, callback=lambda now: estimates.append(float(now.values[0]))
    )
    changes = np.abs(np.diff(estimates)) / estimates[1:]
    early = 1 + int(np.argmax(changes < 1e-3))
    assert early < len(estimates) / 2
    assert 1 - estimates[early] > 3e-3
    assert result.status is EigenStatus.CONVERGED
    assert result.num_products == len(estimates)
    assert result.eigenvalue() == pytest.approx(1, rel=1e-6)


def test_power_iteration_says_when_it_has_not_converged():
    operator, _ = with_spectrum(torch.linspace(0, 1, 200, dtype=DOUBLE))
    result = power_iteration(operator, max_products=5)
    assert result.status is EigenStatus.MAX_PRODUCTS
    with pytest.raises(UnconvergedError, match="after 5 products"):
        result.eigenvalue()
    broken = SymmetricOperator(lambda v: v * torch.nan, 10, dtype=DOUBLE)
    assert power_iteration(broken).status is EigenStatus.NOT_FINITE
    with pytest.raises(ValueError, match="max_products must be a positive whole number, got 0"):
        power_iteration(operator, max_products=0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [40, 4000])
def test_the_tolerance_is_relative_to_the_eigenvalue_and_knows_no_size(size, sign):
    """Some solvers multiply the tolerance by the dimension, or by an eigenvalue with its sign."""
    leading = torch.tensor([3.0, 2.0, 1.0] if sign > 0 else [-1.0, -1.5, -2.0])
    rest = torch.linspace(0.1, 0.5, size - 3) if sign > 0 else torch.linspace(-9, -3, size - 3)
    eigenvalues = torch.cat([leading, rest]).double()
    operator = SymmetricOperator(lambda v: eigenvalues * v, size, dtype=DOUBLE)
    result = lanczos(operator, rtol=1e-5, max_products=1000)
    assert result.status is EigenStatus.CONVERGED
    assert float(result.residual_norms[0]) <= 1e-5 * abs(result.eigenvalue())
    assert result.eigenvalue() == pytest.approx(float(leading[0]), rel=1e-8)


def test_converged_eigenvalues_do_not_come_back_as_ghosts():
    outliers = torch.tensor([1e6, 10, 9.9, 9.8, 9.7])
    operator, _ = with_spectrum(torch.cat([outliers, torch.linspace(0, 9.6, 300)]).double())
    result = lanczos(operator, 5, rtol=1e-8, max_products=2000)
    assert result.status is EigenStatus.CONVERGED
    assert torch.allclose(result.values, outliers.double(), rtol=1e-7)


def test_parts_of_the_data_count_by_their_sizes():
    """Equal weights for batches of unequal size would be wrong by tens of per cent here."""
    data, model = digits(101), build("fc-tanh", 64, 10, widths=(8,), dtype=DOUBLE)
    whole = Objective.from_dataset(model, data, dtype=DOUBLE)
    theta = whole.initial_point
    v = lanczos(whole.hessian(theta)).vectors[:, 0]
    parts = [
        Objective(model, data.inputs[part], data.targets[part], dtype=DOUBLE)
        for part in (slice(0, 100), slice(100, 101))
    ]
    product = whole.hvp(theta, v)
    weighted = sum(p.num_examples / 101 * p.hvp(theta, v) for p in parts)
    equal = sum(p.hvp(theta, v) for p in parts) / 2
    assert torch.allclose(weighted, product, rtol=1e-12, atol=1e-12)
    assert float((equal - product).norm() / product.norm()) > 0.1
    in_chunks = Objective.from_dataset(model, data, dtype=DOUBLE, chunk_size=100)
    assert torch.allclose(in_chunks.hvp(theta, v), product, rtol=1e-12, atol=1e-12)


def test_a_run_says_whose_sharpness_it_recorded():
    data = digits(40)
    objective = Objective.from_dataset(build("fc-tanh", 64, 10, widths=(4,)), data, "square")
    run = train(objective, GradientDescent(0.1), num_steps=1)
    assert run.settings["num_examples"] == 40
    assert run.settings["loss"] == "square"
    assert run.settings["threshold"] == 2 / 0.1


def test_measuring_leaves_the_model_and_no_graph_behind():
    model = nn.Sequential(nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 10))
    data = digits(50)

    def count() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    for training in (True, False):
        model.train(training)
        sharpness(model, data, batch_norm="full_batch")
        before = count()
        for _ in range(3):
            sharpness(model, data, batch_norm="full_batch")
        assert count() == before
        assert all(module.training is training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(b, torch.zeros(6)) for n, b in model.named_buffers() if "mean" in n)


def test_measuring_with_dropout_is_refused_in_one_line_too():
    model = nn.Sequential(nn.Linear(64, 6), nn.Dropout(0.1), nn.Linear(6, 10))
    with pytest.raises(ValueError, match=r"'1' is Dropout\(p=0.1\) in training mode"):
        sharpness(model, digits(20))
    assert sharpness(model.eval(), digits(20)) > 0


class _OnlyInside(TorchFunctionMode):
    """Counts the matrix products, and refuses one that is made outside of `full_precision`."""

    names = ("mm", "bmm", "baddbmm", "baddbmm_", "matmul", "__matmul__")
    entered = products = 0

    @contextmanager
    def full_precision(self, device):
        self.entered += 1
        yield
        self.entered -= 1

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in self.names:
            self.products += 1
            assert self.entered, f"{function.__name__} outside of full_precision"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "solve",
    [
        lambda operator: lanczos(operator, 3, max_basis=12),
        lambda operator: spectral_density(operator, num_probes=2, num_steps=10),
        lambda operator: trace(operator, num_products=12),
        lambda operator: trace(operator, num_products=40),
    ],
    ids=["lanczos", "spectral_density", "trace", "trace by the diagonal"],
)
def test_the_solvers_own_products_of_matrices_are_in_full_precision_too(solve, monkeypatch):
    operator = SymmetricOperator.from_dense(torch.diag(torch.linspace(1, 2, 40) ** 4))
    inside = _OnlyInside()
    for module in (eigen, spectrum):
        monkeypatch.setattr(module, "full_precision", inside.full_precision)
    with inside:
        solve(operator)
    assert inside.products > 0


def test_tf32_is_switched_off_for_matrices_and_for_convolutions():
    """Convolutions have a switch of their own, and theirs is on by default."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32"
        with full_precision(torch.device("cuda")):  # the switches exist without a GPU
            assert [switch.fp32_precision for switch in switches] == ["ieee", "ieee"]
        assert [switch.fp32_precision for switch in switches] == ["tf32", "tf32"]
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


class Product(nn.Module):
    """f(x) = w₁ w₂ x."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.2, 0.7]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weights.prod() * x


def test_an_even_stride_sees_one_side_of_an_orbit_of_period_2():
    """No minimum of ½(w₁w₂ − 1)² is stable at η = 1.05: two points are visited in turn."""
    one = torch.ones(1, 1)
    objective = Objective(Product(), one, one, "square", dtype=DOUBLE)

    def levels(schedule) -> set[float]:
        run = train(
            objective,
            GradientDescent(1.05),
            num_steps=1080,
            sharpness_schedule=lambda step: step >= 1000 and schedule(step),
        )
        return set(run.sharpness.values.round(6))

    high, low = sorted(levels(every(1)), reverse=True)
    assert high > 1.1 * low
    assert len(levels(at_steps(range(0, 1081, 20)))) == 1
    assert levels(every(20)) == levels(every(21)) == {high, low}
