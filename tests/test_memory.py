"""Memory stays bounded by a chunk, whatever the number of examples."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from eoslib import build

MEASURE = """
import torch
from torch import nn
from eoslib import Objective
torch.set_num_threads(1)
torch.manual_seed(0)
n, chunk_size = {n}, {chunk_size}
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.Softplus(), nn.Conv2d(16, 16, 3, padding=1),
    nn.Softplus(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 2),
)
inputs, targets = torch.randn(n, 1, 24, 24), torch.randn(n, 2)
objective = Objective(model, inputs, targets, chunk_size=chunk_size)
theta = objective.initial_point
operator = objective.hessian(theta)
for _ in range(2):
    operator @ theta
operator.matmat(torch.stack([theta, theta], dim=1))
objective.gauss_newton(theta) @ theta
# Not getrusage's ru_maxrss: that begins at what the process that started this one had in use.
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) / 2**10)
"""


def peak_mib(n: int, chunk_size: int) -> float:
    code = MEASURE.format(n=n, chunk_size=chunk_size)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak")
def test_peak_memory_is_that_of_a_chunk():
    ballast = bytearray(2**29)  # what this process holds is no part of it
    ballast[::4096] = b"x" * (2**29 // 4096)
    few, many, at_once = peak_mib(64, 32), peak_mib(512, 32), peak_mib(512, 512)
    # The graph of 512 images is some 300 MiB; the images themselves are 1 MiB.
    assert at_once - few > 150
    assert many - few < 0.25 * (at_once - few)


@pytest.mark.parametrize(("name", "expected"), [("vgg11", 9_750_922), ("vgg11-bn", 9_756_426)])
def test_vgg_has_the_papers_number_of_parameters(name, expected):
    assert sum(p.numel() for p in build(name, 3, 10).parameters()) == expected


PAGES = """
import resource, torch
from eoslib.numerics import keep_freed_memory
kept = keep_freed_memory() if {keep} else None
fill = lambda: torch.ones(2**24)  # 64 MiB
fill(), fill(), fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a switch of glibc's")
def test_freed_memory_is_kept():
    """Not one page in a hundred is asked of the system again."""
    said = [
        subprocess.run(
            [sys.executable, "-c", PAGES.format(keep=keep)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for keep in (False, True)
    ]
    assert [word for word, _ in said] == ["None", "True"]
    given_back, kept = (int(pages) for _, pages in said)
    assert kept < given_back / 100
