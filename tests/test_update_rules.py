"""Each rule is PyTorch's, and turns unstable on a quadratic exactly at its own threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eoslib import GradientDescent, InverseSharpness, Nesterov, Polyak, SharpnessTracker
from eoslib.update_rules import StepSizeChanges
from tests.oracles import squared_weight

RULES = [
    GradientDescent(0.1),
    *(rule(0.1, b) for rule in (Polyak, Nesterov) for b in (0, 0.5, 0.9)),
]


def growth(rule, curvature: float) -> float:
    """Spectral radius of one step on ½ a x²: the step is linear in (x, state), so apply it."""
    columns = []
    for x, v in ((1.0, 0.0), (0.0, 1.0)):
        theta, state = torch.tensor([x], dtype=torch.float64), torch.tensor([v]).double()
        start = rule.init(theta)
        following, state = rule.step(theta, curvature * theta, None if start is None else state)
        columns.append([float(following), 0.0 if state is None else float(state)])
    return float(np.abs(np.linalg.eigvals(np.array(columns).T)).max())


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_unstable_exactly_above_the_threshold(rule):
    low, high = 0.0, 10 * rule.threshold
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if growth(rule, middle) > 1 + 1e-12 else (middle, high)
    assert low == pytest.approx(rule.threshold, rel=1e-6)


@pytest.mark.parametrize(("rule", "expected"), [(Polyak, 3.8), (Nesterov, 1.357143)])
def test_thresholds_at_the_usual_momentum(rule, expected):
    assert rule(0.02, 0.9).threshold * 0.02 == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_steps_are_those_of_pytorch(rule):
    theta = torch.linspace(-1, 1, 5, dtype=torch.float64)
    curvature = torch.arange(1.0, 6.0, dtype=torch.float64)
    theirs = torch.nn.Parameter(theta.clone())
    beta = getattr(rule, "beta", 0)
    options = {"momentum": beta, "nesterov": isinstance(rule, Nesterov) and beta > 0}
    optimizer = torch.optim.SGD([theirs], lr=rule.lr, **options)
    ours, state = theta, rule.init(theta)
    for _ in range(20):
        optimizer.zero_grad()
        (0.5 * curvature * theirs**2).sum().backward()
        optimizer.step()
        ours, state = rule.step(ours, curvature * ours, state)
        assert torch.allclose(ours, theirs.detach(), rtol=1e-13)
    assert torch.equal(theta, torch.linspace(-1, 1, 5, dtype=torch.float64))


def test_a_momentum_is_a_number_of_pythons():
    for beta in (torch.tensor(0.5), np.float32(0.5)):
        assert type(Polyak(0.1, beta).settings["beta"]) is float


@pytest.mark.parametrize("beta", [-0.1, 1, 1.5, float("nan")])
@pytest.mark.parametrize("rule", [Polyak, Nesterov])
def test_momenta_that_are_none(rule, beta):
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\)"):
        rule(0.1, beta)
    with pytest.raises(ValueError, match="step size must be"):
        rule(0, 0.9)


def test_a_step_size_may_change_at_the_first_step():
    rule, theta = StepSizeChanges(GradientDescent(0.1), [(0, 0.5)]), torch.ones(1)
    point, _ = rule.step(theta, theta, rule.init(theta))
    assert float(point) == 0.5


def test_the_inverse_sharpness_is_that_of_one_run_that_was_measured():
    task = squared_weight()
    tracker, theta = SharpnessTracker(task), task.initial_point
    rule = InverseSharpness(tracker)
    for measure in (lambda: None, lambda: tracker(torch.stack([theta, theta]))):
        measure()
        with pytest.raises(ValueError, match="needs a tracker of one run that has measured"):
            rule.step(theta, theta, None)
