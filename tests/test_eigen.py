"""The eigensolver on operators whose spectrum is known, and the honesty of its status."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, eigsh

from eoslib import (
    EigenStatus,
    SymmetricOperator,
    UnconvergedError,
    lanczos,
    power_iteration,
)
from eoslib.eigen import Start, lanczos_together
from eoslib.numerics import _stretches_at_once, inner_products
from tests.oracles import with_spectrum

DOUBLE = torch.float64

SPECTRA = {
    "positive": torch.linspace(0.1, 5, 60, dtype=DOUBLE),
    "dominant negative": torch.cat([torch.tensor([-50.0]), torch.linspace(0, 5, 59)]).double(),
    "all negative": torch.linspace(-9, -1, 50, dtype=DOUBLE),
    "plus and minus": torch.tensor([-3.0, 3.0] * 20, dtype=DOUBLE),
    "tight cluster": torch.tensor([2.0, 2.0 - 1e-6, 2.0 - 2e-6] + [0.5] * 40, dtype=DOUBLE),
    "multiple": torch.tensor([7.0] * 4 + [1.0] * 30, dtype=DOUBLE),
    "rank one": torch.tensor([4.0] + [0.0] * 50, dtype=DOUBLE),
    "zero": torch.zeros(30, dtype=DOUBLE),
    "tiny": torch.tensor([1.0, -2.0], dtype=DOUBLE),
    "one by one": torch.tensor([-3.0], dtype=DOUBLE),
    "long tail": torch.cat([torch.tensor([80.0, 41.0]), torch.rand(400)]).double(),
}


@pytest.mark.parametrize("which", ["largest_algebraic", "smallest_algebraic"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", SPECTRA)
def test_prescribed_spectra(name, k, which):
    eigenvalues = SPECTRA[name]
    k = min(k, len(eigenvalues))
    operator, _ = with_spectrum(eigenvalues)
    result = lanczos(operator, k, which=which, rtol=1e-9, max_products=600)
    wanted = eigenvalues.sort(descending=which == "largest_algebraic").values[:k]
    assert result.status is EigenStatus.CONVERGED
    assert torch.allclose(result.values, wanted, rtol=1e-7, atol=1e-9)
    gram = result.vectors.T @ result.vectors
    assert torch.allclose(gram, torch.eye(k, dtype=DOUBLE), atol=1e-9)
    for j in range(k):
        x = result.vectors[:, j]
        residual = (operator @ x - result.values[j] * x).norm()
        assert float(residual) == pytest.approx(float(result.residual_norms[j]), abs=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 40), st.integers(1, 3))
def test_random_symmetric_matrices(seed, size, k):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, dtype=DOUBLE, generator=generator)
    matrix = matrix + matrix.T
    result = lanczos(SymmetricOperator.from_dense(matrix), k, rtol=1e-8, max_products=2000)
    exact = torch.linalg.eigvalsh(matrix).flip(0)[:k]
    assert torch.allclose(result.values, exact, rtol=1e-6, atol=1e-6)


def test_restarts_do_not_lose_what_was_found():
    leading = torch.tensor([10.0, 9.9], dtype=DOUBLE)
    eigenvalues = torch.cat([leading, torch.linspace(0, 9.8, 300, dtype=DOUBLE)])
    operator, _ = with_spectrum(eigenvalues)
    result = lanczos(operator, 2, rtol=1e-8, max_basis=12, max_products=2000)
    assert result.num_products > 24  # it did restart
    assert result.eigenvalue(0) == pytest.approx(10, rel=1e-9)
    assert result.eigenvalue(1) == pytest.approx(9.9, rel=1e-9)


def test_scipy_agrees():
    operator, _ = with_spectrum(torch.randn(200, dtype=DOUBLE))
    linear = LinearOperator(
        (200, 200), matvec=lambda v: (operator @ torch.from_numpy(v.ravel())).numpy(), dtype=float
    )
    reference = np.sort(eigsh(linear, 3, which="LA", return_eigenvectors=False))[::-1]
    ours = lanczos(operator, 3, rtol=1e-9, max_products=1000)
    np.testing.assert_allclose(ours.values, reference, rtol=1e-8)


def test_a_call_without_enough_products_does_not_claim_convergence():
    operator, _ = with_spectrum(torch.linspace(0, 1, 200, dtype=DOUBLE))
    result = lanczos(operator, rtol=1e-8, max_products=5)
    assert result.status is EigenStatus.MAX_PRODUCTS
    assert result.num_products == operator.num_products == 5
    with pytest.raises(UnconvergedError, match=r"after 5 products: out of products.*lanczos"):
        result.eigenvalue()
    assert result.eigenvalue(allow_unconverged=True) < 1


def test_a_dominant_negative_eigenvalue_does_not_loosen_the_tolerance():
    eigenvalues = torch.cat([torch.tensor([-1e4]), torch.linspace(0, 1, 100)]).double()
    operator, _ = with_spectrum(eigenvalues)
    assert lanczos(operator, max_products=1000).eigenvalue() == pytest.approx(1, rel=1e-4)


def test_an_operator_that_is_not_symmetric_does_not_converge():
    matrix = torch.ones(6, 6, dtype=DOUBLE).triu()
    result = lanczos(SymmetricOperator(matrix.mv, 6, dtype=DOUBLE))
    assert result.status is EigenStatus.EXHAUSTED
    with pytest.raises(UnconvergedError, match="is the operator symmetric"):
        result.eigenvalue()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_operators_in_float32(scale):
    eigenvalues = torch.linspace(0.1, 1, 30) * scale
    operator = SymmetricOperator(lambda v: eigenvalues * v, 30, dtype=torch.float32)
    assert lanczos(operator).eigenvalue() == pytest.approx(scale, rel=1e-3)


def test_pairs_that_were_not_found_are_nan():
    operator, _ = with_spectrum(SPECTRA["positive"])
    result = lanczos(operator, 4, max_products=4, start=torch.randn(60, dtype=DOUBLE))
    few = lanczos(operator, 3, max_products=1)
    assert result.values.shape == (4,)
    assert torch.isnan(few.values[1:]).all()
    assert few.vectors.shape == (60, 3)


@pytest.mark.parametrize("solve", [lanczos, power_iteration])
def test_a_product_that_is_not_finite_is_said(solve):
    operator = SymmetricOperator(lambda v: v * torch.nan, 10, dtype=DOUBLE)
    result = solve(operator)
    assert (result.status, result.num_products) == (EigenStatus.NOT_FINITE, 1)
    with pytest.raises(UnconvergedError, match="NaN or infinite"):
        result.eigenvalue()


def test_a_warm_start_spends_fewer_products():
    operator, _ = with_spectrum(SPECTRA["long tail"])
    cold = lanczos(operator, 2, rtol=1e-6)
    warm = lanczos(operator, 2, start=cold.vectors, rtol=1e-6)
    assert warm.num_products == 2 < cold.num_products
    assert torch.allclose(warm.values, cold.values, rtol=1e-8)


def test_vectors_of_a_start_that_are_zero_cost_nothing():
    operator, basis = with_spectrum(SPECTRA["positive"])
    start = torch.stack([torch.zeros(60, dtype=DOUBLE), basis[:, -1]], dim=1)
    result = lanczos(operator, start=start)
    assert (result.status, result.num_products) == (EigenStatus.CONVERGED, 1)


def test_in_lockstep_each_start_is_used_whole():
    basis = torch.eye(30, dtype=DOUBLE)
    matrix = torch.diag(torch.arange(1.0, 31.0, dtype=DOUBLE))
    operator = SymmetricOperator.from_dense(torch.stack([matrix, matrix]))
    starts = [torch.ones(30, dtype=DOUBLE), basis[:, [10, 29]]]  # an eigenvector, and the top one
    found = lanczos_together(operator, starts=starts, rtol=1e-6)
    assert [result.eigenvalue() for result in found] == pytest.approx([30, 30])


def test_products_without_a_limit_given():
    operator, _ = with_spectrum(torch.linspace(0, 1, 500, dtype=DOUBLE))
    result = lanczos(operator, 2, rtol=1e-13, max_basis=8)
    assert (result.status, result.num_products) == (EigenStatus.MAX_PRODUCTS, 20 * 2 + 200)


def test_a_callback_sees_every_product_from_the_kth_on():
    seen = []
    operator, _ = with_spectrum(SPECTRA["positive"])
    result = lanczos(operator, 2, callback=seen.append)
    assert [now.num_products for now in seen] == list(range(2, result.num_products + 1))
    assert {now.status for now in seen} == {EigenStatus.MAX_PRODUCTS}
    assert torch.equal(seen[-1].values, result.values)


def test_the_same_seed_gives_the_same_bits():
    operator, _ = with_spectrum(SPECTRA["positive"])
    first, second = (lanczos(operator, 2, seed=5) for _ in range(2))
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.vectors, second.vectors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, r"k must be a whole number in 1\.\.60"),
        ({"k": 61}, r"k must be a whole number in 1\.\.60"),
        ({"which": "largest"}, "largest_algebraic"),
        ({"rtol": 0.0}, "rtol must lie in"),
        ({"max_products": 0}, "max_products must be a positive whole number"),
        ({"start": torch.zeros(59)}, r"start must have shape \(60,\)"),
        ({"start": torch.zeros(60)}, "no usable vector"),
        ({"start": torch.full((60,), torch.nan)}, "no usable vector"),
    ],
)
def test_wrong_arguments(arguments, message):
    operator, _ = with_spectrum(SPECTRA["positive"])
    with pytest.raises(ValueError, match=message):
        lanczos(operator, **arguments)


def test_dense_matrices_must_be_symmetric():
    with pytest.raises(ValueError, match="differs from its transpose"):
        SymmetricOperator.from_dense(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    with pytest.raises(ValueError, match="differs from its transpose"):
        SymmetricOperator.from_dense(1e-8 * torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    rounded = 1e8 * torch.eye(2)
    rounded[0, 1] = 1
    SymmetricOperator.from_dense(rounded)
    with pytest.raises(ValueError, match="square matrix"):
        SymmetricOperator.from_dense(torch.zeros(2, 3))


@pytest.mark.parametrize(("turned", "status"), [(0.05, "CONVERGED"), (1.2, "LOST")])
@pytest.mark.parametrize("which", ["largest_algebraic", "smallest_algebraic"])
def test_a_start_from_a_distant_operator_is_not_trusted(turned, status, which):
    # H = V diag(λ) Vᵀ, and a start made of eigenvectors turned by an angle in a plane each.
    leading = torch.tensor([5.0, 4.5, 2.0], dtype=DOUBLE)
    eigenvalues = torch.cat([leading, torch.linspace(0, 1, 57, dtype=DOUBLE)])
    if which == "smallest_algebraic":
        eigenvalues = -eigenvalues
    operator, basis = with_spectrum(eigenvalues)
    angle = torch.tensor(turned, dtype=DOUBLE)
    vectors = angle.cos() * basis[:, :2] + angle.sin() * basis[:, 40:42]
    start = Start(vectors, eigenvalues[:3])
    result = lanczos(operator, start=start, which=which, accuracy=1e-3)
    assert result.status is EigenStatus[status]
    if result.status is EigenStatus.CONVERGED:
        assert result.eigenvalue() == pytest.approx(float(eigenvalues[0]), rel=1e-3)
    else:
        with pytest.raises(UnconvergedError, match="not near the one that the start belongs to"):
            result.eigenvalue()


def test_a_direction_outside_of_the_start_counts_against_the_last_eigenvalue_asked_for():
    eigenvalues = torch.cat([torch.tensor([5.0, 2.0]), torch.linspace(0, 1.5, 58)]).double()
    operator, basis = with_spectrum(eigenvalues)
    start = Start(basis[:, :2], torch.tensor([5.0, 2.0, 3.0], dtype=DOUBLE))
    assert lanczos(operator, 2, start=start, accuracy=1e-3).status is EigenStatus.LOST
    assert lanczos(operator, 1, start=start, accuracy=1e-3).status is EigenStatus.CONVERGED


@pytest.mark.parametrize("seed", range(20))
def test_an_error_is_not_larger_than_its_estimate_where_the_spectrum_is_known(seed):
    # A start as training leaves it: a good leading vector, and spare ones that are rough.
    generator = torch.Generator().manual_seed(seed)
    leading = torch.tensor([5.0, 4.7, 4.4, 4.0], dtype=DOUBLE)
    bulk = torch.rand(56, generator=generator, dtype=DOUBLE).sort(descending=True).values
    eigenvalues = torch.cat([leading, bulk])
    operator, basis = with_spectrum(eigenvalues)
    rough = torch.tensor([0.02, 0.1, 0.15], dtype=DOUBLE)
    noise = torch.randn(60, 3, generator=generator, dtype=DOUBLE) / 60**0.5
    for k in (1, 2):
        start = Start(basis[:, :3] + rough * noise, eigenvalues)
        found = lanczos(operator, k, start=start, accuracy=1e-12, max_products=3)
        errors = leading[:k] - found.values
        assert (errors > 1e-6).all()
        assert (errors <= found.error_estimates).all()
        # With all residuals in one sum it would be four times as large, and more.
        assert found.error_estimates[0] < 25 * errors[0]


@pytest.mark.parametrize("second", [4.9, 4.7, 4.4, 4.0])
@pytest.mark.parametrize("outside", [0.0, 2.0, 3.0, 3.8])
def test_the_estimate_bounds_the_error_where_all_residuals_point_one_way(second, outside):
    # The start holds two Ritz vectors of 5 and `second`. Both of their residuals point to the one
    # direction by which the second raises the first, and whose curvature is above λ₃.
    for own in (0.05, 0.1, 0.3):
        for other in (0.2, 0.4, 0.6, 0.8):
            matrix = torch.diag(torch.tensor([5, second, outside, -1, -1], dtype=DOUBLE))
            matrix[0, 2] = matrix[2, 0] = own
            matrix[1, 2] = matrix[2, 1] = other
            exact = torch.linalg.eigvalsh(matrix).flip(0)
            start = Start(torch.eye(5, dtype=DOUBLE)[:, :2], exact)
            operator = SymmetricOperator.from_dense(matrix)
            found = lanczos(operator, start=start, accuracy=1e-12, max_products=2)
            error = float(exact[0] - found.values[0])
            assert 0 < error <= float(found.error_estimates[0]) * (1 + 1e-9)


def test_what_a_lost_search_has_computed_is_not_computed_again():
    eigenvalues = torch.cat([torch.tensor([5.0, 4.5, 2.0]), torch.linspace(0, 1, 57)]).double()
    operator, basis = with_spectrum(eigenvalues)
    angle = torch.tensor(1.2, dtype=DOUBLE)
    turned = angle.cos() * basis[:, :2] + angle.sin() * basis[:, 40:42]
    lost = lanczos(operator, start=Start(turned, eigenvalues[:3]), accuracy=1e-3)
    assert lost.status is EigenStatus.LOST
    assert lost.images is not None
    assert torch.allclose(lost.images, operator.matmat(lost.subspace), atol=1e-12)

    both, seen = torch.cat([lost.subspace, basis[:, 5:6]], dim=1), []

    def matvec(row):
        seen.append(row)
        return operator.matvec(row)

    watched = SymmetricOperator(matvec, 60, dtype=DOUBLE)
    found = lanczos(watched, start=Start(both, torch.empty(0), lost.images), rtol=1e-6)
    assert found.eigenvalue() == pytest.approx(5, rel=1e-9)
    assert found.images is None
    assert found.num_products == len(seen)
    assert float((torch.stack(seen) @ lost.subspace).abs().max()) < 1e-12
    without = lanczos(operator, start=both, rtol=1e-6)
    assert found.num_products == without.num_products - 2


def test_in_lockstep_the_images_that_every_start_has_are_taken():
    eigenvalues = torch.cat([torch.tensor([5.0, 4.0]), torch.linspace(0, 1, 28)]).double()
    operator, basis = with_spectrum(eigenvalues)
    both = SymmetricOperator(lambda rows: operator.matmat(rows.T).T, 30, dtype=DOUBLE, num_runs=2)
    vectors = torch.linalg.qr(basis[:, :3] + 0.3 * basis[:, 10:13]).Q
    images = operator.matmat(vectors)
    starts = [
        Start(vectors, torch.empty(0), images),
        Start(vectors, torch.empty(0), images[:, :1]),
    ]
    for result in lanczos_together(both, starts=starts, rtol=1e-6):
        assert result.eigenvalue() == pytest.approx(5, rel=1e-9)


@pytest.mark.parametrize("count", [1, 20, 30])
def test_a_start_whose_images_are_all_known_goes_on_from_its_last_vector(count):
    # Twenty are more than the basis holds, and thirty are the whole space.
    operator, basis = with_spectrum(torch.linspace(5, -1, 30, dtype=DOUBLE))
    vectors = basis[:, :count]
    start = Start(vectors, torch.empty(0), operator.matmat(vectors))
    found = lanczos(operator, start=start, rtol=1e-6, max_basis=6)
    assert found.status is EigenStatus.CONVERGED
    assert found.eigenvalue() == pytest.approx(5)


def test_a_search_is_lost_at_the_same_vector_with_the_images_given_and_without():
    operator, basis = with_spectrum(torch.linspace(5, 0, 30, dtype=DOUBLE))
    vectors = torch.linalg.qr(basis[:, :3] + 0.3 * basis[:, 10:13]).Q
    known = torch.tensor([5.0, 4.8, 4.7, 2.0], dtype=DOUBLE)
    for beyond, status in [(4.6, EigenStatus.LOST), (-9.0, EigenStatus.MAX_PRODUCTS)]:
        known[3] = beyond
        for images in (None, operator.matmat(vectors[:, :2])):
            products = 3 if images is None else 1
            start = Start(vectors, known, images)
            found = lanczos(operator, start=start, accuracy=1e-9, max_products=products)
            assert found.status is status


def test_a_start_that_spans_the_space_is_not_lost():
    operator, _ = with_spectrum(torch.linspace(5, 1, 4, dtype=DOUBLE))
    start = Start(torch.eye(4, dtype=DOUBLE), torch.full((6,), 5.0, dtype=DOUBLE))
    assert lanczos(operator, start=start, accuracy=1e-3).eigenvalue() == pytest.approx(5)


def test_in_lockstep_a_run_of_which_nothing_is_known_is_not_lost():
    operator, basis = with_spectrum(torch.linspace(5, 0, 30, dtype=DOUBLE))
    both = SymmetricOperator(lambda rows: operator.matmat(rows.T).T, 30, dtype=DOUBLE, num_runs=2)
    starts = [Start(basis[:, :1], torch.linspace(5, 0, 30)), None]
    for result in lanczos_together(both, starts=starts, accuracy=1e-6):
        assert result.eigenvalue() == pytest.approx(5, rel=1e-6)


def test_a_spare_pair_leads_on_where_the_first_one_is_not_the_leading_one():
    eigenvalues = torch.cat([torch.tensor([5.0, 4.0]), torch.linspace(0, 1, 58)]).double()
    operator, basis = with_spectrum(eigenvalues)
    single = SymmetricOperator(
        lambda rows: operator.matvec(rows[0])[None], 60, dtype=DOUBLE, num_runs=1
    )
    start = basis[:, 1] + 1e-5 * basis[:, 0] + 1e-5 * basis[:, 30]
    (deceived,) = lanczos_together(single, starts=[start], rtol=1e-3)
    assert deceived.status is EigenStatus.CONVERGED
    assert deceived.eigenvalue() == pytest.approx(4)
    (found,) = lanczos_together(single, starts=[start], rtol=1e-3, spare_rtol=0.03)
    assert found.eigenvalue() == pytest.approx(5)
    with pytest.raises(ValueError, match=r"spare_rtol must lie in \(0, 1\), got 2"):
        lanczos_together(single, spare_rtol=2)


def test_long_float32_vectors_in_lockstep_are_as_good_as_alone():
    # Entries that do not cancel, where sums taken one after another are worst.
    size = 400_000
    draw = torch.rand(size, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    basis, values = torch.linalg.qr(draw).Q, torch.tensor([3.0, 2.0, 1.0], dtype=DOUBLE)

    def matvec(rows):
        return (rows.double() @ basis * values @ basis.T).float()

    for num_runs in (1, 2):
        operator = SymmetricOperator(
            matvec, size, dtype=torch.float32, device=torch.device("cpu"), num_runs=num_runs
        )
        for result in lanczos_together(operator, rtol=1e-5, max_products=12):
            assert result.status is EigenStatus.CONVERGED
            assert result.eigenvalue() == pytest.approx(3, rel=1e-6)


@pytest.mark.parametrize("num_runs", [1, 2])
@pytest.mark.parametrize("size", [100, 8_192, 8_193, 50_000, 2_000_000])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_inner_products_of_long_vectors(num_runs, size, dtype):
    # All entries positive: nothing cancels, and sums taken one after another are worst.
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(num_runs, 5, size, generator=generator, dtype=dtype)[:, 1:]
    vectors = torch.rand(num_runs, size, generator=generator, dtype=dtype)
    exact = torch.stack(
        [run.double() @ vector.double() for run, vector in zip(rows, vectors, strict=True)]
    )
    found = inner_products(rows, vectors)
    scale = rows.double().norm(dim=2) * vectors.double().norm(dim=1)[:, None]
    assert found.dtype == DOUBLE
    assert float(((found - exact) / scale).abs().max()) < (3e-6 if dtype != DOUBLE else 1e-13)
    # What CUDA does, here as to its arithmetic; for its accuracy there see test_gpu.py.
    found = _stretches_at_once(rows, vectors)
    assert found.dtype == DOUBLE
    assert float(((found - exact) / scale).abs().max()) < (3e-5 if dtype != DOUBLE else 1e-13)


def test_a_matrix_in_place_of_an_operator():
    for matrix in (torch.eye(3), np.eye(3)):
        for solve in (lanczos, lanczos_together):
            with pytest.raises(ValueError, match=r"SymmetricOperator\.from_dense\(matrix\)"):
                solve(matrix)


@pytest.mark.parametrize(
    "block",
    [
        lambda: torch.autocast("cpu"),
        torch.inference_mode,
        lambda: torch.device("meta"),  # the default device, for tensors made without one
    ],
)
def test_a_block_around_a_solve_changes_nothing(block):
    operator, _ = with_spectrum(torch.linspace(-1, 3, 200, dtype=torch.float32))
    expected = lanczos(operator, 2)
    with block():
        found = lanczos(operator, 2)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.vectors, expected.vectors)


def test_a_small_eigenvalue_beside_a_large_one_of_the_other_sign_in_float32():
    eigenvalues = torch.cat([torch.tensor([0.1, -3e3, -1e4]), torch.linspace(-0.5, 0.005, 40)])
    for seed in range(5):
        operator, _ = with_spectrum(eigenvalues, seed)
        found = lanczos(operator, seed=seed, max_products=43)
        exact = float(torch.linalg.eigvalsh(operator.to_dense().double())[-1])
        assert found.eigenvalue() == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_power_iteration_of_tiny_and_huge_operators_in_float32(scale):
    diagonal = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0, 0.5]) * scale
    operator = SymmetricOperator(lambda v: diagonal * v, 6, dtype=torch.float32)
    assert power_iteration(operator).eigenvalue() == pytest.approx(5 * scale, rel=1e-3)


def test_power_iteration_starts_from_one_vector():
    operator, _ = with_spectrum(torch.arange(1.0, 6.0))
    with pytest.raises(ValueError, match="expected one start vector"):
        power_iteration(operator, start=torch.eye(5)[:, :2])


def test_an_operator_whose_products_carry_a_graph():
    matrix = torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64)).requires_grad_()
    operator = SymmetricOperator.from_dense(matrix)
    assert lanczos(operator).eigenvalue() == pytest.approx(5)
    assert not operator.to_dense().requires_grad
