r"""Convolutions whose second derivatives are made of the same fast kernels as their first ones.

A convolution y = w ∗ x + b is bilinear, so everything that its derivatives of any order need are
convolutions of three kinds: forward, and backward for the input and for the weights. PyTorch's own
double backward puts the last kind together out of a forward convolution, whose "image" is the batch
and whose "kernel" is as large as the image. Libraries have no fast kernel for that: with 5,000
images on an H100, a Hessian-vector product of ``cnn-tanh`` took seven gradients' time. So the two
steps are written out here:

.. math:: (\bar x, \bar w, \bar b) = B(\bar y;\, x, w), \qquad
          \langle B, (v_x, v_w, v_b) \rangle
          = \langle \bar y,\, w ∗ v_x + v_w ∗ x + v_b \rangle,

whose derivatives by ȳ, x and w are again a forward convolution (of both pairs) and the two backward
ones, of (ȳ, v_w) and of (ȳ, v_x). Every line is differentiable in its turn, by PyTorch's rules.

`with_fast_second_derivatives` puts this into the layers of a network; `eoslib.functional_model`
calls it on its copy of the user's.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["is_ours", "with_fast_second_derivatives"]

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def with_fast_second_derivatives(module: nn.Module) -> None:
    """Have the module's convolutions compute through this file, in place.

    The outputs are the same to the last bit. Layers that pad otherwise than with zeros, or by name
    (``padding="same"``), and subclasses with a forward pass of their own, are left alone: they are
    right, and slower to differentiate twice.
    """
    for layer in module.modules():
        for kind in _LAYERS:
            if (
                isinstance(layer, kind)
                and type(layer).forward is kind.forward
                and type(layer)._conv_forward is kind._conv_forward
                and "forward" not in vars(layer)
                and layer.padding_mode == "zeros"
                and not isinstance(layer.padding, str)
            ):
                # Not a closure: a copy of the layer must compute with its own weights.
                layer.forward = partial(_forward, layer)  # type: ignore[method-assign]


def is_ours(node: Any) -> bool:
    """Whether a node of a graph was made by a layer that computes through this file."""
    return getattr(type(node), "_forward_cls", None) is _Convolution


class _Geometry(NamedTuple):
    """How a layer convolves, as ``torch.ops.aten.convolution`` wants it."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """W ∗ x + b."""
        nothing = [0] * len(self.stride)
        y: Tensor = torch.ops.aten.convolution(
            x, w, b, self.stride, self.padding, self.dilation, False, nothing, self.groups
        )
        return y

    def backward(
        self, y: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What the derivative ȳ of a number by y says of its derivatives by x, w and b."""
        nothing = [0] * len(self.stride)
        parts: tuple[Tensor | None, Tensor | None, Tensor | None] = (
            torch.ops.aten.convolution_backward(
                y, x, w, [w.shape[0]], self.stride, self.padding, self.dilation,
                False, nothing, self.groups, wanted,
            )
        )  # fmt: skip
        return parts


def _forward(layer: Any, x: Tensor) -> Tensor:
    if x.ndim != layer.weight.ndim:  # one image without a batch
        return type(layer).forward(layer, x)  # type: ignore[no-any-return]
    geometry = _Geometry(
        list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups
    )
    y: Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
        x, layer.weight, layer.bias, geometry
    )
    return y


class _Convolution(torch.autograd.Function):
    """The layer; its backward pass is `_Backward`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: _Geometry) -> Tensor:
        return geometry.forward(x, w, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, w, _, ctx.geometry = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        parts = _Backward.apply(  # type: ignore[no-untyped-call]
            y, x, w, tuple(ctx.needs_input_grad[:3]), ctx.geometry
        )
        return *parts, None


class _Backward(torch.autograd.Function):
    """B(ȳ; x, w): the derivatives by x, w and b, as far as they are wanted."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        y: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, bool, bool], geometry: _Geometry
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return geometry.backward(y, x, w, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        y, x, w, _, ctx.geometry = inputs
        ctx.save_for_backward(y, x, w)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, v_x: Tensor | None, v_w: Tensor | None, v_b: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        y, x, w = ctx.saved_tensors
        geometry: _Geometry = ctx.geometry
        by_y = by_x = by_w = None
        if ctx.needs_input_grad[0]:
            if v_w is not None:
                by_y = geometry.forward(x, v_w, v_b)
            elif v_b is not None:
                by_y = v_b.view(-1, *[1] * (y.ndim - 2)).expand_as(y)
            if v_x is not None:
                moved = geometry.forward(v_x, w)
                by_y = moved if by_y is None else by_y + moved
        if ctx.needs_input_grad[1] and v_w is not None:
            by_x = geometry.backward(y, x, v_w, (True, False, False))[0]
        if ctx.needs_input_grad[2] and v_x is not None:
            by_w = geometry.backward(y, v_x, w, (False, True, False))[1]
        return by_y, by_x, by_w, None, None
