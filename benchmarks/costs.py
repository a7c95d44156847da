"""What one derivative and one training step cost, in units of a gradient and of a plain loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.clock import best_times
from benchmarks.problems import Problem
from benchmarks.results import Bar
from eoslib import GradientDescent

__all__ = ["derivative_costs", "matrix_product_flops"]

#: A gradient of so much work is bound by arithmetic; a smaller one by overheads, and its share in
#: the machine's rate says nothing.
ARITHMETIC_BOUND = 1e9


def derivative_costs(problem: Problem, theta: Tensor, seconds: float) -> tuple[float, list[Bar]]:
    """The seconds of a gradient at θ, and the other costs as multiples of it.

    Args:
        problem: what is measured.
        theta: where, ``(P,)``.
        seconds: how long all calls together may take.
    """
    objective, device = problem.objective, theta.device
    vector = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0)).to(device)
    vector /= vector.norm()
    hessian = objective.hessian(theta)
    functions: dict[str, Callable[[], object]] = {
        "gradient": lambda: objective.value_and_gradient(theta),
        "first product": lambda: objective.hessian(theta).matvec(vector),
        "further product": lambda: hessian.matvec(vector),
        "step": _eoslib_step(problem, theta),
        "plain step": _plain_step(problem, theta),
    }
    flops = matrix_product_flops(problem.module, objective.num_examples) or 0.0
    size = 8192 if device.type == "cuda" else 2048
    if flops > ARITHMETIC_BOUND:
        a, b = (torch.randn(size, size, device=device) for _ in range(2))
        functions["matrix product"] = lambda: a @ b
    best = best_times(functions, device, seconds)
    gradient = best["gradient"]
    bars = [
        Bar("a further product at a point / a gradient", best["further product"] / gradient, 1.3),
        Bar("a first product at a point / a gradient", best["first product"] / gradient, 2.3),
        Bar("a gradient-descent step / a plain loop's", best["step"] / best["plain step"], 1.1),
    ]
    if "matrix product" in best:
        share = (flops / gradient) / (2 * size**3 / best["matrix product"])
        limit = 0.75 if device.type == "cpu" else None
        name = "a gradient's share of the rate of large matrix products"
        bars.append(Bar(name, share, limit, at_most=False))
    return gradient, bars


def matrix_product_flops(module: nn.Module, num_examples: int) -> float | None:
    """Floating-point operations of a gradient's matrix products; ``None`` with other layers.

    A linear layer costs 2·n·in·out forward, as much for its weights' gradient, and as much again
    for its input's gradient, which the first layer does not need.
    """
    layers = [layer for layer in module.modules() if list(layer.parameters(recurse=False))]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(linear) < len(layers):
        return None
    first, *others = [layer.in_features * layer.out_features for layer in linear]
    return 2.0 * num_examples * (2 * first + 3 * sum(others))


def _eoslib_step(problem: Problem, theta: Tensor) -> Callable[[], None]:
    rule = GradientDescent(problem.step_size)
    point = theta

    def step() -> None:
        nonlocal point
        _, gradient = problem.objective.value_and_gradient(point)
        point, _ = rule.step(point, gradient, None)

    return step


def _plain_step(problem: Problem, theta: Tensor) -> Callable[[], None]:
    problem.place(theta)
    parameters = list(problem.module.parameters())

    def step() -> None:
        loss = problem.loss(problem.module(problem.inputs), problem.targets)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=problem.step_size)

    return step
