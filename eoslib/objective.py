r"""The training objective as a function of a flat parameter vector.

.. math:: L(\theta) = \frac{1}{n} \sum_{i=1}^{n} \ell(f(x_i; \theta), y_i),
          \qquad \theta \in \mathbb{R}^P

Update rules, flows, eigensolvers and recorders see a vector and the functions L, ∇L, v ↦ ∇²L v;
what a network is, `eoslib.functional_model` knows.

**Several runs at once.** Every function of θ ``(P,)`` also takes R parameter vectors ``(R, P)`` and
returns R results. The R losses are independent, so the gradient of their sum holds the R gradients,
and its Hessian is block diagonal. A small network is bound by the overhead of its operations and
not by their arithmetic, so R runs cost little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from eoslib._arguments import a_function, a_tensor, a_whole_number, shown
from eoslib.data import Dataset
from eoslib.functional_model import BatchNormMode, FunctionalModel
from eoslib.linear_chain import ChainPass
from eoslib.linops import SymmetricOperator, plain_modes
from eoslib.losses import LOSSES, Loss, accuracy, get_loss, square_loss
from eoslib.numerics import (
    digest,
    full_precision,
    lacks_memory,
    resolve_device,
    resolve_dtype,
)
from eoslib.second_derivatives import ElementaryNorms, norm_left

__all__ = ["Hessian", "Objective"]

#: Words by which errors of `torch.vmap` are known.
_OF_VMAP = ("vmap", "Batching rule", "functorch", "is not implemented")

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def _in_plain_modes(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Compute with autograd and in the dtype asked for, also inside of a block that says otherwise.

    Nearly free where there is no such block: see `eoslib.linops.plain_modes`. Of a model that
    cannot be computed at several θ at once (by `torch.vmap`) it says so.
    """

    @wraps(function)
    def within(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        try:
            if (
                torch.is_inference_mode_enabled()
                or torch.is_autocast_enabled("cpu")
                or torch.is_autocast_enabled("cuda")
            ):
                with plain_modes():
                    return function(*args, **kwargs)
            return function(*args, **kwargs)
        except RuntimeError as error:
            first = str(error).partition("\n")[0]
            given = (*args, *kwargs.values())
            several = any(isinstance(one, Tensor) and one.ndim == 2 for one in given)
            if not (several and any(word in first for word in _OF_VMAP)):
                raise
            raise ValueError(
                "torch.vmap cannot take this model, so give one theta at a time, (P,), and train "
                f"one rule at a time. PyTorch said: {first}"
            ) from error

    return within


class Objective:
    r"""The full-batch training loss :math:`L(\theta)` and its derivatives.

    Attributes:
        initial_point: the model's parameters as one vector, ``(P,)``; a copy.
        num_parameters: P, the number of trainable parameters; a tied parameter counts once.
        num_examples: n.
        loss: the `eoslib.losses.Loss`.
        device: where everything is computed.
        dtype: dtype of θ, gradients and products.
        num_gradients: gradients computed so far; all chunks, and all runs at once, count as one,
            and a mini-batch as its share of the examples.
        num_products: Hessian-vector products computed so far, counted alike.

    The model given is copied: its parameters, buffers, ``.grad`` and mode are never touched.

    Cost, in units of one gradient (a forward and a backward pass over the data): the first product
    at a point costs one gradient more than the further ones (`hessian`). For a chain of linear
    layers and elementwise functions, the products are the R-operator's, one gradient each and
    less (`eoslib.linear_chain`). Any other module's come from differentiating the gradient's graph
    (Pearlmutter 1994, by double backward): one gradient each where the first layer dominates, as it
    does for a wide input, and up to two elsewhere.

    Memory: a gradient holds the activations of one chunk. A Hessian operator of a single-chunk
    objective holds, while it lives, the gradient's graph: about three times the activations of the
    whole batch; a product adds about as much for a moment. With chunks, nothing outlives a chunk
    and the peak is some six times the activations of one chunk, plus the vectors of length P.
    """

    @_in_plain_modes
    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        loss: str | Loss = "square",
        *,
        chunk_size: int | None = None,
        batch_norm: BatchNormMode | None = None,
        output: Callable[[Any], Tensor] | None = None,
        device: str | torch.device | None = "cpu",
        dtype: str | torch.dtype | None = None,
    ) -> None:
        """Copy the model and the data to ``device`` in ``dtype``.

        Args:
            model: any module that maps inputs ``(m, ...)`` to outputs ``(m, ...)``, example by
                example, and that autograd can differentiate twice (no reentrant checkpointing).
                Parameters with ``requires_grad=False`` stay frozen and are no part of θ.
            inputs: ``(n, ...)``; floating inputs are cast to ``dtype``, integers are kept.
            targets: see `eoslib.losses`.
            loss: ``"square"``, ``"cross_entropy"`` or a `Loss`; `eoslib.measure.as_loss` makes one
                of PyTorch's modules.
            chunk_size: examples per pass; bounds the memory. The result does not depend on it
                beyond rounding, also when it does not divide n, except with ghost batches.
                ``None``: all at once.
            batch_norm: whose statistics batch-norm layers take; required when there are such
                layers. ``"full_batch"``: of all n examples, in one pass. ``"ghost"``: of each
                chunk of ``chunk_size`` examples, the physical batch size of Cohen et al. (2021).
                ``"running"``: the stored averages, as in ``model.eval()``. These are three
                different losses. No mode changes the buffers.
            output: for a model that returns an object: takes out the tensor that the loss needs.
            device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for CUDA where there is one.
            dtype: ``float32`` or ``float64``; ``None``: the model's if that is one of them, else
                ``float32``.

        Raises:
            ValueError: no examples; inputs and targets of different length, or of shapes or dtypes
                that do not fit the model or the loss; NaN or infinite data; a layer that is random;
                a batch-norm mode that is missing, out of place or at odds with the chunk size; a
                chunk of one example for layers that take its statistics; a model that mixes
                examples, changes its parameters, buffers or inputs, computes in less than single
                precision, depends on a parameter by no path that can be differentiated, or cannot
                be copied or differentiated twice; no trainable parameters; a loss that averages,
                broadcasts or cannot be differentiated; a bad chunk size, device, dtype or loss
                name.
        """
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"the model must be a torch.nn.Module, got {shown(model)}; a function of weights "
                "and inputs becomes one by a class with nn.Parameter and forward"
            )
        if output is not None:
            a_function("output", output, "it takes the tensor of outputs out of the model's result")
        self.device = resolve_device(device)
        self.dtype = _own_dtype(model) if dtype is None else resolve_dtype(dtype)
        self.loss = get_loss(loss)
        self.inputs, self.targets = self._checked_data(inputs, targets)
        self.num_examples = self.inputs.shape[0]
        self.chunk_size = self._checked_chunk_size(chunk_size, batch_norm)
        self.model = FunctionalModel(
            model, batch_norm=batch_norm, output=output, device=self.device, dtype=self.dtype
        )
        if self.model.mixes_examples:
            self._refuse_lone_example()
        self.num_parameters = self.model.num_parameters
        self.initial_point = self.model.initial_point
        self.num_gradients: float = 0
        self.num_products = 0
        self._chain = self.model.linear_chain() if self.inputs.ndim == 2 else None
        outputs = self.model.check(next(self._chunks())[0], model)
        self.loss.check(outputs[:1].expand(self.num_examples, *outputs.shape[1:]), self.targets)
        if self.loss not in LOSSES.values():
            self._refuse_odd_terms(outputs)

    @classmethod
    def from_dataset(
        cls, model: nn.Module, data: Dataset, loss: str | Loss = "square", **options: object
    ) -> Objective:
        """The objective of a model on a `Dataset`; further options as for the constructor.

        Raises:
            ValueError: as the constructor; what was given is no `Dataset`.
        """
        if not isinstance(data, Dataset):
            raise ValueError(
                f"expected a Dataset of eoslib, got {shown(data)}; for tensors there is "
                "Objective(model, inputs, targets), for a loader eoslib.measure.full_batch(loader)"
            )
        return cls(model, data.inputs, data.targets, loss, **options)  # type: ignore[arg-type]

    # -- values and derivatives -----------------------------------------------------------------

    @_in_plain_modes
    def value(self, theta: Tensor) -> Tensor:
        """L(θ), 0-d, or ``(R,)``; one forward pass."""
        point = self._checked_point(theta)
        with torch.no_grad(), full_precision(self.device):
            parts = self.model.split(point)
            return self._sum(self._part(parts, x, y) for x, y in self._chunks())

    @_in_plain_modes
    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """L(θ), 0-d or ``(R,)``, and ∇L(θ), of θ's shape; one forward and one backward pass."""
        values: list[Tensor] = []
        total: Tensor | None = None
        with full_precision(self.device):
            for value, gradient in self._values_and_gradients(theta):
                total = gradient if total is None else total.add_(gradient)
                values.append(value)
        assert total is not None
        self.num_gradients += 1
        return self._sum(values), total

    def _values_and_gradients(self, theta: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each chunk's share of L(θ) and ∇L(θ)."""
        # With another loss, whose slope is autograd's, a gradient by hand is a tenth slower.
        if self._chain is not None and self.loss is square_loss:
            point = self._checked_point(theta).detach()
            for x, y in self._chunks():
                chain = self._chain_pass(point, x, y, products=False)
                yield chain.values.view(point.shape[:-1]), chain.gradients.view(point.shape)
            return
        leaves = self._leaves(theta)
        for x, y in self._chunks():
            with torch.enable_grad():
                part = self._part(leaves, x, y)
                yield part.detach(), _flat(_gradients(part, leaves), part.ndim)

    def gradient(self, theta: Tensor) -> Tensor:
        """∇L(θ), of θ's shape."""
        return self.value_and_gradient(theta)[1]

    @_in_plain_modes
    def minibatch_gradient(self, theta: Tensor, indices: Tensor) -> Tensor:
        """The gradient of the mean loss of some of the examples, of θ's shape.

        An unbiased estimate of ∇L(θ) when the examples are drawn uniformly: each example has the
        weight that it has in L. Where a loss divides by something that belongs to all targets, such
        as the total of class weights (`eoslib.measure.as_loss`), so does the mini-batch's, n/b
        times: it is not divided by the mini-batch's own total.

        Args:
            theta: ``(P,)``, or ``(R, P)``.
            indices: ``(b,)`` int64, positions among the n examples; one may occur twice.

        Raises:
            ValueError: no indices, or indices of none of the n examples; or a network whose
                batch-norm layers take batch statistics: a mini-batch has others, so this would be
                the gradient of another loss.

        Cost: b/n of a gradient, counted as that share in `num_gradients`.
        """
        if a_tensor("indices", indices).ndim != 1 or not len(indices):
            raise ValueError(f"expected indices of shape (b,), b ≥ 1, got {tuple(indices.shape)}")
        if indices.dtype not in (torch.int64, torch.int32):  # PyTorch takes bool for a mask
            raise ValueError(
                f"expected indices of int64, got {indices.dtype}; of a mask, mask.nonzero()[:, 0]"
            )
        lowest, highest = int(indices.min()), int(indices.max())
        if lowest < 0 or highest >= self.num_examples:
            raise ValueError(
                f"indices must lie in 0..{self.num_examples - 1} for {self.num_examples} examples, "
                f"got values from {lowest} to {highest}"
            )
        if self.model.mixes_examples:
            raise ValueError(
                "mini-batches of a network with batch statistics are another loss than its full "
                'batch; use batch_norm="running", or a network without batch normalisation'
            )
        leaves = self._leaves(theta)
        rows = indices.to(self.device)
        with torch.enable_grad(), full_precision(self.device):
            part = self._part(leaves, self.inputs[rows], self.targets[rows])
            gradient = _flat(_gradients(part, leaves), part.ndim)
        self.num_gradients += len(indices) / self.num_examples
        return gradient * (self.num_examples / len(indices))

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """The Hessian-vector product ∇²L(θ) v, ``(P,)``. For several v at one θ use `hessian`."""
        return self.hessian(theta).matvec(vector)

    def hessian(self, theta: Tensor) -> Hessian:
        """The Hessian ∇²L(θ) as an operator whose products share one graph; see `Hessian`."""
        return Hessian(self, theta)

    @_in_plain_modes
    def gauss_newton(self, theta: Tensor) -> SymmetricOperator:
        r"""The Gauss-Newton matrix, the Hessian without the curvature of the network itself.

        .. math:: G(\theta) = \frac1n \sum_i J_i^\top \, \nabla^2_f \ell(f_i, y_i) \, J_i,
                  \qquad J_i = \partial f(x_i; \theta) / \partial \theta

        It is positive semidefinite for a convex loss, and equals the Hessian where the network is
        linear in θ or fits the data exactly. A product costs about two gradients (J v by
        differentiating v ↦ Jᵀu twice), plus one for the graph, shared in a single chunk.

        Raises:
            ValueError: θ has another shape than ``(P,)``.
        """
        leaves = self._leaves(theta, several=False)

        def linearize(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
            outputs = self._outputs(leaves, x)
            detached = outputs.detach().requires_grad_()
            terms = self.loss.terms(detached, y).sum() / self.num_examples
            slope = _gradients(terms, [detached], create_graph=True)
            dummy = torch.zeros_like(outputs, requires_grad=True)
            pulled = torch.autograd.grad(
                outputs, leaves, dummy, create_graph=True, materialize_grads=True
            )

            def product(vector: Tensor) -> Tensor:
                (pushed,) = _products(pulled, [dummy], self.model.split(vector))
                bent = _products(slope, [detached], [pushed])
                return _flat(_products([outputs], leaves, bent))

            return product

        with torch.enable_grad(), full_precision(self.device):
            kept = [linearize(self.inputs, self.targets)] if self._single_chunk else None

        @_in_plain_modes
        def product(vector: Tensor) -> Tensor:
            self.model.hold(leaves)
            with torch.enable_grad(), full_precision(self.device):
                parts = kept or (linearize(x, y) for x, y in self._chunks())
                return self._sum(part(vector) for part in parts)

        return SymmetricOperator(product, self.num_parameters, dtype=self.dtype, device=self.device)

    @_in_plain_modes
    def third_derivative(self, theta: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """∇_θ (uᵀ ∇²L(θ) v), ``(P,)``: how the curvature along u (and v, default u) changes with θ.

        For an eigenvector u of the Hessian this is the gradient of its eigenvalue. Cost: about four
        gradients.

        Raises:
            ValueError: θ, u or v does not have shape ``(P,)``, or a norm is inside an activation
                checkpoint or a scripted module.
        """
        leaves = self._leaves(theta, several=False)
        u_parts = self.model.split(self._checked_point(u, several=False))
        v_parts = u_parts if v is None else self.model.split(self._checked_point(v, several=False))

        def part(x: Tensor, y: Tensor) -> Tensor:
            share = self._part(leaves, x, y)
            if norm := norm_left(share):
                raise ValueError(
                    f"the model computes a norm out of our sight ({norm}: in a scripted or traced "
                    "module, or by torch.native_layer_norm?), whose third derivative PyTorch gets "
                    "wrong; build the model without torch.jit, of nn.LayerNorm and the like"
                )
            gradients = _gradients(share, leaves, create_graph=True)
            bent = _products(gradients, leaves, v_parts, create_graph=True)
            return _flat(_products(bent, leaves, u_parts))

        try:
            with torch.enable_grad(), full_precision(self.device), ElementaryNorms():
                return self._sum(part(x, y) for x, y in self._chunks())
        except CheckpointError as error:
            raise ValueError(
                "a norm inside an activation checkpoint has no third derivative (PyTorch's would "
                "be wrong); build the model without checkpoints"
            ) from error

    @_in_plain_modes
    def outputs(self, theta: Tensor) -> Tensor:
        """The network's outputs on all examples, ``(n, ...)``, or ``(R, n, ...)``."""
        point = self._checked_point(theta)
        with torch.no_grad(), full_precision(self.device):
            parts = self.model.split(point)
            rows = [self._outputs(parts, x) for x, _ in self._chunks()]
            return torch.cat(rows, dim=point.ndim - 1)

    def accuracy(self, theta: Tensor) -> float:
        """Share of training examples classified correctly, in [0, 1]; see `losses.accuracy`.

        A label that the loss ignores counts neither way.
        """
        return accuracy(self.outputs(theta), self.targets, self.loss.ignored)

    def module_at(self, theta: Tensor) -> nn.Module:
        """A fresh copy of the network whose parameters are θ."""
        return self.model.module_at(self._checked_point(theta, several=False))

    def digests(self) -> dict[str, str]:
        """Short hashes of what L is made of beside θ and settings; for a checkpoint.

        The same on every device. Cost: a pass over the data; see `eoslib.numerics.digest`.
        """
        layers = self.model.layers()
        if self.model.mixes_examples:
            layers += f"; statistics of {self.chunk_size} examples"
        return {
            "inputs": digest(self.inputs),
            "targets": digest(self.targets),
            "layers, buffers and frozen parameters": digest(*self.model.constants(), text=layers),
        }

    # -- construction ---------------------------------------------------------------------------

    def _checked_data(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        for name, tensor in (("inputs", inputs), ("targets", targets)):
            if not isinstance(tensor, Tensor):
                raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
            if tensor.is_nested or tensor.layout is not torch.strided:
                kind, dense = str(tensor.layout).removeprefix("torch."), f"{name}.to_dense()"
                if tensor.is_nested:
                    kind, dense = "nested", f"torch.nested.to_padded_tensor({name}, 0)"
                raise ValueError(f"{name} must be a dense tensor, got a {kind} one; give {dense}")
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

    def _checked_chunk_size(self, chunk_size: int | None, batch_norm: str | None) -> int:
        if chunk_size is not None:
            chunk_size = a_whole_number("chunk_size", chunk_size, advice=", or None for one pass")
        size = min(chunk_size or self.num_examples, self.num_examples)
        if batch_norm == "full_batch" and size < self.num_examples:
            raise ValueError(
                f'batch_norm="full_batch" needs all {self.num_examples} examples in one pass, but '
                f'chunk_size is {size}; leave chunk_size out, or take batch_norm="ghost"'
            )
        if batch_norm == "ghost" and chunk_size is None:
            raise ValueError(
                'batch_norm="ghost" needs chunk_size, the number of examples that share their '
                "statistics"
            )
        return size

    def _refuse_lone_example(self) -> None:
        """Batch normalisation needs two values a channel, also in the last chunk."""
        n, size = self.num_examples, self.chunk_size
        if (n % size or size) > 1:
            return
        try:
            with torch.no_grad():
                self.model(self.model.initial_point, self.inputs[-1:])
        except RuntimeError:
            return  # not for being alone: `FunctionalModel.check` comes to it, and says more
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):  # PyTorch's words
                raise
            if n == 1:
                what, advice = "the data set is one example", "give more examples"
            else:
                what = f"{n} examples in chunks of {size} leave 1 for the last chunk"
                others = (*range(size - 1, 1, -1), *range(size + 1, n + 1))
                better = next(other for other in others if n % other != 1)
                advice = f"take another chunk_size, for instance {better}"
            raise ValueError(
                f"{what}, and a batch-norm layer without spatial extent then has 1 value per "
                f'channel, whose variance is 0; {advice}, or batch_norm="running"'
            ) from error

    def _refuse_odd_terms(self, outputs: Tensor) -> None:
        """Is a loss of the caller's own a sum over examples, and differentiable?"""
        targets, *later = self.targets.split(self.chunk_size)
        terms = self._terms(outputs, targets)
        for others in later:  # a label among them may be out of range
            self._terms(outputs[: len(others)], others)
        name = f"the terms of the loss {self.loss.name!r}"
        if terms.shape[:1] != outputs.shape[:1]:
            raise ValueError(
                f"{name} have shape {tuple(terms.shape)} for {len(outputs)} examples; expected one "
                "row per example, whose entries are summed: do not average (reduction='none')"
            )
        if terms.numel() > outputs.numel() == targets.numel() and outputs.shape != targets.shape:
            raise ValueError(
                f"{name} have shape {tuple(terms.shape)}: outputs {tuple(outputs.shape)} and "
                f"targets {tuple(targets.shape)} were broadcast against one another; reshape the "
                f"targets like the outputs"
            )
        if not terms.requires_grad:
            raise ValueError(
                f"{name} do not depend on the outputs in a differentiable way (a count of errors? "
                "a detach?), so they have no gradient; take a smooth loss"
            )

    def _terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The terms of a loss of the caller's own; refuse targets that it does not take."""
        try:
            with torch.enable_grad():
                return self.loss.terms(outputs.detach().requires_grad_(), targets)
        except (RuntimeError, IndexError) as error:
            if lacks_memory(error):
                raise
            raise ValueError(
                f"the loss {self.loss.name!r} does not take outputs of shape "
                f"{tuple(outputs.shape)} and {targets.dtype} targets of shape "
                f"{tuple(targets.shape)} ({str(error).partition(chr(10))[0]}); give one target "
                "row per example, as the loss wants them"
            ) from error

    # -- the pieces of the sum ------------------------------------------------------------------

    def _checked_point(self, theta: Tensor, *, several: bool = True) -> Tensor:
        if not isinstance(theta, Tensor):
            raise ValueError(
                f"expected theta as a tensor of shape ({self.num_parameters},), got a "
                f"{type(theta).__name__}"
            )
        wrong = theta.shape[-1:] != (self.num_parameters,) or theta.ndim > (2 if several else 1)
        if wrong or not theta.numel():
            raise ValueError(
                f"expected theta of shape ({self.num_parameters},), got {tuple(theta.shape)}"
            )
        if theta.is_complex():
            raise ValueError(f"expected theta in real numbers, got {theta.dtype}")
        point = theta.to(self.device, self.dtype)
        return point.clone() if point.is_inference() else point

    def _leaves(self, theta: Tensor, *, several: bool = True) -> list[Tensor]:
        """θ in parts that autograd differentiates by: cheaper than slices of one flat leaf."""
        # A copy: the operator and the module's slots outlive the caller's next update of theta.
        point = self._checked_point(theta, several=several).detach().clone()
        return [part.requires_grad_() for part in self.model.split(point)]

    @property
    def _single_chunk(self) -> bool:
        return self.chunk_size == self.num_examples

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._single_chunk:  # the common case, worth a tenth of a small step
            yield self.inputs, self.targets
            return
        yield from zip(
            self.inputs.split(self.chunk_size), self.targets.split(self.chunk_size), strict=True
        )

    def _outputs(self, parts: Sequence[Tensor], x: Tensor) -> Tensor:
        """The outputs on one chunk.

        Raises:
            ValueError: it holds an index that the model does not have; the construction has seen
                the first chunk only.
        """
        try:
            return self.model.apply(parts, x)
        except IndexError as error:
            if (refusal := self.model.refusal(x, error)) is None:
                raise
            raise refusal from error

    def _part(self, parts: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        """One chunk's share of L(θ): 0-d, or ``(R,)``."""
        outputs = self._outputs(parts, x)
        if not self.model.holds_several(parts):
            share = self.loss.terms(outputs, y).sum() / self.num_examples
        else:
            share = self._shares(outputs, y)
        if share.requires_grad or not parts[0].requires_grad:
            return share
        # A loss that counts none of this chunk's examples may be a constant there: gradient zero.
        return share + 0 * parts[0].sum()

    def _shares(self, outputs: Tensor, y: Tensor) -> Tensor:
        """One chunk's share of the loss for each of R outputs ``(R, m, ...)``, ``(R,)``."""
        rows = len(outputs)
        repeated = y.expand(rows, *y.shape).reshape(-1, *y.shape[1:])
        terms = self.loss.terms(outputs.flatten(0, 1), repeated)
        return terms.reshape(rows, -1).sum(dim=1) / self.num_examples

    def _chain_pass(self, point: Tensor, x: Tensor, y: Tensor, *, products: bool) -> ChainPass:
        """The passes of a chain of linear layers over one chunk, at ``(P,)`` or ``(R, P)``."""
        assert self._chain is not None
        points = point if point.ndim == 2 else point[None]

        def slope(outputs: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
            if self.loss is square_loss:
                difference = outputs - y
                values = difference.square().sum(dim=(1, 2)) * (0.5 / self.num_examples)
                return values, difference / self.num_examples, lambda v: v / self.num_examples
            with torch.enable_grad():
                leaf = outputs.detach().requires_grad_()
                shares = self._shares(leaf, y)
                (slope,) = _gradients(shares, [leaf], create_graph=products)

            def bent(vector: Tensor) -> Tensor:
                # A copy: where a loss bends nowhere, this is one of PyTorch's immutable zeros.
                return _products([slope], [leaf], [vector])[0].clone()

            return shares.detach(), slope.detach(), bent

        with torch.no_grad():
            return ChainPass(self._chain, self.model.split, points, x, slope, products=products)

    @staticmethod
    def _sum(parts: Any) -> Tensor:
        parts = iter(parts)
        total: Tensor = next(parts)
        for part in parts:
            total = total + part
        return total


class Hessian(SymmetricOperator):
    """∇²L(θ) at one θ ``(P,)``, or at R of them ``(R, P)``, as an operator.

    With a single chunk the gradient's graph is built once, when the operator is made, and kept
    while the operator lives; so L(θ) and ∇L(θ) come with it. With several chunks each product
    rebuilds the graph chunk by chunk, so that memory stays bounded by one chunk.

    Attributes:
        value: L(θ), 0-d or ``(R,)``.
        gradient: ∇L(θ), of θ's shape.
    """

    @_in_plain_modes
    def __init__(self, objective: Objective, theta: Tensor) -> None:
        """Prepare products at θ; one gradient with its graph."""
        self._objective = objective
        self._point = objective._checked_point(theta).detach().clone()
        self._linearised: _Linearised | None = None
        if objective._single_chunk:
            with full_precision(objective.device):
                (self._linearised,) = self._linearisations()
            self.value, self.gradient = self._linearised.value, self._linearised.gradient
            objective.num_gradients += 1
        else:
            self.value, self.gradient = objective.value_and_gradient(theta)
        super().__init__(
            None,
            objective.num_parameters,
            dtype=objective.dtype,
            device=objective.device,
            num_runs=theta.shape[0] if theta.ndim == 2 else None,
        )

    @_in_plain_modes
    def _multiply(self, vector: Tensor) -> Tensor:
        objective = self._objective
        objective.num_products += 1
        with full_precision(objective.device):
            if self._linearised is not None:
                return self._linearised.product(vector, last=False)
            return objective._sum(
                part.product(vector, last=True) for part in self._linearisations()
            )

    @_in_plain_modes
    def _multiply_rows(self, rows: Tensor) -> Tensor:
        """Products with all rows; with chunks, each is linearised once for all of them."""
        objective = self._objective
        objective.num_products += rows.shape[0]
        kept = self._linearised
        with full_precision(objective.device):
            return objective._sum(
                # A chunk's graph is freed with its last product, before the next chunk's is built.
                torch.stack(
                    [
                        part.product(row, last=left == 0 and kept is None)
                        for left, row in zip(reversed(range(len(rows))), rows, strict=True)
                    ]
                )
                for part in ([kept] if kept is not None else self._linearisations())
            )

    def _linearisations(self) -> Iterator[_Linearised]:
        """The gradient of each chunk's share of L, ready to be differentiated again."""
        objective = self._objective
        for x, y in objective._chunks():
            if objective._chain is not None:
                yield _ByHand(objective, self._point, x, y)
            else:
                yield _ByAutograd(objective, self._point, x, y)


class _Linearised(Protocol):
    """One chunk's share of L(θ) and ∇L(θ), and of the products at θ."""

    value: Tensor
    gradient: Tensor

    def product(self, vector: Tensor, *, last: bool) -> Tensor:
        """The share of ∇²L(θ) v; no more products will follow the last."""


class _ByHand:
    """A chain of linear layers; see `eoslib.linear_chain`."""

    def __init__(self, objective: Objective, point: Tensor, x: Tensor, y: Tensor) -> None:
        self._pass = objective._chain_pass(point, x, y, products=True)
        self.value = self._pass.values.view(point.shape[:-1])
        self.gradient = self._pass.gradients.view(point.shape)

    def product(self, vector: Tensor, *, last: bool) -> Tensor:
        with torch.no_grad():
            return self._pass.product(vector.view_as(self._pass.gradients)).view_as(vector)


class _ByAutograd:
    """Any module, by double backward: the gradient's graph is differentiated."""

    def __init__(self, objective: Objective, point: Tensor, x: Tensor, y: Tensor) -> None:
        self._model = objective.model
        with torch.enable_grad():
            self._leaves = objective._leaves(point)
            with self._model.differentiated_twice(self._leaves):
                part = objective._part(self._leaves, x, y)
            self._graph = _gradients(part, self._leaves, create_graph=True)
        self.value = part.detach()
        self.gradient = _flat([g.detach() for g in self._graph], part.ndim)

    def product(self, vector: Tensor, *, last: bool) -> Tensor:
        parts = self._model.split(vector)
        self._model.hold(self._leaves)
        with torch.enable_grad():
            products = _products(self._graph, self._leaves, parts, keep_graph=not last)
        return _flat(products, vector.ndim - 1)


def _own_dtype(model: nn.Module) -> torch.dtype:
    """That of the model's parameters where curvature can be measured in it, else float32."""
    own = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    return own if own in (torch.float32, torch.float64) else torch.float32


def _gradients(
    part: Tensor, leaves: Sequence[Tensor], *, create_graph: bool = False
) -> Sequence[Tensor]:
    """The gradient of a loss, or of each of R independent losses, by the parts of its point."""
    return torch.autograd.grad(
        part if part.ndim == 0 else part.sum(),
        leaves,
        create_graph=create_graph,
        materialize_grads=True,
    )


def _products(
    gradients: Sequence[Tensor],
    leaves: Sequence[Tensor],
    vectors: Sequence[Tensor],
    *,
    keep_graph: bool = True,
    create_graph: bool = False,
) -> Sequence[Tensor]:
    """d(gradients · vectors)/d(leaves): one Hessian-vector product from a gradient's graph."""
    pairs = [(g, v) for g, v in zip(gradients, vectors, strict=True) if g.requires_grad]
    if not pairs:  # the loss is linear in theta: its Hessian is zero
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(
        [gradient for gradient, _ in pairs],
        leaves,
        grad_outputs=[vector for _, vector in pairs],
        retain_graph=keep_graph,
        create_graph=create_graph,
        materialize_grads=True,
    )


def _flat(parts: Sequence[Tensor], rows_ndim: int = 0) -> Tensor:
    """Parts in the shapes of the parameters as one vector ``(P,)``, or as R rows of it."""
    # A parameter may be a single number, without a dimension to flatten.
    return torch.cat([part.reshape(*part.shape[:rows_ndim], -1) for part in parts], dim=-1)
