"""The laboratory's engine against the library: the same mathematics in another language.

Python makes the problems and the truths, Node runs the engine on them.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from eoslib import (
    GradientDescent,
    Nesterov,
    Objective,
    Polyak,
    chebyshev,
    digits,
    every,
    lanczos,
    train,
)
from eoslib.data import Dataset
from tests.node import find_node
from tests.oracles import dense_hessian

JS = Path(__file__).parent / "js"
ENGINE = Path(__file__).parents[1] / "eoslib" / "widgets" / "laboratory_engine.js"
DOUBLE = torch.float64

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "linear": nn.Identity,
}


def run_node(*arguments: str, stdin: str = "") -> str:
    ended = subprocess.run(
        [find_node(), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def drive(*jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """What the engine makes of some jobs; see `js/laboratory_driver.mjs`."""
    results = json.loads(run_node(str(JS / "laboratory_driver.mjs"), stdin=json.dumps(jobs)))
    assert len(results) == len(jobs)
    return results


def run_job(settings: dict[str, Any], steps: int, **rest: Any) -> dict[str, Any]:
    return {"job": "run", "settings": settings, "steps": steps, **rest}


def network(sizes: list[int], activation: str, *, seed: int, bias: bool = True) -> nn.Sequential:
    """Any perceptron, the engine's linear ones without biases among them."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out, bias=bias, dtype=DOUBLE), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def relative_error(found: Any, expected: Tensor | np.ndarray) -> float:
    wanted = np.asarray(expected)
    return float(np.linalg.norm(np.asarray(found) - wanted) / np.linalg.norm(wanted))


# -- the objective ---------------------------------------------------------------------------------

SHAPES = {0: [3, 4], 1: [3, 7, 2], 2: [5, 6, 9, 3], 4: [2, 5, 4, 3, 6, 2]}


def random_objective(
    activation: str, loss: str, sizes: list[int], seed: int, *, bias: bool = True
) -> Objective:
    model = network(sizes, activation, seed=seed, bias=bias)
    with torch.no_grad():  # wide enough for every activation to bend
        for parameter in model.parameters():
            parameter.mul_(2).add_(0.2 * torch.randn_like(parameter))
    inputs = 2 * torch.randn(11, sizes[0], dtype=DOUBLE)
    targets = torch.randn(11, sizes[-1], dtype=DOUBLE)
    if loss == "cross_entropy":
        labels = torch.randint(sizes[-1], (11,))
        targets = nn.functional.one_hot(labels, sizes[-1]).double()
    return Objective(model, inputs, targets, loss, dtype=DOUBLE)


def test_loss_gradient_products_and_sharpness_agree_with_the_library():
    cases, jobs = [], []
    kinds = itertools.product(ACTIVATIONS, ("square", "cross_entropy"), SHAPES)
    for seed, (activation, loss, depth) in enumerate(kinds):
        bias = seed % 3 > 0
        objective = random_objective(activation, loss, SHAPES[depth], seed, bias=bias)
        vectors = torch.randn(2, objective.num_parameters, dtype=DOUBLE)
        cases.append((f"{activation} {loss} {depth}", objective, vectors))
        architecture = {
            "sizes": SHAPES[depth],
            "activation": activation,
            "loss": loss,
            "bias": bias,
        }
        jobs.append(
            {
                "job": "objective",
                "architecture": architecture,
                "inputs": objective.inputs.tolist(),
                "targets": objective.targets.tolist(),
                "point": objective.initial_point.tolist(),
                "vectors": vectors.tolist(),
                "eigenvalues": 3,
            }
        )
    for (name, objective, vectors), found in zip(cases, drive(*jobs), strict=True):
        point = objective.initial_point
        value, gradient = objective.value_and_gradient(point)
        hessian = objective.hessian(point)
        assert found["size"] == objective.num_parameters, name
        assert found["loss"] == pytest.approx(float(value), rel=1e-10), name
        assert relative_error(found["gradient"], gradient) < 1e-10, name
        for vector, product in zip(vectors, found["products"], strict=True):
            assert relative_error(product, hessian.matvec(vector)) < 1e-10, name
        result = lanczos(hessian, 3, rtol=1e-10, max_products=2000)
        assert found["converged"], name
        assert found["eigenvalues"][0] == pytest.approx(result.eigenvalue(), rel=1e-10), name
        if "2" in name:
            exact = torch.linalg.eigvalsh(dense_hessian(objective, point)).flip(0)[:3]
            assert np.allclose(found["eigenvalues"], exact, rtol=1e-9, atol=1e-10 * float(exact[0]))


def test_elementary_functions():
    at = [
        *np.linspace(-30, 30, 1201),
        *np.geomspace(1e-12, 20, 300),
        *np.linspace(-745, 709.7, 300),
    ]
    at += [*np.linspace(-745, -744, 100), *np.linspace(709, 709.779, 100)]  # to the ends of float64
    (found,) = drive({"job": "functions", "at": [float(x) for x in at]})
    for x, exponential, logarithm, tangent, distribution in zip(
        at,
        found["exp"],
        found["log"],
        found["tanh"],
        found["normalDistribution"],
        strict=True,
    ):
        assert exponential == pytest.approx(math.exp(x), rel=1e-15, abs=5e-324)
        assert tangent == pytest.approx(math.tanh(x), rel=1e-15)
        assert distribution == pytest.approx(0.5 * math.erfc(-x / math.sqrt(2)), abs=1e-15)
        if x > 0:
            assert logarithm == pytest.approx(math.log(x), rel=1e-15, abs=1e-17)


def test_data_sets_are_those_of_the_library():
    data = digits(12)
    jobs = [run_job({"task": "chebyshev", "degree": k, "points": 20}, 0) for k in range(8)]
    *fits, images = drive(
        *jobs, run_job({"task": "digits", "points": 12}, 0, images=page_images(12))
    )
    for degree, found in enumerate(fits):
        expected = chebyshev(degree, 20)
        assert found["inputs"] == expected.inputs.flatten().tolist()
        assert np.allclose(found["targets"], expected.targets.flatten(), rtol=0, atol=1e-15)
    assert images["inputs"] == data.inputs.flatten().tolist()
    assert images["targets"] == data.targets.flatten().tolist()


def page_images(count: int) -> dict[str, Any]:
    """The digits as a page carries them: raw pixels, and how to standardise them."""
    with np.load(ENGINE.parents[1] / "digits-1k.npz", allow_pickle=False) as stored:
        pixels = stored["pixels"].astype(np.float64)
        labels = stored["labels"]
    return {
        "pixels": pixels[:count].flatten().tolist(),
        "labels": labels[:count].tolist(),
        "mean": float(pixels.mean()),
        "deviation": float(pixels.std()),
    }


# -- whole runs ------------------------------------------------------------------------------------


def fit(hidden: list[int], activation: str = "tanh", *, degree: int = 4, seed: int = 0):
    """An objective of the library and the engine's settings of the same problem."""
    objective = Objective.from_dataset(
        network([1, *hidden, 1], activation, seed=seed), chebyshev(degree, 12), dtype=DOUBLE
    )
    settings = {
        "task": "chebyshev",
        "degree": degree,
        "points": 12,
        "hidden": hidden,
        "activation": activation,
    }
    return objective, settings


@pytest.mark.parametrize(
    ("name", "rule", "activation"),
    [
        ("gd", GradientDescent(0.4), "tanh"),
        ("gd", GradientDescent(0.4), "gelu"),
        ("polyak", Polyak(0.2, 0.5), "tanh"),
        ("nesterov", Nesterov(0.2, 0.5), "tanh"),
    ],
)
def test_trajectories_agree_with_the_library_until_the_edge(name, rule, activation):
    objective, settings = fit([12, 8], activation, degree=5)
    changed = settings | {"optimizer": name, "stepSize": rule.lr, "beta": getattr(rule, "beta", 0)}
    (found,) = drive(run_job(changed | {"init": "lecun"}, 500))
    start = torch.tensor(found["path"][0], dtype=DOUBLE)
    run = train(objective, rule, num_steps=500, theta=start, sharpness_schedule=every(1))
    ours = run.series["sharpness"].values
    crossing = int(np.argmax(ours > rule.threshold))
    assert crossing > 100  # below its line at first, and at it in the end
    until = slice(0, crossing + 1)
    assert relative_error(found["series"]["loss"][until], run.series["loss"].values[until]) < 1e-6
    measured = np.array(found["series"]["eigenvalue1"])
    assert np.allclose(measured[until], ours[until], rtol=2e-3)
    # Two tolerances hide in that band. A Ritz value is never above the true one, and seldom as far
    # below as its tolerance allows.
    looks = np.linspace(0, crossing, 13).astype(int)
    points = [torch.tensor(found["path"][step], dtype=DOUBLE) for step in looks]
    exact = [torch.linalg.eigvalsh(dense_hessian(objective, point))[-1].item() for point in points]
    errors = measured[looks] / exact - 1
    assert errors.max() < 1e-8
    assert np.median(errors) > -5e-4
    assert found["threshold"] == pytest.approx(rule.threshold, rel=1e-14)


TORCH_OPTIMIZERS = {
    "gd": (torch.optim.SGD, {"lr": 0.05}, {"stepSize": 0.05}),
    "polyak": (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9}, {"stepSize": 0.02, "beta": 0.9}),
    "nesterov": (
        torch.optim.SGD,
        {"lr": 0.02, "momentum": 0.7, "nesterov": True},
        {"stepSize": 0.02, "beta": 0.7},
    ),
    "rmsprop": (
        torch.optim.RMSprop,
        {"lr": 1e-3, "alpha": 0.97, "eps": 1e-7},
        {"stepSize": 1e-3, "beta2": 0.97, "epsilon": 1e-7},
    ),
    "adam": (
        torch.optim.Adam,
        {"lr": 2e-3, "betas": (0.8, 0.99), "eps": 1e-7},
        {"stepSize": 2e-3, "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-7},
    ),
}


@pytest.mark.parametrize("name", TORCH_OPTIMIZERS)
def test_optimizers_agree_with_pytorch(name):
    """The path, and where there is a preconditioner the eigenvalues of P^-½ H P^-½."""
    objective, settings = fit([6, 5], degree=3, seed=4)
    make, options, changed = TORCH_OPTIMIZERS[name]
    steps = 60
    job = run_job(
        settings | changed | {"optimizer": name, "eigenvalues": 2},
        steps,
        initialPoint=objective.initial_point.tolist(),
    )
    (found,) = drive(job)
    theta = objective.initial_point.clone().requires_grad_()
    optimizer = make([theta], **options)
    for step in range(steps):
        point = theta.detach().clone()
        assert relative_error(found["path"][step], point) < 1e-10
        theta.grad = objective.gradient(point)
        optimizer.step()
        if step % 6:
            continue
        scale = 1 / preconditioner(optimizer, theta, step + 1).sqrt()
        hessian = scale[:, None] * dense_hessian(objective, point) * scale
        exact = torch.linalg.eigvalsh(hessian).flip(0)[:2]
        tracked = [found["series"][f"eigenvalue{j}"][step] for j in (1, 2)]
        assert np.allclose(tracked, exact, rtol=1e-3, atol=1e-4 * float(exact[0]))


def preconditioner(optimizer: torch.optim.Optimizer, theta: Tensor, step: int) -> Tensor:
    """What PyTorch's rule divides by, as one diagonal matrix."""
    group, state = optimizer.param_groups[0], optimizer.state[theta]
    if isinstance(optimizer, torch.optim.RMSprop):
        return state["square_avg"].sqrt() + group["eps"]
    if isinstance(optimizer, torch.optim.Adam):
        first, second = (1 - beta**step for beta in group["betas"])
        return first * ((state["exp_avg_sq"] / second).sqrt() + group["eps"])
    return torch.ones_like(theta)


@pytest.mark.parametrize("loss", ["square", "cross_entropy"])
def test_digits_train_as_in_the_library(loss):
    data = digits(40)
    model = network([64, 9, 10], "relu", seed=1)
    objective = Objective.from_dataset(model, data, loss, dtype=DOUBLE)
    run = train(objective, GradientDescent(0.02), num_steps=50)
    settings = {
        "task": "digits",
        "points": 40,
        "hidden": [9],
        "activation": "relu",
        "loss": loss,
        "stepSize": 0.02,
    }
    job = run_job(
        settings, 50, initialPoint=objective.initial_point.tolist(), images=page_images(60)
    )
    (found,) = drive(job)
    assert relative_error(found["point"], run.final_point) < 1e-9
    assert found["series"]["accuracy"][-1] == objective.accuracy(torch.tensor(run.final_point))


@pytest.mark.parametrize(("seed", "step_size"), [(0, 0.4), (2, 0.3)])
def test_sharpness_at_the_edge_against_dense_hessians(seed, step_size):
    """From initialization across 2/η and through catapults: every tracked value within 10⁻³."""
    objective, settings = fit([12, 8], degree=5)
    (found,) = drive(
        run_job(settings | {"seed": seed, "stepSize": step_size, "eigenvalues": 2}, 1500)
    )
    tracked = np.array([found["series"][f"eigenvalue{j}"] for j in (1, 2)])
    threshold = 2 / step_size
    assert tracked[0, 0] < threshold  # it starts stable,
    assert tracked[0].max() > 1.5 * threshold  # is thrown out,
    assert 0.9 < np.median(tracked[0, -500:]) / threshold < 1.2  # and stays at the edge,
    assert (np.diff(found["series"]["loss"][-500:]) > 0).sum() > 100  # where it oscillates
    assert np.isfinite(tracked.astype(float)).all()  # every search converged
    highest = int(tracked[0].argmax())
    for step in [*range(0, 1500, 60), *range(highest - 4, highest + 4)]:
        point = torch.tensor(found["path"][step], dtype=DOUBLE)
        exact = torch.linalg.eigvalsh(dense_hessian(objective, point)).flip(0)[:2].numpy()
        assert abs(tracked[:, step] - exact).max() < 1e-3 * exact[0], step


def test_gradient_flow():
    objective, settings = fit([6, 5], degree=3, seed=3)
    start = objective.initial_point
    flow = settings | {"optimizer": "flow"}
    jobs = [
        run_job(flow | {"flowStep": part}, round(30 / part), initialPoint=start.tolist())
        for part in (0.5, 0.25)
    ]
    errors = []
    for part, found in zip((0.5, 0.25), drive(*jobs), strict=True):
        times, path = found["series"]["time"], np.array(found["path"])
        exact = solve_ivp(
            lambda _, theta: -objective.gradient(torch.from_numpy(theta)).numpy(),
            (0, times[-1]),
            start.numpy(),
            method="DOP853",
            t_eval=times,
            rtol=1e-11,
            atol=1e-12,
        )
        errors.append(np.linalg.norm(path - exact.y.T, axis=1).max())
        steps = np.diff(times) * np.array(found["series"]["eigenvalue1"][:-1])
        assert np.allclose(steps, part, rtol=1e-12)
        assert found["threshold"] is None  # there is none
    assert errors[0] < 2e-4 * np.linalg.norm(path[-1] - path[0])
    assert 10 < errors[0] / errors[1] < 30  # of order four: 2⁴


@pytest.mark.parametrize("start", [0, 25])
def test_quadratic_twin(start):
    objective, settings = fit([6, 5], degree=3, seed=3)
    job = run_job(
        settings | {"optimizer": "polyak", "stepSize": 0.3, "beta": 0.5, "twinAt": start},
        start + 15,
        initialPoint=objective.initial_point.tolist(),
    )
    (found,) = drive(job)
    centre = torch.tensor(found["path"][start], dtype=DOUBLE)
    value, slope = objective.value_and_gradient(centre)
    curvature = dense_hessian(objective, centre)
    velocity = torch.zeros_like(centre)
    for step in range(start + 1):  # the velocity that the run has when the twin starts
        here = torch.tensor(found["path"][step], dtype=DOUBLE)
        velocity = 0.5 * velocity + objective.gradient(here)
    twin = centre.clone()
    for step in range(start + 1, start + 15):
        twin = twin - 0.3 * velocity
        away = twin - centre
        velocity = 0.5 * velocity + slope + curvature @ away
        expected = float(value + slope @ away + away @ curvature @ away / 2)
        assert found["series"]["twin"][step] == pytest.approx(expected, rel=1e-9)
    assert all(x is None for x in found["series"]["twin"][: start + 1])
    assert found["twin"]["since"] == start


def test_deep_linear_networks_without_biases():
    settings = {
        "task": "linear",
        "dimension": 5,
        "points": 8,
        "hidden": [5] * 6,
        "activation": "linear",
        "bias": "no",
        "stepSize": 0.05,
    }
    (found,) = drive(run_job(settings, 40))
    inputs = torch.tensor(found["inputs"], dtype=DOUBLE).view(8, 5)
    targets = torch.tensor(found["targets"], dtype=DOUBLE).view(8, 5)
    assert torch.allclose(inputs.T @ inputs, 8 * torch.eye(5, dtype=DOUBLE), atol=1e-12)
    data = Dataset("linear", inputs, targets, None, "made by the engine")
    model = network([5] * 8, "linear", seed=0, bias=False)
    objective = Objective.from_dataset(model, data, dtype=DOUBLE)
    start = torch.tensor(found["path"][0], dtype=DOUBLE)
    run = train(objective, GradientDescent(0.05), num_steps=40, theta=start)
    assert relative_error(found["point"], run.final_point) < 1e-9
    assert start.std() == pytest.approx(5**-0.5, rel=0.2)  # LeCun's initialization


def test_engine_by_itself():
    """What needs no Python: determinism, record, settings, divergence, crossings, the worker."""
    run_node("--test", str(JS / "laboratory_engine.test.mjs"), str(JS / "plot.test.mjs"))
