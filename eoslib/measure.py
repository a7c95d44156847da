"""The sharpness of somebody else's model, in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from eoslib.data import Dataset
from eoslib.eigen import lanczos
from eoslib.functional_model import BatchNormMode
from eoslib.losses import Loss
from eoslib.objective import Objective

__all__ = ["sharpness"]


def sharpness(
    model: nn.Module,
    data: Dataset | tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
    loss: str | Loss = "square",
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
        data: a `Dataset`, a pair ``(inputs, targets)``, or an iterable of such pairs, such as a
            ``DataLoader``; its batches are joined, so the last one may be smaller.
        loss: ``"square"`` (½, summed over outputs, averaged over examples), ``"cross_entropy"``, or
            a `Loss`.
        chunk_size: examples per pass, to bound the memory.
        batch_norm: whose statistics batch normalisation takes, if the model has any: "full_batch",
            "ghost" or "running"; see `Objective`.
        output: takes the tensor of outputs out of what the model returns, if that is an object.
        rtol: relative accuracy of the eigenvalue.
        device: default: where the model is.
        dtype: default: the model's if that is float32 or float64, else float32.

    Raises:
        ValueError: the model or the data do not fit; see `Objective`.
        UnconvergedError: the eigenvalue was not found to ``rtol``.

    Cost: some tens of Hessian-vector products.
    """
    parameters = list(model.parameters())
    if not parameters:
        raise ValueError("the model has no parameters")
    if dtype is None:
        own = parameters[0].dtype
        dtype = own if own in (torch.float32, torch.float64) else torch.float32
    inputs, targets = _joined(data)
    objective = Objective(
        model,
        inputs,
        targets,
        loss,
        chunk_size=chunk_size,
        batch_norm=batch_norm,
        output=output,
        device=parameters[0].device if device is None else device,
        dtype=dtype,
    )
    hessian = objective.hessian(objective.initial_point)
    return lanczos(hessian, rtol=1e-4, accuracy=rtol).eigenvalue()


def _joined(
    data: Dataset | tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    if isinstance(data, Dataset):
        return data.inputs, data.targets
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor):
        return data[0], data[1]
    batches = list(data)
    if not batches:
        raise ValueError("the data set is empty: it yielded no batch")
    if any(len(batch) != 2 for batch in batches):
        raise ValueError(
            "expected batches of (inputs, targets); wrap the loader so that it yields these"
        )
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)
