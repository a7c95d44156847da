"""The problems that are measured: a network, its data, and a stretch of training at the edge.

Every tool sees the same loss. The networks' batch-normalisation layers keep no running statistics,
so that a tool which switches the model to evaluation mode still measures the full-batch loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from eoslib import Dataset, GradientDescent, Objective, build, digits
from eoslib.cifar10 import read_cifar10
from eoslib.downloads import MissingDataError
from eoslib.numerics import limited_threads

__all__ = ["PROBLEMS", "MissingData", "Problem", "Stretch", "cifar10", "edge_stretch"]

CACHE = Path(__file__).resolve().parent.parent / "_build" / "benchmarks"


class MissingData(RuntimeError):
    """A problem's data are not on this machine."""


@dataclass(frozen=True)
class Problem:
    """A training objective and how it is brought to the edge of stability.

    Attributes:
        name: as on the command line.
        description: network, data and loss, for a reader.
        objective: the loss in float32, as eoslib's users hold it.
        exact: the same loss in float64, for the reference.
        module: the same network as the other tools want it, a module that holds its parameters.
        step_size: η of the gradient descent whose iterates are measured.
        first_step: where the stretch begins; the edge is reached before.
        data: where the data come from and what was done to them, for the record.
    """

    name: str
    description: str
    objective: Objective
    exact: Objective
    module: nn.Module
    step_size: float
    first_step: int
    data: str

    @property
    def work(self) -> int:
        """A measure of one gradient's work, as `limited_threads` wants it."""
        return self.objective.num_parameters * self.objective.num_examples

    @property
    def inputs(self) -> Tensor:
        """All inputs, on the device."""
        return self.objective.inputs

    @property
    def targets(self) -> Tensor:
        """All targets, on the device."""
        return self.objective.targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss, for tools that take a criterion."""
        return self.objective.loss(outputs, targets)

    def place(self, theta: Tensor) -> None:
        """Write θ into the module's parameters."""
        parameters = list(self.module.parameters())
        parts = theta.split([p.numel() for p in parameters])
        with torch.no_grad():
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.grad = None
                parameter.copy_(part.view_as(parameter))


def make_problem(
    name: str,
    description: str,
    model: nn.Module,
    data: Dataset,
    *,
    step_size: float,
    first_step: int,
    device: torch.device,
    **options: Any,
) -> Problem:
    """A problem with square loss; the model's weights are where training begins."""
    objective, exact = (
        Objective.from_dataset(model, data, device=device, dtype=dtype, **options)
        for dtype in (torch.float32, torch.float64)
    )
    module = objective.module_at(objective.initial_point)
    return Problem(name, description, objective, exact, module, step_size, first_step, data.source)


def fc_tanh_on_cifar(device: torch.device, cifar10_path: Path | None) -> Problem:
    """The fully connected network of Cohen et al. (2021), 656,810 parameters."""
    return make_problem(
        "cifar10-fc-tanh",
        "3072-200-200-10 tanh network, 5,000 CIFAR-10 images, square loss",
        build("fc-tanh", 3072, 10),
        cifar10(cifar10_path),
        step_size=2 / 30,
        first_step=200,
        device=device,
    )


def fc_tanh_on_digits(device: torch.device, cifar10_path: Path | None) -> Problem:
    """A network of the book's size, where overheads weigh more than arithmetic."""
    return make_problem(
        "digits-fc-tanh",
        "64-32-32-10 tanh network, 1,000 digits, square loss",
        build("fc-tanh", 64, 10, widths=(32, 32)),
        digits(),
        step_size=2 / 10,
        first_step=300,
        device=device,
    )


def cnn_on_digits(device: torch.device, cifar10_path: Path | None) -> Problem:
    """A convolutional network whose batch normalisation ties the examples together."""
    data = digits(500)
    images = Dataset(data.name, data.inputs.view(-1, 1, 8, 8), data.targets, None, data.source)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8, track_running_stats=False),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16, track_running_stats=False),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * 4, 10),
        )
    return make_problem(
        "digits-cnn-bn",
        "two convolutions with batch normalisation, 500 digits, square loss",
        model,
        images,
        step_size=2 / 20,
        first_step=150,
        device=device,
        batch_norm="full_batch",
    )


PROBLEMS: dict[str, Callable[[torch.device, Path | None], Problem]] = {
    "cifar10-fc-tanh": fc_tanh_on_cifar,
    "digits-fc-tanh": fc_tanh_on_digits,
    "digits-cnn-bn": cnn_on_digits,
}


def cifar10(path: Path | None) -> Dataset:
    """5,000 CIFAR-10 images, every pixel standardised over them.

    (`eoslib.load_dataset` standardises over all training images. What is measured here keeps to the
    5,000 of the records that there are.)

    Args:
        path: a file or folder as `eoslib.cifar10` lists them; the first 5,000 training images are
            taken. The data set's `source` says which file it was, and identifies the images by a
            hash, which is the same for the same images from another file.

    Raises:
        MissingData: no path was named, or there is nothing at it.
        ValueError: the file is damaged, or is not what it should be.
    """
    try:
        if path is None:
            raise MissingDataError("no path to CIFAR-10 was named")
        stored = read_cifar10(path)
    except MissingDataError as error:
        raise MissingData(
            f"{error}; name a folder that holds cifar-10-binary.tar.gz or cifar-10-batches-bin, or "
            "an .npz file with x_train and y_train, with --cifar10 PATH or in EOS_CIFAR10"
        ) from error
    pixels, labels = stored.train_images[:5000], stored.train_labels[:5000]
    flat = pixels.reshape(-1, 3 * 32 * 32).astype(np.float64)
    flat = (flat - flat.mean(axis=0)) / flat.std(axis=0)
    label_tensor = torch.from_numpy(labels)
    return Dataset(
        name="cifar10-5k",
        inputs=torch.from_numpy(flat),
        targets=nn.functional.one_hot(label_tensor, 10).double(),
        labels=label_tensor,
        source=(
            f"CIFAR-10 (Krizhevsky 2009), the first {len(flat):,} images of {stored.file}, SHA-256 "
            f"of pixels and labels {stored.fingerprint(5000)[:12]}…; every pixel of every channel "
            f"standardised by its own mean and standard deviation over these {len(flat):,} images"
        ),
    )


@dataclass(frozen=True)
class Stretch:
    """Points of one training run at the edge, and the truth at each.

    Attributes:
        points: ``(m, P)`` float32, every ``interval``-th iterate.
        sharpness: ``(m,)`` float64, the reference.
        threshold: 2/η.
        interval: steps from one point to the next.
    """

    points: Tensor
    sharpness: np.ndarray
    threshold: float
    interval: int


def edge_stretch(problem: Problem, num_points: int = 51, interval: int = 5) -> Stretch:
    """Train to the edge and measure the reference, once; both are kept under ``_build``.

    The tracker searches from random vectors too at every 50th measurement, so that fewer points
    than these would hide what that costs.

    Raises:
        RuntimeError: the mean sharpness of the stretch is not within 30 % of 2/η.
    """
    threshold = 2 / problem.step_size
    path = CACHE / f"{problem.name}-{_fingerprint(problem, num_points, interval)}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            points, sharpness = torch.from_numpy(stored["points"]), stored["sharpness"]
    else:
        with limited_threads(problem.work):
            points = _iterates(problem, num_points, interval)
            sharpness = np.array([reference_sharpness(problem.exact, theta) for theta in points])
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part.npz")
        np.savez(partial, points=points.cpu().numpy(), sharpness=sharpness)
        partial.replace(path)
    if not 0.7 < sharpness.mean() / threshold < 1.3:
        raise RuntimeError(
            f"{problem.name}: sharpness {sharpness.mean():.3g} on average from step "
            f"{problem.first_step}, which is not the edge at 2/η = {threshold:.3g}"
        )
    return Stretch(points.to(problem.objective.device), sharpness, threshold, interval)


def reference_sharpness(exact: Objective, theta: Tensor) -> float:
    """The largest algebraic eigenvalue by ARPACK, in float64, from a random vector.

    A residual of 1e-6 bounds the relative error by 1e-6, and leaves one of some 1e-12.
    """
    product = exact.hessian(theta).matvec
    values, _, _ = arpack(product, exact.num_parameters, exact.dtype, exact.device, tol=1e-6)
    return float(values[0])


def arpack(
    product: Callable[[Tensor], Tensor],
    size: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    k: int = 1,
    start: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, int]:
    """SciPy's ``eigsh`` on a product of torch vectors; its options default as SciPy's do.

    Args:
        product: maps ``(P,)`` to ``(P,)`` on the device.
        size: P.
        dtype: of the vectors.
        device: of the vectors.
        k: how many eigenvalues.
        start: ``v0``, ``(P,)``; default: random, the same at every call.
        **options: ``which``, ``tol``, ``ncv``.

    Returns:
        Eigenvalues ``(k,)``, ascending, eigenvectors ``(P, k)``, both on the CPU, and the products
        spent.
    """
    spent = 0

    def counted(vector: np.ndarray) -> np.ndarray:
        nonlocal spent
        spent += 1
        image = product(torch.from_numpy(vector.ravel()).to(device))
        return image.cpu().numpy()

    numpy_dtype = torch.empty(0, dtype=dtype).numpy().dtype
    if start is None:
        start = torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(0))
    operator = LinearOperator((size, size), matvec=counted, dtype=numpy_dtype)
    values, vectors = eigsh(operator, k, v0=start.numpy(), **options)
    return torch.from_numpy(values), torch.from_numpy(vectors), spent


def _iterates(problem: Problem, num_points: int, interval: int) -> Tensor:
    rule = GradientDescent(problem.step_size)
    theta, kept = problem.objective.initial_point, []
    for step in range(problem.first_step + (num_points - 1) * interval + 1):
        if step >= problem.first_step and (step - problem.first_step) % interval == 0:
            kept.append(theta)
        theta, _ = rule.step(theta, problem.objective.gradient(theta), None)
    return torch.stack(kept)


def _fingerprint(problem: Problem, num_points: int, interval: int) -> str:
    told = f"{problem.module} {problem.step_size} {problem.first_step} {num_points} {interval}"
    digest = hashlib.sha256(told.encode())
    objective = problem.objective
    for tensor in (objective.inputs, objective.targets, objective.initial_point):
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
