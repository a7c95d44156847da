r"""Extreme eigenvalues of a symmetric operator from products alone: the Lanczos method.

The sharpness is the largest *algebraic* eigenvalue of the Hessian. The eigenvalue of largest
magnitude is another thing: where the most negative eigenvalue dominates, it is the wrong one.

**The method.** Keep an orthonormal basis Q ∈ R^{m×P} (rows) and its images W = QH. Rayleigh-Ritz:
the eigenpairs (θ, y) of the small matrix T = QHQᵀ give the best approximations the span offers,
x = Qᵀy with residual r = Hx − θx = Wᵀy − θx. Extend the basis by r and repeat. From one start
vector v this spans the Krylov space of (H, v), so it is the Lanczos method, with full
reorthogonalisation (no ghost eigenvalues) and with true residuals instead of estimates. When the
basis is full, it restarts from the leading Ritz vectors (Wu and Simon 2000, "thick restart").
Because nothing requires the basis to begin as a Krylov space, it may also begin with the
eigenvectors of the previous training step: that is the warm start.

**What convergence means.** For a symmetric H some eigenvalue lies within ‖r‖ of θ, and the error
is of order ‖r‖²/gap when the next eigenvalue is a gap away. A small residual does not say that the
pair found is the *leading* one: a start vector without any component along the leading
eigenvector cannot see it. A random start has one; a warm start may lose it, which is why
`SharpnessTracker` checks from a random start now and then.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eoslib.linops import SymmetricOperator

if TYPE_CHECKING:
    from eoslib.objective import Objective

__all__ = ["EigenResult", "EigenStatus", "SharpnessTracker", "UnconvergedError", "lanczos"]


class EigenStatus(enum.Enum):
    """How a solve ended; the value is the explanation."""

    CONVERGED = "every residual norm is at most rtol times the largest |Ritz value|"
    MAX_PRODUCTS = "out of products before converging; raise max_products or loosen rtol"
    NOT_FINITE = "a product was NaN or infinite; has the loss diverged at this point?"


class UnconvergedError(RuntimeError):
    """The eigenvalue asked for was not found to the stated accuracy."""


@dataclass(frozen=True)
class EigenResult:
    """Approximate eigenpairs and how good they are.

    Attributes:
        values: ``(k,)`` float64 on the CPU; descending for ``largest_algebraic``, ascending for
            ``smallest_algebraic``.
        vectors: ``(P, k)``, orthonormal columns, column j belonging to ``values[j]``.
        residual_norms: ``(k,)``, ‖H x_j − θ_j x_j‖₂.
        num_products: products spent.
        status: how the solve ended.
    """

    values: Tensor
    vectors: Tensor
    residual_norms: Tensor
    num_products: int
    status: EigenStatus

    def eigenvalue(self, index: int = 0, *, allow_unconverged: bool = False) -> float:
        """The eigenvalue of that index as a number.

        Raises:
            UnconvergedError: the solve did not converge and ``allow_unconverged`` is not set.
        """
        if self.status is not EigenStatus.CONVERGED and not allow_unconverged:
            shown = ", ".join(f"{r:.2e}" for r in self.residual_norms.tolist())
            raise UnconvergedError(
                f"after {self.num_products} products: {self.status.value} (residual norms {shown}; "
                "pass allow_unconverged=True to take the value all the same)"
            )
        return float(self.values[index])


def lanczos(
    operator: SymmetricOperator,
    k: int = 1,
    *,
    which: str = "largest_algebraic",
    start: Tensor | None = None,
    rtol: float = 1e-4,
    max_products: int | None = None,
    max_basis: int = 48,
    seed: int = 0,
) -> EigenResult:
    """The k leading eigenpairs of a symmetric operator by Lanczos with thick restarts.

    Args:
        operator: size P.
        k: how many pairs, 1 ≤ k ≤ P.
        which: ``"largest_algebraic"`` or ``"smallest_algebraic"``.
        start: ``(P,)`` or ``(P, j)``: where the search begins, for instance the eigenvectors at the
            previous training step. Default: k Gaussian vectors drawn from ``seed``; from fewer than
            k an eigenvalue of multiplicity k would be found fewer than k times.
        rtol: converged when every one of the k residual norms is at most ``rtol`` times the
            largest |Ritz value| seen. The eigenvalue's own error is of order rtol² × |θ|²/gap.
        max_products: give up after so many products; default 20·k + 200.
        max_basis: basis size m at which the method restarts (at least 2k + 4).
        seed: seed of the default start vector and of replacements for exhausted directions.

    Returns:
        An `EigenResult`, with an honest status: not converged is said, never hidden.

    Raises:
        ValueError: k, which, rtol, max_products or the start's shape is wrong.

    Cost: products dominate; memory 2·max_basis vectors of length P; about 8·m·P flops of vector
    work a product.

    Source: Lanczos (1950); Parlett (1998), ch. 13; Wu and Simon (2000).
    """
    size = operator.size
    if not 1 <= k <= size:
        raise ValueError(f"k must lie in 1..{size} for an operator of size {size}, got {k}")
    if which not in ("largest_algebraic", "smallest_algebraic"):
        raise ValueError(
            f"which={which!r}; use 'largest_algebraic' (the sharpness) or 'smallest_algebraic'"
        )
    if not 0 < rtol < 1:
        raise ValueError(f"rtol must lie in (0, 1), got {rtol}")
    limit = 20 * k + 200 if max_products is None else max_products
    if limit < 1:
        raise ValueError(f"max_products must be at least 1, got {limit}")
    generator = torch.Generator().manual_seed(seed)
    basis = _Basis(operator, min(size, max(max_basis, 2 * k + 4)), generator)
    # More directions than dimensions (or than the basis holds) cannot be orthogonal.
    queue = _start_vectors(start, k, operator, generator)[: basis.capacity]
    sign = 1.0 if which == "largest_algebraic" else -1.0
    queue.reverse()
    products = 0
    scale = 0.0
    while True:
        if not basis.extend(queue.pop() if queue else basis.fresh_direction()):
            return _failed(basis, k, products)
        products += 1
        if queue and products < limit:
            continue
        values, coefficients = basis.ritz_pairs(sign)
        scale = max(scale, float(values.abs().max()))
        found = min(k, basis.filled)
        residuals = basis.residuals(values[:found], coefficients[:, :found])
        norms = residuals.norm(dim=1).double().cpu()
        converged = found == k and bool((norms <= rtol * scale).all())
        if converged or products >= limit or basis.filled == size:
            done = converged or basis.filled == size
            return EigenResult(
                values=values[:found],
                vectors=basis.ritz_vectors(coefficients[:, :found]).T,
                residual_norms=norms,
                num_products=products,
                status=EigenStatus.CONVERGED if done else EigenStatus.MAX_PRODUCTS,
            )
        if basis.filled == basis.capacity:
            basis.restart(coefficients[:, : max(k + 2, basis.capacity // 3)])
        # Extend by the residual of the first pair that still needs it; a pair that has converged
        # to rounding has no direction left to offer, and a random one is taken instead.
        worst = int((norms > rtol * scale).int().argmax())
        if float(norms[worst]) > 1e3 * torch.finfo(operator.dtype).eps * scale * rtol:
            queue.append(residuals[worst])


class _Basis:
    """Orthonormal rows Q, their images W = QH, and the projected matrix T = QHQᵀ."""

    def __init__(
        self, operator: SymmetricOperator, capacity: int, generator: torch.Generator
    ) -> None:
        shape = (capacity, operator.size)
        self.operator, self.capacity, self.generator = operator, capacity, generator
        self.rows = torch.empty(shape, dtype=operator.dtype, device=operator.device)
        self.images = torch.empty_like(self.rows)
        self.projected = torch.zeros(capacity, capacity, dtype=torch.float64)
        self.filled = 0

    def fresh_direction(self) -> Tensor:
        return _gaussian(self.operator, self.generator)

    def extend(self, vector: Tensor) -> bool:
        """Add a direction and its product; False when the product is not finite."""
        m = self.filled
        row = self._orthonormalised(vector)
        image = self.operator.matvec(row)
        self.rows[m], self.images[m] = row, image
        column = (self.rows[: m + 1] @ image).double().cpu()
        if not bool(torch.isfinite(column).all()):
            return False
        self.projected[m, : m + 1] = column
        self.projected[: m + 1, m] = column
        self.filled = m + 1
        return True

    def _orthonormalised(self, vector: Tensor) -> Tensor:
        rows = self.rows[: self.filled]
        for _ in range(10):
            vector = vector / vector.norm()
            for _ in range(2):  # "twice is enough" (Parlett 1998, §6.9)
                vector = vector - (rows @ vector) @ rows
            left = float(vector.norm())
            if left > 1e2 * torch.finfo(vector.dtype).eps:
                vector = vector / left
                return vector - (rows @ vector) @ rows
            vector = self.fresh_direction()  # nothing was left: it lay in the span
        raise RuntimeError(
            f"no direction orthogonal to {self.filled} vectors of length {rows.shape[1]} found"
        )

    def ritz_pairs(self, sign: float) -> tuple[Tensor, Tensor]:
        """All Ritz values, leading first, and their coefficients in columns, in float64."""
        small = self.projected[: self.filled, : self.filled]
        values, coefficients = torch.linalg.eigh(-sign * small)
        return -sign * values, coefficients

    def ritz_vectors(self, coefficients: Tensor) -> Tensor:
        return self._combine(coefficients, self.rows)

    def residuals(self, values: Tensor, coefficients: Tensor) -> Tensor:
        scaled = values.to(self.rows)[:, None] * self.ritz_vectors(coefficients)
        return self._combine(coefficients, self.images) - scaled

    def restart(self, coefficients: Tensor) -> None:
        """Keep the span of the given Ritz vectors only; no product is spent."""
        keep = coefficients.shape[1]
        small = coefficients.T @ self.projected[: self.filled, : self.filled] @ coefficients
        rows, images = self.ritz_vectors(coefficients), self._combine(coefficients, self.images)
        self.rows[:keep], self.images[:keep] = rows, images
        self.projected.zero_()
        self.projected[:keep, :keep] = small
        self.filled = keep

    def _combine(self, coefficients: Tensor, vectors: Tensor) -> Tensor:
        return coefficients.T.to(vectors) @ vectors[: self.filled]


def _gaussian(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    # Drawn on the CPU, so that one seed means the same start on every device.
    draw = torch.randn(operator.size, generator=generator, dtype=torch.float64)
    return draw.to(operator.device, operator.dtype)


def _start_vectors(
    start: Tensor | None, k: int, operator: SymmetricOperator, generator: torch.Generator
) -> list[Tensor]:
    if start is None:
        return [_gaussian(operator, generator) for _ in range(k)]
    block = start[:, None] if start.ndim == 1 else start
    if block.ndim != 2 or block.shape[0] != operator.size or block.shape[1] < 1:
        raise ValueError(
            f"start must have shape ({operator.size},) or ({operator.size}, j), "
            f"got {tuple(start.shape)}"
        )
    vectors = [v for v in block.T.to(operator.device, operator.dtype) if float(v.norm()) > 0]
    if not vectors or not all(bool(torch.isfinite(v).all()) for v in vectors):
        raise ValueError("start holds no usable vector: all are zero, or some are not finite")
    return vectors


def _failed(basis: _Basis, k: int, products: int) -> EigenResult:
    nan = torch.full((k,), torch.nan, dtype=torch.float64)
    vectors = torch.full((basis.operator.size, k), torch.nan, dtype=basis.operator.dtype)
    return EigenResult(nan, vectors, nan.clone(), products + 1, EigenStatus.NOT_FINITE)


class SharpnessTracker:
    """The k largest Hessian eigenvalues along training, each solve started from the last.

    Between two measurements the top eigenvectors turn little, so a search that begins with them
    needs a few products where a cold one needs dozens. Every ``cold_every``-th measurement begins
    with a random vector beside the warm ones, so that a leading eigenvector which came up from
    below is not missed for long.

    Attributes:
        last: the last `EigenResult`, or ``None``.
        num_products: products spent so far.
        unconverged: how many measurements did not reach ``rtol``; they are recorded as NaN.
    """

    def __init__(
        self,
        objective: Objective,
        k: int = 1,
        *,
        rtol: float = 1e-3,
        cold_every: int = 10,
        max_products: int | None = None,
        seed: int = 0,
    ) -> None:
        """Track the k largest eigenvalues of ``objective``; other arguments as in `lanczos`."""
        self._objective = objective
        self.k = min(k, objective.num_parameters)
        self._rtol = rtol
        self._cold_every = cold_every
        self._max_products = max_products
        self._generator = torch.Generator().manual_seed(seed)
        self._count = 0
        self.last: EigenResult | None = None
        self.num_products = 0
        self.unconverged = 0

    def solve(self, theta: Tensor) -> EigenResult:
        """Measure at θ; the result is kept in `last` and starts the next solve."""
        operator = self._objective.hessian(theta)
        start = None
        if self.last is not None and self.last.status is not EigenStatus.NOT_FINITE:
            start = self.last.vectors
            if self._count % self._cold_every == 0:
                start = torch.cat([start, _gaussian(operator, self._generator)[:, None]], dim=1)
        result = lanczos(
            operator, self.k, start=start, rtol=self._rtol, max_products=self._max_products
        )
        self._count += 1
        self.num_products += result.num_products
        self.unconverged += result.status is not EigenStatus.CONVERGED
        self.last = result
        return result

    def __call__(self, theta: Tensor) -> Tensor:
        """The k largest eigenvalues at θ, descending, ``(k,)``; NaN where unconverged."""
        result = self.solve(theta)
        if result.status is EigenStatus.CONVERGED:
            return result.values
        return torch.full((self.k,), torch.nan, dtype=torch.float64)
