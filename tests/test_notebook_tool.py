"""The notebook tool: one form on disk, and stored results that nbval really compares."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import notebooks

ROOT = Path(__file__).resolve().parent.parent
CHAPTER = ROOT / "book" / "quadratics.ipynb"


def code(identifier: str, source: str, *tags: str) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": identifier,
        "metadata": {"tags": list(tags)} if tags else {},
        "outputs": [],
        "source": notebooks.lines(source),
    }


def printed(text: str) -> dict[str, Any]:
    return {"name": "stdout", "output_type": "stream", "text": notebooks.lines(text)}


@pytest.fixture
def small() -> dict[str, Any]:
    """A notebook in canonical form, with one check cell."""
    check = code("check", 'print("check: ten below", limit)', notebooks.CHECK_TAG)
    check |= {"execution_count": 1, "outputs": [printed("check: ten below 20\n")]}
    prose = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": ["# η ≥ 2/λ"]}
    return {
        "cells": [prose, code("setup", "limit = 20\nlimit"), check],
        "metadata": {"kernelspec": dict(notebooks.KERNEL)},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


@pytest.fixture
def stored(small: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "small.ipynb"
    notebooks.write(path, small)
    return path


def saved_by_jupyter(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return a notebook as an editor leaves it: counts, outputs and metadata everywhere."""
    messy = copy.deepcopy(notebook)
    messy["metadata"] |= {"language_info": {"name": "python"}, "widgets": {"state": {}}}
    messy["metadata"]["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
    for count, cell in enumerate(messy["cells"], start=3):
        cell["metadata"] |= {"collapsed": False, "execution": {"iopub.status.busy": "now"}}
        cell["source"] = "".join(cell["source"])
        if cell["cell_type"] == "code":
            cell["execution_count"] = count
            image = {"data": {"image/png": "AAAA"}, "metadata": {}, "output_type": "display_data"}
            noise = {"name": "stderr", "output_type": "stream", "text": "warning"}
            cell["outputs"] += [noise, image]
    return messy


def nbval(path: Path) -> subprocess.CompletedProcess[str]:
    """Run nbval as `make test` does."""
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", str(path)]
    options = ["-p", "no:cacheprovider", "--rootdir", str(path.parent), "-c", os.devnull]
    return subprocess.run([*command, *options], capture_output=True, text=True, cwd=path.parent)


def edit(path: Path, change: Any) -> None:
    """Change the check cells of a stored notebook, leaving its form as it is."""
    notebook = notebooks.read(path)
    for cell in notebook["cells"]:
        if notebooks.is_check(cell):
            change(cell)
    notebooks.write(path, notebook)


def test_canonical_form_undoes_what_an_editor_adds(small: dict[str, Any]) -> None:
    assert notebooks.canonical(saved_by_jupyter(small)) == small


def test_canonical_form_is_stable_and_leaves_its_argument_alone(small: dict[str, Any]) -> None:
    messy = saved_by_jupyter(small)
    before = copy.deepcopy(messy)
    once = notebooks.canonical(messy)
    assert messy == before
    assert notebooks.canonical(once) == once


def test_neighbouring_prints_are_one_output() -> None:
    outputs = [printed("a"), printed("b\nc\n")]
    assert notebooks.text_outputs(outputs) == [printed("ab\nc\n")]


def test_a_shown_value_keeps_its_text() -> None:
    shown = {"data": {"text/plain": "3", "text/html": "<b>3</b>"}, "metadata": {"a": 1}}
    outputs = [{**shown, "output_type": "execute_result", "execution_count": 7}]
    (kept,) = notebooks.text_outputs(outputs)
    assert kept["data"] == {"text/plain": ["3"]}
    assert (kept["execution_count"], kept["metadata"]) == (1, {})


def test_file_is_deterministic_readable_and_ends_with_a_newline(stored: Path) -> None:
    content = stored.read_bytes()
    assert content.endswith(b"}\n") and b"\r" not in content
    assert "η ≥ 2/λ".encode() in content
    assert not notebooks.write(stored, notebooks.canonical(notebooks.read(stored)))
    assert stored.read_bytes() == content


def test_a_canonical_notebook_has_no_problems(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert notebooks.main(["verify", str(stored)]) == 0
    assert "1 in canonical form" in capsys.readouterr().out


def test_verify_names_the_cell_that_an_editor_changed(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = notebooks.read(stored)
    notebook["cells"][1]["execution_count"] = 4
    notebooks.write(stored, notebook)
    assert notebooks.main(["verify", str(stored)]) == 1
    seen = capsys.readouterr().out
    assert "cell setup" in seen and "execution_count" in seen and "cell check" not in seen


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda text: text.replace("\n", "\r\n"), "line ends"),
        (lambda text: text.rstrip("\n"), "spacing"),
        (lambda text: json.dumps(json.loads(text)), "spacing"),
        (lambda text: text.replace('"name": "python3"', '"name": "other"'), "metadata"),
        (lambda text: text.replace('"id": "setup",', ""), "no id"),
        (lambda text: text[:-9], "not readable"),
    ],
)
def test_verify_refuses_other_bytes(stored: Path, spoil: Any, expected: str) -> None:
    stored.write_bytes(spoil(stored.read_text(encoding="utf-8")).encode())
    assert any(expected in problem for problem in notebooks.problems(stored))


def stripped(cell: dict[str, Any]) -> None:
    cell.update(outputs=[], execution_count=None)


def emptied(cell: dict[str, Any]) -> None:
    cell.update(outputs=[])


def untagged(cell: dict[str, Any]) -> None:
    cell.update(metadata={}, outputs=[], execution_count=None)


def skipped(cell: dict[str, Any]) -> None:
    cell["metadata"]["tags"].append("nbval-skip")


def pointless(cell: dict[str, Any]) -> None:
    cell.update(source=["print(limit)"])


def failed(cell: dict[str, Any]) -> None:
    error = {"output_type": "error", "ename": "E", "evalue": "", "traceback": []}
    cell.update(outputs=[error])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (stripped, "without stored output"),
        (emptied, "without stored output"),
        (untagged, "no cell tagged"),
        (skipped, "switches off"),
        (pointless, "calls no check"),
        (failed, "is an error"),
    ],
)
def test_verify_refuses_a_chapter_that_would_check_nothing(
    stored: Path, change: Any, expected: str
) -> None:
    edit(stored, change)
    assert any(expected in problem for problem in notebooks.problems(stored))


@pytest.mark.slow
def test_executing_stores_the_canonical_form(stored: Path, small: dict[str, Any]) -> None:
    notebooks.write(stored, saved_by_jupyter(small))
    assert notebooks.main(["execute", str(stored)]) == 0
    assert stored.read_text(encoding="utf-8") == notebooks.serialised(small)


@pytest.mark.slow
def test_execution_happens_in_the_notebooks_folder_with_this_python(
    stored: Path, small: dict[str, Any]
) -> None:
    small["cells"][2]["source"] = ["import os, sys  # check\n", "print(os.getcwd(), sys.prefix)"]
    notebooks.write(stored, small)
    assert notebooks.main(["execute", str(stored)]) == 0
    text = notebooks.read(stored)["cells"][2]["outputs"][0]["text"]
    assert "".join(text).split() == [str(stored.parent), sys.prefix]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["1 / 0", "import os; os._exit(3)", "while True: pass"])
def test_a_failing_cell_fails_the_execution_and_leaves_the_file(
    stored: Path,
    small: dict[str, Any],
    source: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notebooks.executed, "__defaults__", (3,))
    small["cells"][1]["source"] = [source]
    notebooks.write(stored, small)
    before = stored.read_bytes()
    assert notebooks.main(["execute", str(stored)]) == 1
    assert str(stored) in capsys.readouterr().err
    assert stored.read_bytes() == before


@pytest.mark.slow
def test_nbval_passes_the_stored_form_and_fails_an_edited_result(stored: Path) -> None:
    passing = nbval(stored)
    assert passing.returncode == 0, passing.stdout

    edit(stored, lambda cell: cell["outputs"][0].update(text=["check: ten below 21\n"]))
    failing = nbval(stored)
    assert failing.returncode == 1, failing.stdout
    assert "ten below 21" in failing.stdout
    assert list(notebooks.problems(stored)) == []


@pytest.mark.slow
def test_nbval_alone_would_pass_a_stripped_notebook(stored: Path) -> None:
    """The reason for `verify`: a wrong check cell without stored output is not compared at all."""
    edit(stored, stripped)
    assert nbval(stored).returncode == 0
    assert notebooks.main(["verify", str(stored)]) == 1


@pytest.mark.slow
def test_an_edited_result_of_a_chapter_fails(tmp_path: Path) -> None:
    """A chapter's copy whose first check cell stores another result does not pass nbval.

    That the chapter itself passes is what `make test-notebooks` shows. The quickest one stands for
    all of them: `verify` sees to it that every check cell is stored in the form that is compared.
    """
    notebook = notebooks.read(CHAPTER)
    first = next(n for n, cell in enumerate(notebook["cells"]) if notebooks.is_check(cell))
    notebook["cells"] = notebook["cells"][: first + 1]
    output = notebook["cells"][first]["outputs"][0]
    output["text"] = [changed_digit("".join(output["text"]))]
    path = tmp_path / CHAPTER.name
    notebooks.write(path, notebook)
    result = nbval(path)
    assert result.returncode == 1, result.stdout
    assert "1 failed" in result.stdout, result.stdout


def changed_digit(text: str) -> str:
    """Return a text whose last digit, or else last letter, is another."""
    place = max((n for n, c in enumerate(text) if c.isdigit()), default=len(text.rstrip()) - 1)
    other = "7" if text[place] != "7" else "3"
    return text[:place] + other + text[place + 1 :]
