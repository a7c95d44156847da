"""The networks of Cohen et al. (2021): sizes, layers, initial weights, and as functions of θ."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eoslib import Dataset, Objective, build, build_for, chebyshev, digits, load_dataset
from eoslib.architectures import ARCHITECTURES
from eoslib.data import whitened_linear
from eoslib.losses import get_loss
from eoslib.transformer import sinusoidal_positions

DOUBLE = torch.float64

#: Trainable parameters for CIFAR-10, for 33,278 words, or for the task named.
SIZES = {
    **dict.fromkeys(
        [f"fc-{name}" for name in ("tanh", "relu", "elu", "softplus", "hardtanh")], 656_810
    ),
    "fc-tanh-depth1": 616_610,
    "fc-tanh-depth2": 656_810,
    "fc-tanh-depth3": 697_010,
    "fc-tanh-depth4": 737_210,
    **dict.fromkeys([f"cnn-{name}" for name in ("relu", "elu", "tanh")], 30_634),
    **dict.fromkeys([f"cnn-avgpool-{name}" for name in ("relu", "elu", "tanh")], 30_634),
    **dict.fromkeys([f"cnn-bn-{name}" for name in ("relu", "elu", "tanh")], 30_762),
    "vgg11": 9_750_922,
    "vgg11-bn": 9_756_426,
    "resnet32": 464_250,
    "deep-linear": 50_000,
    "regression": 300,
    "transformer": 13_828_478,
}


def images(count: int, seed: int = 0, size: int = 32, classes: int = 10) -> Dataset:
    """Random images that stand for CIFAR-10."""
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, size, size, generator=random, dtype=DOUBLE)
    labels = torch.randint(classes, (count,), generator=random)
    targets = F.one_hot(labels, classes).double()
    return Dataset("random images", inputs, targets, labels, "random numbers")


def text(count: int, words: int, length: int = 6, seed: int = 0) -> Dataset:
    """Random words that stand for WikiText-2."""
    random = torch.Generator().manual_seed(seed)
    columns = torch.randint(words, (count, length + 1), generator=random)
    vocabulary = tuple(map(str, range(words)))
    return Dataset("random words", columns[:, :-1], columns[:, 1:], None, "random", vocabulary)


def task_of(name: str) -> Dataset:
    special = {"deep-linear": whitened_linear, "regression": chebyshev}
    if name == "transformer":
        return text(2, 33_278)
    return special[name]() if name in special else images(2)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts_and_shapes_of_the_paper(name):
    data = task_of(name)
    network = build_for(name, data, dtype=DOUBLE)
    assert num_parameters(network) == SIZES[name]
    with torch.no_grad():
        outputs = network(data.inputs)
    expected = (2, 33_278, 6) if name == "transformer" else data.targets.shape
    assert outputs.shape == expected
    assert torch.isfinite(outputs).all()


def test_no_architecture_is_left_without_its_size():
    assert set(ARCHITECTURES) - set(SIZES) == {"fc-gelu"}  # the one that is not in the paper


@pytest.mark.parametrize("name", SIZES)
def test_the_seed_says_it_all(name):
    if name in ("transformer", "vgg11-bn"):
        pytest.skip("large, and no different from its siblings")
    data = task_of(name)

    def weights(seed: int) -> torch.Tensor:
        network = build_for(name, data, seed=seed)
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def types(network: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in network]


def test_layers_of_the_small_networks():
    convolution = ["Conv2d", "ReLU", "MaxPool2d"] * 2 + ["Flatten", "Linear"]
    assert types(build("cnn-relu", 3, 10)) == convolution
    assert types(build("cnn-avgpool-elu", 3, 10))[:3] == ["Conv2d", "ELU", "AvgPool2d"]
    # the batch norm comes after the activation
    assert types(build("cnn-bn-tanh", 3, 10))[:4] == ["Conv2d", "Tanh", "BatchNorm2d", "MaxPool2d"]
    assert types(build("deep-linear", 50, 50)) == ["Linear"] * 20
    assert all(layer.bias is None for layer in build("deep-linear", 50, 50))
    assert types(build("regression", 1, 1)) == ["Linear", "Tanh", "Linear"]
    assert types(build("fc-tanh-depth3", 4, 2)) == ["Flatten", *["Linear", "Tanh"] * 3, "Linear"]
    assert types(build("vgg11-bn", 3, 10))[:4] == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    assert not [m for m in build("vgg11", 3, 10).modules() if isinstance(m, nn.Dropout)]


def spread(weights: torch.Tensor, expected: float, relative: float = 0.06) -> None:
    """The weights are Gaussian with mean zero and this standard deviation, as far as one sees."""
    flat = weights.detach().flatten().double()
    assert float(flat.std()) == pytest.approx(expected, rel=relative)
    assert abs(float(flat.mean())) < 4 * expected / math.sqrt(len(flat))
    assert float((flat.abs() < expected).double().mean()) == pytest.approx(0.683, abs=0.05)


def test_initial_weights():
    deep = build("deep-linear", 50, 50, seed=3)
    spread(deep[7].weight, math.sqrt(2 / 100))
    first, _, last = build("regression", 1, 1, width=5_000)
    spread(first.weight, 1.9 * math.sqrt(2 / 5_001))
    spread(last.weight, math.sqrt(2 / 5_001))
    assert torch.equal(first.bias, torch.zeros(5_000))
    spread(build("regression", 1, 1, width=5_000, gain=1.0)[0].weight, math.sqrt(2 / 5_001))

    resnet = build("resnet32", 3, 10)
    convolutions = [m for m in resnet.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 31  # and one linear layer
    for layer in convolutions[1:]:
        spread(layer.weight, math.sqrt(2 / (9 * layer.out_channels)))
        assert layer.bias is None
    zero = {
        name for name, p in resnet.named_parameters() if "residual.4.weight" in name and not p.any()
    }
    assert len(zero) == 15  # the last batch norm of each block
    norms = [m for m in resnet.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 31 + 2
    assert sum(bool((m.weight == 1).all()) for m in norms) == 31 + 2 - 15

    transformer = build("transformer", 500, 500)
    for weights in (transformer.embedding.weight, transformer.decoder.weight):
        assert 0.0999 < float(weights.detach().abs().max()) <= 0.1
    assert not transformer.decoder.bias.any()
    a, b = transformer.layers
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_the_residual_network_begins_as_its_shortcuts():
    """With γ = 0 in the last batch norm, a block is a rectified shortcut."""
    network = build("resnet32", 3, 10, dtype=DOUBLE)
    x = images(4).inputs
    block = network.blocks[5]  # the first of the second stage: it halves the image
    hidden = torch.randn(4, 16, 32, 32, dtype=DOUBLE)
    every_second = hidden[:, :, ::2, ::2]
    normed = every_second - every_second.mean((0, 2, 3), keepdim=True)
    variance = every_second.var((0, 2, 3), keepdim=True, correction=0)
    expected = torch.cat([normed / (variance + 1e-5).sqrt(), torch.zeros(4, 16, 16, 16)], dim=1)
    assert torch.allclose(block(hidden), expected.relu())
    same = network.blocks[1]
    assert torch.equal(same(hidden), hidden.relu())
    assert network.blocks(network.first(x)).shape == (4, 64, 8, 8)


# ---- the Transformer -------------------------------------------------------------------------


def small_transformer(words: int = 11, **options) -> nn.Module:
    sizes = {"width": 8, "hidden": 12, "num_heads": 2} | options
    return build("transformer", words, words, dtype=DOUBLE, **sizes)


def test_the_mask_is_causal():
    network, data = small_transformer(), text(3, 11, length=7)
    with torch.no_grad():
        before = network(data.inputs)
        for place in range(7):
            changed = data.inputs.clone()
            changed[:, place] = (changed[:, place] + 1) % 11
            differs = (network(changed) - before).abs().amax(dim=(0, 1))
            assert (differs[:place] == 0).all()  # a later word changes no earlier output
            assert (differs[place:] > 1e-6).all()  # and every output from there on sees it


def test_the_layers_are_pytorchs_encoder():
    network, data = small_transformer(words=30, width=12, num_heads=3, depth=2), text(4, 30)
    layer = nn.TransformerEncoderLayer(12, 3, 12, dropout=0.0, batch_first=True, dtype=DOUBLE)
    x = torch.randn(4, 6, 12, dtype=DOUBLE)
    expected = x
    for own in network.layers:
        for weights in own.parameters():
            nn.init.normal_(weights)  # also biases and norms, so that none can be forgotten
        names = {
            "self_attn.in_proj": own.queries_keys_values,
            "self_attn.out_proj": own.mix,
            "linear1": own.expand,
            "linear2": own.reduce,
            "norm1": own.attention_norm,
            "norm2": own.output_norm,
        }
        for name, module in names.items():
            for kind in ("weight", "bias"):
                given = f"{name}_{kind}" if name.endswith("in_proj") else f"{name}.{kind}"
                layer.get_parameter(given).data.copy_(getattr(module, kind))
        mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=DOUBLE)
        expected = layer(expected, src_mask=mask, is_causal=True)
    assert torch.allclose(network.layers(x), expected)
    assert num_parameters(layer) == num_parameters(network.layers[0])

    embedded = network.embedding.weight[data.inputs] * math.sqrt(12)
    for place in range(6):
        for i in range(6):
            angle = place / 10_000 ** (2 * i / 12)
            embedded[:, place, 2 * i] += math.sin(angle)
            embedded[:, place, 2 * i + 1] += math.cos(angle)
    scores = network.layers(embedded) @ network.decoder.weight.T + network.decoder.bias
    assert torch.allclose(network(data.inputs), scores.mT, atol=1e-6)


def test_positions_are_unit_circles():
    positions = sinusoidal_positions(50, 10)
    assert positions.shape == (50, 10)
    assert torch.allclose(positions.unflatten(1, (5, 2)).square().sum(-1), torch.ones(50, 5))
    assert positions[0].tolist() == [0, 1] * 5


def test_sizes_a_transformer_cannot_have():
    for wrong in ({"width": 7}, {"width": 10, "num_heads": 4}, {"depth": 0}):
        with pytest.raises(ValueError, match="a Transformer needs positive sizes and a width"):
            small_transformer(**wrong)
    network = small_transformer(max_length=5)
    with pytest.raises(ValueError, match=r"sequences of 6 words.*build it with max_length=6"):
        network(text(1, 11).inputs)


def test_token_cross_entropy_is_the_mean_over_all_words():
    network, data = small_transformer(), text(5, 11)
    objective = Objective.from_dataset(network, data, "token_cross_entropy", dtype=DOUBLE)
    theta = objective.initial_point
    with torch.no_grad():
        scores = network(data.inputs)
    total = 0.0
    for row in range(5):
        for place in range(6):
            total -= float(scores[row, :, place].log_softmax(0)[data.targets[row, place]])
    assert float(objective.value(theta)) == pytest.approx(total / 30)
    assert float(objective.value(theta)) == pytest.approx(math.log(11), rel=0.1)
    for loss in ("cross_entropy", get_loss("cross_entropy")):  # the mean, or the sum of a sequence?
        with pytest.raises(
            ValueError, match=r"\(5, 11, 6\), several positions .* say 'token_cross"
        ):
            Objective.from_dataset(network, data, loss, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"needs outputs of shape \(n, classes, length\)"):
        Objective.from_dataset(
            build("fc-tanh", 64, 10, widths=(4,)), digits(5), "token_cross_entropy"
        )
    with pytest.raises(ValueError, match="one int64 label per word"):
        get_loss("token_cross_entropy").check(torch.zeros(2, 3, 4), torch.full((2, 3, 4), 1 / 3))
    assert get_loss("token_cross_entropy").label.endswith("per word)")


# ---- as functions of θ -----------------------------------------------------------------------


def tiny(name: str) -> tuple[nn.Module, Dataset, str, dict[str, object]]:
    """A small relative of each network, a task for it, and what the objective needs."""
    if name == "transformer":
        data = text(3, 5, length=4)
        network = build_for(name, data, width=4, hidden=3, depth=1, dtype=DOUBLE)
        return network, data, "token_cross_entropy", {}
    data = images(4, size=8, classes=3)
    network = build_for(name, data, width=2, image_size=8, dtype=DOUBLE)
    return network, data, "square", {"batch_norm": "full_batch"} if "bn" in name else {}


def hessian_by_differences(objective: Objective, theta: torch.Tensor) -> torch.Tensor:
    """Central differences of plain gradients of the plain module, in float64.

    Not ``torch.func.hessian``: where θ holds the scale and shift of a batch or layer normalisation,
    PyTorch 2.13 gives a matrix that is wrong in the first digit and not symmetric.
    """
    module = objective.module_at(theta)

    def gradient(point: torch.Tensor) -> torch.Tensor:
        nn.utils.vector_to_parameters(point, module.parameters())
        loss = objective.loss(module(objective.inputs), objective.targets)
        return nn.utils.parameters_to_vector(torch.autograd.grad(loss, list(module.parameters())))

    steps = 1e-5 * torch.eye(len(theta), dtype=theta.dtype)
    return torch.stack([gradient(theta + step) - gradient(theta - step) for step in steps]) / 2e-5


@pytest.mark.parametrize("name", ["transformer", "cnn-tanh", "cnn-avgpool-elu", "cnn-bn-elu"])
def test_hessian_vector_products_are_those_of_the_dense_hessian(name):
    network, data, loss, options = tiny(name)
    objective = Objective.from_dataset(network, data, loss, dtype=DOUBLE, **options)
    random = torch.Generator().manual_seed(1)
    noise = torch.randn(objective.num_parameters, generator=random, dtype=DOUBLE)
    theta = objective.initial_point + 0.3 * noise
    dense = hessian_by_differences(objective, theta)
    assert dense.abs().max() > 0.1
    operator = objective.hessian(theta)
    for index in range(3):
        vector = torch.randn(objective.num_parameters, generator=random, dtype=DOUBLE)
        assert torch.allclose(operator.matvec(vector), dense @ vector, atol=1e-6), index
    chunked = {} if "batch_norm" in options else {"chunk_size": 2}
    again = Objective.from_dataset(network, data, loss, dtype=DOUBLE, **options, **chunked)
    assert torch.allclose(again.hvp(theta, noise), dense @ noise, atol=1e-6)


@pytest.mark.parametrize("name", ["transformer", "cnn-bn-tanh"])
def test_several_points_at_once(name):
    network, data, loss, options = tiny(name)
    objective = Objective.from_dataset(network, data, loss, dtype=DOUBLE, **options)
    theta = objective.initial_point
    points = torch.stack([theta, theta + 0.1])
    values, gradients = objective.value_and_gradient(points)
    for value, gradient, point in zip(values, gradients, points, strict=True):
        alone = objective.value_and_gradient(point)
        assert torch.allclose(value, alone[0])
        assert torch.allclose(gradient, alone[1], atol=1e-12)
    rows = objective.hessian(points).matvec(gradients)
    assert torch.allclose(rows[1], objective.hvp(points[1], gradients[1]), atol=1e-12)


def test_a_transformer_in_float32_and_in_chunks():
    data = text(6, 20, length=5)
    network = build_for("transformer", data, width=8, hidden=8)
    whole = Objective.from_dataset(network, data, "token_cross_entropy")
    parts = Objective.from_dataset(network, data, "token_cross_entropy", chunk_size=4)
    theta = whole.initial_point
    vector = torch.randn(whole.num_parameters, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(whole.hvp(theta, vector), parts.hvp(theta, vector), atol=1e-5)
    network.eval()  # nothing in it depends on the mode
    assert torch.equal(
        whole.value(theta),
        Objective.from_dataset(network, data, "token_cross_entropy").value(theta),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11", "vgg11-bn", "resnet32"])
@pytest.mark.parametrize("mode", ["full_batch", "ghost"])
def test_products_of_the_large_networks_against_differences_of_gradients(name, mode):
    if name == "vgg11" and mode == "ghost":
        pytest.skip("no batch norm in it")
    data = images(6)
    network = build_for(name, data, dtype=DOUBLE)
    options = {} if name == "vgg11" else {"batch_norm": mode}
    options |= {"chunk_size": 3} if mode == "ghost" else {}
    objective = Objective.from_dataset(network, data, "square", dtype=DOUBLE, **options)
    random = torch.Generator().manual_seed(2)
    noise = torch.randn(objective.num_parameters, generator=random, dtype=DOUBLE)
    theta = objective.initial_point + 0.02 * noise  # away from γ = 0, where half of it vanishes
    vector = torch.randn(objective.num_parameters, generator=random, dtype=DOUBLE)
    vector /= vector.norm()
    product = objective.hvp(theta, vector)
    step = 1e-7  # few of the kinks of ReLU and max pooling lie within it
    difference = (
        objective.gradient(theta + step * vector) - objective.gradient(theta - step * vector)
    ) / (2 * step)
    assert product.norm() > 1e-2
    assert float((product - difference).norm() / product.norm()) < 1e-3


def test_ghost_batches_are_normalised_each_by_itself():
    data = images(6, size=8, classes=3)
    network = build_for("cnn-bn-relu", data, width=2, image_size=8, dtype=DOUBLE)
    options = {"dtype": DOUBLE, "batch_norm": "ghost", "chunk_size": 3}
    objective = Objective.from_dataset(network, data, **options)
    halves = [
        Objective(network, x, y, dtype=DOUBLE, batch_norm="full_batch")
        for x, y in zip(data.inputs.split(3), data.targets.split(3), strict=True)
    ]
    theta = objective.initial_point
    mean = sum(half.value(theta) for half in halves) / 2
    assert torch.allclose(objective.value(theta), mean)
    whole = Objective.from_dataset(network, data, dtype=DOUBLE, batch_norm="full_batch")
    assert not torch.allclose(whole.value(theta), mean, rtol=1e-3)


# ---- a network for a data set ----------------------------------------------------------------


def test_a_network_gets_the_inputs_and_outputs_of_its_data_set():
    assert build_for("fc-tanh", digits(5))[1].in_features == 64
    assert build_for("cnn-relu", images(2))[0].in_channels == 3
    assert build_for("fc-tanh", images(2))[1].in_features == 3072
    assert build_for("transformer", text(2, 7), width=4).embedding.num_embeddings == 7
    for name, data, told in [
        ("cnn-relu", digits(5), r"cnn-relu takes images, but an example of digits-5 has shape"),
        ("transformer", digits(5), r"transformer takes words, but .* \(64,\) and dtype"),
        ("fc-tanh", text(2, 7), r"fc-tanh takes numbers, but .* dtype torch.int64"),
        ("resnet-32", images(2), "unknown architecture 'resnet-32'; did you mean 'resnet32'"),
    ]:
        with pytest.raises(ValueError, match=told):
            build_for(name, data)


def test_wrong_sizes_of_networks():
    for call, told in [
        (lambda: build("deep-linear", 5, 5, depth=0), "at least one layer, got depth=0"),
        (lambda: build("deep-linear", 5, 5, width=0), "layer sizes must be positive"),
        (lambda: build("regression", 0, 1), "num_inputs must be a positive whole number, got 0"),
        (lambda: build("resnet32", -1, 1), "num_inputs must be a positive whole number, got -1"),
        (lambda: build("vgg11", 3, "10"), "num_outputs must be a positive whole .*, got '10'"),
        (lambda: build("cnn-relu", 3, 10, width=0), "width must be a positive whole .*, got 0"),
        (lambda: build("fc-tanh", 1, 1, seed="a"), "seed must be a whole number, got 'a'"),
        (lambda: build("fc-tanh", 1, 1, dtype="double"), "dtype must be one of .* got 'double'"),
        (lambda: build("cnn-relu", 3, 10, image_size=30), "a multiple of 4"),
    ]:
        with pytest.raises(ValueError, match=told):
            call()


def test_the_whitened_set_is_white():
    data = whitened_linear()
    x, y = data.inputs, data.targets
    assert torch.allclose(x.T @ x, 50 * torch.eye(50, dtype=DOUBLE), atol=1e-10)
    assert 0.5 * float(y.square().sum()) / 50 == pytest.approx(1250, rel=0.1)
    fitted = torch.linalg.lstsq(x, y).solution
    assert torch.allclose(x @ fitted, y, atol=1e-8)  # it is a linear map
    spread(fitted, 1.0)
    again = load_dataset("linear-50-50")
    assert torch.equal(again.inputs, x)
    assert torch.equal(again.targets, y)
    assert not torch.equal(whitened_linear(seed=1).inputs, x)
    assert load_dataset("linear-3-7").inputs.shape == (7, 3)
    with pytest.raises(ValueError, match=r"num_points of a whitened set .* at least 8, got 7"):
        whitened_linear(8, 7)
    # zero outputs give the loss stated, and a network of zeros has zero outputs
    network = build_for("deep-linear", data, dtype=DOUBLE)
    objective = Objective.from_dataset(network, data, dtype=DOUBLE)
    zero = torch.zeros_like(objective.initial_point)
    assert float(objective.value(zero)) == pytest.approx(0.5 * float(y.square().sum()) / 50)
