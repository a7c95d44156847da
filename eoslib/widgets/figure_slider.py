"""A figure with one slider, which chooses among frames that were computed beforehand.

Sharpness and loss at several step sizes, each against its own threshold::

    import math
    from eoslib.widgets import FigureSlider, Frame, Line, Mark, Panel, Slider

    def frame(run):
        loss, sharpness = run["loss"], run.sharpness
        return Frame(
            lines=[
                Line(loss.steps, loss.values, "loss", lr=run.lr),
                Line(sharpness.steps, sharpness.values, "sharpness", panel=1, lr=run.lr),
            ],
            marks=[
                Mark(y=2 / run.lr, label=f"2/η = {2 / run.lr:.3g}", panel=1, lr=run.lr),
                Mark(y=(2 / run.lr, math.inf), label="above 2/η", panel=1, color="accent"),
            ],
            text=f"{run.describe()}; the last loss is {loss.values[-1]:.2g}.",
        )

    FigureSlider(
        Slider("step size", "η", step_sizes=True),
        [
            Panel("step", "train loss (½ mean squared error)", ylog=True),
            Panel("step", "sharpness"),
        ],
        {lr: frame(run) for lr, run in runs.items()},
        start=0.2,
        title="Each step size has its own edge",
        alt="Two curves against the step; the sharpness settles at a dashed line, 2/η.",
        ghosts=True,
        lr_range=LR_RANGE,
    )

The same front end shows it in JupyterLab and in the built page, where no kernel is needed. Tag
the cell `widget` and `hide-input`; `mystnb.figure` in the cell's metadata gives it a caption and a
number, as it does for a static figure.

Things to know:

- The slider's values are numbers, which are sorted, or words, which keep their order. They lie at
  equal distances, whatever the numbers: use a geometric grid where the scale is a logarithmic one.
- Neighbouring panels with the same x label share their x axis.
- Axis limits are those of all frames together, so what moves is the data. A diverged run would
  flatten all others: give `ylim=(None, top)`. A horizontal mark counts if it is not far away.
- A line that has an `lr` wears the colour of that step size. Everything else has a name from the
  palette: "ink", "muted", "accent", or a state of a run such as "catapulting".
- Lines are told apart without colours too: by labels at their ends, and by `style` and `pale`.
- NaN is a gap. Long lines are thinned to their envelope, which keeps every extremum.
- `text` is the sentence that a reader takes home from this frame; it is also spoken.
- `figure.plot(value)` draws a frame with matplotlib. The picture of the start is also what browsers
  without JavaScript and hosts without widgets show.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets

from eoslib.palette import step_size_color
from eoslib.widgets._shared import (
    COLORS,
    BackgroundTask,
    NumberBlock,
    Progress,
    describe_error,
    front_end,
)
from eoslib.widgets.frames import (
    Frame,
    Line,
    Mark,
    Panel,
    Slider,
    Value,
    axis_limits,
    envelope,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Compute = Callable[[float, Callable[[Progress], bool]], Frame]


class FigureSlider(anywidget.AnyWidget):
    """One figure whose content depends on one slider. The module's text has an example.

    Args:
        slider: what the slider chooses.
        panels: the axes, from top to bottom.
        frames: what to show at each value of the slider.
        start: the value that is shown at first: the one the text beside the figure talks about.
        title: heading and accessible name of the figure.
        alt: what is to be seen, for those who do not see it.
        background: lines shown behind every frame, for comparison.
        ghosts: show all other frames' lines behind this one's, faintly.
        lr_range: the step sizes at the two ends of the colour map; by default the smallest and
            the largest that occur. Give all figures of a page the same.
        compute: `compute(value, report) -> Frame`, called in a background thread when a reader
            with a kernel asks for a value between the smallest and the largest. It passes
            `report` on to `eoslib.train`, or calls it itself, and returns what it has when
            `report` returns True.

    Raises:
        ValueError: there is no frame or panel, the values are neither all numbers nor all words,
            `start` is not among them, a line or mark names a panel that is not there, or a panel
            has nothing to show.

    Attributes:
        frames: the frames by value, those that the reader had computed included.
    """

    _esm, _css = front_end("figure_slider")

    title = traitlets.Unicode().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    slider = traitlets.Dict().tag(sync=True)
    index = traitlets.Int().tag(sync=True)  # of the frame that is shown
    ghosts = traitlets.Bool().tag(sync=True)
    lr_range = traitlets.List(traitlets.Float()).tag(sync=True)
    colors = traitlets.Dict().tag(sync=True)
    # `meta` says where each line's numbers lie in `data` (float32, little endian).
    meta = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)
    computable = traitlets.Bool().tag(sync=True)
    computing = traitlets.Dict({"state": "idle"}).tag(sync=True)  # its state in words

    #: Seconds between two messages about a computation in progress.
    update_interval = 0.15

    def __init__(
        self,
        slider: Slider,
        panels: Sequence[Panel],
        frames: Mapping[Any, Frame],
        *,
        start: Value,
        title: str,
        alt: str,
        background: Sequence[Line] = (),
        ghosts: bool = False,
        lr_range: tuple[float, float] | None = None,
        compute: Compute | None = None,
    ) -> None:
        self._task = BackgroundTask()
        self._slider = slider
        self._panels = list(panels)
        self._background = list(background)
        self._compute = compute
        self.frames: dict[Value, Frame] = _in_order(frames, slider)
        if start not in self.frames:
            known = ", ".join(map(repr, self.frames))
            raise ValueError(f"start {start!r} is not a value of the slider; those are {known}")
        if not alt.strip():
            raise ValueError("alt must say what is to be seen in the figure")
        if compute is not None and isinstance(start, str):
            raise ValueError("compute needs a slider of numbers; its values are words")

        meta, data = self._pack(self.frames)
        super().__init__(
            title=title,
            alt=alt,
            slider={
                "label": slider.label,
                "symbol": slider.symbol,
                "step_sizes": slider.step_sizes,
            },
            index=list(self.frames).index(start),
            ghosts=ghosts,
            lr_range=self._find_lr_range(lr_range),
            colors=COLORS,
            meta=meta,
            data=data,
            computable=compute is not None,
        )
        self.on_msg(self._receive)

    def __repr__(self) -> str:
        """Say what is shown; no memory address, so that outputs stay the same between builds."""
        return f"FigureSlider({self.title!r}, {len(self.frames)} frames, at {self.value!r})"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Add a picture, for readers without JavaScript and for hosts without widgets."""
        data, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        data["text/plain"] = f"{self.title}. {self.alt}"
        data["image/png"] = base64.b64encode(self._to_png()).decode("ascii")
        return data, metadata

    @property
    def value(self) -> Value:
        """The value of the slider."""
        return list(self.frames)[self.index]

    # -- frames that are not stored ---------------------------------------------------------------

    @property
    def is_computing(self) -> bool:
        """Whether a computation is in progress."""
        return self._task.busy

    @property
    def last_error(self) -> BaseException | None:
        """The exception that ended the most recent computation, if one did."""
        return self._task.error

    def compute_at(self, value: object) -> bool:
        """Start computing the frame at `value` in the background, as the widget's button does.

        Problems are shown in the widget, not raised: nobody waits for this call. Where all values
        are integers, so must be this one.

        Returns:
            Whether a computation was started.
        """
        compute = self._compute
        if compute is None:
            self._say("failed", "this figure shows stored frames; it was given nothing to compute")
            return False
        numbers = [number for number in self.frames if not isinstance(number, str)]
        low, high = numbers[0], numbers[-1]
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            self._say("failed", f"choose a number between {low:g} and {high:g}, not {value!r}")
            return False
        if all(isinstance(number, int) for number in numbers):
            if value != int(value):
                self._say("failed", f"choose a whole number, not {value!r}")
                return False
            value = int(value)
        if value in self.frames:
            self.index = list(self.frames).index(value)
            self._say("done", f"{self._slider.label} {self._slider.write(value)}: stored already")
            return False
        place = value

        def report(progress: Progress) -> bool:
            if self._task.report_due(self.update_interval):
                message = "stopping…" if self._task.stopping else ""
                steps = {"step": progress.step, "num_steps": progress.num_steps}
                self._task.later(lambda: self._say("running", message, value=place, **steps))
            return self._task.stopping

        def work() -> tuple[dict[Value, Frame], dict[str, Any], bytes]:
            frames = _in_order({**self.frames, place: compute(place, report)}, self._slider)
            meta, data = self._pack(frames)
            self.frames = frames
            return frames, meta, data

        def done(result: tuple[dict[Value, Frame], dict[str, Any], bytes]) -> None:
            frames, meta, data = result
            self._set(meta=meta, data=data, index=list(frames).index(place))
            self._say("done", f"{self._slider.label} {self._slider.write(place)}: computed")

        return self._task.start(
            work,
            before=lambda: self._say("running", "", value=place),
            done=done,
            failed=lambda error: self._say("failed", f"no frame: {describe_error(error)}"),
        )

    def stop(self) -> None:
        """Ask the computation in progress to stop; it does so at its next report."""
        self._task.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is being computed, at most `timeout` seconds; return whether so."""
        return self._task.wait(timeout)

    def close(self) -> None:
        """Stop a computation in progress and remove the widget."""
        self.stop()
        super().close()

    def _receive(self, _widget: object, content: dict[str, Any], _buffers: object) -> None:
        if content.get("do") == "compute":
            self.compute_at(content.get("value"))
        elif content.get("do") == "stop":
            self.stop()

    def _say(self, state: str, message: str, **numbers: float) -> None:
        self._set(computing={"state": state, "message": message, **numbers})

    def _set(self, **traits: Any) -> None:
        """Change several traits in one message, so that the page never sees half of a change."""
        with self.hold_sync():
            for name, value in traits.items():
                setattr(self, name, value)

    # -- data -------------------------------------------------------------------------------------

    def _find_lr_range(self, given: tuple[float, float] | None) -> list[float]:
        if given is None:
            frames = self.frames.values()
            drawn: list[Line | Mark] = list(self._background)
            for frame in frames:
                drawn += [*frame.lines, *frame.marks]
            found = [one.lr for one in drawn if one.lr is not None]
            if self._slider.step_sizes:
                found += [value for value in self.frames if not isinstance(value, str)]
            given = (min(found), max(found)) if found else (1.0, 1.0)
        low, high = given
        if not (0 < low <= high < math.inf):
            raise ValueError(f"lr_range must be 0 < smallest ≤ largest, got {given!r}")
        return [float(low), float(high)]

    def _pack(self, frames: Mapping[Value, Frame]) -> tuple[dict[str, Any], bytes]:
        """Return the frames as a JSON description and one block of float32 numbers."""
        axes = self._find_axes(frames)
        block = NumberBlock()

        def line(one: Line, color: str) -> dict[str, Any]:
            x, y = one.points
            panel = self._panels[one.panel]
            kept = envelope(x, y, axes[one.panel]["xlim"], log=panel.xlog)
            return {
                "panel": one.panel,
                "label": one.label,
                "style": one.style,
                "pale": one.pale,
                **_color(one, color),
                "n": kept.size,
                "y": block.append(y[kept]),
                **block.append_grid(x[kept], "x"),
            }

        def mark(one: Mark) -> dict[str, Any]:
            ends = [end if math.isfinite(end) else None for end in one.ends]
            along = "x" if one.y is None else "y"
            label = {"panel": one.panel, "label": one.label}
            return {**label, **_color(one, "muted"), "along": along, "at": ends}

        meta = {
            "panels": axes,
            "background": [line(one, "muted") for one in self._background],
            "frames": [
                {
                    "value": self._slider.write(value),
                    **({"number": value} if not isinstance(value, str) else {}),
                    "lines": [line(one, "ink") for one in frame.lines],
                    "marks": [mark(one) for one in frame.marks],
                    "text": frame.text,
                }
                for value, frame in frames.items()
            ],
        }
        return meta, block.to_bytes()

    def _find_axes(self, frames: Mapping[Value, Frame]) -> list[dict[str, Any]]:
        """Return what each panel's axes are: labels, scales, limits, and whose x axis it shares."""
        if not self._panels:
            raise ValueError("a figure needs at least one panel")
        lines = [*self._background, *(one for f in frames.values() for one in f.lines)]
        marks = [one for f in frames.values() for one in f.marks]
        last = len(self._panels) - 1
        drawn: list[Line | Mark] = [*lines, *marks]
        for one in drawn:
            if not 0 <= one.panel <= last:
                raise ValueError(
                    f"there are panels 0 to {last}, but {one.label!r} is in {one.panel}"
                )

        group = 0
        groups = [0]
        for above, panel in zip(self._panels, self._panels[1:], strict=False):
            same = (above.x, above.xlog, above.xlim) == (panel.x, panel.xlog, panel.xlim)
            group += 0 if same else 1
            groups.append(group)

        described = []
        for k, panel in enumerate(self._panels):
            here = [one for one in lines if one.panel == k]
            if not here:
                raise ValueError(f"panel {k} ({panel.y}) has no line in any frame")
            sharing = [one for one in lines if groups[one.panel] == groups[k]]
            solid = all(one.style in ("solid", "dashed", "dotted") for one in sharing)
            heights = [one.points[1] for one in here]
            if not panel.ylog and any(one.style in ("stems", "bars") for one in here):
                heights.append(np.zeros(1))
            xlim = axis_limits(
                [one.points[0] + side * one.bar_width / 2 for one in sharing for side in (-1, 1)],
                panel.xlim,
                log=panel.xlog,
                padding=0 if solid else 0.03,
                what=f"the x axis of panel {k} ({panel.x})",
            )
            ylim = axis_limits(
                heights,
                panel.ylim,
                log=panel.ylog,
                padding=0.05,
                marks=[
                    one.ends[0]
                    for one in marks
                    if one.panel == k and one.y is not None and len(one.ends) == 1
                ],
                what=f"the y axis of panel {k} ({panel.y})",
            )
            described.append(
                {
                    "x": panel.x,
                    "y": panel.y,
                    "xlog": panel.xlog,
                    "ylog": panel.ylog,
                    "xlim": xlim,
                    "ylim": ylim,
                    "group": groups[k],
                }
            )
        return described

    # -- a picture --------------------------------------------------------------------------------

    def plot(self, value: Value | None = None) -> Figure:
        """Draw one frame with matplotlib, as a picture for print and for pages without scripts.

        Args:
            value: of the slider; by default the one that is shown.

        Raises:
            ValueError: `value` is not among the frames.
        """
        import matplotlib.pyplot as plt

        from eoslib.plotting import book_style, plain_log_ticks

        value = self.value if value is None else value
        if value not in self.frames:
            known = ", ".join(map(repr, self.frames))
            raise ValueError(f"there is no frame at {value!r}; there are {known}")
        frame, panels = self.frames[value], self.meta["panels"]
        height = {1: 3.6, 2: 5.4}.get(len(panels), 2.3 * len(panels))
        with book_style():
            figure, grid = plt.subplots(len(panels), 1, figsize=(7.2, height), squeeze=False)
            for k, (ax, panel) in enumerate(zip(grid[:, 0], panels, strict=True)):
                for axis, limits, log in (("x", "xlim", "xlog"), ("y", "ylim", "ylog")):
                    ax.set(
                        **{limits: panel[limits], f"{axis}scale": "log" if panel[log] else "linear"}
                    )
                    if panel[log]:
                        plain_log_ticks(getattr(ax, f"{axis}axis"))
                below = panels[k + 1 : k + 2]
                if below and below[0]["group"] == panel["group"]:
                    ax.tick_params(labelbottom=False)
                else:
                    ax.set_xlabel(panel["x"])
                ax.set_ylabel(panel["y"] + ("\nlog axis" if panel["ylog"] else ""))
                if not panel["y"]:
                    ax.set_yticks([])
                for lines, color in ((self._background, "muted"), (frame.lines, "ink")):
                    for line in lines:
                        if line.panel == k:
                            _plot_line(ax, line, self._mpl_color(line, color))
                for mark in frame.marks:
                    if mark.panel == k:
                        _plot_mark(ax, mark, self._mpl_color(mark, "muted"))
                if ax.get_legend_handles_labels()[1]:
                    ax.legend(fontsize=9)
            name = f"{self._slider.label} {self._slider.symbol} =".replace("  ", " ")
            figure.suptitle(f"{name} {self._slider.write(value)}", fontsize=10)
        return figure

    def _to_png(self) -> bytes:
        import matplotlib.pyplot as plt

        figure, buffer = self.plot(), io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
        return buffer.getvalue()

    def _mpl_color(self, one: Line | Mark, default: str) -> str:
        if one.lr is not None:
            return step_size_color(one.lr, *self.lr_range)
        return str(COLORS["light"][one.color or default])


def _in_order(frames: Mapping[Any, Frame], slider: Slider) -> dict[Value, Frame]:
    """Return the frames in the order of the slider, after looking at them."""
    if not frames:
        raise ValueError("a figure with a slider needs at least one frame")
    for value, frame in frames.items():
        if not isinstance(frame, Frame):
            raise ValueError(f"frames must be Frame objects; at {value!r} there is {frame!r}")
    if all(isinstance(value, str) for value in frames) and not slider.step_sizes:
        return dict(frames)
    numbers: dict[Value, Frame] = {}
    for value, frame in frames.items():
        real = isinstance(value, Real) and not isinstance(value, bool)
        if not (real and math.isfinite(value) and (value > 0 or not slider.step_sizes)):
            kind = "positive numbers" if slider.step_sizes else "all finite numbers or all words"
            raise ValueError(f"the values of the slider must be {kind}; one is {value!r}")
        numbers[int(value) if isinstance(value, Integral) else float(value)] = frame
    return dict(sorted(numbers.items()))


def _color(one: Line | Mark, default: str) -> dict[str, float | str]:
    return {"lr": one.lr} if one.lr is not None else {"color": one.color or default}


def _plot_line(ax: Axes, line: Line, color: str) -> None:
    x, y = line.points
    label, alpha = line.label or None, 0.45 if line.pale else 1.0
    if line.style == "stems":
        ax.vlines(x, ax.get_ylim()[0] if ax.get_yscale() == "log" else 0, y, color, alpha=alpha)
    if line.style == "bars":
        ax.bar(x, y, line.bar_width, color=color, alpha=alpha / 2, label=label)
        return
    points = line.style in ("points", "stems")
    linestyle = {"dashed": "--", "dotted": ":"}.get(line.style, "none" if points else "-")
    marker = "o" if points else "none"
    ax.plot(
        x,
        y,
        marker=marker,
        linestyle=linestyle,
        color=color,
        alpha=alpha,
        label=label,
        markersize=4,
    )


def _plot_mark(ax: Axes, mark: Mark, color: str) -> None:
    horizontal = mark.y is not None
    if len(mark.ends) == 2:
        low, high = np.clip(mark.ends, *(ax.get_ylim() if horizontal else ax.get_xlim()))
        (ax.axhspan if horizontal else ax.axvspan)(low, high, color=color, alpha=0.07, linewidth=0)
        return
    (at,) = mark.ends
    (ax.axhline if horizontal else ax.axvline)(
        at, color=color, linestyle=(0, (5, 3)), linewidth=1.1
    )
    low, high = ax.get_ylim() if horizontal else ax.get_xlim()
    if mark.label and low <= at <= high:
        ax.annotate(
            mark.label,
            (1, at) if horizontal else (at, 1),
            xycoords=("axes fraction", "data") if horizontal else ("data", "axes fraction"),
            xytext=(4, 0) if horizontal else (3, -3),
            textcoords="offset points",
            va="center" if horizontal else "top",
            color=color,
            fontsize=9,
            annotation_clip=False,
        )
