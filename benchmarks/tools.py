"""One adapter a tool: how its users would ask it for the sharpness at the current parameters.

Every tool gets the same module (`Problem.module`, with θ already in its parameters), the same
criterion and the same data in one chunk, in float32.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.problems import Problem, arpack
from eoslib import SharpnessTracker

__all__ = ["LADDERS", "OF_2021", "OURS", "OURS_COLD", "Reading", "Setting", "find_peers"]

PEERS_FOLDER = Path(__file__).resolve().parent.parent / "_build" / "benchmark-peers"
PEERS = {
    "PyHessian": ("pyhessian.hessian", "pyhessian"),
    "curvlinops": ("curvlinops", "curvlinops-for-pytorch"),
    "hessian-eigenthings": ("hessian_eigenthings", "hessian-eigenthings"),
}


class Reading(NamedTuple):
    """One measurement: the sharpness, the products it took, and what the next may start from."""

    value: float
    products: int
    state: Any = None


@dataclass(frozen=True)
class Setting:
    """A tool with its arguments.

    Attributes:
        tool: the tool's name.
        arguments: its arguments, for a reader.
        measure: maps (problem, θ, state) to a `Reading`; the state is ``None`` at first.
        warm: whether it starts from what it found at the point before.
        default: whether these are the tool's defaults.
    """

    tool: str
    arguments: str
    measure: Callable[[Problem, Tensor, Any], Reading]
    warm: bool = False
    default: bool = False


# -- eoslib ----------------------------------------------------------------------------------------


def eoslib_tracked(problem: Problem, theta: Tensor, state: Any) -> Reading:
    """`SharpnessTracker` as the training loop uses it."""
    tracker = state or SharpnessTracker(problem.objective)
    before = tracker.num_products
    value = float(tracker(theta)[0])
    return Reading(value, tracker.num_products - before, tracker)


OURS = Setting("eoslib", "SharpnessTracker", eoslib_tracked, warm=True, default=True)
OURS_COLD = Setting("eoslib", "SharpnessTracker, its first measurement", eoslib_tracked)


# -- The procedure of 2021 -------------------------------------------------------------------------


def procedure_of_2021(problem: Problem, theta: Tensor, state: Any) -> Reading:
    """ARPACK's defaults, two eigenvalues, every product a forward and two backward passes."""
    parameters = list(problem.module.parameters())

    def product(vector: Tensor) -> Tensor:
        loss = problem.loss(problem.module(problem.inputs), problem.targets)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        return _flat(torch.autograd.grad(_flat(gradients).dot(vector), parameters))

    values, _, products = arpack(product, theta.numel(), theta.dtype, theta.device, k=2)
    return Reading(float(values.max()), products)


OF_2021 = Setting("procedure of 2021", "eigsh(k=2)", procedure_of_2021, default=True)


# -- The tools of others ---------------------------------------------------------------------------


def pyhessian(problem: Problem, theta: Tensor, state: Any, *, tol: float, max_iter: int) -> Reading:
    """PyHessian's power iteration; its products at one point share the gradient's graph."""
    module = importlib.import_module("pyhessian.hessian")
    product, products = module.hessian_vector_product, 0

    def counted(*arguments: Any) -> Any:
        nonlocal products
        products += 1
        return product(*arguments)

    torch.manual_seed(0)
    with warnings.catch_warnings(), mock.patch.object(module, "hessian_vector_product", counted):
        warnings.simplefilter("ignore")  # it calls backward(create_graph=True)
        solver = module.hessian(
            problem.module,
            problem.loss,
            data=(problem.inputs, problem.targets),
            cuda=theta.device.type == "cuda",
        )
        values, _ = solver.eigenvalues(maxIter=max_iter, tol=tol)
    problem.module.zero_grad()  # or the graph stays alive
    return Reading(float(values[0]), products)


def curvlinops(
    problem: Problem, theta: Tensor, state: Tensor | None, *, warm: bool = False, **options: Any
) -> Reading:
    """The Hessian of curvlinops handed to ARPACK, as its documentation shows."""
    operator = importlib.import_module("curvlinops").HessianLinearOperator(
        problem.module,
        _Criterion(problem),
        list(problem.module.parameters()),
        [(problem.inputs, problem.targets)],
        check_deterministic=False,  # saves it two passes over the data
        num_data=len(problem.inputs),
    )
    values, vectors, products = arpack(
        operator.__matmul__,
        theta.numel(),
        theta.dtype,
        theta.device,
        start=state if warm else None,
        which="LA",
        **options,
    )
    return Reading(float(values[0]), products, vectors[:, 0])


class _Criterion(nn.Module):
    """The loss as curvlinops wants it: a module that says how it reduces."""

    reduction = "mean"

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self._loss = problem.loss

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss(outputs, targets)


def eigenthings_lanczos(problem: Problem, theta: Tensor, state: Any, **options: Any) -> Reading:
    """hessian-eigenthings' Lanczos, a number of steps that is given beforehand."""
    peer = importlib.import_module("hessian_eigenthings")
    result = peer.lanczos(_eigenthings(peer, problem), k=1, seed=0, **options)
    return Reading(float(result.eigenvalues[0]), result.iterations)


def eigenthings_power(problem: Problem, theta: Tensor, state: Any, *, tol: float) -> Reading:
    """hessian-eigenthings' power iteration from the vector found before."""
    peer = importlib.import_module("hessian_eigenthings")
    value, vector, _, products, _ = peer.power_iteration_one(
        _eigenthings(peer, problem), init=state, seed=0, tol=tol, max_iter=1000
    )
    return Reading(value, products, vector)


def _eigenthings(peer: Any, problem: Problem) -> Any:
    batches = [(problem.inputs, problem.targets)]
    return peer.HessianOperator(problem.module, batches, peer.supervised_loss(problem.loss))


#: For each way of using a tool, settings of rising cost and accuracy. The last two ways start from
#: the vector found at the point before, which the tools allow but leave to their users.
LADDERS: list[list[Setting]] = [
    [
        Setting(
            "PyHessian",
            f"tol={tol:g}, maxIter={limit}",
            partial(pyhessian, tol=tol, max_iter=limit),
            default=limit == 100,
        )
        for tol, limit in ((1e-3, 100), (1e-4, 1000), (1e-5, 1000), (1e-6, 1000))
    ],
    [
        Setting(
            "curvlinops",
            f"eigsh(which='LA', tol={tol:g}, ncv={basis})",
            partial(curvlinops, tol=tol, ncv=basis),
            default=tol == 0,
        )
        for tol, basis in ((1e-2, 10), (1e-3, 20), (0, 20))
    ],
    [
        Setting("hessian-eigenthings", "lanczos()", eigenthings_lanczos, default=True),
        *(
            Setting(
                "hessian-eigenthings",
                f"lanczos(which='LA', max_iter={steps})",
                partial(eigenthings_lanczos, which="LA", max_iter=steps),
            )
            for steps in (8, 12, 16, 20, 24, 32, 48)
        ),
    ],
    [
        Setting(
            "curvlinops",
            f"eigsh(which='LA', tol={tol:g}, ncv={basis}, v0=last)",
            partial(curvlinops, warm=True, tol=tol, ncv=basis),
            warm=True,
        )
        for tol, basis in ((1e-2, 4), (1e-2, 6), (1e-3, 10), (1e-3, 20))
    ],
    [
        Setting(
            "hessian-eigenthings",
            f"power_iteration_one(tol={tol:g}, init=last)",
            partial(eigenthings_power, tol=tol),
            warm=True,
        )
        for tol in (1e-2, 1e-3, 1e-4)
    ],
]


def find_peers() -> tuple[dict[str, str], dict[str, str]]:
    """Import the tools: the versions of those that are there, and why the others are not.

    From now on, the folder that `install_peers` fills is searched for imports, last.
    """
    if str(PEERS_FOLDER) not in sys.path:
        sys.path.append(str(PEERS_FOLDER))
    versions, absent = {}, {}
    for tool, (module, distribution) in PEERS.items():
        try:
            importlib.import_module(module)
            versions[tool] = metadata.version(distribution)
        except ModuleNotFoundError as error:
            absent[tool] = f"{error}; run python benchmarks/install_peers.py"
    return versions, absent


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
