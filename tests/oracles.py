"""Independent truths: closed-form and dense Hessians, operators with a prescribed spectrum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eoslib import Objective, SymmetricOperator


class SquaredWeight(nn.Module):
    """f = w²x from w = 0.01: on targets far above there is only negative curvature at first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.01], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """w²x."""
        return x * self.weight**2


def squared_weight(target: float = 20.0) -> Objective:
    """½(w² − target)² on one example, whose gradient flow has a closed form (a logistic curve)."""
    x, y = torch.ones(1, 1), torch.full((1, 1), target)
    return Objective(SquaredWeight(), x, y, dtype=torch.float64)


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


def logistic_regression_hessian(inputs: Tensor, weight: Tensor) -> Tensor:
    """Hessian of mean log(1 + exp(∓wᵀx)), whatever the labels: mean of p(1 − p) xxᵀ."""
    probability = torch.sigmoid(inputs @ weight)
    return (inputs.T * (probability * (1 - probability))) @ inputs / len(inputs)


def two_layer_linear_hessian(
    inputs: Tensor, targets: Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """Hessian of mean ½‖W₂W₁x − y‖² with respect to W₁ (h×d) and W₂ (k×h), each row by row.

    With Σ = mean xxᵀ and M = W₂W₁Σ − mean yxᵀ the gradients are W₂ᵀM and MW₁ᵀ.
    """
    n = len(inputs)
    second_moment = inputs.T @ inputs / n
    mixed_moment = second @ first @ second_moment - targets.T @ inputs / n
    eye = torch.eye(len(second), dtype=inputs.dtype)
    top = torch.kron(second.T @ second, second_moment)
    bottom = torch.kron(eye, first @ second_moment @ first.T)
    # d(W₂ᵀM)_ai / d(W₂)_cb = δ_ab M_ci + (W₂)_ca (W₁Σ)_bi
    eye = torch.eye(len(first), dtype=inputs.dtype)
    mixed = torch.einsum("ab,ci->aicb", eye, mixed_moment)
    mixed = mixed + torch.einsum("ca,bi->aicb", second, first @ second_moment)
    mixed = mixed.reshape(first.numel(), second.numel())
    return torch.cat([torch.cat([top, mixed], 1), torch.cat([mixed.T, bottom], 1)])


def product_hessian(inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Hessian of mean ½(w₁w₂…w_L x − y)² with respect to the scalars w."""
    depth = len(weights)

    def product_without(*left_out: int) -> Tensor:
        return weights[[i for i in range(depth) if i not in left_out]].prod()

    slopes = torch.stack([product_without(i) for i in range(depth)])
    bends = torch.stack(
        [
            torch.stack([product_without(i, j) * (i != j) for j in range(depth)])
            for i in range(depth)
        ]
    )
    residual_times_x = ((weights.prod() * inputs - targets) * inputs).mean()
    return inputs.square().mean() * torch.outer(slopes, slopes) + residual_times_x * bends


#: Spectra that eigensolvers get wrong, each the eigenvalues of a symmetric matrix.
SPECTRA = {
    "dominant negative": torch.cat([torch.tensor([-50.0]), torch.linspace(0, 5, 39)]).double(),
    "two clusters": torch.cat([3 + 1e-6 * torch.arange(20), 1e-6 * torch.arange(20)]).double(),
    "multiplicity": torch.tensor([7.0] * 4 + [1.0] * 30, dtype=torch.float64),
    "identity": torch.ones(25, dtype=torch.float64),
    "rank one": torch.tensor([4.0] + [0.0] * 50, dtype=torch.float64),
    "zero": torch.zeros(30, dtype=torch.float64),
    "one by one": torch.tensor([-3.0], dtype=torch.float64),
    "two by two": torch.tensor([1.0, -2.0], dtype=torch.float64),
}


def with_spectrum(eigenvalues: Tensor, seed: int = 0) -> tuple[SymmetricOperator, Tensor]:
    """An operator with these eigenvalues and random orthonormal eigenvectors (columns)."""
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(size, size, dtype=eigenvalues.dtype, generator=generator))
    matrix = q @ torch.diag(eigenvalues) @ q.T
    return SymmetricOperator.from_dense((matrix + matrix.T) / 2), q
