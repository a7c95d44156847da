"""Several step sizes at once, against one after another."""

from __future__ import annotations

import math

import numpy as np
import torch

from benchmarks.clock import timed
from benchmarks.results import Bar, ProblemReport
from eoslib import GradientDescent, Objective, Run, build, chebyshev, every, train, train_together

__all__ = ["TOGETHER", "together"]

#: The problem's name, as on the command line.
TOGETHER = "chebyshev-together"

#: Steps from one measurement of the sharpness to the next.
INTERVAL = 5


def together(device: torch.device, repeats: int, num_steps: int = 1000) -> ProblemReport:
    """Eight runs of the book's first figure, in one computation and in eight.

    At the edge of stability rounding grows from step to step, and runs that differ in it part. So
    what is compared of each run is what comes before its sharpness crosses 2/η.
    """
    model = build("fc-tanh", 1, 1, widths=(20, 20), init="lecun")
    data = chebyshev()
    objective = Objective.from_dataset(model, data, device=device, dtype=torch.float64)
    rules = [GradientDescent(lr) for lr in np.geomspace(0.02, 0.2, 8)]

    def at_once() -> list[Run]:
        return train_together(
            objective, rules, num_steps=num_steps, sharpness_schedule=every(INTERVAL)
        )

    def in_turn() -> list[Run]:
        return [
            train(objective, rule, num_steps=num_steps, sharpness_schedule=every(INTERVAL))
            for rule in rules
        ]

    joint, single = math.inf, math.inf
    for _ in range(repeats + 1):  # the first of them warms up
        runs, seconds = timed(at_once, device)
        joint = min(joint, seconds)
        others, seconds = timed(in_turn, device)
        single = min(single, seconds)
    difference = max(_difference(run, other) for run, other in zip(runs, others, strict=True))
    return ProblemReport(
        TOGETHER,
        "1-20-20-1 tanh network, Chebyshev polynomial at 20 points, square loss, float64",
        {
            "parameters": objective.num_parameters,
            "examples": objective.num_examples,
            "runs": len(rules),
            "steps": num_steps,
            "steps_between_measurements": INTERVAL,
            "seconds_at_once": joint,
            "seconds_in_turn": single,
        },
        bars=[
            Bar("eight runs at once: times as fast as in turn", single / joint, 4, at_most=False),
            Bar("largest relative difference before the edge", difference, 1e-9),
        ],
        data=data.source,
    )


def _difference(run: Run, other: Run) -> float:
    """The largest relative difference of loss and sharpness up to the step that crosses 2/η."""
    last = other["loss"].steps[-1] if other.crossing is None else other.crossing
    return max(
        float(np.abs(run[name].values / other[name].values - 1)[other[name].steps <= last].max())
        for name in ("loss", "sharpness")
    )
