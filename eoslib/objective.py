r"""The training objective as a function of a flat parameter vector.

.. math:: L(\theta) = \frac{1}{n} \sum_{i=1}^{n} \ell(f(x_i; \theta), y_i),
          \qquad \theta \in \mathbb{R}^P

This is the one place that knows what a network is. Everything downstream (update rules, flows,
eigensolvers, recorders) sees a vector and the functions L, ∇L and v ↦ ∇²L v.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from eoslib.data import Dataset
from eoslib.linops import SymmetricOperator
from eoslib.losses import Loss, accuracy, get_loss
from eoslib.numerics import full_precision, resolve_device, resolve_dtype

__all__ = ["Objective"]

_RANDOM_LAYERS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


class Objective:
    r"""The full-batch training loss :math:`L(\theta)` and its derivatives.

    Attributes:
        initial_point: the model's parameters as one vector, ``(P,)``; a copy.
        num_parameters: P, the number of trainable parameters; a tied parameter counts once.
        num_examples: n.
        loss: the `eoslib.losses.Loss`.
        device: where everything is computed.
        dtype: dtype of θ, gradients and products.
        num_gradients: gradients computed so far (all chunks together count as one).
        num_products: Hessian-vector products computed so far.

    The model given is copied: its parameters, buffers, ``.grad`` and mode are never touched.

    Cost, in units of one pass over the data: a gradient is a forward and a backward pass. A
    Hessian-vector product at a fresh point builds the gradient's graph and differentiates it
    (Pearlmutter 1994, by double backward): about two gradients. Further products at the same point
    (`hessian`) share that graph and cost about one gradient each. Memory: the activations of one
    chunk, or of the whole batch while a Hessian operator of a single-chunk objective is alive.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        loss: str | Loss = "square",
        *,
        chunk_size: int | None = None,
        device: str | torch.device | None = "cpu",
        dtype: str | torch.dtype = torch.float32,
    ) -> None:
        """Copy the model and the data to ``device`` in ``dtype``.

        Args:
            model: any module that maps inputs ``(m, ...)`` to outputs ``(m, ...)``, example by
                example, and that autograd can differentiate twice (no activation checkpointing).
                Parameters with ``requires_grad=False`` stay frozen and are no part of θ.
            inputs: ``(n, ...)``; floating inputs are cast to ``dtype``, integers are kept.
            targets: see `eoslib.losses`.
            loss: ``"square"``, ``"cross_entropy"`` or a `Loss`.
            chunk_size: examples per pass; bounds the memory. The result does not depend on it
                beyond rounding, also when it does not divide n. ``None``: all at once.
            device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for CUDA where there is one.
            dtype: ``float32`` or ``float64``.

        Raises:
            ValueError: no examples; inputs and targets of different length or of shapes that do
                not fit; NaN or infinite data; a layer that is random or that updates its buffers
                in training mode; a model without trainable parameters; a bad chunk size, device,
                dtype or loss name.
        """
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype)
        self.loss = get_loss(loss)
        self.inputs, self.targets = self._checked_data(inputs, targets)
        self.num_examples = self.inputs.shape[0]
        if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
            raise ValueError(f"chunk_size must be a positive integer or None, got {chunk_size!r}")
        self.chunk_size = min(chunk_size or self.num_examples, self.num_examples)
        _refuse_random_layers(model)
        self._model = copy.deepcopy(model).to(self.device, self.dtype)
        self._model.zero_grad(set_to_none=True)
        self._collect_parameters()
        self.num_gradients = 0
        self.num_products = 0
        # Slices of θ sit in the module's slots during a forward pass; a training in a background
        # thread (the explorer's) must not exchange them under another thread's pass.
        self._lock = threading.Lock()
        self._refuse_unfit_model()

    @classmethod
    def from_dataset(
        cls, model: nn.Module, data: Dataset, loss: str | Loss = "square", **options: object
    ) -> Objective:
        """The objective of a model on a `Dataset`; further options as for the constructor."""
        return cls(model, data.inputs, data.targets, loss, **options)  # type: ignore[arg-type]

    # -- values and derivatives -----------------------------------------------------------------

    def value(self, theta: Tensor) -> Tensor:
        """L(θ) as a 0-d tensor; one forward pass."""
        point = self._checked_point(theta)
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        with torch.no_grad(), full_precision(self.device):
            for x, y in self._chunks():
                total += self.loss.total(self._forward(point, x), y)
        return total / self.num_examples

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """L(θ), 0-d, and ∇L(θ), ``(P,)``; one forward and one backward pass."""
        leaf = self._leaf(theta)
        value = torch.zeros((), dtype=self.dtype, device=self.device)
        gradient: Tensor | None = None
        with torch.enable_grad(), full_precision(self.device):
            for x, y in self._chunks():
                part = self._chunk_loss(leaf, x, y)
                (chunk_gradient,) = torch.autograd.grad(part, leaf)
                gradient = chunk_gradient if gradient is None else gradient.add_(chunk_gradient)
                value += part.detach()
        assert gradient is not None
        self.num_gradients += 1
        return value, gradient

    def gradient(self, theta: Tensor) -> Tensor:
        """∇L(θ), ``(P,)``."""
        return self.value_and_gradient(theta)[1]

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """The Hessian-vector product ∇²L(θ) v, ``(P,)``. For several v at one θ use `hessian`."""
        return self.hessian(theta).matvec(vector)

    def hessian(self, theta: Tensor) -> SymmetricOperator:
        """The Hessian ∇²L(θ) as an operator whose products share one graph.

        With a single chunk the gradient's graph is built once, here, and kept while the operator
        lives. With several chunks each product rebuilds it chunk by chunk, so that memory stays
        bounded by one chunk; such a product costs about two gradients.
        """
        leaf = self._leaf(theta)
        kept: tuple[Tensor, Tensor] | None = None

        def graph(x: Tensor, y: Tensor) -> Tensor:
            part = self._chunk_loss(leaf, x, y)
            (chunk_gradient,) = torch.autograd.grad(part, leaf, create_graph=True)
            return chunk_gradient

        with torch.enable_grad(), full_precision(self.device):
            if self.chunk_size == self.num_examples:
                kept = (graph(self.inputs, self.targets), leaf)

        def product(vector: Tensor) -> Tensor:
            result = torch.zeros_like(vector)
            with torch.enable_grad(), full_precision(self.device):
                if kept is not None:
                    result = _second_backward(*kept, vector, keep_graph=True)
                else:
                    for x, y in self._chunks():
                        result += _second_backward(graph(x, y), leaf, vector, keep_graph=False)
            self.num_products += 1
            return result

        return SymmetricOperator(product, self.num_parameters, dtype=self.dtype, device=self.device)

    def outputs(self, theta: Tensor) -> Tensor:
        """The network's outputs on all examples, ``(n, ...)``."""
        point = self._checked_point(theta)
        with torch.no_grad(), full_precision(self.device):
            return torch.cat([self._forward(point, x) for x, _ in self._chunks()])

    def accuracy(self, theta: Tensor) -> float:
        """Share of training examples classified correctly, in [0, 1]; see `losses.accuracy`."""
        return accuracy(self.outputs(theta), self.targets)

    def module_at(self, theta: Tensor) -> nn.Module:
        """A fresh copy of the network whose parameters are θ."""
        module = copy.deepcopy(self._template).to(self.device)
        parts = dict(zip(self._names, self._split(self._checked_point(theta)), strict=True))
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in parts:
                    parameter.copy_(parts[name])
        return module

    # -- construction ---------------------------------------------------------------------------

    def _checked_data(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        for name, tensor in (("inputs", inputs), ("targets", targets)):
            if not isinstance(tensor, Tensor):
                raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if inputs.ndim == 0 or inputs.shape[0] == 0:
            raise ValueError(
                f"the data set is empty: inputs of shape {tuple(inputs.shape)}; "
                "give at least one example along the first dimension"
            )
        if targets.shape[:1] != inputs.shape[:1]:
            raise ValueError(
                f"{inputs.shape[0]} examples but targets of shape {tuple(targets.shape)}; "
                "give one target per example along the first dimension"
            )
        moved = []
        for name, tensor in (("inputs", inputs), ("targets", targets)):
            if tensor.is_floating_point():
                if not bool(torch.isfinite(tensor).all()):
                    raise ValueError(f"{name} hold NaN or infinite values; clean the data first")
                tensor = tensor.to(self.dtype)
            moved.append(tensor.detach().to(self.device, copy=True))
        return moved[0], moved[1]

    def _collect_parameters(self) -> None:
        """List the trainable parameters, and every slot of the module that holds each of them.

        A forward pass needs the module to see slices of θ in place of its parameters. The module is
        our own copy, so the slices are written straight into its slots; ``torch.func``'s general
        mechanism does the same and puts the old ones back, which costs a small network a third of
        its step. A tied parameter has several slots.
        """
        slots: dict[int, list[tuple[dict[str, Any], str]]] = {}
        for module in self._model.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None and parameter.requires_grad:
                    slots.setdefault(id(parameter), []).append((module._parameters, key))
        named = [(name, p) for name, p in self._model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("the model has no trainable parameters (requires_grad=True)")
        self._names = [name for name, _ in named]
        self._shapes = [p.shape for _, p in named]
        self._sizes = [p.numel() for _, p in named]
        self._slots = [slots[id(p)] for _, p in named]
        self.num_parameters = sum(self._sizes)
        self.initial_point = torch.cat([p.detach().reshape(-1) for _, p in named]).clone()
        self._template = copy.deepcopy(self._model)
        with torch.no_grad():  # whoever still reads the original parameters will show it
            for _, parameter in named:
                parameter.fill_(torch.nan)

    def _refuse_unfit_model(self) -> None:
        """Run the network on one chunk: is it a function of θ and x, example by example?"""
        x, _ = next(self._chunks())
        before = x.clone()
        buffers = [buffer.clone() for buffer in self._model.buffers()]
        with torch.no_grad():
            first, second = (self._forward(self.initial_point, x) for _ in range(2))
        if not isinstance(first, Tensor):
            raise ValueError(
                f"the model returned {type(first).__name__}, expected one tensor of outputs; "
                "wrap it in a module that returns the tensor the loss needs"
            )
        if not torch.equal(before, x):
            raise ValueError(
                "the model overwrote its inputs; make its first layers work out of place "
                "(inplace=False)"
            )
        with torch.no_grad():
            if bool(first.isnan().any()) and not bool(self._template(x).isnan().any()):
                raise ValueError(
                    "the model reads parameters by a path of its own (a private list of weights?), "
                    "so slices of a flat vector cannot stand in for them; read them as attributes "
                    "of their module in forward"
                )
        if first.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"the model returned outputs of shape {tuple(first.shape)} for {x.shape[0]} "
                "examples; expected one row per example"
            )
        if not torch.allclose(first, second, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise ValueError(
                "two passes at the same parameters gave different outputs: the model is random; "
                "a Hessian needs a deterministic loss. Switch the randomness off (model.eval())"
            )
        if any(not torch.equal(a, b) for a, b in zip(buffers, self._model.buffers(), strict=True)):
            raise ValueError(
                "a forward pass changed the model's buffers (batch normalisation in training mode "
                "does); measuring would change what is measured. Call model.eval() first"
            )
        half = (len(x) + 1) // 2
        with torch.no_grad():
            alone = self._forward(self.initial_point, x[:half])
        if not torch.allclose(alone, first[:half], rtol=1e-3, atol=1e-5, equal_nan=True):
            raise ValueError(
                "an example's output depends on which other examples are beside it (batch "
                "normalisation with batch statistics?), so the loss is no mean over examples. Call "
                "model.eval() first"
            )
        self.loss.check(first[:1].expand(self.num_examples, *first.shape[1:]), self.targets)

    # -- the model as a function of theta -------------------------------------------------------

    def _checked_point(self, theta: Tensor) -> Tensor:
        if theta.shape != (self.num_parameters,):
            raise ValueError(
                f"expected theta of shape ({self.num_parameters},), got {tuple(theta.shape)}"
            )
        return theta.to(self.device, self.dtype)

    def _leaf(self, theta: Tensor) -> Tensor:
        # A copy: the operator and the module's slots outlive the caller's next update of theta.
        return self._checked_point(theta).detach().clone().requires_grad_()

    def _split(self, theta: Tensor) -> list[Tensor]:
        parts = theta.split_with_sizes(self._sizes)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _forward(self, theta: Tensor, x: Tensor) -> Tensor:
        with self._lock:
            for slots, part in zip(self._slots, self._split(theta), strict=True):
                for parameters, key in slots:
                    parameters[key] = part
            return cast(Tensor, self._model(x))

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.chunk_size == self.num_examples:  # the common case, worth a tenth of a small step
            yield self.inputs, self.targets
            return
        yield from zip(
            self.inputs.split(self.chunk_size), self.targets.split(self.chunk_size), strict=True
        )

    def _chunk_loss(self, leaf: Tensor, x: Tensor, y: Tensor) -> Tensor:
        part = self.loss.total(self._forward(leaf, x), y) / self.num_examples
        # A network whose outputs ignore θ has a constant loss: gradient zero, not an error.
        return part if part.requires_grad else part + 0 * leaf.sum()


def _second_backward(gradient: Tensor, leaf: Tensor, vector: Tensor, *, keep_graph: bool) -> Tensor:
    """d(gradient · vector)/d(leaf): one Hessian-vector product from a gradient with its graph."""
    if not gradient.requires_grad:  # the loss is linear in theta: its Hessian is zero
        return torch.zeros_like(leaf)
    (product,) = torch.autograd.grad(
        gradient, leaf, grad_outputs=vector, retain_graph=keep_graph, materialize_grads=True
    )
    return product


def _refuse_random_layers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _RANDOM_LAYERS) and module.training and module.p > 0:
            raise ValueError(
                f"layer {name!r} is {type(module).__name__}(p={module.p}) in training mode: the "
                "loss would be random and has no Hessian. Call model.eval(), or set p=0"
            )
