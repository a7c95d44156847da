"""Arguments of a wrong type are refused in words, before anything is computed with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from eoslib import (
    Checkpoint,
    Experiment,
    GradientDescent,
    InverseSharpness,
    Measurement,
    Minibatches,
    Objective,
    Polyak,
    RandomProjection,
    SharpnessTracker,
    StepSizeChanges,
    SymmetricOperator,
    TaylorQuadratic,
    accuracy_above,
    at_steps,
    build,
    chebyshev,
    critical_sharpness,
    effective_smoothness,
    every,
    gradient_flow,
    lanczos,
    lanczos_together,
    log_spaced,
    loss_below,
    power_iteration,
    scipy_eigsh,
    sharpness_between,
    spectral_density,
    train,
    train_together,
)
from eoslib._arguments import a_number, a_whole_number

DATA = chebyshev(3, 10)
TASK = Objective.from_dataset(build("fc-tanh", 1, 1, widths=(4,), seed=2), DATA)
THETA, RULE = TASK.initial_point, GradientDescent(0.05)
MATRIX = SymmetricOperator.from_dense(torch.diag(torch.arange(1.0, 9.0)))
TWO = SymmetricOperator.from_dense(torch.eye(8).repeat(2, 1, 1))


def trained(**options):
    return train(TASK, **{"rule": RULE, "num_steps": 2, **options})


def flowed(**options):
    return gradient_flow(TASK, **{"duration": 1, **options})


REFUSED = {
    "a rule's name": (lambda: trained(rule="polyak"), r"'polyak'; for instance Polyak\(0\.01"),
    "a step size": (lambda: trained(rule=0.1), r"got 0\.1; for instance GradientDescent\(0\.01\)"),
    "a rule's class": (lambda: trained(rule=GradientDescent), "got the class GradientDescent"),
    "names of rules": (lambda: train_together(TASK, ["gd"], num_steps=1), "update rule.* got 'gd'"),
    "a rule, no list": (lambda: train_together(TASK, RULE, num_steps=1), "a list of .* got a Grad"),
    "no rules": (lambda: train_together(TASK, [], num_steps=1), "no update rule was given"),
    "steps": (
        lambda: trained(num_steps="10"),
        "num_steps must be a positive whole number, got '10'",
    ),
    "steps, yes": (lambda: trained(num_steps=True), "positive whole number, got True"),
    "steps for ever": (lambda: trained(num_steps=math.inf), "got inf"),
    "a point": (lambda: trained(theta=[0.0] * 13), "theta must be a tensor, got a list"),
    "a model to train": (lambda: train(nn.Linear(2, 2), RULE, num_steps=1), "of the model and its"),
    "a tracker": (lambda: trained(sharpness=0), r"must be a SharpnessTracker\(objective\), got 0"),
    "a schedule": (lambda: trained(sharpness_schedule=5), r"got 5; for instance every\(5\)"),
    "batches": (lambda: trained(batches=32), r"must be Minibatches\(size, seed\), got 32"),
    "batch size": (lambda: Minibatches(None), "examples must be a positive whole number, got None"),
    "long seed": (
        lambda: Minibatches(3, seed=2**64),
        "number of 64 bits, got 18446744073709551616",
    ),
    "batch seed": (lambda: Minibatches(3, seed="a"), "seed must be a whole number, got 'a'"),
    "measurements": (lambda: trained(measurements=[max]), "measurements must be a list like"),
    "one stop rule": (lambda: trained(stop=loss_below(1)), r"must be a list, .* \[loss_below"),
    "a report": (lambda: trained(report="yes"), "report must be a function, got 'yes'"),
    "divergence": (lambda: trained(divergence_factor=math.nan), "at least 1, got nan"),
    "no divergence": (lambda: trained(divergence_factor=0), "at least 1, got 0"),
    "settings": (lambda: trained(settings=["a"]), "settings must be a dictionary, got a list"),
    "a path": (
        lambda: trained(checkpoint="a"),
        r'must be Checkpoint\("run\.checkpoint"\), got \'a',
    ),
    "interval": (lambda: Checkpoint("a", interval="1 h"), "must be a number, got '1 h'.* seconds"),
    "duration": (lambda: flowed(duration="1"), "duration must be a number, got '1'"),
    "budget": (lambda: flowed(max_gradients=math.nan), "max_gradients must be a number, got nan"),
    "flow's tracker": (lambda: flowed(sharpness=[]), "SharpnessTracker.* got a list"),
    "flow's point": (lambda: flowed(theta=1.0), r"theta must be a tensor, got 1\.0"),
    "projection": (
        lambda: RandomProjection(5, 2.5),
        r"dimension must be a positive whole number, got 2\.5",
    ),
    "projection's seed": (lambda: RandomProjection(5, 2, seed=None), "seed must .* got None"),
    "k": (lambda: lanczos(MATRIX, k=1.5), r"k must be a whole number in 1\.\.8, got 1\.5"),
    "k, yes": (lambda: lanczos(MATRIX, k=True), "got True"),
    "k, text": (lambda: lanczos(MATRIX, k="1"), "got '1' for an operator of size 8"),
    "rtol": (lambda: lanczos(MATRIX, rtol=None), "rtol must be a number, got None"),
    "products": (lambda: lanczos(MATRIX, max_products=math.nan), "max_products .* got nan"),
    "basis": (lambda: lanczos(MATRIX, max_basis="all"), "max_basis must be .* got 'all'"),
    "seed": (lambda: lanczos(MATRIX, seed=0.5), r"seed must be a whole number, got 0\.5"),
    "start": (lambda: lanczos(MATRIX, start=[1.0] * 8), "start must be a tensor, got a list"),
    "starts": (lambda: lanczos_together(TWO, starts=3), "list of one start for each run, got 3"),
    "no operator": (lambda: lanczos(TASK), r"got an Objective; .* objective\.hessian\(theta\)"),
    "power": (
        lambda: power_iteration(MATRIX, rtol=math.nan),
        r"rtol must lie in \(0, 1\), got nan",
    ),
    "power of two": (lambda: power_iteration(TWO), "several matrices"),
    "arpack": (lambda: scipy_eigsh(MATRIX, "1"), r"k must be a whole number in 1\.\.7, got '1'"),
    "arpack's end": (lambda: scipy_eigsh(MATRIX, which=[]), "which must be one of .* got a list"),
    "tracked": (
        lambda: SharpnessTracker(TASK, k=math.inf),
        "k must be a positive whole .* got inf",
    ),
    "never cold": (lambda: SharpnessTracker(TASK, cold_every=math.nan), "cold_every .* got nan"),
    "never grows": (
        lambda: SharpnessTracker(TASK, grow_above=math.nan, max_k=2),
        "grow_above must be a number, got nan",
    ),
    "tracker's point": (lambda: SharpnessTracker(TASK)(None), "theta must be a tensor, got None"),
    "tracked model": (lambda: SharpnessTracker(nn.Tanh()), "expected an Objective, got a Tanh"),
    "twin's point": (lambda: TaylorQuadratic(TASK, None), "theta must be a tensor, got None"),
    "density": (lambda: spectral_density(MATRIX, seed="a"), "seed must be .* got 'a'"),
    "grid": (lambda: spectral_density(MATRIX).density([1.0]), "grid must be a tensor, got a list"),
    "share": (lambda: spectral_density(MATRIX).share_above("1"), "threshold must .* got '1'"),
    "between": (
        lambda: sharpness_between(TASK, THETA, THETA + 1, resolution="fine"),
        "resolution must be a number, got 'fine'",
    ),
    "a step's size": (lambda: effective_smoothness(TASK, THETA, "0.1"), r"lr must .* got '0\.1'"),
    "critical": (lambda: critical_sharpness(TASK, THETA, rtol=None), "rtol must .* got None"),
    "one step of": (
        lambda: critical_sharpness(DATA, THETA),
        "expected an Objective, got a Dataset",
    ),
    "a function": (lambda: Objective(abs, DATA.inputs, DATA.targets), r"torch\.nn\.Module, got a"),
    "output": (
        lambda: Objective(nn.Linear(1, 1), DATA.inputs, DATA.targets, output="logits"),
        "output must be a function, got 'logits'",
    ),
    "tensors": (
        lambda: Objective.from_dataset(nn.Linear(1, 1), (DATA.inputs, DATA.targets)),
        r"got a tuple; for tensors there is Objective\(model, inputs, targets\)",
    ),
    "a loss": (lambda: Objective(nn.Linear(1, 1), DATA.inputs, DATA.targets, []), "got a list"),
    "a loss function": (
        lambda: Objective(nn.Linear(1, 1), DATA.inputs, DATA.targets, nn.functional.mse_loss),
        r"got a function; for PyTorch's take its module and as_loss\(nn\.MSELoss\(\), targets\)",
    ),
    "a device": (
        lambda: Objective(nn.Linear(1, 1), DATA.inputs, DATA.targets, device=1.5),
        r"device 1\.5 is not a device name",
    ),
    "a vector": (lambda: TASK.hessian(THETA) @ [1.0], "the vector must be a tensor, got a list"),
    "no point": (lambda: TASK.value(torch.zeros(0, 13)), r"theta of shape \(13,\), got \(0, 13\)"),
    "complex": (lambda: TASK.value(THETA.to(torch.complex64)), "in real numbers, got .*complex64"),
    "indices": (lambda: TASK.minibatch_gradient(THETA, [0, 1]), "indices must be a tensor"),
    "a mask": (
        lambda: TASK.minibatch_gradient(THETA, torch.arange(10) < 3),
        r"indices of int64, got torch\.bool; of a mask, mask\.nonzero",
    ),
    "far indices": (lambda: TASK.minibatch_gradient(THETA, torch.tensor([3, 10])), "from 3 to 10"),
    "from the end": (lambda: TASK.minibatch_gradient(THETA, torch.tensor([-1])), "from -1 to -1"),
    "every": (lambda: every("5"), "an interval of steps must be a positive whole number, got '5'"),
    "at": (lambda: at_steps("12"), r"a list of steps, got '12'; for instance \[0, 10, 100\]"),
    "between steps": (
        lambda: at_steps([1.5]),
        r"a step must be a whole number, at least 0, got 1\.5",
    ),
    "decades": (lambda: log_spaced("20"), "per_decade must be a number, got '20'"),
    "no goal": (lambda: loss_below(math.nan), "goal must be a number, got nan"),
    "never asked": (lambda: accuracy_above(TASK, 0.9, interval=0), "interval must .* got 0"),
    "what": (lambda: Measurement("a", 3.0, every(1)), r"function of 'a' must be .* got 3\.0"),
    "when": (lambda: Measurement("a", float, 5), r"schedule of 'a' .* got 5; for instance every"),
    "momentum": (lambda: Polyak(0.1, "0.9"), r"momentum must be a number, got '0\.9'"),
    "changes": (lambda: StepSizeChanges(RULE, [0.1]), r"list of pairs .*\[\(1000, 0\.02\)\]"),
    "changes of": (lambda: StepSizeChanges("gd", [(9, 0.1)]), "must be GradientDescent.* got 'gd'"),
    "inverse": (lambda: InverseSharpness(TASK), "expected a SharpnessTracker.* got an Objective"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_words(name):
    call, seen = REFUSED[name]
    with pytest.raises(ValueError, match=seen):
        call()


def test_what_is_a_whole_number():
    given = (3, 3.0, torch.tensor(3), torch.tensor([1, 2, 3]).numpy()[2])
    assert [a_whole_number("n", value) for value in given] == [3, 3, 3, 3]
    assert trained(num_steps=2.0).outcome.step == 2


@pytest.mark.parametrize("yes", [True, np.True_, np.array(True), torch.tensor(True)])
def test_a_truth_value_is_no_number(yes):
    for make in (GradientDescent, lambda beta: Polyak(0.1, beta), lambda x: a_number("x", x)):
        with pytest.raises(ValueError, match="must be a"):
            make(yes)
    with pytest.raises(ValueError, match="must be a positive whole number"):
        a_whole_number("k", yes)
    task = {"dataset": "chebyshev-3-12", "architecture": "fc-tanh", "lr": 0.1}
    for name in ("lr", "seed", "loss_goal", "sharpness_rtol", "num_steps"):
        with pytest.raises((ValueError, TypeError), match=f"^{name} (must be a number|is a)"):
            Experiment(**{**task, name: yes})
    for one in (np.float32(1), np.int64(1), torch.tensor(1.0), np.array(1)):
        assert a_number("x", one) == 1
