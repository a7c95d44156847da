"""The first three derivatives of convolutions, against PyTorch's own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from eoslib import Objective
from eoslib.convolution_derivatives import _Convolution, is_ours, with_fast_second_derivatives

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]
OPTIONS = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "strided past the border": {"stride": 3, "kernel_size": 2},
    "pointwise": {"kernel_size": 1, "stride": 2},
    "dilated": {"padding": 2, "dilation": 2},
    "grouped": {"groups": 2, "padding": 1},
    "without bias": {"bias": False},
}


def network(options=(), kind=nn.Conv2d, device="cpu") -> nn.Sequential:
    torch.manual_seed(0)
    dimensions = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[kind]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dimensions - 1]
    return nn.Sequential(
        kind(4, 6, 3, padding=1),
        nn.Tanh(),
        kind(6, 4, **{"kernel_size": 3, **dict(options)}),
        nn.Tanh(),
        pool(1),
        nn.Flatten(),
    ).to(device, torch.float64)


def images(kind=nn.Conv2d, device="cpu") -> Tensor:
    dimensions = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[kind]
    generator = torch.Generator().manual_seed(1)
    shape = (5, 4, *[8] * dimensions)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)


def derivatives(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Loss, gradient, a product with the Hessian and one with the third derivative."""
    points = [p for p in model.parameters() if p.requires_grad] + [x.requires_grad_()]
    vectors = [torch.sin(torch.arange(p.numel()).to(p)).view_as(p) for p in points]
    number = (model(x) ** 2).sum() + (model(x) ** 3).sum()
    results = [number]
    for _ in range(3):
        parts = torch.autograd.grad(number, points, create_graph=True, materialize_grads=True)
        number = sum((part * v).sum() for part, v in zip(parts, vectors, strict=True))
        results.append(torch.cat([part.reshape(-1) for part in parts]))
    return results


def ours_in(model: nn.Module, x: Tensor) -> int:
    """How many of our nodes the graph of the outputs has."""
    waiting, seen, count = [model(x).grad_fn], set(), 0
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            count += is_ours(node)
            waiting.extend(after for after, _ in node.next_functions)
    return count


def agree(model: nn.Module, x: Tensor) -> None:
    other = copy.deepcopy(model)
    with_fast_second_derivatives(other)
    assert ours_in(other, x) == 2 and ours_in(model, x) == 0
    for want, got in zip(derivatives(model, x), derivatives(other, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_derivatives_up_to_the_third_are_pytorchs(options, device):
    agree(network(options, device=device), images(device=device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d])
def test_in_one_and_three_dimensions(kind, device):
    agree(network({"padding": 1}, kind, device), images(kind, device))


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_frozen_parameters(frozen):
    model = network()
    getattr(model[2], frozen).requires_grad_(False)
    agree(model, images())


def test_several_points_at_once():
    model = network({"stride": 2})
    x = images()
    targets = torch.zeros(len(x), 4, dtype=torch.float64)
    objective = Objective(model, x, targets, dtype="float64")
    points = torch.stack([objective.initial_point, 1.5 * objective.initial_point])
    vectors = torch.cos(torch.arange(points.numel(), dtype=torch.float64)).view_as(points)
    both = objective.hvp(points, vectors)
    for point, vector, got in zip(points, vectors, both, strict=True):
        torch.testing.assert_close(got, objective.hvp(point, vector), rtol=1e-10, atol=1e-12)


def test_an_objective_uses_them_and_leaves_the_given_model_alone(monkeypatch):
    model = network()
    calls = []
    apply = _Convolution.apply
    monkeypatch.setattr(_Convolution, "apply", lambda *args: calls.append(1) or apply(*args))
    objective = Objective(model, images(), torch.zeros(5, 4))
    calls.clear()
    objective.value(objective.initial_point)
    assert len(calls) == 2
    model.float()(images().float())
    objective.module_at(objective.initial_point).double()(images())
    assert len(calls) == 2


def test_a_copy_computes_with_its_own_weights_and_can_be_pickled():
    model = network()
    with_fast_second_derivatives(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = other(images())
        with torch.no_grad():
            model[0].weight.mul_(2)
        assert torch.equal(other(images()), before)
        with torch.no_grad():
            model[0].weight.div_(2)


class _Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class _Hidden(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return 2 * super()._conv_forward(x, weight, bias)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
        _Doubled(4, 6, 3),
        _Hidden(4, 6, 3),
        nn.ConvTranspose2d(4, 6, 3),
    ],
    ids=["padding by name", "circular", "own forward", "own pass", "transposed"],
)
def test_other_layers_are_left_alone(layer):
    layer = layer.double()
    want = layer(images())
    with_fast_second_derivatives(layer)
    assert ours_in(layer, images()) == 0
    assert torch.equal(layer(images()), want)


def test_one_image_without_a_batch():
    layer = nn.Conv2d(4, 6, 3).double()
    want = layer(images()[0])
    with_fast_second_derivatives(layer)
    torch.testing.assert_close(layer(images()[0]), want)


def test_a_parametrized_layer_computes_with_what_its_parameter_stands_for():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)).double()
    want = layer(images())
    with_fast_second_derivatives(layer)
    assert ours_in(layer, images()) == 1
    torch.testing.assert_close(layer(images()), want)
