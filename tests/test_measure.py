"""One line for somebody else's model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
)

from eoslib import Objective, build, digits, sharpness, square_loss
from eoslib.measure import as_loss, full_batch
from tests.oracles import dense_hessian


def dense(model, inputs, targets, loss):
    objective = Objective(model, inputs, targets, loss, dtype="float64")
    hessian = dense_hessian(objective, objective.initial_point)
    return float(torch.linalg.eigvalsh(hessian)[-1])


@pytest.mark.parametrize("loss", ["square", "cross_entropy"])
def test_tensors_a_data_set_and_a_loader_of_uneven_batches_agree(loss):
    data = digits(50)
    model = build("fc-tanh", 64, 10, widths=(5,), dtype=torch.float64)
    expected = dense(model, data.inputs, data.targets, loss)
    loader = DataLoader(TensorDataset(data.inputs, data.targets), batch_size=12)
    for given in (data, (data.inputs, data.targets), loader):
        assert sharpness(model, given, loss, rtol=1e-6) == pytest.approx(expected, rel=1e-6)
    chunked = sharpness(model, loader, loss, chunk_size=7, rtol=1e-6)
    assert chunked == pytest.approx(expected, rel=1e-6)


def test_a_bfloat16_model_is_measured_in_float32():
    data = digits(30)
    model = build("fc-relu", 64, 10, widths=(5,), dtype=torch.bfloat16)
    before = [p.clone() for p in model.parameters()]
    expected = dense(model, data.inputs, data.targets, "square")
    assert sharpness(model, data) == pytest.approx(expected, rel=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_integer_inputs_and_batch_norm_with_running_statistics():
    model = nn.Sequential(
        nn.Embedding(11, 4), nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
    )
    tokens, labels = torch.randint(0, 11, (20, 3)), torch.randint(0, 3, (20,))
    with pytest.raises(ValueError, match="say whose statistics"):
        sharpness(model, (tokens, labels), "cross_entropy")
    objective = Objective(model.eval(), tokens, labels, "cross_entropy", batch_norm="running")
    expected = torch.linalg.eigvalsh(dense_hessian(objective, objective.initial_point))[-1]
    found = sharpness(model.train(), (tokens, labels), "cross_entropy", batch_norm="running")
    assert found == pytest.approx(float(expected), rel=1e-3)
    assert model.training


@pytest.mark.parametrize(
    ("module", "outputs", "targets"),
    [
        (nn.CrossEntropyLoss(), torch.randn(6, 4), torch.randint(4, (6,))),
        (nn.CrossEntropyLoss(), torch.randn(6, 4), torch.rand(6, 4).softmax(dim=1)),
        (nn.CrossEntropyLoss(), torch.randn(6, 4, 3), torch.randint(4, (6, 3))),
        (nn.MSELoss(), torch.randn(6, 4), torch.randn(6, 4)),
        (nn.MSELoss(), torch.randn(6), torch.randn(6)),
        (nn.MSELoss(), torch.randn(6, 4, 3), torch.randn(6, 4, 3)),
    ],
)
def test_a_torch_loss_keeps_its_factor(module, outputs, targets):
    loss = as_loss(module)
    loss.check(outputs, targets)
    assert float(loss(outputs, targets)) == pytest.approx(float(module(outputs, targets)), rel=1e-5)
    chunks = [loss.terms(outputs[i], targets[i]).sum() for i in (slice(4), slice(4, None))]
    assert float(sum(chunks)) / 6 == pytest.approx(float(module(outputs, targets)), rel=1e-5)


def test_the_sharpness_of_a_torch_loss():
    data = digits(40)
    model = build("fc-tanh", 64, 10, widths=(5,), dtype=torch.float64)
    mean = sharpness(model, data, nn.MSELoss(), rtol=1e-6)
    assert mean == pytest.approx(2 / 10 * sharpness(model, data, "square", rtol=1e-6), rel=1e-6)
    labelled = (data.inputs, data.labels)
    ours, theirs = (
        sharpness(model, labelled, loss, rtol=1e-6)
        for loss in ("cross_entropy", nn.CrossEntropyLoss())
    )
    assert theirs == pytest.approx(ours, rel=1e-9)


def test_names_and_losses_are_left_as_they_are():
    assert as_loss("square") is square_loss
    assert as_loss(square_loss) is square_loss
    with pytest.raises(ValueError, match="did you mean"):
        as_loss("cross entropy")


def test_the_full_batch():
    inputs, targets = torch.randn(10, 3), torch.arange(10)
    examples = TensorDataset(inputs, targets)
    for given in (
        (inputs, targets),
        examples,
        DataLoader([(x, int(y)) for x, y in examples], batch_size=4),
        DataLoader(examples, batch_size=5, drop_last=True),
        ([x, y] for x, y in DataLoader(examples, batch_size=3)),
    ):
        x, y = full_batch(given)
        assert torch.equal(x, inputs)
        assert torch.equal(y, targets)
    data = digits(20)
    assert full_batch(data) == (data.inputs, data.targets)


def test_a_loader_that_drops_examples_is_refused():
    examples = TensorDataset(torch.randn(10, 3), torch.arange(10))
    with pytest.raises(ValueError, match="left out 2 of 10 examples"):
        full_batch(DataLoader(examples, batch_size=4, drop_last=True))
    dealt = BatchSampler(SequentialSampler(examples), 4, drop_last=True)
    with pytest.raises(ValueError, match="left out 2 of 10 examples"):
        full_batch(DataLoader(examples, batch_sampler=dealt))
    with pytest.raises(ValueError, match=r"yielded no batch .*drop_last=True"):
        full_batch(DataLoader(examples, batch_size=11, drop_last=True))

    class Endless(IterableDataset):
        def __iter__(self):
            return iter(examples)

    with pytest.raises(ValueError, match="may have left out the last examples"):
        full_batch(DataLoader(Endless(), batch_size=4, drop_last=True))
    assert torch.equal(full_batch(DataLoader(Endless(), batch_size=4))[1], torch.arange(10))


def test_a_measurement_leaves_the_random_state():
    examples = TensorDataset(torch.randn(10, 3), torch.randn(10, 2))
    model = nn.Linear(3, 2)
    before = torch.get_rng_state()
    for data in (examples, DataLoader(examples, batch_size=4, shuffle=True)):
        sharpness(model, data)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", ["inference", "autocast"])
def test_the_sharpness_inside_of_inference_mode_and_autocast(mode):
    data, model = digits(30), build("fc-relu", 64, 10, widths=(5,))
    expected = sharpness(model, data)
    with torch.inference_mode() if mode == "inference" else torch.autocast("cpu"):
        assert sharpness(model, data) == expected
        made_here = (data.inputs + 0, data.targets + 0)
        assert sharpness(model, made_here) == expected


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        ([], "yielded no batch"),
        (
            [(torch.ones(1, 2), torch.ones(1), torch.ones(1))],
            "of a tensor of .* for a, b, y in loader",
        ),
        ([{"x": torch.ones(1, 2), "y": torch.ones(1)}], "a dict with the keys 'x', 'y'"),
        ([((torch.ones(1, 2), torch.ones(1, 2)), torch.ones(1))], "a tuple of a tuple of a tensor"),
        ([torch.ones(2, 2), torch.ones(2)], r"give a tuple: \(inputs, targets\)"),
        ([torch.ones(2, 2)] * 3, r"a tensor of shape \(2, 2\)"),
        (iter([]), "can be read only once"),
        (([[1.0, 2.0]] * 100, [[1.0]] * 100), "a list of a list of a float, a float, a list .*, …"),
        ([(torch.ones(2), torch.tensor(1))], r"a tensor of shape \(\).*instance DataLoader\(data"),
        ([(torch.ones(2), 1)], r"a int; .*instance DataLoader\(data"),
        ([(torch.ones(3), torch.ones(2))], "3 inputs and 2 targets; give batches, not single"),
        ({"x": torch.ones(1, 2)}, "got a dict with the keys 'x'"),
        ((torch.ones(1, 2).numpy(), torch.ones(1, 2).numpy()), "NumPy arrays.*torch.from_numpy"),
        (torch.ones(2, 2), r"expected a pair .*a tensor of shape \(2, 2\)"),
        (None, "expected a pair .*NoneType"),
        (["ab"], "a str"),
        (
            [(torch.ones(2, length), torch.ones(2)) for length in (3, 4)],
            r"inputs of an example have shape \(3,\) and \(4,\)",
        ),
    ],
)
def test_batches_that_are_none(data, seen):
    with pytest.raises(ValueError, match=seen):
        full_batch(data)


def test_wrong_model():
    with pytest.raises(ValueError, match="no parameters"):
        sharpness(nn.Tanh(), (torch.ones(1, 2), torch.ones(1, 2)))
    with pytest.raises(ValueError, match=r"must be a torch\.nn\.Module, got a function"):
        sharpness(lambda x: x, (torch.ones(1, 2), torch.ones(1, 2)))
    with pytest.raises(ValueError, match=r"must be a torch\.nn\.Module, got the class Linear"):
        sharpness(nn.Linear, (torch.ones(1, 2), torch.ones(1, 2)))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_whose_training_has_diverged(value):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    nn.init.constant_(model[1].weight, value)
    with pytest.raises(ValueError, match=r"'1\.weight' holds NaN or infinite values"):
        sharpness(model, (torch.ones(4, 2), torch.ones(4, 1)))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_whose_weights_are_not_there(device):
    layer = nn.LazyLinear(1) if device == "cpu" else nn.Linear(2, 1, device=device)
    with pytest.raises(ValueError, match=r"'weight' (has no shape yet|is on the meta device)"):
        sharpness(layer, (torch.ones(4, 2), torch.ones(4, 1)), device="cpu")
