"""The objective: exact derivatives, exact chunking, a model left alone, clear refusals."""

from __future__ import annotations

import copy
import gc
import math
import sys
import threading
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from eoslib import Loss, Objective, build, chebyshev, digits, lanczos, losses
from eoslib.architectures import ACTIVATIONS
from eoslib.eigen import lanczos_together
from eoslib.measure import as_loss
from eoslib.numerics import full_precision
from tests.oracles import (
    dense_hessian,
    linear_least_squares_hessian,
    softmax_regression_hessian,
)

DOUBLE = torch.float64


def small_objective(activation="tanh", loss="square", **options):
    data = digits(40)
    model = build(f"fc-{activation}", 64, 10, widths=(6, 5), seed=3)
    return Objective.from_dataset(model, data, loss, dtype=DOUBLE, **options)


@pytest.mark.parametrize("loss", ["square", "cross_entropy"])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_sharpness_is_the_dense_hessians_largest_eigenvalue(activation, loss):
    objective = small_objective(activation, loss)
    theta = objective.initial_point
    hessian = dense_hessian(objective, theta)
    assert torch.allclose(hessian, hessian.T, atol=1e-12)
    exact = torch.linalg.eigvalsh(hessian)
    top = lanczos(objective.hessian(theta), 2, rtol=1e-9)
    assert top.eigenvalue() == pytest.approx(float(exact[-1]), rel=1e-6)
    assert top.eigenvalue(1) == pytest.approx(float(exact[-2]), rel=1e-6)
    bottom = lanczos(objective.hessian(theta), which="smallest_algebraic", rtol=1e-9)
    assert bottom.eigenvalue() == pytest.approx(float(exact[0]), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("loss", ["square", "cross_entropy"])
def test_products_and_gradient_match_autograd(loss):
    objective = small_objective(loss=loss)
    theta = objective.initial_point + 0.1
    hessian = dense_hessian(objective, theta)
    v = torch.randn(objective.num_parameters, dtype=DOUBLE)
    assert torch.allclose(objective.hvp(theta, v), hessian @ v, rtol=1e-10, atol=1e-12)
    step = 1e-6 * v / v.norm()
    slope = (objective.value(theta + step) - objective.value(theta - step)) / 2
    assert float(objective.gradient(theta) @ step) == pytest.approx(float(slope), rel=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("loss", ["square", "cross_entropy"])
@pytest.mark.parametrize("activation", [*sorted(ACTIVATIONS), "no bias, ends in two functions"])
def test_chains_by_hand_equal_autograd(activation, loss, several, chunk_size):
    data, options = digits(40), {"chunk_size": chunk_size, "dtype": DOUBLE}
    if activation in ACTIVATIONS:
        model = build(f"fc-{activation}", 64, 10, widths=(6, 5), seed=3)
    else:
        model = nn.Sequential(
            nn.Linear(64, 6, bias=False), nn.Linear(6, 10), nn.Softplus(beta=3), nn.Tanh()
        )
    by_hand, by_autograd = (Objective.from_dataset(model, data, loss, **options) for _ in range(2))
    assert by_hand._chain is not None
    by_autograd._chain = None
    theta = by_hand.initial_point
    if several:
        theta = theta + 0.1 * torch.arange(3.0)[:, None]
    v = torch.randn(theta.shape, dtype=DOUBLE)
    ours, oracle = by_hand.hessian(theta), by_autograd.hessian(theta)
    pairs = [
        *zip(by_hand.value_and_gradient(theta), by_autograd.value_and_gradient(theta), strict=True),
        (ours.value, oracle.value),
        (ours.gradient, oracle.gradient),
        *((ours @ w, oracle @ w) for w in (v, -2 * v)),  # a product leaves the operator as it was
    ]
    for found, exact in pairs:
        assert found.shape == exact.shape
        assert torch.allclose(found, exact, rtol=1e-12, atol=1e-13)


def test_chains_that_are_not_what_they_seem_are_left_to_autograd():
    def chain_of(model):
        return Objective.from_dataset(model, digits(8))._chain

    def model():
        return nn.Sequential(nn.Linear(64, 10), nn.Tanh(), nn.Linear(10, 10))

    hooked, before, inplace, shared, patched, flat = (model() for _ in range(6))
    hooked[0].register_forward_hook(lambda module, args, result: 2 * result)
    before[0].register_forward_pre_hook(lambda module, args: 2 * args[0])
    inplace[1] = nn.ReLU(inplace=True)
    shared[0].bias = shared[2].bias
    patched[1].forward = torch.sin
    flat[1] = nn.Flatten(1)
    others = (hooked, before, inplace, shared, patched, flat)
    assert chain_of(model()) is not None
    assert [chain_of(m) for m in others] == [None] * len(others)


def test_hessian_of_linear_least_squares_is_the_closed_form():
    inputs, targets = torch.randn(30, 4, dtype=DOUBLE), torch.randn(30, 3, dtype=DOUBLE)
    objective = Objective(nn.Linear(4, 3), inputs, targets, "square", dtype=DOUBLE)
    hessian = linear_least_squares_hessian(inputs, 3)
    operator = objective.hessian(objective.initial_point)
    columns = [operator @ e for e in torch.eye(15, dtype=DOUBLE)]
    assert torch.allclose(torch.stack(columns), hessian, atol=1e-12)


def test_hessian_of_softmax_regression_is_the_closed_form():
    inputs, labels = torch.randn(25, 3, dtype=DOUBLE), torch.arange(25) % 4
    model = nn.Linear(3, 4, bias=False)
    objective = Objective(model, inputs, labels, "cross_entropy", dtype=DOUBLE)
    theta = objective.initial_point
    hessian = softmax_regression_hessian(inputs, theta.view(4, 3))
    operator = objective.hessian(theta)
    columns = [operator @ e for e in torch.eye(12, dtype=DOUBLE)]
    assert torch.allclose(torch.stack(columns), hessian, atol=1e-12)


def test_the_half_is_in_the_square_loss():
    model = nn.Linear(1, 1, bias=False)
    objective = Objective(model, torch.ones(1, 1), torch.zeros(1, 1), "square")
    theta = torch.tensor([3.0])
    assert float(objective.value(theta)) == pytest.approx(4.5)  # ½ · 3²
    assert float(objective.hvp(theta, torch.ones(1))) == pytest.approx(1.0)


@settings(max_examples=20, deadline=None)
@given(chunk_size=st.integers(1, 45), loss=st.sampled_from(["square", "cross_entropy"]))
def test_chunks_of_any_size_change_nothing(chunk_size, loss):
    whole, chunked = small_objective(loss=loss), small_objective(loss=loss, chunk_size=chunk_size)
    theta = whole.initial_point
    v = torch.linspace(-1, 1, whole.num_parameters, dtype=DOUBLE)
    assert torch.allclose(whole.value(theta), chunked.value(theta), rtol=1e-12)
    assert torch.allclose(whole.gradient(theta), chunked.gradient(theta), atol=1e-13)
    assert torch.allclose(whole.hvp(theta, v), chunked.hvp(theta, v), atol=1e-12)
    assert torch.equal(whole.outputs(theta).argmax(1), chunked.outputs(theta).argmax(1))


def test_hessian_is_symmetric_and_linear():
    objective = small_objective()
    operator = objective.hessian(objective.initial_point)
    u, v = torch.randn(2, objective.num_parameters, dtype=DOUBLE)
    assert float(u @ (operator @ v)) == pytest.approx(float(v @ (operator @ u)), rel=1e-10)
    combined = operator @ (2 * u - 3 * v)
    assert torch.allclose(combined, 2 * (operator @ u) - 3 * (operator @ v), atol=1e-11)


def test_hessian_of_a_loss_linear_in_theta_is_zero():
    # cross-entropy with one-hot probabilities on frozen-to-constant logits cannot be linear, but a
    # network that ignores its parameter has a constant loss
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x + 0 * self.shift

    objective = Objective(Shift(), torch.ones(3, 1), torch.zeros(3, 1), "square")
    assert float(objective.hvp(objective.initial_point, torch.ones(1))) == 0
    assert lanczos(objective.hessian(objective.initial_point)).eigenvalue() == 0


@pytest.mark.parametrize("mode", ["full_batch", "running"])
def test_the_model_is_left_as_it_was_found(mode):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).eval()
    model[0].weight.grad = torch.ones(4, 3)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    objective = Objective(model, torch.randn(9, 3), torch.randn(9, 2), batch_norm=mode)
    rng_after_construction = torch.get_rng_state()
    theta = objective.initial_point + 1
    objective.hvp(theta, theta)
    objective.gradient(theta)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(model[0].weight.grad, torch.ones(4, 3))
    assert not model.training
    assert all(p.grad is None for p in model.parameters() if p is not model[0].weight)
    # randn above drew from the global state; the objective did not
    torch.set_rng_state(state)
    torch.randn(9, 3), torch.randn(9, 2)
    assert torch.equal(torch.get_rng_state(), rng_after_construction)


def test_theta_is_ordered_like_the_parameters_and_module_at_returns_it():
    model = build("fc-relu", 3, 2, widths=(4,))
    objective = Objective(model, torch.randn(5, 3), torch.randn(5, 2))
    theta = torch.arange(objective.num_parameters, dtype=torch.float32)
    module = objective.module_at(theta)
    assert torch.equal(torch.cat([p.detach().reshape(-1) for p in module.parameters()]), theta)
    assert torch.allclose(module(objective.inputs), objective.outputs(theta))


def test_frozen_parameters_are_no_part_of_theta():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    objective = Objective(model, torch.randn(5, 3), torch.randn(5, 2), dtype=DOUBLE)
    assert objective.num_parameters == 10
    hessian = dense_hessian(objective, objective.initial_point)
    v = torch.randn(10, dtype=DOUBLE)
    assert torch.allclose(objective.hvp(objective.initial_point, v), hessian @ v)


def test_sparse_gradients_of_an_embedding_are_differentiated_again():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)).double()
    sparse = copy.deepcopy(dense)
    sparse[0].sparse = True
    inputs, targets = torch.randint(5, (7, 2)), torch.randn(7, 2, dtype=DOUBLE)
    one, other = (Objective(model, inputs, targets) for model in (dense, sparse))
    vector = torch.linspace(-1, 1, one.num_parameters, dtype=DOUBLE)
    at = one.initial_point
    assert torch.equal(other.gradient(at), one.gradient(at))
    assert torch.equal(other.hvp(at, vector), one.hvp(at, vector))
    assert sparse[0].sparse and other.module_at(at)[0].sparse


@pytest.mark.filterwarnings("ignore")  # this form of it is deprecated
def test_a_power_iteration_in_training_mode_is_not_taken_for_randomness():
    model = nn.utils.spectral_norm(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"changed the model's buffers.*model\.eval\(\)"):
        Objective(model, torch.randn(8, 3), torch.randn(8, 2))


def test_a_tied_parameter_counts_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    objective = Objective(Tied(), torch.randn(7, 3), torch.randn(7, 3), dtype=DOUBLE)
    assert objective.num_parameters == 9
    theta = objective.initial_point
    step = torch.full((9,), 1e-6, dtype=DOUBLE)
    slope = (objective.value(theta + step) - objective.value(theta - step)) / 2
    assert float(objective.gradient(theta) @ step) == pytest.approx(float(slope), rel=1e-5)


def test_data_and_point_are_copied():
    inputs = torch.randn(5, 3, dtype=DOUBLE)
    objective = Objective(nn.Linear(3, 2), inputs, torch.randn(5, 2, dtype=DOUBLE), dtype=DOUBLE)
    theta = objective.initial_point
    before = float(objective.value(theta))
    inputs.zero_()
    assert float(objective.value(theta)) == before
    v = torch.ones(8, dtype=DOUBLE)
    for chunk_size in (None, 20):
        objective = small_objective(chunk_size=chunk_size)
        for chain in (objective._chain, None):
            objective._chain = chain
            for make in (objective.hessian, objective.gauss_newton):
                theta = objective.initial_point.clone()
                v = torch.ones_like(theta)
                operator = make(theta)
                product = operator @ v
                theta.mul_(2)
                assert torch.equal(operator @ v, product)


def test_derivatives_under_no_grad_and_of_a_loss_that_counts_nothing_in_a_chunk():
    objective = small_objective()
    theta = objective.initial_point
    expected = objective.gradient(theta)
    with torch.no_grad():
        assert torch.equal(objective.gradient(theta), expected)
        assert torch.isfinite(objective.hvp(theta, theta)).all()

    def terms(outputs, targets):
        counts = targets[:, :1] > 0
        if not counts.any():
            return torch.zeros_like(counts, dtype=outputs.dtype)
        return counts * (outputs - targets).square()

    inputs, targets = torch.randn(6, 3), torch.ones(6, 2)
    targets[2:] = -1
    loss = Loss("masked", "masked", terms, lambda f, y: None)
    model = nn.Linear(3, 2)
    whole, split = (Objective(model, inputs, targets, loss, chunk_size=c) for c in (None, 2))
    theta = whole.initial_point
    assert torch.allclose(split.gradient(theta), whole.gradient(theta))
    assert torch.allclose(split.hvp(theta, theta), whole.hvp(theta, theta))


def test_two_threads_do_not_disturb_each_other():
    objective = small_objective()
    points = [objective.initial_point, objective.initial_point + 0.3]
    expected = [objective.gradient(point) for point in points]
    wrong = []

    def work(index):
        for _ in range(150):
            if not torch.equal(objective.gradient(points[index]), expected[index]):
                wrong.append(index)

    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-5)
        threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_full_precision_is_shared_between_threads_and_put_back():
    device = torch.device("cuda")  # the switches exist without a GPU
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    try:
        switch.fp32_precision = "tf32"
        first, second = full_precision(device), full_precision(device)
        first.__enter__()
        second.__enter__()
        assert switch.fp32_precision == "ieee"
        first.__exit__(None, None, None)
        assert switch.fp32_precision == "ieee"
        second.__exit__(None, None, None)
        assert switch.fp32_precision == "tf32"
    finally:
        switch.fp32_precision = before


def test_a_recurrent_layer():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(2, 3, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    inputs, targets = torch.randn(4, 5, 2), torch.randn(4, 5, 3)
    objective = Objective(Recurrent(), inputs, targets, dtype=DOUBLE)
    theta = objective.initial_point
    step = 1e-5 * torch.randn(objective.num_parameters, dtype=DOUBLE)
    slope = (objective.value(theta + step) - objective.value(theta - step)) / 2
    assert float(objective.gradient(theta) @ step) == pytest.approx(float(slope), rel=1e-5)
    bend = (objective.gradient(theta + step) - objective.gradient(theta - step)) / 2
    assert torch.allclose(objective.hvp(theta, step), bend, rtol=1e-4, atol=1e-11)


def test_further_products_at_a_point_share_the_graph():
    calls = 0

    class Counting(nn.Linear):
        def forward(self, x):
            nonlocal calls
            calls += 1
            return torch.tanh(super().forward(x))

    objective = Objective(Counting(3, 2), torch.randn(5, 3), torch.randn(5, 2))
    operator = objective.hessian(objective.initial_point)
    assert objective.num_gradients == 1
    forward_passes = calls
    for _ in range(5):
        operator @ objective.initial_point
    assert calls == forward_passes
    assert operator.num_products == objective.num_products == 5


def batch_norm_net(dims=1):
    """A small network with batch normalisation, over images if dims is 2."""
    torch.manual_seed(0)
    if dims == 1:
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(27, 2))


class TestBatchNorm:
    """Each mode is the loss that its name says, with derivatives and without side effects."""

    @pytest.mark.parametrize("dims", [1, 2])
    @pytest.mark.parametrize("mode", ["full_batch", "ghost", "running"])
    def test_value_and_derivatives(self, mode, dims):
        model = batch_norm_net(dims).double()
        x = torch.randn(12, 4, dtype=DOUBLE) if dims == 1 else torch.randn(12, 1, 8, 8).double()
        y = torch.randn(12, 2, dtype=DOUBLE)
        with torch.no_grad():
            model(3 * x + 1)  # running averages that differ from the batch's
        size = {"ghost": 4}.get(mode)
        objective = Objective(model, x, y, batch_norm=mode, chunk_size=size, dtype=DOUBLE)
        theta = objective.initial_point
        reference = copy.deepcopy(model).train(mode != "running")
        with torch.no_grad():
            outputs = torch.cat([reference(part) for part in x.split(size or 12)])
        expected = 0.5 * (outputs - y).square().sum() / 12
        assert float(objective.value(theta)) == pytest.approx(float(expected), rel=1e-12)
        step = 1e-5 * torch.randn(len(theta), dtype=DOUBLE)
        slope = (objective.value(theta + step) - objective.value(theta - step)) / 2
        assert float(objective.gradient(theta) @ step) == pytest.approx(float(slope), rel=1e-5)
        bend = (objective.gradient(theta + step) - objective.gradient(theta - step)) / 2
        assert torch.allclose(objective.hvp(theta, step), bend, rtol=1e-4, atol=1e-10)

    def test_the_three_modes_have_different_sharpnesses(self):
        x, y = torch.randn(32, 4), torch.randn(32, 2)
        model = batch_norm_net()
        model(2 * x + 1)
        modes = [("full_batch", None), ("ghost", 8), ("running", None)]
        objectives = [
            Objective(model, x, y, batch_norm=mode, chunk_size=size, dtype=DOUBLE)
            for mode, size in modes
        ]
        values = [lanczos(o.hessian(o.initial_point)).eigenvalue() for o in objectives]
        assert min(abs(a - b) for a in values for b in values if a is not b) > 0.01 * max(values)
        whole = Objective(model, x, y, batch_norm="ghost", chunk_size=32, dtype=DOUBLE)
        assert lanczos(whole.hessian(whole.initial_point)).eigenvalue() == pytest.approx(values[0])

    def test_buffers_and_mode_of_the_model_given_stay(self):
        model = batch_norm_net().train()
        before = copy.deepcopy(model.state_dict())
        x, y = torch.randn(12, 4), torch.randn(12, 2)
        for mode in ("full_batch", "running"):
            objective = Objective(model, x, y, batch_norm=mode)
            objective.hvp(objective.initial_point, objective.initial_point)
            returned = objective.module_at(objective.initial_point)
            assert returned.training
            for key, value in returned.state_dict().items():
                assert torch.equal(value, before[key]), key
        assert model.training
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]), key


class TestSeveralPoints:
    """R parameter vectors at once give what they give one by one."""

    def points(self, objective, runs=3):
        torch.manual_seed(1)
        noise = 0.1 * torch.randn(runs, objective.num_parameters, dtype=DOUBLE)
        return objective.initial_point + noise

    def objectives(self):
        data = digits(20)
        yield small_objective("gelu", "cross_entropy")
        yield small_objective("tanh", "square", chunk_size=17)
        model = nn.Sequential(nn.Linear(64, 5, bias=False), nn.Tanh(), nn.LayerNorm(5))  # by vmap
        yield Objective(model, data.inputs, data.targets[:, :5], dtype=DOUBLE)
        model = batch_norm_net(2)
        yield Objective(
            model, torch.randn(6, 1, 8, 8), torch.randn(6, 2), batch_norm="full_batch", dtype=DOUBLE
        )

    def test_values_gradients_and_products(self):
        for objective in self.objectives():
            points = self.points(objective)
            values, gradients = objective.value_and_gradient(points)
            operator = objective.hessian(points)
            assert operator.num_runs == 3
            vectors = self.points(objective)
            products = operator @ vectors
            outputs = objective.outputs(points)
            assert torch.allclose(objective.value(points), values)
            assert torch.allclose(operator.value, values)
            assert torch.allclose(operator.gradient, gradients)
            for run, point in enumerate(points):
                value, gradient = objective.value_and_gradient(point)
                assert torch.allclose(values[run], value, rtol=1e-12)
                assert torch.allclose(gradients[run], gradient, rtol=1e-9, atol=1e-12)
                product = objective.hvp(point, vectors[run])
                assert torch.allclose(products[run], product, rtol=1e-9, atol=1e-11)
                assert torch.allclose(outputs[run], objective.outputs(point), rtol=1e-9)

    def test_lanczos_together_is_lanczos(self):
        for objective in self.objectives():
            points = self.points(objective)
            together = lanczos_together(objective.hessian(points), 2, rtol=1e-7)
            for point, result in zip(points, together, strict=True):
                alone = lanczos(objective.hessian(point), 2, rtol=1e-7)
                assert torch.allclose(result.values, alone.values, rtol=1e-6)

    def test_shapes_are_checked(self):
        objective = small_objective()
        points = self.points(objective)
        with pytest.raises(ValueError, match="use lanczos_together"):
            lanczos(objective.hessian(points))
        with pytest.raises(ValueError, match="use lanczos"):
            lanczos_together(objective.hessian(points[0]))
        with pytest.raises(ValueError, match="theta of shape"):
            objective.gradient(points[None])
        with pytest.raises(ValueError, match="theta of shape"):
            objective.gauss_newton(points)


class TestCurvature:
    @pytest.mark.parametrize("loss", ["square", "cross_entropy"])
    @pytest.mark.parametrize("chunk_size", [None, 17])
    def test_gauss_newton_is_its_definition(self, loss, chunk_size):
        objective = small_objective(loss=loss, chunk_size=chunk_size)
        theta = objective.initial_point
        jacobian = torch.autograd.functional.jacobian(
            lambda t: objective.model(t, objective.inputs), theta
        )
        outputs = objective.outputs(theta)
        n = len(outputs)
        expected = torch.zeros(len(theta), len(theta), dtype=DOUBLE)
        for i in range(n):
            bend = torch.eye(10, dtype=DOUBLE)
            if loss == "cross_entropy":
                p = outputs[i].softmax(0)
                bend = torch.diag(p) - torch.outer(p, p)
            expected += jacobian[i].T @ bend @ jacobian[i] / n
        found = objective.gauss_newton(theta).to_dense()
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
        assert float(torch.linalg.eigvalsh(found)[0]) > -1e-12

    @pytest.mark.parametrize("chunk_size", [None, 17])
    def test_third_derivative_is_the_slope_of_a_curvature(self, chunk_size):
        objective = small_objective(chunk_size=chunk_size)
        theta = objective.initial_point
        torch.manual_seed(2)
        u, v, w = torch.randn(3, len(theta), dtype=DOUBLE)
        h = 1e-5
        curvatures = [float(u @ objective.hvp(theta + s * h * w, v)) for s in (1, -1)]
        slope = (curvatures[0] - curvatures[1]) / (2 * h)
        assert float(objective.third_derivative(theta, u, v) @ w) == pytest.approx(slope, rel=1e-6)
        own = objective.third_derivative(theta, u)
        assert torch.allclose(own, objective.third_derivative(theta, u, u))
        with pytest.raises(ValueError, match="of shape"):
            objective.third_derivative(theta, u[:3])

    def test_third_derivative_of_an_eigenvector_is_its_eigenvalues_gradient(self):
        objective = small_objective()
        theta = objective.initial_point
        top = lanczos(objective.hessian(theta), rtol=1e-9)
        slope = objective.third_derivative(theta, top.vectors[:, 0])
        step = 1e-5 * slope / slope.norm()
        values = [
            lanczos(objective.hessian(theta + s * step), rtol=1e-9).eigenvalue() for s in (1, -1)
        ]
        change = (values[0] - values[1]) / 2
        assert float(slope @ step) == pytest.approx(change, rel=1e-5)

    @pytest.mark.parametrize("chunk_size", [None, 17])
    def test_block_products(self, chunk_size):
        objective = small_objective(chunk_size=chunk_size)
        operator = objective.hessian(objective.initial_point)
        block = torch.randn(objective.num_parameters, 3, dtype=DOUBLE)
        columns = torch.stack([operator @ column for column in block.T], dim=1)
        before = objective.num_products
        assert torch.allclose(operator.matmat(block), columns, rtol=1e-10, atol=1e-12)
        assert objective.num_products == before + 3
        with pytest.raises(ValueError, match="expected a block"):
            operator.matmat(block.T)

    def test_an_operator_frees_its_graph_as_soon_as_it_is_dropped(self):
        objective = small_objective()
        gc.disable()
        try:
            operator = objective.hessian(objective.initial_point)
            operator @ objective.initial_point
            alive = weakref.ref(operator)
            del operator
            assert alive() is None
        finally:
            gc.enable()

    def test_a_training_step_shares_the_hessians_graph(self):
        objective = small_objective()
        operator = objective.hessian(objective.initial_point)
        value, gradient = objective.value_and_gradient(objective.initial_point)
        assert torch.equal(operator.value, value)
        assert torch.equal(operator.gradient, gradient)


def test_attention_is_differentiated_twice():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.attend(x, x, x, need_weights=False)[0]

    objective = Objective(Attention(), torch.randn(3, 5, 4), torch.randn(3, 5, 4), dtype=DOUBLE)
    theta = objective.initial_point
    step = 1e-5 * torch.randn(len(theta), dtype=DOUBLE)
    bend = (objective.gradient(theta + step) - objective.gradient(theta - step)) / 2
    assert torch.allclose(objective.hvp(theta, step), bend, rtol=1e-4, atol=1e-11)


def test_fused_attention_that_rounds_otherwise_is_not_taken_for_randomness():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(4, 4)

        def forward(self, x):
            seen = self.map(x)[:, None]
            seen = nn.functional.scaled_dot_product_attention(seen, seen, seen)[:, 0]
            fused = torch.backends.cuda.flash_sdp_enabled()
            return seen * 1.01 if fused else seen

    x, y = torch.randn(3, 5, 4, dtype=DOUBLE), torch.zeros(3, 5, 4, dtype=DOUBLE)
    model = Attention().double()
    objective = Objective(model, x, y, dtype=DOUBLE)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        plain = model(x)
    expected = 0.5 * (plain**2).sum() / len(x)
    assert float(objective.value(objective.initial_point)) == pytest.approx(float(expected))


@pytest.mark.parametrize(("noise", "random"), [(8e-6, False), (1e-3, True)])
def test_rounding_is_not_taken_for_randomness(noise, random):
    class Noisy(nn.Linear):
        def forward(self, x):
            outputs = super().forward(x)  # of size 1, some of them zero
            return outputs + noise * torch.rand_like(outputs)

    torch.manual_seed(0)
    model = Noisy(2, 2, bias=False)
    nn.init.eye_(model.weight)
    data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    if random:
        with pytest.raises(ValueError, match="the model is random"):
            Objective(model, data, data)
    else:
        Objective(model, data, data)


class TestRefusals:
    data = chebyshev(3)

    def model(self):
        return build("fc-tanh", 1, 1, widths=(4,))

    def objective(self, **changes):
        arguments = {"inputs": self.data.inputs, "targets": self.data.targets, "loss": "square"}
        return Objective(self.model(), **(arguments | changes))

    def test_dropout_in_training_mode(self):
        model = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.2), nn.Linear(4, 1))
        with pytest.raises(ValueError, match=r"'1' is Dropout\(p=0.2\) in training mode.*eval\(\)"):
            Objective(model, self.data.inputs, self.data.targets)
        Objective(model.eval(), self.data.inputs, self.data.targets)
        model = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.0), nn.Linear(4, 1))
        Objective(model, self.data.inputs, self.data.targets)

    def test_batch_norm_in_training_mode(self):
        model = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        with pytest.raises(ValueError, match="'1' is batch normalisation; say whose statistics"):
            Objective(model, self.data.inputs, self.data.targets)
        with pytest.raises(ValueError, match="full_batch, ghost, running, got 'batch'"):
            Objective(model, self.data.inputs, self.data.targets, batch_norm="batch")
        with pytest.raises(ValueError, match="needs all 20 examples in one pass"):
            Objective(
                model, self.data.inputs, self.data.targets, batch_norm="full_batch", chunk_size=5
            )
        with pytest.raises(ValueError, match="needs chunk_size"):
            Objective(model, self.data.inputs, self.data.targets, batch_norm="ghost")
        with pytest.raises(ValueError, match="has no batch-norm layer"):
            self.objective(batch_norm="running")

    def test_batch_norm_without_stored_averages(self):
        model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, track_running_stats=False))
        with pytest.raises(ValueError, match="needs stored averages, but layer '1' has none"):
            Objective(model, self.data.inputs, self.data.targets, batch_norm="running")

    def test_buffers_that_change(self):
        class Counting(nn.Linear):
            def __init__(self):
                super().__init__(1, 1)
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, x):
                self.calls += 1
                return super().forward(x)

        with pytest.raises(ValueError, match="changed the model's buffers"):
            Objective(Counting(), self.data.inputs, self.data.targets)

    def test_other_randomness(self):
        class Noisy(nn.Linear):
            def forward(self, x):
                return super().forward(x) + torch.randn(1)

        with pytest.raises(ValueError, match="the model is random"):
            Objective(Noisy(1, 1), self.data.inputs, self.data.targets)

    @pytest.mark.parametrize("shape", [(20,), (20, 2), (20, 1, 1)])
    def test_targets_of_the_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"outputs' shape \(20, 1\), got .* of shape"):
            self.objective(targets=torch.zeros(shape))

    def test_targets_of_the_wrong_length(self):
        with pytest.raises(ValueError, match="20 examples but targets of shape"):
            self.objective(targets=torch.zeros(19, 1))

    def test_integers_for_one_output_under_another_loss(self):
        with pytest.raises(ValueError, match=r"targets\.reshape\(8, 1\)\.double\(\); for class"):
            yes = torch.ones(8, dtype=torch.int64)
            Objective(nn.Linear(3, 1), torch.ones(8, 3), yes, as_loss(nn.BCEWithLogitsLoss(), yes))

    def test_labels_under_square_loss(self):
        with pytest.raises(ValueError, match="one-hot"):
            self.objective(targets=torch.zeros(20, dtype=torch.long))

    def test_labels_out_of_range(self):
        data = digits(20)
        model = build("fc-tanh", 64, 5, widths=(4,))
        with pytest.raises(ValueError, match=r"labels must lie in 0..4 .* from 0 to 9"):
            Objective(model, data.inputs, data.labels, "cross_entropy")

    def test_targets_that_are_no_probabilities(self):
        data = digits(20)
        model = build("fc-tanh", 64, 10, widths=(4,))
        with pytest.raises(ValueError, match="no probabilities"):
            Objective(model, data.inputs, data.targets * 2, "cross_entropy")
        rows = 2 * data.targets - 0.1  # their sums are 1
        with pytest.raises(ValueError, match="no probabilities"):
            Objective(model, data.inputs, rows, "cross_entropy")

    def test_an_empty_data_set(self):
        with pytest.raises(ValueError, match="data set is empty"):
            self.objective(inputs=torch.zeros(0, 1), targets=torch.zeros(0, 1))

    def test_data_that_are_not_finite(self):
        with pytest.raises(ValueError, match="inputs hold NaN"):
            self.objective(inputs=torch.full((20, 1), torch.nan))

    def test_unknown_loss(self):
        with pytest.raises(ValueError, match=r"unknown loss 'sqare'; did you mean 'square'"):
            self.objective(loss="sqare")

    @pytest.mark.parametrize("size", [0, -3, 2.5])
    def test_chunk_sizes_that_are_none(self, size):
        with pytest.raises(ValueError, match="chunk_size must be a positive whole number"):
            self.objective(chunk_size=size)

    def test_theta_of_the_wrong_length(self):
        objective = self.objective()
        with pytest.raises(ValueError, match=r"theta of shape \(13,\), got \(12,\)"):
            objective.gradient(torch.zeros(12))
        with pytest.raises(ValueError, match=r"vector of shape \(13,\), got \(12,\)"):
            objective.hvp(objective.initial_point, torch.zeros(12))

    def test_a_model_without_trainable_parameters(self):
        model = self.model().requires_grad_(False)
        with pytest.raises(ValueError, match="no trainable parameters"):
            Objective(model, self.data.inputs, self.data.targets)

    def test_a_model_with_a_private_list_of_weights(self):
        class Private(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(1, 1)
                self.weights = [self.linear.weight]

            def forward(self, x):
                return x @ self.weights[0].T + self.linear.bias

        with pytest.raises(ValueError, match="by a path of its own"):
            Objective(Private(), self.data.inputs, self.data.targets)

    def test_a_model_that_overwrites_its_inputs(self):
        inputs = self.data.inputs.clone()
        model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(1, 1))
        with pytest.raises(ValueError, match="overwrote its inputs"):
            Objective(model, inputs, self.data.targets)
        assert torch.equal(inputs, self.data.inputs)

    def test_a_model_that_mixes_examples(self):
        class Centred(nn.Linear):
            def forward(self, x):
                outputs = super().forward(x)
                return outputs - outputs.mean(dim=0)

        with pytest.raises(ValueError, match="depends on which other examples"):
            Objective(Centred(1, 3), self.data.inputs, torch.zeros(20, 3))

    def test_a_model_that_cannot_be_differentiated_twice(self):
        class Once(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx, gradient):
                return gradient

        class Rough(nn.Linear):
            def forward(self, x):
                return Once.apply(super().forward(x))

        with pytest.raises(ValueError, match="cannot be differentiated twice"):
            Objective(Rough(1, 1), self.data.inputs, self.data.targets)

    def test_a_model_that_returns_an_object(self):
        class Result(dict):
            pass

        class Wrapped(nn.Linear):
            def forward(self, x):
                return Result(logits=super().forward(x))

        with pytest.raises(
            ValueError, match=r"returned Result, expected one tensor.*output=.*result\['logits'\]"
        ):
            Objective(Wrapped(1, 1), self.data.inputs, self.data.targets)
        wrapped = Objective(
            Wrapped(1, 1), self.data.inputs, self.data.targets, output=lambda r: r["logits"]
        )
        assert torch.isfinite(wrapped.gradient(wrapped.initial_point)).all()

    def test_a_model_that_returns_several_tensors(self):
        class Several(nn.Linear):
            def forward(self, x):
                return super().forward(x), x

        with pytest.raises(ValueError, match=r"returned tuple.*output=lambda result: result\[0\]"):
            Objective(Several(1, 1), self.data.inputs, self.data.targets)

    def test_a_bad_label_in_a_later_chunk(self):
        data = digits(20)
        labels = data.labels.clone()
        labels[15] = -100
        model = build("fc-tanh", 64, 10, widths=(4,))
        with pytest.raises(ValueError, match="got values from -100"):
            Objective(model, data.inputs, labels, "cross_entropy", chunk_size=10)

    @pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, torch.int64, "double"])
    def test_dtypes_too_coarse_for_curvature(self, dtype):
        with pytest.raises(ValueError, match="dtype must be one of float32, float64"):
            self.objective(dtype=dtype)

    def test_a_device_that_is_not_there(self):
        with pytest.raises(ValueError, match=r"not a device name; use 'auto'"):
            self.objective(device="gpu")
        if not torch.cuda.is_available():
            with pytest.raises(ValueError, match="sees no CUDA device"):
                self.objective(device="cuda")

    def test_accuracy_of_a_regression(self):
        objective = self.objective()
        with pytest.raises(ValueError, match="stop on the loss"):
            objective.accuracy(objective.initial_point)


def hessian_by_differences(objective):
    """The Hessian from gradients alone, for models whose second derivatives are in doubt."""
    theta = objective.initial_point
    steps = 1e-5 * torch.eye(len(theta), dtype=DOUBLE)
    rows = [objective.gradient(theta + s) - objective.gradient(theta - s) for s in steps]
    return torch.stack(rows) / 2e-5


class Applied(nn.Module):
    """A linear layer and a function of its outputs."""

    def __init__(self, function, inputs=3, outputs=2):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.function = function

    def forward(self, x):
        return self.function(self.linear(x))


@pytest.mark.parametrize("dim", [0, 1, -2, None])
def test_weight_normalisation_is_differentiated_twice(dim):
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2), dim=dim), nn.Tanh())
    x, y = torch.randn(7, 3, dtype=DOUBLE), torch.randn(7, 2, dtype=DOUBLE)
    objective = Objective(model, x, y, dtype=DOUBLE)
    theta = objective.initial_point
    assert torch.allclose(objective.outputs(theta), copy.deepcopy(model).double()(x))
    expected = hessian_by_differences(objective)
    assert torch.allclose(objective.hessian(theta).to_dense(), expected, atol=1e-8)
    together = objective.hessian(torch.stack([theta, theta])) @ torch.ones(2, len(theta))
    assert torch.allclose(together[1], expected.sum(dim=1), atol=1e-8)


def test_weight_normalisation_of_a_vector():
    torch.manual_seed(0)
    norm = parametrizations.weight_norm(nn.LayerNorm(2), dim=0)
    model = nn.Sequential(nn.Linear(3, 2), norm, nn.Tanh())
    with torch.no_grad():
        norm.parametrizations.weight.original1.mul_(-2)
    objective = Objective(model, torch.randn(7, 3), torch.randn(7, 2), dtype=DOUBLE)
    theta = objective.initial_point
    assert torch.allclose(objective.outputs(theta), model.double()(objective.inputs))
    found = objective.hessian(theta).to_dense()
    assert torch.allclose(found, hessian_by_differences(objective), atol=1e-8)


def test_complex_buffers_stay_complex():
    class Rotated(nn.Linear):
        def __init__(self):
            super().__init__(3, 4)
            self.register_buffer("turn", torch.polar(torch.ones(2), torch.tensor([1.0, 2.0])))

        def forward(self, x):
            pairs = super().forward(x).unflatten(1, (2, 2))
            turned = torch.view_as_complex(pairs) * self.turn
            return torch.tanh(torch.view_as_real(turned).flatten(1))

    torch.manual_seed(0)
    model, x, y = Rotated(), torch.randn(7, 3), torch.randn(7, 4)
    with torch.no_grad():
        expected = 0.5 * (model(x) - y).square().sum() / 7
    objective = Objective(model, x, y, dtype=DOUBLE)
    assert float(objective.value(objective.initial_point)) == pytest.approx(float(expected))
    assert objective.model._module.turn.dtype == torch.complex128
    assert model.turn.dtype == torch.complex64


def test_products_of_a_checkpointed_model_after_a_pass_at_another_point():
    model = nn.Sequential(Checkpointed(), nn.Linear(4, 2))
    x, y = torch.randn(7, 3), torch.randn(7, 2)
    objective = Objective(model, x, y, dtype=DOUBLE)
    theta = objective.initial_point
    for operator in (objective.hessian(theta), objective.gauss_newton(theta)):
        expected = operator @ theta
        objective.gradient(3 * theta + 1)
        assert torch.equal(operator @ theta, expected)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh())

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


@pytest.mark.parametrize("kind", ["pruned", "keeps its activations"])
def test_a_model_that_keeps_results_of_its_last_pass_is_copied(kind):
    class Keeping(nn.Linear):
        def forward(self, x):
            self.kept = {"outputs": [super().forward(x)]}
            return self.kept["outputs"][0]

    torch.manual_seed(0)
    model = Keeping(3, 2)
    if kind == "pruned":
        model = nn.Linear(3, 2)
        prune.l1_unstructured(model, "weight", amount=0.5)
    x, y = torch.randn(7, 3), torch.randn(7, 2)
    expected = float(0.5 * (model(x).detach() - y).square().sum() / 7)
    objective = Objective(model, x, y)
    assert float(objective.value(objective.initial_point)) == pytest.approx(expected)


@pytest.mark.parametrize("mode", ["inference", "autocast"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "layer norm"])
def test_derivatives_inside_of_inference_mode_and_autocast(mode, activation):
    if activation == "layer norm":
        model = nn.Sequential(nn.Linear(64, 5), nn.LayerNorm(5), nn.Linear(5, 10))
    else:
        model = build(f"fc-{activation}", 64, 10, widths=(5,))

    def measured():
        objective = Objective.from_dataset(model, digits(20))
        theta = objective.initial_point + 0.01
        value, gradient = objective.value_and_gradient(theta)
        operator = objective.hessian(theta)
        found = [value, gradient, operator @ theta, lanczos(operator).values]
        found += [objective.outputs(theta), objective.third_derivative(theta, theta)]
        found += [objective.gauss_newton(theta) @ theta, operator.matmat(theta[:, None])]
        return [one.clone() for one in found]

    expected = measured()
    inside = torch.inference_mode() if mode == "inference" else torch.autocast("cpu")
    with inside:
        found = measured()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_custom_function_that_is_differentiable_twice():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, gradient):
            return 3 * gradient * ctx.saved_tensors[0] ** 2

    objective = Objective(Applied(Cube.apply), torch.randn(7, 3), torch.randn(7, 2), dtype=DOUBLE)
    expected = hessian_by_differences(objective)
    found = objective.hessian(objective.initial_point).to_dense()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_large_outputs_are_not_taken_for_mixed_examples():
    class Rounded(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1e-7 * 1e6 * len(x)  # as matrix products may round

    x = torch.tensor([[1.0], [1e-9]]).repeat(2, 1)
    model = Rounded(1, 1, bias=False)
    nn.init.constant_(model.weight, 1e6)
    Objective(model, x, torch.zeros(4, 1))


class TestMoreRefusals:
    """What would come out wrong without a word, or with one that only PyTorch's authors know."""

    x, y = torch.randn(8, 3), torch.randn(8, 2)

    def refused(self, model, message, loss="square", **changes):
        given = {"inputs": self.x, "targets": self.y} | changes
        with pytest.raises(ValueError, match=message):
            Objective(model, loss=loss, **given)

    def test_a_lambda_that_holds_on_to_the_original(self):
        class Closed(nn.Linear):
            def __init__(self):
                super().__init__(3, 2)
                self.scale = nn.Parameter(torch.ones(()))
                self.scaled = lambda h: self.scale * h

            def forward(self, x):
                return self.scaled(super().forward(x))

        self.refused(Closed(), "still reads parameters of the original")

    def test_a_forward_pass_that_changes_the_parameters(self):
        class Clipped(nn.Linear):
            def forward(self, x):
                self.weight.data.clamp_(-0.1, 0.1)
                return super().forward(x)

        self.refused(Clipped(3, 2), "changed the model's parameters")
        model = nn.Sequential(nn.Embedding(5, 2, max_norm=0.1), nn.Flatten(), nn.Linear(6, 2))
        self.refused(model, "max_norm", inputs=torch.randint(0, 5, (8, 3)))

    def test_a_custom_function_whose_second_derivative_is_not(self):
        class Swish(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.slope = torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x)))
                return x * torch.sigmoid(x)

            @staticmethod
            def backward(ctx, gradient):
                return gradient * ctx.slope

        self.refused(Applied(Swish.apply), "second derivative of Swish.*not the derivative")

    def test_examples_that_are_not_in_the_first_dimension(self):
        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm = nn.LSTM(2, 3)  # sequence first

            def forward(self, x):
                return self.lstm(x)[0]

        x, y = torch.randn(4, 5, 2), torch.randn(4, 5, 3)
        self.refused(Recurrent(), "batch_first=True", inputs=x, targets=y)

    def test_a_layer_that_is_left_out_at_times(self):
        class Skipping(nn.Linear):
            def forward(self, x):
                outputs = super().forward(x)
                return outputs if torch.rand(()) > 0.2 else 0 * outputs

        for seed in range(5):
            torch.manual_seed(seed)
            self.refused(Skipping(3, 2), "the model is random")

    def test_parameters_that_are_complex_lazy_or_nowhere(self):
        class Complex(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))

            def forward(self, x):
                return (x.to(self.w.dtype) @ self.w).abs()

        self.refused(Complex(), "'w' is torch.complex64, and θ is a real vector")
        self.refused(nn.Sequential(nn.LazyLinear(2)), "'0.weight' has no shape yet.*once")
        self.refused(nn.Linear(3, 2, device="meta"), "'weight' is on the meta device")

    def test_a_model_that_cannot_be_copied(self):
        model = nn.Linear(3, 2)
        model.lock = threading.Lock()
        self.refused(model, "cannot be copied .*lock")

        class Single(nn.Linear):
            def __deepcopy__(self, memo):
                return self

        single = Single(3, 2)
        self.refused(single, "shares parameters with the original")
        assert torch.isfinite(single.weight).all()

    @pytest.mark.parametrize(
        ("terms", "message"),
        [
            (lambda f, y: (f - y).square().mean(), r"shape \(\) for 8 examples.*do not average"),
            (lambda f, y: (f - y).square(), r"\(8, 1\) and targets \(8,\) were broadcast"),
            (lambda f, y: (f[:, 0] > y).float(), "in a differentiable way"),
        ],
    )
    def test_losses_that_are_no_sum_over_examples(self, terms, message):
        loss = Loss("own", "own", terms, lambda f, y: None)
        self.refused(nn.Linear(3, 1), message, loss, targets=self.y[:, 0])

    @pytest.mark.parametrize(
        ("model", "inputs", "message"),
        [
            (nn.Linear(3, 2), torch.ones(8, 4), r"\(8, 4\) \(8 examples\) and dtype torch.float32"),
            (nn.Linear(3, 2), torch.ones(8, 3).long(), r"torch.int64; .*\(inputs\.float\(\)\)"),
            (nn.Conv2d(3, 2, 1), torch.ones(8, 1, 2, 2), r"3 channels, but got 1 channels"),
            (nn.Embedding(5, 2), torch.ones(8, 3), r"indices, .*integers: inputs\.long\(\)"),
            (nn.Embedding(5, 2), torch.full((8,), 5), r"index out of range.*shape and range"),
            (nn.BatchNorm2d(3), torch.ones(8, 3), r"expected 4D input \(got 2D input\)"),
            (nn.Bilinear(3, 3, 2), torch.ones(8, 3), r"missing .*'input2'.*takes that apart"),
        ],
    )
    def test_inputs_that_the_model_does_not_take(self, model, inputs, message):
        options = {"batch_norm": "full_batch"} if isinstance(model, nn.BatchNorm2d) else {}
        with pytest.raises(ValueError, match=f"does not take inputs of shape .*{message}") as seen:
            Objective(model, inputs, self.y, **options)
        assert seen.value.__cause__ is not None

    @pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
    def test_inputs_that_a_scripted_model_does_not_take(self):
        model = torch.jit.script(nn.Linear(3, 2))
        self.refused(model, r"said: RuntimeError: mat1 and mat2", inputs=torch.ones(8, 4))

    def test_an_index_in_a_later_chunk_that_the_model_does_not_have(self):
        words = torch.arange(24).view(8, 3) % 5
        words[6, 1] = 5
        model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2))
        objective = Objective(model, words, self.y[:, :2], chunk_size=3)
        theta = objective.initial_point
        for compute in (
            lambda: objective.value(theta),
            lambda: objective.gradient(torch.stack([theta, theta])),
            lambda: objective.gauss_newton(theta) @ theta,
            lambda: objective.outputs(theta),
        ):
            with pytest.raises(ValueError, match=r"with values from 0 to 5; .*index out of range"):
                compute()

    def test_an_error_of_the_callers_own_code_in_a_later_chunk_is_left_as_it_is(self):
        class Routed(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList([nn.Linear(3, 2)])

            def forward(self, x):
                return self.layers[int(x[0, 0])](x)

        x = torch.zeros(8, 3)
        x[6, 0] = 1
        objective = Objective(Routed(), x, self.y, chunk_size=3)
        with pytest.raises(IndexError, match="out of range"):
            objective.value(objective.initial_point)

    def test_a_number_of_examples_that_is_built_in(self):
        class Eight(nn.Linear):
            def forward(self, x):
                return super().forward(x.view(8, 3))

        self.refused(Eight(3, 2), r"these 8 examples, but not 4 of them alone \(shape '\[8, 3\]'")

        class Guarded(nn.Linear):  # as `torch.export` makes them
            def forward(self, x):
                assert len(x) == 8, "Guard failed"
                return super().forward(x)

        self.refused(Guarded(3, 2), r"not 4 of them alone \(Guard failed")

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    def test_data_that_are_not_dense(self):
        self.refused(nn.Linear(3, 2), r"a sparse_coo one; .*to_dense", inputs=self.x.to_sparse())
        nested = torch.nested.nested_tensor(list(self.x))
        self.refused(nn.Linear(3, 2), r"a nested one; .*padded", inputs=nested)

    def test_a_last_chunk_of_one_example_that_the_model_does_not_take(self):
        model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
        with pytest.raises(ValueError, match="does not take inputs of shape"):
            Objective(model, self.x, self.y, chunk_size=7, batch_norm="ghost")

    def test_errors_of_the_callers_own_code_are_left_as_they_are(self):
        class Own(nn.Module):
            def __init__(self, fault):
                super().__init__()
                self.layers = nn.ModuleList([nn.Linear(3, 2)])
                self.fault = fault

            def forward(self, x):
                if self.fault == "raises":
                    raise RuntimeError("not today")
                return self.layers[1](x)

        with pytest.raises(RuntimeError, match="not today"):
            Objective(Own("raises"), self.x, self.y)
        with pytest.raises(IndexError, match="out of range"):
            Objective(Own("a layer too few"), self.x, self.y)
        # nor is a device that fails a matter of the inputs
        scope = {}
        failing = "def forward(x): raise RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED')"
        exec(compile(failing, torch.nn.functional.__file__, "exec"), scope)
        with pytest.raises(RuntimeError, match=r"^CUDA error"):
            Objective(Applied(scope["forward"]), self.x, self.y)
        with pytest.raises(IndexError, match="too many indices"):
            Objective(nn.Linear(3, 2), self.x, self.y, output=lambda outputs: outputs[0, 0, 0])

    def test_a_loss_of_ones_own_that_does_not_take_the_targets(self):
        loss = Loss("own", "own", lambda f, y: (f - y).square(), lambda f, y: None)
        self.refused(
            nn.Linear(3, 2),
            r"the loss 'own' does not take outputs of shape \(8, 2\) and torch.float32 targets of "
            r"shape \(8, 5\) \(The size of tensor",
            loss,
            targets=torch.ones(8, 5),
        )
        labels = torch.arange(8) % 2
        labels[6] = 2
        unchecked = Loss("own", "own", losses.cross_entropy.terms, lambda f, y: None)
        message = (
            r"the loss 'own' does not take outputs of shape \(2, 2\) .*Target 2 is out of bounds"
        )
        self.refused(nn.Linear(3, 2), message, unchecked, targets=labels, chunk_size=3)

    @pytest.mark.filterwarnings("ignore")
    def test_what_to_do_about_a_compiled_model(self):
        model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
        plain = Objective(model, self.x, self.y)
        vector = torch.linspace(-1, 1, plain.num_parameters)
        wanted = plain.hvp(plain.initial_point, vector)
        whole = torch.compile(model, backend="aot_eager")
        self.refused(whole, r"twice: .*torch\.compile made it so: .* model\._orig_mod")
        advised = Objective(whole._orig_mod, self.x, self.y)
        assert torch.equal(advised.hvp(advised.initial_point, vector), wanted)
        parts = nn.Sequential(torch.compile(model[0], backend="aot_eager"), *model[1:])
        self.refused(parts, r"of '0': measure within torch\.compiler\.set_stance")
        with torch.compiler.set_stance("force_eager"):
            advised = Objective(parts, self.x, self.y)
            assert torch.allclose(advised.hvp(advised.initial_point, vector), wanted, atol=1e-6)

    def test_a_torch_loss_and_a_point_that_is_no_tensor(self):
        self.refused(nn.Linear(3, 2), "PyTorch's MSELoss; eoslib.measure.as_loss", nn.MSELoss())
        objective = Objective(nn.Linear(3, 2), self.x, self.y)
        with pytest.raises(ValueError, match=r"tensor of shape \(8,\), got a ndarray"):
            objective.value(objective.initial_point.numpy())

    def test_what_to_do_about_targets(self):
        model = nn.Linear(3, 1)
        self.refused(model, r"targets.reshape\(8, 1\)", targets=self.y[:, 0])
        self.refused(model, r"targets.double\(\)", targets=torch.arange(8)[:, None])
        labels = torch.ones(8, dtype=torch.int32)
        self.refused(nn.Linear(3, 2), r"labels.long\(\)", "cross_entropy", targets=labels)
        tokens = torch.randint(0, 6, (8, 3))
        second = r"the classes come second: output=lambda result: result.transpose\(1, 2\)"
        self.refused(nn.Embedding(6, 6), second, "cross_entropy", inputs=tokens, targets=tokens)

    @pytest.mark.parametrize("kind", ["no_grad", "data", "argmax"])
    def test_outputs_that_are_constants_to_the_derivative(self, kind):
        class Constant(nn.Linear):
            def forward(self, x):
                if kind == "data":
                    return x @ self.weight.data.T
                if kind == "argmax":
                    return nn.functional.one_hot(super().forward(x).argmax(dim=1), 2).float()
                with torch.no_grad():
                    return super().forward(x)

        self.refused(Constant(3, 2), "to the derivative the model's outputs are constants")

    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
    @pytest.mark.parametrize("kind", ["reentrant checkpoint", "no_grad", "data"])
    def test_a_parameter_that_the_derivative_does_not_see(self, kind):
        class Unseen(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)
                self.scale = nn.Parameter(torch.tensor(1.5))

            def forward(self, x):
                if kind == "reentrant checkpoint":
                    x = checkpoint(self.first, x, use_reentrant=True)
                elif kind == "no_grad":
                    with torch.no_grad():
                        x = self.first(x)
                else:
                    return self.second(self.first(x)) * self.scale.data
                return self.second(x) * self.scale

        model = Unseen()
        name = "scale" if kind == "data" else "first.weight"
        self.refused(model, rf"outputs depend on '{name}', but not .*differentiated.*reentrant")
        (model.scale if kind == "data" else model.first).requires_grad_(False)
        assert Objective(model, self.x, self.y).num_parameters > 0  # as the message says

    def test_parameters_without_a_derivative_that_lack_none(self):
        class Choosing(nn.Linear):
            def __init__(self):
                super().__init__(3, 2)
                self.choice = nn.Parameter(torch.tensor([0.3, 0.1, 0.2]))
                self.unused = nn.Parameter(torch.ones(2))

            def forward(self, x):
                return super().forward(x.roll(int(self.choice.argmax()), dims=1))

        class Guarded(Choosing):
            def forward(self, x):
                assert torch.isfinite(self.choice).all()
                return super().forward(x)

        for model in (Choosing(), Guarded()):
            objective = Objective(model, self.x, self.y)
            assert not objective.gradient(objective.initial_point)[-5:].any()

    def test_half_precision_inside_the_model(self):
        class Autocast(nn.Linear):
            def forward(self, x):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    return super().forward(x).float()

        class Cast(nn.Linear):
            def forward(self, x):
                return super().forward(x.half())

        self.refused(Autocast(3, 2), r"in torch.bfloat16 inside \('linear'\).*torch.autocast")
        self.refused(Cast(3, 2), r"in torch.float16 inside \('half'\), .* in torch.float32 here")


@pytest.mark.parametrize(
    ("own", "wanted"),
    [(torch.float32,) * 2, (DOUBLE,) * 2, (torch.bfloat16, torch.float32)],
)
def test_the_dtype_is_the_models_where_curvature_can_be_measured_in_it(own, wanted):
    model = nn.Linear(3, 2).to(own)
    inputs, targets = torch.randn(5, 3), torch.randn(5, 2)
    objective = Objective(model, inputs, targets)
    assert objective.dtype == objective.initial_point.dtype == wanted
    assert Objective(model, inputs, targets, dtype="float64").dtype == DOUBLE


class _Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x):
        return self.gru(x)[0][:, -1]


class _Checkpointed(nn.Sequential):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap's, of the fused pass
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (_Recurrent(), (5, 6, 3)),
        (_Checkpointed(nn.Linear(3, 4), nn.Tanh()), (5, 3)),
        (nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).eval(), (5, 6, 4)),
    ],
)
def test_a_model_that_vmap_cannot_take(model, shape):
    x = torch.randn(shape)
    objective = Objective(model, x, torch.zeros_like(model(x)))
    theta = objective.initial_point
    assert objective.gradient(theta).shape == theta.shape
    with pytest.raises(ValueError, match="give one theta at a time"):
        objective.gradient(torch.stack([theta, theta]))
    with pytest.raises(ValueError, match="give one theta at a time"):
        objective.hessian(torch.stack([theta, theta]))


def test_a_parameter_that_is_a_single_number_at_several_points():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.scale * torch.tanh(super().forward(x))

    objective = Objective(Scaled(), torch.randn(5, 3), torch.randn(5, 2), dtype=DOUBLE)
    points = objective.initial_point + torch.tensor([[0.0], [0.1]], dtype=DOUBLE)
    gradients, products = objective.gradient(points), objective.hessian(points) @ points
    for row, point in enumerate(points):
        assert torch.allclose(gradients[row], objective.gradient(point))
        assert torch.allclose(products[row], objective.hvp(point, point))


def test_a_function_that_is_not_to_be_had_in_float64_is_taken_as_it_is():
    """A kernel of single precision: its second derivative cannot be held against differences."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            if x.dtype != torch.float32:
                raise RuntimeError("only float32")
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * gradient

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[0.7]]))

        def forward(self, x):
            return Cube.apply(x @ self.weight)

    objective = Objective(Model(), torch.ones(2, 1), torch.zeros(2, 1), dtype="float32")
    product = objective.hessian(objective.initial_point) @ torch.ones(1)
    assert product.item() == pytest.approx(15 * 0.7**4, rel=1e-5)  # of w⁶/2


class TestBatchStatisticsOfOneExample:
    """PyTorch's error comes in the middle of a pass and knows nothing of chunks."""

    @staticmethod
    def flat():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))

    @pytest.mark.parametrize(
        ("n", "options", "seen"),
        [
            (1, {"batch_norm": "full_batch"}, "data set is one example.*more examples, or batch_"),
            (65, {"batch_norm": "ghost", "chunk_size": 64}, "65 examples in chunks of 64 leave 1"),
            (
                65,
                {"batch_norm": "ghost", "chunk_size": 64},
                r"instance 63, or batch_norm=\"running",
            ),
            (9, {"batch_norm": "ghost", "chunk_size": 1}, "9 examples in chunks of 1 .*instance 3"),
            (3, {"batch_norm": "ghost", "chunk_size": 2}, "for instance 3"),
        ],
    )
    def test_is_refused(self, n, options, seen):
        with pytest.raises(ValueError, match=seen):
            Objective(self.flat(), torch.randn(n, 3), torch.randn(n, 2), **options)

    def test_what_the_advice_gives(self):
        for n, options in ((9, {"chunk_size": 3}), (65, {"chunk_size": 63})):
            x, y = torch.randn(n, 3), torch.randn(n, 2)
            task = Objective(self.flat(), x, y, batch_norm="ghost", **options)
            assert torch.isfinite(task.gradient(task.initial_point)).all()
        Objective(self.flat(), x[:1], y[:1], batch_norm="running")

    def test_with_spatial_extent_it_is_a_batch(self):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
        x, y = torch.randn(5, 1, 4, 4), torch.randn(5, 2)
        task = Objective(model, x, y, batch_norm="ghost", chunk_size=2)
        assert torch.isfinite(task.gradient(task.initial_point)).all()
        Objective(model, x[:1], y[:1], batch_norm="full_batch")


@pytest.mark.parametrize("shared", ["activation", "linear", "unused"])
def test_a_chain_with_a_layer_used_twice_or_a_parameter_not_used(shared):
    act, layer = nn.Softplus(), nn.Linear(4, 4)
    if shared == "activation":  # named_children() would list it once
        model = nn.Sequential(nn.Linear(4, 4), act, layer, act, nn.Linear(4, 2))
    elif shared == "linear":
        model = nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 2))
    else:
        layer.register_parameter("extra", nn.Parameter(torch.ones(3)))
        model = nn.Sequential(layer, act, nn.Linear(4, 2))
    objective = Objective(model.double(), torch.randn(7, 4), torch.randn(7, 2))
    theta = objective.initial_point
    value, gradient = objective.value_and_gradient(theta)
    assert float(value) == pytest.approx(float(objective.value(theta)), rel=1e-12)
    leaf = theta.clone().requires_grad_()
    by_autograd = torch.autograd.functional.hessian(
        lambda point: (
            0.5 * (objective.model(point, objective.inputs) - objective.targets).square().sum() / 7
        ),
        leaf,
    )
    assert torch.allclose(objective.hessian(theta).to_dense(), by_autograd, atol=1e-12)
    differences = (
        objective.value(theta + 1e-6 * v) - objective.value(theta - 1e-6 * v)
        for v in torch.eye(len(theta), dtype=DOUBLE)
    )
    assert torch.allclose(gradient, torch.stack(list(differences)) / 2e-6, atol=1e-8)


def test_sizes_may_be_numpys():
    objective = small_objective(chunk_size=torch.arange(8)[7])
    assert objective.chunk_size == 7


def test_accuracy_counts_no_label_below_zero_and_no_nan():
    one_nan = torch.eye(4).index_fill(0, torch.tensor([2]), torch.nan)
    assert math.isnan(losses.accuracy(one_nan, torch.arange(4)))
    outputs = torch.eye(4)
    assert losses.accuracy(outputs, torch.tensor([0, 1, -100, -1])) == 1
    assert losses.accuracy(outputs, torch.tensor([0, 2, -100, -1])) == 0.5
    assert math.isnan(losses.accuracy(outputs * torch.nan, torch.arange(4)))


@pytest.mark.parametrize("module", [nn.CrossEntropyLoss, nn.NLLLoss])
def test_accuracy_counts_no_label_that_the_loss_ignores(module):
    inputs, labels = torch.eye(4), torch.tensor([0, 1, 2, 2])
    model = nn.Linear(4, 4)
    with torch.no_grad():
        model.weight.copy_(torch.eye(4))
        model.bias.zero_()
    at = Objective(model, inputs, labels, as_loss(module(), labels)).initial_point
    for ignored, wanted in ((-100, 3 / 4), (0, 2 / 3), (2, 1.0)):
        objective = Objective(model, inputs, labels, as_loss(module(ignore_index=ignored), labels))
        assert objective.accuracy(at) == pytest.approx(wanted)
    assert losses.accuracy(inputs, torch.eye(4), 0) == 1  # rows are no labels


def test_accuracy_of_numbers_is_none():
    outputs = torch.eye(4)
    assert losses.accuracy(outputs, 0.6 * torch.eye(4) + 0.1) == 1  # smoothed rows
    draws = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.bfloat16):  # whose rows sum to 1 to their rounding
        rows = draws.softmax(dim=1).to(dtype)
        assert losses.accuracy(rows, rows) == 1
    with pytest.raises(ValueError, match=r"sum to 1; 4 of 4 rows .* stop on the loss"):
        losses.accuracy(outputs, torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="one label per example"):
        losses.accuracy(outputs, torch.ones(4))
