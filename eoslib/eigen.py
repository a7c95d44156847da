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
`SharpnessTracker` starts from random vectors now and then.
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

    CONVERGED = "every residual norm is at most rtol × |eigenvalue|, or at rounding level"
    MAX_PRODUCTS = "out of products before converging; raise max_products or loosen rtol"
    EXHAUSTED = "the basis spans the whole space and residuals remain; is the operator symmetric?"
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
        subspace: ``(P, j)``, k ≤ j ≤ k + 1: the leading Ritz vectors with one to spare, from which
            to start a solve for a nearby operator. The spare one is approximate.
    """

    values: Tensor
    vectors: Tensor
    residual_norms: Tensor
    num_products: int
    status: EigenStatus
    subspace: Tensor

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
        rtol: a pair has converged when its residual norm is at most rtol × |θ|, or 100 machine
            epsilons times the largest |Ritz value| seen, below which products are rounding. Some
            eigenvalue then lies that close; the error is of order (rtol × |θ|)²/gap.
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
        norms = residuals.double().norm(dim=1).cpu()
        floor = 100 * torch.finfo(operator.dtype).eps * scale
        open_pairs = norms > (rtol * values[:found].abs()).clamp(min=floor)
        if found == k and not bool(open_pairs.any()):
            status = EigenStatus.CONVERGED
        elif basis.filled == size:
            status = EigenStatus.EXHAUSTED
        else:
            status = EigenStatus.MAX_PRODUCTS
        if status is not EigenStatus.MAX_PRODUCTS or products >= limit:
            return EigenResult(
                values=_padded(values[:found], k),
                vectors=_padded(basis.ritz_vectors(coefficients[:, :found]), k).T,
                residual_norms=_padded(norms, k),
                num_products=products,
                status=status,
                subspace=basis.ritz_vectors(coefficients[:, : k + 1]).T,
            )
        if basis.filled == basis.capacity:
            basis.restart(coefficients[:, : max(k + 2, basis.capacity // 3)])
        # Extend by the residual of the first pair that still needs it; a pair that has converged
        # to rounding has no direction left to offer, and a random one is taken instead.
        worst = int(open_pairs.int().argmax())
        if float(norms[worst]) > 0.01 * floor:
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
            vector = vector / vector.abs().max()  # squares of tiny numbers would underflow
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
    block = block.detach().to(operator.device, operator.dtype)
    vectors = [v for v in block.T if float(v.abs().max()) != 0]
    if not vectors or not bool(torch.isfinite(block).all()):
        raise ValueError("start holds no usable vector: all are zero, or some are not finite")
    return vectors


def _failed(basis: _Basis, k: int, products: int) -> EigenResult:
    nothing = torch.empty(0, dtype=torch.float64)
    values, norms = _padded(nothing, k), _padded(nothing, k)
    vectors = _padded(basis.rows[:0], k).T
    return EigenResult(values, vectors, norms, products + 1, EigenStatus.NOT_FINITE, vectors)


def _padded(rows: Tensor, k: int) -> Tensor:
    """Rows up to k, those that were not found being NaN."""
    return torch.cat([rows, rows.new_full((k - len(rows), *rows.shape[1:]), torch.nan)])


class SharpnessTracker:
    """The k largest Hessian eigenvalues along training, each solve started from the last.

    Between two measurements the top eigenvectors turn little, so a search that begins with them
    needs a few products where a cold one needs dozens. Two things guard against following the
    wrong eigenvector. The search carries one Ritz vector more than it reports, so that when the
    next eigenvalue overtakes, it is already there. And every ``cold_every``-th measurement begins
    with a second search from random vectors alone, because what came up from further below is
    invisible to a start without any component along it.

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
        """Track the k largest eigenvalues of ``objective``; other arguments as in `lanczos`.

        Raises:
            ValueError: ``cold_every`` is not a positive integer.
        """
        if cold_every < 1:
            raise ValueError(f"cold_every must be at least 1, got {cold_every}")
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
        starts: list[Tensor] = []
        if self.last is not None and bool(torch.isfinite(self.last.subspace).all()):
            starts.append(self.last.subspace)
        if not starts or self._count % self._cold_every == 0:
            draws = [_gaussian(operator, self._generator) for _ in range(self.k + 1)]
            # Stricter, because an unlucky draw may converge to the second pair before it sees the
            # first; and joined to the warm vectors, because the larger of two answers is right.
            starts.append(self._lanczos(operator, torch.stack(draws, dim=1), 0.1).subspace)
        result = self._lanczos(operator, torch.cat(starts, dim=1), 1.0)
        self._count += 1
        self.num_products += operator.num_products
        self.unconverged += result.status is not EigenStatus.CONVERGED
        self.last = result
        return result

    def _lanczos(
        self, operator: SymmetricOperator, start: Tensor, strictness: float
    ) -> EigenResult:
        if not bool(torch.isfinite(start).all()):  # the cold solve met NaN
            start = torch.ones_like(start)
        return lanczos(
            operator,
            self.k,
            start=start,
            rtol=strictness * self._rtol,
            max_products=self._max_products,
        )

    def __call__(self, theta: Tensor) -> Tensor:
        """The k largest eigenvalues at θ, descending, ``(k,)``; NaN where unconverged."""
        result = self.solve(theta)
        if result.status is EigenStatus.CONVERGED:
            return result.values
        return torch.full((self.k,), torch.nan, dtype=torch.float64)
