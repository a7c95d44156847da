"""The checks of the first chapter fail when the threshold in them is not the right one."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

CHAPTER = Path(__file__).parents[1] / "book" / "edge_of_stability.ipynb"

#: The check cells whose claim is about the threshold.
ABOUT_THE_THRESHOLD = {
    "check-c1",
    "check-c4",
    "check-c5-c8",
    "check-c8",
    "check-digits",
    "check-cross-entropy",
}


@pytest.mark.slow
def test_checks_fail_with_another_threshold():
    notebook = nbformat.read(CHAPTER, as_version=4)
    (definition,) = [cell for cell in notebook.cells if "return 2 / run.lr" in cell.source]
    definition.source = definition.source.replace("return 2 / run.lr", "return 2.5 / run.lr")
    # Markdown and the widgets' front ends have no part in it.
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    path = {"metadata": {"path": str(CHAPTER.parent)}}
    NotebookClient(notebook, timeout=300, allow_errors=True, resources=path).execute()
    failed = {
        cell.id: output.ename
        for cell in notebook.cells
        for output in cell.outputs
        if output.output_type == "error"
    }
    assert failed.keys() >= ABOUT_THE_THRESHOLD
    assert {failed[name] for name in ABOUT_THE_THRESHOLD - {"check-c8"}} == {"ClaimError"}
