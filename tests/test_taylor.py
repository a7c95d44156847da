"""The quadratic model of a loss: it is one, it agrees to second order, and training runs on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eoslib import (
    GradientDescent,
    Measurement,
    Minibatches,
    Objective,
    TaylorQuadratic,
    build,
    digits,
    every,
    gradient_flow,
    train,
    train_together,
)
from tests.oracles import dense_hessian

DOUBLE = torch.float64


@pytest.fixture
def objective() -> Objective:
    model = build("fc-tanh", 64, 10, widths=(6,), seed=1)
    return Objective.from_dataset(model, digits(40), "cross_entropy", dtype=DOUBLE)


@pytest.mark.parametrize("chunk_size", [None, 17])
def test_value_gradient_and_hessian_are_those_of_the_dense_quadratic(chunk_size):
    model = build("fc-tanh", 64, 10, widths=(6,), seed=1)
    objective = Objective.from_dataset(model, digits(40), dtype=DOUBLE, chunk_size=chunk_size)
    theta = objective.initial_point
    quadratic = TaylorQuadratic(objective, theta)
    hessian = dense_hessian(objective, theta)
    slope, value = objective.gradient(theta), objective.value(theta)
    shifts = torch.randn(3, len(theta), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    for points in (theta + shifts[0], theta + shifts):
        shift = points - theta
        torch.testing.assert_close(
            quadratic.value(points),
            value + shift @ slope + ((shift @ hessian) * shift).sum(dim=-1) / 2,
        )
        torch.testing.assert_close(quadratic.gradient(points), slope + shift @ hessian)
    assert float(quadratic.hessian(theta) @ shifts[0] @ shifts[1]) == pytest.approx(
        float(shifts[0] @ hessian @ shifts[1])
    )


def test_the_point_is_copied(objective):
    theta = objective.initial_point.clone()
    quadratic = TaylorQuadratic(objective, theta)
    before = quadratic.value(objective.initial_point + 1)
    theta.add_(1)
    assert torch.equal(quadratic.value(objective.initial_point + 1), before)
    assert torch.equal(quadratic.initial_point, objective.initial_point)


def test_it_agrees_with_the_loss_to_second_order(objective):
    theta = objective.initial_point
    quadratic = TaylorQuadratic(objective, theta)
    direction = torch.randn(len(theta), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    errors = [
        abs(float(objective.value(at) - quadratic.value(at)))
        for at in (theta + 0.02 * direction, theta + 0.01 * direction)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.3)


def test_training_runs_on_it_alone_and_together(objective):
    theta = objective.initial_point
    quadratic = TaylorQuadratic(objective, theta)
    rules = [GradientDescent(lr) for lr in (0.1, 0.3)]
    together = train_together(quadratic, rules, num_steps=20, sharpness_schedule=every(5))
    top = float(torch.linalg.eigvalsh(dense_hessian(objective, theta))[-1])
    for rule, run in zip(rules, together, strict=True):
        alone = train(quadratic, rule, num_steps=20)
        np.testing.assert_allclose(alone["loss"].values, run["loss"].values, rtol=1e-9)
        np.testing.assert_allclose(run.sharpness.values, top, rtol=1e-3)
        assert run.settings["loss"] == "cross_entropy"
        assert alone.provenance["num_gradients"] == 21
        assert alone.provenance["num_products"] > 21


@pytest.mark.parametrize("share", [0.95, 1.05])
def test_along_an_eigenvector_every_step_multiplies_by_one_minus_eta_a(objective, share):
    theta = objective.initial_point
    quadratic = TaylorQuadratic(objective, theta)
    values, vectors = torch.linalg.eigh(dense_hessian(objective, theta))
    top, u = float(values[-1]), vectors[:, -1]
    stationary = float(u @ theta - u @ objective.gradient(theta) / top)
    rule = GradientDescent(share * 2 / top)
    along = Measurement("along u", lambda point: u @ point, every(1))
    run = train(quadratic, rule, num_steps=15, measurements=[along])
    distance = run["along u"].values - stationary
    np.testing.assert_allclose(distance[1:] / distance[:-1], 1 - rule.lr * top, rtol=1e-6)


def test_gradient_flow_runs_on_it(objective):
    run = gradient_flow(TaylorQuadratic(objective, objective.initial_point), duration=2)
    assert np.all(np.diff(run["loss"].values) < 0)


def test_wrong_shapes_and_mini_batches_are_refused(objective):
    with pytest.raises(ValueError, match="theta of shape"):
        TaylorQuadratic(objective, torch.zeros(3))
    quadratic = TaylorQuadratic(objective, objective.initial_point)
    with pytest.raises(ValueError, match="draw examples from, got a TaylorQuadratic; leave bat"):
        train(quadratic, GradientDescent(0.1), num_steps=1, batches=Minibatches(2))


@pytest.mark.parametrize("shape", [(), (1,), (3, 1)])
def test_a_theta_of_another_shape_is_refused(shape, objective):
    model = TaylorQuadratic(objective, objective.initial_point)
    with pytest.raises(ValueError, match="expected theta of shape"):
        model.value(torch.zeros(shape, dtype=DOUBLE))
