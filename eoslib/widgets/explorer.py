"""The step-size explorer: train loss above, sharpness and 2/η below, one slider for η.

The front end (`explorer.js`, `explorer.css`) is one and the same in JupyterLab and in the built
page. All runs travel to it as one block of float32 numbers beside a small JSON description, so a
page without a kernel shows exactly what was computed when the book was built. With a kernel and a
`train` callable, the reader may train at any step size in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import anywidget
import numpy as np
import traitlets

from eoslib import palette

if TYPE_CHECKING:
    from eoslib.runs import Run, Series

_HERE = Path(__file__).parent
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Progress(Protocol):
    """What a training tells of itself while it runs; `eoslib.train.Snapshot` is one."""

    @property
    def step(self) -> int:
        """Steps done."""

    @property
    def num_steps(self) -> int:
        """Steps to do."""

    @property
    def record(self) -> Callable[[], Run]:
        """Returns the run so far; called only when a new picture is due."""


Report = Callable[[Progress], bool]
Train = Callable[[float, Report], "Run"]


class StepSizeExplorer(anywidget.AnyWidget):
    """Runs of one network at several step sizes, with a slider that chooses among them.

    Args:
        runs: at least one run, all of the same network and data, at distinct step sizes.
        title: what the runs are, in words; the heading and accessible name of the figure.
        loss_label: the loss and its convention, on the axis.
        start: the run nearest to this step size is selected at first (by default: the middle one).
        train: `train(lr, report) -> Run`, called in a background thread when the reader asks for
            a run at step size `lr`. It passes `report` on to `eoslib.train`, or calls it itself as
            often as it likes, and returns what it has when `report` returns True.
        lr_range: smallest and largest step size the slider offers (by default: those of the runs).
        threshold_label: the stability threshold as a formula, as the plots name it.
        sharpness_scale: scale of the sharpness axis. "auto" is linear unless the thresholds are so
            far apart that the lowest would lie on the floor of the plot.

    Raises:
        ValueError: when there is no run, when two runs share a step size, or when `start` or
            `lr_range` is not made of positive finite numbers, or does not contain the runs.

    Attributes:
        runs: the runs by step size, then those trained by the reader, in the order of training.
        last_error: the exception that ended the most recent training, if one did.
    """

    _esm = _HERE / "explorer.js"
    _css = _HERE / "explorer.css"

    title = traitlets.Unicode().tag(sync=True)
    loss_label = traitlets.Unicode().tag(sync=True)
    threshold_label = traitlets.Unicode().tag(sync=True)
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

    _thread: threading.Thread | None = None  # of the most recent training
    _busy = False

    #: Seconds between two pictures of a training in progress.
    update_interval = 0.15

    def __init__(
        self,
        runs: Sequence[Run],
        *,
        title: str,
        loss_label: str = "train loss (½ mean squared error)",
        start: float | None = None,
        train: Train | None = None,
        lr_range: tuple[float, float] | None = None,
        threshold_label: str = "2/η",
        sharpness_scale: Literal["auto", "linear", "log"] = "auto",
    ) -> None:
        self.runs: list[Run] = sorted(runs, key=attrgetter("lr"))
        if not self.runs:
            raise ValueError("the explorer needs at least one run")
        step_sizes = [run.lr for run in self.runs]
        for smaller, larger in itertools.pairwise(step_sizes):
            if smaller == larger:
                raise ValueError(f"two runs share the step size {smaller:g}")
        low, high = lr_range if lr_range is not None else (step_sizes[0], step_sizes[-1])
        if not (_positive(low) and _positive(high) and low <= high):
            raise ValueError(f"lr_range must be 0 < smallest ≤ largest, got {lr_range!r}")
        if not (low <= step_sizes[0] and step_sizes[-1] <= high):
            raise ValueError(
                f"lr_range {low:g} to {high:g} does not contain the runs' step sizes, "
                f"{step_sizes[0]:g} to {step_sizes[-1]:g}"
            )
        if start is None:
            start = step_sizes[len(step_sizes) // 2]
        elif not _positive(start):
            raise ValueError(f"start must be a positive step size, got {start!r}")

        self.last_error: BaseException | None = None
        self._train = train
        self._lock = threading.Lock()
        self._please_stop = threading.Event()

        meta, data = _pack(self.runs)
        super().__init__(
            title=title,
            loss_label=loss_label,
            threshold_label=threshold_label,
            sharpness_scale=sharpness_scale,
            lr=min(step_sizes, key=lambda lr: abs(math.log(lr / start))),
            lr_range=[float(low), float(high)],
            colors={
                theme: {
                    "stops": list(palette.STOPS[theme]),
                    "accent": palette.ACCENT[theme],
                    "ink": palette.INK[theme],
                    "muted": palette.MUTED[theme],
                }
                for theme in palette.STOPS
            },
            trainable=train is not None,
            meta=meta,
            data=data,
        )
        self.on_msg(self._receive)

    def __repr__(self) -> str:
        """Say what is shown; no memory address, so that outputs stay the same between builds."""
        step_sizes = [run.lr for run in self.runs]
        count = f"{len(self.runs)} run{'s' if len(self.runs) > 1 else ''}"
        if len(self.runs) == 1:
            return f"StepSizeExplorer({count}, η {step_sizes[0]:g})"
        return f"StepSizeExplorer({count}, η {min(step_sizes):g} to {max(step_sizes):g})"

    @property
    def is_training(self) -> bool:
        """Whether a training is in progress."""
        return self._busy

    def train_at(self, lr: object) -> bool:
        """Start training at step size `lr` in the background, as the widget's button does.

        Problems are shown in the widget, not raised: nobody waits for this call.

        Args:
            lr: the step size.

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
        with self._lock:
            if self._busy:
                return False  # one at a time; the widget already shows the one in progress
            self._busy = True
            self._please_stop.clear()
            self.last_error = None
            # ipykernel keeps in context variables which cell a message belongs to
            context = contextvars.copy_context()
            self._thread = threading.Thread(
                target=context.run, args=(self._run_training, float(lr), _in_loop()), daemon=True
            )
            self._show("running", "", lr=float(lr), step=0, num_steps=0)
            self._thread.start()
        return True

    def stop(self) -> None:
        """Ask the training in progress to stop; it does so at its next report."""
        if self._busy:
            self._please_stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the training in progress has ended.

        Args:
            timeout: seconds to wait at most; None waits as long as it takes.

        Returns:
            Whether no training is in progress any more.
        """
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
            return not thread.is_alive()
        return True

    def close(self) -> None:
        """Stop a training in progress and remove the widget."""
        self.stop()
        super().close()

    def _receive(self, _widget: object, content: dict[str, Any], _buffers: object) -> None:
        if content.get("do") == "train":
            self.train_at(content.get("lr"))
        elif content.get("do") == "stop":
            self.stop()

    def _run_training(self, lr: float, later: Callable[[Callable[[], None]], None]) -> None:
        """Train, then show the new run or the reason why there is none (background thread).

        Traits are changed by way of `later`, since messages from the page change them as well.
        """
        last_update = 0.0

        def show(
            state: str, message: str, partial_run: Run | None = None, **numbers: float
        ) -> None:
            training: dict[str, Any] = {"state": state, "message": message, "lr": lr, **numbers}
            data = b""
            if partial_run is not None:
                training["meta"], data = _pack([partial_run])
            later(lambda: self._set(training=training, training_data=data))

        def report(progress: Progress) -> bool:
            nonlocal last_update
            now = time.monotonic()
            if now - last_update >= self.update_interval:
                last_update = now
                message = "stopping…" if self._please_stop.is_set() else ""
                steps = {"step": progress.step, "num_steps": progress.num_steps}
                show("running", message, progress.record(), **steps)
            return self._please_stop.is_set()

        assert self._train is not None
        try:
            run = self._train(lr, report)
            meta, data = _pack(sorted([*self.runs, run], key=attrgetter("lr")))
            message = f"η = {run.lr:g}: {run.describe()}"
        except BaseException as error:  # whatever it is, the reader must see that training ended
            self.last_error = error
            self._busy = False
            detail = f"{type(error).__name__}: {error}".rstrip(": ")
            show("failed", f"training at η = {lr:g} failed. {detail}")
        else:
            self.runs.append(run)
            self._busy = False
            later(lambda: self._set(meta=meta, data=data, lr=run.lr))
            show("done", message)

    def _show(self, state: str, message: str, **numbers: float) -> None:
        self._set(training={"state": state, "message": message, **numbers}, training_data=b"")

    def _set(self, **traits: Any) -> None:
        """Change several traits in one message, so that the page never sees half of a change."""
        with self.hold_sync():
            for name, value in traits.items():
                setattr(self, name, value)


def _in_loop() -> Callable[[Callable[[], None]], None]:
    """Return a way to call functions in the event loop that runs now; without one, at once."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return lambda function: function()
    context = contextvars.copy_context()

    def later(function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is left to tell
            loop.call_soon_threadsafe(function, context=context)

    return later


def _pack(runs: Sequence[Run]) -> tuple[dict[str, Any], bytes]:
    """Return the runs as a JSON description and one block of little-endian float32 numbers."""
    blocks: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    size = 0

    def append(numbers: Any) -> int:
        nonlocal size
        # a diverging run may exceed float32; JavaScript clips it at the edge of the plot anyway
        block = np.clip(np.asarray(numbers, dtype=np.float64), -_FLOAT32_MAX, _FLOAT32_MAX)
        blocks.append(block.astype("<f4"))
        size += block.size
        return size - block.size

    def describe(series: Series) -> dict[str, int]:
        known = ~np.isnan(series.values)
        steps = series.steps[known]
        spec = {"n": int(steps.size), "values": append(series.values[known])}
        gaps = np.unique(np.diff(steps))
        if gaps.size <= 1:  # evenly spaced steps need no list
            spec["first"] = int(steps[0]) if steps.size else 0
            spec["every"] = int(gaps[0]) if gaps.size else 1
        else:
            spec["steps"] = append(steps)
        return spec

    described = [
        {
            "lr": run.lr,
            "threshold": run.threshold,
            "words": run.describe(),
            "status": run.outcome.status,
            "loss": describe(run["loss"]),
            "sharpness": describe(run.sharpness),
        }
        for run in runs
    ]
    data = np.concatenate(blocks).tobytes() if blocks else b""
    return {"runs": described}, data


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
