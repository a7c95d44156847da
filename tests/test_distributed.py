"""Two ranks give what one process gives, the same to the last bit on both, or an error on both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eoslib import Objective, digits
from eoslib.distributed import DistributedObjective, _fingerprint, shard_of
from tests.distributed_ranks import (
    DOUBLE,
    GHOST,
    batch_norm_task,
    measure,
    network,
    task_with_ignored_labels,
    trained,
    weighted_task,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests.distributed_ranks", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
def test_two_ranks_give_what_one_process_gives(ranks):
    objective = Objective.from_dataset(network(), digits(31), dtype=DOUBLE)
    ghost = Objective(*batch_norm_task(), **GHOST)
    theta = objective.initial_point
    accuracy = {"accuracy": torch.tensor(objective.accuracy(theta))}
    weighted = Objective(*weighted_task(), dtype=DOUBLE)
    ignored = Objective(*task_with_ignored_labels(), dtype=DOUBLE)
    share = ignored.accuracy(ignored.initial_point)
    assert share > 0
    expected = {
        "dense": measure(objective, theta) | accuracy | trained(objective),
        "ghost": measure(ghost, ghost.initial_point),
        "weighted": measure(weighted, weighted.initial_point),
        "accuracy": {"some ignored": torch.tensor(share), "nan": torch.tensor(torch.nan)},
    }
    for name, numbers in expected.items():
        for what, number in numbers.items():
            first, second = (rank[name][what] for rank in ranks)
            assert torch.equal(first, second) or what == "nan", (name, what)
            assert first.shape == number.shape, (name, what)
            # a run's loss is kept and compared like everything else, after twelve steps
            assert torch.allclose(first, number, rtol=1e-9, atol=1e-12, equal_nan=what == "nan")
    assert [rank["shards"] for rank in ranks] == [[15, 6], [16, 5]]  # whole chunks of 5 and of 3
    assert ranks[0]["digests"] == ranks[1]["digests"]  # of all examples, not of each rank's
    assert ranks[0]["counts"] == ranks[1]["counts"]
    assert ranks[0]["counts"][0] == 31


@pytest.mark.slow
def test_ranks_that_disagree_are_refused_on_every_rank(ranks):
    theta, gradient, vector, longer, seed, data, norm, few = ranks[0]["refusals"]
    assert theta == gradient == longer
    assert theta.startswith("theta: not the same on all 2 ranks. Every rank has to make")
    assert vector.startswith("the vector: not the same")
    assert seed.startswith("the initial parameters: not the same")
    assert data.startswith("the inputs: not the same")
    assert 'batch_norm="full_batch" needs all examples in one pass' in norm
    assert few == "1 examples cannot be spread over 2 ranks; use fewer ranks"
    assert ranks[1]["refusals"] == ranks[0]["refusals"]


@pytest.mark.parametrize(
    ("n", "size", "parts"),
    [
        (10, None, [3, 3, 4]),
        (3, None, [1, 1, 1]),
        (31, 5, [10, 10, 11]),
        (12, 4, [4, 4, 4]),
    ],
)
def test_shards_are_whole_chunks_and_leave_nothing_out(n, size, parts):
    shards = [range(n)[shard_of(n, rank, 3, size)] for rank in range(3)]
    assert [len(shard) for shard in shards] == parts
    assert [i for shard in shards for i in shard] == list(range(n))
    assert all(shard.start % (size or 1) == 0 for shard in shards)


def test_fewer_chunks_than_ranks():
    with pytest.raises(ValueError, match=r"2 chunks of 5 examples .* over 3 ranks.*smaller chunk"):
        shard_of(10, 0, 3, 5)


def test_a_fingerprint_sees_every_bit_and_every_order():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, DOUBLE):
        y = x.to(dtype)
        changed, swapped, inverted = y.clone(), y.clone(), y.clone()
        changed[7] = torch.nextafter(y[7], torch.tensor(9.0, dtype=dtype))
        swapped[[3, 4]] = y[[4, 3]]
        inverted.view(torch.int64 if dtype is DOUBLE else torch.int32)[0] ^= -1
        marks = {int(_fingerprint(t)) for t in (y, changed, swapped, inverted, y[:-1], -y)}
        assert len(marks) == 6
        assert int(_fingerprint(y.clone())) == int(_fingerprint(y))


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match="start the script with torchrun"):
        DistributedObjective.from_dataset(network(), digits(5))
