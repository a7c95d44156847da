"""Convolutional networks for images of 32 × 32 pixels, as Cohen et al. (2021) train them.

Names as there: ``cnn-relu`` (max pooling), ``cnn-avgpool-relu`` and ``cnn-bn-relu`` (with their
siblings ``elu`` and ``tanh``), ``vgg11`` and ``vgg11-bn``, ``resnet32``. There is no dropout.
Batch-norm layers take their mode from the objective (`eoslib.objective.Objective`), never from
``train`` or ``eval``.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eoslib._arguments import a_whole_number
from eoslib._names import look_up

__all__ = ["ResNet32", "ResidualBlock", "cnn", "vgg11"]

_POOLING: dict[str, type[nn.MaxPool2d] | type[nn.AvgPool2d]] = {
    "max": nn.MaxPool2d,
    "average": nn.AvgPool2d,
}


def cnn(
    num_inputs: int,
    num_outputs: int,
    *,
    activation: type[nn.Module] = nn.ReLU,
    pooling: str = "max",
    batch_norm: bool = False,
    width: int = 32,
    image_size: int = 32,
) -> nn.Sequential:
    """(3 × 3 convolution → activation → batch norm if any → 2 × 2 pooling) twice → Linear.

    PyTorch's default initialization. The batch norm comes after the activation, as in the paper's
    code.

    Args:
        num_inputs: channels of the images.
        num_outputs: columns of the output.
        activation: the module type of the activation.
        pooling: ``"max"`` or ``"average"``.
        batch_norm: normalise after every activation.
        width: channels of the convolutions.
        image_size: height and width of the images, a multiple of 4.

    Raises:
        ValueError: the pooling is unknown, or the images cannot be halved twice.
    """
    pool = look_up(_POOLING, pooling, "pooling")
    width, image_size = a_whole_number("width", width), a_whole_number("image_size", image_size)
    if image_size % 4:
        raise ValueError(f"image_size must be a multiple of 4, to be halved twice: {image_size}")
    layers: list[nn.Module] = []
    for channels in (num_inputs, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1), activation()]
        layers += [nn.BatchNorm2d(width)] if batch_norm else []
        layers.append(pool(2))
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(width * (image_size // 4) ** 2, num_outputs)
    )


#: Output channels of the convolutions of configuration A; None halves the image.
_VGG11 = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)


def vgg11(num_inputs: int, num_outputs: int, *, batch_norm: bool = False) -> nn.Sequential:
    """Eight 3 × 3 convolutions and three linear layers, for images of 32 × 32 pixels.

    Configuration A of Simonyan and Zisserman (2015) as it is used for such images, without dropout.
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


class ResNet32(nn.Module):
    """The residual network of 32 layers for images of 32 × 32 pixels.

    A convolution, three stages of five blocks with 16, 32 and 64 channels, the mean over all
    pixels, a linear layer (He et al. 2016, §4.2). Two convolutions and their batch norms make a
    block. Where a stage halves the image, the shortcut takes every second pixel, normalises it, and
    fills the new channels with zeros.

    Convolutions have no biases, and weights N(0, 2/(9 · output channels)) (He et al. 2015). The
    second batch norm of a block begins at γ = 0, so that the block begins as its shortcut (Goyal et
    al. 2017, §5.1), all others at γ = 1; the linear layer has PyTorch's default.

    Args:
        num_inputs: channels of the images.
        num_outputs: columns of the output.
    """

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(num_inputs, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        channels = 16
        for width in (16, 32, 64):
            for _ in range(5):
                blocks.append(ResidualBlock(channels, width))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Linear(64, num_outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Outputs ``(m, outputs)`` for images ``(m, channels, height, width)``."""
        hidden: Tensor = self.last(self.blocks(self.first(images)).mean(dim=(2, 3)))
        return hidden


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; with more channels than before, half the image.

    Args:
        channels: of the input.
        width: channels of the output; not fewer.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        stride = 1 if channels == width else 2
        last_norm = nn.BatchNorm2d(width)
        nn.init.zeros_(last_norm.weight)
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            last_norm,
        )
        self.new_channels = width - channels
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            steps = [("pixels", nn.AvgPool2d(1, stride=2)), ("norm", nn.BatchNorm2d(channels))]
            self.shortcut = nn.Sequential(OrderedDict(steps))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(m, width, h, w)`` for ``(m, channels, h, w)``, or half that size."""
        shortcut = self.shortcut(x)
        if self.new_channels:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        return torch.relu(shortcut + self.residual(x))
