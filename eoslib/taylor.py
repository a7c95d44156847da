r"""The quadratic Taylor model of a loss: what the loss would be if its Hessian did not change.

.. math:: q(\theta) = L(\theta_0) + g^\top d + \tfrac12 d^\top H d, \qquad
          d = \theta - \theta_0, \quad g = \nabla L(\theta_0), \quad H = \nabla^2 L(\theta_0)

`eoslib.train` trains on it as on the loss itself, so a run and its quadratic twin differ in nothing
but the function. Along an eigenvector of H with eigenvalue a, gradient descent multiplies the
distance from the model's stationary point by 1 − ηa at every step, for ever: above 2/η the model
explodes (Cohen et al. 2021, appendix on the quadratic approximation).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eoslib._arguments import a_tensor, an_objective
from eoslib.linops import SymmetricOperator
from eoslib.numerics import digest

if TYPE_CHECKING:
    from eoslib.objective import Objective

__all__ = ["TaylorQuadratic"]


class TaylorQuadratic:
    """q(θ) around θ₀, with the interface of an `Objective` that training needs.

    Attributes:
        initial_point: θ₀, ``(P,)``.
        num_parameters: P.
        num_examples: of the loss that is modelled.
        loss: the `eoslib.losses.Loss` of the loss that is modelled.
        device: where everything is computed.
        dtype: of θ.
        num_gradients: gradients of q computed so far.
        num_products: products with the frozen Hessian so far.

    Cost: at θ₀ one gradient; then each value or gradient of q is one Hessian-vector product. With a
    single chunk the graph of the gradient at θ₀ lives as long as the model.
    """

    def __init__(self, objective: Objective, theta: Tensor) -> None:
        """Expand ``objective`` at ``theta``, ``(P,)``.

        Raises:
            ValueError: θ has another shape.
        """
        an_objective(objective)
        if a_tensor("theta", theta).shape != (objective.num_parameters,):
            raise ValueError(
                f"expected theta of shape ({objective.num_parameters},), got {tuple(theta.shape)}"
            )
        self._objective, self._frozen = objective, objective.hessian(theta)
        self.device, self.dtype, self.loss = objective.device, objective.dtype, objective.loss
        self.num_parameters, self.num_examples = objective.num_parameters, objective.num_examples
        self.initial_point = theta.detach().to(self.device, self.dtype).clone()
        self.num_gradients: float = 0

    @property
    def num_products(self) -> int:
        """Products with the frozen Hessian so far."""
        return self._frozen.num_products

    def value(self, theta: Tensor) -> Tensor:
        """q(θ), 0-d, or ``(R,)`` for R points."""
        return self.value_and_gradient(theta)[0]

    def gradient(self, theta: Tensor) -> Tensor:
        """∇q(θ) = g + H d, of θ's shape."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """q(θ), 0-d or ``(R,)``, and ∇q(θ), of θ's shape: both from the one product H d."""
        if theta.ndim not in (1, 2) or theta.shape[-1] != self.num_parameters:
            raise ValueError(
                f"expected theta of shape ({self.num_parameters},), got {tuple(theta.shape)}"
            )
        shift = theta.to(self.device, self.dtype) - self.initial_point
        bent = self._frozen.matvec(shift) if shift.ndim == 1 else self._frozen.matmat(shift.T).T
        slope = self._frozen.gradient
        self.num_gradients += 1
        return self._frozen.value + (shift * (slope + bent / 2)).sum(dim=-1), slope + bent

    def digests(self) -> dict[str, str]:
        """Those of the loss that is modelled, and of θ₀; see `Objective.digests`."""
        return self._objective.digests() | {"parameters expanded at": digest(self.initial_point)}

    def hessian(self, theta: Tensor) -> QuadraticHessian:
        """H, the same at every θ ``(P,)`` or ``(R, P)``, with q and ∇q at θ."""
        return QuadraticHessian(self._frozen, *self.value_and_gradient(theta))


class QuadraticHessian(SymmetricOperator):
    """The frozen Hessian as the operator at one θ, or at R of them side by side.

    Attributes:
        value: q(θ), 0-d or ``(R,)``.
        gradient: ∇q(θ), of θ's shape.
    """

    def __init__(self, frozen: SymmetricOperator, value: Tensor, gradient: Tensor) -> None:
        """Wrap the frozen Hessian; no product is spent."""
        self._frozen, self.value, self.gradient = frozen, value, gradient
        super().__init__(
            None,
            frozen.size,
            dtype=frozen.dtype,
            device=frozen.device,
            num_runs=len(gradient) if gradient.ndim == 2 else None,
        )

    def _multiply(self, vector: Tensor) -> Tensor:
        if vector.ndim == 1:
            return self._frozen.matvec(vector)
        return torch.stack([self._frozen.matvec(row) for row in vector])
