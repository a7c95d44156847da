"""Arguments of a wrong type or value: said at once, what was expected and what to do."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "a_function",
    "a_generator_seed",
    "a_number",
    "a_tensor",
    "a_whole_number",
    "an_objective",
    "shown",
]


def shown(value: object) -> str:
    """A value in an error message: a plain one as it is written, of any other the type."""
    if value is None or isinstance(value, bool | int | float | str | np.bool_):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"an {name}" if name[0] in "AEIOUaeiou" else f"a {name}"


def _is_a_truth_value(value: object) -> bool:
    """Whether it is Python's, NumPy's or PyTorch's ``True`` or ``False``, which are no numbers."""
    kind = getattr(value, "dtype", None)
    return isinstance(value, bool) or kind == torch.bool or kind == np.bool_


def a_whole_number(
    name: str, value: object, *, least: int | None = 1, most: int | None = None, advice: str = ""
) -> int:
    """The value as an integer; 10.0 is one, 1.5, ``True`` and "10" are not.

    Raises:
        ValueError: it is no whole number, or not between the bounds.
    """
    number: int | None
    try:
        whole = isinstance(value, float) and value.is_integer()
        number = int(value) if whole else operator.index(value)  # type: ignore[call-overload,arg-type]
    except TypeError:
        number = None
    if (
        number is None
        or _is_a_truth_value(value)
        or (least is not None and number < least)
        or (most is not None and number > most)
    ):
        wanted = "a positive whole number" if least == 1 else "a whole number"
        if most is not None:
            wanted = f"a whole number in {least}..{most}"
        elif least is not None and least != 1:
            wanted += f", at least {least}"
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}{advice}")
    return int(number)


def a_generator_seed(value: object, name: str = "seed") -> int:
    """The value as a seed of PyTorch's, which may be negative.

    Raises:
        ValueError: it is no whole number, or has more than 64 bits.
    """
    seed = a_whole_number(name, value, least=None)
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"{name} must be a whole number of 64 bits, got {seed}")
    return seed


def a_number(name: str, value: object, *, nan: bool = True, advice: str = "") -> float:
    """The value as a float, which may be infinite.

    Args:
        name: what it is, for the message.
        value: text is no number, and neither is a ``True``, also NumPy's or a tensor of it.
        nan: whether NaN passes, for a caller who looks at the range.
        advice: what to do, for the end of the message.

    Raises:
        ValueError: it is no number.
    """
    number = None
    if not (isinstance(value, str | bytes) or _is_a_truth_value(value)):
        with suppress(TypeError, ValueError, RuntimeError):
            number = float(value)  # type: ignore[arg-type]
    if number is None or (math.isnan(number) and not nan):
        raise ValueError(f"{name} must be a number, got {shown(value)}{advice}")
    return number


def a_tensor(name: str, value: object) -> Tensor:
    """The value itself.

    Raises:
        ValueError: it is no tensor.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, got {shown(value)}")
    return value


def a_function(name: str, value: object, advice: str) -> Callable[..., Any]:
    """The value itself.

    Raises:
        ValueError: it cannot be called.
    """
    if not callable(value) or isinstance(value, Tensor):
        raise ValueError(f"{name} must be a function, got {shown(value)}; {advice}")
    return value


def an_objective(value: object) -> None:
    """Refuse what is no objective and no quadratic model of one.

    Raises:
        ValueError: it has no gradient to follow.
    """
    if not hasattr(value, "value_and_gradient") or isinstance(value, type):
        model = "the model" if isinstance(value, nn.Module) else "a model"
        raise ValueError(
            f"expected an Objective, got {shown(value)}; make one of {model} and its data: "
            "Objective(model, inputs, targets, loss)"
        )


def starting_point(objective: Any, theta: object) -> Tensor:
    """θ where a training begins, on the objective's device and in its dtype; never a copy.

    Args:
        objective: whose initial point is taken for ``None``.
        theta: ``(P,)``.

    Raises:
        ValueError: it has another shape, or is no tensor.
    """
    if theta is None:
        start: Tensor = objective.initial_point
        return start.detach()
    given = a_tensor("theta", theta)
    if given.shape != (objective.num_parameters,):
        raise ValueError(
            f"expected theta of shape ({objective.num_parameters},), got {tuple(given.shape)}"
        )
    return given.detach().to(objective.device, objective.dtype)
