"""Independent truths: closed-form and dense Hessians, operators with a prescribed spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from eoslib import Objective, SymmetricOperator


def dense_hessian(objective: Objective, theta: Tensor) -> Tensor:
    """The Hessian by autograd on a functional copy of the network, without `eoslib`'s products."""
    module = objective.module_at(theta)
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    shapes = [module.get_parameter(name).shape for name in names]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        values = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        outputs = torch.func.functional_call(module, values, (objective.inputs,))
        return objective.loss(outputs, objective.targets)

    return torch.func.hessian(loss)(theta)


def linear_least_squares_hessian(inputs: Tensor, num_outputs: int) -> Tensor:
    """Hessian of ½‖Wx + b − y‖², averaged: a Kronecker product that no derivative enters.

    The parameters are ordered as PyTorch's linear layer orders them: W row by row, then b.
    """
    n, d = inputs.shape
    eye = torch.eye(num_outputs, dtype=inputs.dtype)
    second_moment = inputs.T @ inputs / n
    mean = inputs.mean(dim=0)
    weights = torch.kron(eye, second_moment)
    mixed = torch.kron(eye, mean[:, None])
    top = torch.cat([weights, mixed], dim=1)
    bottom = torch.cat([mixed.T, eye], dim=1)
    assert top.shape == (num_outputs * d, num_outputs * (d + 1))
    return torch.cat([top, bottom])


def softmax_regression_hessian(inputs: Tensor, weight: Tensor) -> Tensor:
    """Hessian of softmax regression without bias: mean of (diag p − ppᵀ) ⊗ xxᵀ."""
    probabilities = torch.softmax(inputs @ weight.T, dim=1)
    total = 0
    for x, p in zip(inputs, probabilities, strict=True):
        total = total + torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(x, x))
    return total / inputs.shape[0]


def with_spectrum(eigenvalues: Tensor, seed: int = 0) -> tuple[SymmetricOperator, Tensor]:
    """An operator with these eigenvalues and random orthonormal eigenvectors (columns)."""
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(size, size, dtype=eigenvalues.dtype, generator=generator))
    matrix = q @ torch.diag(eigenvalues) @ q.T
    return SymmetricOperator.from_dense((matrix + matrix.T) / 2), q
