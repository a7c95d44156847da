r"""PyTorch's loss modules as losses of the book, each with exactly the factor that it has.

On all n examples at once, a module's loss is the sum of its entries, which are those that it
returns with ``reduction="none"``, divided by a number D:

===========================================  ==================================================
``reduction="mean"``                         the number of entries
labels, with class weights or ignored ones   the sum of the weights of the labels that count
``"batchmean"`` (``nn.KLDivLoss``)           n
``"sum"``                                    1
===========================================  ==================================================

A `Loss` gives terms that an objective divides by n, so these are the entries times n/D. The second
and the last D belong to the data set and not to a chunk of it. A mean over a chunk's own labels
would be another loss: its weights, or its padding, are others.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from eoslib._arguments import a_tensor
from eoslib.losses import LOSSES, Loss, check_labels, check_square, get_loss
from eoslib.numerics import digest

__all__ = ["as_loss"]

#: Their targets are labels. (Cross-entropy also takes probabilities, which are not weighed so.)
_LABELLED = (nn.CrossEntropyLoss, nn.NLLLoss)
#: Their targets are numbers, of the outputs' shape.
_NUMERIC = (
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.HingeEmbeddingLoss,
    nn.HuberLoss,
    nn.KLDivLoss,
    nn.L1Loss,
    nn.MSELoss,
    nn.MultiLabelSoftMarginLoss,
    nn.PoissonNLLLoss,
    nn.SmoothL1Loss,
    nn.SoftMarginLoss,
)
_KNOWN = frozenset((*_LABELLED, *_NUMERIC))
#: Why some that one would expect are not among them.
_NOT_KNOWN: dict[type, str] = dict.fromkeys(
    (nn.MultiMarginLoss, nn.MultiLabelMarginLoss), "PyTorch has no second derivative of it"
) | dict.fromkeys(
    (
        nn.CTCLoss,
        nn.CosineEmbeddingLoss,
        nn.GaussianNLLLoss,
        nn.MarginRankingLoss,
        nn.TripletMarginLoss,
        nn.TripletMarginWithDistanceLoss,
    ),
    "it takes more than outputs and targets",
)
#: Tensors with more entries are named by their digest.
_FEW = 10


def as_loss(loss: str | Loss | nn.Module, targets: Tensor | None = None) -> Loss:
    r"""The `Loss` that is meant, with the factor that it has on the full batch.

    A PyTorch module keeps its own convention: value, gradient and sharpness are those of
    ``loss(model(all inputs), all targets)``. ``nn.CrossEntropyLoss()`` averages over examples, and
    over positions where there are several per example. ``nn.MSELoss()`` averages over examples and
    over their K outputs, without a ½: it is 2/K times ``"square"``, and so is its sharpness.

    Known are ``nn.CrossEntropyLoss`` and ``nn.NLLLoss``, with all their options (class weights, a
    label that is ignored, label smoothing), and ``nn.MSELoss``, ``L1Loss``, ``SmoothL1Loss``,
    ``HuberLoss``, ``BCELoss``, ``BCEWithLogitsLoss``, ``KLDivLoss``, ``PoissonNLLLoss``,
    ``SoftMarginLoss``, ``MultiLabelSoftMarginLoss`` and ``HingeEmbeddingLoss`` with theirs; with
    the reductions "mean", "sum" and "batchmean". A loss with kinks has the Hessian that it has
    between them. That of ``L1Loss`` is the network's curvature alone, which says nothing of how
    steps cross the kinks, so 2/η is no threshold there.

    With class weights or ignored labels PyTorch divides by the total weight of the labels that
    count. Here that is the weight of *all* targets, also for chunks and mini-batches: their
    gradients average to that of the full batch. A training loop that calls the module on
    mini-batches divides each by its own weight, which follows another loss unless all weigh alike.

    Args:
        loss: a name, a `Loss`, or a loss module.
        targets: all targets of the objective, ``(n, ...)``; needed for class weights, for
            ``reduction="sum"``, and where labels are ignored.

    Raises:
        ValueError: the name is unknown; the module is another one, or has ``reduction="none"``;
            the targets are needed and were not given; no label counts.

    Cost: a pass over the targets. The loss itself copies the module, options included.
    """
    if isinstance(loss, str | Loss):
        return get_loss(loss)
    kind = type(loss)
    if kind not in _KNOWN:
        name = kind.__name__ if isinstance(loss, nn.Module) else repr(loss)
        names = ", ".join(map(repr, LOSSES))
        raise ValueError(
            f"got the loss {name}{_why_not(loss)}; known are {names} and PyTorch's "
            f"{', '.join(sorted(known.__name__ for known in _KNOWN))}. Write any other as "
            "Loss(name, label, terms, check), where terms(outputs, targets) does not average: its "
            "entries, one row per example, sum to the loss of all examples"
        )
    if loss.reduction == "none":
        raise ValueError(
            f"got the loss {kind.__name__} with reduction='none', which is one number for each "
            "example and no training loss; give reduction='mean' or 'sum'"
        )
    if loss.reduction not in ("mean", "sum", *(["batchmean"] if kind is nn.KLDivLoss else [])):
        raise ValueError(
            f"got {kind.__name__} with reduction={loss.reduction!r}, which PyTorch does not know "
            "for it; give reduction='mean' or 'sum'"
        )
    if targets is not None and not a_tensor("targets", targets).ndim:
        raise ValueError("targets must have one row for each example, got a single number")
    module: Any = copy.deepcopy(loss)  # the caller's may change
    name = _named(module)
    needs_all = module.reduction == "sum" or (kind in _LABELLED and module.weight is not None)
    if targets is None and needs_all:
        raise ValueError(
            f"{name} has a factor that depends on all targets together (their number, or the sum "
            "of their weights); give them too: as_loss(loss, targets)"
        )
    factor = None if targets is None else _factor(module, targets)

    @cache
    def each(device: torch.device, dtype: torch.dtype) -> Any:
        moved = copy.deepcopy(module).to(device, dtype)
        moved.reduction = "none"
        return moved

    def terms(outputs: Tensor, targets: Tensor) -> Tensor:
        entries: Tensor = each(outputs.device, outputs.dtype)(outputs, targets)
        if module.reduction == "batchmean":
            return entries
        return entries / entries[0].numel() if factor is None else factor * entries

    def check(outputs: Tensor, targets: Tensor) -> None:
        if kind in _LABELLED:
            _check_labels(module, outputs, targets)
        else:
            check_square(outputs, targets, kind.__name__)
            _refuse_weights_of_examples(module, outputs, name)
        try:
            each(outputs.device, outputs.dtype)(
                outputs[:1].detach(), targets[:1].to(outputs.device)
            )
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{name} does not take outputs of shape {tuple(outputs.shape)} and "
                f"{targets.dtype} targets of shape {tuple(targets.shape)}: {error}"
            ) from error
        wanted = _factor(module, targets)
        if wanted is not None and factor is None:
            raise ValueError(
                f"{name} ignores some of the targets (ignore_index={module.ignore_index}), so its "
                "mean is over the others; give it all targets: as_loss(loss, targets)"
            )
        if factor is not None and (wanted is None or abs(wanted - factor) > 1e-9 * factor):
            raise ValueError(
                f"{name} was made for other targets: their number or weight is not that of the "
                f"{len(targets)} here; give as_loss(loss, targets) all targets of this objective"
            )

    ignored = module.ignore_index if kind in _LABELLED else None
    return Loss(name, f"train loss (nn.{name})", terms, check, ignored)


def _why_not(loss: object) -> str:
    """A hint for those that are often given."""
    if isinstance(loss, type):
        return f" (a class; make a loss of it: {loss.__name__}())"
    if callable(loss) and not isinstance(loss, nn.Module):
        return " (a function; give the module, such as nn.CrossEntropyLoss())"
    return f" ({_NOT_KNOWN[type(loss)]})" if type(loss) in _NOT_KNOWN else ""


def _factor(loss: Any, targets: Tensor) -> float | None:
    """n/D where D depends on the data set (see above), ``None`` for means over all entries."""
    if loss.reduction == "sum":
        return float(len(targets))
    if not isinstance(loss, _LABELLED) or targets.is_floating_point():
        return None
    counted = targets[targets != loss.ignore_index]
    if loss.weight is None:
        if len(counted) == targets.numel():
            return None
        total = float(len(counted))
    else:
        classes = len(loss.weight)
        if len(counted) and (int(counted.min()) < 0 or int(counted.max()) >= classes):
            raise ValueError(
                f"labels must lie in 0..{classes - 1} for {classes} class weights, got values from "
                f"{int(counted.min())} to {int(counted.max())}"
            )
        counts = torch.bincount(counted, minlength=classes).double()
        total = float(counts @ loss.weight.detach().to(counts.device).double())
    if not total > 0:
        raise ValueError(
            f"the {len(targets)} targets have a total weight of {total:g}: all are ignored, or of "
            "weight 0, and PyTorch's mean over them is NaN"
        )
    return len(targets) / total


def _check_labels(loss: Any, outputs: Tensor, targets: Tensor) -> None:
    """As for cross-entropy, but a label that is ignored need not be a class."""
    if not targets.is_floating_point():
        targets = targets.masked_fill(targets == loss.ignore_index, 0)
    check_labels(outputs, targets)


def _refuse_weights_of_examples(loss: Any, outputs: Tensor, name: str) -> None:
    for weight in (getattr(loss, "weight", None), getattr(loss, "pos_weight", None)):
        if weight is None:
            continue
        # Aligned with the outputs at the last dimension, one meets the examples or sticks out.
        if weight.shape[: max(0, weight.ndim - outputs.ndim + 1)].numel() > 1:
            raise ValueError(
                f"{name} has a weight for each example (shape {tuple(weight.shape)}), of which a "
                "chunk would need its own part. Put such weights beside the targets and write the "
                "loss as a Loss(name, label, terms, check)"
            )


def _named(loss: Any) -> str:
    """The type with those options that are not the usual ones: ``HuberLoss(delta=0.5)``."""
    usual = type(loss)()
    options = []
    for name, value in {**vars(loss), **loss._buffers}.items():
        if name.startswith("_") or name == "training":
            continue
        if isinstance(value, Tensor):
            few = value.numel() <= _FEW
            shown = str(value.tolist()) if few else f"{value.numel()} of digest {digest(value)}"
            options.append(f"{name}={shown}")
        elif value != getattr(usual, name):
            options.append(f"{name}={value!r}")
    return type(loss).__name__ + (f"({', '.join(options)})" if options else "")
