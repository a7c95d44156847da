"""The laboratory: a network that trains in the page while the reader turns the step size.

The front end (`laboratory.js`) trains by itself, with the engine of `laboratory_engine.js`, in
Jupyter as in a page without a kernel. With a kernel it hands over each run when it pauses, as an
`eoslib.Run`, and it may begin at weights that Python gives.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets
from numpy.typing import ArrayLike, NDArray

from eoslib.architectures import build_for
from eoslib.data import load_dataset
from eoslib.experiment import COEFFICIENTS, Experiment
from eoslib.palette import ACCENT, INK, step_size_color
from eoslib.plotting import book_style
from eoslib.runs import Outcome, Run, Series
from eoslib.widgets._shared import COLORS, _read, front_end

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The network of most experiments: 1-20-20-1, tanh, on T₄ at 20 points.
_SMALL: dict[str, Any] = {"degree": 4, "hidden": [20, 20]}

#: Ready-made experiments, one for each claim: name, what to look for, engine settings; if need be
#: steps done before the reader sees the run (`warm`), another run drawn as its shadow, the x axis
#: (``"time"``), steps per second.
PRESETS: dict[str, dict[str, Any]] = {
    "edge": {
        "name": "One step size and its line, 2/η",
        "text": "Run. The sharpness starts at about half of 2/η and rises. Where will it stop? "
        "Then press Reset, halve the step size, and run again: the first run stays as a shadow.",
        "settings": {**_SMALL, "stepSize": 0.2},
    },
    "drop": {
        "name": "At the edge, then a smaller step size",
        "text": "This run sits at 2/η = 10; at step 1,000 the step size drops to 0.15. "
        "Predict what the sharpness will do, then run. Drop it once more with the slider.",
        "settings": {**_SMALL, "stepSize": 0.2, "changes": [[1000, 0.15]]},
        "warm": 990,
    },
    "raise": {
        "name": "At the edge, then a larger step size",
        "text": "This run sits at 2/η = 20; at step 2,000 the step size doubles, and the network "
        "finds itself far above its line. Does it diverge?",
        "settings": {**_SMALL, "stepSize": 0.1, "changes": [[2000, 0.2]]},
        "warm": 1990,
    },
    "hand": {
        "name": "At the edge, your hand on the step size",
        "text": "This run sits at 2/η = 14. Move the slider while it runs. Down to 0.1: does the "
        "sharpness jump, creep, or stay? Reset, then up to 0.2: how soon does the loss notice?",
        "settings": {**_SMALL, "stepSize": 0.14},
        "warm": 1250,
    },
    "flow": {
        "name": "No steps at all: gradient flow",
        "text": "Gradient flow is the limit of small steps; it has no threshold. On this network "
        "gradient descent with η = 0.2 stops at 10. How far up will the flow go?",
        "settings": {**_SMALL, "optimizer": "flow"},
        "axis": "time",
    },
    "beside_flow": {
        "name": "Gradient descent beside gradient flow",
        "text": "In black the sharpness along gradient flow, against time. Gradient descent starts "
        "at the same weights. Up to where will it keep to the black curve? And with η = 0.25?",
        "settings": {**_SMALL, "stepSize": 0.2},
        "shadow": {"settings": {"optimizer": "flow"}, "steps": 1000},
        "axis": "time",
    },
    "quadratic": {
        "name": "A quadratic",
        "text": "A bowl with the curvatures 20 and ½: its sharpness cannot move. While it runs, "
        "take the line below 20, then above it again. Does the loss ever turn round without you?",
        "settings": {"task": "quadratic", "spectrum": [20, 0.5], "stepSize": 0.09},
        "speed": 10,
    },
    "taylor": {
        "name": "What the quadratic model says",
        "text": "At step 380, just after the crossing, the loss is frozen at its second-order "
        "Taylor polynomial, and both go on (dashed: the polynomial). Which one survives?",
        "settings": {**_SMALL, "stepSize": 0.2, "twinAt": 380},
        "warm": 370,
    },
    "relu": {
        "name": "Kinks: ReLU",
        "text": "Along any single weight the square loss of a ReLU network is made of pieces of "
        "parabolas, with kinks between. Will the sharpness rise, and know its line?",
        "settings": {**_SMALL, "activation": "relu", "stepSize": 0.2},
    },
    "deep_linear": {
        "name": "A deep linear network",
        "text": "Five matrices in a row and no activation: whatever it learns is a linear map. Is "
        "the product enough for the sharpness to rise, and to stop at 2/η = 16.7?",
        "settings": {
            "task": "linear",
            "points": 50,
            "hidden": [10, 10, 10, 10],
            "activation": "linear",
            "bias": "no",
            "init": "pytorch",
            "stepSize": 0.12,
        },
        "speed": 60,
    },
    "momentum": {
        "name": "Momentum",
        "text": "On a quadratic, Polyak momentum with β = 0.5 is stable up to 3/η = 15 instead of "
        "10. Does a network care? Change β in the settings below, and the line moves.",
        "settings": {**_SMALL, "optimizer": "polyak", "beta": 0.5, "stepSize": 0.2},
    },
    "nesterov": {
        "name": "Nesterov momentum",
        "text": "The same β, half the step size. Nesterov's line is at 3/(2η) = 15: it lies below "
        "the 2/η = 20 of gradient descent. Which of the two will the sharpness find?",
        "settings": {**_SMALL, "optimizer": "nesterov", "beta": 0.5, "stepSize": 0.1},
    },
    "adam": {
        "name": "Adam",
        "text": "Adam divides each coordinate by its own scale. The curvature it feels is that of "
        "the preconditioned Hessian, and with β₁ = 0.9 its line is at 38/η. Is that an edge, too?",
        "settings": {**_SMALL, "optimizer": "adam", "stepSize": 0.001},
    },
    "batches": {
        "name": "Mini-batches",
        "text": "Two of the twenty examples per step. Where will the sharpness (of the whole loss) "
        "level off: below 2/η, at it, or above? Set the batch to 0 below for the full batch.",
        "settings": {**_SMALL, "stepSize": 0.2, "batch": 2},
    },
    "cross_entropy": {
        "name": "Cross-entropy",
        "text": "Two spirals to be told apart. The sharpness will come to 2/η. Will it stay there "
        "when the examples are classified with confidence?",
        "settings": {
            "task": "spirals",
            "points": 60,
            "loss": "cross_entropy",
            "hidden": [20, 20],
            "stepSize": 0.2,
        },
    },
    "digits": {
        "name": "Real images: handwritten digits",
        "text": "Two hundred images, a network 64-20-20-10. Is there a line on real data, "
        "too, at 12.5? Each step costs more, so give it time.",
        "settings": {
            "task": "digits",
            "points": 200,
            "hidden": [20, 20],
            "init": "pytorch",
            "stepSize": 0.16,
        },
    },
}

#: The longest record that the page draws; that of the engine is as long.
MOST_BUCKETS = 1024

#: Images of digits that the page carries.
NUM_IMAGES = 300

#: The presets' runs as the engine makes them, for pictures (`scripts/laboratory_runs.py`).
RUNS_FILE = Path(__file__).parent / "laboratory_runs.npz"

#: Optimizers whose threshold is one for the preconditioned sharpness.
_ADAPTIVE = ("adam", "rmsprop")

#: The step sizes at the two ends of the colour map: those of the slider in the page.
_RANGE, _ADAPTIVE_RANGE = (0.01, 2.0), (1e-5, 0.1)


def _setting_names() -> frozenset[str]:
    """The names of the engine's settings, read from the engine."""
    _, text = _read("laboratory_engine.js").split("const SETTINGS = {\n")
    return frozenset(re.findall(r"^  (\w+): ", text.split("\n};")[0], flags=re.MULTILINE))


def _digits() -> tuple[dict[str, float], bytes]:
    """How to standardise the pixels (as `eoslib.data.digits` does), and pixels, then labels."""
    with resources.files("eoslib").joinpath("digits-1k.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        pixels, labels = stored["pixels"], stored["labels"]
    standard = {"mean": float(pixels.mean()), "deviation": float(pixels.std())}
    return standard, pixels[:NUM_IMAGES].astype(np.uint8).tobytes() + labels[:NUM_IMAGES].astype(
        np.uint8
    ).tobytes()


class Laboratory(anywidget.AnyWidget):
    """A network that trains in the page: run, pause, step; the step size may change at any time.

    Args:
        preset: a key of `PRESETS`, shown first; ignored if there are `settings`.
        settings: settings of the engine instead of a preset, for instance
            ``{"degree": 5, "hidden": [30, 20], "stepSize": 0.1}``; their names are those of
            `SETTINGS` in `laboratory_engine.js`, and what is left out has its default there. Their
            values are checked by the engine, which says in the page what is wrong.
        initial_point: initial weights for `settings`, ``(P,)``, in PyTorch's order, such as a
            `Run.final_point`; by default the engine draws them from its own seed.
        compact: for use inside a chapter: the step size, the two curves and a link that opens the
            run in the book's page `laboratory`, with everything else. Where the preset begins in
            the middle of a run, *Reset* goes back there.
        linked: keep the state in the page's address; for at most one laboratory on a page.
        title: heading and accessible name; by default "The laboratory", or the preset's name in
            a compact one.

    Raises:
        ValueError: `preset` or a setting is unknown, `initial_point` comes without `settings`, or
            it is not a vector of finite numbers.

    Attributes:
        run: the reader's run when it last paused, or None.
        settings: those of the constructor; assigning others begins a run with them, in the page.
    """

    _esm, _css = front_end("laboratory")

    title = traitlets.Unicode().tag(sync=True)
    preset = traitlets.Unicode().tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)
    initial_point = traitlets.Bytes().tag(sync=True)
    compact = traitlets.Bool(False).tag(sync=True)
    linked = traitlets.Bool(False).tag(sync=True)
    presets: traitlets.List[Any] = traitlets.List().tag(sync=True)
    images = traitlets.Dict().tag(sync=True)
    pixels = traitlets.Bytes().tag(sync=True)
    # A run of Python's that is drawn as a shadow: a description, and its envelope (float64).
    shadow = traitlets.Dict().tag(sync=True)
    shadow_numbers = traitlets.Bytes().tag(sync=True)
    colors = traitlets.Dict(COLORS, read_only=True).tag(sync=True)
    # What the page hands over when a run pauses: a description, and numbers (float64).
    result = traitlets.Dict().tag(sync=True)
    # It arrives as a memoryview, which the trait would refuse.
    numbers = traitlets.Bytes().tag(sync=True, from_json=lambda value, widget: bytes(value))

    def __init__(
        self,
        preset: str = "edge",
        *,
        settings: Mapping[str, Any] | None = None,
        initial_point: ArrayLike | None = None,
        compact: bool = False,
        linked: bool = False,
        title: str | None = None,
    ) -> None:
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        weights = np.zeros(0)
        if initial_point is not None:
            if settings is None:
                raise ValueError("initial_point needs the settings of the network it belongs to")
            weights = np.asarray(initial_point, dtype="<f8")
            if weights.ndim != 1 or not weights.size or not np.isfinite(weights).all():
                raise ValueError(
                    "initial_point must be a vector of finite numbers, got shape "
                    f"{weights.shape}; take Run.final_point or Objective.initial_point"
                )
        shown = {preset: PRESETS[preset]} if compact else PRESETS
        if compact and settings is not None:
            shown = {}
        if title is None:
            title = "".join(one["name"] for one in shown.values()) if compact else ""
        needs_images = any(
            one.get("task") == "digits"
            for one in [settings or {}, *(preset["settings"] for preset in shown.values())]
        )
        images, pixels = _digits() if needs_images else ({}, b"")
        super().__init__(
            title=title or "The laboratory",
            preset=preset if settings is None else "",
            settings=dict(settings or {}),
            initial_point=weights.tobytes(),
            compact=compact,
            linked=linked,
            presets=[
                {"key": key, "warm": 0, "axis": "steps", "speed": 300, **one}
                for key, one in shown.items()
            ],
            images=images,
            pixels=pixels,
        )

    @classmethod
    def from_run(
        cls,
        run: Run,
        *,
        settings: Mapping[str, Any] | None = None,
        initial_point: ArrayLike | None = None,
        **options: Any,
    ) -> Laboratory:
        """The laboratory at the beginning of a run, which is drawn as a shadow.

        The reader repeats it from the same weights, or turns the step size and compares. What a run
        of Python's does not know, its data and its network, is given as settings of the engine.
        Nothing need be given for runs of a laboratory (`run`) and for those of an
        `eoslib.Experiment` with a fully connected network on Chebyshev polynomials or digits.

            objective = Objective.from_dataset(build("fc-tanh", 1, 1, widths=(20, 20)), chebyshev())
            run = train(objective, GradientDescent(0.2), num_steps=1000)
            Laboratory.from_run(
                run,
                settings={"task": "chebyshev", "degree": 4, "hidden": [20, 20]},
                initial_point=objective.initial_point,
            )

        Args:
            run: of gradient descent, Polyak or Nesterov momentum, RMSProp or Adam with the full
                batch, or of gradient flow.
            settings: task and network, as for the constructor; optimizer, step size and loss are
                the run's.
            initial_point: its weights at step 0.
            **options: further arguments of the constructor.

        Raises:
            ValueError: the engine has no counterpart of the run, something is missing, or the
                weights are not as many as the run's.
        """
        if initial_point is None:
            initial_point = run.settings.get("initial_point")
        if run.settings.keys() & {"stepSize"}:  # it was made by an engine
            own = {k: v for k, v in run.settings.items() if k in _setting_names()}
        else:
            own = _of_method(run)
            if "experiment" in run.settings:
                task, drawn = _of_experiment(Experiment.from_json(run.settings["experiment"]))
                own |= task
                initial_point = drawn if initial_point is None else initial_point
            elif settings is None:
                raise ValueError(
                    "this run does not know its data and network; give settings, for instance "
                    '{"task": "chebyshev", "degree": 4, "hidden": [20, 20]}, and initial_point'
                )
        if initial_point is None:
            raise ValueError("give the run's initial_point, such as Objective.initial_point")
        wanted, count = run.settings.get("num_parameters"), np.size(np.asarray(initial_point))
        if wanted is not None and wanted != count:
            raise ValueError(f"the run has {wanted} weights, initial_point has {count}")
        made = cls(settings={**own, **(settings or {})}, initial_point=initial_point, **options)
        description, numbers = _envelope(run)
        made.shadow_numbers = numbers.astype("<f8").tobytes()
        made.shadow = description | {"settings": made.settings}
        return made

    @traitlets.validate("settings")
    def _check_settings(self, proposal: Mapping[str, Any]) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads(json.dumps(proposal["value"]))
        known = _setting_names()
        if unknown := set(settings) - known:
            raise ValueError(
                f"unknown settings {', '.join(sorted(unknown))}; there are "
                f"{', '.join(sorted(known))}"
            )
        return settings

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Add a picture of the preset's run, for readers without JavaScript."""
        data, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        data["text/plain"] = f"{self.title}: a laboratory, which needs JavaScript"
        if self.preset:
            import matplotlib.pyplot as plt

            figure, buffer = picture(self.preset), io.BytesIO()
            figure.savefig(buffer, format="png", dpi=110)
            plt.close(figure)
            data["image/png"] = base64.b64encode(buffer.getvalue()).decode("ascii")
            data["text/plain"] += "; here a picture of its run, loss above and sharpness below"
        return data, metadata

    def __repr__(self) -> str:
        """Say what is shown; no memory address, so that outputs stay the same between builds."""
        return f"Laboratory({self.preset or dict(self.settings)!r})"

    @property
    def run(self) -> Run | None:
        """The reader's run when it last paused, or None if there was none.

        Up to 1,024 steps every step is in the series `loss`, `sharpness` (of an adaptive optimizer
        `preconditioned_sharpness`) and `threshold`.
        In longer runs consecutive steps share an entry, at the first of them: it is the middle
        between the lowest and the highest value, which `loss_low`, `loss_high` and so on hold.
        A run paused in the middle of a step has made one update more than it has measured, so
        that `final_point` may belong to the step after the last one in the series.
        """
        if not self.result:
            return None
        return _run_from_page(self.result, np.frombuffer(self.numbers, dtype="<f8"))


def _of_method(run: Run) -> dict[str, Any]:
    """What the run knows of optimizer and loss, as settings of the engine."""
    name, settings = run.settings.get("optimizer"), run.settings
    names = {name: name for name in ("gd", "polyak", "nesterov", *_ADAPTIVE)}
    names["gradient flow"] = "flow"
    if name not in names or settings.get("batch_size") is not None:
        raise ValueError(
            "the laboratory repeats full-batch runs of gradient descent, Polyak and Nesterov "
            f"momentum, RMSProp, Adam, and gradient flow; this is {name!r}"
            + (" with mini-batches" if name in names else "")
        )
    if settings.get("loss", "square") not in ("square", "cross_entropy"):
        raise ValueError(f"the laboratory has no loss {settings['loss']!r}")
    own = {"optimizer": names[name], "loss": settings.get("loss", "square")}
    own |= (
        {"stepSize": run.lr, "changes": settings.get("lr_changes", [])} if "lr" in settings else {}
    )
    return own | {name: settings[name] for name in COEFFICIENTS if name in settings}


def _of_experiment(experiment: Experiment) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Task and network of an experiment as settings of the engine, and its initial weights."""
    data = load_dataset(experiment.dataset)
    chebyshev = re.fullmatch(r"chebyshev-(\d+)-(\d+)", experiment.dataset)
    options = dict(experiment.architecture_options)
    kind, _, activation = experiment.architecture.partition("-")
    if (
        not (chebyshev or (data.name.startswith("digits") and "redrawn" not in data.name))
        or data.num_examples > (5000 if chebyshev else NUM_IMAGES)
        or kind != "fc"
        or activation not in ("tanh", "relu", "gelu", "softplus")
        or options.keys() - {"widths", "init"}
    ):
        raise ValueError(
            f"the laboratory has no counterpart of {experiment.architecture} on "
            f"{experiment.dataset}: fully connected networks (tanh, relu, gelu, softplus) on "
            f"Chebyshev polynomials, or on at most {NUM_IMAGES} digits"
        )
    task: dict[str, Any] = {"task": "digits", "points": data.num_examples}
    if chebyshev:
        task = {"task": "chebyshev", "degree": int(chebyshev[1]), "points": int(chebyshev[2])}
    network = build_for(experiment.architecture, data, seed=experiment.seed, **options)
    weights = [p.detach().double().flatten().numpy() for p in network.parameters()]
    task |= {"hidden": list(options.get("widths", (200, 200))), "activation": activation}
    task |= {"init": options.get("init", "pytorch"), "seed": experiment.seed}
    return task, np.concatenate(weights)


def _envelope(run: Run) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """A run as the page draws it: of so many consecutive steps the lowest and highest values.

    They are so many that each holds a measurement of the sharpness. Where a record is an envelope
    already, its own bounds are taken.
    """
    last, curvature = int(run["loss"].steps[-1]), run.curvature
    if not len(curvature):
        raise ValueError(
            "this run has no sharpness that was found; nothing to set beside the page's"
        )
    width = max([1, math.ceil((last + 1) / MOST_BUCKETS), *np.diff(curvature.steps).tolist()])
    count = min(last, int(curvature.steps[-1])) // width + 1

    def bounds(name: str, known: Series) -> list[NDArray[np.float64]]:
        low, high = np.full(count, np.inf), np.full(count, -np.inf)
        for end in (run.series.get(f"{name}_low", known), run.series.get(f"{name}_high", known)):
            inside = np.isfinite(end.values) & (end.steps // width < count)
            where, values = end.steps[inside] // width, end.values[inside]
            np.minimum.at(low, where, values)
            np.maximum.at(high, where, values)
        return [low, high]

    if "time" in run.series:
        time = bounds("time", run["time"])
    else:  # the sum of the step sizes so far
        time = [run.time(width * np.arange(count))] * 2
    name = "preconditioned_sharpness" if run.is_preconditioned else "sharpness"
    rows = [*time, *bounds("loss", run["loss"]), *bounds(name, curvature)]
    description = {
        "channels": ["time", "loss", "eigenvalue1"],
        "width": width,
        "steps": last + 1,
        "threshold": run.threshold if math.isfinite(run.threshold) else None,
    }
    return description, np.concatenate(rows)


def picture(preset: str) -> Figure:
    """Draw the run of a preset as the engine makes it: loss above, sharpness below."""
    import matplotlib.pyplot as plt

    one = PRESETS[preset]
    settings, is_time = one["settings"], one.get("axis") == "time"
    adaptive = settings.get("optimizer") in _ADAPTIVE
    is_flow = settings.get("optimizer") == "flow"
    color = (
        INK["light"]
        if is_flow
        else step_size_color(
            settings.get("stepSize", 0.2), *(_ADAPTIVE_RANGE if adaptive else _RANGE)
        )
    )
    with np.load(RUNS_FILE, allow_pickle=False) as stored:
        runs = {
            name: (stored[name], float(stored[f"{name}-width"]))
            for name in (preset, f"{preset}-shadow")
            if name in stored
        }
    with book_style():
        figure, (upper, lower) = plt.subplots(2, 1, sharex=True, figsize=(7.2, 4.6))
        for name, (rows, width) in runs.items():
            time, loss, threshold, sharpness, twin = rows
            steps = width * np.arange(rows.shape[2])
            x = time[0] if is_time else steps
            hue = color if name == preset else INK["light"]
            for ax, (low, high) in ((upper, loss), (lower, sharpness)):
                ax.fill_between(x, low, high, color=hue, linewidth=1.2)
            if name == preset:
                lower.plot(x, threshold[1], "--", color=color, label="threshold")
                upper.plot(x, twin[1], "--", color=ACCENT["light"])
        highest = np.nanmax(runs[preset][0][1])
        loss_name = (
            "cross-entropy" if settings.get("loss") == "cross_entropy" else "½ squared error"
        )
        of_loss = "loss" if settings.get("task") == "quadratic" else f"train loss\n({loss_name})"
        upper.set(yscale="log", ylabel=of_loss, ylim=(None, 2 * highest))
        lower.set(ylabel="preconditioned\nsharpness" if adaptive else "sharpness")
        lower.set(ylim=(0, None), xlabel="time" if is_time else "step")
        if np.isfinite(runs[preset][0][2][1]).any():
            lower.legend(loc="lower right")
    return figure


def _run_from_page(result: Mapping[str, Any], numbers: NDArray[np.float64]) -> Run:
    num_parameters, every = result["parameters"], result["every"]
    final, initial = numbers[: 2 * num_parameters].reshape(2, num_parameters)
    rows = numbers[2 * num_parameters :].reshape(len(result["channels"]), 2, -1)
    adaptive = result["settings"].get("optimizer") in _ADAPTIVE
    names = {"eigenvalue1": "preconditioned_sharpness" if adaptive else "sharpness"}
    series = {}
    for channel, (low, high) in zip(result["channels"], rows, strict=True):
        known = np.isfinite(low) & np.isfinite(high)
        steps = every * np.flatnonzero(known)
        name = names.get(channel, channel)
        series[name] = Series(steps, (low[known] + high[known]) / 2)
        if every > 1:
            series[f"{name}_low"] = Series(steps, low[known])
            series[f"{name}_high"] = Series(steps, high[known])
    status = "diverged" if result["state"] == "diverged" else "stopped"
    last = result["steps"]
    # The page tells the last step size and threshold; a record begins with the first ones.
    first, planned = result["settings"]["stepSize"], result["settings"]["changes"]
    changes = [change for change in planned if change[0] < result["steps"]]
    settings = {
        **result["settings"],
        "lr": first,
        **({"lr_changes": changes} if changes else {}),
        "threshold": (result["threshold"] or float("inf")) * result["stepSize"] / first,
        "num_steps": last,
        "num_parameters": num_parameters,
        "num_examples": result["examples"],
        "dtype": "float64",
        "initial_point": initial.tolist(),
    }
    outcome = Outcome(status, last, result["message"] or f"paused in the page at step {last}")
    return Run(settings, series, outcome, final_point=final.copy())
