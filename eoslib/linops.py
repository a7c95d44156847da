"""Symmetric linear operators: what an eigensolver sees of a Hessian.

An operator is a size, a dtype, a device and a product. It counts its products, because products
are what measuring sharpness costs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["SymmetricOperator"]


class SymmetricOperator:
    """A symmetric matrix A ∈ R^{P×P} known through its products.

    Attributes:
        size: P.
        dtype: dtype of the vectors it takes and returns.
        device: where they live.
        num_products: products computed so far.
    """

    def __init__(
        self,
        product: Callable[[Tensor], Tensor],
        size: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """Wrap ``product``, which maps ``(P,)`` to ``(P,)``."""
        self._product = product
        self.size = size
        self.dtype = dtype
        self.device = torch.device(device)
        self.num_products = 0

    @classmethod
    def from_dense(cls, matrix: Tensor) -> SymmetricOperator:
        """Wrap a dense symmetric matrix of shape ``(P, P)``.

        Raises:
            ValueError: the matrix is not square, or not symmetric to rounding.
        """
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"expected a square matrix, got shape {tuple(matrix.shape)}")
        scale = matrix.abs().max()
        if bool((matrix - matrix.T).abs().max() > 1e-5 * scale):
            raise ValueError("expected a symmetric matrix, got one that differs from its transpose")
        return cls(matrix.mv, matrix.shape[0], dtype=matrix.dtype, device=matrix.device)

    def matvec(self, vector: Tensor) -> Tensor:
        """Return A v for a vector v of shape ``(P,)``.

        Raises:
            ValueError: the vector has another shape.
        """
        if vector.shape != (self.size,):
            raise ValueError(
                f"expected a vector of shape ({self.size},), got {tuple(vector.shape)}"
            )
        self.num_products += 1
        return self._product(vector.to(self.device, self.dtype))

    __matmul__ = matvec
