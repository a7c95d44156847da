"""Figures of runs: loss above, sharpness and its threshold below, one shared x axis.

A step size is a colour (`eoslib.palette`), a threshold is a dashed line in that colour with its
value at the right end, and curves are labelled where they end. Functions return the figure and
never call ``plt.show()``; captions belong to the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from eoslib.losses import LOSSES
from eoslib.palette import ACCENT, INK, MUTED, step_size_color
from eoslib.runs import Run, in_digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["book_style", "draw_threshold", "plain_log_ticks", "plot_runs", "time_of"]

_STYLE: dict[str, Any] = {
    "axes.edgecolor": MUTED["light"],
    "axes.labelcolor": INK["light"],
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "font.size": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "savefig.dpi": 180,
    "text.color": INK["light"],
    "xtick.color": MUTED["light"],
    "ytick.color": MUTED["light"],
}


@contextmanager
def book_style() -> Iterator[None]:
    """Draw in the style of the book; the previous settings come back on leaving."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def time_of(run: Run, steps: np.ndarray, axis: str) -> np.ndarray:
    """Map steps to the x axis: themselves, or time = steps × η (for gradient flow: × tick).

    Raises:
        ValueError: the axis is neither ``"steps"`` nor ``"time"``, or the run knows no steps
            (gradient flow) or no step size of its own (`InverseSharpness`) and cannot be drawn
            on it.
    """
    if axis not in ("steps", "time"):
        raise ValueError(f"axis must be 'steps' or 'time', got {axis!r}")
    if axis == "steps" and "tick" in run.settings:
        raise ValueError("gradient flow has no steps; draw it over time (axis='time')")
    if axis == "steps":
        return steps
    if not math.isfinite(run.time_per_step):
        raise ValueError(
            f"a run of {run.settings['optimizer']} has no step size of its own to tell the time "
            "by; draw it over steps (axis='steps')"
        )
    return run.time(steps)


def draw_threshold(
    ax: Axes,
    run: Run,
    color: str,
    *,
    name: str | None = None,
    tint: bool = False,
    axis: str = "steps",
) -> None:
    """Draw the run's stability threshold, dashed, labelled at the right end.

    The label's formula is `name`, or the run's own, such as 2/η or 38/η.

    Where the step size changes the line has a step, and the label names the last threshold that is
    in the picture. Gradient flow, and a rule that has no threshold of its own, have no line.
    """
    changes = [step for step, _ in run.lr_changes]
    levels = run.thresholds([0, *changes])
    if not np.isfinite(levels).all():
        return
    style: dict[str, Any] = {"color": color, "linestyle": (0, (5, 3)), "linewidth": 1.1}
    # Far above any data; the limits are set from the data beforehand.
    shade: dict[str, Any] = {"color": ACCENT["light"], "alpha": 0.06, "linewidth": 0}
    last, top = float(levels[-1]), 1e9
    name = run.threshold_name if name is None else name
    if changes:
        inside = levels[levels <= ax.get_ylim()[1]]
        last = float(inside[-1]) if len(inside) else last
        x = time_of(run, np.array([0, *np.repeat(changes, 2), run.outcome.step]), axis)
        y = np.repeat(levels, 2)
        ax.plot(x, y, **style)
        if tint:
            ax.fill_between(x, y, top, **shade)
    else:
        ax.axhline(last, **style)
        if tint:
            ax.axhspan(last, top, **shade)
    ax.annotate(
        f"{name} = {in_digits(last)}",
        (1, last),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        color=color,
        va="center",
        fontsize=9,
        annotation_clip=False,
    )


def plain_log_ticks(axis: Axis) -> None:
    """Label a log axis with plain numbers: powers of ten, 1-2-5, or finer, by what it spans."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = [1.0] if high > 100 * low else [1.0, 2.0, 5.0]
    if high < 6 * low:
        subs = [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0]
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _highest(run: Run) -> float:
    """The largest curvature, each counting up to 1.5 times the threshold at its step."""
    curvature = run.curvature
    limits = 1.5 * run.thresholds(curvature.steps)
    return float(np.fmin(curvature.values, limits).max(initial=0))


def plot_runs(
    runs: Sequence[Run],
    *,
    axis: str = "steps",
    lr_range: tuple[float, float] | None = None,
    x_max: float | None = None,
    sharpness_max: float | None = None,
    threshold_name: str | None = None,
) -> Figure:
    """Loss (log axis) above sharpness with the dashed thresholds, one colour per step size.

    A run of gradient flow is drawn dotted, in ink; it needs the time axis. A run whose rule has no
    step size of its own (`InverseSharpness`) is drawn in ink, without a threshold. Of adaptive
    optimizers the preconditioned sharpness is drawn, for which their thresholds are.

    Args:
        runs: at least one; all with the same loss.
        axis: ``"steps"`` or ``"time"`` (steps × η).
        lr_range: step sizes at the two ends of the colour map; default: those of the runs. Give
            the whole page one range, and η has the same colour everywhere on it.
        x_max: right end of the x axis.
        sharpness_max: upper end of the sharpness axis; default: a little above the largest
            sharpness, that of a run counting up to 1.5 times its threshold.
        threshold_name: the threshold's formula; default: each run's own.

    Raises:
        ValueError: no runs, an unknown axis, or runs of adaptive optimizers beside others.
    """
    import matplotlib.pyplot as plt

    if not runs:
        raise ValueError("plot_runs needs at least one run")
    adaptive = runs[0].is_preconditioned
    if any(run.is_preconditioned != adaptive for run in runs):
        raise ValueError(
            "runs of adaptive optimizers have thresholds for another quantity, the preconditioned "
            "sharpness; draw them in a figure of their own"
        )
    flows = [run for run in runs if "tick" in run.settings]
    stepping = [run for run in runs if "tick" not in run.settings]
    ordered = sorted((run for run in stepping if math.isfinite(run.lr)), key=lambda run: run.lr)
    others = [run for run in stepping if not math.isfinite(run.lr)]
    low, high = lr_range or ((ordered[0].lr, ordered[-1].lr) if ordered else (1.0, 1.0))
    with book_style():
        figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(7.2, 5.4))
        for run in [*flows, *others, *ordered]:
            flow = "tick" in run.settings
            sized = not flow and math.isfinite(run.lr)
            style = {
                "color": step_size_color(run.lr, low, high) if sized else INK["light"],
                "linestyle": ":" if flow else "-",
                "zorder": 3 if flow else 2,
            }
            loss, curvature = run["loss"], run.curvature
            top.plot(
                time_of(run, loss.steps, axis),
                loss.values,
                label=f"η = {run.lr:.3g}" if sized else str(run.settings["optimizer"]),
                linewidth=1.6 if flow else 1.1,
                **style,
            )
            if "eigenvalues" in run.series and not run.is_preconditioned:
                further = run["eigenvalues"]
                bottom.plot(
                    time_of(run, further.steps, axis),
                    further.values[:, 1:],
                    alpha=0.35,
                    linewidth=0.9,
                    **style,
                )
            x = time_of(run, curvature.steps, axis)
            bottom.plot(x, curvature.values, **style)
            if run.outcome.status == "diverged" and len(x):
                bottom.plot(x[-1], curvature.values[-1], "x", color=ACCENT["light"], markersize=8)
        if sharpness_max is None:
            # An overshoot at the edge belongs in the picture; the explosion of a run does not.
            tops = [_highest(run) for run in runs]
            sharpness_max = 1.08 * max(tops) or 1.0
        bottom.set_ylim(0, sharpness_max)
        for run in ordered:
            if min(run.thresholds([0, run.outcome.step])) <= sharpness_max:
                color = step_size_color(run.lr, low, high)
                tint = len(runs) == 1
                draw_threshold(bottom, run, color, name=threshold_name, tint=tint, axis=axis)
        top.set_yscale("log")
        plain_log_ticks(top.yaxis)
        name = runs[0].settings["loss"]
        label = LOSSES[name].label if name in LOSSES else f"train loss ({name})"
        top.set_ylabel(f"{label}\nlog axis")
        bottom.set_ylabel("preconditioned\nsharpness" if adaptive else "sharpness")
        bottom.set_xlabel(
            "step"
            if axis == "steps"
            else "time τ"
            if not ordered or any(run.lr_changes for run in ordered)
            else "time = steps × η"
        )
        bottom.set_xlim(0, x_max)
        top.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=9, handlelength=1.2)
    return figure
