"""Operators: their algebra, their blocks, and the way to SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import linalg

from eoslib import EigenStatus, SymmetricOperator, lanczos, scipy_eigsh

DOUBLE = torch.float64


def random_symmetric(size=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=generator, dtype=DOUBLE)
    return matrix + matrix.T


def test_sums_and_multiples():
    a, b = random_symmetric(seed=1), random_symmetric(seed=2)
    first, second = SymmetricOperator.from_dense(a), SymmetricOperator.from_dense(b)
    combined = 2 * first - second + -first * 3
    assert torch.allclose(combined.to_dense(), 2 * a - b - 3 * a)
    assert combined.num_products == 7
    other = SymmetricOperator.from_dense(random_symmetric(5))
    with pytest.raises(ValueError, match=r"shape \(7,\).*\(5,\).*cannot be added"):
        first + other
    single = SymmetricOperator.from_dense(a.float())
    with pytest.raises(ValueError, match=r"float64 on cpu and .*float32 on cpu cannot be added"):
        first + single


def test_a_preconditioned_operator_has_the_eigenvalues_of_the_quotient():
    matrix, diagonal = random_symmetric(), torch.linspace(0.5, 3, 7, dtype=DOUBLE)
    operator = SymmetricOperator.from_dense(matrix).preconditioned(diagonal)
    dense = operator.to_dense()
    assert torch.allclose(dense, dense.T)
    expected = torch.linalg.eigvals(matrix / diagonal[:, None]).real.sort().values
    assert torch.allclose(torch.linalg.eigvalsh(dense), expected)
    for bad in (torch.zeros(7), torch.full((7,), torch.inf), -diagonal):
        with pytest.raises(ValueError, match="positive and finite"):
            SymmetricOperator.from_dense(matrix).preconditioned(bad)
    with pytest.raises(ValueError, match="diagonal of shape"):
        SymmetricOperator.from_dense(matrix).preconditioned(diagonal[:3])


def test_several_matrices_at_once():
    matrices = torch.stack([random_symmetric(seed=seed) for seed in range(3)])
    operator = SymmetricOperator.from_dense(matrices)
    vectors = torch.randn(3, 7, dtype=DOUBLE)
    expected = torch.einsum("rij,rj->ri", matrices, vectors)
    assert torch.allclose(operator @ vectors, expected)
    assert torch.allclose((2 * operator) @ vectors, 2 * expected)
    assert operator.num_products == 2
    with pytest.raises(ValueError, match=r"shape \(3, 7\), got \(7,\)"):
        operator @ vectors[0]
    with pytest.raises(ValueError, match="several matrices"):
        operator.matmat(vectors.T)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_scipys_solver_agrees(dtype):
    matrix = random_symmetric(30).to(dtype)
    operator = SymmetricOperator.from_dense(matrix)
    assert operator.to_scipy().dtype == np.dtype(str(dtype).removeprefix("torch."))
    for which in ("largest_algebraic", "smallest_algebraic"):
        before = operator.num_products
        reference = scipy_eigsh(operator, 3, which=which)
        assert 3 < reference.num_products <= operator.num_products - before
        ours = lanczos(operator, 3, which=which, rtol=1e-4)
        assert torch.allclose(reference.values, ours.values, rtol=1e-4)
        assert torch.allclose(
            reference.vectors.T @ reference.vectors, torch.eye(3).to(dtype), atol=1e-4
        )
        assert float(reference.residual_norms.max()) < 1e-3 * float(reference.values.abs().max())
    with pytest.raises(ValueError, match=r"k must be a whole number in 1\.\.29"):
        scipy_eigsh(operator, 30)


def test_what_scipys_solver_did_not_find_is_nan(monkeypatch):
    operator, solve = SymmetricOperator.from_dense(random_symmetric(100)), linalg.eigsh
    monkeypatch.setattr(linalg, "eigsh", lambda *a, **o: solve(*a, **{**o, "maxiter": 1}))
    result = scipy_eigsh(operator, 3)
    assert result.status is EigenStatus.MAX_PRODUCTS
    assert result.values.shape == (3,) and torch.isnan(result.values).any()


@pytest.mark.parametrize("matrix", [torch.zeros(0, 0), torch.eye(2, dtype=torch.int64), np.eye(2)])
def test_matrices_that_are_none(matrix):
    with pytest.raises(ValueError, match="expected a matrix of floating-point numbers, got"):
        SymmetricOperator.from_dense(matrix)
