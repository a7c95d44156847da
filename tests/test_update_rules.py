"""Each rule is PyTorch's, and turns unstable on a quadratic exactly at its own threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eoslib import (
    Adam,
    GradientDescent,
    InverseSharpness,
    Nesterov,
    Polyak,
    RMSProp,
    SharpnessTracker,
)
from eoslib.update_rules import StepSizeChanges, is_preconditioned, preconditioner_of
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


#: With what PyTorch calls it.
ADAPTIVE = [
    (RMSProp(0.01), torch.optim.RMSprop, {}),
    (RMSProp(0.01, 0.9, 1e-3), torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-3}),
    (Adam(0.01), torch.optim.Adam, {}),
    (Adam(0.01, 0.5, 0.9, 1e-3), torch.optim.Adam, {"betas": (0.5, 0.9), "eps": 1e-3}),
    (Adam(0.01, beta1=0, beta2=0), torch.optim.Adam, {"betas": (0.0, 0.0)}),
]


@pytest.mark.parametrize(("rule", "theirs", "options"), ADAPTIVE, ids=repr)
def test_adaptive_steps_are_those_of_pytorch_and_divided_by_the_preconditioner(
    rule, theirs, options
):
    """θ moves by −η D⁻¹ times the (averaged) gradient, with the D that is told beforehand."""
    theta = torch.linspace(-1, 1, 5, dtype=torch.float64)
    curvature = torch.tensor([1.0, 100.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    parameter = torch.nn.Parameter(theta.clone())
    optimizer = theirs([parameter], lr=rule.lr, **options)
    ours, state, mean = theta, rule.init(theta), torch.zeros(5, dtype=torch.float64)
    beta1 = getattr(rule, "beta1", 0.0)
    for _ in range(40):
        optimizer.zero_grad()
        (0.5 * curvature * parameter**2).sum().backward()
        optimizer.step()
        gradient = curvature * ours
        mean = beta1 * mean + (1 - beta1) * gradient
        scale = rule.preconditioner(gradient, state)
        moved = ours - rule.lr * mean / scale
        ours, state = rule.step(ours, gradient, state)
        assert torch.allclose(ours, parameter.detach(), rtol=1e-12, atol=1e-15)
        assert torch.allclose(ours, moved, rtol=1e-12, atol=1e-15)
    assert torch.equal(theta, torch.linspace(-1, 1, 5, dtype=torch.float64))


@pytest.mark.parametrize("rule", [rule for rule, *_ in ADAPTIVE], ids=repr)
def test_with_d_held_an_adaptive_rule_is_stable_up_to_its_threshold(rule):
    """On ½ a x² with D = 1 a step is linear in x and the averaged gradient m."""
    beta1, low, high = getattr(rule, "beta1", 0.0), 0.0, 100 / rule.lr
    for _ in range(60):
        a = (low + high) / 2
        mean = np.array([(1 - beta1) * a, beta1])  # of (x, m)
        step = np.array([[1.0, 0.0] - rule.lr * mean, mean])
        unstable = np.abs(np.linalg.eigvals(step)).max() > 1 + 1e-12
        low, high = (low, a) if unstable else (a, high)
    assert low == pytest.approx(rule.threshold, rel=1e-6)


def test_thresholds_of_adaptive_rules():
    assert RMSProp(0.01).threshold * 0.01 == pytest.approx(2)
    assert [Adam(0.01, b).threshold * 0.01 for b in (0, 0.5, 0.9)] == pytest.approx([2, 6, 38])
    assert Adam(0.01).settings == {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    assert RMSProp(0.01).settings == {"lr": 0.01, "beta2": 0.99, "epsilon": 1e-8}
    assert (Adam(0.01).name, RMSProp(0.01).name) == ("adam", "rmsprop")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Adam(0),
            "step size must be finite and above 0, got 0; a good first guess is 0.001",
        ),
        (lambda: RMSProp(float("inf")), "step size must be finite and above 0"),
        (lambda: Adam(0.1, beta1=1), r"beta1 must lie in \[0, 1\), got 1.0"),
        (lambda: Adam(0.1, beta2=-0.1), r"beta2 must lie in \[0, 1\), got -0.1"),
        (lambda: RMSProp(0.1, 1.5), r"beta2 must lie in \[0, 1\), got 1.5"),
        (lambda: RMSProp(0.1, beta2="0.9"), "beta2 must be a number, got '0.9'"),
        (lambda: Adam(0.1, epsilon=0), "epsilon must be finite and above 0, got 0.0"),
        (lambda: RMSProp(0.1, epsilon=float("nan")), "epsilon must be finite and above 0"),
    ],
)
def test_numbers_that_no_adaptive_rule_has(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("wrong", [None, 1.0, torch.ones(()), torch.ones(3)], ids=repr)
def test_a_preconditioner_that_is_no_diagonal_is_named(wrong):
    class Own(GradientDescent):
        name = "own"

        def preconditioner(self, gradient, state):
            return wrong

    gradient = torch.ones(2)
    with pytest.raises(ValueError, match=r"preconditioner of 'own' must give .* shape \(2,\), got"):
        preconditioner_of(Own(0.1), gradient, None)


def test_what_has_a_preconditioner():
    gradient = torch.tensor([0.5, -2.0], dtype=torch.float64)
    for rule in (GradientDescent(0.1), StepSizeChanges(Polyak(0.1, 0.9), [(1, 0.2)])):
        assert not is_preconditioned(rule)
        ones = preconditioner_of(rule, gradient, rule.init(gradient))
        assert ones.tolist() == [1, 1]
    adam = Adam(0.1, beta1=0.5)
    changing = StepSizeChanges(adam, [(1, 0.2)])
    state, inner = changing.init(gradient), adam.init(gradient)
    for _ in range(3):
        assert is_preconditioned(changing)
        own = adam.preconditioner(gradient, inner)
        assert torch.equal(preconditioner_of(changing, gradient, state), own)
        _, state = changing.step(gradient, gradient, state)
        _, inner = adam.step(gradient, gradient, inner)
    first = adam.preconditioner(gradient, adam.init(gradient))
    torch.testing.assert_close(first, 0.5 * gradient.abs(), rtol=1e-7, atol=0)


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
