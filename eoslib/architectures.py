"""Networks under the names of the field, with seeded initial weights.

``fc-tanh`` is Cohen et al.'s fully connected network: flatten, then hidden layers of 200 units with
the activation after each, then a linear output layer; biases everywhere; PyTorch's default
initialization. Its siblings exchange the activation. Widths and initialization are free.

The convolutional networks are in `eoslib.convolutional`, the Transformer in `eoslib.transformer`;
`build` knows all by name, and `build_for` how many inputs and outputs a data set needs.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from eoslib._arguments import a_generator_seed, a_whole_number
from eoslib._names import look_up
from eoslib.convolutional import ResNet32, cnn, vgg11
from eoslib.data import Dataset
from eoslib.numerics import resolve_dtype
from eoslib.transformer import Transformer

__all__ = [
    "ACTIVATIONS",
    "ARCHITECTURES",
    "build",
    "build_for",
    "deep_linear",
    "fully_connected",
    "regression",
]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "hardtanh": nn.Hardtanh,
    "gelu": nn.GELU,
}


#: What stands between ``cnn-`` and the activation in a name.
_CNN_KINDS: dict[str, dict[str, Any]] = {
    "": {},
    "avgpool-": {"pooling": "average"},
    "bn-": {"batch_norm": True},
}


def fully_connected(
    num_inputs: int,
    num_outputs: int,
    *,
    widths: Sequence[int] = (200, 200),
    activation: str = "tanh",
    init: str = "pytorch",
) -> nn.Sequential:
    """Flatten → (Linear → activation) for each width → Linear.

    Args:
        num_inputs: numbers per example after flattening.
        num_outputs: columns of the output.
        widths: units of each hidden layer; ``()`` gives a linear model.
        activation: a key of `ACTIVATIONS`.
        init: ``"pytorch"``: weights and biases uniform on ±1/√fan_in, PyTorch's default, or
            ``"lecun"``: weights N(0, 1/fan_in), biases zero (LeCun et al. 1998, §4.6).

    Raises:
        ValueError: a size is not a positive integer, or a name is unknown.
    """
    sizes = _checked_sizes([num_inputs, *widths, num_outputs])
    make_activation = look_up(ACTIVATIONS, activation, "activation")
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out), make_activation()]
    layers.append(nn.Linear(sizes[-2], sizes[-1]))
    network = nn.Sequential(*layers)
    network.apply(look_up(INITIALIZATIONS, init, "initialization"))
    return network


def _checked_sizes(sizes: list[int]) -> list[int]:
    if any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"layer sizes must be positive integers, got {sizes}")
    return sizes


def _lecun(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(module.bias)


INITIALIZATIONS: dict[str, Callable[[nn.Module], None]] = {
    "pytorch": lambda module: None,
    "lecun": _lecun,
}


def deep_linear(
    num_inputs: int, num_outputs: int, *, width: int = 50, depth: int = 20
) -> nn.Sequential:
    """A chain of linear layers without biases and without anything between them.

    Weights N(0, 2/(fan_in + fan_out)) (Glorot and Bengio 2010). The paper's has its own seed, 8.

    Args:
        num_inputs: numbers per example.
        num_outputs: columns of the output.
        width: of all layers between.
        depth: how many layers, at least 1.

    Raises:
        ValueError: a size is not a positive integer.
    """
    if depth < 1:
        raise ValueError(f"a chain needs at least one layer, got depth={depth}")
    sizes = _checked_sizes([num_inputs, *[width] * (depth - 1), num_outputs])
    layers = [nn.Linear(*pair, bias=False) for pair in itertools.pairwise(sizes)]
    for layer in layers:
        nn.init.xavier_normal_(layer.weight)
    return nn.Sequential(*layers)


def regression(
    num_inputs: int, num_outputs: int, *, width: int = 100, gain: float = 1.9
) -> nn.Sequential:
    """One hidden layer of tanh units, for fitting a function of one variable.

    Weights N(0, 2/(fan_in + fan_out)) (Glorot and Bengio 2010), those of the first layer times the
    gain; its biases zero, the second without.

    Args:
        num_inputs: numbers per example.
        num_outputs: columns of the output.
        width: hidden units.
        gain: 1.9 in the paper's code since June 2021; 1 in its first release.

    Raises:
        ValueError: a size is not a positive integer.
    """
    sizes = _checked_sizes([num_inputs, width, num_outputs])
    first = nn.Linear(sizes[0], sizes[1])
    last = nn.Linear(sizes[1], sizes[2], bias=False)
    nn.init.xavier_normal_(first.weight, gain=gain)
    nn.init.zeros_(first.bias)
    nn.init.xavier_normal_(last.weight)
    return nn.Sequential(first, nn.Tanh(), last)


#: What a network's first argument counts: the numbers of an example, the channels of an image, or
#: the words of a vocabulary.
_FLAT, _IMAGES, _WORDS = "numbers", "images", "words"

_MAKERS: dict[str, tuple[str, Callable[..., nn.Module]]] = {
    **{
        f"fc-{activation}": (_FLAT, partial(fully_connected, activation=activation))
        for activation in ACTIVATIONS
    },
    **{
        f"fc-tanh-depth{depth}": (_FLAT, partial(fully_connected, widths=(200,) * depth))
        for depth in (1, 2, 3, 4)
    },
    **{
        f"cnn-{kind}{name}": (_IMAGES, partial(cnn, activation=ACTIVATIONS[name], **options))
        for kind, options in _CNN_KINDS.items()
        for name in ("relu", "elu", "tanh")
    },
    "vgg11": (_IMAGES, vgg11),
    "vgg11-bn": (_IMAGES, partial(vgg11, batch_norm=True)),
    "resnet32": (_IMAGES, ResNet32),
    "deep-linear": (_FLAT, deep_linear),
    "regression": (_FLAT, regression),
    "transformer": (_WORDS, Transformer),
}

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    name: make for name, (_, make) in _MAKERS.items()
}

#: The networks for images: they consist of convolutions.
CONVOLUTIONAL = {name for name, (takes, _) in _MAKERS.items() if takes == _IMAGES}


def build(
    name: str,
    num_inputs: int,
    num_outputs: int,
    *,
    seed: int = 0,
    dtype: str | torch.dtype = torch.float32,
    **options: object,
) -> nn.Module:
    """Build a network by its name with initial weights drawn from ``seed``.

    The weights are drawn in float32 on the CPU and then cast, so that one seed means the same
    network in every dtype and on every device. The global random state is left as it was found.

    Args:
        name: a key of `ARCHITECTURES`, for instance ``"fc-tanh"``.
        num_inputs: numbers per example; for a convolutional network, channels of the images; for
            the Transformer, words of the vocabulary.
        num_outputs: columns of the output.
        seed: seed of the initial weights.
        dtype: dtype of the parameters, also by its name, ``"float64"``.
        **options: passed on, for instance ``widths=(32, 32)``.

    Raises:
        ValueError: the name or an option's value is wrong; the message suggests near names.
    """
    make = look_up(ARCHITECTURES, name, "architecture")
    num_inputs = a_whole_number("num_inputs", num_inputs)
    num_outputs = a_whole_number("num_outputs", num_outputs)
    seed = a_generator_seed(seed)
    kind = resolve_dtype(dtype) if isinstance(dtype, str) else dtype
    try:
        inspect.signature(make).bind(num_inputs, num_outputs, **options)
    except TypeError as error:
        takes = list(inspect.signature(make).parameters)[2:]
        known = f"its options are {', '.join(takes)}" if takes else "it has no options"
        raise ValueError(f"{name}: {error}; {known}") from error
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.random.fork_rng():  # on every device: manual_seed seeds them all
            torch.manual_seed(seed)
            network = make(num_inputs, num_outputs, **options)
    except TypeError as error:
        raise ValueError(f"{name}: an option is of the wrong kind: {error}") from error
    finally:
        torch.set_default_dtype(default)
    return network.to(kind)


def build_for(
    name: str,
    data: Dataset,
    *,
    seed: int = 0,
    dtype: str | torch.dtype = torch.float32,
    **options: object,
) -> nn.Module:
    """Build a network by its name for a data set, with the inputs and outputs that this needs.

    Args:
        name: a key of `ARCHITECTURES`, for instance ``"resnet32"``.
        data: the data set.
        seed: seed of the initial weights.
        dtype: dtype of the parameters.
        **options: as for `build`.

    Raises:
        ValueError: as `build`, or the network is for images or words and the data are none.
    """
    takes, _ = look_up(_MAKERS, name, "architecture")
    is_text, is_images = data.vocabulary is not None, data.inputs.ndim == 4
    if is_text != (takes == _WORDS) or (takes == _IMAGES and not is_images):
        raise ValueError(
            f"{name} takes {takes}, but an example of {data.name} has shape "
            f"{tuple(data.inputs.shape[1:])} and dtype {data.inputs.dtype}"
        )
    counts = {_FLAT: data.num_inputs, _IMAGES: data.inputs.shape[1], _WORDS: data.num_outputs}
    return build(name, counts[takes], data.num_outputs, seed=seed, dtype=dtype, **options)
