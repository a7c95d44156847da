"""One line for somebody else's model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from eoslib import Objective, build, digits, sharpness
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


def test_wrong_data():
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="yielded no batch"):
        sharpness(model, [])
    with pytest.raises(ValueError, match=r"batches of \(inputs, targets\)"):
        sharpness(model, [(torch.ones(1, 2), torch.ones(1, 1), torch.ones(1))])
    with pytest.raises(ValueError, match="no parameters"):
        sharpness(nn.Tanh(), (torch.ones(1, 2), torch.ones(1, 2)))
