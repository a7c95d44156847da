"""The first three derivatives of convolutions and norms, against PyTorch's and differences."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from eoslib import Objective, build
from eoslib.second_derivatives import FastSecondDerivatives, _Convolution
from tests.accelerator import CUDA

DEVICES = ["cpu", CUDA]
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


def nodes(outputs: Tensor) -> set[str]:
    """The names of our nodes in the graph of the outputs."""
    waiting, seen, names = [outputs.grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.add(type(node).__name__)
            waiting.extend(after for after, _ in node.next_functions)
    return names & {"_ConvolutionBackward", "_BatchNormBackward"}


def fast_in(model: nn.Module, x: Tensor) -> set[str]:
    with FastSecondDerivatives():
        return nodes(model(x))


def agree(model: nn.Module, x: Tensor) -> None:
    assert fast_in(model, x) == {"_ConvolutionBackward"} and not nodes(model(x))
    with FastSecondDerivatives():
        fast = derivatives(model, x)
    for want, got in zip(derivatives(model, x), fast, strict=True):
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


@pytest.mark.parametrize(
    ("layer", "call"),
    [
        (nn.Conv2d(4, 6, 3, padding="same"), None),
        (nn.Conv2d(4, 6, 3, dtype=torch.complex128), None),
        (nn.ConvTranspose2d(4, 6, 3), None),
        (nn.BatchNorm2d(4), None),
        (nn.BatchNorm2d(4).eval(), None),
        (nn.Conv2d(4, 6, 3), lambda layer, x: layer(x[0])),
        (nn.Conv2d(4, 6, 3), lambda layer, x: torch.vmap(lambda z: layer(z[None])[0])(x)),
        (nn.Conv2d(4, 6, 3), lambda layer, x: torch.func.jvp(layer, (x,), (x,))[1]),
    ],
    ids=[
        *("padding by name", "complex", "transposed", "running statistics", "eval"),
        *("one image", "vmap", "jvp"),
    ],
)
def test_what_is_left_to_pytorch(layer, call):
    layer = layer if layer.weight.is_complex() else layer.double()
    x = images().to(layer.weight.dtype)
    call = call or (lambda layer, x: layer(x))
    want = call(copy.deepcopy(layer), x)
    with FastSecondDerivatives():
        got = call(layer, x)
    assert not nodes(got) and torch.equal(got, want)


class _Circular(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias)


def _replica(layer: nn.Module) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            other = self.layer._replicate_for_data_parallel()
            other._parameters = {name: 3 * p for name, p in self.layer._parameters.items()}
            return other(x)

    return Model()


def _surgery() -> nn.Module:
    layer = nn.Conv2d(4, 6, 3, padding=1)
    layer.stride, layer.padding, layer.dilation = 2, 1, 1
    return layer


def _redraw(model: nn.Module) -> None:
    """Weights that follow from the seed: those of the parameters of tests are drawn at import."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))


class _InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.tanh_()


class _Checkpointed(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layers, x, use_reentrant=False)


@pytest.mark.parametrize(
    "first",
    [
        nn.Conv2d(4, 6, 3),
        _Circular(4, 6, 3),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)),
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), _InPlace()),
        _replica(nn.Conv2d(4, 6, 3)),
        _surgery(),
        _Checkpointed(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Tanh()),
    ],
    ids=[
        *("plain", "own pass", "circular", "weight norm", "batch norm and in place"),
        *("replica", "surgery", "checkpoint"),
    ],
)
def test_products_of_an_objective_are_differences_of_gradients(first):
    torch.manual_seed(0)
    model = nn.Sequential(first, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3))
    _redraw(model)
    x, targets = images(), torch.zeros(5, 3)
    norm = any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    options = {"batch_norm": "full_batch"} if norm else {}
    objective = Objective(model, x, targets, dtype="float64", **options)
    assert objective.model._fast
    theta = objective.initial_point
    assert torch.equal(objective.hessian(theta).gradient, objective.gradient(theta))
    v = torch.sin(torch.arange(len(theta), dtype=theta.dtype))
    h = 1e-5
    slope = (objective.gradient(theta + h * v) - objective.gradient(theta - h * v)) / (2 * h)
    product = objective.hvp(theta, v)
    torch.testing.assert_close(product, slope, rtol=1e-5, atol=1e-7)
    if not isinstance(first, _Checkpointed):  # which knows one point at a time
        both = objective.hvp(torch.stack([theta, theta]), torch.stack([v, v]))
        torch.testing.assert_close(both[1], product, rtol=1e-9, atol=1e-11)


def test_fast_derivatives_are_used_for_products_only_and_only_where_they_agree(monkeypatch):
    used = []
    enter = FastSecondDerivatives.__enter__
    monkeypatch.setattr(FastSecondDerivatives, "__enter__", lambda m: used.append(1) or enter(m))
    objective = Objective(network(), images(), torch.zeros(5, 4), dtype="float64")
    assert used
    used.clear()
    theta = objective.initial_point
    objective.value_and_gradient(theta)
    objective.outputs(theta)
    assert not used
    want = objective.hvp(theta, theta)
    assert used
    wrong = _Convolution.backward
    monkeypatch.setattr(
        _Convolution, "backward", staticmethod(lambda ctx, g: wrong(ctx, g * g.detach().cos()))
    )
    careful = Objective(network(), images(), torch.zeros(5, 4), dtype="float64")
    assert not careful.model._fast
    torch.testing.assert_close(careful.hvp(theta, theta), want)


def test_a_network_without_such_layers_is_not_tried():
    objective = Objective(nn.Linear(3, 2), torch.ones(4, 3), torch.zeros(4, 2))
    assert objective.model._fast is False


class _Elementary(nn.Module):
    """A batch norm of sums and products."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        others, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        x = x - x.mean(others).view(shape)
        x = x / (x.square().mean(others).view(shape) + self.layer.eps).sqrt()
        if not self.layer.affine:
            return x
        return x * self.layer.weight.view(shape) + self.layer.bias.view(shape)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("frozen", [None, "weight", "bias"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm2d(4, track_running_stats=False), (5, 4, 6, 6)),
        (nn.BatchNorm2d(4, affine=False, track_running_stats=False), (5, 4, 6, 6)),
        (nn.BatchNorm1d(4, eps=0.3, track_running_stats=False), (7, 4)),
        (nn.BatchNorm1d(4, track_running_stats=False), (7, 4, 3)),
        (nn.BatchNorm3d(4, track_running_stats=False), (3, 4, 2, 2, 2)),
    ],
    ids=["images", "without weights", "vectors", "sequences", "volumes"],
)
def test_derivatives_of_batch_norm_up_to_the_third(layer, shape, frozen, device):
    if frozen and not layer.affine:
        pytest.skip("nothing to freeze")
    layer = copy.deepcopy(layer).to(device, torch.float64)
    generator = torch.Generator().manual_seed(0)
    if layer.affine:
        with torch.no_grad():
            layer.weight += 0.3 * torch.randn(4, generator=generator).to(layer.weight)
            layer.bias += 0.3 * torch.randn(4, generator=generator).to(layer.bias)
        if frozen:
            getattr(layer, frozen).requires_grad_(False)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(device)
    want = derivatives(nn.Sequential(_Elementary(layer), nn.Tanh()), x.clone())
    other = nn.Sequential(layer, nn.Tanh())
    assert fast_in(other, x.clone().requires_grad_()) == {"_BatchNormBackward"}
    with FastSecondDerivatives():
        fast = derivatives(other, x.clone())
    for exact, got in zip(want, fast, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [(1, 4), (4,), (3, 4, 2)])
def test_batch_norm_refuses_in_pytorchs_words(shape):
    layer = nn.BatchNorm2d(4, track_running_stats=False)
    if shape == (1, 4):
        layer = nn.BatchNorm1d(4, track_running_stats=False)
    with pytest.raises(ValueError) as given:
        layer(torch.ones(shape))
    with FastSecondDerivatives(), pytest.raises(ValueError) as got:
        layer(torch.ones(shape))
    assert str(got.value) == str(given.value)


class _Between(nn.Module):
    """Something between two layers of weights, so that all its derivatives count."""

    def __init__(self, between, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first = nn.Linear(3, torch.Size(shape).numel())
        self.between, self.shape = between, shape
        self.scale = nn.Parameter(torch.tensor(0.8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.scale * self.between(self.first(x).view(-1, *self.shape)).flatten(1))


@pytest.mark.parametrize(
    ("between", "shape", "options"),
    [
        (nn.BatchNorm1d(6), (6,), {"batch_norm": "full_batch"}),
        (nn.BatchNorm1d(6, eps=0.5), (6,), {"batch_norm": "running"}),
        (nn.LayerNorm(6), (6,), {}),
        (nn.LayerNorm((2, 3), elementwise_affine=False), (2, 3), {}),
        (nn.InstanceNorm1d(3, affine=True), (3, 4), {}),
        (nn.InstanceNorm2d(3), (3, 2, 2), {}),
        (nn.InstanceNorm1d(3, track_running_stats=True).eval(), (3, 4), {}),
        (nn.GroupNorm(2, 4), (4, 3), {}),
        (nn.TransformerEncoderLayer(4, 2, 8, 0.0, "gelu", batch_first=True), (5, 4), {}),
        (lambda x: F.layer_norm(x, (6,)), (6,), {}),
        (lambda x: torch.layer_norm(x, (6,)), (6,), {}),
        (lambda x: torch.layer_norm(input=x, normalized_shape=(6,), cudnn_enable=False), (6,), {}),
        (lambda x: F.instance_norm(x), (3, 4), {}),
        (
            lambda x: torch.ops.aten._native_batch_norm_legit_no_training(
                x, None, None, x.new_zeros(6), x.new_full((6,), 0.5), 0.1, 1e-5
            )[0],
            (6,),
            {},
        ),
    ],
    ids=[
        *("batch norm", "with running statistics", "layer norm", "over two dimensions"),
        *("instance norm", "of images", "by stored statistics", "group norm", "Transformer"),
        *("F.layer_norm", "torch.layer_norm", "by keywords", "F.instance_norm"),
        "exported batch norm",
    ],
)
def test_third_derivatives_of_norms_are_differences_of_products(between, shape, options):
    # PyTorch's own are wrong by a tenth: its second derivatives take mean and scale for constants.
    torch.manual_seed(0)
    model = _Between(between, shape)
    _redraw(model)
    x = torch.randn(9, 3, dtype=torch.float64)
    targets = torch.zeros(9, torch.Size(shape).numel())
    objective = Objective(model, x, targets, dtype="float64", **options)
    theta = objective.initial_point
    u, v, w = torch.randn(3, len(theta), dtype=torch.float64)
    h = 1e-5
    slope = (objective.hvp(theta + h * w, v) - objective.hvp(theta - h * w, v)) / (2 * h)
    assert float(objective.third_derivative(theta, u, v) @ w) == pytest.approx(
        float(u @ slope), rel=1e-5
    )


def test_a_norm_inside_a_checkpoint_has_no_third_derivative():
    model = nn.Sequential(_Checkpointed(nn.Linear(3, 4), nn.LayerNorm(4)), nn.Linear(4, 1))
    objective = Objective(model, torch.ones(5, 3), torch.zeros(5, 1), dtype="float64")
    theta = objective.initial_point
    with pytest.raises(ValueError, match="norm inside an activation checkpoint"):
        objective.third_derivative(theta, theta)


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
@pytest.mark.parametrize(
    ("between", "shape"),
    [
        (lambda: torch.jit.script(nn.LayerNorm(6)), (6,)),
        (lambda: torch.jit.trace(nn.LayerNorm(6), torch.ones(9, 6)), (6,)),
        (lambda: torch.jit.script(nn.Sequential(nn.Tanh(), nn.InstanceNorm1d(3))), (3, 4)),
        (lambda: lambda x: torch.native_layer_norm(x, (6,), None, None, 1e-5)[0], (6,)),
    ],
    ids=["scripted", "traced", "deep inside", "native"],
)
def test_a_norm_out_of_sight_has_no_third_derivative(between, shape):
    model, x = _Between(between(), shape), torch.randn(9, 3)
    objective = Objective(model, x, torch.zeros(9, torch.Size(shape).numel()), dtype="float64")
    for _ in range(3):  # TorchScript computes otherwise once it has seen the shapes
        with pytest.raises(ValueError, match=r"a norm out of our sight \(Native.*without torch"):
            objective.third_derivative(objective.initial_point, objective.initial_point)


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_scripted_layers_whose_third_derivatives_are_right_are_taken():
    # Batch norm by stored statistics is linear.
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6).eval(), nn.Tanh())
    model, x, y = _Between(layers, (6,)), torch.randn(9, 3), torch.zeros(9, 6)
    expected = Objective(model, x, y, dtype="float64", batch_norm="running")
    model.between = torch.jit.script(layers)
    found = Objective(model, x, y, dtype="float64")
    theta = expected.initial_point
    assert torch.equal(found.initial_point, theta)
    torch.testing.assert_close(
        found.third_derivative(theta, theta), expected.third_derivative(theta, theta)
    )


def test_third_derivative_of_a_convolutional_network_with_batch_norm():
    model = build("cnn-bn-tanh", 3, 2, seed=0, width=2, image_size=8)
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    objective = Objective(model, x, torch.zeros(6, 2), dtype="float64", batch_norm="full_batch")
    theta = objective.initial_point
    u, v, w = torch.randn(
        3, len(theta), dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    h = 1e-5
    slope = (objective.hvp(theta + h * w, v) - objective.hvp(theta - h * w, v)) / (2 * h)
    assert float(objective.third_derivative(theta, u, v) @ w) == pytest.approx(
        float(u @ slope), rel=1e-5
    )
