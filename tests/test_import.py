"""`import eoslib` is light, and the modules depend on one another in one direction only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "eoslib"

#: A module may import those named before it (and nothing of its own row).
LAYERS = [
    ["_arguments", "_names"],
    ["numerics", "palette", "linear_chain", "linops", "checks"],
    ["progress", "second_derivatives"],
    ["downloads"],
    ["cifar10", "wikitext2", "prose"],
    ["losses", "data", "convolutional", "transformer"],
    ["architectures", "torch_losses"],
    ["functional_model", "eigen", "runs"],
    ["objective", "checkpoint", "update_rules"],
    ["taylor", "tracker", "spectrum", "one_step", "distributed"],
    ["recorder", "measure"],
    ["train", "flows"],
    ["plotting", "quantities"],
    ["experiment"],
    ["recipes"],
    ["store"],
    ["widgets", "__main__"],
]


def test_import_loads_nothing_heavy():
    code = (
        "import sys, eoslib; heavy = {'matplotlib', 'IPython', 'scipy', 'anywidget', 'ipywidgets',"
        "'pandas', 'torchvision'} & set(sys.modules); sys.exit(', '.join(sorted(heavy)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_training_and_measuring_load_no_compiler():
    code = """
import sys, eoslib
from eoslib.convolutional import cnn
data = eoslib.digits(8)
images = data.inputs.view(-1, 1, 8, 8)
for network, inputs in (
    (eoslib.build("fc-tanh", 64, 10, widths=(4,)), data.inputs),
    (cnn(1, 10, width=2, image_size=8), images),
):
    objective = eoslib.Objective(network, inputs, data.targets, "square")
    rules = [eoslib.GradientDescent(lr) for lr in (0.01, 0.02)]
    eoslib.train_together(objective, rules, num_steps=2)
    eoslib.train(objective, rules[0], num_steps=2)
sys.exit("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or "torch._dynamo was loaded, which takes seconds"


def test_every_module_has_a_layer():
    found = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert found - {"__init__"} == {name for layer in LAYERS for name in layer}


def top_level_imports(path: Path) -> set[str]:
    """Modules of eoslib that a file imports at import time (not for type checking only)."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("eoslib"):
            module = (node.module or "").split(".")
            names |= {module[1]} if len(module) > 1 else {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("level", range(len(LAYERS)))
def test_imports_point_one_way(level):
    allowed = {name for layer in LAYERS[:level] for name in layer}
    for name in LAYERS[level]:
        file = PACKAGE / f"{name}.py"
        files = [file] if file.exists() else sorted((PACKAGE / name).glob("*.py"))
        own = {name}
        for path in files:
            assert top_level_imports(path) <= allowed | own, path.name
