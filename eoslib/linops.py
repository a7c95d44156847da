"""Symmetric linear operators: what an eigensolver sees of a Hessian.

An operator is a size, a dtype, a device and a product. It counts its products, because products
are what measuring sharpness costs. Operators can be added, scaled and preconditioned, and handed
to SciPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eoslib._arguments import a_tensor, shown

__all__ = ["SymmetricOperator", "plain_modes"]


@contextmanager
def plain_modes() -> Iterator[None]:
    """Leave the caller's ``torch.inference_mode()`` and ``torch.autocast``, and go back to them.

    In the first there is no autograd, and a derivative taken all the same may come out as zero; the
    second rounds matrix products to 8 or 11 bits, too few for curvature.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def refuse_other(operator: object) -> None:
    """Raise a ``ValueError`` where something else was given for an operator."""
    if isinstance(operator, Tensor | np.ndarray):
        raise ValueError(
            f"expected an operator, got a {type(operator).__name__}; wrap a dense symmetric matrix "
            "by SymmetricOperator.from_dense(matrix)"
        )
    if not isinstance(operator, SymmetricOperator):
        raise ValueError(
            f"expected an operator, got {shown(operator)}; an Objective has one at every point: "
            "objective.hessian(theta)"
        )


class SymmetricOperator:
    """A symmetric matrix A ∈ R^{P×P} known through its products; or R of them, side by side.

    Attributes:
        size: P.
        num_runs: R, when the operator stands for R independent matrices whose products are computed
            together (see `Objective.hessian` at several points); ``None`` for a single matrix.
        shape: of the vectors it takes and returns: ``(P,)``, or ``(R, P)``.
        dtype: dtype of those vectors.
        device: where they live.
        num_products: products computed so far. One product with R matrices counts once.
    """

    def __init__(
        self,
        product: Callable[[Tensor], Tensor] | None,
        size: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        num_runs: int | None = None,
        block_product: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Wrap ``product``, which maps ``(P,)`` to ``(P,)``, or ``(R, P)`` to ``(R, P)``.

        ``block_product`` maps the rows of ``(m, P)`` at once; by default they go one by one. A
        subclass may define `_multiply` instead of giving a product: an operator that held its own
        method would wait for the garbage collector, and its graph with it.
        """
        self._product = product
        self._block_product = block_product
        self.size = size
        self.num_runs = num_runs
        self.shape = (size,) if num_runs is None else (num_runs, size)
        self.dtype = dtype
        self.device = torch.device(device)
        self.num_products = 0

    @classmethod
    def from_dense(cls, matrix: Tensor) -> SymmetricOperator:
        """Wrap a dense symmetric matrix ``(P, P)``, or R of them, ``(R, P, P)``.

        Raises:
            ValueError: a matrix is empty, not real, not square, or not symmetric to rounding.
        """
        if not (isinstance(matrix, Tensor) and matrix.is_floating_point() and matrix.numel()):
            got = f"{matrix.dtype} {tuple(matrix.shape)}" if isinstance(matrix, Tensor) else matrix
            raise ValueError(f"expected a matrix of floating-point numbers, got {got}")
        if matrix.ndim not in (2, 3) or matrix.shape[-1] != matrix.shape[-2]:
            raise ValueError(f"expected a square matrix, got shape {tuple(matrix.shape)}")
        scale = matrix.abs().max()
        if bool((matrix - matrix.mT).abs().max() > 1e-5 * scale):
            raise ValueError("expected a symmetric matrix, got one that differs from its transpose")
        return cls(
            lambda vector: (matrix @ vector[..., None])[..., 0],
            matrix.shape[-1],
            dtype=matrix.dtype,
            device=matrix.device,
            num_runs=matrix.shape[0] if matrix.ndim == 3 else None,
            block_product=lambda rows: rows @ matrix.mT,
        )

    def matvec(self, vector: Tensor) -> Tensor:
        """Return A v for a vector v of shape ``(P,)``, or ``(R, P)`` for R matrices.

        Raises:
            ValueError: the vector has another shape.
        """
        if a_tensor("the vector", vector).shape != self.shape:
            raise ValueError(f"expected a vector of shape {self.shape}, got {tuple(vector.shape)}")
        self.num_products += 1
        return self._multiply(vector.to(self.device, self.dtype)).detach()

    __matmul__ = matvec

    def _multiply(self, vector: Tensor) -> Tensor:
        if self._product is None:
            raise NotImplementedError("give a product, or define _multiply")
        return self._product(vector)

    def _multiply_rows(self, rows: Tensor) -> Tensor:
        if self._block_product is not None:
            return self._block_product(rows)
        return torch.stack([self._multiply(row) for row in rows])

    def matmat(self, block: Tensor) -> Tensor:
        """Return A V for a block of m columns, ``(P, m)``; counts m products.

        Raises:
            ValueError: the block has another shape, or the operator stands for several matrices.
        """
        if self.num_runs is not None:
            raise ValueError("block products of several matrices at once are not supported")
        if a_tensor("the block", block).ndim != 2 or block.shape[0] != self.size:
            raise ValueError(f"expected a block ({self.size}, m), got {tuple(block.shape)}")
        rows = block.T.to(self.device, self.dtype)
        self.num_products += rows.shape[0]
        return self._multiply_rows(rows).detach().T

    def to_dense(self) -> Tensor:
        """The matrix itself, ``(P, P)``, by P products: for small P and for tests."""
        return self.matmat(torch.eye(self.size, dtype=self.dtype, device=self.device))

    def to_scipy(self) -> Any:
        """The operator as a ``scipy.sparse.linalg.LinearOperator``, for SciPy's solvers."""
        from scipy.sparse.linalg import LinearOperator

        def product(vector: np.ndarray) -> np.ndarray:
            return self.matvec(torch.from_numpy(vector.reshape(-1).copy())).cpu().numpy()

        numpy_dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return LinearOperator((self.size, self.size), matvec=product, dtype=numpy_dtype)

    def preconditioned(self, diagonal: Tensor) -> SymmetricOperator:
        """D^{-1/2} A D^{-1/2} for D = diag(diagonal), similar to D⁻¹A but symmetric.

        An optimizer that divides the gradient by a diagonal D, as RMSProp does, is stable on a
        quadratic as long as the largest eigenvalue of D⁻¹A is below its threshold.

        Args:
            diagonal: positive, of the operator's `shape`.

        Raises:
            ValueError: the diagonal has another shape or an entry that is not positive and finite.
        """
        if diagonal.shape != self.shape:
            raise ValueError(
                f"expected a diagonal of shape {self.shape}, got {tuple(diagonal.shape)}"
            )
        if not bool(((diagonal > 0) & torch.isfinite(diagonal)).all()):
            raise ValueError("a preconditioner must be positive and finite in every entry")
        scale = diagonal.to(self.device, self.dtype).rsqrt()
        return self._like(lambda vector: scale * self.matvec(scale * vector))

    def __add__(self, other: SymmetricOperator) -> SymmetricOperator:
        """A + B."""
        if (self.shape, self.dtype, self.device) != (other.shape, other.dtype, other.device):
            raise ValueError(
                f"operators of shape {self.shape}, {self.dtype} on {self.device} and "
                f"{other.shape}, {other.dtype} on {other.device} cannot be added"
            )
        return self._like(lambda vector: self.matvec(vector) + other.matvec(vector))

    def __mul__(self, factor: float) -> SymmetricOperator:
        """C A, for a number c."""
        return self._like(lambda vector: factor * self.matvec(vector))

    __rmul__ = __mul__

    def __neg__(self) -> SymmetricOperator:
        """−A."""
        return -1 * self

    def __sub__(self, other: SymmetricOperator) -> SymmetricOperator:
        """A − B."""
        return self + -other

    def _like(self, product: Callable[[Tensor], Tensor]) -> SymmetricOperator:
        return SymmetricOperator(
            product, self.size, dtype=self.dtype, device=self.device, num_runs=self.num_runs
        )
