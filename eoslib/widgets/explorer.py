"""The step-size explorer: train loss above, sharpness and 2/η below, one slider for η.

The front end (`explorer.js`, `explorer.css`) is one and the same in JupyterLab and in the built
page. All runs travel to it as one block of float32 numbers beside a small JSON description, so a
page without a kernel shows exactly what was computed when the book was built. With a kernel and a
`train` callable, the reader may train at any step size in between. Runs of several networks are
groups; a list above the slider chooses among them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, Protocol

import anywidget
import numpy as np
import traitlets

from eoslib.widgets._shared import (
    COLORS,
    BackgroundTask,
    NumberBlock,
    Progress,
    describe_error,
    front_end,
)

if TYPE_CHECKING:
    from eoslib.runs import Run, Series


class RunProgress(Progress, Protocol):
    """What a training tells of itself while it runs; `eoslib.Snapshot` is one."""

    @property
    def record(self) -> Callable[[], Run]:
        """Returns the run so far; called only when a new picture is due."""


Report = Callable[[RunProgress], bool]
Train = Callable[[float, Report], "Run"]
TrainInGroup = Callable[[str, float, Report], "Run"]


class StepSizeExplorer(anywidget.AnyWidget):
    """Runs of one network at several step sizes, with a slider that chooses among them.

    Args:
        runs: at least one run, all of the same network and data, at distinct step sizes; or several
            such lists under their names, among which the reader chooses.
        title: what the runs are, in words; the heading and accessible name of the figure.
        loss_label: the loss and its convention, on the axis.
        start: the run nearest to this step size is selected at first (by default: the middle one).
        train: `train(lr, report) -> Run`, called in a background thread when the reader asks for
            a run at step size `lr`. It passes `report` on to `eoslib.train`, or calls it itself as
            often as it likes, and returns what it has when `report` returns True. For several
            groups it is `train(group, lr, report) -> Run`.
        lr_range: smallest and largest step size the slider offers (by default: those of the runs).
        threshold_label: the stability threshold as a formula, as the plots name it. Default: the
            runs' own, such as 2/η, or "threshold" if they differ.
        sharpness_scale: scale of the sharpness axis. "auto" is linear unless the thresholds are so
            far apart that the lowest would lie on the floor of the plot.
        group_label: what the groups are, in a word: the label of their list.

    Raises:
        ValueError: when there is no run, when two runs of a group share a step size, when some are
            of adaptive optimizers, whose preconditioned sharpness is shown, and some not, or when
            `start` or `lr_range` is not made of positive finite numbers, or the range does not
            contain the runs.

    Attributes:
        groups: the runs by the name of their group, which is empty if there is only one.
    """

    _esm, _css = front_end("explorer")

    title = traitlets.Unicode().tag(sync=True)
    loss_label = traitlets.Unicode().tag(sync=True)
    threshold_label = traitlets.Unicode().tag(sync=True)
    curvature_label = traitlets.Unicode().tag(sync=True)  # what the threshold is for
    group_label = traitlets.Unicode().tag(sync=True)
    group_names = traitlets.List(traitlets.Unicode()).tag(
        sync=True
    )  # empty: no list to choose from
    group = traitlets.Unicode().tag(sync=True)  # the one that is shown
    sharpness_scale = traitlets.Enum(["auto", "linear", "log"], "auto").tag(sync=True)
    lr = traitlets.Float().tag(sync=True)
    lr_range = traitlets.List(traitlets.Float()).tag(sync=True)
    axis = traitlets.Enum(["steps", "time"], "steps").tag(sync=True)
    colors = traitlets.Dict().tag(sync=True)
    trainable = traitlets.Bool(False).tag(sync=True)
    # `meta` says where each run's numbers lie in `data` (float32, little endian).
    meta = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)
    # The training in progress: its state in words, and its partial run packed like `meta`/`data`.
    training = traitlets.Dict({"state": "idle"}).tag(sync=True)
    training_data = traitlets.Bytes().tag(sync=True)

    #: Seconds between two pictures of a training in progress.
    update_interval = 0.15

    def __init__(
        self,
        runs: Sequence[Run] | Mapping[str, Sequence[Run]],
        *,
        title: str,
        loss_label: str = "train loss (½ mean squared error)",
        start: float | None = None,
        train: Train | TrainInGroup | None = None,
        lr_range: tuple[float, float] | None = None,
        threshold_label: str | None = None,
        sharpness_scale: Literal["auto", "linear", "log"] = "auto",
        group_label: str = "network",
    ) -> None:
        self._task = BackgroundTask()
        grouped = isinstance(runs, Mapping)
        named: Mapping[str, Sequence[Run]] = runs if isinstance(runs, Mapping) else {"": runs}
        self.groups: dict[str, list[Run]] = {
            name: sorted(_with_one_step_size(of_group), key=attrgetter("lr"))
            for name, of_group in named.items()
        }
        if not self.groups:
            raise ValueError("the explorer needs at least one run")
        for name, of_group in self.groups.items():
            _check_group(of_group, f" of {name}" if grouped else "")
        step_sizes = sorted(run.lr for run in self.runs)
        low, high = lr_range if lr_range is not None else (step_sizes[0], step_sizes[-1])
        if not (_positive(low) and _positive(high) and low <= high):
            raise ValueError(f"lr_range must be 0 < smallest ≤ largest, got {lr_range!r}")
        if not (low <= step_sizes[0] and step_sizes[-1] <= high):
            raise ValueError(
                f"lr_range {low:g} to {high:g} does not contain the runs' step sizes, "
                f"{step_sizes[0]:g} to {step_sizes[-1]:g}"
            )
        first, first_runs = next(iter(self.groups.items()))
        if start is None:
            start = first_runs[len(first_runs) // 2].lr
        elif not _positive(start):
            raise ValueError(f"start must be a positive step size, got {start!r}")

        self._train: Any = train  # takes the group first, if there are several
        meta, data = _pack(self.groups)
        super().__init__(
            title=title,
            loss_label=loss_label,
            threshold_label=_threshold_label(self.runs)
            if threshold_label is None
            else threshold_label,
            curvature_label=_curvature_label(self.runs),
            sharpness_scale=sharpness_scale,
            group_label=group_label,
            group_names=list(self.groups) if grouped else [],
            group=first,
            lr=min((run.lr for run in first_runs), key=lambda lr: abs(math.log(lr / start))),
            lr_range=[float(low), float(high)],
            colors=COLORS,
            trainable=train is not None,
            meta=meta,
            data=data,
        )
        self.on_msg(self._receive)

    def __repr__(self) -> str:
        """Say what is shown; no memory address, so that outputs stay the same between builds."""
        step_sizes = [run.lr for run in self.runs]
        count = f"{len(self.runs)} run{'s' if len(self.runs) > 1 else ''}"
        if self.group_names:
            count += f" in {len(self.groups)} group{'s' if len(self.groups) > 1 else ''}"
        if len(self.runs) == 1:
            return f"StepSizeExplorer({count}, η {step_sizes[0]:g})"
        return f"StepSizeExplorer({count}, η {min(step_sizes):g} to {max(step_sizes):g})"

    @property
    def runs(self) -> list[Run]:
        """Of each group the runs by step size, then those trained by the reader, as they came."""
        return [run for of_group in self.groups.values() for run in of_group]

    @property
    def is_training(self) -> bool:
        """Whether a training is in progress."""
        return self._task.busy

    @property
    def last_error(self) -> BaseException | None:
        """The exception that ended the most recent training, if one did."""
        return self._task.error

    def train_at(self, lr: object, group: object = None) -> bool:
        """Start training at step size `lr` in the background, as the widget's button does.

        Problems are shown in the widget, not raised: nobody waits for this call.

        Args:
            lr: the step size.
            group: the name of the group; by default the one that is shown.

        Returns:
            Whether a training was started.
        """
        if self._train is None:
            self._show("failed", "this explorer shows finished runs; it was given nothing to train")
            return False
        if isinstance(lr, bool) or not isinstance(lr, int | float) or not _positive(lr):
            self._show("failed", f"the step size must be a positive number, not {lr!r}")
            return False
        low, high = self.lr_range
        # 1e-9: a step size that JavaScript computed for an end of the slider may be off by an ulp
        if not low * (1 - 1e-9) <= lr <= high * (1 + 1e-9):
            self._show("failed", f"choose a step size between {low:g} and {high:g}, not {lr:g}")
            return False
        lr, group = float(lr), self.group if group is None else group
        if not isinstance(group, str) or group not in self.groups:
            self._show("failed", f"there is no {self.group_label} {group!r} here")
            return False
        named = f"{group}: " if group else ""
        return self._task.start(
            lambda: self._run_training(group, lr),
            before=lambda: self._show("running", "", value=lr, step=0, num_steps=0, group=group),
            done=lambda result: self._add(group, *result),
            failed=lambda error: self._show(
                "failed", f"{named}training at η = {lr:g} failed. {describe_error(error)}", value=lr
            ),
        )

    def stop(self) -> None:
        """Ask the training in progress to stop; it does so at its next report."""
        self._task.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the training in progress has ended.

        Args:
            timeout: seconds to wait at most; None waits as long as it takes.

        Returns:
            Whether no training is in progress any more.
        """
        return self._task.wait(timeout)

    def close(self) -> None:
        """Stop a training in progress and remove the widget."""
        self.stop()
        super().close()

    def _receive(self, _widget: object, content: dict[str, Any], _buffers: object) -> None:
        if content.get("do") == "train":
            self.train_at(content.get("lr"), content.get("group"))
        elif content.get("do") == "stop":
            self.stop()

    def _run_training(self, group: str, lr: float) -> tuple[Run, dict[str, Any], bytes]:
        """Train, showing how far it is (background thread); return the run and all runs, packed."""

        def report(progress: RunProgress) -> bool:
            if self._task.report_due(self.update_interval):
                meta, data = _pack({group: [progress.record()]})
                training = {
                    "state": "running",
                    "message": "stopping…" if self._task.stopping else "",
                    "value": lr,
                    "step": progress.step,
                    "num_steps": progress.num_steps,
                    "group": group,
                    "meta": meta,
                }
                self._task.later(lambda: self._set(training=training, training_data=data))
            return self._task.stopping

        assert self._train is not None
        run = self._train(group, lr, report) if self.group_names else self._train(lr, report)
        with_new = {**self.groups, group: [*self.groups[group], run]}
        _curvature_label([*self.runs, run])
        meta, data = _pack(
            {name: sorted(runs, key=attrgetter("lr")) for name, runs in with_new.items()}
        )
        self.groups = with_new
        return run, meta, data

    def _add(self, group: str, run: Run, meta: dict[str, Any], data: bytes) -> None:
        self._set(meta=meta, data=data, group=group, lr=run.lr)
        named = f"{group}, " if group else ""
        self._show("done", f"{named}η = {run.lr:g}: {run.describe()}", value=run.lr)

    def _show(self, state: str, message: str, **about: float | str) -> None:
        self._set(training={"state": state, "message": message, **about}, training_data=b"")

    def _set(self, **traits: Any) -> None:
        """Change several traits in one message, so that the page never sees half of a change."""
        with self.hold_sync():
            for name, value in traits.items():
                setattr(self, name, value)


def _with_one_step_size(runs: Sequence[Run]) -> Sequence[Run]:
    """The runs, once each is known to have a step size, and no other later."""
    runs = list(runs)
    for run in runs:
        changing = run.lr_changes
        if changing or "lr" not in run.settings or not _positive(run.lr):
            what = "a run whose step size changes" if changing else "one of "
            what += "" if changing else str(run.settings.get("optimizer", "unknown method"))
            raise ValueError(
                f"the explorer shows runs of one step size each, got {what}; draw it with run.plot"
            )
    return runs


def _threshold_label(runs: Sequence[Run]) -> str:
    """The thresholds of all these runs as one formula, if there is one."""
    names = {run.threshold_name for run in runs}
    return names.pop() if len(names) == 1 else "threshold"


def _curvature_label(runs: Sequence[Run]) -> str:
    """What the thresholds of all these runs are for."""
    adaptive = runs[0].is_preconditioned
    if any(run.is_preconditioned != adaptive for run in runs):
        raise ValueError(
            "runs of adaptive optimizers have thresholds for the preconditioned sharpness, the "
            "others for the sharpness; give each kind an explorer of its own"
        )
    return "preconditioned sharpness" if adaptive else "sharpness"


def _check_group(runs: Sequence[Run], of_group: str) -> None:
    if not runs:
        raise ValueError(f"the explorer needs at least one run{of_group}")
    for smaller, larger in itertools.pairwise(runs):
        if smaller.lr == larger.lr:
            raise ValueError(f"two runs{of_group} share the step size {smaller.lr:g}")


def _pack(groups: Mapping[str, Sequence[Run]]) -> tuple[dict[str, Any], bytes]:
    """Return the runs as a JSON description and one block of little-endian float32 numbers."""
    block = NumberBlock()

    def describe(series: Series) -> dict[str, float]:
        known = ~np.isnan(series.values)
        steps = series.steps[known]
        return {
            "n": steps.size,
            "values": block.append(series.values[known]),
            **block.append_grid(steps, "steps"),
        }

    described = [
        {
            "group": name,
            "lr": run.lr,
            "threshold": run.threshold,
            "words": run.describe(),
            "status": run.outcome.status,
            "loss": describe(run["loss"]),
            "sharpness": describe(run.curvature),
        }
        for name, runs in groups.items()
        for run in runs
    ]
    return {"runs": described}, block.to_bytes()


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
