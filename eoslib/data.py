"""Data sets small enough to be generated or carried inside the package.

Every data set is one `Dataset`: all examples, in a fixed order, in float64. The objective casts
them to its own dtype and moves them to its own device.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from torch import Tensor

from eoslib._names import look_up

__all__ = ["DATASETS", "Dataset", "chebyshev", "digits", "load_dataset"]


@dataclass(frozen=True)
class Dataset:
    """All training examples of a task.

    Attributes:
        name: as in run records, for instance ``"chebyshev-4-20"`` or ``"digits-1k"``.
        inputs: ``(n, ...)``, float64.
        targets: ``(n, outputs)``, float64; one-hot rows for classification.
        labels: ``(n,)`` int64 for classification, else ``None``.
        source: where the numbers come from and what was done to them.
    """

    name: str
    inputs: Tensor
    targets: Tensor
    labels: Tensor | None
    source: str

    @property
    def num_examples(self) -> int:
        """How many examples there are."""
        return self.inputs.shape[0]

    @property
    def num_inputs(self) -> int:
        """How many numbers one example has."""
        return self.inputs[0].numel()

    @property
    def num_outputs(self) -> int:
        """How many outputs a network for this task needs."""
        return self.targets.shape[1]


def chebyshev(degree: int = 4, num_points: int = 20) -> Dataset:
    r"""Fit the Chebyshev polynomial :math:`T_k` at evenly spaced points.

    .. math:: x_i = -1 + 2i/(n-1), \qquad y_i = T_k(x_i) = \cos(k \arccos x_i), \qquad i = 0..n-1

    Args:
        degree: k ≥ 0.
        num_points: n ≥ 2; both ends of [−1, 1] are included, there is no noise.

    Raises:
        ValueError: the degree is negative or there are fewer than two points.

    Source: the one-dimensional regression task of Cohen et al. (2021), degrees 3-5, 20 points.
    """
    if degree < 0 or num_points < 2:
        raise ValueError(
            f"chebyshev needs degree ≥ 0 and num_points ≥ 2, got degree={degree}, "
            f"num_points={num_points}"
        )
    x = np.linspace(-1.0, 1.0, num_points)
    y = np.polynomial.chebyshev.Chebyshev.basis(degree)(x)
    return Dataset(
        name=f"chebyshev-{degree}-{num_points}",
        inputs=torch.from_numpy(x)[:, None],
        targets=torch.from_numpy(y)[:, None],
        labels=None,
        source=f"T_{degree} at {num_points} evenly spaced points of [-1, 1], no noise",
    )


def digits(num_examples: int = 1000, *, redrawn_labels: float = 0.0, seed: int = 0) -> Dataset:
    """8 × 8 images of handwritten digits: the first ``num_examples`` of 1,000.

    The pixels (0..16) are standardised with one mean and one standard deviation, those of all
    pixels of the 1,000 images; standardising pixel by pixel would blow up the border pixels, which
    are zero in all but a few images. Targets are one-hot rows.

    Args:
        num_examples: 1 to 1,000.
        redrawn_labels: share of the examples, in [0, 1], whose label is replaced by one drawn
            uniformly from the ten. The images alone are so easy that a network trained with
            cross-entropy is done within a hundred steps; with noise there is something left to fit.
        seed: seed of which labels are redrawn, and as what.

    Raises:
        ValueError: an argument is out of its range.

    Source: Alpaydin and Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, CC BY 4.0; the first 1,000 of the 1,797 examples that scikit-learn ships.
    """
    if not 1 <= num_examples <= 1000:
        raise ValueError(f"digits has 1,000 examples; asked for num_examples={num_examples}")
    if not 0 <= redrawn_labels <= 1:
        raise ValueError(f"redrawn_labels is a share in [0, 1], got {redrawn_labels}")
    with (
        resources.files("eoslib").joinpath("digits-1k.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as stored,
    ):
        pixels, labels = stored["pixels"].astype(np.float64), stored["labels"].astype(np.int64)
    pixels = (pixels - pixels.mean()) / pixels.std()
    random = np.random.default_rng(seed)
    redrawn = random.permutation(1000)[: round(1000 * redrawn_labels)]
    labels[redrawn] = random.integers(0, 10, len(redrawn))
    size = "1k" if num_examples == 1000 else str(num_examples)
    label_tensor = torch.from_numpy(labels[:num_examples])
    return Dataset(
        name=f"digits-{size}"
        + (f"-redrawn{redrawn_labels:g}-seed{seed}" if redrawn_labels else ""),
        inputs=torch.from_numpy(pixels[:num_examples]),
        targets=torch.nn.functional.one_hot(label_tensor, 10).double(),
        labels=label_tensor,
        source="UCI handwritten digits 8x8 (Alpaydin & Kaynak 1998), one mean and deviation"
        + (
            f"; {redrawn_labels:.0%} of the labels redrawn with seed {seed}" if len(redrawn) else ""
        ),
    )


DATASETS: dict[str, Callable[[], Dataset]] = {
    "chebyshev-3-20": lambda: chebyshev(3),
    "chebyshev-4-20": lambda: chebyshev(4),
    "chebyshev-5-20": lambda: chebyshev(5),
    "digits-1k": digits,
}


def load_dataset(name: str) -> Dataset:
    """Return a data set by its name; ``chebyshev-k-n`` works for every degree k and n points.

    Raises:
        ValueError: the name is unknown; the message suggests the near ones.
    """
    if match := re.fullmatch(r"chebyshev-(\d+)-(\d+)", name):
        return chebyshev(int(match[1]), int(match[2]))
    return look_up(DATASETS, name, "data set")()
