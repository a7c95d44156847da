"""A pretended accelerator, for machines that have none.

Its tensors say that they are on a device of their own (`DEVICE`, PyTorch's name ``"meta"``) and
hold their numbers in an ordinary tensor inside. An operation between one of them and a tensor with
dimensions on the CPU raises, as it would with CUDA; so do ``numpy()`` and everything else that
needs the numbers here. So code that passes works on one device only, whichever it is; how fast a
real one would be, and its rounding, is another matter (`test_gpu.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
#: A real one as a test's parameter, skipped where there is none.
CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)


class There(Tensor):
    """A tensor of the accelerator."""

    @staticmethod
    def __new__(cls, inside: Tensor) -> There:
        wrapper = Tensor._make_wrapper_subclass(
            cls,
            inside.size(),
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=DEVICE,
        )
        wrapper.inside = inside
        return wrapper

    @classmethod
    def __torch_function__(cls, function, types, args=(), options=None):
        if function is Tensor.tolist:  # CUDA's tensors have it, subclasses have not
            return args[0].cpu().tolist()
        if function is Tensor.__getitem__ and isinstance(args[1], list):  # PyTorch moves it there
            index = torch.tensor(args[1], dtype=None if args[1] else torch.long)
            args = (args[0], index.to(DEVICE))
        if function is Tensor.new_tensor:  # makes its tensor before any dispatch
            return torch.tensor(args[1], dtype=args[0].dtype).to(DEVICE)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(options or {}))

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), options=None):
        return _compute(operation, args, options or {})


class _Factories(TorchDispatchMode):
    """Makes the tensors that are asked for on the accelerator."""

    def __torch_dispatch__(self, operation, types, args=(), options=None):
        options = options or {}
        there = any(isinstance(leaf, There) for leaf in tree_leaves((args, options)))
        asked = options.get("device")
        if there or (asked is not None and torch.device(asked) == DEVICE):
            return _compute(operation, args, options)
        return operation(*args, **options)


class _FromNumbers(TorchFunctionMode):
    """`torch.tensor` makes its tensor before any dispatch."""

    def __torch_function__(self, function, types, args=(), options=None):
        options = options or {}
        if function is torch.tensor and options.get("device") is not None:
            device = options.pop("device")
            return function(*args, **options).to(device)
        return function(*args, **options)


def _compute(operation: Any, args: Any, options: dict[str, Any]) -> Any:
    """Do it with the numbers inside; the result is there if its arguments were, or if asked."""
    name = operation._schema.name.removeprefix("aten::")
    tensors = [leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, There) for tensor in tensors)
    if there and name not in ("copy_", "_to_copy"):  # those are how numbers travel
        for tensor in tensors:
            if not isinstance(tensor, There) and tensor.ndim > 0:
                raise RuntimeError(
                    f"{name}: a tensor of shape {tuple(tensor.shape)} on {tensor.device} met one "
                    "on the accelerator"
                )
    if options.get("device") is not None:
        there = torch.device(options["device"]) == DEVICE
        options = {**options, "device": torch.device("cpu")}
    inner = [
        tree_map(lambda x: x.inside if isinstance(x, There) else x, part)
        for part in (args, options)
    ]
    result = operation(*inner[0], **inner[1])
    if name.endswith("_") and not name.endswith("__"):  # in place
        return args[0]
    return tree_map(
        lambda x: There(x) if there and isinstance(x, Tensor) and not isinstance(x, There) else x,
        result,
    )


@contextmanager
def accelerator() -> Iterator[torch.device]:
    """While this lasts, ``device="meta"`` computes."""
    with _Factories(), _FromNumbers():
        yield DEVICE
