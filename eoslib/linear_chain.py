r"""Gradients and Hessian-vector products of a chain of linear layers, written out by hand.

For a network x → Linear → φ → Linear → … → f the derivatives are a handful of matrix products, and
autograd's bookkeeping is most of what they cost beyond those. With h the activations, δ = ∂L/∂a the
errors at the layers' outputs a, and ẋ the derivative of x along a direction v = (V, v) of θ =
(W, b):

.. math::

    \text{forward:}  & \quad a = h W^\top + b, \quad h' = \varphi(a)
    \\
    \text{backward:} & \quad \partial_W L = \delta^\top h, \quad
                       \delta_h = \delta W, \quad \delta' = \varphi'(a)\, \delta_h
    \\
    \text{forward:}  & \quad \dot a = h V^\top + \dot h W^\top + v, \quad
                       \dot h' = \varphi'(a)\, \dot a
    \\
    \text{backward:} & \quad (\nabla^2 L\, v)_W = \dot\delta^\top h + \delta^\top \dot h, \quad
                       \dot\delta_h = \dot\delta W + \delta V, \quad
                       \dot\delta' = \varphi'(a)\, \dot\delta_h + \varphi''(a)\, \delta_h \dot a

The last two lines are the R-operator (Pearlmutter 1994). What the first two leave behind serves
every product at the point.

Every array has a leading dimension for the R points that are evaluated at once, R = 1 for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["ChainPass", "Slope", "affine"]

#: Maps outputs ``(R, n, c)`` to the R losses, their slope by the outputs, and the function that
#: multiplies by the losses' Hessian in the outputs.
Slope = Callable[[Tensor], tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]]


class ChainPass:
    """One forward and one backward pass at R points, and the products that they make possible.

    Attributes:
        values: the R losses, ``(R,)``.
        gradients: ``(R, P)``.

    Cost of a product: with s the size of the first layer's weights and S that of all others',
    2s + 6S multiplications an example, against 2s + 3S of the two passes.

    Memory: three numbers per activation beside the activations themselves, while the pass lives.
    """

    def __init__(
        self,
        layers: Sequence[tuple[nn.Module, int, int | None]],
        split: Callable[[Tensor], list[Tensor]],
        points: Tensor,
        inputs: Tensor,
        slope: Slope,
        *,
        products: bool,
    ) -> None:
        """Evaluate at the points.

        Args:
            layers: linear layers with the places of weight and bias among the parts of θ, and
                elementwise functions; a linear layer comes first.
            split: maps θ ``(R, P)`` to views of its parts.
            points: ``(R, P)``.
            inputs: ``(n, d)``.
            slope: the loss.
            products: whether there will be products.
        """
        self._split = split
        parts = split(points)
        self._layers: list[_Linear | _Elementwise] = [
            _Linear(parts, weight, bias, first=place == 0)
            if isinstance(layer, nn.Linear)
            else _Elementwise(layer, products)
            for place, (layer, weight, bias) in enumerate(layers)
        ]
        hidden = inputs.expand(len(points), *inputs.shape)
        for layer in self._layers:
            hidden = layer.forward(hidden)
        self.values, error, self._bend = slope(hidden)
        self.gradients = torch.empty_like(points)
        parts = split(self.gradients)
        for layer in reversed(self._layers):
            error = layer.backward(error, parts)

    def product(self, directions: Tensor) -> Tensor:
        """The Hessian at each of the points times its direction, ``(R, P)``."""
        parts = self._split(directions)
        moves: list[Tensor | None] = [None]  # the inputs do not depend on θ
        for layer in self._layers:
            moves.append(layer.forward_along(moves[-1], parts))
        moved = moves.pop()
        assert moved is not None
        error = self._bend(moved)
        products = torch.empty_like(self.gradients)
        results = self._split(products)
        for layer, moved in zip(reversed(self._layers), reversed(moves), strict=True):
            error = layer.backward_along(error, moved, parts, results)
        return products


class _Linear:
    """a = hWᵀ + b."""

    def __init__(
        self, parts: Sequence[Tensor], weight: int, bias: int | None, *, first: bool
    ) -> None:
        self._places, self._first = (weight, bias), first
        self._weight = parts[weight]
        self._bias = None if bias is None else parts[bias]

    def forward(self, inputs: Tensor) -> Tensor:
        self._inputs = inputs
        return affine(inputs, self._weight, self._bias)

    def backward(self, error: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        self._error = error
        weight, bias = self._places
        torch.bmm(error.mT, self._inputs, out=gradients[weight])
        if bias is not None:
            torch.sum(error, dim=1, out=gradients[bias])
        return error if self._first else torch.bmm(error, self._weight)

    def forward_along(self, moved: Tensor | None, directions: Sequence[Tensor]) -> Tensor:
        weight, bias = self._places
        change = affine(
            self._inputs, directions[weight], None if bias is None else directions[bias]
        )
        return change if moved is None else change.baddbmm_(moved, self._weight.mT)

    def backward_along(
        self,
        error: Tensor,
        moved: Tensor | None,
        directions: Sequence[Tensor],
        products: Sequence[Tensor],
    ) -> Tensor:
        weight, bias = self._places
        torch.bmm(error.mT, self._inputs, out=products[weight])
        if moved is not None:
            products[weight].baddbmm_(self._error.mT, moved)
        if bias is not None:
            torch.sum(error, dim=1, out=products[bias])
        if self._first:
            return error
        return torch.bmm(error, self._weight).baddbmm_(self._error, directions[weight])


class _Elementwise:
    """h = φ(a)."""

    def __init__(self, function: nn.Module, products: bool) -> None:
        self._function, self._products = function, products

    def forward(self, inputs: Tensor) -> Tensor:
        if isinstance(self._function, nn.Tanh):
            hidden = torch.tanh(inputs)
            self._first = 1 - hidden.square()
            if self._products:
                self._second = (self._first * hidden).mul_(-2)
            return hidden
        with torch.enable_grad():  # the derivatives of any other function are autograd's
            leaf = inputs.detach().requires_grad_()
            outputs: Tensor = self._function(leaf)
            first = _derivative(outputs, leaf, create_graph=self._products)
            self._first = first.detach()
            if self._products:
                self._second = _derivative(first, leaf)
        return outputs.detach()

    def backward(self, error: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        if self._products:
            self._bent = self._second.mul_(error)
        return error * self._first

    def forward_along(self, moved: Tensor | None, directions: Sequence[Tensor]) -> Tensor:
        assert moved is not None
        return self._first * moved

    def backward_along(
        self,
        error: Tensor,
        moved: Tensor | None,
        directions: Sequence[Tensor],
        products: Sequence[Tensor],
    ) -> Tensor:
        assert moved is not None
        return error.mul_(self._first).addcmul_(self._bent, moved)


def _derivative(values: Tensor, leaf: Tensor, *, create_graph: bool = False) -> Tensor:
    """φ'(a), entry by entry, from φ(a)."""
    if not values.requires_grad:
        return torch.zeros_like(leaf)
    ones = torch.ones_like(values)
    (slopes,) = torch.autograd.grad(
        values, leaf, ones, create_graph=create_graph, materialize_grads=True
    )
    return slopes


def affine(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Outputs ``(R, m, out)`` of R linear layers, one for each of R parameter vectors."""
    if bias is None:
        return torch.bmm(inputs, weight.mT)
    return torch.baddbmm(bias[:, None, :], inputs, weight.mT)
