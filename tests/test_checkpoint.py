"""A run that is cut off, killed even, goes on to the record that it would have had."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from eoslib import (
    Adam,
    GradientDescent,
    Measurement,
    Minibatches,
    Nesterov,
    Objective,
    Polyak,
    RMSProp,
    Run,
    SharpnessTracker,
    TaylorQuadratic,
    build,
    chebyshev,
    digits,
    every,
    gradient_flow,
    train,
    train_together,
)
from eoslib import checkpoint as checkpoint_module
from eoslib.checkpoint import DIGESTS, LAYERS, Checkpoint, CheckpointError
from eoslib.update_rules import StepSizeChanges

STEPS = 60


class CutOff(Exception):
    pass


def cut_at(step):
    def report(now):
        if now.step == step:
            raise CutOff

    return report


def objective(**options):
    data = digits(40)
    return Objective.from_dataset(build("fc-tanh", 64, 10, widths=(8,), seed=1), data, **options)


def small(**options):
    data = chebyshev(3, 10)
    return Objective.from_dataset(build("fc-tanh", 1, 1, widths=(6,), seed=2), data, **options)


class Remembers:
    """A measurement with a memory: how often it was called, and where first."""

    def __init__(self):
        self.count, self.first = 0, None

    def __call__(self, theta):
        self.count += 1
        self.first = theta.clone() if self.first is None else self.first
        return torch.tensor([self.count, float((theta - self.first).norm())])

    def state_dict(self):
        return {"count": self.count, "first": self.first}

    def load_state_dict(self, state):
        self.count, self.first = state["count"], state["first"]


def assert_same_record(run: Run, other: Run) -> None:
    assert run.settings == other.settings
    assert run.outcome == other.outcome
    assert run.series.keys() == other.series.keys()
    for name in run.series:
        np.testing.assert_array_equal(run[name].steps, other[name].steps, err_msg=name)
        np.testing.assert_array_equal(run[name].values, other[name].values, err_msg=name)
    assert run.final_point.tobytes() == other.final_point.tobytes()
    for name in ("num_gradients", "num_products", "unconverged_measurements", "runs_together"):
        assert run.provenance[name] == pytest.approx(other.provenance[name]), name
    name = "largest_step_times_sharpness"  # of a flow
    assert run.provenance.get(name) == other.provenance.get(name)


def one(rule, make=objective, **options):
    def follow(checkpoint=None, report=None):
        task = make()
        return [train(task, rule, num_steps=STEPS, checkpoint=checkpoint, report=report, **options)]

    return follow


def eigenvalues_and_more(checkpoint=None, report=None):
    task = objective(loss="cross_entropy", chunk_size=15)
    tracker = SharpnessTracker(task, 2, cold_every=4, grow_above=1e-3, max_k=3)
    memory = Measurement("memory", Remembers(), every(7))
    run = train(
        task,
        GradientDescent(2.0),
        num_steps=STEPS,
        sharpness=tracker,
        sharpness_schedule=every(3),
        measurements=[memory],
        checkpoint=checkpoint,
        report=report,
    )
    # The tracker itself is as if nothing had happened, its counters included.
    run.settings["tracker"] = [tracker.k, tracker.num_products, tracker.unconverged]
    run.settings["last"] = tracker.last.values.tolist()
    return [run]


def several(checkpoint=None, report=None):
    """One diverges early, so that the others' rows move up in the tracker's memory."""
    task = small(dtype="float64")
    rules = [Polyak(500.0, 0.5), Polyak(0.05, 0.5), GradientDescent(0.2)]
    return train_together(task, rules, num_steps=STEPS, checkpoint=checkpoint, report=report)


def flow(checkpoint=None, report=None):
    return [
        gradient_flow(
            small(dtype="float64"),
            duration=STEPS / 10,
            tick=0.1,
            measurements=[Measurement("memory", Remembers(), every(7))],
            checkpoint=checkpoint,
            report=report,
        )
    ]


def quadratic():
    model = small(dtype="float64")
    return TaylorQuadratic(model, model.initial_point)


def parabola():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    return Objective(model, torch.ones(1, 1), torch.zeros(1, 1), dtype="float64")


CASES = {
    "gradient descent": one(GradientDescent(0.3)),
    "polyak": one(Polyak(0.3, 0.9)),
    "nesterov": one(Nesterov(0.05, 0.9)),
    "adam": one(Adam(0.01)),
    "rmsprop, step-size drop": one(StepSizeChanges(RMSProp(0.01), [(20, 0.005), (45, 0.02)])),
    "step-size drop": one(StepSizeChanges(Polyak(0.3, 0.5), [(20, 0.1), (45, 0.2)])),
    "float64": one(GradientDescent(0.3), make=lambda: objective(dtype="float64")),
    "mini-batches": one(GradientDescent(0.1), batches=Minibatches(7, seed=3)),
    "several eigenvalues": eigenvalues_and_more,
    "several runs": several,
    "gradient flow": flow,
    "quadratic model": one(GradientDescent(0.05), make=quadratic),
    "divergence": one(GradientDescent(2.18), make=parabola),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("step", [1, 37])
def test_a_run_cut_off_goes_on_to_the_same_bits(name, step, tmp_path):
    follow = CASES[name]
    whole = follow()
    assert any(run.outcome.step > step for run in whole)
    path = tmp_path / "run.checkpoint"
    with pytest.raises(CutOff):  # saved at the beginning of every step
        follow(Checkpoint(path, interval=0), cut_at(step))
    resumed = follow(Checkpoint(path))
    for run, reference in zip(resumed, whole, strict=True):
        assert_same_record(run, reference)
        if reference.outcome.step > step:
            assert [at["step"] for at in run.provenance["resumed"]] == [step]
    assert "resumed" not in whole[-1].provenance


def test_resuming_twice_is_on_record_twice(tmp_path):
    follow, path = CASES["polyak"], tmp_path / "run.checkpoint"
    for step in (10, 20):
        with pytest.raises(CutOff):
            follow(Checkpoint(path, interval=0), cut_at(step))
    content = torch.load(path, weights_only=True)
    content["state"]["runs"][0]["record"]["seconds"] += 1000
    torch.save(content, path)
    (run,) = follow(Checkpoint(path))
    assert 1000 < run.provenance["seconds"] < 1600
    assert [at["step"] for at in run.provenance["resumed"]] == [10, 20]
    for at in run.provenance["resumed"]:
        assert (at["device_before"], at["torch_before"]) == ("cpu", torch.__version__)
    assert_same_record(run, follow()[0])


def test_a_report_after_resuming_is_told_the_loss_last_measured(tmp_path):
    path = tmp_path / "run.checkpoint"

    def told(checkpoint=None):
        seen = []
        CASES["mini-batches"](checkpoint, lambda now: seen.append(now.loss))
        return seen

    with pytest.raises(CutOff):
        CASES["mini-batches"](Checkpoint(path, interval=0), cut_at(37))
    assert told(Checkpoint(path)) == told()[37:]


def test_without_the_trackers_memory_it_would_not_be_the_same(tmp_path, monkeypatch):
    """The test above can fail: what is measured depends on where the search starts."""
    follow, path = CASES["gradient descent"], tmp_path / "run.checkpoint"
    with pytest.raises(CutOff):
        follow(Checkpoint(path, interval=0), cut_at(37))
    monkeypatch.setattr(SharpnessTracker, "load_state_dict", lambda self, state: None)
    (run,), (whole,) = follow(Checkpoint(path)), follow()
    assert not np.array_equal(run["sharpness"].values, whole["sharpness"].values)


NORM = Measurement("norm", torch.norm, every(1))


def test_a_checkpoint_belongs_to_one_training(tmp_path):
    path = tmp_path / "run.checkpoint"
    with pytest.raises(CutOff):
        CASES["polyak"](Checkpoint(path, interval=0), cut_at(5))
    before = path.read_bytes()
    with pytest.raises(
        CheckpointError, match=r"another training \(runs\[0\]\.lr was 0\.3, now 0\.4"
    ):
        one(Polyak(0.4, 0.9))(Checkpoint(path))
    with pytest.raises(CheckpointError, match=r"start was '\w+', now"):
        one(Polyak(0.3, 0.9), theta=torch.zeros(610))(Checkpoint(path))
    with pytest.raises(CheckpointError, match=r"tracker\.rtol was 0\.001, now 0\.1"):
        task = objective()
        tracker = SharpnessTracker(task, rtol=0.1)
        train(
            task, Polyak(0.3, 0.9), num_steps=STEPS, sharpness=tracker, checkpoint=Checkpoint(path)
        )
    for seen, change in (
        (r"divergence_factor was 1000000\.0, now 1000\.0", {"divergence_factor": 1e3}),
        (r"measurements was \[\], now \['norm'\]", {"measurements": [NORM]}),
    ):
        with pytest.raises(CheckpointError, match=seen):
            one(Polyak(0.3, 0.9), **change)(Checkpoint(path))
    assert path.read_bytes() == before


def test_a_checkpoint_of_a_flow_belongs_to_one_flow(tmp_path):
    task, path = small(), tmp_path / "run.checkpoint"
    with pytest.raises(CutOff):
        follow_flow(task, Checkpoint(path, interval=0), cut_at(5))
    for seen, change in (
        (r"start was '\w+', now", {"theta": torch.zeros(19)}),
        (r"tracker\.rtol was 0\.001, now 0\.1", {"sharpness": SharpnessTracker(task, rtol=0.1)}),
        (r"measurements was \[\], now \['norm'\]", {"measurements": [NORM]}),
    ):
        with pytest.raises(CheckpointError, match=seen):
            gradient_flow(task, duration=9, checkpoint=Checkpoint(path), **change)


INPUTS = torch.randn(12, 4, generator=torch.Generator().manual_seed(5))
OTHERS = INPUTS.clone()
OTHERS[7, 2] += 1e-6


def normalised(*, activation=torch.nn.Tanh, running=0.0, frozen=0.0, inputs=INPUTS, targets=None):
    """Batch normalisation by a running mean, and a frozen bias: neither is part of θ."""
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), activation(), torch.nn.Linear(3, 2)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
        model[1].running_mean.fill_(running)
        model[3].bias.requires_grad_(False).fill_(frozen)
    targets = INPUTS[:, :2] if targets is None else targets
    return Objective(model, inputs, targets, batch_norm="running")


def follow_twin(task, checkpoint, report=None):
    twin = TaylorQuadratic(task, task.initial_point)
    train(twin, GradientDescent(0.01), num_steps=9, checkpoint=checkpoint, report=report)


def follow_flow(task, checkpoint, report=None):
    gradient_flow(task, duration=9, checkpoint=checkpoint, report=report)


def follow_descent(task, checkpoint, report=None):
    train(task, GradientDescent(0.01), num_steps=9, checkpoint=checkpoint, report=report)


@pytest.mark.parametrize("follow", [follow_descent, follow_flow, follow_twin])
@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"inputs": OTHERS}, r"the inputs are not the same: their digest was \w{16}, now \w{16}\)"),
        ({"targets": OTHERS[:, 1:3]}, "the targets are not the same"),
        ({"running": 0.1}, "the layers, buffers and frozen parameters are not the same"),
        ({"frozen": 0.1}, "the layers, buffers and frozen parameters are not the same"),
        ({"activation": torch.nn.ReLU}, "the layers, buffers and frozen"),
        ({"activation": lambda: torch.nn.ELU(2.0)}, "the layers, buffers and frozen"),
    ],
)
def test_other_data_and_other_models_are_other_trainings(follow, change, seen, tmp_path):
    path = tmp_path / "run.checkpoint"
    with pytest.raises(CutOff):
        follow(normalised(), Checkpoint(path, interval=0), cut_at(5))
    with pytest.raises(CheckpointError, match="another training .*" + seen):
        follow(normalised(**change), Checkpoint(path))
    follow(normalised(), Checkpoint(path))


def test_batches_that_share_their_statistics_are_part_of_the_loss(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2))

    def ghosts(size):
        return Objective(model, INPUTS, INPUTS[:, :2], batch_norm="ghost", chunk_size=size)

    path = tmp_path / "run.checkpoint"
    with pytest.raises(CutOff):
        follow_descent(ghosts(4), Checkpoint(path, interval=0), cut_at(5))
    with pytest.raises(CheckpointError, match="the layers, buffers and frozen"):
        follow_descent(ghosts(6), Checkpoint(path))
    # Elsewhere the examples in a pass are a matter of memory.
    assert objective(chunk_size=15).digests() == objective().digests()


def test_a_quadratic_model_is_of_one_point(tmp_path):
    task, path = normalised(), tmp_path / "run.checkpoint"
    start, rule = task.initial_point, GradientDescent(0.01)
    with pytest.raises(CutOff):
        follow_twin(task, Checkpoint(path, interval=0), cut_at(5))
    other = TaylorQuadratic(task, start + 0.01)
    with pytest.raises(CheckpointError, match="the parameters expanded at are not the same"):
        train(other, rule, num_steps=9, theta=start, checkpoint=Checkpoint(path))


def test_digests_are_made_for_checkpoints_only(monkeypatch):
    def refuse(self):
        raise AssertionError

    monkeypatch.setattr(Objective, "digests", refuse)
    train(small(), GradientDescent(0.01), num_steps=2)
    gradient_flow(small(), duration=2)


def test_a_checkpoint_without_digests_is_taken_by_its_settings(tmp_path):
    follow, path = CASES["polyak"], tmp_path / "run.checkpoint"
    with pytest.raises(CutOff):
        follow(Checkpoint(path, interval=0), cut_at(20))
    content = torch.load(path, weights_only=True)
    del content["identity"]["digests"]
    torch.save(content | {"version": 1}, path)
    with pytest.raises(CheckpointError, match=r"runs\[0\]\.lr was 0\.3, now 0\.4"):
        one(Polyak(0.4, 0.9))(Checkpoint(path))
    with pytest.warns(UserWarning, match="earlier eoslib, which did not note the data"):
        (run,) = follow(Checkpoint(path))
    assert_same_record(run, follow()[0])
    torch.save(content, path)  # of this version, they must not be missing
    with pytest.raises(CheckpointError, match="digests was None"):
        follow(Checkpoint(path))


def test_a_checkpoint_of_version_2_is_taken_whatever_its_layers(tmp_path):
    follow, path = CASES["polyak"], tmp_path / "run.checkpoint"
    with pytest.raises(CutOff):
        follow(Checkpoint(path, interval=0), cut_at(20))
    content = torch.load(path, weights_only=True)
    content["identity"][DIGESTS][LAYERS] = "an older hash"
    torch.save(content | {"version": 2}, path)
    with pytest.warns(UserWarning, match="whether layers, buffers and frozen"):
        (run,) = follow(Checkpoint(path))
    assert_same_record(run, follow()[0])
    content["identity"][DIGESTS]["inputs"] = "of other data"
    torch.save(content | {"version": 2}, path)
    with pytest.raises(CheckpointError, match="the inputs are not the same"):
        follow(Checkpoint(path))


def test_a_checkpoint_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "run.checkpoint"
    Checkpoint(path, interval=0).offer({}, dict)
    torch.save(torch.load(path, weights_only=True) | {"version": 99}, path)
    with pytest.raises(CheckpointError, match="format eoslib-checkpoint 99"):
        Checkpoint(path).load({})


def test_a_full_disk_is_named_and_the_last_checkpoint_kept(tmp_path, monkeypatch):
    path = tmp_path / "run.checkpoint"
    with pytest.raises(CutOff):
        CASES["polyak"](Checkpoint(path, interval=0), cut_at(20))
    before = path.read_bytes()

    def full(target, write):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"No space left.*Make room"):
        patch.setattr(checkpoint_module, "written_atomically", full)
        CASES["polyak"](Checkpoint(path, interval=0))
    assert path.read_bytes() == before
    assert_same_record(CASES["polyak"](Checkpoint(path))[0], CASES["polyak"]()[0])


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "half"])
def test_a_damaged_checkpoint_is_said_to_be_one(content, tmp_path):
    path = tmp_path / "run.checkpoint"
    with pytest.raises(CutOff):
        CASES["polyak"](Checkpoint(path, interval=0), cut_at(5))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(CheckpointError, match=r"not a readable checkpoint.*remove it"):
        CASES["polyak"](Checkpoint(path))


def test_a_checkpoint_executes_nothing(tmp_path):
    path = tmp_path / "run.checkpoint"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"format": "eoslib-checkpoint", "version": 1, "state": Evil()}, path)
    with pytest.raises(CheckpointError):
        Checkpoint(path).load({})
    assert not (tmp_path / "executed").exists()


def test_it_is_saved_after_the_interval_and_not_before(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    checkpoint = Checkpoint(tmp_path / "c", interval=60)
    saved = []

    def offer(seconds):
        clock[0] = 100.0 + seconds
        checkpoint.offer({}, lambda: saved.append(seconds) or {})

    for seconds in (0, 59, 60, 61, 119, 121):
        offer(seconds)
    assert saved == [60, 121]
    with pytest.raises(ValueError, match="at least 0"):
        Checkpoint(tmp_path / "c", interval=-1)


def test_saving_takes_a_twentieth_of_the_time_at_most(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    checkpoint, saved = Checkpoint(tmp_path / "c", interval=60), []

    def slow():
        saved.append(clock[0])
        clock[0] += 10
        return {}

    while clock[0] < 500:
        checkpoint.offer({}, slow)
        clock[0] += 1
    assert saved == [60, 270, 480]


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "c", interval=0)
    checkpoint.offer({"a": 1}, lambda: {"step": 1})

    def break_half_way(content, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", break_half_way)
    with pytest.raises(OSError, match="no space"):
        checkpoint.offer({"a": 1}, lambda: {"step": 2})
    assert checkpoint.load({"a": 1}) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_the_run(number, tmp_path):
    checkpoint, told, before = Checkpoint(tmp_path / "c"), [], signal.getsignal(number)
    last = []

    def report(now):
        last.append(now.step)
        if now.step == 12:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt), checkpoint.saving_on_signals(told.append):
        CASES["polyak"](checkpoint, report)
    assert last[-1] == 12
    assert "saved at the end of this step" in told[0]
    assert signal.getsignal(number) is before
    assert not checkpoint.stop_requested  # so that the same object may go on
    assert_same_record(CASES["polyak"](Checkpoint(tmp_path / "c"))[0], CASES["polyak"]()[0])


def test_a_second_signal_acts_as_it_always_does(tmp_path):
    # A process started in the background ignores it.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        checkpoint = Checkpoint(tmp_path / "c")
        with checkpoint.saving_on_signals():
            os.kill(os.getpid(), signal.SIGINT)
            assert checkpoint.stop_requested
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
    finally:
        signal.signal(signal.SIGINT, inherited)


KILLED = """
import sys
from eoslib.checkpoint import Checkpoint
from tests.test_checkpoint import CASES
def report(now):
    print(now.step, flush=True)
    if now.step == {step}:
        sys.stdin.read()  # wait here to be killed
CASES[{name!r}](Checkpoint({path!r}, interval=0), report)
"""


@pytest.mark.parametrize("name", ["several eigenvalues", "several runs"])
def test_a_killed_process_goes_on_to_the_same_bits(name, tmp_path):
    path = tmp_path / "run.checkpoint"
    code = KILLED.format(name=name, path=str(path), step=23)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        for line in process.stdout:
            if line.strip() == "23":
                break
        process.kill()
    assert process.returncode == -signal.SIGKILL
    for run, reference in zip(CASES[name](Checkpoint(path)), CASES[name](), strict=True):
        assert_same_record(run, reference)


def test_a_tracker_with_numpys_numbers_leaves_a_readable_checkpoint(tmp_path):
    path = tmp_path / "run.checkpoint"

    def follow(report=None):
        task = small()
        tracker = SharpnessTracker(task, rtol=np.float64(1e-3))
        kept = Checkpoint(path, interval=0)
        train(
            task,
            GradientDescent(0.1),
            num_steps=9,
            sharpness=tracker,
            checkpoint=kept,
            report=report,
        )

    with pytest.raises(CutOff):
        follow(cut_at(5))
    follow()
