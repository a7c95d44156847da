"""Stochastic Lanczos quadrature and trace estimation: what is exact, what is only unbiased."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eoslib import Objective, SymmetricOperator, build, chebyshev, spectrum
from eoslib.spectrum import hutchinson_trace, spectral_density, trace
from tests.oracles import SPECTRA, dense_hessian, with_spectrum

DOUBLE = torch.float64
SPREAD = torch.linspace(-2, 5, 12, dtype=DOUBLE)


def recorded(matrix: Tensor) -> tuple[SymmetricOperator, list[Tensor]]:
    """An operator that keeps the vectors it was multiplied with."""
    vectors: list[Tensor] = []

    def product(vector: Tensor) -> Tensor:
        vectors.append(vector.clone())
        return matrix @ vector

    return SymmetricOperator(product, len(matrix), dtype=matrix.dtype), vectors


def dense(operator: SymmetricOperator) -> Tensor:
    columns = [operator @ e for e in torch.eye(operator.size, dtype=operator.dtype)]
    return torch.stack(columns)


@cache
def network() -> tuple[Objective, Tensor, Tensor]:
    """A network of 481 parameters, its dense Hessian after some training, and where that is."""
    model = build("fc-tanh", 1, 1, widths=(20, 20), seed=1)
    objective = Objective.from_dataset(model, chebyshev(3), dtype=DOUBLE)
    theta = objective.initial_point
    for _ in range(200):
        theta = theta - 0.1 * objective.gradient(theta)
    return objective, dense_hessian(objective, theta), theta


# -- the quadrature ------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_moments_up_to_2m_minus_1_are_exact_for_every_probe(num_steps):
    matrix = dense(with_spectrum(torch.linspace(-2, 3, 30, dtype=DOUBLE))[0])
    operator, vectors = recorded(matrix)
    density = spectral_density(operator, num_probes=1, num_steps=num_steps)
    v = vectors[0]
    assert float(v.norm()) == pytest.approx(1)
    image = v
    for order in range(2 * num_steps):
        assert density.moment(order).value == pytest.approx(float(v @ image), rel=1e-11)
        image = matrix @ image
    beyond = density.moment(2 * num_steps).value
    assert abs(beyond - float(v @ image)) > 1e-6 * 3 ** (2 * num_steps)  # and not beyond


def test_as_many_steps_as_dimensions_find_every_eigenvalue():
    operator, vectors = with_spectrum(SPREAD)
    recorder, seen = recorded(dense(operator))
    density = spectral_density(recorder, num_probes=3, num_steps=12)
    starts = seen[:3]  # the probes run side by side: their first products come first
    for nodes, weights, v in zip(density.nodes, density.weights, starts, strict=True):
        assert torch.allclose(nodes, SPREAD, atol=1e-10)
        assert torch.allclose(weights, (vectors.T @ v) ** 2, atol=1e-10)
    assert density.num_products == recorder.num_products == len(seen) == 36


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("num_steps", [3, 200])
def test_degenerate_spectra(name, num_steps):
    eigenvalues = SPECTRA[name]
    operator, vectors = with_spectrum(eigenvalues)
    recorder, seen = recorded(dense(operator))
    density = spectral_density(recorder, num_probes=1, num_steps=num_steps)
    assert density.nodes.shape == density.weights.shape == (1, min(num_steps, len(eigenvalues)))
    assert float(density.weights.sum()) == pytest.approx(1)
    scale = float(eigenvalues.abs().max())
    assert float(density.nodes.min()) >= float(eigenvalues.min()) - 1e-12 * scale
    assert float(density.nodes.max()) <= float(eigenvalues.max()) + 1e-12 * scale
    distinct = eigenvalues.unique()
    if num_steps == 3 and len(distinct) > 3:
        return
    # The space was exhausted: the measure that v carries is reproduced, atom by atom.
    carried = (vectors.T @ seen[0]) ** 2
    for value in distinct:
        near = (density.nodes - value).abs() <= 1e-10 * scale
        expected = carried[eigenvalues == value].sum()
        assert float(density.weights[near].sum()) == pytest.approx(float(expected), abs=1e-9)
    if len(distinct) <= 2:  # and products stopped soon after it was exhausted
        assert density.num_products <= len(distinct) + 1


def test_a_probe_that_ends_early_does_not_stop_the_others():
    """Side by side: a start that is an eigenvector, and one with a part along each of them."""
    eigenvalues = torch.arange(1, 9, dtype=DOUBLE)
    operator = SymmetricOperator.from_dense(torch.diag(eigenvalues))
    starts = torch.stack([torch.eye(8, dtype=DOUBLE)[2], torch.full((8,), 8**-0.5, dtype=DOUBLE)])
    matrices = spectrum._tridiagonal(operator, starts, 8)
    assert torch.allclose(matrices[0], 3 * torch.eye(8, dtype=DOUBLE), atol=1e-14)
    assert torch.allclose(torch.linalg.eigvalsh(matrices[1]), eigenvalues, atol=1e-10)


def test_blocks_of_probes_change_nothing(monkeypatch):
    operator, _ = with_spectrum(torch.linspace(-1, 4, 40, dtype=DOUBLE))
    together = spectral_density(operator, num_probes=7, num_steps=10)
    monkeypatch.setattr(spectrum, "_BASIS_BYTES", 3 * 10 * 40 * 8)
    apart = spectral_density(operator, num_probes=7, num_steps=10)
    assert torch.allclose(apart.nodes, together.nodes, atol=1e-12)
    assert torch.allclose(apart.weights, together.weights, atol=1e-12)
    assert apart.num_products == together.num_products == 70


def test_no_ghosts_after_the_outliers_have_converged():
    """With a lost orthogonality, converged eigenvalues would appear several times."""
    eigenvalues = torch.cat([torch.tensor([100.0, 40.0]), torch.linspace(0, 1, 198)]).double()
    operator, _ = with_spectrum(eigenvalues)
    density = spectral_density(operator, num_probes=4, num_steps=60)
    assert torch.equal((density.nodes > 1.5).sum(dim=1), torch.full((4,), 2))


@settings(max_examples=30, deadline=None)
@given(
    shift=st.floats(-10, 10),
    factor=st.floats(0.1, 10) | st.floats(-10, -0.1),
    seed=st.integers(0, 100),
)
def test_shift_and_scale_equivariance(shift, factor, seed):
    matrix = dense(with_spectrum(SPREAD, seed=seed)[0])
    moved = factor * matrix + shift * torch.eye(12, dtype=DOUBLE)
    options = {"num_probes": 2, "num_steps": 5, "seed": seed}
    before = spectral_density(SymmetricOperator.from_dense(matrix), **options)
    after = spectral_density(SymmetricOperator.from_dense(moved), **options)
    nodes, order = (factor * before.nodes + shift).sort(dim=1)
    assert torch.allclose(after.nodes, nodes, atol=1e-8)
    assert torch.allclose(after.weights, before.weights.gather(1, order), atol=1e-8)
    budget = {"num_products": 6, "seed": seed}
    for estimate in (hutchinson_trace, trace):
        plain = estimate(SymmetricOperator.from_dense(matrix), **budget)
        scaled = estimate(SymmetricOperator.from_dense(factor * matrix), **budget)
        assert scaled.value == pytest.approx(factor * plain.value, rel=1e-8, abs=1e-8)
        assert scaled.standard_error == pytest.approx(abs(factor) * plain.standard_error, rel=1e-6)
    plain = hutchinson_trace(SymmetricOperator.from_dense(matrix), **budget)
    shifted = hutchinson_trace(SymmetricOperator.from_dense(moved), **budget)
    assert shifted.value == pytest.approx(factor * plain.value + 12 * shift, abs=1e-8)


def test_probes_scatter_as_the_theory_of_the_unit_sphere_says():
    eigenvalues = SPREAD
    operator, _ = with_spectrum(eigenvalues)
    size, probes = len(eigenvalues), 4000
    estimate = spectral_density(operator, num_probes=probes, num_steps=1).moment(1)
    mean = float(eigenvalues.mean())
    # Var vᵀAv = 2/(P(P+2)) · (tr A² − (tr A)²/P) for v uniform on the unit sphere
    variance = 2 / (size * (size + 2)) * float((eigenvalues**2).sum() - size * mean**2)
    assert estimate.standard_error == pytest.approx(math.sqrt(variance / probes), rel=0.05)
    assert abs(estimate.value - mean) < 4 * estimate.standard_error


# -- what is read off it -------------------------------------------------------------------------


def test_the_share_above_a_threshold_and_its_error():
    eigenvalues = torch.cat([torch.full((30,), 2.0), torch.zeros(70)]).double()
    operator, _ = with_spectrum(eigenvalues)
    density = spectral_density(operator, num_probes=400, num_steps=5)
    share = density.share_above(1)
    # v's weight on 30 of 100 directions is Beta(15, 35)-distributed
    assert share.standard_error == pytest.approx(math.sqrt(0.3 * 0.7 / 51 / 400), rel=0.1)
    assert abs(share.value - 0.3) < 4 * share.standard_error
    assert density.share_above(-1) == (pytest.approx(1), pytest.approx(0, abs=1e-15))
    assert density.share_above(2.5) == (0, 0)
    assert density.share_above(math.inf).value == 0
    assert density.moment(0).value == pytest.approx(1)
    assert density.trace().value == pytest.approx(200 * share.value)


def test_one_probe_has_no_standard_error():
    density = spectral_density(with_spectrum(SPREAD)[0], num_probes=1, num_steps=4)
    for estimate in (density.moment(1), density.trace(), density.share_above(0)):
        assert math.isnan(estimate.standard_error)
        assert math.isfinite(estimate.value)


@pytest.mark.parametrize("width", [None, 0.3])
def test_the_smoothed_density_is_the_mixture_of_gaussians(width):
    density = spectral_density(with_spectrum(SPREAD)[0], num_probes=3, num_steps=200)
    smooth = density.density(width=width)
    assert smooth.width == pytest.approx(7 / 200 if width is None else width)
    assert float(smooth.grid[0]) == pytest.approx(-2 - 4 * smooth.width)
    assert float(smooth.grid[-1]) == pytest.approx(5 + 4 * smooth.width)
    assert float(torch.trapezoid(smooth.values, smooth.grid)) == pytest.approx(1, abs=1e-4)
    mean = torch.trapezoid(smooth.grid * smooth.values, smooth.grid)
    assert float(mean) == pytest.approx(density.moment(1).value, abs=1e-3)
    one = density.density(torch.tensor([5.0]), width=0.01).values  # its neighbours are 60 σ away
    peak = density.weights[:, -1].mean() / (0.01 * math.sqrt(2 * math.pi))
    assert float(one) == pytest.approx(float(peak), rel=1e-6)


@pytest.mark.parametrize("name", ["zero", "identity", "one by one"])
def test_the_default_width_of_a_spectrum_without_range(name):
    smooth = spectral_density(with_spectrum(SPECTRA[name])[0]).density()
    assert smooth.width >= 1e-6
    assert float(torch.trapezoid(smooth.values, smooth.grid)) == pytest.approx(1, abs=1e-3)


def test_the_default_width_of_a_spectrum_below_zero():
    operator = SymmetricOperator.from_dense(-1e-3 * torch.eye(9, dtype=DOUBLE))
    smooth = spectral_density(operator, num_steps=10).density()
    assert smooth.width == pytest.approx(1e-3 * 1e-3 / 10)


# -- the trace -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 4, 10])
def test_the_sketch_of_a_low_rank_operator_is_exact(rank):
    eigenvalues = torch.cat([torch.linspace(-3, 8, rank), torch.zeros(60 - rank)]).double()
    operator, _ = with_spectrum(eigenvalues)
    wanted = float(eigenvalues.sum())
    estimate = trace(operator, num_products=3 * rank + 2)
    assert operator.num_products == 3 * rank + 2
    assert estimate.value == pytest.approx(wanted, abs=1e-9)
    assert estimate.standard_error < 1e-9
    assert hutchinson_trace(operator, num_products=3 * rank + 2).standard_error > 1e-2


@pytest.mark.parametrize("name", SPECTRA)
def test_products_for_every_dimension_leave_no_error(name):
    operator, _ = with_spectrum(SPECTRA[name])
    estimate = trace(operator, num_products=max(4, operator.size))
    assert estimate.value == pytest.approx(float(SPECTRA[name].sum()), abs=1e-10)
    assert estimate.standard_error == 0
    assert operator.num_products == operator.size


@pytest.mark.parametrize("estimator", [trace, hutchinson_trace])
@pytest.mark.parametrize("name", ["identity", "zero"])
def test_a_multiple_of_the_identity_has_no_variance(estimator, name):
    operator, _ = with_spectrum(SPECTRA[name])
    estimate = estimator(operator, num_products=9)
    assert estimate == (pytest.approx(float(SPECTRA[name].sum())), pytest.approx(0, abs=1e-12))
    assert operator.num_products == 9


@pytest.mark.parametrize("estimator", [trace, hutchinson_trace])
def test_estimates_are_unbiased_and_their_errors_honest(estimator):
    """Over seeds: the mean is the trace, and standard errors squared average to the variance."""
    eigenvalues = torch.cat([torch.tensor([30.0, -20.0, 9.0]), torch.linspace(-1, 2, 37)]).double()
    operator, _ = with_spectrum(eigenvalues)
    runs = [estimator(operator, num_products=12, seed=seed) for seed in range(800)]
    values = torch.tensor([run.value for run in runs], dtype=DOUBLE)
    squared_errors = torch.tensor([run.standard_error for run in runs], dtype=DOUBLE) ** 2
    bias = float(values.mean() - eigenvalues.sum())
    assert abs(bias) < 4 * float(values.std()) / math.sqrt(800)
    assert float(squared_errors.mean()) == pytest.approx(float(values.var()), rel=0.2)
    if estimator is hutchinson_trace:
        total, squares = float(eigenvalues.sum()), float((eigenvalues**2).sum())
        theory = 2 * 40 / 42 * (squares - total**2 / 40) / 12
        assert float(values.var()) == pytest.approx(theory, rel=0.2)


def test_hutchpp_beats_hutchinson_where_few_eigenvalues_dominate():
    eigenvalues = 100 / torch.arange(1, 201, dtype=DOUBLE) ** 2
    operator, _ = with_spectrum(eigenvalues)
    plain = hutchinson_trace(operator, num_products=60)
    better = trace(operator, num_products=60)
    assert better.standard_error < plain.standard_error / 20
    assert abs(better.value - float(eigenvalues.sum())) < 5 * better.standard_error


# -- the Hessian of a network --------------------------------------------------------------------


def test_the_hessian_of_a_network():
    objective, hessian, theta = network()
    exact = torch.linalg.eigvalsh(hessian)
    assert objective.num_parameters == 481
    density = spectral_density(objective.hessian(theta), num_probes=20, num_steps=60)
    assert float(density.nodes.max()) == pytest.approx(float(exact[-1]), rel=1e-6)
    assert float(density.nodes.min()) == pytest.approx(float(exact[0]), rel=1e-3)
    for order in (1, 2, 3):
        estimate = density.moment(order)
        wanted = float((exact**order).mean())
        assert 0 < abs(estimate.value - wanted) < 4 * estimate.standard_error
    for threshold in (-0.01, 0.01, 1.0):  # where eigenvalues are sparse
        share = density.share_above(threshold)
        wanted = float((exact > threshold).double().mean())
        assert abs(share.value - wanted) < 4 * share.standard_error
    total = trace(objective.hessian(theta), num_products=60)
    plain = hutchinson_trace(objective.hessian(theta), num_products=60)
    assert total.standard_error < 0.02 * float(exact.sum())
    assert plain.standard_error > 0.1 * float(exact.sum())
    for estimate in (total, plain):
        assert abs(estimate.value - float(exact.sum())) < 4 * estimate.standard_error


def test_the_quadrature_of_a_network_is_that_of_its_dense_hessian():
    objective, hessian, theta = network()
    products = spectral_density(objective.hessian(theta), num_probes=2, num_steps=8)
    matrix = spectral_density(SymmetricOperator.from_dense(hessian), num_probes=2, num_steps=8)
    assert torch.allclose(products.nodes, matrix.nodes, atol=1e-8)
    assert torch.allclose(products.weights, matrix.weights, atol=1e-8)


def test_float32():
    _, hessian, _ = network()
    single = SymmetricOperator.from_dense(hessian.float())
    double = SymmetricOperator.from_dense(hessian)
    options = {"num_probes": 5, "num_steps": 40}
    coarse, fine = (spectral_density(operator, **options) for operator in (single, double))
    for order in (1, 2):
        assert coarse.moment(order).value == pytest.approx(fine.moment(order).value, rel=1e-4)
    assert trace(single).value == pytest.approx(trace(double).value, rel=1e-4)


# -- reproducibility and refusals ----------------------------------------------------------------


def test_one_seed_one_answer_and_the_global_state_untouched():
    operator, _ = with_spectrum(SPREAD)
    state = torch.get_rng_state()
    first, again, other = (
        spectral_density(operator, num_probes=2, num_steps=3, seed=seed) for seed in (5, 5, 6)
    )
    assert torch.equal(first.nodes, again.nodes)
    assert not torch.allclose(first.nodes, other.nodes)
    assert trace(operator, num_products=5, seed=5) == trace(operator, num_products=5, seed=5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_products_that_are_not_finite(value):
    broken = SymmetricOperator(lambda v: v * value, 20, dtype=DOUBLE)
    for compute in (spectral_density, trace, hutchinson_trace):
        with pytest.raises(ValueError, match=r"NaN or infinite.*has the loss diverged"):
            compute(broken)
    calls = 0

    def late(vector: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return vector * (value if calls > 7 else torch.arange(20))

    with pytest.raises(ValueError, match="NaN or infinite"):
        spectral_density(SymmetricOperator(late, 20, dtype=DOUBLE), num_probes=1)
    assert calls == 8


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, None])
def test_counts_that_are_no_positive_integers(wrong):
    operator, _ = with_spectrum(SPREAD)
    for name in ("num_probes", "num_steps"):
        with pytest.raises(
            ValueError, match=f"{name} must be a positive whole number, got {wrong}"
        ):
            spectral_density(operator, **{name: wrong})
    for estimator in (trace, hutchinson_trace):
        with pytest.raises(ValueError, match="num_products must be a positive whole number"):
            estimator(operator, num_products=wrong)
    assert operator.num_products == 0


def test_wrong_arguments():
    operator, _ = with_spectrum(SPREAD)
    with pytest.raises(ValueError, match=r"num_products must be at least 4 .* got 3"):
        trace(operator, num_products=3)
    several = SymmetricOperator.from_dense(torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match="several matrices"):
        spectral_density(several)
    density = spectral_density(operator, num_probes=2, num_steps=4)
    with pytest.raises(ValueError, match="order must be a whole number, at least 0, got -1"):
        density.moment(-1)
    with pytest.raises(ValueError, match="threshold must be a number, got nan"):
        density.share_above(math.nan)
    for width in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="width must be a positive number"):
            density.density(width=width)
    with pytest.raises(ValueError, match=r"grid must have shape \(g,\), got \(2, 2\)"):
        density.density(torch.zeros(2, 2))


def test_a_matrix_in_place_of_an_operator():
    for estimate in (spectral_density, trace, hutchinson_trace):
        with pytest.raises(ValueError, match=r"SymmetricOperator\.from_dense\(matrix\)"):
            estimate(torch.eye(3))


@pytest.mark.parametrize("block", [lambda: torch.autocast("cpu"), torch.inference_mode])
def test_a_block_around_an_estimate_changes_nothing(block):
    operator, _ = with_spectrum(torch.linspace(-1, 3, 50, dtype=torch.float32))

    def estimates():
        density = spectral_density(operator, num_probes=2, num_steps=20)
        return density.nodes, trace(operator, num_products=9), hutchinson_trace(operator)

    nodes, *traces = estimates()
    with block():
        found, *again = estimates()
    assert torch.equal(found, nodes)
    assert again == traces


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_the_density_of_tiny_and_huge_operators_in_float32(scale):
    diagonal = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0, 0.5])
    density, scaled = (
        spectral_density(SymmetricOperator(lambda v, d=d: d * v, 6, dtype=torch.float32), seed=1)
        for d in (diagonal, diagonal * scale)
    )
    assert scaled.moment(2)[0] / scale**2 == pytest.approx(density.moment(2)[0], rel=1e-3)
