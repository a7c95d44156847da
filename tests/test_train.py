"""The training loop: what is recorded when, how runs end, and that gradient descent obeys 2/η."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from torch import nn

from eoslib import (
    Adam,
    GradientDescent,
    InverseSharpness,
    Loss,
    Measurement,
    Minibatches,
    Objective,
    Polyak,
    RMSProp,
    SharpnessTracker,
    StepSizeChanges,
    accuracy_above,
    at_steps,
    build,
    chebyshev,
    digits,
    every,
    gradient_flow,
    log_spaced,
    loss_below,
    train,
    train_together,
)
from eoslib.measure import as_loss
from eoslib.plotting import plot_runs
from eoslib.recorder import Snapshot
from tests.oracles import dense_hessian, squared_weight

DOUBLE = torch.float64


def quadratic(curvature: float) -> Objective:
    """½ a x² as an objective: square loss of √a · x against zero, started at x = 1."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    inputs = torch.full((1, 1), curvature**0.5, dtype=DOUBLE)
    return Objective(model, inputs, torch.zeros(1, 1), dtype=DOUBLE)


def small(loss="square"):
    data = digits(50)
    model = build("fc-tanh", 64, 10, widths=(8,), seed=1)
    return Objective.from_dataset(model, data, loss, dtype=DOUBLE)


@pytest.mark.parametrize("lr", [0.01, 0.5, 7.0])
@pytest.mark.parametrize("factor", [0.999, 1.001])
def test_gradient_descent_is_unstable_exactly_above_its_threshold(lr, factor):
    rule = GradientDescent(lr)
    assert rule.threshold == pytest.approx(2 / lr)
    run = train(quadratic(factor * rule.threshold), rule, num_steps=200, settings={"note": "1-D"})
    losses = run["loss"].values
    assert (losses[-1] < losses[0]) == (factor < 1)
    np.testing.assert_allclose(run.sharpness_ratio.values, factor, rtol=1e-9)


def test_a_step_is_the_formula():
    objective = small()
    theta = objective.initial_point
    run = train(objective, GradientDescent(0.3), num_steps=1)
    expected = theta - 0.3 * objective.gradient(theta)
    assert torch.allclose(torch.from_numpy(run.final_point), expected, rtol=1e-14)
    assert torch.equal(theta, objective.initial_point)


def test_each_series_has_its_own_steps_and_is_measured_before_the_step():
    objective = small()
    run = train(
        objective,
        GradientDescent(0.1),
        num_steps=20,
        sharpness=SharpnessTracker(objective, 2),
        sharpness_schedule=every(7),
        measurements=[
            Measurement("norm", lambda theta: theta.norm(), at_steps([0, 3])),
            Measurement("accuracy", objective.accuracy, every(10)),
            Measurement("first two", lambda theta: theta[:2], at_steps([0, 20])),
        ],
    )
    assert run["loss"].steps.tolist() == list(range(21))
    assert run["sharpness"].steps.tolist() == [0, 7, 14]
    assert run["eigenvalues"].values.shape == (3, 2)
    assert run["norm"].steps.tolist() == [0, 3]
    assert run["accuracy"].steps.tolist() == [0, 11, 20]
    assert run["first two"].values.shape == (2, 2)
    assert run["loss"].values[0] == pytest.approx(float(objective.value(objective.initial_point)))
    assert run["norm"].values[0] == pytest.approx(float(objective.initial_point.norm()))
    assert run.settings["lr"] == 0.1
    assert run.settings["threshold"] == pytest.approx(20)
    assert run.provenance["num_gradients"] == 21
    assert run.provenance["num_products"] > 0
    assert run.outcome.status == "completed"


def test_momentum_is_on_record():
    given = {"lr": 7.0, "seed": 3}  # what was done counts
    run = train(small(), Polyak(0.1, beta=0.5), num_steps=3, settings=given)
    recorded = {key: run.settings[key] for key in ("optimizer", "lr", "beta", "threshold", "seed")}
    assert recorded == {
        "optimizer": "polyak", "lr": 0.1, "beta": 0.5, "threshold": 30.0, "seed": 3,
    }  # fmt: skip


@pytest.mark.parametrize("factor", [1e3, 1e6])
def test_a_run_has_diverged_when_its_loss_exceeds_a_multiple_of_the_first(factor):
    objective = quadratic(1.0)  # each step at η = 3 multiplies the loss by four
    run = train(objective, GradientDescent(3.0), num_steps=100, divergence_factor=factor)
    assert run.outcome.status == "diverged"
    assert run.outcome.step == int(np.ceil(np.log(factor) / np.log(4)))
    assert run["loss"].values[-1] <= factor * run["loss"].values[0]


def test_divergence_is_an_outcome():
    run = train(small(), GradientDescent(1e4), num_steps=500)
    assert run.outcome.status == "diverged"
    assert 0 < run.outcome.step < 500
    assert "step size 10000" in run.outcome.message
    assert np.isfinite(run["loss"].values).all()
    assert len(run["loss"]) == run.outcome.step
    assert run.describe() == f"diverged at step {run.outcome.step}"


def test_stop_rules():
    objective = small()
    by_loss = train(objective, GradientDescent(0.2), num_steps=2000, stop=[loss_below(0.2)])
    assert by_loss.outcome.status == "goal reached"
    assert by_loss["loss"].values[-1] < 0.2 <= by_loss["loss"].values[-2]
    rule = accuracy_above(objective, 0.9)
    by_accuracy = train(objective, GradientDescent(0.2), num_steps=2000, stop=[rule])
    assert by_accuracy.outcome.status == "goal reached"
    assert objective.accuracy(torch.from_numpy(by_accuracy.final_point)) > 0.9
    assert "accuracy" in by_accuracy.outcome.message
    objective.accuracy = lambda theta: 0.9995
    for goal, words in ((0.999, "99.95% > 99.9%"), (0.99, "99.95% > 99%")):
        report = accuracy_above(objective, goal)(Snapshot(0, 1, 1.0, theta=None, record=None))
        assert report == f"training accuracy {words}"


def test_an_accuracy_goal_is_exceeded_and_asked_for_at_intervals():
    half = SimpleNamespace(accuracy=lambda theta: 0.5)
    at = [SimpleNamespace(step=step, theta=None) for step in range(9)]
    assert accuracy_above(half, 0.5)(at[0]) is None
    rule = accuracy_above(half, 0.4, interval=4)
    assert [now.step for now in at if rule(now)] == [0, 4, 8]


def test_a_report_can_stop_the_run_and_see_it_so_far():
    seen = []

    def report(now):
        seen.append((now.step, len(now.record()["loss"])))
        return now.step == 4

    run = train(small(), GradientDescent(0.1), num_steps=100, report=report)
    assert run.outcome.status == "stopped"
    assert seen == [(step, step + 1) for step in range(5)]


def test_the_same_seed_gives_the_same_bits_with_any_number_of_threads():
    threads, used, runs = torch.get_num_threads(), set(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            runs.append(
                train(
                    small("cross_entropy"),
                    GradientDescent(0.5),
                    num_steps=60,
                    report=lambda now: used.add(torch.get_num_threads()),
                )
            )
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    first, second = runs
    assert used == {first.provenance["threads"], second.provenance["threads"]} == {1}
    for name in ("loss", "sharpness"):
        np.testing.assert_array_equal(first[name].values, second[name].values)


def test_schedules():
    due = [step for step in range(30) if every(7)(step)]
    assert due == [0, 7, 14, 21, 28]
    spaced = [step for step in range(1001) if log_spaced(4)(step)]
    assert spaced == [0, 1, 2, 3, 6, 10, 18, 32, 56, 100, 178, 316, 562, 1000]
    decades = [step for step in range(1001) if log_spaced(1, last=1000)(step)]
    assert decades == [0, 1, 10, 100, 1000]
    for bad in (0, -1, 2.5):
        with pytest.raises(ValueError, match="positive whole number"):
            every(bad)


def test_a_recorded_value_is_a_copy_and_keeps_its_shape():
    buffer = torch.zeros((), dtype=DOUBLE)

    def count(_theta):
        return buffer.add_(1)

    run = train(small(), GradientDescent(0.1), num_steps=3,
                measurements=[Measurement("count", count, every(1))])  # fmt: skip
    assert run["count"].values.tolist() == [1, 2, 3, 4]
    growing = [Measurement("growing", lambda theta: theta[: len(seen)], every(1))]
    seen = []
    with pytest.raises(ValueError, match=r"'growing' gave shape \(1,\) at step 1, after \(0,\)"):
        train(small(), GradientDescent(0.1), num_steps=3, measurements=growing,
              report=lambda now: seen.append(now.step))  # fmt: skip


def test_a_loss_that_is_not_finite_from_the_start():
    objective = small()
    nowhere = torch.full_like(objective.initial_point, torch.nan)
    run = train(objective, GradientDescent(0.1), num_steps=3, theta=nowhere)
    assert (run.outcome.status, run.outcome.step) == ("diverged", 0)
    assert len(run["loss"]) == len(run["sharpness"]) == 0
    assert run.describe() == "diverged at step 0"


def test_a_run_without_sharpness_can_be_described():
    run = train(small(), GradientDescent(0.1), num_steps=3, sharpness_schedule=at_steps([]))
    assert run.describe() == "completed at step 3"
    assert run.crossing is None


def test_settings_are_checked_before_training_not_after():
    def report(now):
        raise AssertionError("training began")

    with pytest.raises(TypeError, match=r"settings\['model'\] is a Linear"):
        train(small(), GradientDescent(0.1), num_steps=3, report=report,
              settings={"model": nn.Linear(1, 1)})  # fmt: skip


@pytest.mark.parametrize("lr", [0, -0.1, float("nan"), float("inf"), "fast", None, True])
def test_step_sizes_that_are_none(lr):
    with pytest.raises(ValueError, match="step size must be"):
        GradientDescent(lr)


def test_wrong_arguments_of_train():
    with pytest.raises(ValueError, match="num_steps must be a positive"):
        train(small(), GradientDescent(0.1), num_steps=0)
    for name in ("loss", "preconditioned_sharpness"):
        clash = [Measurement(name, lambda theta: 0.0, every(1))]
        with pytest.raises(ValueError, match=r"measurement names must be unique.*training's own"):
            train(small(), GradientDescent(0.1), num_steps=1, measurements=clash)
    for rule in ("adam", torch.optim.Adam):
        with pytest.raises(ValueError, match=r"for instance Adam\(0\.001\)"):
            train(small(), rule, num_steps=1)
    with pytest.raises(ValueError, match="expected theta of shape"):
        train(small(), GradientDescent(0.1), num_steps=1, theta=torch.zeros(3))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_edge_of_stability_on_chebyshev(seed):
    model = build("fc-tanh", 1, 1, widths=(30, 30), seed=seed)
    objective = Objective.from_dataset(model, chebyshev(4), dtype=DOUBLE)
    run = train(objective, GradientDescent(0.2), num_steps=2000, sharpness_schedule=every(7))
    assert run.outcome.status == "completed"
    assert run.crossing is not None
    assert 0.95 < np.median(run.sharpness_ratio.since(run.crossing + 200).values) < 1.1
    assert run["loss"].values[-1] < 0.5 * run["loss"].values[run.crossing]


def test_even_intervals_see_both_sides_of_a_period_of_two():
    assert [step for step in range(100) if every(20)(step)] == [0, 21, 40, 61, 80]
    assert [step for step in range(13) if every(2)(step)] == [0, 3, 4, 7, 8, 11, 12]
    assert [step for step in range(12) if every(5)(step)] == [0, 5, 10]
    assert all(every(1)(step) for step in range(5))


def fit(loss="square", seed=1):
    """No gradient is exactly zero here, as those of the digits' empty pixels are."""
    model = build("fc-tanh", 1, 1, widths=(8, 8), init="lecun", seed=seed)
    return Objective.from_dataset(model, chebyshev(3, 12), loss, dtype=DOUBLE)


ADAPTIVE = (Adam(0.002, 0.5, 0.9), RMSProp(0.001), StepSizeChanges(Adam(0.01), [(4, 0.001)]))


@pytest.mark.parametrize("rule", ADAPTIVE, ids=["adam", "rmsprop", "changes"])
@pytest.mark.parametrize("batches", [None, Minibatches(5)])
def test_the_preconditioned_sharpness_is_that_of_the_step_to_come(rule, batches):
    """Against a dense Hessian and the D that turns the (averaged) gradient into the step."""
    objective, points = fit(), []
    run = train(
        objective,
        rule,
        num_steps=9,
        sharpness=SharpnessTracker(objective, rtol=1e-6),
        sharpness_schedule=every(1),
        batches=batches,
        report=lambda now: points.append(now.theta.clone()),
    )
    inner = rule.rule if isinstance(rule, StepSizeChanges) else rule
    gradients = None if batches is None else batches.epochs(objective.num_examples)
    mean, beta1 = 0.0, getattr(inner, "beta1", 0.0)
    assert run.preconditioned_sharpness.steps.tolist() == list(range(10))
    if batches is None:  # both measurements share the step's graph
        assert run.provenance["num_gradients"] == 10
    for step, (here, after) in enumerate(itertools.pairwise(points)):
        gradient = (
            objective.gradient(here)
            if gradients is None
            else objective.minibatch_gradient(here, next(gradients))
        )
        mean = beta1 * mean + (1 - beta1) * gradient
        lr = 0.001 if inner is not rule and step >= 4 else rule.lr
        scale = (lr * mean / (here - after)).rsqrt()
        hessian = dense_hessian(objective, here)
        exact = torch.linalg.eigvalsh(scale[:, None] * hessian * scale)[-1].item()
        assert run["preconditioned_sharpness"].values[step] == pytest.approx(exact, rel=1e-4)
        plain = torch.linalg.eigvalsh(hessian)[-1].item()
        assert run["sharpness"].values[step] == pytest.approx(plain, rel=1e-4)
    assert "preconditioned_sharpness" not in train(fit(), GradientDescent(0.1), num_steps=1).series


def test_adaptive_rules_beside_others_in_one_computation(monkeypatch):
    """One diverges, so that the rows of the others move up, in both trackers."""
    objective, kept = fit(), []
    keep_runs = SharpnessTracker.keep_runs
    monkeypatch.setattr(
        SharpnessTracker,
        "keep_runs",
        lambda tracker, runs: [keep_runs(tracker, runs), kept.append((id(tracker), runs))],
    )
    rules = [GradientDescent(0.1), Adam(1e6), *ADAPTIVE]
    runs = train_together(objective, rules, num_steps=30, sharpness_schedule=every(3))
    assert runs[1].outcome.status == "diverged"
    assert [runs for _, runs in kept[:2]] == [[0, 2, 3, 4]] * 2
    assert len({tracker for tracker, _ in kept[:2]}) == 2
    for rule, run in zip(rules, runs, strict=True):
        alone = train(objective, rule, num_steps=30, sharpness_schedule=every(3))
        assert run.series.keys() == alone.series.keys()
        assert run.settings == alone.settings
        for name, series in alone.series.items():
            np.testing.assert_array_equal(run[name].steps, series.steps)
            np.testing.assert_allclose(run[name].values, series.values, rtol=2e-3)
    assert ["preconditioned_sharpness" in run.series for run in runs] == [False, *[True] * 4]


class _NotFinite(RMSProp):
    """From its second step on it has lost its averages."""

    def preconditioner(self, gradient, state):
        scale = super().preconditioner(gradient, state)
        return scale * (torch.nan if bool(state.any()) else 1.0)


def test_a_preconditioner_that_is_not_finite_ends_its_own_run_only():
    objective = fit()
    rules = [GradientDescent(0.1), _NotFinite(0.001), Adam(0.001)]
    runs = train_together(objective, rules, num_steps=6, sharpness_schedule=every(1))
    assert [run.outcome.status for run in runs] == ["completed", "diverged", "completed"]
    assert np.isnan(runs[1]["preconditioned_sharpness"].values[1])
    assert np.isfinite(runs[2]["preconditioned_sharpness"].values).all()


def test_a_scale_of_zero_is_no_error_but_a_missing_measurement():
    model = build("fc-relu", 64, 10, widths=(8,), seed=1)
    with torch.no_grad():
        next(p for p in model.parameters() if p.shape == (8,))[0] = -1e3  # a unit that is dead
    objective = Objective.from_dataset(model, digits(50), dtype="float32")
    for epsilon, status in ((1e-60, "diverged"), (1e-8, "completed")):  # 0/0, as in PyTorch
        rule = RMSProp(0.001, epsilon=epsilon)
        run = train(objective, rule, num_steps=3, sharpness_schedule=every(1))
        assert run.outcome.status == status
        missing = np.isnan(run["preconditioned_sharpness"].values)
        assert missing.all() == missing.any() == (status == "diverged")


def test_an_adaptive_run_knows_its_kind_before_it_is_measured():
    run = train(fit(), Adam(0.001), num_steps=2, sharpness_schedule=at_steps([]))
    assert run.is_preconditioned
    assert run.describe() == "completed at step 2"
    assert "preconditioned_sharpness" not in train(fit(), GradientDescent(0.1), num_steps=1).series


def test_nothing_is_measured_for_adaptive_rules_that_have_ended():
    objective = fit()
    options = {"num_steps": 30, "sharpness_schedule": every(1)}
    plain = train_together(objective, [GradientDescent(0.1)] * 2, **options)
    mixed = train_together(objective, [GradientDescent(0.1), Adam(1e6)], **options)
    assert mixed[1].outcome.status == "diverged"
    products = [runs[0].provenance["num_products"] for runs in (plain, mixed)]
    assert products[1] < 1.5 * products[0]


def test_the_preconditioned_sharpness_is_of_the_objective_that_is_measured():
    objective, other = fit(), fit(seed=3)
    tracker = SharpnessTracker(other, rtol=1e-6)
    run = train(objective, RMSProp(0.01), num_steps=1, sharpness=tracker)
    theta = objective.initial_point
    scale = RMSProp(0.01).preconditioner(objective.gradient(theta), torch.zeros_like(theta)).rsqrt()
    hessian = scale[:, None] * dense_hessian(other, theta) * scale
    exact = torch.linalg.eigvalsh(hessian)[-1].item()
    assert run["preconditioned_sharpness"].values[0] == pytest.approx(exact, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rule", [RMSProp(5e-4), Adam(2e-3), Adam(1e-3, 0.5)], ids=repr)
def test_the_adaptive_edge_of_stability_on_chebyshev(rule, seed):
    model = build("fc-tanh", 1, 1, widths=(20, 20), init="lecun", seed=seed)
    objective = Objective.from_dataset(model, chebyshev(4), dtype=DOUBLE)
    run = train(objective, rule, num_steps=3000, sharpness_schedule=every(25))
    assert 0.9 < np.median(run.sharpness_ratio.since(2000).values) < 1.1


class TestTogether:
    rules = (GradientDescent(0.05), GradientDescent(0.2), Polyak(0.05, beta=0.9))

    def both(self, objective, rules, **options):
        alone = [train(objective, rule, **options) for rule in rules]
        return alone, train_together(objective, rules, **options)

    @pytest.mark.parametrize("loss", ["square", "cross_entropy"])
    def test_each_run_is_what_it_is_alone(self, loss):
        objective = small(loss)
        alone, together = self.both(objective, self.rules, num_steps=40)
        for one, other in zip(alone, together, strict=True):
            assert other.settings == one.settings
            assert other.outcome == one.outcome
            np.testing.assert_allclose(other["loss"].values, one["loss"].values, rtol=1e-9)
            np.testing.assert_array_equal(other["sharpness"].steps, one["sharpness"].steps)
            np.testing.assert_allclose(other["sharpness"].values, one["sharpness"].values, 1e-5)
            np.testing.assert_allclose(other.final_point, one.final_point, rtol=1e-8, atol=1e-10)
        assert [run.provenance["runs_together"] for run in together] == [3, 3, 3]

    def test_runs_that_end_make_room(self):
        rules = [GradientDescent(lr) for lr in (0.1, 1e4, 0.2, 0.001)]
        goal = loss_below(0.3)
        alone, together = self.both(small(), rules, num_steps=200, stop=[goal])
        statuses = [run.outcome.status for run in together]
        assert statuses == ["goal reached", "diverged", "goal reached", "completed"]
        for one, other in zip(alone, together, strict=True):
            assert other.outcome == one.outcome
            np.testing.assert_allclose(other["loss"].values, one["loss"].values, rtol=1e-6)
            assert other["loss"].steps[-1] == one["loss"].steps[-1]

    def test_a_report_stops_one_run(self):
        (fast,) = train_together(small(), [self.rules[1]], num_steps=3)

        def report(now):
            return now.step == 3 and now.loss == pytest.approx(fast["loss"].values[3], rel=1e-9)

        together = train_together(small(), self.rules, num_steps=5, report=report)
        assert [run.outcome.status for run in together] == ["completed", "stopped", "completed"]
        assert [len(run["loss"].steps) for run in together] == [6, 4, 6]

    def test_no_rule(self):
        with pytest.raises(ValueError, match="no update rule"):
            train_together(small(), [], num_steps=3)


# -- mini-batches ----------------------------------------------------------------------------------


def test_every_example_is_seen_once_an_epoch():
    dealt = Minibatches(7, seed=3).epochs(20)
    epochs = [torch.cat([next(dealt) for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(20))
    assert not torch.equal(*epochs)
    again = Minibatches(7, seed=3).epochs(20)
    assert torch.equal(next(again), epochs[0][:7])


def test_a_mini_batch_gradient_is_that_of_the_loss_of_its_examples():
    data, model = digits(50), build("fc-tanh", 64, 10, widths=(8,), seed=1)
    objective = Objective.from_dataset(model, data, dtype=DOUBLE)
    rows = torch.tensor([3, 4, 4, 10])
    part = Objective(model, data.inputs[rows], data.targets[rows], dtype=DOUBLE)
    theta = objective.initial_point
    got = objective.minibatch_gradient(theta, rows)
    torch.testing.assert_close(got, part.gradient(theta))
    both = objective.minibatch_gradient(torch.stack([theta, 2 * theta]), rows)
    torch.testing.assert_close(both[0], got)
    assert objective.num_gradients == pytest.approx(2 * 4 / 50)
    with pytest.raises(ValueError, match="shape"):
        objective.minibatch_gradient(theta, torch.zeros(0, dtype=torch.int64))


def test_stochastic_gradient_descent_measures_the_full_batch():
    objective = small()
    schedule = every(5)
    run = train(
        objective,
        GradientDescent(0.05),
        num_steps=20,
        sharpness_schedule=schedule,
        batches=Minibatches(10, seed=1),
    )
    assert run["loss"].steps.tolist() == run.sharpness.steps.tolist()
    final = torch.from_numpy(run.final_point)
    assert run["loss"].values[-1] == pytest.approx(float(objective.value(final)))
    assert (run.settings["batch_size"], run.settings["batch_seed"]) == (10, 1)

    theta, dealt = objective.initial_point, Minibatches(10, seed=1).epochs(50)
    for _ in range(20):
        theta = theta - 0.05 * objective.minibatch_gradient(theta, next(dealt))
    torch.testing.assert_close(final, theta)

    full = train(objective, GradientDescent(0.05), num_steps=20, batches=Minibatches(50))
    plain = train(objective, GradientDescent(0.05), num_steps=20)
    np.testing.assert_allclose(full.final_point, plain.final_point, rtol=1e-9)


def test_runs_with_mini_batches_train_together():
    objective = small()
    rules = [GradientDescent(lr) for lr in (0.05, 0.1)]
    runs = train_together(objective, rules, num_steps=30, batches=Minibatches(5))
    for rule, run in zip(rules, runs, strict=True):
        alone = train(objective, rule, num_steps=30, batches=Minibatches(5))
        np.testing.assert_allclose(run.final_point, alone.final_point, rtol=1e-9, atol=1e-12)


def test_stochastic_explosions_between_measurements_are_outcomes():
    model = nn.Linear(1, 2, bias=False)
    nn.init.ones_(model.weight)
    targets = torch.tensor([[1.0, 0.0]])  # nothing pulls at the first weight
    run = train(
        Objective(model, torch.ones(1, 1), targets, dtype=DOUBLE),
        GradientDescent(1e20),
        num_steps=100,
        sharpness_schedule=every(1000),
        batches=Minibatches(1),
    )
    assert run.outcome.status == "diverged"
    assert "the gradient was no longer finite" in run.outcome.message


def test_bad_batches_are_refused():
    with pytest.raises(ValueError, match="number of examples must be a positive whole"):
        Minibatches(0)
    with pytest.raises(ValueError, match="cannot be drawn"):
        train(small(), GradientDescent(0.1), num_steps=1, batches=Minibatches(51))
    model = nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10))
    normed = Objective.from_dataset(model, digits(50), batch_norm="full_batch")
    with pytest.raises(ValueError, match="another loss"):
        train(normed, GradientDescent(0.1), num_steps=1, batches=Minibatches(5))


def test_a_first_loss_below_zero_is_no_measure_of_divergence():
    torch.manual_seed(0)
    inputs, counts = torch.randn(50, 4), torch.poisson(torch.full((50, 1), 3.0))
    loss = as_loss(nn.PoissonNLLLoss(), counts)
    objective = Objective(nn.Linear(4, 1), inputs, counts, loss, dtype=DOUBLE)
    with torch.no_grad():  # near the optimum, where this loss is negative
        theta = torch.zeros_like(objective.initial_point)
        theta[-1] = 0.8
    run = train(objective, GradientDescent(0.7), num_steps=3, theta=theta)
    assert run["loss"].values[0] < 0 < run["loss"].values.max()
    assert run.outcome.status == "completed"
    exploded = train(objective, GradientDescent(40.0), num_steps=50, theta=theta)
    assert exploded.outcome.status == "diverged"


def test_a_first_loss_far_below_zero_counts_by_its_size():
    loss = Loss("low", "low", lambda f, y: 0.5 * (f - y).square() - 100, lambda f, y: None)
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    objective = Objective(model, torch.ones(1, 1), torch.zeros(1, 1), loss, dtype=DOUBLE)
    run = train(objective, GradientDescent(3.0), num_steps=9, divergence_factor=1.0)
    assert run["loss"].values.tolist() == pytest.approx([-99.5, -98, -92, -68, 28])
    assert (run.outcome.status, run.outcome.step) == ("diverged", 5)  # 412 > 99.5


def test_a_start_is_brought_to_the_objectives_dtype_and_has_its_shape():
    objective = Objective.from_dataset(
        build("fc-tanh", 1, 1, widths=(4,)), chebyshev(3, 10), dtype=DOUBLE
    )
    start = objective.initial_point.float()
    runs = [
        train(objective, Polyak(0.1, 0.9), num_steps=20, theta=theta)
        for theta in (start, start.double())
    ]
    assert [run.final_point.dtype for run in runs] == [np.float64] * 2
    np.testing.assert_array_equal(runs[0].final_point, runs[1].final_point)
    for follow in (train, gradient_flow):
        rest = {"num_steps": 1} if follow is train else {"duration": 0.1}
        arguments = (GradientDescent(0.1),) if follow is train else ()
        with pytest.raises(ValueError, match=r"expected theta of shape \(13,\), got \(1, 13\)"):
            follow(objective, *arguments, theta=start[None], **rest)


@pytest.mark.parametrize("value", [None, "x", ["x", 1.0], torch.tensor(1j), np.array([1j])])
def test_a_measurement_that_gives_no_number_is_refused(value):
    broken = Measurement("forgotten", lambda theta: value, every(1))
    with pytest.raises(ValueError, match=r"'forgotten' gave .* at step 0, expected a number"):
        train(small(), GradientDescent(0.1), num_steps=2, measurements=[broken])


@pytest.mark.parametrize("method", ["gradient descent", "gradient flow", "two at once"])
def test_a_tracker_measures_its_own_objective(method):
    objective = small()
    part = Objective.from_dataset(build("fc-tanh", 64, 10, widths=(8,)), digits(10), dtype=DOUBLE)
    tracker = SharpnessTracker(part, rtol=1e-6)
    assert tracker.objective is part
    if method == "gradient flow":
        run = gradient_flow(objective, duration=0.2, tick=0.1, sharpness=tracker)
    else:
        rules = [GradientDescent(0.1)] * (2 if method == "two at once" else 1)
        run = train_together(objective, rules, num_steps=1, sharpness=tracker)[-1]
    want = float(SharpnessTracker(part, rtol=1e-6)(objective.initial_point)[0])
    of_all = float(SharpnessTracker(objective, rtol=1e-6)(objective.initial_point)[0])
    assert run.sharpness.values[0] == pytest.approx(want, rel=1e-5)
    assert want != pytest.approx(of_all, rel=0.05)


def test_the_rule_of_inverse_sharpness_ends_where_the_sharpness_is_not_found():
    tracker = SharpnessTracker(small(), max_products=2)
    run = train(
        tracker.objective, InverseSharpness(tracker), num_steps=50, sharpness=tracker,
        sharpness_schedule=every(1),
    )  # fmt: skip
    assert (run.outcome.status, run.outcome.step) == ("stopped", 0)
    assert "out of products" in run.outcome.message and "at step 0" in run.outcome.message
    assert len(run["loss"]) == 1
    np.testing.assert_array_equal(run.final_point, tracker.objective.initial_point.numpy())
    # Enough for the first of eight eigenvalues, not for the last.
    tracker = SharpnessTracker(small(), k=8, max_products=25)
    run = train(tracker.objective, InverseSharpness(tracker), num_steps=2, sharpness=tracker)
    assert tracker.unconverged == 1 and run.outcome.status == "completed"
    hill = squared_weight()
    tracker = SharpnessTracker(hill)
    run = train(hill, InverseSharpness(tracker), num_steps=5, sharpness=tracker)
    assert "no step size at a sharpness of -39.99" in run.outcome.message


def test_a_tracker_of_another_size_is_refused():
    other = quadratic(1.0)
    with pytest.raises(ValueError, match="shape"):
        train(small(), GradientDescent(0.1), num_steps=1, sharpness=SharpnessTracker(other))


def test_a_rule_without_a_step_size_of_its_own_can_be_told_and_drawn():
    tracker = SharpnessTracker(small())
    run = train(
        tracker.objective, InverseSharpness(tracker), num_steps=3, sharpness=tracker,
        sharpness_schedule=every(1),
    )  # fmt: skip
    assert "nan" not in run.describe() and run.describe().startswith("completed at step 3: sharp")
    pyplot.close(run.plot())
    both = plot_runs([run, train(small(), GradientDescent(0.1), num_steps=3)])
    labels = [text.get_text() for text in both.axes[0].get_legend().get_texts()]
    assert labels == ["inverse-sharpness", "η = 0.1"]
    pyplot.close(both)
