r"""The losses of the book, each with its factor spelled out.

Multiplying a loss by c multiplies every Hessian eigenvalue by c, so a forgotten ½ doubles every
sharpness. The conventions here are those of Cohen et al. (2021):

* square loss: ½ ‖f(x) − y‖², summed over outputs, averaged over examples;
* cross-entropy: −log softmax(f(x))_y, averaged over examples;
* token cross-entropy: the same for sequences, averaged over all words of all examples. (Their sum
  over the words of an example would be its length times as much, and the sharpness with it; so
  plain cross-entropy refuses sequences, of which it could mean either.)

A `Loss` gives its terms, whose *sum* over the examples is the total; `eoslib.objective.Objective`
divides by the number of all examples, which makes uneven chunks exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eoslib._arguments import shown
from eoslib._names import look_up

__all__ = [
    "LOSSES",
    "Loss",
    "accuracy",
    "cross_entropy",
    "get_loss",
    "square_loss",
    "token_cross_entropy",
]


@dataclass(frozen=True)
class Loss:
    """A loss as a sum of terms over examples.

    Attributes:
        name: its name in settings and run records.
        label: its name on an axis, with the factor that matters.
        terms: maps outputs ``(n, ...)`` and targets to a tensor ``(n, ...)`` whose entries sum to
            the loss of all n examples, row i being the share of example i.
        check: raises ``ValueError`` when outputs and targets do not fit together.
        ignored: a label that does not count, if it is a class: accuracy leaves it out too.
    """

    name: str
    label: str
    terms: Callable[[Tensor, Tensor], Tensor]
    check: Callable[[Tensor, Tensor], None]
    ignored: int | None = None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over the examples of ``outputs`` and ``targets``, as a 0-d tensor."""
        return self.terms(outputs, targets).sum() / outputs.shape[0]


def _square_terms(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square()


def check_square(outputs: Tensor, targets: Tensor, name: str = "square loss") -> None:
    """Raise a ``ValueError`` unless the targets are numbers, of the outputs' shape."""
    if targets.shape == outputs.shape and targets.is_floating_point():
        return
    if targets.shape == outputs.shape:
        advice = "if they are numbers to be met, targets.double()"
    else:
        advice = "give one target row per example, of the network's output shape"
        if targets.numel() == outputs.numel():
            shape = ", ".join(map(str, outputs.shape))
            advice = f"reshape them: targets.reshape({shape})"
        if not targets.is_floating_point():
            numbers = f"{advice}.double(); " if targets.numel() == outputs.numel() else ""
            advice = (
                f"{numbers}for class labels take loss='cross_entropy', or turn them into one-hot "
                "rows first: one_hot(labels).double()"
            )
    raise ValueError(
        f"{name} needs floating targets of the outputs' shape {tuple(outputs.shape)}, "
        f"got {targets.dtype} of shape {tuple(targets.shape)}; {advice}"
    )


def _cross_entropy_terms(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _no_probabilities(targets: Tensor) -> Tensor:
    """Which rows of ``(n, classes, ...)`` have negative entries or another sum than 1."""
    rounding = targets.shape[1] * torch.finfo(targets.dtype).eps  # of half precision, for instance
    off = (targets.double().sum(dim=1) - 1).abs() > max(1e-4, rounding)
    return (targets < 0).any(dim=1) | off


def check_labels(outputs: Tensor, targets: Tensor) -> None:
    """Raise a ``ValueError`` unless the targets are classes of the outputs, or probabilities."""
    n, *rest = outputs.shape
    if outputs.ndim < 2:
        raise ValueError(
            "cross-entropy needs one logit per class, outputs of shape (n, classes), "
            f"got {tuple(outputs.shape)}"
        )
    classes = rest[0]
    if targets.is_floating_point() and targets.shape == outputs.shape:
        if bool(_no_probabilities(targets).any()):
            raise ValueError(
                "cross-entropy got rows of targets that are no probabilities (they must be "
                "non-negative and sum to 1); give one-hot rows or integer labels"
            )
    elif targets.dtype == torch.long and targets.shape == (n, *rest[1:]):
        lowest, highest = int(targets.min()), int(targets.max())
        if lowest < 0 or highest >= classes:
            raise ValueError(
                f"labels must lie in 0..{classes - 1} for {classes} logits, "
                f"got values from {lowest} to {highest}"
            )
    else:
        advice = ""
        if targets.shape == (n, *rest[1:]) and classes == 1:
            advice = "; one logit for two classes is torch.nn.BCEWithLogitsLoss()"
        elif targets.shape == (n, *rest[1:]):
            advice = "; convert them: labels.long()"
        elif targets.shape == outputs.shape:
            advice = "; convert them: targets.to(outputs.dtype), or labels = targets.argmax(1)"
        elif targets.shape == (n, 1):
            advice = "; labels are a vector: labels.squeeze(1).long()"
        elif outputs.ndim == 3 and targets.shape == outputs.shape[:2]:
            advice = "; the classes come second: output=lambda result: result.transpose(1, 2)"
        raise ValueError(
            f"cross-entropy needs int64 labels of shape {(n, *rest[1:])} or probabilities of shape "
            f"{tuple(outputs.shape)}, got {targets.dtype} of shape {tuple(targets.shape)}{advice}"
        )


def _check_cross_entropy(outputs: Tensor, targets: Tensor) -> None:
    check_labels(outputs, targets)
    if outputs.ndim > 2:
        raise ValueError(
            f"cross-entropy got outputs of shape {tuple(outputs.shape)}, several positions for "
            "each example; say 'token_cross_entropy' for the mean over all positions, which is "
            "that of nn.CrossEntropyLoss(). (For their sum write a Loss.)"
        )


def _token_cross_entropy_terms(outputs: Tensor, targets: Tensor) -> Tensor:
    return _cross_entropy_terms(outputs, targets) / outputs.shape[2:].numel()


def _check_token_cross_entropy(outputs: Tensor, targets: Tensor) -> None:
    if outputs.ndim < 3 or targets.is_floating_point():
        raise ValueError(
            "token cross-entropy needs outputs of shape (n, classes, length) and one int64 label "
            f"per word, (n, length); got {tuple(outputs.shape)} and {targets.dtype} of shape "
            f"{tuple(targets.shape)}"
        )
    check_labels(outputs, targets)


square_loss = Loss("square", "train loss (½ mean squared error)", _square_terms, check_square)
cross_entropy = Loss(
    "cross_entropy", "train loss (cross-entropy)", _cross_entropy_terms, _check_cross_entropy
)
token_cross_entropy = Loss(
    "token_cross_entropy",
    "train loss (cross-entropy per word)",
    _token_cross_entropy_terms,
    _check_token_cross_entropy,
)

LOSSES: dict[str, Loss] = {
    loss.name: loss for loss in (square_loss, cross_entropy, token_cross_entropy)
}


def get_loss(loss: str | Loss) -> Loss:
    """Return the loss of that name (a key of `LOSSES`), or the loss itself.

    Raises:
        ValueError: the name is unknown, or it is a loss of PyTorch's.
    """
    if isinstance(loss, nn.Module):
        raise ValueError(
            f"got PyTorch's {type(loss).__name__}; eoslib.measure.as_loss(loss, targets) makes a "
            "Loss of it, with the factor that it has"
        )
    if isinstance(loss, Loss):
        return loss
    given: object = loss
    if not isinstance(given, str):
        advice = "see eoslib.losses.Loss"
        if callable(given):
            advice = (
                "for PyTorch's take its module and as_loss(nn.MSELoss(), targets) of "
                "eoslib.measure, for a function of your own write an eoslib.losses.Loss"
            )
        raise ValueError(f"a loss is a name or a Loss, got {shown(given)}; {advice}")
    return look_up(LOSSES, given, "loss")


def accuracy(outputs: Tensor, targets: Tensor, ignored: int | None = None) -> float:
    """Share of examples whose largest output is at the labelled class.

    Labels below zero, as PyTorch's for what is to be ignored, count neither way, and neither does
    the label ``ignored``.

    Args:
        outputs: ``(n, classes)``.
        targets: labels ``(n,)``, or one-hot rows or probabilities ``(n, classes)``.
        ignored: a class that does not count as a label; of rows, all count.

    Returns:
        A number in [0, 1]; NaN where no label counts, or an output is NaN.

    Raises:
        ValueError: the outputs have one column. Their argmax is always 0, so the "accuracy" of a
            scalar regression would be 1 from the first step on. Or the targets are numbers to be
            met, and no classes.
    """
    return share_correct(tally(outputs, targets, ignored))


def tally(outputs: Tensor, targets: Tensor, ignored: int | None = None) -> Tensor:
    """What `accuracy` counts of the same arguments; of several processes, the sum.

    Returns:
        ``(3,)`` float64: how many examples are classified correctly (NaN where an output is NaN),
        how many count, and how many rows of targets are no probabilities.

    Raises:
        ValueError: outputs or targets have another shape than `accuracy` needs.
    """
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ValueError(
            f"accuracy needs outputs of shape (n, classes ≥ 2), got {tuple(outputs.shape)}; "
            "for a regression stop on the loss instead"
        )
    rows = targets.is_floating_point()
    if targets.shape != (outputs.shape if rows else outputs.shape[:1]):
        raise ValueError(
            f"accuracy needs one label per example, got {tuple(targets.shape)} for outputs of "
            f"shape {tuple(outputs.shape)}"
        )
    labels = targets.argmax(dim=1) if rows else targets
    counted = labels >= 0
    if ignored is not None and not rows:
        counted &= labels != ignored
    correct = ((outputs.argmax(dim=1) == labels) & counted).sum().double()
    if bool(outputs.isnan().any()):
        correct.fill_(math.nan)
    odd = _no_probabilities(targets).sum() if rows else correct.new_zeros(())
    return torch.stack([correct, counted.sum(), odd])


def share_correct(tally: Tensor) -> float:
    """The accuracy, of a `tally`.

    Raises:
        ValueError: rows of targets are no probabilities.
    """
    correct, counted, odd = tally.tolist()
    if odd:
        raise ValueError(
            f"accuracy needs labels, or rows that are non-negative and sum to 1; {odd:.0f} of "
            f"{counted:.0f} rows of targets are none; give labels or one-hot rows, and for a "
            "regression stop on the loss instead"
        )
    return correct / counted if counted else math.nan
