"""What each rank of the distributed tests does; started by torchrun, writes what it found."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed as dist

import eoslib
from eoslib.distributed import DistributedObjective
from eoslib.measure import as_loss

DOUBLE = torch.float64


def network(seed: int = 0) -> torch.nn.Module:
    return eoslib.build("fc-tanh", 64, 10, widths=(6,), seed=seed, dtype=DOUBLE)


def batch_norm_task() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    images = torch.randn(11, 3, 8, 8, generator=random, dtype=DOUBLE)
    targets = torch.randn(11, 2, generator=random, dtype=DOUBLE)
    options = {"width": 2, "image_size": 8}
    return eoslib.build("cnn-bn-tanh", 3, 2, dtype=DOUBLE, **options), images, targets


GHOST = {"batch_norm": "ghost", "chunk_size": 3, "dtype": DOUBLE}


def weighted_task() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor, eoslib.Loss]:
    """Its loss divides by the weight of all labels; the two ranks' are not the same."""
    data = eoslib.digits(31)
    weighted = torch.nn.CrossEntropyLoss(torch.arange(1.0, 11), ignore_index=3)
    return network(), data.inputs, data.labels, as_loss(weighted, data.labels)


def task_with_ignored_labels() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor, eoslib.Loss]:
    """On the first of two ranks no label counts."""
    data = eoslib.digits(31)
    labels = torch.where(torch.arange(31) < 20, 0, data.labels)
    loss = as_loss(torch.nn.CrossEntropyLoss(ignore_index=0), labels)
    return network(), data.inputs, labels, loss


def measure(objective, theta: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything an objective can tell, at θ and along fixed vectors."""
    random = torch.Generator().manual_seed(1)
    u, v = torch.randn(2, objective.num_parameters, generator=random, dtype=DOUBLE)
    hessian = objective.hessian(theta)
    value, gradient = objective.value_and_gradient(theta)
    points = torch.stack([theta, theta + 0.1])
    return {
        "value": objective.value(theta),
        "value beside the gradient": value,
        "gradient": gradient,
        "value of the operator": hessian.value,
        "gradient of the operator": hessian.gradient,
        "product": hessian.matvec(u),
        "block": hessian.matmat(torch.stack([u, v], dim=1)),
        "hvp": objective.hvp(theta, v),
        "third derivative": objective.third_derivative(theta, u, v),
        "outputs": objective.outputs(theta),
        "several values": objective.value(points),
        "several gradients": objective.gradient(points),
        "several products": objective.hessian(points).matvec(torch.stack([u, v])),
    }


def trained(objective) -> dict[str, torch.Tensor]:
    run = eoslib.train(
        objective,
        eoslib.GradientDescent(0.05),
        num_steps=12,
        sharpness=eoslib.SharpnessTracker(objective),
        sharpness_schedule=eoslib.every(4),
    )
    return {
        "losses of a run": torch.from_numpy(run["loss"].values),
        "sharpness of a run": torch.from_numpy(run["sharpness"].values).flatten(),
    }


def refusals(objective) -> list[str]:
    """What is said, on this rank, of arguments that differ from rank to rank."""
    rank, theta, data = dist.get_rank(), objective.initial_point, eoslib.digits(30)
    other = theta.clone()
    other[5] += rank * 1e-9
    longer = torch.cat([theta, theta[:rank]])

    def differing_data():
        DistributedObjective(network(), data.inputs[: 30 - rank], data.targets[: 30 - rank])

    calls = [
        lambda: objective.value(other),
        lambda: objective.gradient(other),
        lambda: objective.hessian(theta).matvec(other),
        lambda: objective.value(longer),
        lambda: DistributedObjective.from_dataset(network(seed=rank), data, dtype=DOUBLE),
        differing_data,
        lambda: DistributedObjective(*batch_norm_task(), batch_norm="full_batch", dtype=DOUBLE),
        lambda: DistributedObjective.from_dataset(network(), eoslib.digits(1)),
    ]
    said = []
    for call in calls:
        try:
            call()
            said.append("nothing")
        except ValueError as error:
            said.append(str(error))
    return said


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    objective = DistributedObjective.from_dataset(
        network(), eoslib.digits(31), dtype=DOUBLE, chunk_size=5
    )
    ghost = DistributedObjective(*batch_norm_task(), **GHOST)
    weighted = DistributedObjective(*weighted_task(), dtype=DOUBLE)
    ignored = DistributedObjective(*task_with_ignored_labels(), dtype=DOUBLE)
    points = {"some ignored": ignored.initial_point, "nan": ignored.initial_point * torch.nan}
    found = {
        "dense": measure(objective, objective.initial_point)
        | {"accuracy": torch.tensor(objective.accuracy(objective.initial_point))}
        | trained(objective),
        "ghost": measure(ghost, ghost.initial_point),
        "weighted": measure(weighted, weighted.initial_point),
        "accuracy": {name: torch.tensor(ignored.accuracy(at)) for name, at in points.items()},
        "digests": objective.digests(),
        "shards": [objective.local.num_examples, ghost.local.num_examples],
        "counts": [objective.num_examples, objective.num_gradients, objective.num_products],
        "refusals": refusals(objective),
    }
    torch.save(found, folder / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
