"""Experiments: settings with a key, runs that are found again, sweeps, and what goes wrong."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eoslib import (
    Adam,
    GradientDescent,
    Objective,
    Polyak,
    RandomProjection,
    RMSProp,
    Run,
    SharpnessTracker,
    TaylorQuadratic,
    build,
    effective_smoothness,
    load_dataset,
    sharpness_between,
    train,
)
from eoslib import experiment as module
from eoslib.experiment import (
    OUT_OF_MEMORY,
    Experiment,
    batches_of,
    run_experiment,
    run_path,
    run_together,
    sweep,
)
from eoslib.quantities import Setting, quantity
from eoslib.update_rules import StepSizeChanges

SMALL = {
    "dataset": "chebyshev-3-12",
    "architecture": "fc-tanh",
    "architecture_options": {"widths": [6]},
    "num_steps": 40,
}


class CutOff(Exception):
    pass


def small(lr=0.1, **settings):
    return Experiment(**{**SMALL, "lr": lr, **settings})


def objective(**options):
    data = load_dataset("chebyshev-3-12")
    return Objective.from_dataset(build("fc-tanh", 1, 1, widths=(6,)), data, **options)


def assert_same_record(run: Run, other: Run) -> None:
    assert run.outcome == other.outcome
    assert run.series.keys() == other.series.keys()
    for name in run.series:
        np.testing.assert_array_equal(run[name].steps, other[name].steps)
        np.testing.assert_array_equal(run[name].values, other[name].values)
    assert run.final_point.tobytes() == other.final_point.tobytes()


# -- settings -----------------------------------------------------------------------------------


def test_settings_survive_json():
    experiment = small(
        quantities={"projection": {"every": 10, "dimension": 3}}, lr_changes=[(20, 0.05)]
    )
    settings = json.loads(json.dumps(experiment.to_json()))
    assert settings["lr_changes"] == [[20, 0.05]]
    assert "loss" not in settings  # a default is left out, so that new settings change no key
    assert Experiment.from_json(settings) == experiment
    assert Experiment.from_json(settings).key == experiment.key


def test_the_key_is_that_of_what_determines_the_result():
    key = small().key
    assert key == small(lr=0.1, loss="square", chunk_size=5).key
    assert small(lr=1).key == small(lr=1.0).key
    others = [
        small(lr=0.2),
        small(seed=1),
        small(num_steps=41),
        small(loss_goal=0.1),
        small(dtype="float64"),
        small(optimizer="polyak", beta=0.5),
        small(optimizer="adam", beta1=0.5, lr_changes=[(3, 0.2)]),
        small(architecture_options={"widths": [7]}),
        small(batch_norm="ghost", chunk_size=5),
        small(batch_norm="ghost", chunk_size=6),
    ]
    assert len({key, *(other.key for other in others)}) == 1 + len(others)


def test_the_key_is_the_same_in_every_process_and_version():
    """Pinned: another key would orphan every stored run."""
    assert small().key == "5a3fd731ae"
    assert small().name == "fc-tanh_chebyshev-3-12_square_gd_lr0.1_5a3fd731ae"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "fc-tnh"}, "unknown architecture 'fc-tnh'; did you mean 'fc-tanh'"),
        ({"loss": "squared"}, "unknown loss 'squared'; did you mean 'square'"),
        ({"optimizer": "nestrov"}, "unknown optimizer 'nestrov'; did you mean 'nesterov'"),
        ({"quantities": {"accurcy": {"every": 1}}}, "did you mean 'accuracy'"),
        ({"quantities": {"accuracy": {}}}, "needs every=INTERVAL or at=STEPS"),
        ({"quantities": {"accuracy": {"every": 1, "at": [0]}}}, "needs every=INTERVAL or at=STEPS"),
        ({"seed": 2**63}, "seed must fit in 64 bits"),
        ({"lr": None}, "the optimizer 'gd' needs lr"),
        ({"lr": -1.0}, "finite and above 0"),
        ({"beta": 0.9}, "beta has no meaning for the optimizer 'gd'"),
        ({"beta2": 0.9}, "beta2 has no meaning for the optimizer 'gd'"),
        ({"optimizer": "rmsprop", "beta1": 0.9}, "beta1 has no meaning for the optimizer 'rmsp"),
        ({"optimizer": "adam", "beta2": 1}, r"beta2 must lie in \[0, 1\), got 1"),
        ({"optimizer": "polyak"}, "the optimizer 'polyak' needs beta"),
        ({"optimizer": "flow"}, "lr has no meaning for the optimizer 'flow'"),
        ({"num_steps": 0}, "num_steps must be a positive whole number"),
        ({"num_steps": 2.5}, "num_steps must be a positive whole number"),
        ({"chunk_size": 0}, "chunk_size must be a positive whole number"),
        ({"sharpness_cold_every": 0}, "sharpness_cold_every must be a positive whole number"),
        ({"lr_changes": [(5, 0.1), (5, 0.2)]}, "must increase"),
    ],
)
def test_settings_that_make_no_run_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_an_unknown_setting_is_refused_with_the_near_ones():
    with pytest.raises(ValueError, match="unknown setting 'num_step'; did you mean 'num_steps'"):
        Experiment.from_json({**SMALL, "num_step": 5})
    with pytest.raises(ValueError, match="an experiment needs architecture"):
        Experiment.from_json({"dataset": "digits-1k"})


# -- one run ------------------------------------------------------------------------------------


def test_an_experiment_is_the_training_written_by_hand(tmp_path):
    run = run_experiment(small(optimizer="polyak", beta=0.5), tmp_path, device="cpu")
    by_hand = train(objective(), Polyak(0.1, 0.5), num_steps=40)
    assert_same_record(run, by_hand)
    assert run.settings["data_source"] == load_dataset("chebyshev-3-12").source
    assert [path.name for path in tmp_path.iterdir()] == [
        run_path(small(optimizer="polyak", beta=0.5), tmp_path).name
    ]


def test_adaptive_optimizers_have_their_numbers_or_the_rules_own(tmp_path):
    adam = small(optimizer="adam", beta1=0.5, epsilon=1, lr=0.01)
    assert adam.rule() == Adam(0.01, 0.5, epsilon=1)
    assert "_adam_lr0.01_beta1-0.5_beta2-0.999_" in adam.name
    assert small(optimizer="adam", beta2=0.999).key == small(optimizer="adam").key
    assert small(optimizer="adam", beta2=0.99).key != small(optimizer="adam").key
    changing = small(optimizer="adam", beta1=0.5, lr_changes=[(3, 0.2)])
    assert (changing.beta1, changing.beta2) == (0.5, 0.999)
    assert small(optimizer="rmsprop", lr=0.01).rule() == RMSProp(0.01)
    run = run_experiment(adam, tmp_path, device="cpu")
    assert_same_record(run, train(objective(), Adam(0.01, 0.5, epsilon=1), num_steps=40))
    with pytest.raises(ValueError, match=r"'top-direction' is about the sharpness.*leave it"):
        run_experiment(
            small(optimizer="adam", quantities={"top-direction": {"every": 1}}), tmp_path
        )


def test_settings_reach_the_training(tmp_path):
    run = run_experiment(small(seed=3, batch_size=5, eigenvalues=2), tmp_path)
    assert (run.settings["seed"], run.settings["batch_seed"]) == (3, 3)
    assert run["eigenvalues"].values.shape == (len(run["sharpness"]), 2)
    run = run_experiment(small(lr=2.0, divergence_factor=1.0), tmp_path)
    assert run.outcome.status == "diverged"
    assert run["loss"].values.max() <= run["loss"].values[0]
    run = run_experiment(small(loss_goal=0.3), tmp_path)
    assert run.outcome.status == "goal reached"
    assert run["loss"].values[-1] < 0.3 <= run["loss"].values[-2]


@pytest.mark.parametrize(
    ("method", "due"), [({"optimizer": "flow", "tick": 1.0}, [0, 1, 2, 3]), ({"lr": 0.1}, [0])]
)
def test_a_flow_is_asked_for_its_accuracy_at_every_tick(method, due):
    always = SimpleNamespace(accuracy=lambda theta: 1.0)
    (rule,) = Experiment(**SMALL, **method, accuracy_goal=0.5).stop_rules(always)
    assert [step for step in range(4) if rule(SimpleNamespace(step=step, theta=None))] == due


def test_a_finished_run_is_found_and_not_repeated(tmp_path, monkeypatch):
    run = run_experiment(small(), tmp_path)
    before = run_path(small(), tmp_path).stat()
    monkeypatch.setattr(module, "train_together", None)
    again = run_experiment(small(chunk_size=3), tmp_path)
    assert_same_record(run, again)
    assert run_path(small(), tmp_path).stat() == before
    with pytest.raises(TypeError):
        run_experiment(small(lr=0.2), tmp_path)


def test_another_run_in_its_file_is_not_overwritten(tmp_path):
    other = run_experiment(small(lr=0.2), tmp_path / "a")
    path = other.save(run_path(small(), tmp_path))
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"holds another run .*0\.2.*than its name says"):
        run_experiment(small(), tmp_path)
    other.settings["experiment"] = {"dataset": 1}
    other.save(path)
    with pytest.raises(FileExistsError, match=r"holds another run \({'dataset': 1}\)"):
        run_experiment(small(), tmp_path)
    path.write_bytes(b"something else")
    with pytest.raises(FileExistsError, match=r"not a readable run.*move it away"):
        run_experiment(small(), tmp_path)
    assert path.read_bytes() == b"something else" != before


def test_divergence_is_an_outcome_and_found(tmp_path):
    run = run_experiment(small(lr=1e4), tmp_path)
    assert run.outcome.status == "diverged"
    assert Run.load(run_path(small(lr=1e4), tmp_path)).outcome == run.outcome


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_to_the_same_bits(number, tmp_path):
    experiments, sent = [small(), small(lr=0.2)], []

    def interrupt(now):
        if now.step == 17 and not sent:  # once: a second signal would act as it always does
            sent.append(number)
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        run_together(experiments, tmp_path / "a", report=interrupt)
    (checkpoint,) = (tmp_path / "a").iterdir()
    assert checkpoint.suffix == ".checkpoint"
    resumed = run_together(experiments, tmp_path / "a")
    whole = run_together(experiments, tmp_path / "b")
    for run, reference in zip(resumed, whole, strict=True):
        assert_same_record(run, reference)
        assert run.provenance["resumed"][0]["step"] == 18
    assert {path.suffix for path in (tmp_path / "a").iterdir()} == {".npz"}


def test_a_signal_at_the_last_step_finds_the_run_saved(tmp_path):
    def interrupt(now):
        if now.step == 40:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="done and saved"):
        run_experiment(small(), tmp_path, report=interrupt)
    assert Run.load(run_path(small(), tmp_path)).outcome.status == "completed"


def command(*arguments):
    return [sys.executable, "-m", "eoslib", *map(str, arguments)]


def test_a_killed_process_is_continued_by_the_same_command(tmp_path):
    experiment = Experiment(
        dataset="digits-1k",
        architecture="fc-tanh",
        architecture_options={"widths": [20]},
        loss="cross_entropy",
        lr=0.5,
        num_steps=150,
        eigenvalues=2,
        sharpness_every=7,
        quantities={"accuracy": {"every": 10}},
    )
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(experiment.to_json()))
    options = ["train", "--settings", settings, "--device", "cpu", "--out", tmp_path / "a"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        command(*options, "--checkpoint-every", 0), cwd=root, env=environment
    )
    checkpoint = tmp_path / "a" / f"{experiment.name}.checkpoint"
    try:
        while process.poll() is None and _step_of(checkpoint) < 20:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    killed_at = _step_of(checkpoint)
    assert not run_path(experiment, tmp_path / "a").exists()
    done = subprocess.run(
        command(*options), cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    assert "all 150 steps done" in done.stdout
    run = Run.load(run_path(experiment, tmp_path / "a"))
    assert run.provenance["resumed"][0]["step"] == killed_at >= 20
    assert_same_record(run, run_experiment(experiment, tmp_path / "b", device="cpu"))


def _step_of(checkpoint: Path) -> int:
    try:
        return torch.load(checkpoint, weights_only=True)["state"]["step"]
    except FileNotFoundError:
        return -1


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path):
    half = tmp_path / f".{small().name}.checkpoint.x1y2z3"
    half.write_bytes(b"half")
    others = tmp_path / f".{small(lr=0.2).name}.checkpoint.x1y2z3"
    others.write_bytes(b"of a process at work, perhaps")
    run_experiment(small(), tmp_path)
    assert not half.exists() and others.exists()


def test_two_processes_do_not_run_the_same(tmp_path):
    def beside(now):
        if now.step == 1:
            with pytest.raises(FileExistsError, match="another process is at work"):
                run_experiment(small(), tmp_path)

    run = run_experiment(small(), tmp_path, report=beside)
    assert run.outcome.status == "completed"


# -- memory -------------------------------------------------------------------------------------

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
]


def short_of_memory(monkeypatch, most, error, from_step=0, runs=99):
    """No gradient or Hessian of more than ``most`` examples, or of more runs than that."""
    state = {"calls": 0}
    for name in ("hessian", "value_and_gradient"):
        genuine = getattr(Objective, name)

        def limited(self, theta, genuine=genuine):
            state["calls"] += 1
            rows = 1 if theta.ndim == 1 else len(theta)
            if state["calls"] > from_step and (self.chunk_size > most or rows > runs):
                raise error
            return genuine(self, theta)

        monkeypatch.setattr(Objective, name, limited)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_out_of_memory_tries_smaller_passes(error, tmp_path, monkeypatch):
    whole = run_experiment(small(), tmp_path / "a")
    short_of_memory(monkeypatch, 3, error)
    run = run_experiment(small(), tmp_path / "b")
    assert whole.provenance["chunk_size"] == 12
    assert run.provenance["chunk_size"] == 3
    assert run.outcome.status == "completed"
    np.testing.assert_allclose(run["loss"].values, whole["loss"].values, rtol=1e-4)


def test_a_lack_of_memory_is_an_outcome_on_record(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        short_of_memory(patch, 0, ERRORS[0], from_step=10)
        run = run_experiment(small(chunk_size=1), tmp_path)
        assert run.outcome.status == OUT_OF_MEMORY
        assert run["loss"].steps.tolist() == list(range(run.outcome.step + 1)) != [0]
        assert "CUDA out of memory" in run.outcome.message
        assert run.describe().startswith("out of memory")
        # found, as everything else
        assert run_experiment(small(), tmp_path).outcome == run.outcome
    assert run_experiment(small(), tmp_path).outcome.status == OUT_OF_MEMORY
    assert run_experiment(small(), tmp_path, retry=True).outcome.status == "completed"
    before = run_path(small(), tmp_path).stat()
    run_experiment(small(), tmp_path, retry=True)
    assert run_path(small(), tmp_path).stat() == before


def test_ghost_batches_are_not_made_smaller():
    """Their size is part of the loss."""
    assert module._smaller_chunk(small(chunk_size=6), 6) == 3
    assert module._smaller_chunk(small(batch_norm="running", chunk_size=6), 6) == 3
    assert module._smaller_chunk(small(batch_norm="ghost", chunk_size=6), 6) is None
    assert module._smaller_chunk(small(batch_norm="full_batch"), 12) is None


def test_a_run_without_memory_for_its_first_step_knows_its_kind(tmp_path, monkeypatch):
    short_of_memory(monkeypatch, 0, ERRORS[0])
    for optimizer, adaptive in (("adam", True), ("gd", False)):
        run = run_experiment(small(chunk_size=1, optimizer=optimizer), tmp_path)
        assert run.outcome.status == OUT_OF_MEMORY
        assert run.is_preconditioned == adaptive


def test_a_batch_without_memory_runs_one_after_another(tmp_path, monkeypatch):
    short_of_memory(monkeypatch, 99, ERRORS[0], runs=1)
    runs = run_together([small(), small(lr=0.2)], tmp_path)
    assert [run.outcome.status for run in runs] == ["completed", "completed"]
    assert [run.provenance["runs_together"] for run in runs] == [1, 1]
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz"}


def test_other_errors_are_errors(tmp_path, monkeypatch):
    short_of_memory(monkeypatch, 0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        run_experiment(small(), tmp_path)
    assert not list(tmp_path.iterdir())


# -- several runs -------------------------------------------------------------------------------


def test_what_differs_in_the_rule_only_runs_together(tmp_path):
    experiments = [small(lr=0.1), small(lr=0.2, seed=1), small(optimizer="polyak", beta=0.5)]
    assert [len(batch) for batch in batches_of(experiments)] == [2, 1]
    with pytest.raises(ValueError, match="nothing but the update rule"):
        run_together(experiments, tmp_path)
    runs = run_together([experiments[0], experiments[2]], tmp_path)
    assert [run.provenance["runs_together"] for run in runs] == [2, 2]
    alone = run_experiment(experiments[2], tmp_path / "alone")
    np.testing.assert_allclose(runs[1]["loss"].values, alone["loss"].values, rtol=1e-3)
    # what asks for the rule, and what has none, runs by itself
    names = ("between", "effective", "taylor", "top-direction", "expected-change")
    for name, more in zip(names, (*[{}] * 4, {"batch_size": 3}), strict=True):
        asks = {"quantities": {name: {"at": [0], **more}}}
        assert len(batches_of([small(**asks), small(lr=0.2, **asks)])) == 2, name
    flow = Experiment(**SMALL, optimizer="flow", tick=0.1)
    assert len(batches_of([small(), flow, flow])) == 2


def test_a_kill_between_two_of_the_saved_runs_loses_none(tmp_path, monkeypatch):
    experiments, save, saved = [small(), small(lr=0.2), small(lr=0.3)], Run.save, []

    def killed_after_the_first(run, path):
        if saved:
            raise CutOff
        saved.append(path)
        return save(run, path)

    with monkeypatch.context() as patch, pytest.raises(CutOff):
        patch.setattr(Run, "save", killed_after_the_first)
        run_together(experiments, tmp_path / "a", checkpoint_interval=0)
    before = saved[0].read_bytes()
    (found, *rest) = run_together(experiments, tmp_path / "a")
    whole = run_together(experiments, tmp_path / "b")
    for run, reference in zip([found, *rest], whole, strict=True):
        assert_same_record(run, reference)
    assert all(run.provenance["resumed"] for run in rest)
    assert saved[0].read_bytes() == before
    assert {path.suffix for path in (tmp_path / "a").iterdir()} == {".npz"}


def test_a_run_on_other_data_is_not_taken_for_this_ones(tmp_path):
    files = [tmp_path / f"{number}.npz" for number in range(3)]
    images = np.random.default_rng(0).integers(0, 256, (2, 10, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(10)
    contents = [(images[0], labels), (images[1], labels), (images[0], labels[::-1])]
    for path, (x, y) in zip(files, contents, strict=True):
        np.savez(path, x_train=x, y_train=y)
    settings = {"dataset": "cifar10-10-per_pixel", "architecture": "fc-tanh", "num_steps": 2}
    experiment = Experiment(**settings, architecture_options={"widths": [4]}, lr=0.1)
    run = run_experiment(experiment, tmp_path / "runs", data=files[0])
    again = run_experiment(experiment, tmp_path / "runs", data=files[0])
    assert_same_record(run, again)
    for other in files[1:]:
        message = rf"on other data .*from 0.npz.*than those of .*{other.name}"
        with pytest.raises(FileExistsError, match=message):
            run_experiment(experiment, tmp_path / "runs", data=other)


def test_convolutions_run_one_by_one_unless_told_otherwise(tmp_path):
    rng = np.random.default_rng(0)
    data = tmp_path / "images.npz"
    images = rng.integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    np.savez(data, x_train=images, y_train=np.arange(10))
    settings = {**SMALL, "dataset": "cifar10-10-per_pixel", "architecture": "cnn-relu"}
    settings |= {"architecture_options": {"width": 2}, "num_steps": 2}
    pair = [Experiment(**settings, optimizer="gd", lr=lr) for lr in (0.01, 0.02)]
    assert [len(batch) for batch in batches_of(pair)] == [1, 1]
    assert len(batches_of([small(lr=0.1), small(lr=0.2)])) == 1
    runs = run_together(pair, tmp_path, data=data)
    assert [run.provenance["runs_together"] for run in runs] == [2, 2]


class Elsewhere:
    """An executor on another machine: everything travels as bytes, and the disk is another."""

    def __init__(self, disk):
        self.disk, self.submitted = disk, 0

    def submit(self, function, /, *arguments):
        self.submitted += 1
        function, (settings, _, options) = pickle.loads(pickle.dumps((function, arguments)))

        class Job:
            def result(_):
                return pickle.loads(pickle.dumps(function(settings, str(self.disk), options)))

        return Job()


def processes():
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(2), processes])
def test_a_sweep_over_an_executor_is_the_sweep_without(make, tmp_path):
    experiments = [small(lr=lr, seed=seed) for seed in (0, 1) for lr in (0.1, 0.2)]
    plain = sweep(experiments, tmp_path / "a", device="cpu")
    with make() as executor:
        runs = sweep(experiments, tmp_path / "b", executor=executor, device="cpu")
    for run, reference, experiment in zip(runs, plain, experiments, strict=True):
        assert_same_record(run, reference)
        assert run.settings["experiment"] == experiment.to_json()
        assert run_path(experiment, tmp_path / "b").exists()


def test_a_report_does_not_travel(tmp_path):
    with pytest.raises(ValueError, match="a report cannot travel"):
        sweep([small()], tmp_path, executor=Elsewhere(tmp_path), report=print)


def test_runs_come_home_from_a_machine_with_another_disk(tmp_path):
    executor = Elsewhere(tmp_path / "elsewhere")
    experiments = [small(seed=0), small(seed=1), small(seed=0)]
    runs = sweep(experiments, tmp_path / "home", executor=executor, together=False)
    assert executor.submitted == 2  # one was asked for twice
    assert runs[0] is runs[2]
    for experiment in experiments:
        assert run_path(experiment, tmp_path / "home").exists()
    sweep(experiments, tmp_path / "home", executor=executor)
    assert executor.submitted == 2  # all are found


def test_a_retry_elsewhere_replaces_the_failure_here(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        short_of_memory(patch, 0, ERRORS[0])
        (run,) = sweep([small()], tmp_path / "home")
        assert run.outcome.status == OUT_OF_MEMORY
    executor = Elsewhere(tmp_path / "elsewhere")
    sweep([small()], tmp_path / "home", executor=executor, retry=True)
    assert Run.load(run_path(small(), tmp_path / "home")).outcome.status == "completed"


def test_a_failure_does_not_lose_the_other_runs(tmp_path):
    experiments = [small(dataset="chebyshef-3-12"), small(), small(seed=1)]
    with pytest.raises(ExceptionGroup, match="1 of 3 jobs failed") as caught:
        sweep(experiments, tmp_path)
    (error,) = caught.value.exceptions
    assert "did you mean 'chebyshev" in str(error)
    assert experiments[0].name in error.__notes__[0]
    assert [run_path(e, tmp_path).exists() for e in experiments] == [False, True, True]


def test_a_file_that_is_no_run_does_not_lose_the_other_runs(tmp_path):
    experiments = [small(), small(lr=0.05), small(seed=1)]
    damaged = run_path(experiments[0], tmp_path)
    damaged.write_bytes(b"half a run")
    for executor in (None, ThreadPoolExecutor(2)):
        with pytest.raises(ExceptionGroup, match="1 of 3 jobs failed") as caught:
            sweep(experiments, tmp_path, executor=executor)
        (error,) = caught.value.exceptions
        assert damaged.name in str(error) and "move it away" in str(error)
        for experiment in experiments[1:]:
            run_path(experiment, tmp_path).unlink()
    assert damaged.read_bytes() == b"half a run"


# -- methods and quantities ---------------------------------------------------------------------


def test_gradient_flow_is_an_experiment(tmp_path):
    experiment = Experiment(**{**SMALL, "num_steps": 5}, optimizer="flow", tick=0.5)
    run = run_experiment(experiment, tmp_path)
    assert run.outcome.step == 5
    assert run.settings["tick"] == 0.5
    assert experiment.key in run_path(experiment, tmp_path).name


def test_step_size_changes_are_two_runs_in_one(tmp_path):
    run = run_experiment(small(num_steps=30, lr_changes=[(12, 0.02)]), tmp_path)
    task = objective()
    first = train(task, GradientDescent(0.1), num_steps=12)
    point = torch.from_numpy(first.final_point)
    second = train(task, GradientDescent(0.02), num_steps=18, theta=point)
    np.testing.assert_array_equal(run["loss"].values[:12], first["loss"].values[:12])
    np.testing.assert_array_equal(run["loss"].values[12:], second["loss"].values)
    assert run.settings["lr_changes"] == [[12, 0.02]]
    with pytest.raises(ValueError, match="must increase"):
        StepSizeChanges(GradientDescent(0.1), [(4, 0.1), (2, 0.1)])


def test_the_inverse_sharpness_rule(tmp_path):
    experiment = small(lr=None, optimizer="inverse-sharpness", sharpness_every=1, dtype="float64")
    run = run_experiment(replace(experiment, sharpness_rtol=1e-6), tmp_path)
    task = objective(dtype="float64")
    theta, losses = task.initial_point, []
    for _ in range(41):
        hessian = task.hessian(theta)
        losses.append(float(hessian.value))
        dense = torch.stack([hessian.matvec(row) for row in torch.eye(len(theta)).double()])
        theta = theta - hessian.gradient / torch.linalg.eigvalsh(dense)[-1]
    np.testing.assert_allclose(run["loss"].values, losses, rtol=1e-6)


def test_every_measurement_searches_cold_if_asked(tmp_path):
    runs = [run_experiment(small(**o), tmp_path) for o in ({}, {"sharpness_cold_every": 1})]
    np.testing.assert_allclose(*(run["sharpness"].values for run in runs), rtol=2e-3)
    usual, cold = (run.provenance["sharpness_products"] for run in runs)
    assert cold > 1.25 * usual, (cold, usual)


def test_sharpness_on_a_subset(tmp_path):
    run = run_experiment(small(sharpness_examples=5, dtype="float64"), tmp_path)
    data = load_dataset("chebyshev-3-12")
    network = build("fc-tanh", 1, 1, widths=(6,))
    subset = Objective(network, data.inputs[:5], data.targets[:5], dtype="float64")
    expected = float(SharpnessTracker(subset, rtol=1e-6)(subset.initial_point)[0])
    assert run["sharpness"].values[0] == pytest.approx(expected, rel=1e-3)
    assert run.provenance["num_products"] == 0 < run.provenance["sharpness_products"]
    assert run["loss"].values[0] == pytest.approx(
        float(objective(dtype="float64").value(subset.initial_point))
    )


def test_quantities(tmp_path):
    lr = 1.0
    names = {
        "between": {"at": [3]},
        "effective": {"at": [3], "num_points": 1},
        "gauss-newton": {"at": [3], "rtol": 1e-6},
        "taylor": {"at": [3], "num_steps": 4},
        "expected-change": {"at": [3], "batch_size": 12, "num_batches": 3},
        "projection": {"every": 20, "dimension": 4, "seed": 9},
    }
    run = run_experiment(small(lr=lr, dtype="float64", quantities=names), tmp_path)
    task = objective(dtype="float64")
    theta = torch.from_numpy(train(task, GradientDescent(lr), num_steps=3).final_point)
    # all examples in a batch: the change of the loss is that of the run's own step
    change, error = run["expected-change"].values[0]
    assert change == pytest.approx(run["loss"].values[4] - run["loss"].values[3], rel=1e-9)
    assert error == pytest.approx(0, abs=1e-12)
    twin = train(TaylorQuadratic(task, theta), GradientDescent(lr), num_steps=4)
    np.testing.assert_allclose(run["taylor"].values[0], twin["loss"].values, rtol=1e-9)
    product = task.gauss_newton(theta).matvec
    dense = torch.stack([product(row) for row in torch.eye(len(theta)).double()])
    top = float(torch.linalg.eigvalsh(dense)[-1])
    assert run["gauss-newton"].values[0] == pytest.approx(top, rel=1e-5)
    after = theta - lr * task.gradient(theta)
    between = sharpness_between(task, theta, after, num_points=3, resolution=0.1)
    found = run["between"].values[0]
    assert found == pytest.approx([between.value, between.fraction], rel=1e-2)
    effective = effective_smoothness(task, theta, lr, num_points=1)
    assert run["effective"].values[0] == pytest.approx(effective, rel=1e-9)
    assert run["projection"].values.shape == (3, 4)
    projected = RandomProjection(len(theta), 4, seed=9)(task.initial_point)
    np.testing.assert_allclose(run["projection"].values[0], projected)


def test_the_expected_change_is_the_mean_over_batches_of_its_seed(tmp_path):
    names = {"expected-change": {"at": [0], "batch_size": 3, "num_batches": 20, "seed": 4}}
    run = run_experiment(small(dtype="float64", quantities=names), tmp_path, device="cpu")
    task, random = objective(dtype="float64"), torch.Generator().manual_seed(4)
    theta, changes = task.initial_point, []
    for _ in range(20):
        rows = torch.randperm(12, generator=random)[:3]
        after = theta - 0.1 * task.minibatch_gradient(theta, rows)
        changes.append(float(task.value(after) - task.value(theta)))
    wanted = [np.mean(changes), np.std(changes, ddof=1) / math.sqrt(20)]
    assert run["expected-change"].values[0] == pytest.approx(wanted, rel=1e-9)


def test_quantities_of_another_rule_are_refused(tmp_path):
    for rule in ({"lr_changes": [(3, 0.2)]}, {"optimizer": "polyak", "beta": 0.5}):
        for name in ("between", "effective"):
            with pytest.raises(ValueError, match=f"'{name}' is defined for gradient descent with"):
                run_experiment(small(**rule, quantities={name: {"at": [0]}}), tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("expected-change", {"batch_size": 13}, "batch_size must be a whole number in 1..12, got"),
        ("expected-change", {"batch_size": -1}, "batch_size must be a whole number in 1..12, got"),
        ("expected-change", {"batch_size": 3, "num_batches": 1}, "num_batches must be .* 2, got 1"),
        ("expected-change", {"batch_size": 3, "seed": "a"}, "seed must be a whole number, got 'a'"),
        ("taylor", {"num_steps": -5}, "num_steps must be a positive whole number, got -5"),
        ("taylor", {"num_steps": 2.5}, r"num_steps must be a positive whole number, got 2\.5"),
    ],
)
def test_quantities_that_make_no_sense(name, options, message):
    setting = Setting(objective(), GradientDescent(0.1), SharpnessTracker(objective()))
    with pytest.raises(ValueError, match=message):
        quantity(name, {"every": 1, **options}, setting)


def test_the_swing_along_the_top_direction(tmp_path):
    settings = {
        "dtype": "float64",
        "num_steps": 400,
        "sharpness_every": 1,
        "sharpness_rtol": 1e-9,  # so that the vector is right to four digits
        "quantities": {"top-direction": {"every": 1}},
    }
    run = run_experiment(small(lr=0.35, **settings), tmp_path)
    crossing = run.crossing
    assert crossing is not None and 0 < crossing < 350
    swing = run["top-direction"].values
    assert np.isnan(swing[:crossing]).all()
    assert swing[crossing] == 0
    task = objective(dtype="float64")
    points = [torch.from_numpy(train(task, GradientDescent(0.35), num_steps=crossing).final_point)]
    for _ in range(40):
        points.append(points[-1] - 0.35 * task.gradient(points[-1]))
    product = task.hessian(points[0]).matvec
    dense = torch.stack([product(row) for row in torch.eye(len(points[0])).double()])
    top = torch.linalg.eigh(dense).eigenvectors[:, -1]
    expected = np.array([float(top @ (point - points[0])) for point in points])
    expected *= np.sign(expected[-1] * swing[crossing + 40])  # an eigenvector has no sign
    found = swing[crossing : crossing + 41]
    np.testing.assert_allclose(found, expected, atol=1e-2 * np.abs(expected).max())


def test_the_swing_goes_on_from_a_checkpoint(tmp_path):
    settings = {"num_steps": 8, "sharpness_every": 1, "quantities": {"top-direction": {"every": 1}}}
    experiment = small(lr=1.1, **settings)  # above its threshold from the start

    def cut(now):
        if now.step == 5:
            raise CutOff

    with pytest.raises(CutOff):
        run_experiment(experiment, tmp_path / "a", report=cut, checkpoint_interval=0)
    resumed = run_experiment(experiment, tmp_path / "a")
    assert np.isfinite(resumed["top-direction"].values).all()
    assert_same_record(resumed, run_experiment(experiment, tmp_path / "b"))


def test_output_curvature_is_the_trace_of_cross_entropys_hessian(tmp_path):
    settings = {
        "dataset": "digits-1k",
        "architecture": "fc-tanh",
        "architecture_options": {"widths": [4], "init": "lecun"},
        "loss": "cross_entropy",
        "lr": 1e-9,
        "num_steps": 1,
        "quantities": {"output-curvature": {"at": [0]}, "accuracy": {"at": [0]}},
    }
    run = run_experiment(Experiment(**settings), tmp_path, device="cpu")
    network = build("fc-tanh", 64, 10, widths=(4,), init="lecun")
    task = Objective.from_dataset(network, load_dataset("digits-1k"), "cross_entropy")
    p = task.outputs(task.initial_point).double().softmax(dim=1)
    trace = float((1 - p.square().sum(dim=1)).mean())
    assert run["output-curvature"].values[0] == pytest.approx(trace, rel=1e-6)
    assert 0 <= run["accuracy"].values[0] <= 1
    with pytest.raises(ValueError, match="softmax"):
        run_experiment(Experiment(**{**settings, "loss": "square"}), tmp_path)


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with caplog.at_level("WARNING", logger="eoslib"):
        run = run_experiment(small(), tmp_path)
    assert run.outcome.status == "completed"
    assert "cannot be locked" in caplog.text
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz"}
