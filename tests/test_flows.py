"""Gradient flow: the order of the integrator, its stability rule, and what it does to networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from eoslib import (
    GradientDescent,
    Measurement,
    Objective,
    RandomProjection,
    SharpnessTracker,
    build,
    chebyshev,
    every,
    gradient_flow,
    loss_below,
    train,
)
from eoslib.flows import runge_kutta_step
from eoslib.plotting import plot_runs, time_of
from tests.oracles import squared_weight

DOUBLE = torch.float64


def small() -> Objective:
    model = build("fc-tanh", 1, 1, widths=(8,), init="lecun", seed=1)
    return Objective.from_dataset(model, chebyshev(), "square", dtype=DOUBLE)


def quadratic(curvatures: list[float]) -> Objective:
    """½ Σ aᵢ xᵢ² from x = (1, 1, …)."""
    size = len(curvatures)
    model = nn.Linear(size, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    inputs = torch.diag(torch.tensor(curvatures, dtype=DOUBLE) * size).sqrt()
    return Objective(model, inputs, torch.zeros(size, 1, dtype=DOUBLE), dtype=DOUBLE)


def test_the_integrator_has_order_four():
    def slope(x):
        return torch.stack([x[1], -torch.sin(x[0])])  # a pendulum

    start = torch.tensor([1.0, 0.5], dtype=DOUBLE)

    def end(num_steps):
        x = start
        for _ in range(num_steps):
            x = runge_kutta_step(slope, x, 2 / num_steps)
        return x

    exact = end(4096)
    errors = [float((end(n) - exact).norm()) for n in (16, 32, 64, 128)]
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(orders, 4, atol=0.1)


def test_its_stability_limit_is_the_one_stated():
    for z, stable in ((2.785, True), (2.786, False)):
        x = torch.tensor(1.0, dtype=DOUBLE)
        for _ in range(10_000):
            x = runge_kutta_step(lambda at, z=z: -z * at, x, 1.0)
        assert (abs(float(x)) < 1) == stable


def test_on_a_quadratic_it_is_the_exponential():
    curvatures = [5.0, 1.0, 0.2]
    run = gradient_flow(
        quadratic(curvatures),
        duration=3,
        tick=0.5,
        alpha=0.1,
        measurements=[Measurement("x", lambda theta: theta, every(1))],
    )
    times = time_of(run, run["x"].steps, "time")
    np.testing.assert_allclose(times, np.arange(7) * 0.5)
    expected = np.exp(-times[:, None] * np.array(curvatures))
    np.testing.assert_allclose(run["x"].values, expected, rtol=1e-4)
    np.testing.assert_allclose(run.sharpness.values, 5, rtol=1e-9)
    assert (run.threshold, run.threshold_name) == (math.inf, "∞")
    assert run.crossing is None
    assert run.outcome.status == "completed"


def test_negative_curvature_shortens_the_steps():
    # u = w² obeys u' = 4u(20 − u). At the start λ = −40: one step a tick is far too long.
    run = gradient_flow(squared_weight(), duration=0.4, tick=0.1, alpha=0.1)
    u = 20 / (1 + (20 / 1e-4 - 1) * np.exp(-80 * 0.1 * np.arange(5)))
    np.testing.assert_allclose(run["loss"].values, (u - 20) ** 2 / 2, rtol=1e-3, atol=1e-6)
    assert run.sharpness.values[0] == pytest.approx(-40, rel=1e-3)


def test_small_negative_curvature_is_looked_for_seldom():
    tracker = SharpnessTracker(small())
    run = gradient_flow(tracker.objective, duration=4, tick=0.1, sharpness=tracker)
    assert 0 < run.provenance["num_products"] - tracker.num_products <= 12 + 3 * 4


def test_a_whole_number_of_ticks_gets_no_tick_more():
    run = gradient_flow(quadratic([1.0]), duration=3 * 0.1, tick=0.1)
    assert 3 * 0.1 / 0.1 > 3
    assert run.outcome.step == 3


def test_the_largest_step_times_sharpness_is_that_of_all_ticks():
    objective = small()
    theta = 3 * objective.initial_point  # from where the sharpness falls
    run = gradient_flow(objective, duration=10, tick=2.0, alpha=0.5, theta=theta)
    sharpness = run.sharpness.values
    steps = [2 / math.ceil(2 * top / 0.5) for top in sharpness]
    products = [step * top for step, top in zip(steps[:-1], sharpness[1:], strict=True)]
    largest = run.provenance["largest_step_times_sharpness"]
    assert products[-1] + 2e-3 < max(products) == pytest.approx(largest, abs=1e-3)


def test_gradient_descent_with_small_steps_follows_the_flow_of_a_network():
    flow = gradient_flow(small(), duration=20, tick=2.0, alpha=0.5)
    apart = []
    for lr in (0.02, 0.01):
        descent = train(small(), GradientDescent(lr), num_steps=round(20 / lr))
        final = torch.from_numpy(descent.final_point - flow.final_point)
        apart.append(float(final.norm()))
    assert apart[1] < 0.02
    assert apart[0] / apart[1] == pytest.approx(2, rel=0.1)  # Euler's method has order one
    assert np.all(np.diff(flow["loss"].values) < 0)
    assert 0 < flow.provenance["largest_step_times_sharpness"] < 0.7


def test_stop_rules_budgets_and_requests_end_it_on_record(tmp_path):
    goal = gradient_flow(small(), duration=1e6, stop=[loss_below(0.2)])
    assert goal.outcome.status == "goal reached"
    assert goal["loss"].values[-1] < 0.2 < goal["loss"].values[-2]
    budget = gradient_flow(small(), duration=1e6, max_gradients=500)
    assert budget.outcome.status == "stopped"
    assert "max_gradients" in budget.outcome.message
    assert budget.provenance["num_gradients"] <= 500
    spent = gradient_flow(small(), duration=5).provenance["num_gradients"]
    assert gradient_flow(small(), duration=5, max_gradients=spent).outcome.status == "completed"
    seen = []
    asked = gradient_flow(
        small(), duration=10, report=lambda now: seen.append(now.step) or now.step == 3
    )
    assert (seen, asked.outcome.step) == ([0, 1, 2, 3], 3)
    again = type(asked).load(asked.save(tmp_path / "flow.npz"))
    assert again.threshold == math.inf
    assert again.time_per_step == 1.0
    assert "3 units of time" in again.describe()


def test_a_sharpness_that_is_not_found_ends_it():
    objective = small()
    tracker = SharpnessTracker(objective, rtol=1e-11, max_products=2)
    run = gradient_flow(objective, duration=3, sharpness=tracker)
    assert (run.outcome.status, run.outcome.step) == ("stopped", 0)
    assert "the sharpness was not found at time 0; raise max_products" in run.outcome.message


def test_several_eigenvalues_are_recorded():
    objective = small()
    run = gradient_flow(objective, duration=2, sharpness=SharpnessTracker(objective, 3))
    assert run["eigenvalues"].values.shape == (3, 3)


def test_a_duration_is_never_rounded_to_nothing():
    assert gradient_flow(quadratic([1.0]), duration=1e-12).outcome.step == 1


def test_a_loss_that_is_not_finite_is_an_outcome():
    objective = quadratic([1.0])
    run = gradient_flow(objective, duration=1, theta=torch.tensor([1e200], dtype=DOUBLE))
    assert run.outcome.status == "diverged"


@pytest.mark.parametrize(
    "wrong",
    [{"duration": 0}, {"tick": -1}, {"alpha": 3.0}, {"duration": math.inf}],
)
def test_bad_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        gradient_flow(small(), **{"duration": 1, **wrong})


def test_measurements_of_one_name_are_refused():
    clash = [Measurement("loss", torch.norm, every(1))]
    with pytest.raises(ValueError, match="measurement names must be unique"):
        gradient_flow(small(), duration=1, measurements=clash)


def test_a_flow_is_drawn_over_time_only():
    flow = gradient_flow(small(), duration=3)
    descent = train(small(), GradientDescent(0.1), num_steps=30)
    figure = plot_runs([descent, flow], axis="time")
    assert [line.get_label() for line in figure.axes[0].lines] == ["gradient flow", "η = 0.1"]
    with pytest.raises(ValueError, match="no steps"):
        plot_runs([flow])


def test_random_projections_keep_distances():
    projection = RandomProjection(2000, 500)
    assert torch.equal(projection(torch.ones(2000)), RandomProjection(2000)(torch.ones(2000)))
    points = torch.randn(20, 2000, generator=torch.Generator().manual_seed(0))
    ratios = [float(projection(point).norm() / point.norm()) for point in points]
    assert 0.9 < min(ratios) < max(ratios) < 1.1
    with pytest.raises(ValueError, match="positive"):
        RandomProjection(0)
    with pytest.raises(ValueError, match=r"theta of shape \(2000,\), got \(20, 2000\)"):
        projection(points)


def test_a_projection_is_kept_in_one_precision():
    projection = RandomProjection(5000, 40)
    for dtype in (DOUBLE, torch.float32):
        projection(torch.ones(5000, dtype=dtype))
    kept = [kept for kept in vars(projection).values() if isinstance(kept, torch.Tensor)]
    assert sum(tensor.nbytes for tensor in kept) == 4 * 40 * 5000


def test_a_projection_is_the_same_after_a_call_in_another_precision():
    projection, theta = RandomProjection(50, 4), torch.randn(50, dtype=torch.float64)
    before = projection(theta)
    projection(theta.float())
    assert torch.equal(projection(theta), before)
