"""Where and how numbers are computed: device, dtype, precision, long sums, the stamp a run carries.

Nothing here acts at import time; every switch but `keep_freed_memory` is a context manager that
puts back what it found.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "device_name",
    "digest",
    "full_precision",
    "hardware_stamp",
    "inner_products",
    "keep_freed_memory",
    "lacks_memory",
    "limited_threads",
    "resolve_device",
    "resolve_dtype",
]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
#: So many products of entries are added in the vectors' own precision, on the CPU.
_STRETCH = 32_768
#: Up to this length one batched call is faster than one call for each run.
_SHORT = 8_192
_precision_lock = threading.Lock()
_precision_users = 0
_precision_before: list[str] = []


def resolve_device(device: str | torch.device | None = "auto") -> torch.device:
    """Turn a device's name into a device that is really there.

    Args:
        device: ``"auto"`` or ``None`` takes CUDA where there is one and the CPU elsewhere; anything
            else is a PyTorch device name (``"cpu"``, ``"cuda"``, ``"cuda:1"``).

    Raises:
        ValueError: the name is no device, or names an accelerator this machine does not have.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device {device!r} is not a device name; use 'auto', 'cpu', 'cuda' or 'cuda:0'"
        ) from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r} was asked for, but this PyTorch ({torch.__version__}) sees no CUDA "
            "device; use device='cpu', or 'auto' to take whatever is there"
        )
    if resolved.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=resolved).item()
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0]  # PyTorch's goes on for pages
            raise ValueError(
                f"device {device!r} cannot be used here ({reason}); use 'auto', 'cpu' or 'cuda'"
            ) from error
    return resolved


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Turn ``"float32"`` or ``torch.float32`` into a dtype that curvature can be measured in.

    Raises:
        ValueError: it is neither float32 nor float64.
    """
    resolved = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved is None or resolved not in _DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    return resolved


def lacks_memory(error: BaseException) -> bool:
    """Whether an allocation failed; PyTorch's for the CPU raises a bare RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "can't allocate memory" in str(error)
    )


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute float32 products in float32 on CUDA: TF32 off for matrix products and convolutions.

    TF32 keeps 10 of float32's 23 mantissa bits; a Hessian's product with it is wrong in the fourth
    digit. On any other device this does nothing. The switches are global to the process, so threads
    share them: the first to enter sets them, the last to leave puts back what was there.
    """
    global _precision_users
    if device.type != "cuda":
        yield
        return
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    with _precision_lock:
        if _precision_users == 0:
            _precision_before[:] = [switch.fp32_precision for switch in switches]
            for switch in switches:
                switch.fp32_precision = "ieee"
        _precision_users += 1
    try:
        yield
    finally:
        with _precision_lock:
            _precision_users -= 1
            if _precision_users == 0:
                for switch, value in zip(switches, _precision_before, strict=True):
                    switch.fp32_precision = value


def digest(*tensors: Tensor, text: str = "") -> str:
    """A short hash of the bits of tensors, in order, and of a text.

    Cost: a pass over the numbers; 0.1 s for 5,000 images of 3,072 numbers in float32.
    """
    total = hashlib.sha256(text.encode())
    for tensor in tensors:
        # As bytes, because NumPy does not know every dtype.
        total.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]


def inner_products(rows: Tensor, vectors: Tensor) -> Tensor:
    """The inner products of each of R vectors with the m rows that belong to it.

    A matrix product may add up a long row one entry after another, and float32 does not bear that:
    with two runs of 3.27 million parameters the CPU's batched product was off by 8e-4 of the
    vectors' norms (with one run, by 1e-5), and eigenvalues computed from such products by as much.
    So here long vectors are cut into stretches, whose sums are added in float64: 3e-6 of the norms
    at most, whatever the length. For several long runs on the CPU it is also several times faster
    than the batched product.

    Args:
        rows: ``(R, m, P)``, R ≥ 1; each row contiguous, for speed.
        vectors: ``(R, P)``.

    Returns:
        ``(R, m)``, float64.
    """
    with full_precision(rows.device):
        if rows.shape[-1] <= _SHORT:
            return torch.bmm(rows, vectors[:, :, None])[:, :, 0].double()
        if rows.device.type == "cuda":
            return _stretches_at_once(rows, vectors)
        return torch.stack(
            [
                torch.stack(
                    [
                        stretch @ part
                        for stretch, part in zip(
                            run.split(_STRETCH, dim=1), vector.split(_STRETCH), strict=True
                        )
                    ]
                ).sum(dim=0, dtype=torch.float64)
                for run, vector in zip(rows, vectors, strict=True)
            ]
        )


def _stretches_at_once(rows: Tensor, vectors: Tensor) -> Tensor:
    """`inner_products` in a few calls whatever the length, for a device where each call costs.

    Arguments and result are those of `inner_products`.

    One call for whole rows was off by a relative 5e-6 on an H100. On the CPU a stretch added up in
    one of these calls is off by more than `inner_products` promises. With several runs the rows are
    copied for the call.
    """
    whole = rows.shape[-1] // _STRETCH * _STRETCH
    stretches = rows[..., :whole].unflatten(2, (-1, _STRETCH)).transpose(1, 2)  # (R, q, m, S)
    parts = vectors[:, :whole].unflatten(1, (-1, _STRETCH))  # (R, q, S)
    total: Tensor = (stretches @ parts[..., None])[..., 0].sum(dim=1, dtype=torch.float64)
    rest = torch.bmm(rows[..., whole:], vectors[:, whole:, None])[..., 0]
    return total + rest


@contextmanager
def limited_threads(work: int) -> Iterator[None]:
    """Run small problems on one CPU thread; restore the number of threads on leaving.

    The barriers between threads cost a small network more than the second core brings, and ruin it
    when another process wants that core: on two cores shared with other jobs, steps of a
    1,000-parameter network took 25 times as long with two threads as with one. One thread also
    makes the sums, and so the run, the same on every number of cores.

    Args:
        work: a measure of one gradient's work, parameters times examples.
    """
    before = torch.get_num_threads()
    if work >= 50_000_000 or before == 1:
        yield
        return
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> bool:
    """Have the C library keep the memory that it frees, from now on, and hand it out again.

    glibc returns every block of more than 32 MiB to the system, and gets the next one as pages that
    the system fills with zeros first. Where one layer puts out more than that, half of the
    processor's time can go there. On one core, gradients and Hessian-vector products took 2.0 and
    1.7 times as long without this for `cnn-tanh` on 1,000 images, 1.4 and 2.0 times for
    `cnn-bn-tanh` on 500, and 1.4 and 1.7 times for the Transformer on 100 pieces of text. The
    process holds more memory, 1.1 to 1.4 times as much there.

    It cannot be undone and acts on the whole process, hence for programs, not for libraries:
    `python -m eoslib` calls it before it computes on a CPU.

    Returns:
        Whether it could be had: with glibc, on Linux.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, -1))


def hardware_stamp(device: torch.device | None = None) -> dict[str, str | int]:
    """Say what computed a run: versions, machine, device, threads, date (UTC)."""
    from eoslib import __version__

    stamp: dict[str, str | int] = {
        "eoslib": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": f"{sys.platform}-{platform.machine()}",
        "threads": torch.get_num_threads(),
        "device": str(device or "cpu"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if device is not None and device.type == "cuda":
        stamp["gpu"] = torch.cuda.get_device_name(device)
    return stamp


def device_name(stamp: Mapping[str, Any]) -> str:
    """The device of a stamp as a reader knows it: a GPU's name, otherwise ``"cpu"``."""
    return str(stamp.get("gpu", stamp["device"]))
