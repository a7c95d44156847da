"""Networks under the names of the field, with seeded initial weights.

``fc-tanh`` is Cohen et al.'s fully connected network: flatten, then hidden layers of 200 units with
the activation after each, then a linear output layer; biases everywhere; PyTorch's default
initialization. Its siblings exchange the activation. Widths and initialization are free.

``vgg11`` and ``vgg11-bn`` are configuration A of Simonyan and Zisserman (2015) as it is used for
images of 32 × 32 pixels, without dropout.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from eoslib._names import look_up

__all__ = ["ACTIVATIONS", "ARCHITECTURES", "build", "fully_connected", "vgg11"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "hardtanh": nn.Hardtanh,
    "gelu": nn.GELU,
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
    sizes = [num_inputs, *widths, num_outputs]
    if any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"layer sizes must be positive integers, got {sizes}")
    make_activation = look_up(ACTIVATIONS, activation, "activation")
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out), make_activation()]
    layers.append(nn.Linear(sizes[-2], sizes[-1]))
    network = nn.Sequential(*layers)
    network.apply(look_up(INITIALIZATIONS, init, "initialization"))
    return network


def _lecun(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(module.bias)


INITIALIZATIONS: dict[str, Callable[[nn.Module], None]] = {
    "pytorch": lambda module: None,
    "lecun": _lecun,
}


#: Output channels of the convolutions of configuration A; None halves the image.
_VGG11 = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)


def vgg11(num_inputs: int, num_outputs: int, *, batch_norm: bool = False) -> nn.Sequential:
    """Eight 3 × 3 convolutions and three linear layers, for images of 32 × 32 pixels.

    Convolution weights are N(0, 2/(9 · output channels)), their biases zero; the linear layers have
    PyTorch's default initialization.

    Args:
        num_inputs: channels of the images.
        num_outputs: columns of the output.
        batch_norm: normalise after every convolution.
    """
    layers: list[nn.Module] = []
    channels = num_inputs
    for width in _VGG11:
        if width is None:
            layers.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(channels, width, 3, padding=1)
        nn.init.normal_(convolution.weight, std=(2 / (9 * width)) ** 0.5)
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        layers += [convolution, *([nn.BatchNorm2d(width)] if batch_norm else []), nn.ReLU()]
        channels = width
    layers.append(nn.Flatten())
    for _ in range(2):
        layers += [nn.Linear(512, 512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, num_outputs))


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    f"fc-{activation}": partial(fully_connected, activation=activation)
    for activation in ACTIVATIONS
} | {"vgg11": vgg11, "vgg11-bn": partial(vgg11, batch_norm=True)}


def build(
    name: str,
    num_inputs: int,
    num_outputs: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **options: object,
) -> nn.Module:
    """Build a network by its name with initial weights drawn from ``seed``.

    The weights are drawn in float32 on the CPU and then cast, so that one seed means the same
    network in every dtype and on every device. The global random state is left as it was found.

    Args:
        name: a key of `ARCHITECTURES`, for instance ``"fc-tanh"``.
        num_inputs: numbers per example, or channels of the images for a convolutional network.
        num_outputs: columns of the output.
        seed: seed of the initial weights.
        dtype: dtype of the parameters.
        **options: passed on, for instance ``widths=(32, 32)``.

    Raises:
        ValueError: the name or an option's value is wrong; the message suggests near names.
    """
    make = look_up(ARCHITECTURES, name, "architecture")
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.random.fork_rng():  # on every device: manual_seed seeds them all
            torch.manual_seed(seed)
            return make(num_inputs, num_outputs, **options).to(dtype)
    finally:
        torch.set_default_dtype(default)
