"""Data sets and architectures: exact contents, seeded, and helpful when a name is wrong."""

from __future__ import annotations

import hashlib
from importlib import resources

import numpy as np
import pytest
import torch
from torch import nn

from eoslib import build, chebyshev, digits, load_dataset
from eoslib.data import prose, reads_files, whitened_linear


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4, 5, 9])
def test_chebyshev_polynomials(degree):
    data = chebyshev(degree, 21)
    x, y = data.inputs[:, 0], data.targets[:, 0]
    assert torch.allclose(y, torch.cos(degree * torch.arccos(x)), atol=1e-12)
    assert x[0] == -1
    assert x[-1] == 1
    assert torch.allclose(x.diff(), torch.tensor(0.1, dtype=torch.float64))
    assert (data.num_examples, data.num_inputs, data.num_outputs) == (21, 1, 1)


def test_digits_are_the_stored_ones():
    with resources.files("eoslib").joinpath("digits-1k.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        pixels, labels = stored["pixels"], stored["labels"]
    digest = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    assert digest == "0d9a02e336a34fecefc6161188859b8123f98b498cd218e347cb843a4a7c6b0c"
    assert pixels.shape == (1000, 64)
    assert pixels.max() == 16


def test_digits_are_standardised_and_one_hot():
    data = digits()
    assert data.inputs.shape == (1000, 64)
    assert float(data.inputs.mean()) == pytest.approx(0, abs=1e-12)
    assert float(data.inputs.std(correction=0)) == pytest.approx(1)
    assert torch.equal(data.targets.sum(dim=1), torch.ones(1000, dtype=torch.float64))
    assert torch.equal(data.targets.argmax(dim=1), data.labels)
    assert data.labels.bincount().min() > 90  # every digit is there about as often


def test_redrawn_labels():
    clean, noisy = digits(), digits(redrawn_labels=0.2, seed=3)
    changed = int((clean.labels != noisy.labels).sum())
    assert 150 < changed <= 200  # a redrawn label is the old one in one of ten cases
    assert torch.equal(noisy.labels, digits(redrawn_labels=0.2, seed=3).labels)
    assert not torch.equal(noisy.labels, digits(redrawn_labels=0.2, seed=4).labels)
    assert torch.equal(clean.inputs, noisy.inputs)
    assert torch.equal(digits(50).inputs, clean.inputs[:50])
    assert torch.equal(load_dataset("digits-50").inputs, digits(50).inputs)
    assert noisy.name == "digits-1k-redrawn0.2-seed3"


def test_prose_is_one_text_in_pieces():
    data = prose()
    assert data.inputs.shape == data.targets.shape == (39, 16)
    assert data.inputs.dtype == torch.int64
    assert data.num_outputs == len(data.vocabulary) == len(set(data.vocabulary)) == 147
    text = [data.vocabulary[i] for i in data.inputs.flatten()]
    assert text[:6] == ["a", "traveller", "came", "down", "from", "the"]
    following = [data.vocabulary[i] for i in data.targets.flatten()]
    assert following[:-1] == text[1:]
    assert {".", ",", "?", '"'} <= set(data.vocabulary)
    assert set(range(147)) == set(torch.cat([data.inputs, data.targets]).flatten().tolist())


def test_prose_in_pieces_of_any_length():
    data = load_dataset("prose-25")
    assert (data.name, data.inputs.shape) == ("prose-25", (25, 25))
    assert torch.equal(data.inputs.flatten()[:600], prose(1).inputs.flatten()[:600])
    for length in (0, 629):
        with pytest.raises(ValueError, match="prose has 629 words"):
            prose(length)


def test_wrong_sizes():
    for call in (lambda: digits(0), lambda: digits(1001), lambda: digits(redrawn_labels=1.5)):
        with pytest.raises(ValueError, match=r"num_examples of digits must .* 1\.\.1000|share in"):
            call()
    for call, told in [
        (lambda: chebyshev(-1), "degree of chebyshev must be a whole number, at least 0, got -1"),
        (lambda: chebyshev("4"), "degree of chebyshev must be .* got '4'"),
        (lambda: chebyshev(2.5), r"degree of chebyshev must be .* got 2\.5"),
        (lambda: chebyshev(4, 1), "num_points of chebyshev must be .* at least 2, got 1"),
        (lambda: digits("10"), "num_examples of digits must be .* got '10'"),
        (lambda: digits(redrawn_labels="all"), "redrawn_labels must be a number, got 'all'"),
        (lambda: digits().first(0), "number of examples of digits-1k must be .* got 0"),
        (lambda: load_dataset(5), "a data set has a name such as 'digits-1k', got 5"),
    ]:
        with pytest.raises(ValueError, match=told):
            call()
    assert digits(10.0).name == "digits-10"
    assert chebyshev(4.0, 20.0).name == "chebyshev-4-20"


@pytest.mark.parametrize(
    "data",
    [
        digits(500, redrawn_labels=1 / 3, seed=2),
        digits(redrawn_labels=1.0),
        digits().first(10),
        whitened_linear(5, 6, seed=3),
        whitened_linear(5, 6).first(2).first(1),
    ],
    ids=lambda data: data.name,
)
def test_a_data_set_is_found_again_by_its_name(data):
    again = load_dataset(data.name)
    assert again.name == data.name
    assert torch.equal(again.inputs, data.inputs)
    assert torch.equal(again.targets, data.targets)
    assert not reads_files(data.name)


def test_names_are_found_and_near_names_suggested():
    assert load_dataset("chebyshev-7-33").num_examples == 33
    assert load_dataset("digits-1k").num_examples == 1000
    with pytest.raises(ValueError, match=r"unknown data set 'digit-1k'; did you mean 'digits-1k'"):
        load_dataset("digit-1k")
    with pytest.raises(ValueError, match=r"unknown architecture 'fc-tan'; did you mean 'fc-tanh'"):
        build("fc-tan", 1, 1)
    with pytest.raises(ValueError, match="layer sizes must be positive"):
        build("fc-tanh", 1, 1, widths=(0,))


def test_the_papers_network_has_its_parameter_count():
    assert sum(p.numel() for p in build("fc-tanh", 3072, 10).parameters()) == 656_810
    layers = [type(layer) for layer in build("fc-relu", 4, 2, widths=(3,))]
    assert layers == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]


def test_weights_depend_on_the_seed_alone():
    def weights(**options):
        return torch.cat([p.flatten() for p in build("fc-tanh", 5, 2, **options).parameters()])

    state = torch.get_rng_state()
    first = weights(seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(weights(seed=4), first)
    assert not torch.equal(weights(seed=5), first)
    assert torch.equal(weights(seed=4, dtype=torch.float64), first.double())
