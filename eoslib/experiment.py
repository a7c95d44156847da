"""Experiments: settings that can be written down, run anywhere, and found again.

An `Experiment` is a frozen record of plain values: data set, architecture, loss, optimizer, step
size, schedule, stop rules, seed. It is what a command line or a recipe writes, what a cluster
carries, and what a stored run keeps. Everything that computes is made from it:

    Experiment → data set → objective → update rule → `eoslib.train` → `Run` → a file

Its *key* is a hash of the settings that determine the result, so a finished run is found and not
repeated, and runs of different settings never meet in one file. What does not determine the result
beyond rounding is no part of it: the device, the examples per pass, and which step sizes share a
computation.

`run_experiment` runs one in a directory:

* it saves a checkpoint there now and then, and goes on from one that it finds;
* Ctrl-C, SIGTERM or a kill leave the checkpoint, and the same call goes on;
* divergence is an outcome on record; so is a lack of memory, after smaller passes have been tried.

`run_together` runs experiments that differ in the update rule only as one batched computation.
`sweep` hands many to an executor of the kind of `concurrent.futures`: threads, processes, or a
cluster (Dask's ``client.get_executor()``, mpi4py's ``MPIPoolExecutor``, submitit's
``AutoExecutor``), of which it asks for ``submit(function, …)`` and ``result()`` only.

    runs = sweep([Experiment(…, lr=lr) for lr in (0.1, 0.2, 0.4)], "runs", executor=executor)

The chapters of the book need none of this: they call `eoslib.train` on objects that they make.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from eoslib._arguments import a_number
from eoslib._names import look_up
from eoslib.architectures import ARCHITECTURES, CONVOLUTIONAL, build_for
from eoslib.checkpoint import Checkpoint
from eoslib.data import Dataset, load_dataset, reads_files
from eoslib.flows import gradient_flow
from eoslib.losses import LOSSES
from eoslib.numerics import digest, hardware_stamp, lacks_memory
from eoslib.objective import Objective
from eoslib.quantities import DEPENDS_ON_RULE, QUANTITIES, Setting, quantity
from eoslib.quantities import schedule as schedule_of
from eoslib.recorder import Snapshot, StopRule, accuracy_above, every, loss_below
from eoslib.runs import Outcome, Run, Series, plain_json
from eoslib.tracker import SharpnessTracker
from eoslib.train import Minibatches, train_together
from eoslib.update_rules import (
    Adam,
    GradientDescent,
    InverseSharpness,
    Nesterov,
    Polyak,
    RMSProp,
    RuleWithStepSize,
    StepSizeChanges,
    UpdateRule,
    is_preconditioned,
)

__all__ = [
    "Executor",
    "Experiment",
    "Job",
    "batches_of",
    "run_experiment",
    "run_together",
    "stored_run",
    "sweep",
]

_log = logging.getLogger("eoslib")

#: Weights are drawn from the process's random state: two threads would draw from one another's.
_drawing = threading.Lock()

#: Optimizers by name; gradient flow is followed by `eoslib.flows`.
OPTIMIZERS: dict[str, type[RuleWithStepSize] | None] = {
    "gd": GradientDescent,
    "polyak": Polyak,
    "nesterov": Nesterov,
    "rmsprop": RMSProp,
    "adam": Adam,
    "inverse-sharpness": None,
    "flow": None,
}

#: The numbers of update rules beside the step size, and the optimizers that have them.
COEFFICIENTS = {
    "beta": ("polyak", "nesterov"),
    "beta1": ("adam",),
    "beta2": ("rmsprop", "adam"),
    "epsilon": ("rmsprop", "adam"),
}

OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The settings of one run, all of them plain JSON values.

    Attributes:
        dataset: as `eoslib.load_dataset` knows it.
        architecture: as `eoslib.build` knows it.
        architecture_options: passed on to `eoslib.build`, for instance ``{"widths": [20, 20]}``.
        loss: ``"square"`` (with its ½) or ``"cross_entropy"``.
        optimizer: ``"gd"``, ``"polyak"``, ``"nesterov"``, ``"rmsprop"``, ``"adam"``,
            ``"inverse-sharpness"`` (η = 1/λ₁, as last measured) or ``"flow"`` (gradient flow).
        lr: step size η; none for the last two.
        beta: momentum β, for Polyak and Nesterov.
        beta1: β₁ of `Adam`. Default: the rule's own, as of the next two.
        beta2: β₂ of `Adam` and `RMSProp`.
        epsilon: ε of `Adam` and `RMSProp`.
        lr_changes: pairs (step, step size): from that step on, this step size.
        num_steps: updates, or ticks of gradient flow.
        tick: units of time from one measurement of gradient flow to the next.
        seed: of the initial weights, and of the order of mini-batches.
        dtype: ``"float32"`` or ``"float64"``.
        batch_size: follow mini-batches of so many examples; default: the full batch.
        batch_norm: whose statistics batch-norm layers take; see `eoslib.Objective`.
        chunk_size: the physical batch size, examples per pass; with ``batch_norm="ghost"``, those
            that share their statistics. Default: all at once.
        eigenvalues: how many of the largest eigenvalues to track.
        sharpness_every: measure them every so many steps (gradient flow: at every tick).
        sharpness_rtol: their relative accuracy.
        sharpness_cold_every: every so many measurements search from random vectors too; see
            `eoslib.SharpnessTracker`.
        sharpness_examples: measure them on the loss of the first so many examples only, as Cohen
            et al. (2021) did on large data sets. Default: on the training loss.
        accuracy_goal: stop when the training accuracy exceeds this.
        loss_goal: stop when the training loss falls below this.
        divergence_factor: diverged is a loss above this multiple of the first.
        quantities: what else to record: names of `eoslib.quantities` with their options, for
            instance ``{"accuracy": {"every": 10}}``.

    Raises:
        ValueError: a name is unknown, a setting is out of range, missing, or out of place.
    """

    dataset: str
    architecture: str
    architecture_options: Mapping[str, Any] = field(default_factory=dict)
    loss: str = "square"
    optimizer: str = "gd"
    lr: float | None = None
    beta: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None
    lr_changes: Sequence[tuple[int, float]] = ()
    num_steps: int = 1000
    tick: float | None = None
    seed: int = 0
    dtype: str = "float32"
    batch_size: int | None = None
    batch_norm: str | None = None
    chunk_size: int | None = None
    eigenvalues: int = 1
    sharpness_every: int = 5
    sharpness_rtol: float = 1e-3
    sharpness_cold_every: int = 50
    sharpness_examples: int | None = None
    accuracy_goal: float | None = None
    loss_goal: float | None = None
    divergence_factor: float = 1e6
    quantities: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the values plain, and refuse what no run could be made of."""
        for entry in dataclasses.fields(self):
            value = plain_json(getattr(self, entry.name), entry.name)
            object.__setattr__(self, entry.name, value)
        for name in ("dataset", "architecture", "loss", "optimizer"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is a name, got {getattr(self, name)!r}")
        for name, value in vars(self).items():
            if isinstance(value, bool):  # Python takes it for 0 or 1
                raise ValueError(f"{name} must be a number, got {value}")
        look_up(ARCHITECTURES, self.architecture, "architecture")
        look_up(LOSSES, self.loss, "loss")
        look_up(OPTIMIZERS, self.optimizer, "optimizer")
        for name, options in self.quantities.items():
            look_up(QUANTITIES, name, "quantity")
            schedule_of(name, options)
        flow, fixed = self.optimizer == "flow", OPTIMIZERS[self.optimizer] is not None
        for name, belongs, needed in (
            ("lr", fixed, True),
            *((name, self.optimizer in of, name == "beta") for name, of in COEFFICIENTS.items()),
            ("tick", flow, True),
            ("lr_changes", fixed, False),
            ("batch_size", not flow, False),
        ):
            given = getattr(self, name) not in (None, [])
            if given and not belongs:
                raise ValueError(f"{name} has no meaning for the optimizer {self.optimizer!r}")
            if belongs and needed and not given:
                raise ValueError(f"the optimizer {self.optimizer!r} needs {name}")
        numbers = ("lr", *COEFFICIENTS, "tick", "accuracy_goal", "loss_goal", "divergence_factor")
        for name in numbers:
            if isinstance(getattr(self, name), int):  # 1 and 1.0 are one setting
                object.__setattr__(self, name, float(getattr(self, name)))
        if self.tick is not None and not 0 < a_number("tick", self.tick) < math.inf:
            raise ValueError(f"tick must be finite and above 0, got {self.tick!r}")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must fit in 64 bits, got {self.seed}")
        for name in ("num_steps", "eigenvalues", "sharpness_every", "sharpness_cold_every"):
            _check_count(name, getattr(self, name))
        for name in ("chunk_size", "batch_size", "sharpness_examples"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        if fixed:
            rule: Any = self.rule()
            rule = rule.rule if isinstance(rule, StepSizeChanges) else rule
            for name, of in COEFFICIENTS.items():
                if self.optimizer in of:  # given or not, one experiment
                    object.__setattr__(self, name, getattr(rule, name))

    def __hash__(self) -> int:
        """Equal experiments have equal keys."""
        return hash(self.key)

    # -- as a record ----------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Those settings that are not the default; `from_json` makes the experiment of them."""
        return {
            entry.name: getattr(self, entry.name)
            for entry in dataclasses.fields(self)
            if getattr(self, entry.name) != _default(entry)
        }

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Experiment:
        """The experiment with these settings.

        Raises:
            ValueError: a setting is unknown or wrong.
        """
        known = {entry.name: entry for entry in dataclasses.fields(cls)}
        if not isinstance(settings, Mapping):
            raise ValueError(f"settings are names and values, got {settings!r}")
        for name in settings:
            look_up(known, name, "setting")
        if missing := {"dataset", "architecture"} - settings.keys():
            raise ValueError(f"an experiment needs {' and '.join(sorted(missing))}")
        try:
            return cls(**settings)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"a setting is of the wrong kind ({error}): {settings}") from error

    @property
    def key(self) -> str:
        """Ten hexadecimal digits: a hash of the settings that determine the result."""
        return _hash(self.determining())

    @property
    def name(self) -> str:
        """A name for files: what it is in words, and the key."""
        parts = [self.architecture, self.dataset, self.loss.replace("_", "-"), self.optimizer]
        parts += [] if self.lr is None else [f"lr{self.lr:.6g}"]
        parts += [] if self.beta is None else [f"beta{self.beta:g}"]
        averages = {"beta1": self.beta1, "beta2": self.beta2}
        parts += [f"{name}-{value:g}" for name, value in averages.items() if value is not None]
        return re.sub(r"[^A-Za-z0-9.+_-]", "-", "_".join(parts)) + f"_{self.key}"

    def determining(self) -> dict[str, Any]:
        """Those settings that determine the result beyond rounding."""
        settings = self.to_json()
        if self.batch_norm != "ghost":  # the result is the same beyond rounding
            settings.pop("chunk_size", None)
        return settings

    # -- as objects -----------------------------------------------------------------------------

    def rule(self, tracker: SharpnessTracker | None = None) -> UpdateRule:
        """The update rule; one that follows the sharpness needs the tracker.

        Raises:
            ValueError: the step size or the momentum is out of range, or this is gradient flow.
        """
        if self.optimizer == "inverse-sharpness" and tracker is not None:
            return InverseSharpness(tracker)
        make = OPTIMIZERS[self.optimizer]
        if make is None:
            raise ValueError(f"the optimizer {self.optimizer!r} is no update rule by itself")
        numbers: dict[str, Any] = {name: getattr(self, name) for name in ("lr", *COEFFICIENTS)}
        rule = make(**{name: value for name, value in numbers.items() if value is not None})
        return StepSizeChanges(rule, self.lr_changes) if self.lr_changes else rule

    def objective(
        self, data: Dataset, device: str | torch.device | None, chunk_size: int | None
    ) -> Objective:
        """The training loss, on a device, so many examples at a pass."""
        with _drawing:
            network = build_for(
                self.architecture, data, seed=self.seed, **self.architecture_options
            )
        return Objective.from_dataset(
            network,
            data,
            self.loss,
            chunk_size=chunk_size,
            batch_norm=self.batch_norm,
            device=device,
            dtype=self.dtype,
        )

    def tracker(self, objective: Objective, data: Dataset) -> SharpnessTracker:
        """What measures the largest eigenvalues."""
        options: dict[str, Any] = {
            "rtol": self.sharpness_rtol,
            "cold_every": self.sharpness_cold_every,
        }
        if self.sharpness_examples is None or self.sharpness_examples >= data.num_examples:
            return SharpnessTracker(objective, self.eigenvalues, **options)
        subset = self.objective(
            data.first(self.sharpness_examples), objective.device, objective.chunk_size
        )
        return SharpnessTracker(subset, self.eigenvalues, **options)

    def stop_rules(self, objective: Objective) -> list[StopRule]:
        """When to end before the last step."""
        rules: list[StopRule] = []
        if self.loss_goal is not None:
            rules.append(loss_below(self.loss_goal))
        if self.accuracy_goal is not None:
            interval = 1 if self.optimizer == "flow" else 10
            rules.append(accuracy_above(objective, self.accuracy_goal, interval=interval))
        return rules


def run_experiment(
    experiment: Experiment,
    directory: str | os.PathLike[str],
    *,
    device: str | torch.device | None = "auto",
    report: Callable[[Snapshot], bool | None] | None = None,
    data: str | os.PathLike[str] | None = None,
    checkpoint_interval: float = 60.0,
    retry: bool = False,
) -> Run:
    """Run an experiment in a directory, or find its run there.

    Args:
        experiment: what to run.
        directory: holds the run (``NAME.npz``) and, until it is done, its checkpoint
            (``NAME.checkpoint``). It may hold many; it is made if needed.
        device: where to compute: ``"cpu"``, ``"cuda"``, or ``"auto"``.
        report: called after every step; see `eoslib.train`.
        data: the file or folder that the data set is read from, for one that is not in the
            package; default: where `eoslib.downloads` keeps it. The record has its digest.
        checkpoint_interval: seconds from one checkpoint to the next.
        retry: run again what ended for lack of memory.

    Returns:
        The `Run`, as its file has it. Its settings hold the experiment under ``"experiment"``.

    Raises:
        ValueError: a setting, the data or the device is wrong.
        FileExistsError: the file holds another run, or a process is at work on this one.
        MemoryError: there is too little for the data alone.
        KeyboardInterrupt: it was interrupted (SIGINT or SIGTERM); the same call goes on.
    """
    (run,) = run_together(
        [experiment],
        directory,
        device=device,
        report=report,
        data=data,
        checkpoint_interval=checkpoint_interval,
        retry=retry,
    )
    return run


def run_together(
    experiments: Sequence[Experiment],
    directory: str | os.PathLike[str],
    *,
    device: str | torch.device | None = "auto",
    report: Callable[[Snapshot], bool | None] | None = None,
    data: str | os.PathLike[str] | None = None,
    checkpoint_interval: float = 60.0,
    retry: bool = False,
) -> list[Run]:
    """Run experiments that differ in the update rule only, as one batched computation.

    The arguments are those of `run_experiment`. Those whose runs are found are not run again.

    Raises:
        ValueError: the experiments differ in more than the update rule, or `run_experiment` would
            raise it.
        FileExistsError, MemoryError, KeyboardInterrupt: as for `run_experiment`.
    """
    if len({_what_runs_share(experiment) for experiment in experiments}) != 1:
        raise ValueError(
            "only experiments that differ in nothing but the update rule run together; see sweep"
        )
    folder = Path(directory)
    found = {e.key: stored_run(e, folder) for e in experiments}
    everything = list({e.key: e for e in experiments}.values())
    todo = [
        e
        for e in everything
        if (run := found[e.key]) is None or (retry and run.outcome.status == OUT_OF_MEMORY)
    ]
    if data is not None:
        _refuse_runs_on_other_data(everything, found, data)
    for experiment in experiments:
        if experiment not in todo:
            _log.info("found %s", run_path(experiment, folder))
    if todo:
        # A process may have been killed when it had saved some of its runs: then the others go on
        # from the checkpoint that they share with these.
        shared = folder / f"{_together(everything)}.checkpoint"
        computed = everything if shared.exists() else todo
        together = _together(computed)
        checkpoint = Checkpoint(folder / f"{together}.checkpoint", interval=checkpoint_interval)
        with _locked(folder / f"{together}.lock"), checkpoint.saving_on_signals(_log.warning):
            for half in folder.glob(f".{together}.checkpoint.*"):
                half.unlink()  # a process was killed while it wrote this
            runs = _Attempts(computed, device, report, checkpoint, data).run()
            for experiment, run in zip(computed, runs, strict=True):
                if experiment in todo:
                    path = run.save(run_path(experiment, folder))
                    found[experiment.key] = Run.load(path)
            checkpoint.remove()
            if checkpoint.stop_requested:  # in the last step; what comes after is not to begin
                raise KeyboardInterrupt("stopped on request; the run is done and saved")
    return [run for e in experiments if (run := found[e.key]) is not None]


def _together(experiments: Sequence[Experiment]) -> str:
    """The name of the files of a computation while it goes on."""
    if len(experiments) == 1:
        return experiments[0].name
    return f"together_{_hash([experiment.key for experiment in experiments])}"


def what_goes_on(path: Path) -> str:
    """What is to be done with a checkpoint that lies in a directory of runs, in words.

    Raises:
        CheckpointError: the file is not readable.
    """
    if not path.name.startswith("together_"):
        if path.with_suffix(".npz").exists():
            return "its run is done; this may be deleted"
        return "not finished; its command goes on with it"
    runs = Checkpoint(path).identity().get("runs", [])
    try:
        experiments = [
            Experiment.from_json(run["experiment"] | {k: run[k] for k in _RULE if k in run})
            for run in runs
        ]
    except (ValueError, LookupError, TypeError):
        experiments = []
    if not experiments or _together(experiments) != path.stem:
        return "not finished; if the command that began it does not go on with it, delete it"
    if all(run_path(experiment, path.parent).exists() for experiment in experiments):
        return f"its {len(experiments)} runs are done; this may be deleted"
    names = ", ".join(experiment.name for experiment in experiments)
    return (
        f"not finished; a command that asks for just these {len(experiments)} runs, in this order, "
        f"goes on with it: {names}. Otherwise it may be deleted"
    )


def _refuse_runs_on_other_data(
    experiments: Sequence[Experiment],
    found: Mapping[str, Run | None],
    data: str | os.PathLike[str],
) -> None:
    """What was computed on one file must not pass for what comes of another."""
    runs = [run for e in experiments if (run := found[e.key]) is not None]
    name = experiments[0].dataset
    if not runs or not reads_files(name):
        return
    here = _data_digest(_loaded(name, data))
    for run in runs:
        if run.settings["data_digest"] != here:
            raise FileExistsError(
                f"there is a run of these settings on other data ({run.settings['data_source']}) "
                f"than those of {data}; choose another folder for the runs, or name no data"
            )


def _loaded(name: str, path: str | os.PathLike[str] | None) -> Dataset:
    """The data set, for which there must be memory.

    That there is none is no outcome to put on record: no training has begun, and it is the same for
    all experiments on these data.
    """
    try:
        return load_dataset(name, **({} if path is None else {"path": path}))
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else "no memory was left"
        raise MemoryError(
            f"the data set {name} could not be loaded ({reason}); take fewer examples of it, or "
            "end what else holds memory, and ask for the same again: no run has begun"
        ) from error


def _data_digest(data: Dataset) -> str:
    return digest(data.inputs) + digest(data.targets)


def run_path(experiment: Experiment, directory: str | os.PathLike[str]) -> Path:
    """Where the run of an experiment lies in a directory."""
    return Path(directory) / f"{experiment.name}.npz"


def stored_run(experiment: Experiment, directory: str | os.PathLike[str]) -> Run | None:
    """The run of an experiment, if the directory has it.

    Raises:
        FileExistsError: there is a file of that name with something else in it.
    """
    path = run_path(experiment, directory)
    try:
        run = Run.load(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise FileExistsError(f"{error}; move it away to run the experiment") from error
    held = run.settings.get("experiment")
    try:
        same = held is not None and Experiment.from_json(held).key == experiment.key
    except ValueError:  # no settings of ours
        same = False
    if not same:
        raise FileExistsError(
            f"{path} holds another run ({held}) than its name says; it is left as it is. Move it "
            "away, or choose another directory"
        )
    return run


def batches_of(experiments: Iterable[Experiment]) -> list[list[Experiment]]:
    """Sort experiments into lists for `run_together`, in order of their first members.

    What can run together does, but for convolutional networks: a convolution with weights of its
    own for each run is slow. Two step sizes of the CNNs, VGG-11 or ResNet-32 took 1.1 to 1.5 times
    the processor time together on a CPU, and a gradient of ``cnn-tanh`` on 5,000 images 2.8 times
    as long on an H100. (One of ``fc-tanh`` took 0.9 times as long there.)
    """
    batches: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        alone = experiment.architecture in CONVOLUTIONAL
        key = experiment.key if alone else _what_runs_share(experiment)
        batches.setdefault(key, []).append(experiment)
    return list(batches.values())


def _what_runs_share(experiment: Experiment) -> str:
    """Alike for experiments that can run as one batched computation."""
    alone = (
        experiment.optimizer in ("flow", "inverse-sharpness")
        or DEPENDS_ON_RULE & experiment.quantities.keys()
    )
    return _hash(experiment.determining() if alone else without_rule(experiment))


class Job(Protocol):
    """What an executor hands back for a job."""

    def result(self) -> Any:
        """Wait for the job, and return or raise what it did."""


class Executor(Protocol):
    """What `sweep` asks of an executor; those of `concurrent.futures` are such."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Job:
        """Have ``function(*arguments, **options)`` called somewhere, some time."""


def sweep(
    experiments: Iterable[Experiment],
    directory: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    together: bool = True,
    device: str | torch.device | None = "auto",
    data: str | os.PathLike[str] | None = None,
    checkpoint_interval: float = 60.0,
    retry: bool = False,
    report: Callable[[Snapshot], bool | None] | None = None,
) -> list[Run]:
    """Run many experiments, here or by an executor; those whose runs are found are not repeated.

    Args:
        experiments: what to run.
        directory: for runs and checkpoints; on a cluster one that all machines see. Where they
            see different ones, the runs come back all the same and are saved here.
        executor: anything with ``submit``; default: one after another in this process.
        together: run those that differ in the update rule only as one batched computation, where
            that is faster; see `batches_of`.
        device: as for `run_experiment`, on the machine that computes.
        data: as for `run_experiment`.
        checkpoint_interval: as for `run_experiment`.
        retry: as for `run_experiment`.
        report: as for `run_experiment`, without an executor.

    Returns:
        The runs, in order.

    Raises:
        ExceptionGroup: experiments failed, for the reasons it holds; the others are done and saved.
        ValueError: a report was given with an executor.
    """
    wanted = list(experiments)
    if executor is not None and report is not None:
        raise ValueError("a report cannot travel to an executor; leave one of them out")
    folder = Path(directory)
    found: dict[str, Run] = {}
    failures: list[Exception] = []
    stored: dict[Experiment, bool] = {}
    for experiment in {e.key: e for e in wanted}.values():
        try:
            stored[experiment] = stored_run(experiment, folder) is not None
        except FileExistsError as error:
            failures.append(error)
    unreadable, batches = len(failures), batches_of(stored)
    if not together:
        batches = [[experiment] for batch in batches for experiment in batch]
    options: dict[str, Any] = {
        "device": device,
        "data": None if data is None else str(data),
        "checkpoint_interval": checkpoint_interval,
        "retry": retry,
    }
    jobs: list[Callable[[], list[Run]]] = []
    for batch in batches:
        missing = retry or not all(stored[e] for e in batch)
        if executor is None or not missing:
            jobs.append(partial(run_together, batch, folder, report=report, **options))
        else:
            settings = [experiment.to_json() for experiment in batch]
            jobs.append(executor.submit(_run_settings, settings, str(folder), options).result)
    for batch, job in zip(batches, jobs, strict=True):
        try:
            runs = job()
        except Exception as error:
            error.add_note("in the experiment " + ", ".join(e.name for e in batch))
            failures.append(error)
            continue
        for experiment, run in zip(batch, runs, strict=True):
            here = stored_run(experiment, folder)
            if here is None or here.outcome != run.outcome:  # it was computed on another disk
                run.save(run_path(experiment, folder))
            found[experiment.key] = run
    if failures:
        jobs_asked = unreadable + len(batches)
        raise ExceptionGroup(f"{len(failures)} of {jobs_asked} jobs failed", failures)
    return [found[experiment.key] for experiment in wanted]


def _run_settings(
    settings: list[dict[str, Any]], directory: str, options: dict[str, Any]
) -> list[Run]:
    """What travels to an executor: plain values, and a function that can be imported there."""
    return run_together([Experiment.from_json(one) for one in settings], directory, **options)


# -- one computation ----------------------------------------------------------------------------


class _Attempts:
    """Experiments that differ in the update rule only, run until memory suffices."""

    def __init__(
        self,
        experiments: Sequence[Experiment],
        device: str | torch.device | None,
        report: Callable[[Snapshot], bool | None] | None,
        checkpoint: Checkpoint,
        data: str | os.PathLike[str] | None,
    ) -> None:
        self.experiments, self.device, self.report = experiments, device, report
        self.checkpoint, self.data = checkpoint, data
        self.latest: Callable[[], Run] | None = None

    def run(self) -> list[Run]:
        first = self.experiments[0]
        data = _loaded(first.dataset, self.data)
        chunk_size = first.chunk_size
        while True:
            try:
                return self._attempt(data, chunk_size)
            except (MemoryError, RuntimeError) as error:
                if not lacks_memory(error):
                    raise
                reason = str(error).splitlines()[0] if str(error) else "no memory was left"
                reached = None if self.latest is None else self.latest()
            # The traceback and the record, which hold tensors, are gone from here on.
            self.latest = None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            smaller = _smaller_chunk(first, chunk_size or data.num_examples)
            if smaller is not None:
                _log.warning("out of memory (%s); trying %d examples a pass", reason, smaller)
                chunk_size = smaller
            elif len(self.experiments) > 1:
                _log.warning("out of memory (%s); running one after another", reason)
                return [self._alone(experiment) for experiment in self.experiments]
            else:
                return [_without_memory(first, self._settings(data), reached, reason)]

    def _attempt(self, data: Dataset, chunk_size: int | None) -> list[Run]:
        first = self.experiments[0]
        objective = first.objective(data, self.device, chunk_size)
        tracker = first.tracker(objective, data)
        rules = [] if first.optimizer == "flow" else [e.rule(tracker) for e in self.experiments]
        setting = Setting(objective, rules[0] if rules else None, tracker)
        common: dict[str, Any] = {
            "sharpness": tracker,
            "measurements": [
                quantity(name, options, setting) for name, options in first.quantities.items()
            ],
            "stop": first.stop_rules(objective),
            "report": self._report,
            "settings": self._settings(data),
            "checkpoint": self.checkpoint,
        }
        if first.tick is not None:
            duration = first.num_steps * first.tick
            runs = [gradient_flow(objective, duration=duration, tick=first.tick, **common)]
        else:
            runs = train_together(
                objective,
                rules,
                num_steps=first.num_steps,
                sharpness_schedule=every(first.sharpness_every),
                batches=None
                if first.batch_size is None
                else Minibatches(first.batch_size, seed=first.seed),
                divergence_factor=first.divergence_factor,
                **common,
            )
        for experiment, run in zip(self.experiments, runs, strict=True):
            run.settings["experiment"] = experiment.to_json()
            run.provenance["chunk_size"] = objective.chunk_size
            run.provenance["sharpness_products"] = tracker.num_products
        return runs

    def _settings(self, data: Dataset) -> dict[str, Any]:
        """What the runs have in common, for their settings and the checkpoint's identity."""
        first = self.experiments[0]
        return {
            "dataset": data.name,
            "data_source": data.source,
            "data_digest": _data_digest(data),
            "architecture": first.architecture,
            "seed": first.seed,
            "experiment": without_rule(first),
        }

    def _report(self, now: Snapshot) -> bool | None:
        self.latest = now.record
        return None if self.report is None else self.report(now)

    def _alone(self, experiment: Experiment) -> Run:
        path = self.checkpoint.path.with_name(f"{experiment.name}.checkpoint")
        checkpoint = Checkpoint(path, interval=self.checkpoint.interval)
        with checkpoint.saving_on_signals(_log.warning):
            (run,) = _Attempts([experiment], self.device, self.report, checkpoint, self.data).run()
        return run


def _without_memory(
    experiment: Experiment, settings: dict[str, Any], reached: Run | None, reason: str
) -> Run:
    """The record of a run that found no memory: what was measured before, and how it ended."""
    step = 0 if reached is None else reached.outcome.step
    if reached is None:
        own, names = {"threshold": math.nan}, ["loss", "sharpness"]
        if experiment.lr is not None:
            rule = experiment.rule()
            own = rule.settings | {"threshold": rule.threshold}
            names += ["preconditioned_sharpness"] if is_preconditioned(rule) else []
        nothing = Series(np.empty(0, dtype=np.int64), np.empty(0))
        reached = Run(
            settings=settings | own | {"loss": experiment.loss, "optimizer": experiment.optimizer},
            series=dict.fromkeys(names, nothing),
            outcome=Outcome(OUT_OF_MEMORY, step, reason),
            provenance=dict(hardware_stamp()),
        )
    reached.settings["experiment"] = experiment.to_json()
    reached.outcome = Outcome(OUT_OF_MEMORY, step, f"out of memory after step {step}: {reason}")
    return reached


def _smaller_chunk(experiment: Experiment, chunk_size: int) -> int | None:
    """Half as many examples a pass, where that leaves the loss as it is."""
    depends = experiment.batch_norm in ("ghost", "full_batch")
    return None if depends or chunk_size == 1 else (chunk_size + 1) // 2


_RULE = ("optimizer", "lr", *COEFFICIENTS, "lr_changes")


def without_rule(experiment: Experiment) -> dict[str, Any]:
    """The settings that determine the result, but for the update rule: what a batch shares."""
    return {k: v for k, v in experiment.determining().items() if k not in _RULE}


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _default(entry: dataclasses.Field[Any]) -> Any:
    if entry.default_factory is not dataclasses.MISSING:
        return plain_json(entry.default_factory(), entry.name)
    return plain_json(None if entry.default is dataclasses.MISSING else entry.default, entry.name)


def _check_count(name: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes off a computation; the system lifts the lock of one that was killed."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(
                f"another process is at work on this run (it holds {path}); let it finish"
            ) from error
        except OSError as error:  # a file system without locks
            _log.warning(
                "%s cannot be locked (%s): start no second process on this run", path, error
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
