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
import re
import sys
from pathlib import Path

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
for _rule in (_rules.GradientDescent, _rules.Polyak, _rules.Nesterov):
    def _wrap(_true=_rule.step):
        def _wrong(self, theta, gradient, state):
            return _true(self, theta, 0.02 * gradient, state)
        return _wrong
    _rule.step = _wrap()
""",
    "every threshold a quarter too high": """
for _rule in (_rules.GradientDescent, _rules.Polyak, _rules.Nesterov):
    _rule.threshold = property(lambda self, _true=_rule.threshold.fget: 1.25 * _true(self))
""",
}

#: Runs first: a `check` that reports instead of raising.
PRELUDE = """
import math as _math
import eoslib.checks as _checks, eoslib.update_rules as _rules
from eoslib.objective import Hessian as _Hessian, Objective as _Objective

def _report(claim, quantity, value, *, low=-_math.inf, high=_math.inf, digits=2, exact=False,
            reproduces=True):
    inside = value is not None and _math.isfinite(value) and low <= value <= high
    shown = "nothing" if value is None else f"{value:.{digits}f}" if exact else "in its band"
    good = inside == reproduces and value is not None
    print(f"@@{claim}|{quantity}|{shown if good else 'outside'}")

_checks.check = _report
"""


def verdicts(path: Path, mutation: str) -> dict[str, str]:
    """What each check line of the chapter says under that error, by claim and quantity."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells = [nbformat.v4.new_code_cell(PRELUDE + mutation), *code]
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=1200, allow_errors=True, resources=where).execute()
    text = "".join(
        output.text
        for cell in notebook.cells
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    )
    return {
        f"{claim}: {quantity}": verdict
        for claim, quantity, verdict in re.findall(r"^@@(.*)\|(.*)\|(.*)$", text, re.MULTILINE)
    }


def main(arguments: list[str] | None = None) -> int:
    """Mutate each chapter, and say what its checks did not notice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="+", type=Path)
    for path in parser.parse_args(arguments).chapters:
        right = verdicts(path, "")
        wrong = {name: verdicts(path, mutation) for name, mutation in MUTATIONS.items()}
        blind = [
            line
            for line, verdict in right.items()
            # A line that a run did not come to, because of an exception, has noticed nothing there.
            if all(said.get(line, verdict) == verdict for said in wrong.values())
        ]
        print(
            f"{path.name}: {len(right) - len(blind)} of {len(right)} check lines noticed an error"
        )
        for name, said in wrong.items():
            noticed = sum(said.get(line, verdict) != verdict for line, verdict in right.items())
            missing = len(right.keys() - said.keys())
            print(f"    {name}: {noticed} noticed" + (f", {missing} not reached" * bool(missing)))
        for line in blind:
            print(f"    noticed nothing: {line}")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
