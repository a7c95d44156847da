"""The experiments of Cohen et al. (2021) as named recipes.

A recipe is what to run, what of the paper it re-creates, which of its settings are ours, which of
the book's claims it feeds, and how long it takes. `python -m eoslib reproduce --list` shows them,
`python -m eoslib reproduce NAME` runs one.

**Step sizes.** But for 2/η = 600 (figure 3) and 2/η = 200 (the authors' demonstration), the paper's
lists were not available to us. Ours follow a rule: gradient flow is run first, to the same goal;
with λ₀ the sharpness at its start and λ_max the largest along it, four thresholds 2/η lie evenly on
a logarithmic scale from 1.2 λ₀ to 0.8 λ_max, and a fifth, 1.25 λ_max, is one that the sharpness
should not reach (`step_sizes_of`). Where the flow costs too much, the list is fixed, and the
recipe's notes say so.

**CIFAR-10** is standardised pixel by pixel, as in the authors' code; by channel it is another task,
which ``--dataset cifar10-5k-per_channel`` takes.

**Times** are those that stored runs took, where all runs of a recipe are stored, and else estimates
(`eoslib.store.expected_seconds`): the operations of gradients and products divided by a rate
(`Recipe.estimated_seconds`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eoslib._names import look_up
from eoslib.experiment import Experiment
from eoslib.runs import Run
from eoslib.update_rules import checked_step_size

__all__ = ["IN_THE_BOOK", "RATES", "RECIPES", "Recipe", "get_recipe", "step_sizes_of"]

#: Floating-point operations a second, float32, that estimates count on. CPU: one core of an
#: ordinary machine. GPU: what cnn-tanh on 5,000 images reached on an H100, as the estimates count
#: and without TF32: a sixth of the rate on its data sheet. fc-tanh reached half as much again.
RATES = {"cpu": 3e10, "gpu": 1e13}
#: Seconds that no gradient undercuts, however small the network.
_OVERHEAD = {"cpu": 3e-4, "gpu": 5e-4}
#: Products that a measurement of one eigenvalue takes: at the edge, and along a flow. Both are what
#: the stored runs took in the median.
_PRODUCTS, _FLOW_PRODUCTS = 13, 4
#: The sharpness along a flow, an assumption of the estimates.
_FLOW_SHARPNESS = 300.0
#: Gradients that one measurement of a quantity takes, at its default options: assumptions as well.
_QUANTITY_GRADIENTS = {
    "accuracy": 1 / 3,
    "between": 200,
    "effective": 11,
    "gauss-newton": 60,
    "output-curvature": 1 / 3,
    "taylor": 100,
    "expected-change": 35,
}


@dataclass(frozen=True)
class Size:
    """What a gradient costs, for estimates.

    Attributes:
        operations: multiply-adds of a forward pass over one example.
        examples: how many examples the data set has.
    """

    operations: float
    examples: int


@dataclass(frozen=True)
class Recipe:
    """One experiment of the paper, to be run.

    Attributes:
        name: for the command line.
        title: what it is, in a line.
        paper: where it is in the paper, as far as we know.
        claims: the entries of the book's ledger of claims that it feeds; none if it asks what the
            paper does not.
        experiments: what to run, all known beforehand.
        by_rule: what to run at the step sizes that follow from the first experiment, a gradient
            flow; its own step size is a place holder.
        notes: which settings are ours, and what differs from the paper.
        size: of the task, for the estimate of the time.
    """

    name: str
    title: str
    paper: str
    claims: tuple[str, ...]
    experiments: tuple[Experiment, ...]
    size: Size
    notes: str
    by_rule: Experiment | None = None

    def following(self, flow: Run, step_sizes: Sequence[float] | None = None) -> list[Experiment]:
        """The experiments at the step sizes that follow from the flow; none without a rule.

        Other step sizes may be given in their place. The experiments get as many steps as it takes
        at the smallest one to cover one and a half times the time of the flow, rounded up to two
        digits.

        Raises:
            ValueError: the sharpness did not grow enough along the flow to choose from.
        """
        if self.by_rule is None:
            return []
        sizes = [checked_step_size(lr) for lr in step_sizes or step_sizes_of(flow)]
        time = flow.outcome.step * flow.time_per_step
        steps = _two_digits_up(1.5 * time / min(sizes))
        return [replace(self.by_rule, lr=lr, num_steps=steps) for lr in sizes]

    def estimated_seconds(
        self, kind: str, parts: Iterable[tuple[Experiment, float]] | None = None
    ) -> float:
        """How long it takes on a ``"cpu"`` core or a ``"gpu"``, roughly.

        This counts two operations for a multiply-add, three forward passes for a gradient, two
        gradients for a product and 13 products for a measured eigenvalue (4 along a flow), of which
        an adaptive rule has one more; runs computed together are counted one by one, and a step
        with mini-batches counts as a full gradient. Gradient flow is taken to have a sharpness of
        300. Expect the order of magnitude.

        Args:
            kind: of the device.
            parts: experiments, and the share of its steps that each takes; default: all to their
                last step, and five in place of those by a rule.
        """
        planned = [*self.experiments, *([] if self.by_rule is None else 5 * [self.by_rule])]
        counted = [(each, 1.0) for each in planned] if parts is None else parts
        one = max(6 * self.size.operations * self.size.examples / RATES[kind], _OVERHEAD[kind])
        return one * sum(_gradients(experiment) * share for experiment, share in counted)


def _gradients(experiment: Experiment) -> float:
    """Gradients that a run takes to its last step."""
    for_quantities = sum(
        _QUANTITY_GRADIENTS.get(name, 0) * experiment.num_steps / float(options["every"])
        for name, options in experiment.quantities.items()
    )
    return _training_gradients(experiment) + for_quantities


def _training_gradients(experiment: Experiment) -> float:
    eigenvalues = experiment.eigenvalues
    if experiment.tick is not None:
        steps = experiment.num_steps * max(1.0, experiment.tick * _FLOW_SHARPNESS)
        return 4 * steps + 2 * _FLOW_PRODUCTS * eigenvalues * experiment.num_steps
    measured = eigenvalues + (experiment.beta2 is not None)  # the preconditioned sharpness too
    products = 2 * _PRODUCTS * measured / experiment.sharpness_every
    return experiment.num_steps * (1 + products)


def step_sizes_of(flow: Run, count: int = 4) -> list[float]:
    """Step sizes by the rule of this module, from a run of gradient flow; descending.

    Args:
        flow: the run.
        count: how many thresholds the sharpness is to reach; one more it is not.

    Raises:
        ValueError: the sharpness grew by less than half along the flow, so that there is no room
            between 1.2 λ₀ and 0.8 λ_max.
    """
    values = flow.sharpness.values
    low, high = (1.2 * values[0], 0.8 * values.max()) if len(values) else (0.0, 0.0)
    if not 0 < low < high:
        raise ValueError(
            f"no room for step sizes between 1.2 λ₀ = {low:.3g} and 0.8 λ_max = {high:.3g} along "
            "gradient flow; name step sizes with --lr"
        )
    thresholds = [*np.geomspace(low, high, count), 1.25 * values.max()]
    return [2 / float(f"{threshold:.2g}") for threshold in thresholds]


def _two_digits_up(value: float) -> int:
    unit: int = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit


# -- the recipes --------------------------------------------------------------------------------

_RULE = (
    "Step sizes chosen by us: four whose 2/η are evenly spaced on a log axis from 1.2 λ₀ to "
    "0.8 λ_max of the flow, and one at 1.25 λ_max; the paper's list was not available."
)
_FC, _CNN = Size(656_400, 5_000), Size(3.27e6, 5_000)
_STANDARD: dict[str, Any] = {
    "dataset": "cifar10-5k-per_pixel",
    "architecture": "fc-tanh",
    "accuracy_goal": 0.99,
}
_ELEVEN = [f"fc-{name}" for name in ("tanh", "relu", "elu", "softplus", "hardtanh")]
_ELEVEN += [f"cnn-{pool}{name}" for pool in ("", "avgpool-") for name in ("tanh", "relu", "elu")]
#: Thresholds 2/η at which they are trained without a flow, by kind of network and loss: above the
#: sharpness that most of these networks have at the start.
_FIXED = {
    ("fc", "square"): (100, 200),
    ("fc", "cross-entropy"): (30, 60),
    ("cnn", "square"): (120, 240),
    ("cnn", "cross-entropy"): (30, 60),
    ("cnn-avgpool", "square"): (40, 80),
    ("cnn-avgpool", "cross-entropy"): (15, 30),
}
#: Other thresholds on 5,000 images: the standard network has four; and with the square loss some
#: networks begin flatter than their kind.
_FIXED_5K = {
    ("fc-tanh", "square"): (50, 100, 150, 200),
    ("fc-tanh", "cross-entropy"): (50, 100, 150, 200),
    ("fc-relu", "square"): (50, 100),
    ("cnn-tanh", "square"): (60, 120),
}
#: Multiply-adds of a forward pass over one image.
_STANDARD_NETWORKS = {"vgg11": 1.53e8, "vgg11-bn": 1.53e8, "resnet32": 6.9e7}
_LOSSES = {"square": "square", "cross-entropy": "cross_entropy"}


def _flow(num_ticks: int = 1200, tick: float = 0.25, **settings: Any) -> Experiment:
    # Checkpoints and Ctrl-C wait for the end of a tick, so it must not be long.
    return Experiment(**settings, optimizer="flow", tick=tick, num_steps=num_ticks)


def _gd(num_steps: int, lr: float = 0.01, **settings: Any) -> Experiment:
    return Experiment(**{"sharpness_every": 25, **settings, "lr": lr, "num_steps": num_steps})


def _figures() -> list[Recipe]:
    """The figures of the main text."""
    recipes = []
    for short, loss in _LOSSES.items():
        task: dict[str, Any] = {**_STANDARD, "loss": loss}
        accuracy: dict[str, Any] = {"quantities": {"accuracy": {"every": 25}}}
        recipes += [
            Recipe(
                f"fig3-{short}",
                "progressive sharpening at a step size far below the edge",
                "figure 3",
                ("C1", "C11") if short == "square" else ("C1", "C12"),
                (_gd(40_000, 2 / 600, **task, **accuracy),),
                _FC,
                "2/η = 600 is the paper's"
                + ("." if short == "square" else " for the square loss."),
            ),
            Recipe(
                f"fig5-{short}",
                "entering the edge at many step sizes",
                "figures 1 and 5",
                ("C5", "C6", "C7", "C8", "C9", "C30"),
                (_flow(**task),),
                _FC,
                _RULE,
                by_rule=_gd(30_000, **task),
            ),
        ]
    recipes.append(
        Recipe(
            "fig4",
            "crossing the edge: the swing along the top eigenvector",
            "figure 4",
            ("C4", "C5"),
            (
                _gd(
                    4_000,
                    **{**_STANDARD, "accuracy_goal": None},
                    quantities={"top-direction": {"every": 1}},
                    sharpness_every=1,
                ),
            ),
            _FC,
            "2/η = 200 is that of the authors' demonstration.",
        )
    )
    return recipes


def _networks() -> list[Recipe]:
    """Eleven networks and two losses."""
    recipes = []
    for name in _ELEVEN:
        for short, loss in _LOSSES.items():
            task: dict[str, Any] = {**_STANDARD, "architecture": name, "loss": loss}
            kept: dict[str, Any] = {"quantities": {"projection": {"every": 250}}}
            recipes.append(
                Recipe(
                    f"vary-{name}-{short}",
                    f"{name} on 5,000 images, {short}",
                    "appendix J",
                    ("C10", "C17", "C18"),
                    (_flow(**task, quantities={"projection": {"every": 5}}),),
                    _FC if name.startswith("fc-") else _CNN,
                    _RULE + " Distances to the flow by projections to 100 dimensions, ours.",
                    by_rule=_gd(30_000, **task, **kept),
                )
            )
    return recipes


def _fixed() -> list[Recipe]:
    """The same networks at fixed step sizes, without a flow."""
    recipes = []
    for name in _ELEVEN:
        kind = name.rpartition("-")[0]
        size = _FC if kind == "fc" else _CNN
        for short, loss in _LOSSES.items():
            task: dict[str, Any] = {**_STANDARD, "architecture": name, "loss": loss}
            small: dict[str, Any] = {
                **task,
                "dataset": "cifar10-1k-per_pixel",
                "sharpness_every": 20,
                "quantities": {"accuracy": {"every": 20}},
            }
            thresholds: tuple[int, ...] = _FIXED[kind, short]
            # A convolutional network takes the square loss to 99 % in many thousand steps of a
            # second each, and is at its edge within a few hundred.
            short_run = kind != "fc" and short == "square"
            recipes.append(
                Recipe(
                    f"1k-{name}-{short}",
                    f"{name} on 1,000 images, {short}",
                    "appendix J, on a fifth of its images",
                    ("C17",),
                    tuple(_gd(2_000 if short_run else 10_000, 2 / t, **small) for t in thresholds),
                    replace(size, examples=1_000),
                    "Step sizes, number of images and of steps chosen by us, for two CPU cores.",
                )
            )
            thresholds = _FIXED_5K.get((name, short), thresholds)
            accuracy: dict[str, Any] = {"quantities": {"accuracy": {"every": 25}}}
            steps = 20_000 if kind == "fc" else 2_000 if short_run else 4_000
            recipes.append(
                Recipe(
                    f"5k-{name}-{short}",
                    f"{name} on 5,000 images, {short}, at fixed step sizes",
                    ("figure 5" if name == "fc-tanh" else "appendix J") + " without gradient flow",
                    ("C5", "C6", "C7", "C8", "C9") if name == "fc-tanh" else ("C17",),
                    tuple(_gd(steps, 2 / t, **task, **accuracy) for t in thresholds),
                    size,
                    "Step sizes and the number of steps chosen by us.",
                )
            )
    return recipes


def _small() -> list[Recipe]:
    """Other questions, to fewer images."""
    ours = " Number of images and step sizes chosen by us, for two CPU cores."
    recipes = []
    thresholds = _FIXED["fc", "square"]
    task: dict[str, Any] = {
        **_STANDARD,
        "dataset": "cifar10-1k-per_pixel",
        "sharpness_every": 10,
        "quantities": {"accuracy": {"every": 10}},
    }
    endless = {**task, "accuracy_goal": None}  # it is reached before there is much to see
    size = replace(_FC, examples=1_000)
    for optimizer in ("polyak", "nesterov"):
        numerator = _momentum_numerator(optimizer)
        recipes.append(
            Recipe(
                f"1k-momentum-{optimizer}-square",
                f"{optimizer} momentum on 1,000 images, square",
                "appendix on momentum, on a fifth of its images",
                ("C24",),
                tuple(
                    _gd(300, numerator / t, **endless, optimizer=optimizer, beta=0.9)
                    for t in thresholds
                ),
                size,
                "β = 0.9; the number of steps is ours." + ours,
            )
        )
    recipes.append(
        Recipe(
            "1k-lr-drop-square",
            "half the step size from step 500 on, 1,000 images, square",
            "appendix on step-size drops, on a fifth of its images",
            ("C25",),
            tuple(
                _gd(5_000, 2 / thresholds[0], **task, lr_changes=changes)
                for changes in ([], [[500, 2 / thresholds[1]]])
            ),
            size,
            ours.strip(),
        )
    )
    flow: dict[str, Any] = {**_STANDARD, "loss": "cross_entropy"}
    for what, claim, varied, widths in (
        ("width", "C14", "of several widths", [[w, w] for w in (25, 50, 100, 200)]),
        ("depth", "C15", "of one to four hidden layers", [d * [200] for d in (1, 2, 3, 4)]),
    ):
        task = {**flow, "dataset": "cifar10-500-per_pixel"}
        recipes.append(
            Recipe(
                f"500-{what}",
                f"gradient flow of networks {varied}, 500 images, cross-entropy",
                "appendix B, on a tenth of its images",
                (claim,),
                tuple(_flow(160, **task, architecture_options={"widths": w}) for w in widths),
                replace(_FC, examples=500),
                "Number of images, loss and widths chosen by us; PyTorch's parametrisation.",
            )
        )
    recipes.append(
        Recipe(
            "1k-data-size",
            "gradient flow on the first 125 to 1,000 images, cross-entropy",
            "appendix B, on fewer images",
            ("C16",),
            tuple(
                _flow(160, **{**flow, "dataset": f"cifar10-{n}-per_pixel"})
                for n in ("125", "250", "500", "1k")
            ),
            replace(_FC, examples=470),
            "Numbers of images and loss chosen by us.",
        )
    )
    for images, fraction in ((100, "five-hundredth"), (1_000, "fiftieth")):
        for name, operations in _STANDARD_NETWORKS.items():
            count = "100" if images == 100 else "1k"
            recipes.append(
                Recipe(
                    f"{count}-{name}",
                    f"{name} on {images:,} images, square",
                    f"appendix on standard networks, on a {fraction} of its images",
                    ("C19",),
                    tuple(
                        _gd(
                            400 if images == 100 else 1_000,
                            2 / t,
                            dataset=f"cifar10-{count}-per_pixel",
                            architecture=name,
                            accuracy_goal=0.99,
                            batch_norm=None if name == "vgg11" else "ghost",
                            chunk_size=images,
                            sharpness_every=20,
                            quantities={"accuracy": {"every": 10}},
                        )
                        # VGG-11-BN's sharpness begins at 59: at 10 it diverged in five steps.
                        for t in ((80, 160) if name == "vgg11-bn" else (10, 20))
                    ),
                    Size(operations, images),
                    "Loss, number of images and step sizes chosen by us."
                    + ("" if name == "vgg11" else " All examples share the statistics of a batch."),
                )
            )
    return recipes


def _normalised() -> list[Recipe]:
    """Networks with batch normalisation."""
    recipes = []
    for activation in ("tanh", "relu", "elu"):
        for short, loss in _LOSSES.items():
            task: dict[str, Any] = {
                **_STANDARD,
                "architecture": f"cnn-bn-{activation}",
                "loss": loss,
                "batch_norm": "ghost",
            }
            # The sharpness begins at 830 to 1,030 with the square loss, at 110 to 150 with the
            # other. On 100 images 2/η = 400 came back from above its line, 200 diverged.
            thresholds = (400, 800, 1_600) if short == "square" else (20, 60, 200)
            looks: dict[str, Any] = {"between": {"every": 100}, "effective": {"every": 100}}
            recipes.append(
                Recipe(
                    f"batch-norm-{activation}-{short}",
                    f"batch normalisation, {activation}, {short}: also between the iterates",
                    "appendix on batch normalisation",
                    ("C22", "C23"),
                    tuple(
                        _gd(10_000, 2 / t, **task, chunk_size=1000, quantities=looks)
                        for t in thresholds
                    ),
                    _CNN,
                    "Step sizes chosen by us, without a flow. Ghost batches of 1,000.",
                )
            )
        small: dict[str, Any] = {
            **task,
            "dataset": "cifar10-500-per_pixel",
            "loss": "cross_entropy",
            "chunk_size": 500,
            "sharpness_every": 5,
            "quantities": {name: {"every": 25} for name in ("accuracy", "between", "effective")},
        }
        recipes.append(
            Recipe(
                f"500-batch-norm-{activation}-cross-entropy",
                f"batch normalisation, {activation}, 500 images: also between the iterates",
                "appendix on batch normalisation, on a tenth of its images",
                ("C22", "C23"),
                tuple(_gd(1_000, 2 / t, **small) for t in (20, 60, 200)),
                replace(_CNN, examples=500),
                "Number of images and step sizes chosen by us, for two CPU cores. All examples "
                "share the statistics of a batch.",
            )
        )
    return recipes


def _standard() -> list[Recipe]:
    """Standard networks on all images."""
    recipes = []
    for name, operations in _STANDARD_NETWORKS.items():
        for short, loss in _LOSSES.items():
            task: dict[str, Any] = {
                **_STANDARD,
                "dataset": "cifar10-per_pixel",
                "architecture": name,
                "loss": loss,
                "batch_norm": None if name == "vgg11" else "ghost",
                "chunk_size": 1000,
                "sharpness_examples": 5000,
                "sharpness_every": 50,
            }
            recipes.append(
                Recipe(
                    f"standard-{name}-{short}",
                    f"{name} on all of CIFAR-10, {short}",
                    "figure 1 and the appendix on standard networks",
                    ("C19", "C30"),
                    tuple(_gd(10_000, 2 / t, **task) for t in (20, 50, 80, 110)),
                    Size(operations, 50_000),
                    "2/η = 20, 50, 80, 110 are in a legend of figure 1, we cannot say of which "
                    "panel; their use here is our choice. Sharpness on the first 5,000 images.",
                )
            )
    return recipes


def _sharpening() -> list[Recipe]:
    """What progressive sharpening depends on."""
    accurate: dict[str, Any] = {**_STANDARD}
    widths = (64, 128, 256, 512, 1024, 2048)
    recipes = [
        Recipe(
            "width",
            "gradient flow of networks of several widths",
            "appendix B",
            ("C14",),
            tuple(_flow(**accurate, architecture_options={"widths": [w, w]}) for w in widths),
            Size(3e6, 5_000),
            "Widths chosen by us; PyTorch's parametrisation only, not the NTK's.",
        ),
        Recipe(
            "depth",
            "gradient flow of networks of one to four hidden layers",
            "appendix B",
            ("C15",),
            tuple(
                _flow(**accurate, architecture_options={"widths": d * [200]}) for d in (1, 2, 3, 4)
            ),
            _FC,
            "Square loss chosen by us.",
        ),
        Recipe(
            "data-size",
            "gradient flow on the first 1,000 to 20,000 images",
            "appendix B",
            ("C16",),
            tuple(
                _flow(
                    **{**accurate, "dataset": f"cifar10-{n}k-per_pixel"},
                    sharpness_examples=None if n <= 5 else 5000,
                )
                for n in (1, 2, 5, 10, 20)
            ),
            Size(656_400, 7_600),
            "Square loss chosen by us. Sharpness on the first 5,000 images, as the authors did.",
        ),
        Recipe(
            "late-cross-entropy",
            "why the sharpness falls at the end under cross-entropy",
            "appendix C",
            ("C12", "C13"),
            (
                _gd(
                    60_000,
                    2 / 600,
                    **{**_STANDARD, "loss": "cross_entropy", "accuracy_goal": None},
                    quantities={
                        "accuracy": {"every": 100},
                        "gauss-newton": {"every": 500},
                        "output-curvature": {"every": 100},
                    },
                ),
            ),
            _FC,
            "2/η = 600 is the paper's for the square loss; the number of steps is ours.",
        ),
    ]
    return recipes


def _methods() -> list[Recipe]:
    """Other questions to the standard task."""
    task: dict[str, Any] = {**_STANDARD}
    endless: dict[str, Any] = {**task, "accuracy_goal": None}
    # At 2/η = 200 and 60 the edge is reached by step 4,000 and some step 570.
    drops = {"square": (200, 300, (5_000, 7_000)), "cross_entropy": (60, 100, (700, 1_100))}
    recipes = [
        Recipe(
            "taylor",
            "the quadratic model before the edge and at it",
            "appendix D",
            ("C28",),
            (_gd(6_000, **endless, quantities={"taylor": {"every": 500, "num_steps": 50}}),),
            _FC,
            "2/η = 200; where to switch is our choice.",
        ),
        Recipe(
            "inverse-sharpness",
            "η = 1/λ at every step, and η = 1/λ₀",
            "appendix E",
            ("C29",),
            tuple(
                Experiment(
                    **{**task, "loss": loss},
                    optimizer=optimizer,
                    lr=lr,
                    num_steps=20_000,
                    sharpness_every=every,
                )
                for loss in _LOSSES.values()
                for optimizer, lr, every in (("inverse-sharpness", None, 1), ("gd", 1 / 80, 25))
            ),
            _FC,
            "λ₀ is taken as 80, the paper's network with the square loss; other seeds differ.",
        ),
        Recipe(
            "lr-drop",
            "a smaller step size half-way: sharpening resumes",
            "appendix on step-size drops",
            ("C25",),
            tuple(
                _gd(15_000, 2 / before, **{**task, "loss": loss}, lr_changes=changes)
                for loss, (before, after, steps) in drops.items()
                for changes in ([], *([[step, 2 / after]] for step in steps))
            ),
            _FC,
            "2/η = 200, then 300 (cross-entropy: 60, then 100), and the steps of the change: ours.",
        ),
        Recipe(
            "sgd",
            "mini-batches of several sizes",
            "section on stochastic gradient descent",
            ("C31",),
            tuple(
                _gd(20_000, **endless, batch_size=size, sharpness_every=100)
                for size in (8, 32, 128, 1024, 5000)
            ),
            _FC,
            "Batch sizes and step size chosen by us.",
        ),
        Recipe(
            "sgd-acclimates",
            "a harsher and a gentler step size in the middle of a run with mini-batches",
            "appendix G",
            ("C32",),
            tuple(
                _gd(10_000, lr, **endless, batch_size=32, lr_changes=changes)
                for lr, changes in ((0.01, [[5_000, 0.04]]), (0.04, [[5_000, 0.01]]))
            ),
            _FC,
            "All settings chosen by us; the change of the batch size is left out.",
        ),
        Recipe(
            "sgd-expected-change",
            "the mean change of the loss over a step with mini-batches",
            "appendix H",
            ("C33",),
            (
                _gd(
                    10_000,
                    **endless,
                    batch_size=32,
                    quantities={"expected-change": {"every": 500, "batch_size": 32}},
                ),
            ),
            _FC,
            "All settings chosen by us.",
        ),
    ]
    for short, loss in _LOSSES.items():
        thresholds = (100, 200, 300) if short == "square" else (30, 60, 100)
        named = "{}, {} and {}".format(*thresholds)
        for optimizer in ("polyak", "nesterov"):
            recipes.append(
                Recipe(
                    f"momentum-{optimizer}-{short}",
                    f"{optimizer} momentum, {short}",
                    "appendix on momentum",
                    ("C24",),
                    tuple(
                        _gd(20_000, lr, **{**task, "loss": loss}, optimizer=optimizer, beta=0.9)
                        for lr in _momentum_step_sizes(optimizer, thresholds)
                    ),
                    _FC,
                    f"β = 0.9 and stability thresholds of {named}, chosen by us.",
                )
            )
    return recipes


def _momentum_step_sizes(optimizer: str, thresholds: Sequence[int]) -> list[float]:
    """Step sizes with the same thresholds for both kinds of momentum, β = 0.9."""
    return [_momentum_numerator(optimizer) / t for t in thresholds]


def _momentum_numerator(optimizer: str) -> float:
    """The threshold times the step size at β = 0.9: 2 + 2β for Polyak, over 1 + 2β for Nesterov."""
    return {"polyak": 3.8, "nesterov": 3.8 / 2.8}[optimizer]


def _adaptive() -> list[Recipe]:
    """Optimizers that the paper leaves out, on its network and its images."""
    recipes = []
    for short, loss, step_sizes in (
        ("square", "square", (5e-5, 1e-4, 2e-4)),
        ("cross-entropy", "cross_entropy", (5e-4, 2e-3)),
    ):
        recipes.append(
            Recipe(
                f"5k-adam-{short}",
                f"Adam, {short}",
                "not in the paper: its network and images, the question of Cohen et al. (2022)",
                (),
                tuple(
                    _gd(
                        600,
                        lr,
                        **{**_STANDARD, "loss": loss, "accuracy_goal": None},
                        optimizer="adam",
                        sharpness_every=10,
                        quantities={"accuracy": {"every": 10}},
                    )
                    for lr in step_sizes
                ),
                _FC,
                "β₁ = 0.9, β₂ = 0.999. Step sizes and the number of steps chosen by us.",
            )
        )
    return recipes


def _other_tasks() -> list[Recipe]:
    """Tasks that are no images."""
    recipes = []
    for degree in (3, 4, 5):
        task: dict[str, Any] = {
            "dataset": f"chebyshev-{degree}-20",
            "architecture": "regression",
            "loss_goal": 0.01,
            "sharpness_every": 5,
        }
        if degree % 2:
            # Without biases at the start an odd target splits the Hessian in two blocks, and a
            # warm start in one never sees the other.
            task["sharpness_cold_every"] = 1
        recipes.append(
            Recipe(
                f"chebyshev-{degree}",
                f"a polynomial of degree {degree} at 20 points",
                "appendix on further tasks",
                ("C6", "C10", "C21"),
                (_flow(4_000, **task),),
                Size(200, 20),
                _RULE + " The goal is ours.",
                by_rule=_gd(10_000, **task),
            )
        )
    deep: dict[str, Any] = {
        "dataset": "linear-50-50",
        "architecture": "deep-linear",
        "sharpness_every": 5,
    }
    recipes += [
        Recipe(
            "deep-linear",
            "a linear network of twenty layers",
            "appendix on further tasks",
            ("C21",),
            (_flow(1_000, 1e-3, **deep),),
            Size(50_000, 50),
            _RULE + " The goal is ours. The sharpness is in the thousands: a tick is 0.001.",
            by_rule=_gd(20_000, **deep),
        ),
        Recipe(
            "transformer",
            "a Transformer on WikiText-2",
            "figure 1 and the appendix on further tasks",
            ("C20",),
            tuple(
                _gd(
                    4_000,
                    2 / t,
                    dataset="wikitext-2",
                    architecture="transformer",
                    loss="token_cross_entropy",
                    chunk_size=100,
                    sharpness_examples=5_000,
                    sharpness_every=50,
                )
                for t in (2, 4, 8)
            ),
            Size(2.5e8, 59_600),
            "Step sizes chosen by us without knowing the sharpness: look at the first measurement, "
            "and give others with --lr. The mask is causal.",
        ),
        *(
            Recipe(
                f"{count}-transformer",
                f"a Transformer on {pieces:,} pieces of 35 words of WikiText-2",
                f"figure 1 and the appendix on further tasks, on a {share} of its text",
                ("C20",),
                tuple(
                    _gd(
                        600,
                        2 / t,
                        dataset=f"wikitext-2-valid-{count}",
                        architecture="transformer",
                        loss="token_cross_entropy",
                        chunk_size=min(pieces, 500),
                        sharpness_every=20,
                    )
                    for t in thresholds
                ),
                Size(1.45e8, pieces),
                "Text (of the validation part), step sizes and the number of steps chosen by us. "
                "The vocabulary is that of the parts of the text that are found.",
            )
            for count, pieces, share, thresholds in (
                ("100", 100, "six-hundredth", (20, 40)),
                ("1k", 1_000, "sixtieth", (20, 40, 60)),
            )
        ),
    ]
    return recipes


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipes in (
        _figures(),
        _networks(),
        _fixed(),
        _small(),
        _normalised(),
        _standard(),
        _sharpening(),
        _methods(),
        _adaptive(),
        _other_tasks(),
    )
    for recipe in recipes
}

#: What the chapters compute themselves, so that it needs no recipe.
IN_THE_BOOK = {
    "figure 2, gradient descent on a quadratic in two dimensions": "quadratics",
    "appendix C, the logistic loss of one example": "cross_entropy",
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: there is none; the message suggests the near ones.
    """
    return look_up(RECIPES, name, "recipe")
