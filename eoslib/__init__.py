"""eoslib: train networks with full-batch methods and measure the sharpness of their loss.

Data flows one way: data → objective → update rule → recorder → run → plot or widget. The training
objective is a function of a flat parameter vector; optimizers and eigensolvers know nothing else.
"""

__version__ = "0.1.0"

from eoslib.architectures import build, build_for
from eoslib.checkpoint import Checkpoint, CheckpointError
from eoslib.data import Dataset, chebyshev, digits, load_dataset
from eoslib.eigen import (
    EigenResult,
    EigenStatus,
    UnconvergedError,
    lanczos,
    lanczos_together,
    power_iteration,
    scipy_eigsh,
)
from eoslib.experiment import Experiment, run_experiment, run_together, sweep
from eoslib.flows import RandomProjection, gradient_flow
from eoslib.linops import SymmetricOperator
from eoslib.losses import Loss, cross_entropy, square_loss
from eoslib.measure import sharpness
from eoslib.objective import Objective
from eoslib.one_step import (
    critical_sharpness,
    directional_smoothness,
    effective_smoothness,
    relative_progress,
    sharpness_between,
)
from eoslib.recorder import (
    Measurement,
    Snapshot,
    accuracy_above,
    at_steps,
    every,
    log_spaced,
    loss_below,
)
from eoslib.runs import Outcome, Run, RunFileError, Series
from eoslib.spectrum import spectral_density
from eoslib.taylor import TaylorQuadratic
from eoslib.tracker import SharpnessTracker
from eoslib.train import Minibatches, train, train_together
from eoslib.update_rules import (
    Adam,
    GradientDescent,
    InverseSharpness,
    Nesterov,
    Polyak,
    RMSProp,
    StepSizeChanges,
)

__all__ = [
    "Adam",
    "Checkpoint",
    "CheckpointError",
    "Dataset",
    "EigenResult",
    "EigenStatus",
    "Experiment",
    "GradientDescent",
    "InverseSharpness",
    "Loss",
    "Measurement",
    "Minibatches",
    "Nesterov",
    "Objective",
    "Outcome",
    "Polyak",
    "RMSProp",
    "RandomProjection",
    "Run",
    "RunFileError",
    "Series",
    "SharpnessTracker",
    "Snapshot",
    "StepSizeChanges",
    "SymmetricOperator",
    "TaylorQuadratic",
    "UnconvergedError",
    "accuracy_above",
    "at_steps",
    "build",
    "build_for",
    "chebyshev",
    "cross_entropy",
    "digits",
    "every",
    "gradient_flow",
    "lanczos",
    "load_dataset",
    "log_spaced",
    "loss_below",
    "sharpness",
    "square_loss",
    "critical_sharpness",
    "directional_smoothness",
    "effective_smoothness",
    "relative_progress",
    "sharpness_between",
    "spectral_density",
    "lanczos_together",
    "power_iteration",
    "scipy_eigsh",
    "run_experiment",
    "run_together",
    "sweep",
    "train",
    "train_together",
]
