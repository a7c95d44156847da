r"""All eigenvalues at once, roughly, from products with random vectors.

**Stochastic Lanczos quadrature.** A unit vector v with vᵀu_i = c_i carries the measure
Σ_i c_i² δ(λ − λ_i) on the eigenvalues of A. For v uniform on the sphere, E c_i² = 1/P: on average
the measure is the spectral density, every eigenvalue counting 1/P. m steps of the Lanczos method
from v give a tridiagonal T; its eigenvalues are the nodes, and the squared first components of its
eigenvectors the weights, of the m-point Gauss quadrature of that measure (Golub and Welsch 1969),

.. math:: \sum_{j=1}^m w_j\, x_j^k = v^\top A^k v \qquad \text{for } k = 0, \dots, 2m - 1 .

Averaged over probes v it estimates (1/P) Σ_i f(λ_i) for any f (Ubaru, Chen and Saad 2017; for
networks, Ghorbani, Krishnan and Xiao 2019). Two errors remain, and only the first shows in a
standard error: few probes, and few steps, which blur the spectrum over a distance of the order of
its range divided by m (Chen, Trogdon and Ubaru 2021).

**The trace** needs no steps: E vᵀAv = tr(A)/P (Girard 1987, Hutchinson 1990). Hutch++ takes the
large eigenvalues out first, and with them most of the variance (Meyer, Musco, Musco and Woodruff
2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from eoslib._arguments import a_generator_seed, a_number, a_tensor, a_whole_number
from eoslib.linops import SymmetricOperator, plain_modes, refuse_other
from eoslib.numerics import full_precision, inner_products

__all__ = [
    "Estimate",
    "SmoothedDensity",
    "SpectralDensity",
    "hutchinson_trace",
    "spectral_density",
    "trace",
]

#: Lanczos bases of one block of probes may fill so many bytes together.
_BASIS_BYTES = 2**28


class Estimate(NamedTuple):
    """A mean over random probes.

    Attributes:
        value: the mean.
        standard_error: of that mean, from the scatter of the probes; NaN for a single probe.
    """

    value: float
    standard_error: float


class SmoothedDensity(NamedTuple):
    """A spectral density drawn with a Gaussian at every node.

    Attributes:
        grid: ``(g,)`` float64, where it is evaluated; in the unit of the eigenvalues.
        values: ``(g,)`` float64, per unit of the eigenvalues; the integral over all reals is 1.
        width: standard deviation of the Gaussians.
    """

    grid: Tensor
    values: Tensor
    width: float


@dataclass(frozen=True)
class SpectralDensity:
    """The distribution of an operator's eigenvalues, each counting 1/P, as one quadrature a probe.

    Attributes:
        size: P.
        num_steps: Lanczos steps asked for, m.
        nodes: ``(num_probes, min(m, P))`` float64 on the CPU, ascending along each row. The nodes
            of a row lie within the spectrum, the outer ones close to its ends.
        weights: as ``nodes``; not negative, each row summing to 1. A probe whose Krylov space was
            exhausted before m steps is represented exactly, and has spare nodes of weight 0.
        num_products: products spent.
    """

    size: int
    num_steps: int
    nodes: Tensor
    weights: Tensor
    num_products: int

    def moment(self, order: int) -> Estimate:
        """Mean of λ^order over all eigenvalues, (1/P) tr(A^order).

        For every single probe it is exact up to order 2m − 1, so that the standard error says all.

        Raises:
            ValueError: the order is no whole number, or below 0.
        """
        order = a_whole_number("order", order, least=0)
        return _mean((self.weights * self.nodes**order).sum(dim=1))

    def trace(self) -> Estimate:
        """The sum of all eigenvalues. `trace` finds it with fewer products."""
        mean, standard_error = self.moment(1)
        return Estimate(self.size * mean, self.size * standard_error)

    def share_above(self, threshold: float) -> Estimate:
        """Share of the eigenvalues that are larger than ``threshold``, in [0, 1].

        The standard error is that of the probes. The blur of the quadrature comes on top: a node
        stands for all eigenvalues near it, so the share may be off by the weight of the nodes on
        either side of the threshold.

        Raises:
            ValueError: the threshold is no number, or NaN.
        """
        threshold = a_number("the threshold", threshold, nan=False)
        return _mean((self.weights * (self.nodes > threshold)).sum(dim=1))

    def density(self, grid: Tensor | None = None, *, width: float | None = None) -> SmoothedDensity:
        """The density with every node widened to a Gaussian, averaged over the probes.

        Args:
            grid: ``(g,)``, where to evaluate it. Default: 1,000 points from four widths below the
                smallest node to four widths above the largest.
            width: standard deviation of the Gaussians. Default: the range of the nodes (at least a
                thousandth of the largest magnitude) divided by ``num_steps``, the order of what the
                quadrature resolves. Far narrower, the curve shows the nodes; wider, it hides what
                was found. Where a few eigenvalues stretch the range and the rest is the interest,
                choose a smaller one.

        Raises:
            ValueError: the width is not a positive number, or the grid is not one-dimensional.
        """
        low, high = float(self.nodes.min()), float(self.nodes.max())
        if width is None:
            largest = max(abs(low), abs(high))
            width = (max(high - low, 1e-3 * largest) or 1.0) / self.num_steps
        if not (a_number("width", width) > 0 and math.isfinite(width)):
            raise ValueError(f"width must be a positive number, got {width}")
        if grid is None:
            grid = torch.linspace(low - 4 * width, high + 4 * width, 1000, dtype=torch.float64)
        if a_tensor("grid", grid).ndim != 1:
            raise ValueError(f"grid must have shape (g,), got {tuple(grid.shape)}")
        grid = grid.double().cpu()
        distances = (grid[:, None] - self.nodes.reshape(-1)) / width
        weights = self.weights.reshape(-1) / (len(self.weights) * width * math.sqrt(2 * math.pi))
        return SmoothedDensity(grid, torch.exp(-0.5 * distances**2) @ weights, width)


def spectral_density(
    operator: SymmetricOperator, *, num_probes: int = 10, num_steps: int = 100, seed: int = 0
) -> SpectralDensity:
    """The distribution of all eigenvalues by stochastic Lanczos quadrature.

    Args:
        operator: size P.
        num_probes: random start vectors; standard errors fall with their square root.
        num_steps: Lanczos steps m from each; the resolution grows in proportion. More than P steps
            are never taken.
        seed: seed of the start vectors, which are uniform on the unit sphere.

    Returns:
        A `SpectralDensity`.

    Raises:
        ValueError: ``num_probes`` or ``num_steps`` is not a positive integer, a product was NaN or
            infinite, or the operator stands for several matrices.

    Cost: num_probes × m products, and 4·m²·P flops a probe to keep the basis orthogonal: without
    that, eigenvalues that converged early appear again and again as ghosts. Memory: m vectors of
    length P for every probe of a block; a block is one probe, or as many as fit in 256 MiB.
    """
    num_probes = a_whole_number("num_probes", num_probes)
    num_steps = a_whole_number("num_steps", num_steps)
    refuse_other(operator)
    steps = min(num_steps, operator.size)
    block = max(1, _BASIS_BYTES // (steps * operator.size * operator.dtype.itemsize))
    generator = torch.Generator().manual_seed(a_generator_seed(seed))
    before = operator.num_products
    probes = _on_sphere(operator, num_probes, generator)
    with plain_modes(), full_precision(operator.device):
        matrices = torch.cat([_tridiagonal(operator, part, steps) for part in probes.split(block)])
    nodes, vectors = torch.linalg.eigh(matrices)
    return SpectralDensity(
        size=operator.size,
        num_steps=num_steps,
        nodes=nodes,
        weights=vectors[:, 0, :] ** 2,
        num_products=operator.num_products - before,
    )


def trace(operator: SymmetricOperator, *, num_products: int = 60, seed: int = 0) -> Estimate:
    r"""The trace tr A, the sum of all eigenvalues, by Hutch++.

    .. math:: \operatorname{tr} A = \operatorname{tr}(Q^\top A Q)
              + \operatorname{tr}\bigl((I - QQ^\top) A (I - QQ^\top)\bigr)

    with Q an orthonormal basis of A times a third of the vectors. It holds the large eigenvalues;
    the first term is exact, the second a mean over random vectors orthogonal to Q.

    Args:
        operator: size P.
        num_products: products to spend. From P on, the diagonal is summed instead, with P products
            and without error.
        seed: seed of the random vectors.

    Returns:
        An unbiased `Estimate`. It is exact, to rounding, for operators of rank num_products // 3 or
        less and for multiples of the identity.

    Raises:
        ValueError: ``num_products`` is not a positive integer, or is less than 4 and less than P;
            or a product was NaN or infinite.

    Source: Meyer, Musco, Musco and Woodruff (2021), algorithm 1, with random directions in place of
    random signs.
    """
    num_products = a_whole_number("num_products", num_products)
    refuse_other(operator)
    if num_products >= operator.size:
        identity = torch.eye(operator.size, dtype=operator.dtype, device=operator.device)
        return Estimate(float(_products(operator, identity).diagonal().double().sum()), 0.0)
    if num_products < 4:
        raise ValueError(
            f"num_products must be at least 4 for an operator of size {operator.size} (one for the "
            f"sketch, one for its image, two for a standard error), got {num_products}"
        )
    generator = torch.Generator().manual_seed(a_generator_seed(seed))
    rank = num_products // 3
    sketch = _products(operator, _on_sphere(operator, rank, generator).T)
    basis = torch.linalg.qr(sketch).Q
    captured = float((basis * _products(operator, basis)).double().sum())
    rest, standard_error = _trace_beside(operator, basis, num_products - 2 * rank, generator)
    return Estimate(captured + rest, standard_error)


def hutchinson_trace(
    operator: SymmetricOperator, *, num_products: int = 60, seed: int = 0
) -> Estimate:
    r"""The trace as a plain mean of P vᵀAv over random unit vectors: what `trace` improves on.

    The variance is :math:`\frac{2P}{P+2} \bigl(\lVert A \rVert_F^2 - (\operatorname{tr} A)^2/P
    \bigr)` divided by the number of products: a few large eigenvalues make it large.

    Args:
        operator: size P.
        num_products: products to spend, each on one random vector; a standard error needs two.
        seed: seed of the random vectors.

    Returns:
        An unbiased `Estimate`.

    Raises:
        ValueError: ``num_products`` is not a positive integer, or a product was NaN or infinite.

    Source: Girard (1987); Hutchinson (1990) with random signs for v.
    """
    num_products = a_whole_number("num_products", num_products)
    refuse_other(operator)
    generator = torch.Generator().manual_seed(a_generator_seed(seed))
    nothing = torch.empty(operator.size, 0, dtype=operator.dtype, device=operator.device)
    return _trace_beside(operator, nothing, num_products, generator)


def _trace_beside(
    operator: SymmetricOperator, basis: Tensor, count: int, generator: torch.Generator
) -> Estimate:
    """Trace of the operator on the orthogonal complement of ``basis``, ``(P, j)``."""
    vectors = _on_sphere(operator, count, generator).T
    with plain_modes(), full_precision(operator.device):
        for _ in range(2):
            vectors = vectors - basis @ (basis.T @ vectors)
    vectors = normalize(vectors, dim=0)  # uniform on the unit sphere of the complement
    dimension = operator.size - basis.shape[1]
    return _mean(dimension * (vectors * _products(operator, vectors)).double().sum(dim=0).cpu())


def _tridiagonal(operator: SymmetricOperator, starts: Tensor, num_steps: int) -> Tensor:
    """The Lanczos matrices T, ``(r, m, m)``, from the r unit vectors in the rows of ``starts``.

    The r recurrences run side by side. Where the Krylov space of one is exhausted, it goes on with
    zero vectors: T falls apart there, and what follows gets no weight. The spare diagonal entries
    repeat the first, so that they stay within the spectrum.
    """
    count, size = starts.shape
    basis = starts.new_empty(count, num_steps, size)
    matrices = torch.zeros(count, num_steps, num_steps, dtype=torch.float64)
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    scale = torch.zeros(count, dtype=torch.float64)
    running = torch.ones(count, dtype=torch.bool)
    rows = starts
    for j in range(num_steps):
        basis[:, j] = rows
        images = _products(operator, rows.T).T
        alpha = (rows * images).double().sum(dim=1).cpu()
        if j == 0:
            diagonal[:] = alpha[:, None]
        diagonal[:, j] = torch.where(running, alpha, diagonal[:, 0])
        if j + 1 == num_steps:
            break
        seen = basis[:, : j + 1]
        for _ in range(2):  # "twice is enough" (Parlett 1998, §6.9)
            overlaps = inner_products(seen, images).to(seen.dtype)
            images = torch.baddbmm(images[:, None, :], overlaps[:, None, :], seen, alpha=-1)[:, 0]
        # In float64, because the squares of tiny and of huge float32 numbers have no place there.
        norms = torch.linalg.vector_norm(images, dim=1, dtype=torch.float64)
        beta = norms.cpu()
        scale = torch.maximum(scale, alpha.abs() + beta)
        # Below this, images are rounding. A pass too many does no harm, as the weights beyond a
        # tiny beta are its square; one too few would lose what is small but not nothing.
        running &= beta > 10 * torch.finfo(operator.dtype).eps * scale
        if not bool(running.any()):
            break
        rows = torch.where(
            running.to(images.device)[:, None], images / norms[:, None].to(images), 0
        )
        matrices[:, j, j + 1] = matrices[:, j + 1, j] = torch.where(running, beta, 0)
    return matrices


def _products(operator: SymmetricOperator, vectors: Tensor) -> Tensor:
    """A V for V of shape ``(P, m)``."""
    # An operator's product need not see to it.
    with plain_modes(), full_precision(operator.device):
        images = operator.matmat(vectors)
    if not bool(torch.isfinite(images).all()):
        raise ValueError(
            "a product with the operator was NaN or infinite; expected finite products. If it is a "
            "Hessian, has the loss diverged at its point?"
        )
    return images


def _on_sphere(operator: SymmetricOperator, count: int, generator: torch.Generator) -> Tensor:
    """Unit vectors in rows, ``(count, P)``, drawn on the CPU: one seed, one draw everywhere."""
    size = (count, operator.size)
    draws = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")
    return normalize(draws, dim=1).to(operator.device, operator.dtype)


def _mean(samples: Tensor) -> Estimate:
    scatter = float(samples.std()) if len(samples) > 1 else math.nan
    return Estimate(float(samples.mean()), scatter / math.sqrt(len(samples)))
