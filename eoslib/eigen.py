r"""Extreme eigenvalues of a symmetric operator from products alone: the Lanczos method.

The sharpness is the largest *algebraic* eigenvalue of the Hessian. The eigenvalue of largest
magnitude is another thing: where the most negative eigenvalue dominates, it is the wrong one.

**The method.** Keep an orthonormal basis Q ∈ R^{m×P} (rows) and its images W = QH. Rayleigh-Ritz:
the eigenpairs (θ, y) of the small matrix T = QHQᵀ give the best approximations the span offers,
x = Qᵀy with residual r = Hx − θx = Wᵀy − θx. Extend the basis by r and repeat. From one start
vector v this spans the Krylov space of (H, v), so it is the Lanczos method, with full
reorthogonalisation (no ghost eigenvalues) and with true residuals instead of estimates. When the
basis is full, it restarts from the leading Ritz vectors (Wu and Simon 2000, "thick restart").
Because nothing requires the basis to begin as a Krylov space, it may also begin with a block of
vectors: several random ones, for several eigenvalues, or the eigenvectors of the previous training
step, which is the warm start.

**What convergence means.** For a symmetric H some eigenvalue lies within ‖r‖ of θ. The error is
much smaller: if X holds the first c Ritz vectors, R their residuals r_j, and μ bounds the
eigenvalues of H on the complement of X, then

.. math:: 0 \le \lambda_i - \theta_i \le \frac{\|R\|_F^2}{\theta_i - \mu}, \qquad i \le c

(Kato and Temple's inequality for a cluster; Parlett 1998, §10.5). The spare vectors of a warm start
have large residuals, which here weigh as much as the i-th one's own. They reach λ_i only by way of
the complement: λ_i is an eigenvalue of XᵀHX + Rᵀ(λ_i − C)⁻¹R, with C for H on the complement, so
that with :math:`\rho = \sum_{i<j\le c} \|r_j\|^2 / (\theta_i - \mu)`, the most by which the
residuals of the others can raise them,

.. math:: \lambda_i - \theta_i \le \frac{\|r_i\|^2}{\theta_i - \mu}
          \Big/ \Big(1 - \frac{\rho}{\theta_i - \theta_{i+1}}\Big),
          \qquad \rho < \theta_i - \theta_{i+1}

(for i > 1 because λ_i is at most the largest eigenvalue of H on the complement of x_1 … x_{i−1}, by
Cauchy's interlacing). What is not known is μ. In the first bound we put the next Ritz value θ_{c+1}
in its place, or an earlier measurement's if that is larger. In the second we add to it the first
bound with i = c: by Ky Fan θ_1 + … + θ_c + μ is at most the sum of the c + 1 largest eigenvalues of
H, so μ exceeds λ_{c+1} by no more than the c Ritz values fall short. We take the smaller bound, the
best c, and ask for a quarter of the accuracy wanted.

A small residual does not say that the pair found is the *leading* one: a start vector without any
component along the leading eigenvector cannot see it. A random start has one; a warm start may lose
it, which is why `eoslib.tracker.SharpnessTracker` starts from random vectors now and then.

**When a warm start is worth nothing.** Let (λ_i, x_i) be eigenpairs of a nearby operator H − E from
which the search starts, and κ its largest eigenvalue beyond them. By Weyl's inequality no
eigenvector that the start lacks has a value above κ + ‖E‖. The start samples E at no cost:
Ex_i = Hx_i − λ_i x_i. Where κ + max_i ‖Ex_i‖ reaches the Ritz value sought, the search stops as
`EigenStatus.LOST`, however small its residuals are: it would find *an* eigenvalue, but maybe not
the leading one. (A maximum over a few x_i may fall short of ‖E‖; along training at the edge of
stability it was at least as large as the change of any of the six leading eigenvalues.) What has
been computed is kept: the result holds the images, and the next search may begin with them.

**Several operators at once.** An operator that stands for R matrices is solved in lockstep: every
array has a leading dimension R, each matrix takes the same decisions as it would alone, and a
result is taken when its own matrix has converged.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eoslib._arguments import (
    a_function,
    a_generator_seed,
    a_number,
    a_tensor,
    a_whole_number,
    shown,
)
from eoslib.linops import SymmetricOperator, plain_modes, refuse_other
from eoslib.numerics import full_precision, inner_products

__all__ = [
    "EigenResult",
    "EigenStatus",
    "Start",
    "UnconvergedError",
    "lanczos",
    "lanczos_together",
    "power_iteration",
    "scipy_eigsh",
]

#: The estimate of the error is multiplied by this before it is compared with the accuracy wanted,
#: because μ in it is itself estimated. See
#: tests/test_tracker.py for stretches of training that it was chosen on.
_SAFETY = 4.0
#: A residual of so many units in the last place of the largest Ritz value counts as rounding. (At a
#: hundred, an eigenvalue 1e5 times smaller than one of the other sign was wrong in its own sign.)
_ROUNDING = 10

#: In place of infinity, where infinities would cancel.
_HUGE = np.finfo(np.float64).max

#: Where a pass of Gram and Schmidt leaves this share of a vector's length, one pass is enough.
_ENOUGH = 0.7

#: Ritz vectors that a result holds beyond those asked for, at most.
_SPARE = 3

#: A basis and its images restart before they take more memory than this.
_BASIS_BYTES = 2**30

_Array = np.ndarray[Any, np.dtype[np.float64]]
_Flags = np.ndarray[Any, np.dtype[np.bool_]]


class EigenStatus(enum.Enum):
    """How a solve ended; the value is the explanation."""

    CONVERGED = "every eigenvalue asked for meets the tolerance, or is at rounding level"
    MAX_PRODUCTS = "out of products before converging; raise max_products or loosen the tolerance"
    LOST = "the operator is not near the one that the start belongs to; start from random vectors"
    EXHAUSTED = "the basis spans the whole space and residuals remain; is the operator symmetric?"
    NOT_FINITE = (
        "a product was NaN or infinite; has the loss diverged at this point, or no second "
        "derivative there (a norm or a square root at 0)?"
    )


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
        error_estimates: ``(k,)``, estimated |λ_j − θ_j|; see the module's docstring.
        num_products: products spent.
        status: how the solve ended.
        subspace: ``(P, j)``, k ≤ j ≤ k + 3: the leading Ritz vectors with up to three to spare,
            from which to start a solve for a nearby operator. The spare ones are approximate.
        subspace_values: ``(j,)``, their Ritz values.
        images: ``(P, j)``, H times the subspace, where the search was ``LOST``; else ``None``.
    """

    values: Tensor
    vectors: Tensor
    residual_norms: Tensor
    error_estimates: Tensor
    num_products: int
    status: EigenStatus
    subspace: Tensor
    subspace_values: Tensor
    images: Tensor | None = None

    def eigenvalue(self, index: int = 0, *, allow_unconverged: bool = False) -> float:
        """The eigenvalue of that index as a number.

        Raises:
            UnconvergedError: the solve did not converge and ``allow_unconverged`` is not set.
        """
        if self.status is not EigenStatus.CONVERGED and not allow_unconverged:
            shown = ", ".join(f"{r:.2e}" for r in self.residual_norms.tolist())
            raise UnconvergedError(
                f"after {self.num_products} products: {self.status.value} (residual norms {shown}; "
                "lanczos(...).eigenvalue(allow_unconverged=True) takes the value all the same)"
            )
        return float(self.values[index])


@dataclass(frozen=True)
class Start:
    """Where a search begins, and what is known of the eigenvalues beyond it.

    Attributes:
        vectors: ``(P, j)``, finite and not zero.
        known: ``(m,)`` eigenvalues of a nearby operator, leading first: stand-ins for μ. The first
            j belong to the vectors, and the next one is κ; see the module's docstring.
        images: ``(P, i)``: the operator's products with the first i vectors, which must then be
            orthonormal, if they have been computed already.
    """

    vectors: Tensor
    known: Tensor
    images: Tensor | None = None


def lanczos(
    operator: SymmetricOperator,
    k: int = 1,
    *,
    which: str = "largest_algebraic",
    start: Tensor | Start | None = None,
    rtol: float = 1e-4,
    accuracy: float | None = None,
    max_products: int | None = None,
    max_basis: int | None = None,
    seed: int = 0,
    callback: Callable[[EigenResult], None] | None = None,
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
        accuracy: if given, a pair has also converged when the estimated relative error of its
            *eigenvalue* is at most this. Much cheaper, and right for a start near the leading
            eigenvectors; from a random one it stops so early that it may stop at the second pair
            (1 to 12 % of seeds on a 481-parameter network, against 0.25 % with rtol = 1e-4 alone).
        max_products: give up after so many products; default 20·k + 200.
        max_basis: basis size m at which the method restarts; at least 2k + 4. Default: 48, or as
            many as fit into 1 GiB.
        seed: seed of the default start vector and of replacements for exhausted directions.
        callback: called with the result so far after every product from the k-th on.

    Returns:
        An `EigenResult`, with an honest status: not converged is said, never hidden.

    Raises:
        ValueError: k, which, a tolerance, max_products or the start's shape is wrong.

    Cost: products dominate; memory 2·m vectors of length P for a basis of m, as it grows; about
    8·m·P flops of vector work a product.

    Source: Lanczos (1950); Parlett (1998), ch. 10 and 13; Wu and Simon (2000).
    """
    refuse_other(operator)
    if callback is not None:
        a_function("callback", callback, "it is called with the result so far")
    if operator.num_runs is not None:
        raise ValueError("the operator stands for several matrices; use lanczos_together")
    with plain_modes():
        search = _Search(operator, k, which, rtol, accuracy, None, max_products, max_basis, seed)
        return search.run([_as_start(start, operator)], callback)[0]


def lanczos_together(
    operator: SymmetricOperator,
    k: int = 1,
    *,
    which: str = "largest_algebraic",
    starts: Sequence[Tensor | Start | None] | None = None,
    rtol: float = 1e-4,
    accuracy: float | None = None,
    spare_rtol: float | None = None,
    max_products: int | None = None,
    max_basis: int | None = None,
    seed: int = 0,
) -> list[EigenResult]:
    """`lanczos` for R operators at once, one result each; ``starts`` holds one start for each.

    With ``spare_rtol`` the next pair's residual norm must come down to spare_rtol × |θ_k| too. From
    random vectors a search may settle in a pair before it sees the leading one; it seldom settles
    in two.

    Cost: as many products, R at a time, as the slowest of them needs.
    """
    refuse_other(operator)
    if operator.num_runs is None:
        raise ValueError("the operator is a single matrix; use lanczos")
    if not isinstance(starts, Sequence | None):
        raise ValueError(f"starts must be a list of one start for each run, got {shown(starts)}")
    if starts is not None and len(starts) != operator.num_runs:
        raise ValueError(f"expected {operator.num_runs} starts, got {len(starts)}")
    given = starts or [None] * operator.num_runs
    with plain_modes():
        search = _Search(
            operator, k, which, rtol, accuracy, spare_rtol, max_products, max_basis, seed
        )
        return search.run([_as_start(start, operator) for start in given], None)


class _Search:
    """One run of the method on R operators in lockstep.

    rows: orthonormal bases Q, ``(R, m, P)``; images: W = QH; projected: T = QHQᵀ, ``(R, m, m)``;
    the first ``filled`` of m are in use.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        k: int,
        which: str,
        rtol: float,
        accuracy: float | None,
        spare_rtol: float | None,
        max_products: int | None,
        max_basis: int | None,
        seed: int,
    ) -> None:
        size = operator.size
        k = a_whole_number("k", k, most=size, advice=f" for an operator of size {size}")
        if which not in ("largest_algebraic", "smallest_algebraic"):
            raise ValueError(
                f"which={which!r}; use 'largest_algebraic' (the sharpness) or 'smallest_algebraic'"
            )
        rtol = _tolerance("rtol", rtol)
        accuracy = None if accuracy is None else _tolerance("accuracy", accuracy)
        self.limit = (
            20 * k + 200 if max_products is None else a_whole_number("max_products", max_products)
        )
        self.operator, self.k, self.accuracy = operator, k, accuracy
        spare = [] if spare_rtol is None else [_tolerance("spare_rtol", spare_rtol)]
        self.tolerances = np.array(([rtol] * k + spare)[:size])
        # Leading means largest for −sign × the smallest: everything below works on sign × H.
        self.sign = 1.0 if which == "largest_algebraic" else -1.0
        self.num_runs = operator.num_runs or 1
        if max_basis is None:
            pair = 2 * self.num_runs * size * torch.finfo(operator.dtype).bits // 8
            max_basis = min(48, _BASIS_BYTES // pair)
        self.capacity = min(size, max(a_whole_number("max_basis", max_basis), 2 * k + 4))
        self.generator = torch.Generator().manual_seed(a_generator_seed(seed))
        # On the CPU the system hands out these pages only as they are written.
        self.rows, self.images = (
            torch.empty(
                self.num_runs, self.capacity, size, dtype=operator.dtype, device=operator.device
            )
            for _ in range(2)
        )
        self.projected: _Array = np.zeros((self.num_runs, self.capacity, self.capacity))
        self.filled = 0
        self.given = 0  # rows whose images came with the start
        self.products = 0
        self.results: list[EigenResult | None] = [None] * self.num_runs

    # -- the loop -------------------------------------------------------------------------------

    def run(
        self, starts: list[Start | None], callback: Callable[[EigenResult], None] | None
    ) -> list[EigenResult]:
        with full_precision(self.operator.device):  # the basis is matrix products too
            return self._run(starts, callback)

    def _run(
        self, starts: list[Start | None], callback: Callable[[EigenResult], None] | None
    ) -> list[EigenResult]:
        queue, lengths, known = self._queue(starts)
        candidate = queue[:, 0]
        scale = np.zeros(self.num_runs)
        fewest = int(lengths.min())
        while True:
            finite = self._extend(candidate)
            self._settle(~finite, EigenStatus.NOT_FINITE)
            if self._all_settled():
                return self._settled()
            if self.products < min(fewest, self.limit) and self.filled < self.capacity:
                candidate = queue[:, self.products]
                continue
            values, coefficients = self._ritz_pairs()
            found = min(self.k + 2, self.filled)
            judged = min(len(self.tolerances), found)
            residuals, norms = self._residuals(values, coefficients, found)
            scale = np.maximum(scale, np.abs(values).max(axis=1))
            floor = _ROUNDING * torch.finfo(self.operator.dtype).eps * scale[:, None]
            errors = self._error_estimates(values, norms, known)
            # A spare pair is held against the last one asked for: its own value may be near zero.
            against = np.abs(values[:, np.minimum(np.arange(judged), self.k - 1)])
            closed = norms[:, :judged] <= np.maximum(self.tolerances[:judged] * against, floor)
            if self.accuracy is not None:
                asked = np.abs(values[:, : self.k])
                closed[:, : self.k] |= errors * _SAFETY <= self.accuracy * asked
            # A start is used whole before its matrix may converge: its vectors were put there to
            # keep an eigenvalue from being missed.
            ready = self.products >= lengths
            lost = self._lost(values, known, lengths)
            complete = found >= len(self.tolerances)
            done = ready & closed.all(axis=1) if complete else np.zeros(self.num_runs, bool)
            last = np.full(self.num_runs, self.products >= self.limit)
            spent = np.full(self.num_runs, self.filled == self.operator.size)
            state = (values, coefficients, norms, errors)
            if callback is not None:
                callback(self._result(0, EigenStatus.MAX_PRODUCTS, *state))
            self._settle(lost, EigenStatus.LOST, *state)
            self._settle(done, EigenStatus.CONVERGED, *state)
            self._settle(spent, EigenStatus.EXHAUSTED, *state)
            self._settle(last, EigenStatus.MAX_PRODUCTS, *state)
            if self._all_settled():
                return self._settled()
            candidate = self._next_directions(queue, lengths, residuals, closed, norms, floor)
            if self.filled == self.capacity:
                self._restart(coefficients[:, :, : max(self.k + 2, self.capacity // 3)])

    def _queue(self, starts: list[Start | None]) -> tuple[Tensor, _Array, _Array]:
        """Start vectors ``(R, j, P)``, how many of them are real, and known eigenvalues.

        Vectors whose images are given are the first of the basis, and not among them.
        """
        given = [
            0
            if start is None or start.images is None
            else min(start.images.shape[1], start.vectors.shape[1] - 1)
            for start in starts
        ]
        # At least one vector is left to go on from.
        self.given = ready = min(self.capacity - 1, *given)
        for start, rows, products in zip(starts, self.rows, self.images, strict=True):
            if ready and start is not None and start.images is not None:
                rows[:ready], products[:ready] = start.vectors.T[:ready], start.images.T[:ready]
        for _ in range(ready):
            self._project()
        blocks, known = [], []
        for start in starts:
            if start is None:
                draws = [_gaussian(self.operator, self.generator) for _ in range(self.k)]
                blocks.append(torch.stack(draws))
                known.append(np.empty(0))
            else:
                blocks.append(start.vectors.T[ready:])
                known.append(self.sign * start.known.double().cpu().numpy())
        room = self.capacity - self.filled
        lengths = np.array([min(len(block), room) for block in blocks])
        queue = self.rows.new_empty(len(blocks), int(lengths.max()), self.operator.size)
        table = np.full((len(blocks), max(len(values) for values in known)), -np.inf)
        for index, (block, values) in enumerate(zip(blocks, known, strict=True)):
            queue[index, : lengths[index]] = block[: lengths[index]]
            table[index, : len(values)] = values
        return queue, lengths, table

    def _next_directions(
        self,
        queue: Tensor,
        lengths: _Array,
        residuals: Tensor,
        closed: _Array,
        norms: _Array,
        floor: _Array,
    ) -> Tensor:
        """What extends each basis: its start while that lasts, then the residual of an open pair.

        A pair that has converged to rounding has none to offer; a random direction takes its place.
        """
        pairs = closed.argmin(axis=1)  # the first that is open, or 0
        runs = np.arange(self.num_runs)
        exhausted = ~(norms[runs, pairs] > floor[:, 0] / _ROUNDING)
        if (pairs == pairs[0]).all() and not exhausted.any() and self.products >= lengths.max():
            return residuals[:, int(pairs[0])]
        directions = []
        for run in range(self.num_runs):
            if self.products < lengths[run]:
                directions.append(queue[run, self.products])
            elif self.results[run] is None and exhausted[run]:
                directions.append(_gaussian(self.operator, self.generator))
            else:
                directions.append(residuals[run, int(pairs[run])])
        return torch.stack(directions)

    # -- the basis ------------------------------------------------------------------------------

    def _extend(self, candidate: Tensor) -> _Flags:
        """Add a direction and its product to every basis; False where a product is not finite."""
        rows = self._orthonormalised(candidate)
        shaped = rows if self.operator.num_runs is not None else rows[0]
        images = self.operator.matvec(shaped).view_as(rows)
        self.products += 1
        self.rows[:, self.filled], self.images[:, self.filled] = rows, images
        return self._project()

    def _project(self) -> _Flags:
        """Take the next row and its image in use; False where they are not finite."""
        m = self.filled
        column: _Array = inner_products(self.rows[:, : m + 1], self.images[:, m]).cpu().numpy()
        finite: _Flags = np.isfinite(column.sum(axis=1))
        column[~finite] = 0
        self.projected[:, m, : m + 1] = self.projected[:, : m + 1, m] = column
        self.filled = m + 1
        return finite

    def _orthonormalised(self, vectors: Tensor) -> Tensor:
        """Unit vectors orthogonal to the bases, to rounding.

        A pass of Gram and Schmidt leaves errors of rounding times the length before it over the
        length after it. So where a pass takes away little the vector is orthogonal, and where it
        takes away much another one is needed, at most one (Daniel, Gragg, Kaufman and Stewart 1976;
        "twice is enough", Parlett 1998, §6.9), unless the vector lay in the span.
        """
        running = [run for run, result in enumerate(self.results) if result is None]
        smallest = 1e2 * torch.finfo(vectors.dtype).eps
        for _ in range(10):
            vectors, _ = self._normalised(vectors)
            if self.filled == 0:
                return vectors
            share = np.ones(self.num_runs)
            for _ in range(3):
                vectors, lengths = self._normalised(self._without_basis(vectors))
                left = lengths.cpu().numpy()
                share *= left
                if (left[running] > _ENOUGH).all():
                    break
            empty = [run for run in running if not (share[run] > smallest and left[run] > _ENOUGH)]
            if not empty:
                return vectors
            for run in empty:  # nothing but rounding was left
                vectors[run] = _gaussian(self.operator, self.generator)
        raise RuntimeError(
            f"no direction orthogonal to {self.filled} vectors of length {vectors.shape[1]} found"
        )

    @staticmethod
    def _normalised(vectors: Tensor) -> tuple[Tensor, Tensor]:
        # In float64, because the squares of tiny and of huge float32 numbers have no place there.
        norms = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
        return vectors / norms[:, None].to(vectors.dtype), norms

    def _without_basis(self, vectors: Tensor) -> Tensor:
        if self.filled == 0:
            return vectors
        rows = self.rows[:, : self.filled]
        overlap = inner_products(rows, vectors).to(rows.dtype)
        return torch.baddbmm(vectors[:, None, :], overlap[:, None, :], rows, alpha=-1)[:, 0]

    def _ritz_pairs(self) -> tuple[_Array, _Array]:
        """Ritz values of sign × H, descending, and their coefficients in columns."""
        small = self.sign * self.projected[:, : self.filled, : self.filled]
        values, coefficients = np.linalg.eigh(small)
        return values[:, ::-1].copy(), coefficients[:, :, ::-1].copy()

    def _residuals(self, values: _Array, coefficients: _Array, found: int) -> tuple[Tensor, _Array]:
        leading = coefficients[:, :, :found]
        both = np.stack([leading, leading * (self.sign * values[:, None, :found])])
        of_images, of_rows = self._weights(both)  # one copy to the device
        residuals = torch.bmm(of_images, self.images[:, : self.filled])
        residuals = torch.baddbmm(residuals, of_rows, self.rows[:, : self.filled], alpha=-1)
        norms = torch.linalg.vector_norm(residuals, dim=2, dtype=torch.float64)
        return residuals, norms.cpu().numpy()

    def _error_estimates(self, values: _Array, norms: _Array, known: _Array) -> _Array:
        """The smaller of the two bounds for each of the k leading values, with the best c."""
        tried = norms.shape[1]
        mu = np.full((self.num_runs, tried), -np.inf)
        mu[:, : values.shape[1] - 1] = values[:, 1 : tried + 1]
        width = min(tried, known.shape[1] - 1)
        if width > 0:
            mu[:, :width] = np.maximum(mu[:, :width], known[:, 1 : width + 1])
        asked = min(self.k, values.shape[1])
        squares = norms**2
        sums = np.cumsum(squares, axis=1)
        # [run, i, c]: of the i-th value, from the first c + 1 residuals
        theta = values[:, :asked, None]
        usable = np.arange(tried) >= np.arange(asked)[:, None]
        cluster = _ratio(sums[:, None], np.where(usable, theta - mu[:, None], 0))
        raised = _ratio(sums, values[:, :tried] - mu)
        gaps = np.where(usable, theta - (raised + np.maximum(mu, -_HUGE))[:, None], 0)
        rho = _ratio(np.where(usable, sums[:, None] - sums[:, :asked, None], 0), gaps)
        apart = np.ones((self.num_runs, asked, 1))
        apart[:, : values.shape[1] - 1, 0] = -np.diff(values)[:, :asked]
        alone = _ratio(_ratio(squares[:, :asked, None], gaps), 1 - _ratio(rho, apart))
        best: _Array = np.minimum(cluster, alone).min(axis=2)
        return best

    def _lost(self, values: _Array, known: _Array, lengths: _Array) -> _Flags:
        """Which searches have just used their start and found that it says too little."""
        whole = lengths + self.given
        judged = (lengths == self.products) & (whole >= self.k) & (whole < known.shape[1])
        # A basis of the whole space lacks nothing.
        if self.accuracy is None or not judged.any() or self.filled == self.operator.size:
            return np.zeros(self.num_runs, bool)
        beyond = known[np.arange(self.num_runs), np.where(judged, whole, 0)]
        before = np.where(np.isfinite(known), known, 0)[:, : self.k, None]
        started = torch.from_numpy(self.sign * before).to(self.rows)
        change = self.images[:, : self.k] - started * self.rows[:, : self.k]
        drift = change.double().norm(dim=2).amax(dim=1).cpu().numpy()
        lost: _Flags = judged & (beyond + drift >= values[:, self.k - 1])
        return lost

    def _restart(self, coefficients: _Array) -> None:
        """Keep the span of the given Ritz vectors only; no product is spent."""
        keep = coefficients.shape[2]
        small = self.projected[:, : self.filled, : self.filled]
        kept = coefficients.transpose(0, 2, 1) @ small @ coefficients
        for vectors in (self.rows, self.images):
            vectors[:, :keep] = self._combine(coefficients, vectors)
        self.projected[:] = 0
        self.projected[:, :keep, :keep] = kept
        self.filled = keep

    def _combine(self, coefficients: _Array, vectors: Tensor) -> Tensor:
        return torch.bmm(self._weights(coefficients), vectors[:, : self.filled])

    def _weights(self, coefficients: _Array) -> Tensor:
        """Coefficients in columns as rows on the device."""
        return torch.from_numpy(np.ascontiguousarray(coefficients.swapaxes(-1, -2))).to(self.rows)

    # -- results --------------------------------------------------------------------------------

    def _settle(self, which: _Flags, status: EigenStatus, *state: Any) -> None:
        for run in np.flatnonzero(which):
            if self.results[run] is None:
                self.results[run] = self._result(int(run), status, *state)

    def _result(self, run: int, status: EigenStatus, *state: Any) -> EigenResult:
        k = self.k
        if not state:  # a product was not finite
            nothing = np.empty((1, 0))
            values, norms, errors, coefficients = nothing, nothing, nothing, np.empty((1, 0, 0))
            rows, run = self.rows[:1, :0], 0
        else:
            values, coefficients, norms, errors = state
            rows = self.rows
        kept = np.ascontiguousarray(coefficients[run, :, : k + _SPARE].T)
        leading = torch.from_numpy(kept).to(rows)
        subspace = leading @ rows[run, : leading.shape[1]]
        lost = status is EigenStatus.LOST
        images = (leading @ self.images[run, : leading.shape[1]]).T if lost else None
        return EigenResult(
            values=_padded(torch.from_numpy(self.sign * values[run, :k]), k),
            vectors=_padded(subspace[:k], k).T,
            residual_norms=_padded(torch.from_numpy(norms[run, :k].copy()), k),
            error_estimates=_padded(torch.from_numpy(errors[run, :k].copy()), k),
            num_products=self.products,
            status=status,
            subspace=subspace.T,
            subspace_values=torch.from_numpy(self.sign * values[run, : k + _SPARE]),
            images=images,
        )

    def _all_settled(self) -> bool:
        return all(result is not None for result in self.results)

    def _settled(self) -> list[EigenResult]:
        return [result for result in self.results if result is not None]


def power_iteration(
    operator: SymmetricOperator,
    *,
    start: Tensor | None = None,
    rtol: float = 1e-4,
    max_products: int = 1000,
    seed: int = 0,
    callback: Callable[[EigenResult], None] | None = None,
) -> EigenResult:
    """The eigenvalue of largest *magnitude* by power iteration: for teaching, not for measuring.

    x ← Hx/‖Hx‖. It finds the sharpness only where |λ_max| > |λ_min|; the error shrinks by
    (λ₂/λ₁)² a product, which is slow; and it stops too early where the stop is a small change of
    the Rayleigh quotient. Here the stop is the residual, as in `lanczos`.

    Args:
        operator: size P.
        start: ``(P,)``; default Gaussian, drawn from ``seed``.
        rtol: converged when ‖Hx − θx‖ ≤ rtol × |θ|.
        max_products: give up after so many.
        seed: seed of the default start.
        callback: called with the result so far after every product.

    Raises:
        ValueError: the start has the wrong shape, the tolerance is not in (0, 1), or
            ``max_products`` is below 1.
    """
    refuse_other(operator)
    if operator.num_runs is not None:
        raise ValueError("the operator stands for several matrices; use lanczos_together")
    rtol, max_products = _tolerance("rtol", rtol), a_whole_number("max_products", max_products)
    if callback is not None:
        a_function("callback", callback, "it is called with the result so far")
    given = _as_start(start, operator)
    generator = torch.Generator().manual_seed(a_generator_seed(seed))
    if given is not None and given.vectors.shape[1] != 1:
        raise ValueError(
            f"expected one start vector, ({operator.size},), got {given.vectors.shape[1]} of them"
        )
    draw = _gaussian(operator, generator) if given is None else given.vectors[:, 0]
    vector = draw / _norm(draw)
    for products in range(1, max_products + 1):
        image = operator.matvec(vector)
        value = float(vector @ image)
        norm = _norm(image - value * vector)
        if not np.isfinite(norm):
            status = EigenStatus.NOT_FINITE
        elif norm <= rtol * abs(value):
            status = EigenStatus.CONVERGED
        else:
            status = EigenStatus.MAX_PRODUCTS
        result = EigenResult(
            values=torch.tensor([value], dtype=torch.float64),
            vectors=vector[:, None],
            residual_norms=torch.tensor([norm], dtype=torch.float64),
            error_estimates=torch.tensor([norm], dtype=torch.float64),
            num_products=products,
            status=status,
            subspace=vector[:, None],
            subspace_values=torch.tensor([value], dtype=torch.float64),
        )
        if callback is not None:
            callback(result)
        if status is not EigenStatus.MAX_PRODUCTS:
            break
        vector = image / _norm(image)
    return result


def _norm(vector: Tensor) -> float:
    """In float64, because the squares of tiny and of huge float32 numbers have no place there."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def scipy_eigsh(
    operator: SymmetricOperator,
    k: int = 1,
    *,
    which: str = "largest_algebraic",
    tol: float = 1e-6,
    seed: int = 0,
) -> EigenResult:
    """The k leading eigenpairs by SciPy's ``eigsh`` (ARPACK): an independent reference.

    Every product crosses from NumPy to torch and back, and k must be below P.

    Raises:
        ValueError: k, which or tol is wrong.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    codes = {"largest_algebraic": "LA", "smallest_algebraic": "SA"}
    refuse_other(operator)
    k = a_whole_number("k", k, most=operator.size - 1)
    if which not in tuple(codes):
        raise ValueError(f"which must be one of {', '.join(codes)}, got {shown(which)}")
    tol = a_number("tol", tol)
    if not 0 <= tol < 1:
        raise ValueError(f"tol must lie in [0, 1), got {tol}")
    before = operator.num_products
    draw = _gaussian(operator, torch.Generator().manual_seed(a_generator_seed(seed)))
    status = EigenStatus.CONVERGED
    try:
        values, vectors = eigsh(
            operator.to_scipy(), k=k, which=codes[which], tol=tol, v0=draw.cpu().numpy()
        )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
        status = EigenStatus.MAX_PRODUCTS
    order = np.argsort(values)[:: -1 if which == "largest_algebraic" else 1].copy()
    columns = torch.from_numpy(vectors[:, order]).to(operator.device, operator.dtype)
    found = torch.from_numpy(np.asarray(values, dtype=np.float64)[order])
    spent = operator.num_products - before
    norms = torch.tensor(
        [
            float((operator.matvec(x) - float(v) * x).double().norm())
            for v, x in zip(found, columns.T, strict=True)
        ],
        dtype=torch.float64,
    )
    return EigenResult(
        values=_padded(found, k),
        vectors=_padded(columns.T, k).T,
        residual_norms=_padded(norms, k),
        error_estimates=_padded(norms, k),
        num_products=spent,
        status=status,
        subspace=columns,
        subspace_values=found,
    )


def _ratio(above: _Array, below: _Array) -> _Array:
    """Above / below, and infinite where below is not positive, or infinite itself."""
    usable = (below > 0) & (below < np.inf)
    quotient: _Array = np.where(usable, above / np.where(usable, below, 1), np.inf)
    return quotient


def _tolerance(name: str, value: float) -> float:
    if not 0 < a_number(name, value) < 1:
        raise ValueError(f"{name} must lie in (0, 1), got {value}")
    return float(value)


def _gaussian(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    # Drawn on the CPU, so that one seed means the same start on every device.
    draw = torch.randn(operator.size, generator=generator, dtype=torch.float64, device="cpu")
    return draw.to(operator.device, operator.dtype)


def _as_start(start: Tensor | Start | None, operator: SymmetricOperator) -> Start | None:
    if start is None or isinstance(start, Start):
        return start
    block = start[:, None] if a_tensor("start", start).ndim == 1 else start
    if block.ndim != 2 or block.shape[0] != operator.size or block.shape[1] < 1:
        raise ValueError(
            f"start must have shape ({operator.size},) or ({operator.size}, j), "
            f"got {tuple(start.shape)}"
        )
    block = block.detach().to(operator.device, operator.dtype)
    usable = block[:, block.abs().amax(dim=0) > 0]
    if usable.shape[1] == 0 or not bool(torch.isfinite(block).all()):
        raise ValueError("start holds no usable vector: all are zero, or some are not finite")
    return Start(usable, torch.empty(0))


def _padded(rows: Tensor, k: int) -> Tensor:
    """Rows up to k, those that were not found being NaN."""
    if len(rows) == k:
        return rows
    return torch.cat([rows, rows.new_full((k - len(rows), *rows.shape[1:]), torch.nan)])
