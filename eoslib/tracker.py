"""The sharpness during training, a few products a measurement.

Three observations make it cheap:

* Between two measurements the top eigenvectors turn little, so a search may begin with them.
* At the edge of stability the iterate hops from one side of a valley to the other, and the
  eigenvectors with it; but every second iterate is nearly the same. So a search begins with the
  vectors of whichever of the last two measurements was made *nearest* to the current θ. (On digits
  at the edge, measured at every step, the cosine between successive top eigenvectors was 0.93, and
  between every second ones 0.997.)
* An eigenvalue is far more accurate than its eigenvector, so the search stops by the estimated
  error of the eigenvalue (see `eoslib.eigen`).

Three things guard against following the wrong eigenvector. The search carries one or two Ritz
vectors more than it reports, so that when the next eigenvalue overtakes, it is already there. Of
the two measurements that are remembered, each tells the other what it lacks: a direction in which
the other one found as large a curvature. (Without this, in a cluster of four eigenvalues of the
digits' Hessian, every second measurement followed the second one, up to one percent too low, while
those between them knew the first.) And there are thorough searches, because what came up from
further below is invisible to a start without any component along it. They begin with random
vectors, and end by residuals, those of a spare pair among them. Every so many measurements one
begins with random vectors alone, and what it finds is the nearest measurement. Whenever the Hessian
has changed so much that something from below may have come up (`EigenStatus.LOST`), the search goes
on from what it has, with a random vector added.

What slips through: where a symmetry splits the Hessian into blocks exactly, no product leads from
one block to another, and the top eigenvalue may pass to a block that the start does not touch. Then
it is found at the next search from random vectors alone, up to ``cold_every`` measurements late.
(An odd target, zero biases: on T₃ the biases are such a block, and the sharpness was a tenth too
low for a thousand steps.) With ``cold_every=1`` nothing can hide, at some five times the products.
In ten dimensions and fewer, where symmetries are the rule and products few, every search takes a
product for each dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eoslib._arguments import a_generator_seed, a_number, a_tensor, a_whole_number, an_objective
from eoslib.eigen import EigenResult, EigenStatus, Start, lanczos_together
from eoslib.linops import SymmetricOperator

if TYPE_CHECKING:
    from eoslib.objective import Hessian, Objective
    from eoslib.taylor import QuadraticHessian, TaylorQuadratic

__all__ = ["SharpnessTracker"]

#: A second spare Ritz vector is carried while its value is at least this share of the last reported
#: one's: clusters of eigenvalues near the edge exchange places from one measurement to the next.
_CLUSTER = 0.9

#: How far the spare pair of a thorough search must have converged. (Along 21 runs beyond their edge
#: 0.1 was wrong twice as often, and 0.01 no less often.)
_SPARE_RTOL = 0.03

#: With so many parameters every search spans the whole space. (Of a chain of three equal weights
#: the start held the two leading eigenvectors to the last digit while the third one's eigenvalue
#: overtook.)
_FEW = 10

#: What the other measurement found is taken over where its value is at least this share, and this
#: much of its length is missing.
_AS_LARGE = 0.98
_MISSING = 0.3


@dataclass
class _Memory:
    """One measurement of one run: where, and what was found."""

    theta: Tensor
    vectors: Tensor
    known: Tensor


class SharpnessTracker:
    """The k largest Hessian eigenvalues along training, each search started from an earlier one.

    Attributes:
        objective: whose Hessian.
        k: how many eigenvalues are tracked now.
        max_k: how many are reported; those beyond k as NaN.
        last: the last `EigenResult`, or ``None``; with several runs, a list of them.
        num_products: products spent so far; a product for several runs at once counts once.
        unconverged: how many measurements did not converge; they are recorded as NaN.
    """

    def __init__(
        self,
        objective: Objective | TaylorQuadratic,
        k: int = 1,
        *,
        rtol: float = 1e-3,
        cold_every: int = 50,
        grow_above: float | None = None,
        max_k: int | None = None,
        max_products: int | None = None,
        seed: int = 0,
    ) -> None:
        """Track the k largest eigenvalues of ``objective``.

        Args:
            objective: whose Hessian.
            k: how many.
            rtol: relative accuracy of each eigenvalue.
            cold_every: every so many measurements search from random vectors alone as well.
            grow_above: track one eigenvalue more from the next measurement on whenever the smallest
                one tracked is above this, for instance above 1.5/η; at most ``max_k``. Of several
                runs one is enough, and all are tracked alike.
            max_k: how many to report; needed with ``grow_above``, and equal to k without.
            max_products: per search; see `lanczos`.
            seed: seed of the random vectors.

        Raises:
            ValueError: an argument is of another type or out of its range, one of ``grow_above``
                and ``max_k`` is given without the other, or ``max_k`` is below k.
        """
        an_objective(objective)
        k = a_whole_number("k", k)
        cold_every = a_whole_number("cold_every", cold_every)
        seed = a_generator_seed(seed)
        rtol = a_number("rtol", rtol)
        if not 0 < rtol < 1:
            raise ValueError(f"rtol must lie in (0, 1), got {rtol}")
        if max_products is not None:
            max_products = a_whole_number("max_products", max_products)
        if (grow_above is None) != (max_k is None):
            raise ValueError("grow_above and max_k belong together; give both or neither")
        if grow_above is not None and max_k is not None:
            grow_above = a_number("grow_above", grow_above, nan=False)
            max_k = a_whole_number("max_k", max_k)
            if max_k < k:
                raise ValueError(f"max_k must be at least k = {k}, got {max_k}")
        self._settings = {
            "k": k,
            "rtol": rtol,
            "cold_every": cold_every,
            "grow_above": grow_above,
            "max_k": max_k,
            "max_products": max_products,
            "seed": seed,
        }
        self.objective = objective
        self.k = min(k, objective.num_parameters)
        self.max_k = min(max_k or k, objective.num_parameters)
        self._grow_above = torch.inf if grow_above is None else grow_above
        self._rtol = rtol
        self._cold_every = cold_every
        self._max_products = max_products
        self._seed = seed
        self._count = 0
        self._memories: list[list[_Memory]] = []
        self.last: EigenResult | list[EigenResult] | None = None
        self.num_products = 0
        self.unconverged = 0

    def __call__(
        self,
        theta: Tensor,
        hessian: Hessian | QuadraticHessian | None = None,
        *,
        preconditioner: Tensor | None = None,
    ) -> Tensor:
        """The largest eigenvalues at θ, descending; NaN where the search did not converge.

        Args:
            theta: ``(P,)``, or ``(R, P)`` for R runs, on any device.
            hessian: the objective's Hessian at θ if the caller has it already, as a training step
                has: it holds the gradient's graph.
            preconditioner: the diagonal of D, of θ's shape, for the eigenvalues of D⁻¹H. The
                eigenvectors in `last` are then those of D^{-1/2} H D^{-1/2}.

        Returns:
            ``(max_k,)``, or ``(R, max_k)``, float64.
        """
        results = self.solve(theta, hessian, preconditioner=preconditioner)
        if isinstance(results, EigenResult):
            return self._values(results)
        return torch.stack([self._values(result) for result in results])

    def solve(
        self,
        theta: Tensor,
        hessian: Hessian | QuadraticHessian | None = None,
        *,
        preconditioner: Tensor | None = None,
    ) -> EigenResult | list[EigenResult]:
        """Measure at θ; the result, or one for each run, is kept in `last`."""
        theta = a_tensor("theta", theta).detach().to(self.objective.device)
        points = theta[None] if theta.ndim == 1 else theta
        operator: SymmetricOperator = hessian or self.objective.hessian(theta)
        if preconditioner is not None:
            operator = operator.preconditioned(preconditioner)
        if len(self._memories) != len(points):
            self._memories = [[] for _ in points]
        before = operator.num_products
        near = [
            _nearest(memories, point)
            for memories, point in zip(self._memories, points, strict=True)
        ]
        starts = [
            None if memory is None else self._start(memory, memories)
            for memory, memories in zip(near, self._memories, strict=True)
        ]
        few, due = operator.size <= _FEW, self._count % self._cold_every == 0
        if few or any(start is None for start in starts):
            results = self._search_thoroughly(operator, [None] * len(points) if few else starts)
        else:
            if due:
                starts = self._starts_anew(operator, points, starts)
            results = self._search(operator, starts, accuracy=self._rtol)
        lost = [run for run, result in enumerate(results) if result.status is EigenStatus.LOST]
        if lost:
            # At the largest step sizes this is the rule. The other runs have what they need, so
            # they take no part: another gradient is less than a dozen products.
            apart = len(lost) < len(results)
            part = operator
            if apart:
                part = self.objective.hessian(theta[lost])
                if preconditioner is not None:
                    part = part.preconditioned(preconditioner[lost])
            found = [results[run] for run in lost]
            again = [Start(one.subspace, torch.empty(0), one.images) for one in found]
            for run, result in zip(lost, self._search_thoroughly(part, again), strict=True):
                starts[run], results[run] = None, result
            self.num_products += part.num_products if apart else 0
        for run, (point, start, result) in enumerate(zip(points, starts, results, strict=True)):
            self._remember(run, point, start, result)
            self.unconverged += result.status is not EigenStatus.CONVERGED
        self._count += 1
        self.num_products += operator.num_products - before
        smallest = [float(result.values[-1]) for result in results]
        if self.k < self.max_k and any(value > self._grow_above for value in smallest):
            self.k += 1
        self.last = results if theta.ndim == 2 else results[0]
        return self.last

    def keep_runs(self, runs: list[int]) -> None:
        """Go on with these runs only, by their index; the others have ended."""
        if self._memories:
            self._memories = [self._memories[run] for run in runs]

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked of it, plain JSON."""
        return dict(self._settings)

    def state_dict(self) -> dict[str, Any]:
        """What it remembers and has counted, for a checkpoint; the tensors are shared."""
        several = isinstance(self.last, list)
        last = (
            [] if self.last is None else self.last if isinstance(self.last, list) else [self.last]
        )
        return {
            "k": self.k,
            "count": self._count,
            "num_products": self.num_products,
            "unconverged": self.unconverged,
            "memories": [[vars(memory) for memory in memories] for memories in self._memories],
            "last": [vars(result) | {"status": result.status.name} for result in last],
            "several": several,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the tracker went on whose state this is."""
        device = self.objective.device

        def result(stored: Mapping[str, Any]) -> EigenResult:
            placed = {name: stored[name].to(device) for name in ("vectors", "subspace")}
            return EigenResult(**{**stored, **placed, "status": EigenStatus[stored["status"]]})

        def memory(stored: Mapping[str, Any]) -> _Memory:
            placed = {name: stored[name].to(device) for name in ("theta", "vectors")}
            return _Memory(**{**stored, **placed})

        self.k, self._count = state["k"], state["count"]
        self.num_products, self.unconverged = state["num_products"], state["unconverged"]
        self._memories = [[memory(one) for one in memories] for memories in state["memories"]]
        last = [result(one) for one in state["last"]]
        self.last = last if state["several"] else last[0] if last else None

    def _values(self, result: EigenResult) -> Tensor:
        values = torch.full((self.max_k,), torch.nan, dtype=torch.float64)
        if result.status is EigenStatus.CONVERGED:
            values[: len(result.values)] = result.values
        return values

    def _search(
        self,
        operator: SymmetricOperator,
        starts: Sequence[Start | None],
        *,
        rtol: float = 1e-4,
        accuracy: float | None = None,
        spare_rtol: float | None = None,
    ) -> list[EigenResult]:
        return lanczos_together(
            _as_several(operator),
            self.k,
            starts=starts,
            rtol=rtol,
            accuracy=accuracy,
            spare_rtol=spare_rtol,
            max_products=self._max_products,
        )

    def _starts_anew(
        self, operator: SymmetricOperator, points: Tensor, starts: Sequence[Start | None]
    ) -> list[Start | None]:
        """Where to begin when a search from random vectors alone is due: at what it finds.

        A random vector added to warm ones would not do: where these have converged, the search
        ends before the random one has led anywhere.
        """
        found = self._search_thoroughly(operator, [None] * len(points))
        fresh = [self._memory_of(point, one) for point, one in zip(points, found, strict=True)]
        return [
            start if memory is None else self._start(memory, memories)
            for start, memory, memories in zip(starts, fresh, self._memories, strict=True)
        ]

    def _search_thoroughly(
        self, operator: SymmetricOperator, starts: Sequence[Start | None]
    ) -> list[EigenResult]:
        """Search from random vectors as well as the starts, or where there is none from them alone.

        It stops by residuals, which bound the error, because an unlucky draw may converge to the
        second pair before it sees the first. (Along 15 runs far above their edge a residual of
        1e-3 was as safe as 1e-4, for 13 % fewer products; 1e-2 was not.)
        """
        # Seeded by the measurement, so that a run draws the same whichever others it runs beside.
        generator = torch.Generator().manual_seed(self._seed + self._count)
        count = operator.size if operator.size <= _FEW else self.k + 1
        draw = torch.randn(
            (operator.size, count), generator=generator, dtype=torch.float64, device="cpu"
        )
        random = draw.to(operator.device, operator.dtype)
        joined = [
            Start(random, torch.empty(0))
            if start is None
            else replace(start, vectors=torch.cat([start.vectors, random[:, : self.k]], dim=1))
            for start in starts
        ]
        residual = min(max(self._rtol, 1e-4), 1e-3)
        return self._search(operator, joined, rtol=residual, spare_rtol=_SPARE_RTOL)

    def _start(self, memory: _Memory, memories: Sequence[_Memory]) -> Start:
        """Where to begin: at a memory, and with what the other one knows that it lacks."""
        vectors, known = memory.vectors, memory.known
        for other in memories:
            if other is not memory:
                # What it knows of the eigenvalues beyond those asked for bounds them here as well.
                known = _larger(known, other.known, beyond=self.k)
                count = min(self.k, other.vectors.shape[1])
                large = other.known[:count] > _AS_LARGE * known[self.k - 1]
                theirs = other.vectors[:, :count][:, large.to(vectors.device)]
                extra = _outside(vectors, theirs, _MISSING)
                if not extra.shape[1]:
                    continue
                vectors = torch.cat([vectors, extra], dim=1)
                # In the order of `known`, which the next one follows: a value for each vector.
                at = memory.vectors.shape[1]
                known = torch.cat(
                    [known[:at], known[at - 1 : at].expand(extra.shape[1]), known[at:]]
                )
        return Start(vectors, known)

    def _memory_of(self, point: Tensor, result: EigenResult) -> _Memory | None:
        """What to remember of a measurement, if it found anything."""
        if result.status is EigenStatus.NOT_FINITE or result.subspace.shape[1] < self.k:
            return None
        known = result.subspace_values
        carried = self.k + 1
        if len(known) > carried and known[carried] > _CLUSTER * known[self.k - 1]:
            carried += 1
        return _Memory(point.clone(), result.subspace[:, :carried], known)

    def _remember(self, run: int, point: Tensor, start: Start | None, result: EigenResult) -> None:
        memory = self._memory_of(point, result)
        if memory is None:
            return
        if start is not None:
            # A Ritz value of a vector that was not in the start may be far below the eigenvalue.
            memory.known = _larger(memory.known, start.known, beyond=start.vectors.shape[1])
        self._memories[run] = [*self._memories[run][-1:], memory]


def _larger(values: Tensor, others: Tensor, *, beyond: int) -> Tensor:
    """Of two lists the first, with the larger value in every place from ``beyond`` on."""
    larger = values.new_full((max(len(values), len(others)),), -torch.inf)
    larger[: len(values)] = values
    part = slice(beyond, len(others))
    larger[part] = torch.maximum(larger[part], others[part])
    return larger


def _outside(vectors: Tensor, others: Tensor, least: float) -> Tensor:
    """Of other unit vectors what lies outside the span of orthonormal ones, normalised.

    Those are left out of which no more than ``least`` is left.
    """
    left = others - vectors @ (vectors.T @ others)
    norms = torch.linalg.vector_norm(left, dim=0)
    kept: Tensor = (left / norms)[:, norms > least]
    return kept


def _nearest(memories: list[_Memory], point: Tensor) -> _Memory | None:
    """The measurement made nearest to this point, the later one on a tie."""
    distances = [float((point - memory.theta).norm()) for memory in memories]
    if not distances:
        return None
    return memories[-1 if distances[-1] <= min(distances) else 0]


def _as_several(operator: SymmetricOperator) -> SymmetricOperator:
    """A single matrix as R = 1 of them."""
    if operator.num_runs is not None:
        return operator
    return SymmetricOperator(
        lambda rows: operator.matvec(rows[0])[None],
        operator.size,
        dtype=operator.dtype,
        device=operator.device,
        num_runs=1,
    )
