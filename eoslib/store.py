"""The store of runs: computed once, kept in the repository, and checked.

A folder of runs by recipe, ``runs/RECIPE/NAME.npz``, and ``runs/index.json``, which is generated
from the files and never edited: for every run its checksum, its experiment's key, when and on what
it was computed. Runs come into the store through `add`, which takes a file that `Run.save` wrote,
leaves out the final point (the store keeps series only), and refuses what is no finished run of an
experiment.

`problems` finds what is wrong: a file that was changed, is missing or is unknown to the index, a
run whose settings are not those of its name, a record that contradicts its settings. Numbers that
were computed wrongly but consistently it cannot find; `replayed` can: it runs the first steps
again.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eoslib.experiment import COEFFICIENTS, Experiment, run_path, run_together, without_rule
from eoslib.numerics import device_name
from eoslib.recipes import RATES, RECIPES, Recipe, get_recipe
from eoslib.recorder import every
from eoslib.runs import Run, written_atomically

__all__ = [
    "LIMIT_BYTES",
    "NO_STORE",
    "add",
    "expected_seconds",
    "index_of",
    "left_to_run",
    "nearest",
    "origin",
    "problems",
    "replayed",
    "runs_of",
    "seconds_of",
    "write_index",
]

#: The whole store stays below this, so that a clone stays small.
LIMIT_BYTES = 25 * 2**20

NO_STORE = (
    "no folder runs with an index.json in the working directory or above it: the stored runs are "
    "in the repository, not in the installed package"
)
_FINISHED = {"completed", "goal reached", "diverged"}
_INDEX = "index.json"


def add(source: str | os.PathLike[str], recipe: str, store: str | os.PathLike[str]) -> Path:
    """Take a run into the store, under a recipe, and bring the index up to date.

    Args:
        source: a file written by `run_experiment`.
        recipe: the name of the folder.
        store: the folder of the store.

    Returns:
        Where the run lies now.

    Raises:
        ValueError: the file is no finished run of an experiment, or the store would grow beyond
            `LIMIT_BYTES`.
    """
    if recipe in ("", ".", "..") or Path(recipe).name != recipe:
        raise ValueError(f"a recipe's name is that of one folder, got {recipe!r}")
    root, run = Path(store), Run.load(source)
    if run.outcome.status not in _FINISHED:
        raise ValueError(f"{source} is not finished: {run.outcome.status}")
    experiment = _experiment_of(run, Path(source))
    run.final_point = None
    target, content = run_path(experiment, root / recipe), io.BytesIO()
    run.write(content)
    size = content.getbuffer().nbytes + sum(
        path.stat().st_size for path in _files(root) if path != target
    )
    if size > LIMIT_BYTES:
        raise ValueError(
            f"with {source} the store would hold {size:,} bytes, more than {LIMIT_BYTES:,}; "
            "record less often"
        )
    run.save(target)
    write_index(root)
    return target


def runs_of(recipe: str, store: str | os.PathLike[str] | None = None) -> list[Run]:
    """The stored runs of a recipe; none if it has not been run.

    Args:
        recipe: its name.
        store: the folder of the store. Default: ``runs``, in the working directory or the nearest
            directory above that has one with an index.

    Returns:
        Runs without one step size first (gradient flow, η = 1/λ₁), then by step size, number of
        parameters and of examples; a run with changes of its step size after the one without.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: there is neither such a recipe nor such a folder.
    """
    root = nearest() if store is None else Path(store)
    if root is None:
        raise FileNotFoundError(f"{NO_STORE}; pass store=")
    if not (root / recipe).is_dir():
        get_recipe(recipe)
    runs = [Run.load(path) for path in sorted((root / recipe).glob("*.npz"))]

    def place(run: Run) -> tuple[Any, ...]:
        settings = run.settings
        lr = float(settings.get("lr", 0.0))  # that of the rule η = 1/λ₁ is NaN, stored as a text
        sizes = settings["num_parameters"], settings["num_examples"]
        return 0.0 if math.isnan(lr) else lr, *sizes, settings["experiment"].get("lr_changes", [])

    return sorted(runs, key=place)


def nearest() -> Path | None:
    """The folder ``runs`` with an index in the working directory or above it; of several the first.

    ``None`` where there is none, as beside an installed package.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "runs" / _INDEX).is_file():
            return folder / "runs"
    return None


def origin(runs: Sequence[Run]) -> str:
    """Where stored runs come from, in a sentence or two, for the reader of a page.

    Args:
        runs: at least one.

    Returns:
        How many, when and on what they were computed, and each data set's source.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("no runs, so there is no origin to tell")
    stamps = [run.provenance for run in runs]
    days = sorted({stamp["date"][:10] for stamp in stamps})
    # Runs stored before November 26, 2026 do not say where they were resumed from.
    before = [at for stamp in stamps for at in stamp.get("resumed", []) if "device_before" in at]
    devices = sorted(
        {device_name(stamp) for stamp in stamps} | {at["device_before"] for at in before}
    )
    versions = sorted({stamp["torch"] for stamp in stamps} | {at["torch_before"] for at in before})
    sources = sorted({run.settings["data_source"] for run in runs})
    number = f"{len(runs)} stored run{'s' * (len(runs) > 1)}"
    return (
        f"{number}, computed {' to '.join(dict.fromkeys((days[0], days[-1])))} on "
        f"{', '.join(devices)} with PyTorch {', '.join(versions)}. {'; '.join(sources)}."
    )


def left_to_run(store: str | os.PathLike[str]) -> dict[str, int]:
    """The recipes of which not all runs are stored, and how many are.

    A recipe with a rule for its step sizes has all once a run is there beside the gradient flow.
    """
    left = {}
    for recipe in RECIPES.values():
        stored = len(list((Path(store) / recipe.name).glob("*.npz")))
        if stored < _number_of_runs(recipe):
            left[recipe.name] = stored
    return left


def index_of(store: str | os.PathLike[str]) -> dict[str, Any]:
    """What the index of the store's files must be."""
    root = Path(store)
    return {path.relative_to(root).as_posix(): _entry(path) for path in _files(root)}


def write_index(store: str | os.PathLike[str]) -> Path:
    """Generate the index anew."""
    target = Path(store) / _INDEX
    text = json.dumps(index_of(store), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    written_atomically(target, lambda file: file.write(text.encode()))
    return target


def problems(store: str | os.PathLike[str]) -> list[str]:
    """What is wrong with the store, a sentence each; nothing if all is well."""
    root = Path(store)
    try:
        index = json.loads((root / _INDEX).read_text(encoding="utf-8"))
        if not isinstance(index, dict) or not all(isinstance(v, dict) for v in index.values()):
            raise ValueError("it does not map names to entries")
    except FileNotFoundError:
        return [f"there is no {root / _INDEX}: a store is filled with runs --add, which writes it"]
    except (OSError, ValueError) as error:
        return [f"{root / _INDEX} cannot be read: {error}"]
    found, files = [], {path.relative_to(root).as_posix(): path for path in _files(root)}
    found += [f"{name} is in the index, but there is no such file" for name in index.keys() - files]
    for name, path in files.items():
        if name not in index:
            found.append(f"{name} is not in the index")
        elif index[name].get("sha256") != _checksum(path):
            found.append(f"{name} was changed: its checksum is not that of the index")
        try:
            run = Run.load(path)
            found += [f"{name}: {problem}" for problem in _contradictions(run, path)]
            if name in index and index[name] != _entry(path):
                found.append(f"{name}: the index says other things of it than the file")
        except (ValueError, LookupError, TypeError) as error:
            found.append(f"{name}: {error}")
    size = sum(path.stat().st_size for path in files.values())
    if size > LIMIT_BYTES:
        found.append(f"the store holds {size:,} bytes, more than {LIMIT_BYTES:,}")
    return sorted(found)


def replayed(
    path: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    num_steps: int = 20,
    data: str | os.PathLike[str] | None = None,
) -> dict[str, float]:
    """Run the first steps of a stored run again, and compare.

    Args:
        path: the stored run.
        directory: for the new run.
        num_steps: how many steps (ticks for gradient flow).
        data: as for `eoslib.experiment.run_experiment`.

    Returns:
        For loss and sharpness the largest relative difference over these steps: of the order of
        the rounding error, and of the sharpness's tolerance, if the same code computes the same.
    """
    stored = Run.load(path)
    experiment = _experiment_of(stored, Path(path))
    short = replace(experiment, num_steps=min(num_steps, experiment.num_steps))
    (again,) = run_together([short], directory, data=data, device="cpu")
    differences = {}
    for name in ("loss", "sharpness"):
        new, old = again[name], stored[name].until(short.num_steps + 1)
        if not np.array_equal(new.steps, old.steps):
            differences[name] = float("inf")
            continue
        scale = np.maximum(np.abs(old.values), np.finfo(float).tiny)
        apart = np.abs(new.values - old.values) / scale
        differences[name] = float(apart[np.isfinite(old.values)].max(initial=0.0))
    return differences


def seconds_of(recipe: str, store: str | os.PathLike[str]) -> dict[str, float]:
    """How long the stored runs of a recipe took, in seconds, by ``"cpu"`` and ``"gpu"``.

    Runs that were computed together took their time once. On several cores and on machines of any
    speed: it is what was measured, not what you will see. Empty where nothing is stored.
    """
    found: dict[str, dict[str, float]] = {}
    for run, experiment in _stored(recipe, store):
        together = run.provenance["runs_together"] > 1
        computation = json.dumps(without_rule(experiment)) if together else experiment.key
        times = found.setdefault(_kind(run), {})
        times[computation] = max(times.get(computation, 0.0), run.provenance["seconds"])
    return {kind: sum(times.values()) for kind, times in found.items()}


def expected_seconds(
    recipe: Recipe, store: str | os.PathLike[str]
) -> dict[str, tuple[float, bool]]:
    """How long a recipe takes on a ``"cpu"`` core and a ``"gpu"``.

    Returns:
        For each the seconds, and whether runs stored there are all of the recipe's and measured
        them. Else they are those of the stored ones and an estimate of the others: with the steps
        that these took on the other device, if they are stored from there, and to the last step
        otherwise, though a run ends at its goal.
    """
    stored, measured = _stored(recipe.name, store), seconds_of(recipe.name, store)
    reached = {e.key: run.outcome.step / e.num_steps for run, e in stored}
    own = {experiment.key for experiment in recipe.experiments}
    planned = list(recipe.experiments)
    if recipe.by_rule is not None:
        by_rule = {e.key: e for _, e in stored if e.key not in own}
        planned += list(by_rule.values()) or 5 * [recipe.by_rule]
    found = {}
    for kind in RATES:
        there = {e.key for run, e in stored if _kind(run) == kind}
        left = [(e, reached.get(e.key, 1.0)) for e in planned if e.key not in there]
        if len(there) >= _number_of_runs(recipe):
            left = []
        seconds = measured.get(kind, 0.0) + recipe.estimated_seconds(kind, left)
        found[kind] = seconds, not left
    return found


def _stored(recipe: str, store: str | os.PathLike[str]) -> list[tuple[Run, Experiment]]:
    runs = [(path, Run.load(path)) for path in sorted((Path(store) / recipe).glob("*.npz"))]
    return [(run, _experiment_of(run, path)) for path, run in runs]


def _kind(run: Run) -> str:
    return "gpu" if "gpu" in run.provenance else "cpu"


def _number_of_runs(recipe: Recipe) -> int:
    """How many runs a recipe has at least: with a rule for its step sizes, one beside the flow."""
    planned = {experiment.key for experiment in recipe.experiments}
    return len(planned) + (recipe.by_rule is not None)


def _files(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.npz"))


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _entry(path: Path) -> dict[str, Any]:
    run = Run.load(path)
    stamp = run.provenance
    return {
        "sha256": _checksum(path),
        "bytes": path.stat().st_size,
        "key": _experiment_of(run, path).key,
        "outcome": run.outcome.status,
        "step": run.outcome.step,
        "date": stamp["date"],
        "device": device_name(stamp),
        "seconds": stamp["seconds"],
        "eoslib": stamp["eoslib"],
        "torch": stamp["torch"],
    }


def _experiment_of(run: Run, path: Path) -> Experiment:
    settings = run.settings.get("experiment")
    if settings is None:
        raise ValueError(f"{path} is a run, but of no experiment: its settings hold none")
    return Experiment.from_json(settings)


def _contradictions(run: Run, path: Path) -> list[str]:
    """Where a record is not what its settings would give."""
    found, experiment = [], _experiment_of(run, path)
    if path.stem != experiment.name:
        found.append(f"its settings are those of {experiment.name}")
    if run.final_point is not None:
        found.append("it holds a final point")
    if run.outcome.status not in _FINISHED:
        found.append(f"it is not finished: {run.outcome.status}")
    if missing := {"eoslib", "torch", "date", "device", "seconds"} - run.provenance.keys():
        found.append(f"its provenance lacks {', '.join(sorted(missing))}")
    names = ("optimizer", "lr", *COEFFICIENTS, "num_steps", "loss", "seed", "architecture", "tick")
    for name in names:
        asked = getattr(experiment, name)
        if asked is not None and name in run.settings and run.settings[name] != asked:
            if (name, asked) == ("optimizer", "flow"):
                continue  # the record calls it gradient flow
            found.append(f"{name} is {run.settings[name]!r}, its experiment says {asked!r}")
    last = run.outcome.step + (run.outcome.status != "diverged")
    due = every(1 if experiment.tick is not None else experiment.sharpness_every)
    if run["sharpness"].steps.tolist() != [step for step in range(last) if due(step)]:
        found.append("the steps of its sharpness are not those of its schedule")
    if experiment.batch_size is None and run["loss"].steps.tolist() != list(range(last)):
        found.append("its loss is not there for every step")
    if not np.isfinite(run["loss"].values).all():
        found.append("a loss is not finite")
    return found
