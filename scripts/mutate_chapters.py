"""Do the checks of the chapters notice a wrong library?

A check that passes whatever the library computes is worth nothing. So each chapter is executed with
a deliberate error in `eoslib`, once for each error of `MUTATIONS`, and every check line is asked
whether it noticed: whether its number left its band, or, where the page compares digits, changed.

    python scripts/mutate_chapters.py book/momentum.ipynb …

A line that notices nothing in any of these runs is listed. That may be right, for instance where it
compares numbers that no part of the library computes; each is worth a look. It takes as long as
executing the chapters once for each error, so it is no part of `make test`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbclient import NotebookClient

#: The errors, as code that runs before a chapter's own.
MUTATIONS = {
    "steps a quarter too long": """
for _name in ("value_and_gradient", "minibatch_gradient"):
    def _wrap(_true=getattr(_Objective, _name)):
        def _wrong(self, *args, **options):
            result = _true(self, *args, **options)
            return (result[0], 1.25 * result[1]) if isinstance(result, tuple) else 1.25 * result
        return _wrong
    setattr(_Objective, _name, _wrap())
def _init(self, objective, theta, _true=_Hessian.__init__):
    _true(self, objective, theta)
    self.gradient = 1.25 * self.gradient
_Hessian.__init__ = _init
""",
    "curvature a fifth too small": """
for _name in ("_multiply", "_multiply_rows"):
    def _wrap(_true=getattr(_Hessian, _name)):
        return lambda self, vectors: 0.8 * _true(self, vectors)
    setattr(_Hessian, _name, _wrap())
""",
    "no training to speak of": """
for _rule in _RULES:
    def _wrap(_true=_rule.step):
        def _wrong(self, theta, gradient, state):
            point, after = _true(self, theta, gradient, state)
            return theta + 0.02 * (point - theta), after
        return _wrong
    _rule.step = _wrap()
""",
    "every threshold a quarter too high": """
for _rule in _RULES:
    _rule.threshold = property(lambda self, _true=_rule.threshold.fget: 1.25 * _true(self))
""",
    # A factor drops out of ratios and slopes; a summand does not.
    "every eigenvalue too large by 3": """
for _name in ("_multiply", "_multiply_rows"):
    def _wrap(_true=getattr(_Hessian, _name)):
        return lambda self, vectors: _true(self, vectors) + 3.0 * vectors
    setattr(_Hessian, _name, _wrap())
""",
    "half the momentum": """
import dataclasses as _dc
for _rule, _name in ((_rules.Polyak, "beta"), (_rules.Nesterov, "beta"), (_rules.Adam, "beta1")):
    def _wrap(_true=_rule.step, _name=_name):
        def _wrong(self, theta, gradient, state):
            half = {_name: 0.5 * getattr(self, _name)}
            return _true(_dc.replace(self, **half), theta, gradient, state)
        return _wrong
    _rule.step = _wrap()
""",
    "cross-entropy of half the outputs": """
import types as _types, eoslib.losses as _losses
def _wrong(outputs, *args, _true=_losses.F.cross_entropy, **options):
    return _true(0.5 * outputs, *args, **options)
_losses.F = _types.SimpleNamespace(cross_entropy=_wrong)
""",
    "gradient flow a tenth too fast": """
import eoslib.flows as _flows
def _wrong(slope, theta, step, _true=_flows.runge_kutta_step):
    return _true(slope, theta, 1.1 * step)
_flows.runge_kutta_step = _wrong
""",
}

#: One of these words is in a chapter's code, or the error could not show and takes no time.
CONCERNS = {
    "half the momentum": ("Polyak", "Nesterov", "Adam"),
    "cross-entropy of half the outputs": ("cross_entropy",),
    "gradient flow a tenth too fast": ("gradient_flow", "runge_kutta_step"),
}

#: Runs first: a `check` that reports instead of raising. (As JSON: a quantity may hold any
#: character, and `|swing|` holds the one that once stood between the fields.)
PRELUDE = """
import json as _json, math as _math
import eoslib.checks as _checks, eoslib.update_rules as _rules
from eoslib.objective import Hessian as _Hessian, Objective as _Objective

_RULES = (_rules.GradientDescent, _rules.Polyak, _rules.Nesterov, _rules.RMSProp, _rules.Adam)

def _report(claim, quantity, value, *, low=-_math.inf, high=_math.inf, digits=2, exact=False,
            reproduces=True):
    value = _math.nan if value is None else float(value)
    good = _math.isfinite(value) and (low <= value <= high) == reproduces
    shown = f"{value:.{digits}f}" if exact else "in its band"
    print("@@" + _json.dumps([f"{claim}: {quantity}", shown if good else "outside", value]))

_checks.check = _report
"""


class Said(NamedTuple):
    """What a check line says in one run."""

    verdict: str  #: where its number lies; the number itself where the page compares digits
    value: float  #: the number; NaN where there was nothing to measure


def reports(text: str) -> dict[str, Said]:
    """The lines that `PRELUDE` printed among other output, by claim and quantity."""
    found = (json.loads(line) for line in re.findall(r"^@@(.*)$", text, re.MULTILINE))
    return {line: Said(verdict, value) for line, verdict, value in found}


def cells_of(path: Path) -> list[nbformat.NotebookNode]:
    """The chapter's code cells."""
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def verdicts(path: Path, mutation: str) -> dict[str, Said]:
    """What each check line of the chapter says under that error, by claim and quantity."""
    cells = [nbformat.v4.new_code_cell(PRELUDE + mutation), *cells_of(path)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=1200, allow_errors=True, resources=where).execute()
    return reports(
        "".join(
            output.text
            for cell in notebook.cells
            for output in cell.outputs
            if output.output_type == "stream" and output.name == "stdout"
        )
    )


def aligned(right: Mapping[str, Said], wrong: Mapping[str, Said]) -> dict[str, Said]:
    """The lines of a run with an error, under the names that they have without it.

    A name may hold a count that was measured ("7 step sizes"). If only its numbers differ, it is
    the same line; and it has noticed, because the page compares its text.
    """
    same = {line: said for line, said in wrong.items() if line in right}
    renamed: dict[str, list[list[str]]] = {}
    for index, run in enumerate((right, wrong)):
        for line in run:
            if line not in same:
                renamed.setdefault(re.sub(r"\d", "", line), [[], []])[index].append(line)
    for here, there in renamed.values():
        if len(here) == len(there):
            for line, other in zip(here, there, strict=True):
                same[line] = Said("another name", wrong[other].value)
    return same


def how_blind(right: float, wrong: list[float]) -> str:
    """What a line that noticed nothing measured, and in how many runs with errors."""
    if not wrong:
        return f"{right:.4g}; no run with an error came to it"
    errors = f"{len(wrong)} error" + "s" * (len(wrong) > 1)
    if all(value == right for value in wrong):
        return f"{right:.4g}, and the same with {errors}"
    return f"{right:.4g}; {min(wrong):.4g} to {max(wrong):.4g} with {errors}"


def main(arguments: list[str] | None = None) -> int:
    """Mutate each chapter, and say what its checks did not notice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="+", type=Path)
    for path in parser.parse_args(arguments).chapters:
        right = verdicts(path, "")
        code = "".join(cell.source for cell in cells_of(path))
        wrong = {
            name: aligned(right, verdicts(path, mutation))
            for name, mutation in MUTATIONS.items()
            if any(word in code for word in CONCERNS.get(name, ("",)))
        }
        blind = [
            line
            for line, (verdict, _) in right.items()
            # A line that a run did not come to, because of an exception, has noticed nothing there.
            if all(line not in said or said[line].verdict == verdict for said in wrong.values())
        ]
        print(
            f"{path.name}: {len(right) - len(blind)} of {len(right)} check lines noticed an error"
        )
        for name, said in wrong.items():
            noticed = sum(
                line in said and said[line].verdict != verdict
                for line, (verdict, _) in right.items()
            )
            missing = len(right.keys() - said.keys())
            print(f"    {name}: {noticed} noticed" + (f", {missing} not reached" * bool(missing)))
        for line in blind:
            values = [said[line].value for said in wrong.values() if line in said]
            print(f"    noticed nothing: {line}: {how_blind(right[line].value, values)}")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
