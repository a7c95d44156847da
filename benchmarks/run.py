"""Measure eoslib beside other tools:  ``python -m benchmarks.run --help``."""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.comparison import bars, compare
from benchmarks.costs import derivative_costs
from benchmarks.problems import PROBLEMS, MissingData, Problem, edge_stretch
from benchmarks.results import ProblemReport, Report
from benchmarks.together import TOGETHER, together
from benchmarks.tools import find_peers
from eoslib.numerics import full_precision, hardware_stamp, limited_threads, resolve_device

RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, print the table, write the JSON; 1 if a bar is not met."""
    options = _parser().parse_args(arguments)
    device = resolve_device(options.device)
    before = {"commit": _commit(), "load_before": _load()}
    versions, absent = find_peers()
    chosen = options.problems
    absent |= {n: "left out by --problems" for n in (*PROBLEMS, TOGETHER) if n not in chosen}
    report = Report({**_machine(device, versions), **before}, absent, [])
    path = options.output or RESULTS / f"{_slug(report.machine)}.json"
    partial = path.with_suffix(".partial")
    with full_precision(device):
        for name in (name for name in chosen if name != TOGETHER):
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                problem = PROBLEMS[name](device, options.cifar10)
            except MissingData as missing:
                absent[name] = str(missing)
                continue
            report.problems.append(measured(problem, list(absent), options))
            # What is measured is kept, whatever becomes of the rest.
            unfinished(report, chosen).save(partial)
        if TOGETHER in chosen:
            report.problems.append(together(device, options.repeats))
    report.save(path)
    partial.unlink(missing_ok=True)
    print(report.table())
    print(f"\nwritten to {path}")
    return int(any(bar.passed is False for problem in report.problems for bar in problem.bars))


def unfinished(report: Report, planned: Sequence[str]) -> Report:
    """The report as it is now, which says what it does not hold yet."""
    known = {problem.name for problem in report.problems} | report.absent.keys()
    rest = dict.fromkeys(planned, "the measurement ended before it")
    left = {name: why for name, why in rest.items() if name not in known}
    return replace(report, absent={**report.absent, **left})


def measured(problem: Problem, absent: list[str], options: argparse.Namespace) -> ProblemReport:
    """Everything on one problem."""
    repeats, seconds = options.repeats, options.seconds
    stretch = edge_stretch(problem, interval=options.interval)
    ratio = stretch.sharpness / stretch.threshold
    with limited_threads(problem.work):
        gradient, cost_bars = derivative_costs(problem, stretch.points[0], seconds)
        rows = compare(problem, stretch, absent, repeats, seconds)
        threads = torch.get_num_threads()
    facts = {
        "parameters": problem.objective.num_parameters,
        "examples": problem.objective.num_examples,
        "threads": threads,
        "step_size": problem.step_size,
        "first_step": problem.first_step,
        "steps_between_measurements": stretch.interval,
        "mean_sharpness_over_threshold": float(ratio.mean()),
        "gradient_seconds": gradient,
    }
    return ProblemReport(
        problem.name, problem.description, facts, rows, bars(rows) + cost_bars, problem.data
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    known = [*PROBLEMS, TOGETHER]
    parser.add_argument("--problems", nargs="+", choices=known, default=known)
    parser.add_argument(
        "--interval", type=int, default=1, help="steps between measurements, default 1"
    )
    parser.add_argument("--repeats", type=int, default=3, help="passes; the best time counts")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="a tool's pass ends early once it took so long"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--cifar10",
        type=Path,
        metavar="PATH",
        default=os.environ.get("EOS_CIFAR10"),
        help="CIFAR-10 as eoslib takes it: cifar-10-binary.tar.gz, a folder cifar-10-batches-bin, "
        "or an .npz file with x_train and y_train; default: EOS_CIFAR10",
    )
    parser.add_argument("--output", type=Path, help="default: results/<machine>.json")
    return parser


def _machine(device: torch.device, versions: dict[str, str]) -> dict[str, str | int]:
    return {
        **hardware_stamp(device),
        "cpu": _cpu(),
        "scipy": metadata.version("scipy"),
        **versions,
    }


def _load() -> str:
    """How many processes were running in the last minute, to tell a machine that was not idle."""
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"


def _commit() -> str:
    """The commit that is measured, and whether the code has been changed since."""
    git = ["git", "-C", str(RESULTS.parent.parent)]
    try:
        commit, changes = (
            subprocess.run([*git, *command], capture_output=True, text=True, check=True).stdout
            for command in (
                ("rev-parse", "--short=12", "HEAD"),
                ("status", "--porcelain", "--", "eoslib", "benchmarks/*.py"),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.strip() + (" with changes" if changes else "")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), flags=re.MULTILINE)
        if match:
            return match[1]
    return platform.processor() or platform.machine()


def _slug(machine: dict[str, str | int]) -> str:
    name = machine.get("gpu", f"{machine['cpu']} {machine['threads']} threads")
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(\w+\)", "", str(name)).lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
