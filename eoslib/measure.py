"""Somebody else's model, data and loss: their sharpness in one line, and adapters for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from eoslib._arguments import shown
from eoslib.data import Dataset
from eoslib.eigen import lanczos
from eoslib.functional_model import BatchNormMode
from eoslib.linops import plain_modes
from eoslib.losses import Loss
from eoslib.numerics import limited_threads
from eoslib.objective import Objective
from eoslib.torch_losses import as_loss

__all__ = ["Data", "as_loss", "full_batch", "sharpness"]

Data: TypeAlias = (
    Dataset | tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]] | TorchDataset[Any]
)


def sharpness(
    model: nn.Module,
    data: Data,
    loss: str | Loss | nn.Module = "square",
    *,
    chunk_size: int | None = None,
    batch_norm: BatchNormMode | None = None,
    output: Callable[[Any], Tensor] | None = None,
    rtol: float = 1e-4,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> float:
    r"""The largest eigenvalue of the Hessian of a model's loss on all of the data.

    .. math:: \lambda_{\max}\bigl(\nabla^2 L(\theta)\bigr), \qquad
              L(\theta) = \frac1n \sum_{i=1}^n \ell(f(x_i; \theta), y_i)

    Args:
        model: see `Objective`; it is not changed. Dropout must be off (``model.eval()``).
        data: a `Dataset`, a pair ``(inputs, targets)``, a PyTorch data set, or an iterable of
            batches such as a ``DataLoader``; see `full_batch`.
        loss: ``"square"`` (½, summed over outputs, averaged over examples), ``"cross_entropy"``,
            a `Loss`, or a PyTorch loss module with its options, of which `as_loss` lists those that
            are known.
        chunk_size: examples per pass, to bound the memory.
        batch_norm: whose statistics batch normalisation takes, if the model has any: "full_batch",
            "ghost" or "running"; see `Objective`.
        output: takes the tensor of outputs out of what the model returns, if that is an object.
        rtol: residual norm at which the eigenvalue has converged, relative to it; its error is much
            smaller.
        device: default: where the model is.
        dtype: default: the model's if that is float32 or float64, else float32.

    Raises:
        ValueError: the model, the data or the loss do not fit; see `Objective`.
        UnconvergedError: the eigenvalue was not found to ``rtol``.

    Cost: some tens of Hessian-vector products.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model must be a torch.nn.Module, got {shown(model)}")
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ValueError(
            "the model has no parameters; of a quantized one, measure the model that it was made of"
        )
    for name, parameter in parameters.items():
        # An objective refuses the first two; of the third, PyTorch cannot tell.
        unknown = is_lazy(parameter) or parameter.is_meta or parameter.dtype.itemsize == 1
        if not unknown and not bool(parameter.isfinite().all()):
            raise ValueError(
                f"the parameter {name!r} holds NaN or infinite values, where the loss has no "
                "Hessian; has the training diverged? Measure an earlier state of it"
            )
    with plain_modes():  # also in an evaluation under torch.inference_mode(), or under autocast
        inputs, targets = full_batch(data)
        objective = Objective(
            model,
            inputs,
            targets,
            as_loss(loss, targets),
            chunk_size=chunk_size,
            batch_norm=batch_norm,
            output=output,
            device=next(iter(parameters.values())).device if device is None else device,
            dtype=dtype,
        )
    with limited_threads(objective.num_parameters * objective.num_examples):
        hessian = objective.hessian(objective.initial_point)
        return lanczos(hessian, rtol=rtol).eigenvalue()


def full_batch(data: Data) -> tuple[Tensor, Tensor]:
    """All examples at once, as ``(inputs, targets)``: what an `Objective` is made of.

    Args:
        data: a `Dataset`, a pair ``(inputs, targets)``, a PyTorch data set, or an iterable of
            batches ``(inputs, targets)`` such as a ``DataLoader``. Batches are joined, so the last
            one may be smaller, and shuffling changes nothing but the order. Random augmentation
            is frozen as it came out this once. PyTorch's random state is put back, so that a
            training measured now and then goes on as it would have otherwise.

    Raises:
        ValueError: there is no batch; a batch is no pair of tensors; the batches do not fit
            together; the loader leaves out its last, smaller batch (``drop_last=True``).
    """
    if isinstance(data, Dataset):
        return data.inputs, data.targets
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor):
        return data[0], data[1]
    loader = DataLoader(data, batch_size=256) if isinstance(data, TorchDataset) else data
    if isinstance(loader, dict | Tensor | str) or not isinstance(loader, Iterable):
        raise ValueError(
            f"expected a pair (inputs, targets), a data set or batches, got {_described(loader)}"
        )
    if isinstance(loader, tuple | list) and any(isinstance(part, np.ndarray) for part in loader):
        raise ValueError(
            "expected a pair of tensors, got NumPy arrays; convert them with torch.from_numpy"
        )
    with torch.random.fork_rng([]):  # even a loader that does not shuffle draws a seed
        batches = list(loader)
    if not batches:
        short = " (a last, smaller one is left out: drop_last=True)" if _drops(loader) else ""
        if isinstance(loader, Iterator):
            short = "; an iterator can be read only once, so give a list or a DataLoader"
        raise ValueError(f"the data set is empty: it yielded no batch{short}")
    for batch in batches:
        if not (
            isinstance(batch, tuple | list)
            and len(batch) == 2
            and all(isinstance(part, Tensor) and part.ndim > 0 for part in batch)
        ):
            if len(batches) == 2 and all(isinstance(part, Tensor) for part in batches):
                raise ValueError(
                    "two tensors in a list are read as two batches; give a tuple: (inputs, targets)"
                )
            raise ValueError(
                f"expected batches of (inputs, targets), two tensors, got {_described(batch)}; "
                "wrap the loader so that it yields these, for instance "
                + (
                    "[(torch.cat([a, b], dim=1), y) for a, b, y in loader], and let a module take "
                    "the inputs apart again"
                    if isinstance(batch, tuple | list) and len(batch) > 2
                    else "DataLoader(data, batch_size=256), which makes batches of single examples"
                    if isinstance(batch, tuple | list)
                    and len(batch) == 2
                    and isinstance(batch[0], Tensor)
                    else '[(batch["x"], batch["y"]) for batch in loader]'
                )
            )
        if len(batch[0]) != len(batch[1]):
            raise ValueError(
                f"a batch has {len(batch[0])} inputs and {len(batch[1])} targets; give batches, "
                "not single examples, and in each as many targets as inputs"
            )
    inputs, targets = zip(*batches, strict=True)
    if isinstance(loader, DataLoader) and _drops(loader):
        if isinstance(loader.dataset, IterableDataset):  # whose length nobody knows
            raise ValueError(
                "the loader has drop_last=True and may have left out the last examples of its "
                "iterable data set; the loss is that of all of them, so give drop_last=False"
            )
        kept = sum(len(part) for part in inputs)
        sampler = getattr(loader.batch_sampler, "sampler", None)
        given = len(sampler) if isinstance(sampler, Sized) else kept
        if kept < given:
            raise ValueError(
                f"the loader has drop_last=True and left out {given - kept} of {given} examples; "
                "the loss is that of all of them, so give a loader with drop_last=False"
            )
    return _joined("inputs", inputs), _joined("targets", targets)


def _drops(loader: object) -> bool:
    """Whether a loader leaves out its last batch if that is smaller."""
    return isinstance(loader, DataLoader) and bool(
        getattr(loader.batch_sampler, "drop_last", loader.drop_last)
    )


def _joined(name: str, parts: tuple[Tensor, ...]) -> Tensor:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        shown = " and ".join(map(str, sorted(shapes)[:2]))
        raise ValueError(
            f"the {name} of an example have shape {shown} in different batches; make them equal, "
            "for instance by padding all sequences to one length"
        )
    return torch.cat(parts)


def _described(batch: object) -> str:
    if isinstance(batch, dict):
        return f"a dict with the keys {', '.join(map(repr, batch))}"
    if isinstance(batch, tuple | list):
        more = ", …" if len(batch) > 4 else ""
        parts = ", ".join(map(_described, batch[:4])) or "nothing"
        return f"a {type(batch).__name__} of {parts}{more}"
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)}"
    return f"a {type(batch).__name__}"
