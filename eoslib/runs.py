"""A run: what was asked, what was measured, and what measured it.

A run is saved as one ``.npz`` file: the series as plain arrays, everything else as one JSON text.
No pickle is involved in either direction. Saving writes a temporary file beside the target and
renames it, so a reader never meets half a run.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Outcome", "Run", "RunFileError", "Series"]

_FORMAT = "eoslib-run"
_VERSION = 1
_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)


class RunFileError(ValueError):
    """A file is not a readable run."""


@dataclass(frozen=True)
class Series:
    """One measured quantity with its own step index.

    Attributes:
        steps: ``(m,)`` int64, strictly increasing; step t is measured before update t.
        values: ``(m,)`` or ``(m, d)`` float64.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Cast, and refuse a series that is none."""
        given = np.asarray(self.steps)
        with np.errstate(invalid="ignore"):  # NaN is no whole number either
            steps = given.astype(np.int64)
        if not np.array_equal(steps, given):
            raise ValueError("the steps of a series must be whole numbers, such as [0, 5, 10]")
        values = np.asarray(self.values, dtype=np.float64)
        if steps.ndim != 1 or values.shape[:1] != steps.shape:
            raise ValueError(
                f"a series needs one value per step, got steps of shape {steps.shape} and values "
                f"of shape {values.shape}"
            )
        if np.any(np.diff(steps) <= 0):
            raise ValueError("the steps of a series must increase strictly")
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        """Number of measurements."""
        return len(self.steps)

    def since(self, step: int) -> Series:
        """The measurements at that step and later."""
        keep = self.steps >= step
        return Series(self.steps[keep], self.values[keep])

    def until(self, step: int) -> Series:
        """The measurements before that step."""
        keep = self.steps < step
        return Series(self.steps[keep], self.values[keep])


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: ``"completed"`` (all steps done), ``"goal reached"`` (a stop rule fired),
            ``"diverged"``, ``"out of memory"``, or ``"stopped"`` (somebody asked for it).
        step: the step at which it ended.
        message: one sentence for a person.
    """

    status: str
    step: int
    message: str


@dataclass
class Run:
    """The record of one training run.

    Attributes:
        settings: what was asked for; JSON values only. The loop writes ``lr``, ``optimizer``,
            ``threshold``, ``loss``, ``num_steps``, ``num_parameters``, ``num_examples``,
            ``dtype`` (gradient flow: ``tick`` in place of ``lr``); the caller adds ``dataset``,
            ``architecture``, ``seed`` and the like.
        series: measured quantities by name; ``loss`` and ``sharpness`` among them, with an adaptive
            optimizer also ``preconditioned_sharpness``.
        outcome: how it ended.
        provenance: versions, device, threads, date, seconds, gradients and products spent.
        final_point: the last θ, ``(P,)``, if it was kept.
    """

    settings: dict[str, Any]
    series: dict[str, Series]
    outcome: Outcome
    provenance: dict[str, Any] = field(default_factory=dict)
    final_point: NDArray[Any] | None = None

    def __getitem__(self, name: str) -> Series:
        """The series of that name.

        Raises:
            KeyError: it was not measured; the message lists what was.
        """
        if name not in self.series:
            raise KeyError(
                f"this run has no series {name!r}; measured: {', '.join(sorted(self.series))}"
            )
        return self.series[name]

    # -- what the numbers say -------------------------------------------------------------------

    @property
    def lr(self) -> float:
        """Step size η."""
        return float(self.settings["lr"])

    @property
    def time_per_step(self) -> float:
        """Units of time from one step to the next: η, or the tick of gradient flow."""
        return float(self.settings["tick"]) if "tick" in self.settings else self.lr

    @property
    def threshold(self) -> float:
        """The update rule's stability threshold, 2/η for gradient descent, ∞ for gradient flow.

        Where the step size changes, that of the first one. With an adaptive optimizer it is one for
        the preconditioned sharpness.
        """
        return float(self.settings["threshold"])

    @property
    def sharpness(self) -> Series:
        """The largest Hessian eigenvalue; converged measurements only."""
        return self._converged("sharpness")

    @property
    def preconditioned_sharpness(self) -> Series:
        """The largest eigenvalue of D⁻¹H, of an adaptive optimizer; converged measurements only.

        Raises:
            KeyError: the optimizer has no preconditioner D.
        """
        return self._converged("preconditioned_sharpness")

    @property
    def is_preconditioned(self) -> bool:
        """Whether the threshold is one for the preconditioned sharpness."""
        return "preconditioned_sharpness" in self.series

    @property
    def curvature(self) -> Series:
        """What the threshold is for: the sharpness, or else the preconditioned sharpness."""
        return self.preconditioned_sharpness if self.is_preconditioned else self.sharpness

    def _converged(self, name: str) -> Series:
        series = self[name]
        values = series.values if series.values.ndim == 1 else series.values[:, 0]
        known = np.isfinite(values)
        return Series(series.steps[known], values[known])

    @property
    def sharpness_ratio(self) -> Series:
        """`curvature` divided by the threshold of the step size at that step: 1 is the edge."""
        curvature = self.curvature
        return Series(curvature.steps, curvature.values / self.thresholds(curvature.steps))

    @property
    def lr_changes(self) -> list[tuple[int, float]]:
        """Pairs (t, η): from step t on the step size was η. Changes planned for later are none."""
        planned = self.settings.get("lr_changes", [])
        return [(int(begin), float(lr)) for begin, lr in planned if begin < self.outcome.step]

    @property
    def threshold_name(self) -> str:
        """The threshold as a formula: ``"2/η"`` for gradient descent, ``"38/η"`` for Adam.

        ``"∞"`` for gradient flow.
        """
        if math.isinf(self.threshold):
            return "∞"
        return f"{self.threshold * self.lr:.3g}/η"

    def thresholds(self, steps: ArrayLike) -> NDArray[np.float64]:
        """The threshold at each of the steps, ``(m,)``; inversely proportional to the step size."""
        at = np.asarray(steps)
        thresholds = np.full(len(at), self.threshold)
        for begin, lr in self.lr_changes:
            thresholds[at >= begin] = self.threshold * self.lr / lr
        return thresholds

    def time(self, steps: ArrayLike) -> NDArray[np.float64]:
        """The time at each of the steps, ``(m,)``: the sum of the step sizes before it."""
        rate, counted = self.time_per_step, np.asarray(steps, dtype=np.float64)
        time = rate * counted
        for begin, lr in self.lr_changes:
            time += (lr - rate) * np.maximum(counted - begin, 0)
            rate = lr
        return time

    @property
    def _told_ratio(self) -> Series:
        """`sharpness_ratio`, of an adaptive optimizer from where it is first below its line.

        Before, the preconditioner is one of the first few gradients, and the threshold, which is
        for averages that have settled, says nothing of the steps.
        """
        ratio = self.sharpness_ratio
        below = np.flatnonzero(ratio.values < 1)
        if not self.is_preconditioned or not len(below):
            return ratio
        return ratio.since(int(ratio.steps[below[0]]))

    @property
    def crossing(self) -> int | None:
        """The first measured step with `curvature` ≥ threshold, or ``None``.

        With an adaptive optimizer, the first after it was below: its first steps do not count.
        """
        ratio = self._told_ratio
        above = np.flatnonzero(ratio.values >= 1)
        return int(ratio.steps[above[0]]) if len(above) else None

    def describe(self) -> str:
        """The state the run ended in, in words, read off its numbers."""
        if self.outcome.status in ("diverged", "out of memory"):
            return f"{self.outcome.status} at step {self.outcome.step:,}"
        if not self.series.keys() & {"sharpness", "preconditioned_sharpness"} or not len(
            self.curvature
        ):
            return f"{self.outcome.status} at step {self.outcome.step:,}"
        if "tick" in self.settings:
            until = self.outcome.step * self.time_per_step
            return (
                f"followed for {until:g} units of time: sharpness "
                f"{in_digits(self.sharpness.values[-1])}"
            )
        name = "preconditioned sharpness" if self.is_preconditioned else "sharpness"
        ratio, crossing = self._told_ratio, self.crossing
        if crossing is None:
            line = self.thresholds(ratio.steps)[-1]
            now = f"{name} {in_digits(self.curvature.values[-1])}"
            if not np.isfinite(line):  # a rule without a threshold of its own
                return f"{self.outcome.status} at step {self.outcome.step:,}: {now}"
            now += f", threshold {in_digits(line)}"
            if self.outcome.status == "goal reached":
                return f"solved before reaching the edge: {now}"
            late = ratio.values[len(ratio) // 2 :]
            word = "sharpening" if late[-1] > late[0] else "below the edge"
            return f"{word}: {now}"
        tail = float(np.median(ratio.values[-max(1, len(ratio) // 5) :]))
        start = "started above the edge, " if crossing == ratio.steps[0] else ""
        if tail > 1.3:
            return f"{start}above it at the end: {name} {tail:.2f} × threshold"
        if tail < 0.8:
            word = "now below it" if start else "was at the edge, now below it"
            return f"{start}{word}: {name} {tail:.2f} × threshold"
        if start:
            down = np.flatnonzero(ratio.values <= 1.1)
            if not len(down):
                return f"{start}above it at the end: {name} {tail:.2f} × threshold"
            crossing = int(ratio.steps[down[0]])
        since = self._at_edge_since(crossing)
        if not start and since != crossing:
            start = f"crossed at step {crossing:,}, "
        return f"{start}at the edge since step {since:,}"

    def _at_edge_since(self, crossing: int) -> int:
        """The first crossing with the last step size, and after the last stretch below the line.

        A stretch is five measurements, or a fiftieth of all, whose median is below 0.8. Where it is
        followed by no crossing, as it is where a run hovers just below its line, its end counts.
        """
        ratio = self.sharpness_ratio.since(crossing)
        again = max([0, *(begin for begin, _ in self.lr_changes)])
        length = max(5, len(self.curvature) // 50)
        if len(ratio) > length:
            windows = np.lib.stride_tricks.sliding_window_view(ratio.values, length)
            below = np.flatnonzero(np.median(windows, axis=1) < 0.8)
            if len(below):
                again = max(again, int(ratio.steps[below[-1] + length - 1]))
        later = ratio.since(again)
        above = np.flatnonzero(later.values >= 1)
        if again <= crossing or not len(later):
            return crossing
        return int(later.steps[above[0] if len(above) else 0])

    def plot(self, **options: Any) -> Any:
        """Loss above, sharpness and its threshold below; see `eoslib.plotting.plot_runs`."""
        from eoslib.plotting import plot_runs

        return plot_runs([self], **options)

    # -- storage --------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the run to ``path`` (one ``.npz`` file), atomically.

        Raises:
            TypeError: the settings hold something that is not JSON.
        """
        target = Path(path)
        written_atomically(target, self.write)
        return target

    def write(self, file: IO[bytes]) -> None:
        """Write the run to an open binary file, as `save` does.

        Raises:
            TypeError: the settings hold something that is not JSON.
        """
        arrays: dict[str, NDArray[Any]] = {}
        for name, series in self.series.items():
            arrays[f"steps/{name}"] = series.steps
            arrays[f"values/{name}"] = series.values
        if self.final_point is not None:
            arrays["final_point"] = self.final_point
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "settings": self.settings,
            "outcome": vars(self.outcome),
            "provenance": self.provenance,
        }
        arrays["header"] = np.array(json.dumps(plain_json(header, "run"), allow_nan=False))
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Run:
        """Read a run written by `save`.

        Raises:
            FileNotFoundError: there is no such file.
            RunFileError: the file is truncated, is no run, or is of a newer format.
        """
        source = Path(path)
        try:
            file = source.open("rb")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RunFileError(f"{source} is not a readable run: {error}") from error
        with file:
            return cls.read(file, str(source))

    @classmethod
    def read(cls, file: IO[bytes], name: str = "this") -> Run:
        """Read a run from an open binary file; ``name`` is what an error calls it.

        Raises:
            RunFileError: as for `load`.
        """
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in stored.files}
            header = json.loads(str(arrays.pop("header")))
            if header["format"] != _FORMAT:
                raise KeyError("format")
            if header["version"] <= _VERSION:
                return cls._assembled(header, arrays)
        except _UNREADABLE as error:
            size = file.seek(0, os.SEEK_END)
            # NumPy takes whatever it does not know for a pickle, and says how to trust it.
            reason = "no .npz file" if "pickled (object) data" in str(error) else error
            raise RunFileError(
                f"{name} ({size} bytes) is not a readable run: {reason}. Expected a .npz file "
                "written by Run.save; if it was copied or downloaded, fetch it again"
            ) from error
        raise RunFileError(
            f"{name} has run format {header['version']}, this eoslib reads up to {_VERSION}; "
            "upgrade eoslib"
        )

    @classmethod
    def _assembled(cls, header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Run:
        names = [name.removeprefix("steps/") for name in arrays if name.startswith("steps/")]
        return cls(
            settings=header["settings"],
            series={n: Series(arrays[f"steps/{n}"], arrays[f"values/{n}"]) for n in names},
            outcome=Outcome(**header["outcome"]),
            provenance=header["provenance"],
            final_point=arrays.get("final_point"),
        )


def in_digits(number: float) -> str:
    """A number as a reader would write it: to three digits, or whole from a thousand on."""
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}"


def written_atomically(target: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a temporary file beside the target, and rename it when it is whole.

    The folders on the way are made. If writing fails, the target is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp's 0600 is for secrets
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def plain_json(value: Any, where: str) -> Any:
    """Copy a value as plain JSON: NumPy numbers as Python's, NaN and infinities by their names.

    Raises:
        TypeError: something in it has no place in JSON; the message says where.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {str(key): plain_json(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(
        f"{where} is a {type(value).__name__}, which a run record cannot hold; "
        "use numbers, strings, lists and dictionaries"
    )
