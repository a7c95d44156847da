r"""Layers whose second derivatives cost what their first ones do: convolution and batch norm.

PyTorch differentiates every layer twice, and some on a detour. Here the two steps are written out
for the two layers where that matters most. Either layer becomes two functions, the layer itself and
its backward pass B; the second derivative is what B's own backward pass returns for the number

.. math:: S = \langle \bar x, v_x \rangle + \langle \bar w, v_w \rangle
              + \langle \bar b, v_b \rangle, \qquad (\bar x, \bar w, \bar b) = B(\bar y; x, w).

**Convolution**, y = w ∗ x + b. It is bilinear, so that S = ⟨ȳ, w ∗ v_x + v_w ∗ x + v_b⟩, whose
derivatives by ȳ, x and w are convolutions of three kinds: forward, and backward for the input and
for the weights. PyTorch puts the last one together out of a forward convolution, whose "image" is
the batch and whose "kernel" is as large as the image, and no library has a fast kernel for that:
with 5,000 images on an H100, a Hessian-vector product of ``cnn-tanh`` took the time of seven
gradients that way, and takes that of 1.75.

**Batch norm**, y = w x̂ + b with x̂ = (x − μ) i and i = (σ² + ε)^{-1/2}, all per channel, over its m
values. With g = ȳ, and 𝔼 the mean over a channel,

.. math:: \bar x = w\, i\, (g - 𝔼 g - \hat x\, 𝔼[g \hat x]), \quad
          \bar w = m\, 𝔼[g \hat x], \quad \bar b = m\, 𝔼 g,

so S is made of five means, 𝔼g, 𝔼v, 𝔼[g x̂], 𝔼[v x̂], 𝔼[g v], and so are its derivatives: each is a
sum of g, v, x̂ and 1 with one coefficient a channel. PyTorch's formula took three times as long.

`FastSecondDerivatives` puts this in PyTorch's place while the graph of a gradient is built that is
to be differentiated again. `eoslib.functional_model` uses it where a product with the Hessian came
out as without it when the model was looked at.

**Third derivatives.** PyTorch's second derivatives of batch, layer and instance norm take the mean
and the scale for constants, so that its *third* ones are wrong, by 3 to 40 % in the cases we tried.
`ElementaryNorms` puts sums and products in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["ElementaryNorms", "FastSecondDerivatives", "norm_left", "operations"]

_Parts = tuple[Tensor | None, Tensor | None, Tensor | None]


class FastSecondDerivatives(TorchFunctionMode):
    """While this lasts, convolutions and batch norms can be differentiated twice at less cost.

    The outputs are PyTorch's. What is beyond this file is left to PyTorch: padding by name, complex
    numbers, running statistics, passes within ``torch.func``, forward-mode derivatives or
    ``torch.compile``.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute a convolution or a batch norm through this file, everything else as it is."""
        kwargs = kwargs or {}
        ours = _FAST.get(func)
        if ours is not None and not _transformed():
            outputs = ours(*args, **kwargs)
            if outputs is not None:
                return outputs
        return func(*args, **kwargs)


def _transformed() -> bool:
    """Whether a pass is traced, or differentiated by anything but backward passes."""
    # Without a public name; a PyTorch that calls them otherwise computes as if they were off, and
    # the look at the model decides.
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    level = getattr(torch.autograd.forward_ad, "_current_level", -1)
    return torch.compiler.is_compiling() or (active is not None and active()) or level >= 0


def _applied(function: Any, *arguments: Any) -> Any:
    """A function of autograd at its arguments; PyTorch gives ``apply`` no types."""
    return function.apply(*arguments)


def _real(*tensors: Tensor | None) -> bool:
    return all(tensor is None or tensor.is_floating_point() for tensor in tensors)


# -- convolution -----------------------------------------------------------------------------------


class _Geometry(NamedTuple):
    """How a layer convolves, as ``torch.convolution`` wants it."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """W ∗ x + b."""
        nothing = [0] * len(self.stride)
        y: Tensor = torch.convolution(
            x, w, b, self.stride, self.padding, self.dilation, False, nothing, self.groups
        )
        return y

    def backward(self, g: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, bool, bool]) -> _Parts:
        """B(ȳ; x, w), as far as it is wanted; ȳ is g."""
        nothing = [0] * len(self.stride)
        parts: _Parts = (
            torch.ops.aten.convolution_backward.default(
                g, x, w, [w.shape[0]], self.stride, self.padding, self.dilation,
                False, nothing, self.groups, wanted,
            )
        )  # fmt: skip
        return parts


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor | None:
    alone = input.ndim != weight.ndim  # one image without a batch
    if alone or isinstance(padding, str) or not _real(input, weight, bias):
        return None

    def each(numbers: int | Sequence[int]) -> list[int]:
        several = [numbers] if isinstance(numbers, int) else list(numbers)
        return several * (weight.ndim - 2) if len(several) == 1 else several

    geometry = _Geometry(each(stride), each(padding), each(dilation), groups)
    y: Tensor = _applied(_Convolution, input, weight, bias, geometry)
    return y


class _Convolution(torch.autograd.Function):
    """y = w ∗ x + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return geometry.forward(x, w, b)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        wanted = tuple(ctx.needs_input_grad[:3])
        parts = _applied(_ConvolutionBackward, g, *ctx.saved_tensors, wanted, ctx.geometry)
        return *parts, None


class _ConvolutionBackward(torch.autograd.Function):
    """B(ȳ; x, w) of a convolution."""

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        w: Tensor,
        wanted: tuple[bool, bool, bool],
        geometry: _Geometry,
    ) -> _Parts:
        ctx.save_for_backward(g, x, w)
        ctx.set_materialize_grads(False)
        ctx.geometry = geometry
        return geometry.backward(g, x, w, wanted)

    @staticmethod
    def backward(
        ctx: Any, v_x: Tensor | None, v_w: Tensor | None, v_b: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        g, x, w = ctx.saved_tensors
        geometry: _Geometry = ctx.geometry
        by_g = by_x = by_w = None
        if ctx.needs_input_grad[0]:
            if v_w is not None:
                by_g = geometry.forward(x, v_w, v_b)
            elif v_b is not None:
                by_g = v_b.view(-1, *[1] * (g.ndim - 2)).expand_as(g)
            if v_x is not None:
                moved = geometry.forward(v_x, w)
                by_g = moved if by_g is None else by_g + moved
        if ctx.needs_input_grad[1] and v_w is not None:
            by_x = geometry.backward(g, x, v_w, (True, False, False))[0]
        if ctx.needs_input_grad[2] and v_x is not None:
            by_w = geometry.backward(g, v_x, w, (False, True, False))[1]
        return by_g, by_x, by_w, None, None


# -- batch norm ------------------------------------------------------------------------------------


def _normalise(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    own = training and running_mean is None and running_var is None
    lone = input.ndim < 2 or input.numel() <= input.shape[1]  # PyTorch has the words for it
    if lone or not own or not _real(input, weight, bias):
        return None
    y: Tensor = _applied(_BatchNorm, input, weight, bias, eps)
    return y


class _BatchNorm(torch.autograd.Function):
    """y = w x̂ + b with the batch's statistics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
        y: Tensor
        y, mean, scale = torch.native_batch_norm(x, w, b, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, w, mean, scale)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        wanted = tuple(ctx.needs_input_grad[:3])
        parts = _applied(_BatchNormBackward, g, *ctx.saved_tensors, wanted, ctx.eps)
        return *parts, None


class _BatchNormBackward(torch.autograd.Function):
    """B(ȳ; x, w) of a batch norm; μ and i are functions of x, and counted as such."""

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        w: Tensor | None,
        mean: Tensor,
        scale: Tensor,
        wanted: tuple[bool, bool, bool],
        eps: float,
    ) -> _Parts:
        ctx.save_for_backward(g, x, w, mean, scale)
        ctx.set_materialize_grads(False)
        ctx.eps = eps
        parts: _Parts = torch.ops.aten.native_batch_norm_backward.default(
            g, x, w, None, None, mean, scale, True, eps, wanted
        )
        return parts

    @staticmethod
    def backward(
        ctx: Any, v_x: Tensor | None, v_w: Tensor | None, v_b: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        g, x, w, mean, scale = ctx.saved_tensors
        others = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        size = x.numel() // x.shape[1]
        if torch.is_grad_enabled():  # a third derivative is to come
            variance, mean = torch.var_mean(x, others, correction=0)
            scale = (variance + ctx.eps).rsqrt()

        def mean_of(values: Tensor) -> Tensor:
            return values.mean(others)

        def wide(channels: Tensor) -> Tensor:
            return channels.view(shape)

        def combined(*terms: tuple[Tensor, Tensor], constant: Tensor) -> Tensor:
            total = wide(constant)
            for coefficient, values in terms:
                total = torch.addcmul(total, wide(coefficient), values)
            return total

        hat = torch.addcmul(wide(-mean * scale), wide(scale), x)
        of_g, of_g_hat = mean_of(g), mean_of(g * hat)
        nothing = torch.zeros_like(scale)
        slope = scale if w is None else w * scale
        v_w = nothing if v_w is None else v_w
        v_b = nothing if v_b is None else v_b
        if v_x is None:
            v_x, of_v, of_v_hat, inside = hat, nothing, nothing, nothing
            slope = nothing
        else:
            of_v, of_v_hat = mean_of(v_x), mean_of(v_x * hat)
            inside = mean_of(g * v_x) - of_g * of_v - of_g_hat * of_v_hat
        by_g = by_x = by_w = None
        if ctx.needs_input_grad[0]:
            by_g = combined(
                (slope, v_x), (v_w - slope * of_v_hat, hat), constant=v_b - slope * of_v
            )
        if ctx.needs_input_grad[1]:
            # S as a function of x̂ and i: c = ∂S/∂x̂ goes back through the normalisation, and
            # ∂i/∂x = −i² x̂/m.
            at_g, at_v = v_w - slope * of_v_hat, -slope * of_g_hat
            of_c = at_g * of_g + at_v * of_v
            of_c_hat = at_g * of_g_hat + at_v * of_v_hat
            by_x = combined(
                (scale * at_g, g),
                (scale * at_v, v_x),
                (-scale * (of_c_hat + slope * inside), hat),
                constant=-scale * of_c,
            )
        if ctx.needs_input_grad[2]:
            by_w = scale * inside * size
        return by_g, by_x, by_w, None, None, None, None


_FAST: dict[Any, Callable[..., Tensor | None]] = {
    torch.conv1d: _convolve,
    torch.conv2d: _convolve,
    torch.conv3d: _convolve,
    F.batch_norm: _normalise,
}


# -- norms whose third derivatives are needed ------------------------------------------------------


class ElementaryNorms(TorchFunctionMode):
    """While this lasts, layer, instance and batch norm are made of sums and products.

    So they are right to differentiate at any order, at the price of more passes through memory.
    Norms in scripted modules, and those called by other names than ``torch.nn.functional``'s and
    ``torch.layer_norm``, stay as they are; `norm_left` finds them.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call our function in place of PyTorch's."""
        return _ELEMENTARY.get(func, func)(*args, **(kwargs or {}))


def _standardised(x: Tensor, dims: list[int], eps: float) -> Tensor:
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    standardised: Tensor = (x - mean) * (variance + eps).rsqrt()
    return standardised


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    dims = list(range(-len(normalized_shape), 0))
    return _scaled(_standardised(input, dims, eps), weight, bias, normalized_shape)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:  # linear in x
        return F.instance_norm(
            input, running_mean, running_var, weight, bias, False, momentum=momentum, eps=eps
        )
    channels = [1, -1, *[1] * (input.ndim - 2)]
    dims = list(range(2, input.ndim))
    return _scaled(_standardised(input, dims, eps), weight, bias, channels)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:  # linear in x
        return F.batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    channels = [1, -1, *[1] * (input.ndim - 2)]
    dims = [0, *range(2, input.ndim)]
    return _scaled(_standardised(input, dims, eps), weight, bias, channels)


_ELEMENTARY: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.instance_norm: _instance_norm,
    F.batch_norm: _batch_norm,
}

#: PyTorch's names for batch, instance and layer norm in a graph, without a number at the end.
_NORMS = (
    "NativeLayerNormBackward",
    "NativeBatchNormBackward",
    "NativeBatchNormLegitBackward",
    "CudnnBatchNormBackward",
    "MiopenBatchNormBackward",
)


def norm_left(outputs: Tensor) -> str | None:
    """A norm of PyTorch's, of which the third derivative would be wrong, in the graph of outputs.

    By stored statistics a batch norm is linear in x, and right.
    """
    for node in operations(outputs):
        if node.name().startswith(_NORMS) and getattr(node, "_saved_training", True):
            return str(node.name())
    return None


def operations(outputs: Tensor) -> Iterator[Any]:
    """The nodes of the graph that outputs were made by."""
    waiting, seen = [outputs.grad_fn], set[Any]()
    while waiting:
        node: Any = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting.extend(after for after, _ in node.next_functions)
