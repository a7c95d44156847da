"""Honest times: the device is waited for, and the best of many interleaved calls counts.

On a machine that also does other things, the smallest time is the one least disturbed, and calls in
turn meet the same disturbances.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

__all__ = ["best_times", "timed"]

T = TypeVar("T")


def timed(function: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """The function's result, and the seconds it took until the device was done."""
    _wait(device)
    start = time.perf_counter()
    result = function()
    _wait(device)
    return result, time.perf_counter() - start


def best_times(
    functions: Mapping[str, Callable[[], object]], device: torch.device, seconds: float
) -> dict[str, float]:
    """The best time of each function, in s, called in turn for about so many seconds in all."""
    for function in functions.values():
        function()
    best = dict.fromkeys(functions, float("inf"))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, function in functions.items():
            best[name] = min(best[name], timed(function, device)[1])
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
