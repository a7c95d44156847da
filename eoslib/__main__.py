"""The command line: `python -m eoslib --help`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from eoslib.architectures import ARCHITECTURES
from eoslib.checkpoint import CheckpointError
from eoslib.data import reads_files
from eoslib.experiment import (
    OPTIMIZERS,
    Experiment,
    batches_of,
    run_path,
    run_together,
    stored_run,
    what_goes_on,
)
from eoslib.losses import LOSSES
from eoslib.numerics import keep_freed_memory, resolve_device
from eoslib.progress import ProgressLine, duration_in_words
from eoslib.quantities import QUANTITIES
from eoslib.recorder import Snapshot
from eoslib.runs import Run, RunFileError
from eoslib.update_rules import checked_step_size

if TYPE_CHECKING:
    from eoslib.recipes import Recipe

_ABOUT = """\
Train networks with full-batch methods, and measure the sharpness of their loss on the way.

  python -m eoslib train --dataset chebyshev-4-20 --architecture fc-tanh --widths 20,20 \\
      --lr 0.1 --steps 500 --out my-runs
  python -m eoslib reproduce --list
  python -m eoslib reproduce chebyshev-4
  python -m eoslib runs my-runs

A run that was cut off, by Ctrl-C or by a crash, goes on when the same command is given again; a run
that is done is found, and not repeated."""


_OUT = "eoslib-runs"
#: The first steps of a run, computed again, may differ by this: rounding, and the accuracy to which
#: the sharpness was measured.
_REPLAYED = 2e-3
_KINDS = ("cpu", "gpu")
#: What a file raises that is no run, or whose record is not as it should be.
_NO_RECORD = (ValueError, LookupError, TypeError, AttributeError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    given = _parser().parse_args(arguments)
    log, handler = logging.getLogger("eoslib"), logging.StreamHandler(sys.stderr)
    log.addHandler(handler)
    log.setLevel(logging.WARNING if given.quiet else logging.INFO)
    try:
        status = int(given.command(given))
        if sys.stdout is not None:  # closed by the caller
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, MemoryError) as error:
        what = "not enough memory: " if isinstance(error, MemoryError) else ""
        print(f"error: {what}{error}", file=sys.stderr)
        return 2
    finally:
        log.removeHandler(handler)


# -- train --------------------------------------------------------------------------------------


def _train(given: argparse.Namespace) -> int:
    experiments = _experiments(given)
    names = [experiment.dataset for experiment in experiments]
    if given.data is not None and names and not any(map(reads_files, names)):
        raise ValueError(f"{names[0]} is part of the package; leave --data out")
    if given.dry_run:
        print(json.dumps([experiment.to_json() for experiment in experiments], indent=2))
        return 0
    _run_all(experiments, given.out, given)
    return 0


def _experiments(given: argparse.Namespace) -> list[Experiment]:
    if given.settings is not None:
        chosen = {**_chosen(given), "lr": given.lr}
        if beside := [name for name, value in chosen.items() if value not in (None, [], {})]:
            raise ValueError(
                f"{given.settings} holds all settings; leave out what sets {', '.join(beside)}, "
                "or change it in the file"
            )
        try:
            content = json.loads(given.settings.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{given.settings} is no JSON file: {error}") from error
        several = content if isinstance(content, list) else [content]
        return [Experiment.from_json(settings) for settings in several]
    common = {name: value for name, value in _chosen(given).items() if value is not None}
    if missing := [f"--{name}" for name in ("dataset", "architecture") if name not in common]:
        raise ValueError(f"train needs {' and '.join(missing)} (or --settings FILE)")
    return [Experiment(**common, lr=lr) for lr in given.lr or [None]]


def _chosen(given: argparse.Namespace) -> dict[str, Any]:
    options = dict(given.option)
    if given.widths is not None:
        if "widths" in options:
            raise ValueError(
                "--widths and --option widths=… are the same setting; give one of them"
            )
        options["widths"] = given.widths
    return {
        "dataset": given.dataset,
        "architecture": given.architecture,
        "architecture_options": options,
        "loss": given.loss,
        "optimizer": given.optimizer,
        "beta": given.beta,
        "beta1": given.beta1,
        "beta2": given.beta2,
        "epsilon": given.epsilon,
        "lr_changes": given.lr_change,
        "num_steps": given.steps,
        "tick": given.tick,
        "seed": given.seed,
        "dtype": given.dtype,
        "batch_size": given.batch_size,
        "batch_norm": given.batch_norm,
        "chunk_size": given.physical_batch_size,
        "eigenvalues": given.eigenvalues,
        "sharpness_every": given.sharpness_every,
        "sharpness_rtol": given.sharpness_rtol,
        "sharpness_cold_every": given.sharpness_cold_every,
        "sharpness_examples": given.sharpness_examples,
        "accuracy_goal": given.accuracy_goal,
        "loss_goal": given.loss_goal,
        "quantities": dict(given.record),
    }


def _run_all(experiments: Sequence[Experiment], out: Path, given: argparse.Namespace) -> list[Run]:
    """Run experiments with their progress shown, and say what came of each.

    Raises:
        FileExistsError: in place of runs there are files that hold something else; the other
            experiments are done.
    """
    files = any(reads_files(experiment.dataset) for experiment in experiments)
    if given.data is not None and files and not given.data.exists():
        raise ValueError(f"there is no {given.data}, which --data names")
    if resolve_device(given.device).type == "cpu":
        keep_freed_memory()
    found, refused = {}, {}
    for experiment in experiments:
        try:
            stored_run(experiment, out)
        except FileExistsError as error:
            refused[experiment.key] = str(error)
    for batch in batches_of(e for e in experiments if e.key not in refused):
        label = batch[0].name if len(batch) == 1 else f"{len(batch)} × {batch[0].architecture}"
        line = ProgressLine(label)

        def report(now: Snapshot, line: ProgressLine = line) -> None:
            if not given.quiet and line.due:
                line.update(now.step, now.num_steps, _details(now))

        try:
            runs = run_together(
                batch,
                out,
                device=given.device,
                report=report,
                # One folder may be given for many recipes, some of which need no data.
                data=given.data if reads_files(batch[0].dataset) else None,
                checkpoint_interval=given.checkpoint_every,
                retry=given.retry,
            )
        finally:
            line.close()
        for experiment, run in zip(batch, runs, strict=True):
            words = f"{run.outcome.message}; {run.describe()}"
            print(f"{run_path(experiment, out)}\n    {words}", flush=True)
            found[experiment.key] = run
    if refused:
        raise FileExistsError("; ".join(refused.values()))
    return [found[experiment.key] for experiment in experiments]


def _details(now: Snapshot) -> str:
    if now.step == 0:
        return ""
    run = now.record()
    known = run.curvature.values
    name = "preconditioned sharpness" if run.is_preconditioned else "sharpness"
    ratio = f", {name} {known[-1]:.4g}" if len(known) else ""
    if len(known) and "lr" in run.settings:
        ratio += f" = {known[-1] / run.threshold:.2f} × threshold"
    return f", loss {now.loss:.4g}{ratio}"


# -- reproduce ----------------------------------------------------------------------------------


def _reproduce(given: argparse.Namespace) -> int:
    from eoslib.recipes import IN_THE_BOOK, RECIPES, get_recipe

    if given.store is not None and not given.store.is_dir():
        raise ValueError(f"there is no folder {given.store}, which --store names")
    stored = given.store or _nearest_store()
    if given.list or not given.names:
        status = 0
        for recipe in RECIPES.values():
            try:
                line = _in_a_line(recipe, stored)
            except _NO_RECORD as error:
                status, line = 2, _in_a_line(recipe, None)
                print(f"error: {error}", file=sys.stderr)
            print(line)
        print("\nComputed in the book itself:")
        for what, chapter in IN_THE_BOOK.items():
            print(f"  {what}: chapter {chapter}")
        print(
            "\nTimes, on one CPU core / on a GPU, are estimates; where no run is stored, of runs\n"
            "to their last step, and many reach their goal before. * was measured by stored runs,\n"
            "on machines that did other work besides."
        )
        if stored is None:
            print(
                "Here all are estimates: there is no folder of stored runs; name one with --store."
            )
        print("`python -m eoslib reproduce NAME --explain` says what a recipe does, and why.")
        return status
    for lr in given.lr or []:
        checked_step_size(lr)
    status, planned = 0, list[Experiment]()
    for recipe in [get_recipe(name) for name in given.names]:
        if given.explain:
            print(_in_full(recipe, stored))
            continue
        experiments = [_changed(experiment, given) for experiment in recipe.experiments]
        if given.lr is not None and recipe.by_rule is None:
            experiments = _at_step_sizes(experiments, given.lr)
        if given.dry_run:
            planned += experiments
            if recipe.by_rule is not None:
                print(f"{recipe.name}: its step sizes follow from the flow", file=sys.stderr)
            continue
        print(f"{recipe.name}: {recipe.title}. {recipe.notes}", flush=True)
        try:
            runs = _run_all(experiments, given.out / recipe.name, given)
            following = recipe.following(runs[0], given.lr)
            if given.steps is not None:
                following = [replace(experiment, num_steps=given.steps) for experiment in following]
            following = [_changed(experiment, given) for experiment in following]
            _run_all(following, given.out / recipe.name, given)
        except (FileExistsError, CheckpointError) as error:  # a file in the way of one recipe
            status = 2
            print(f"error: {error}", file=sys.stderr)
    if given.dry_run:
        print(json.dumps([experiment.to_json() for experiment in planned], indent=2))
    return status


def _changed(experiment: Experiment, given: argparse.Namespace) -> Experiment:
    """The experiment with what the command line puts in place of its own settings."""
    changes = {"dataset": given.dataset, "num_steps": given.steps, "seed": given.seed}
    return replace(experiment, **{name: v for name, v in changes.items() if v is not None})


def _at_step_sizes(experiments: Sequence[Experiment], lrs: Sequence[float]) -> list[Experiment]:
    """The experiments at other step sizes; those without one as they are."""
    changed = [replace(e, lr=lr) for lr in lrs for e in experiments if e.lr is not None]
    unchanged = [e for e in experiments if e.lr is None]
    return list(dict.fromkeys([*unchanged, *changed]))


def _in_a_line(recipe: Recipe, store: Path | None) -> str:
    times = [words + "*" * measured for words, measured in _times(recipe, store)]
    return f"  {recipe.name:<35} {times[0]:>9} / {times[1]:<8} {recipe.title}"


def _in_full(recipe: Recipe, store: Path | None) -> str:
    where = f"in the paper: {recipe.paper}" if recipe.claims else recipe.paper
    lines = [f"{recipe.name}: {recipe.title}", f"  {where}"]
    if recipe.claims:
        lines.append(f"  claims: {', '.join(recipe.claims)}")
    experiments = [*recipe.experiments, *([] if recipe.by_rule is None else [recipe.by_rule])]
    estimate = "estimate"
    if any(e.accuracy_goal is not None or e.loss_goal is not None for e in experiments):
        estimate += "; where no run is stored, to the last step, and many reach their goal before"
    names = ("one CPU core", "a GPU")
    for name, (words, measured) in zip(names, _times(recipe, store), strict=True):
        lines.append(f"  on {name}: {words} ({'measured' if measured else estimate})")
    lines.append(f"  {recipe.notes}")
    lines += [f"  {_settings_of(experiment)}" for experiment in recipe.experiments]
    if recipe.by_rule is not None:
        lines.append(f"  then, at these step sizes: {_settings_of(recipe.by_rule)}")
    return "\n".join(lines)


def _settings_of(experiment: Experiment) -> str:
    """Those that are not the default, and the update rule and the loss in any case."""
    always = {"optimizer": experiment.optimizer, "loss": experiment.loss}
    return json.dumps(always | experiment.to_json())


def _times(recipe: Recipe, store: Path | None) -> list[tuple[str, bool]]:
    """The time on a CPU and on a GPU in words, and whether stored runs have measured it."""
    from eoslib.store import expected_seconds

    if store is None:
        return [(duration_in_words(recipe.estimated_seconds(kind)), False) for kind in _KINDS]
    expected = expected_seconds(recipe, store)
    return [(duration_in_words(expected[kind][0]), expected[kind][1]) for kind in _KINDS]


def _nearest_store() -> Path | None:
    """The folder ``runs`` here, or the store of the repository that this directory is in."""
    from eoslib.store import nearest

    here = Path("runs")
    return here if here.is_dir() else nearest()


# -- runs ---------------------------------------------------------------------------------------


def _runs(given: argparse.Namespace) -> int:
    from eoslib import store

    if given.replay is not None and not given.verify:
        raise ValueError("--replay belongs to --verify: runs --verify --replay STEPS")
    folder = given.store or _nearest_store() or Path("runs")
    if given.add is not None:
        status = 0
        for path in given.add:
            try:
                print(store.add(path, given.recipe or path.resolve().parent.name, folder))
            except (OSError, *_NO_RECORD) as error:
                status = 2
                print(f"error: {error}", file=sys.stderr)
        return status
    if given.store is None and not folder.is_dir():
        raise ValueError(
            f"{store.NO_STORE}; name a folder of your own: python -m eoslib runs DIR (train and "
            f"reproduce write to {_OUT} where --out names no other)"
        )
    if given.missing:
        for name, number in store.left_to_run(folder).items():
            part = f"  # {number} of its runs are there" if number else ""
            print(f"python -m eoslib reproduce {name} --device auto{part}")
        return 0
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if given.verify:
        found = store.problems(folder)
        for path in sorted(folder.glob("*/*.npz")) if given.replay else []:
            try:
                with TemporaryDirectory() as directory:
                    apart = store.replayed(path, directory, num_steps=given.replay, data=given.data)
            except _NO_RECORD as error:
                found.append(f"{path} cannot be replayed: {error}")
                continue
            print(f"{path}: apart by " + ", ".join(f"{v:.1e} ({k})" for k, v in apart.items()))
            found += [
                f"{path}: {k} differs by {v:.1e}" for k, v in apart.items() if not v <= _REPLAYED
            ]
        print("\n".join(found) or f"{folder}: all is well")
        return 1 if found else 0
    status = 0
    for path in [*sorted(folder.rglob("*.npz")), *sorted(folder.rglob("*.checkpoint"))]:
        try:
            words = _told(path)
        except _NO_RECORD as error:
            readable = not isinstance(error, RunFileError | CheckpointError)
            status, words = 2, f"no record of a run: {error!r}" if readable else str(error)
        print(f"{path.relative_to(folder)}\n    {words}")
    return status


def _told(path: Path) -> str:
    """What a run or a checkpoint is, in a line."""
    if path.suffix == ".checkpoint":
        return what_goes_on(path)
    run = Run.load(path)
    return f"{run.outcome.message}; {run.describe()}"


# -- the parser ---------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eoslib",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a network, at one or several step sizes",
        description="Train a network at one or several step sizes and record loss and sharpness.",
    )
    train.set_defaults(command=_train)
    _add_settings(train)
    _add_running(train)
    reproduce = commands.add_parser(
        "reproduce",
        help="run an experiment of the paper by its name",
        description="Run experiments of Cohen et al. (2021). Step sizes that the paper's text does "
        "not give are chosen by us: see --explain.",
    )
    reproduce.set_defaults(command=_reproduce)
    reproduce.add_argument("names", nargs="*", metavar="NAME", help="of a recipe")
    reproduce.add_argument("--list", action="store_true", help="all recipes, time on CPU / GPU")
    reproduce.add_argument("--explain", action="store_true", help="what a recipe would do, and why")
    other = reproduce.add_argument_group("in place of the recipe's settings")
    other.add_argument("--dataset", metavar="NAME", help="another data set, to try a recipe out")
    other.add_argument("--steps", type=int, help="so many steps, or ticks of gradient flow")
    other.add_argument("--seed", type=int, help="of the initial weights")
    other.add_argument(
        "--lr", type=float, nargs="+", action="extend", metavar="η", help="step sizes"
    )
    reproduce.add_argument(
        "--store", type=Path, help="stored runs, for times; default: runs, here or above"
    )
    _add_running(reproduce)
    runs = commands.add_parser(
        "runs",
        help="list runs, or check those that are kept in the repository",
        description="List the runs below a folder, or check a store of runs.",
    )
    runs.set_defaults(command=_runs, quiet=False)
    runs.add_argument("store", type=Path, nargs="?", help="default: runs, here or above")
    runs.add_argument("--verify", action="store_true", help="check every file against the index")
    runs.add_argument(
        "--replay",
        type=int,
        metavar="STEPS",
        help="with --verify: run the first steps of every run again, and compare",
    )
    runs.add_argument(
        "--add", type=Path, nargs="+", metavar="FILE", help="take runs into the store"
    )
    runs.add_argument(
        "--missing",
        action="store_true",
        help="which recipes have not all their runs there, as commands",
    )
    runs.add_argument("--recipe", help="with --add: its folder; default: that of the file")
    runs.add_argument("--data", type=Path, metavar="PATH", help="where the data are, for --replay")
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    task = parser.add_argument_group("the task")
    task.add_argument("--dataset", metavar="NAME", help="for instance chebyshev-4-20 or digits-1k")
    task.add_argument(
        "--architecture", metavar="NAME", help=f"one of {', '.join(sorted(ARCHITECTURES))}"
    )
    task.add_argument("--widths", type=_integers, metavar="N,N", help="units of the hidden layers")
    task.add_argument(
        "--option",
        type=_assignment,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a further option of the architecture, for instance init=lecun",
    )
    task.add_argument("--loss", choices=sorted(LOSSES), help="default: square")
    task.add_argument("--seed", type=int, help="of the initial weights; default: 0")
    task.add_argument("--dtype", choices=["float32", "float64"], help="default: float32")
    task.add_argument(
        "--batch-norm",
        choices=["full_batch", "ghost", "running"],
        help="whose statistics batch-norm layers take; ghost: of each physical batch",
    )
    task.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="take the settings from a JSON file, as --dry-run writes it",
    )
    method = parser.add_argument_group("the method")
    method.add_argument("--optimizer", choices=sorted(OPTIMIZERS), help="default: gd")
    method.add_argument(
        "--lr",
        type=float,
        nargs="+",
        action="extend",
        metavar="η",
        help="step size; several are run together",
    )
    method.add_argument("--beta", type=float, metavar="β", help="momentum")
    method.add_argument("--beta1", type=float, metavar="β₁", help="Adam's average of the gradient")
    method.add_argument(
        "--beta2", type=float, metavar="β₂", help="Adam's or RMSProp's average of its square"
    )
    method.add_argument("--epsilon", type=float, metavar="ε", help="what they add to its root")
    method.add_argument(
        "--lr-change",
        type=_change,
        action="append",
        default=[],
        metavar="STEP:η",
        help="from that step on, this step size; may be given several times",
    )
    method.add_argument("--steps", type=int, help="updates, or ticks of the flow; default: 1000")
    method.add_argument("--tick", type=float, help="for the flow: time between measurements")
    method.add_argument("--batch-size", type=int, help="mini-batches; default: the full batch")
    method.add_argument(
        "--physical-batch-size",
        type=int,
        help="examples per pass, to save memory; with --batch-norm ghost it is part of the loss",
    )
    method.add_argument("--accuracy-goal", type=float, help="stop above this training accuracy")
    method.add_argument("--loss-goal", type=float, help="stop below this training loss")
    record = parser.add_argument_group("the record")
    record.add_argument("--eigenvalues", type=int, help="how many to track; default: 1")
    record.add_argument("--sharpness-every", type=int, metavar="STEPS", help="default: 5")
    record.add_argument("--sharpness-rtol", type=float, help="accuracy; default: 1e-3")
    record.add_argument(
        "--sharpness-cold-every",
        type=int,
        metavar="N",
        help="search from random vectors too at every Nth measurement; default: 50",
    )
    record.add_argument(
        "--sharpness-examples", type=int, metavar="N", help="measure on the first N examples only"
    )
    record.add_argument(
        "--record",
        type=_quantity,
        action="append",
        default=[],
        metavar="NAME:every=N",
        help=f"a further quantity, one of {', '.join(sorted(QUANTITIES))}",
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    running = parser.add_argument_group("running")
    running.add_argument(
        "--out", type=Path, default=Path(_OUT), metavar="DIR", help=f"default: {_OUT}"
    )
    running.add_argument(
        "--data", type=Path, metavar="PATH", help="file or folder of a data set that you have"
    )
    running.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")
    running.add_argument(
        "--checkpoint-every", type=float, default=60.0, metavar="SECONDS", help="default: 60"
    )
    running.add_argument(
        "--retry", action="store_true", help="run again what ended for lack of memory"
    )
    running.add_argument("--dry-run", action="store_true", help="print the settings only")
    running.add_argument("--quiet", action="store_true", help="no progress, only results")


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected whole numbers, got {text!r}") from error


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _change(text: str) -> list[float]:
    step, _, lr = text.partition(":")
    try:
        return [int(step), float(lr)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected STEP:η, got {text!r}") from error


def _quantity(text: str) -> tuple[str, dict[str, Any]]:
    name, _, options = text.partition(":")
    return name, dict(_assignment(part) for part in options.split(",") if part)


if __name__ == "__main__":
    sys.exit(main())
