"""Everything stays on the device it was given, and comes out the same.

On a pretended accelerator both sides run the same kernels, so that the numbers are equal to the
last bit. On a GPU, where there is one, they are computed in float64 and agree to rounding.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from eoslib import (
    Adam,
    GradientDescent,
    InverseSharpness,
    Measurement,
    Minibatches,
    Nesterov,
    Objective,
    Polyak,
    RandomProjection,
    RMSProp,
    SharpnessTracker,
    StepSizeChanges,
    TaylorQuadratic,
    build,
    critical_sharpness,
    digits,
    directional_smoothness,
    effective_smoothness,
    every,
    gradient_flow,
    lanczos,
    lanczos_together,
    power_iteration,
    relative_progress,
    scipy_eigsh,
    sharpness_between,
    spectral_density,
    train,
    train_together,
)
from eoslib.measure import as_loss
from eoslib.quantities import QUANTITIES, Setting, quantity
from eoslib.spectrum import hutchinson_trace, trace
from tests.accelerator import CUDA, DEVICE, There, accelerator


def objective(device, loss="square", *, network="fc-tanh", **options):
    model = build(network, 64, 10, widths=(8, 8), seed=0)
    return Objective.from_dataset(model, digits(60), loss, device=device, **options)


@pytest.fixture(params=["pretended", CUDA])
def same(request):
    """Asserts that what `compute` makes of an objective is the same here and there."""

    def check(compute, make=objective, **options):
        if request.param == "cuda":
            options["dtype"] = "float64"
            there = compute(one := make("cuda", **options))
            assert one.initial_point.device.type == "cuda"
        else:
            with accelerator():
                one = make(DEVICE, **options)
                assert isinstance(one.initial_point, There)
                there = compute(one)
        here = compute(make("cpu", **options))
        for want, got in zip(_plain(here), _plain(there), strict=True):
            if request.param == "cuda":
                np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9 * np.abs(want).max())
            else:
                np.testing.assert_array_equal(got, want)

    return check


def _plain(result):
    if isinstance(result, torch.Tensor):
        return result.detach().cpu().numpy()
    if isinstance(result, (list, tuple)):
        return [_plain(part) for part in result]
    return np.asarray(result)


def test_what_meets_raises():
    with accelerator():
        here, there = torch.ones(3), torch.ones(3, device=DEVICE)
        with pytest.raises(RuntimeError, match="met one on the accelerator"):
            here + there
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        assert (2 * there).sum().item() == 6
        assert isinstance(there.new_tensor([1.0]), There)


@pytest.mark.parametrize("loss", ["square", "cross_entropy"])
@pytest.mark.parametrize("chunk_size", [None, 25])
@pytest.mark.parametrize("network", ["fc-tanh", "fc-relu"])
def test_derivatives(same, loss, chunk_size, network):
    def derivatives(one):
        theta = one.initial_point
        v = torch.linspace(-1, 1, one.num_parameters, device=one.device, dtype=one.dtype)
        return [
            *one.value_and_gradient(theta),
            one.hvp(theta, v),
            one.gauss_newton(theta) @ v,
            one.third_derivative(theta, v),
            one.outputs(theta),
            one.accuracy(theta),
            one.minibatch_gradient(theta, torch.arange(5)),
            *one.value_and_gradient(torch.stack([theta, 2 * theta])),
        ]

    same(derivatives, loss=loss, chunk_size=chunk_size, network=network)


def test_digests_for_checkpoints_are_those_of_the_cpu():
    with accelerator():
        there = objective(DEVICE).digests()
    assert there == objective("cpu").digests()


def test_class_weights_come_along(same):
    data, weight = digits(60), torch.arange(1.0, 11)
    loss = as_loss(nn.CrossEntropyLoss(weight, ignore_index=3, label_smoothing=0.1), data.labels)

    def weighted(device, **options):
        model = build("fc-tanh", 64, 10, widths=(8, 8), seed=0)
        return Objective(model, data.inputs, data.labels, loss, device=device, **options)

    def derivatives(one):
        theta = one.initial_point
        return [*one.value_and_gradient(theta), one.hvp(theta, theta)]

    same(derivatives, make=weighted)


def test_a_point_from_here_is_taken_along(same):
    theta = torch.linspace(-1, 1, objective("cpu").num_parameters)
    end = 0.99 * theta

    def numbers(one):
        hessian = one.hessian(theta)
        return [
            one.gradient(theta),
            hessian @ theta,
            lanczos(hessian, start=theta).values,
            one.third_derivative(theta, theta),
            sharpness_between(one, theta, end).value,
            directional_smoothness(one, theta, end),
            relative_progress(one, theta, 0.1),
            TaylorQuadratic(one, theta).value(end),
            *_record(train(one, GradientDescent(0.1), num_steps=3, theta=theta)),
            *_record(train(one, Polyak(0.1, 0.5), num_steps=3, theta=theta)),
            *_record(gradient_flow(one, duration=0.02, tick=0.01, theta=theta)),
        ]

    same(numbers)


def test_a_tracker_takes_points_from_here_and_there(same):
    theta = 0.99 * objective("cpu").initial_point

    def eigenvalues(one):
        tracker = SharpnessTracker(one)
        return [tracker(point) for point in (one.initial_point, theta, one.initial_point)]

    same(eigenvalues)


def test_eigensolvers(same):
    def eigenvalues(one):
        hessian = one.hessian(one.initial_point)
        several = one.hessian(torch.stack([one.initial_point, 1.1 * one.initial_point]))
        found = lanczos(hessian, 3)
        return [
            found.values,
            found.vectors,
            lanczos(hessian, which="smallest_algebraic").values,
            lanczos(hessian, start=found.vectors[:, 0]).values,
            *(result.values for result in lanczos_together(several)),
            power_iteration(hessian).values,
            scipy_eigsh(hessian, 1).values,
        ]

    same(eigenvalues)


def test_spectrum(same):
    def estimates(one):
        hessian = one.hessian(one.initial_point)
        density = spectral_density(hessian, num_probes=2, num_steps=10)
        return [density.nodes, trace(hessian).value, hutchinson_trace(hessian).value]

    same(estimates)


def test_between_and_along_steps(same):
    def numbers(one):
        theta = one.initial_point
        end = theta - 0.1 * one.gradient(theta)
        return [
            sharpness_between(one, theta, end).value,
            directional_smoothness(one, theta, end),
            effective_smoothness(one, theta, 0.1),
            relative_progress(one, theta, 0.1),
            critical_sharpness(one, theta).value,
        ]

    same(numbers)


@pytest.mark.parametrize(
    "rule",
    [
        lambda one: GradientDescent(0.2),
        lambda one: Polyak(0.1, 0.5),
        lambda one: Nesterov(0.1, 0.5),
        lambda one: StepSizeChanges(GradientDescent(0.2), [(5, 0.1)]),
        lambda one: Adam(0.01, epsilon=1e-3),
        lambda one: StepSizeChanges(RMSProp(0.01, epsilon=1e-3), [(5, 0.005)]),
    ],
)
def test_training(same, rule):
    same(
        lambda one: _record(train(one, rule(one), num_steps=12, sharpness=SharpnessTracker(one, 2)))
    )


@pytest.mark.parametrize("batch_norm", ["full_batch", "ghost", "running"])
def test_batch_normalization(same, batch_norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 10))
    chunk_size = 25 if batch_norm == "ghost" else None

    def make(device, **options):
        options |= {"batch_norm": batch_norm, "chunk_size": chunk_size}
        return Objective.from_dataset(model, digits(60), device=device, **options)

    same(lambda one: _record(train(one, GradientDescent(0.1), num_steps=4)), make=make)


def test_training_by_the_inverse_sharpness(same):
    def run(one):
        tracker = SharpnessTracker(one)
        return _record(train(one, InverseSharpness(tracker), num_steps=5, sharpness=tracker))

    same(run)


def test_training_with_mini_batches(same):
    same(
        lambda one: _record(
            train(one, GradientDescent(0.1), num_steps=8, batches=Minibatches(16, seed=1))
        )
    )


def test_training_together(same):
    same(
        lambda one: [
            values
            for run in train_together(one, [GradientDescent(lr) for lr in (0.1, 0.3)], num_steps=12)
            for values in _record(run)
        ]
    )


def test_gradient_flow_and_projections(same):
    def run(one):
        seen = Measurement("projection", RandomProjection(one.num_parameters, 7), every(1))
        return [*_record(gradient_flow(one, duration=0.3, tick=0.1, measurements=[seen]))]

    same(run)


def test_a_quadratic_model(same):
    def run(one):
        model = TaylorQuadratic(one, one.initial_point)
        return _record(train(model, GradientDescent(0.1), num_steps=5))

    same(run)


@pytest.mark.parametrize("name", QUANTITIES)
def test_quantities(same, name):
    options = {"expected-change": {"batch_size": 8}, "taylor": {"num_steps": 4}}.get(name, {})

    def run(one):
        rule, tracker = GradientDescent(0.2), SharpnessTracker(one)
        made = quantity(name, {"every": 2, **options}, Setting(one, rule, tracker))
        return _record(train(one, rule, num_steps=4, sharpness=tracker, measurements=[made]))

    same(run, loss="cross_entropy" if name == "output-curvature" else "square")


def _record(run):
    return [series.values for series in run.series.values()] + [run.final_point]
