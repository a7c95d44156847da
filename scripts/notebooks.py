"""Execute notebooks, and store them so that differences are small and stored results are checked.

On disk a chapter keeps the output of its *check cells* only, those tagged `nbval-check-output`, and
of that only the text. nbval runs every cell and compares exactly those outputs; everything else
appears when the book is built. The exact rules matter: for a cell with outputs but no execution
count nbval reports an error, and for a cell with neither it compares nothing, check cell or not.

    python scripts/notebooks.py execute   book/*.ipynb   # run, then store in canonical form
    python scripts/notebooks.py canonical book/*.ipynb   # store in canonical form without running
    python scripts/notebooks.py verify    book/*.ipynb   # say what is not as it should be
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CHECK_TAG = "nbval-check-output"
UNCHECKED_TAGS = ("nbval-ignore-output", "nbval-skip", "skip-execution")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
CELL_METADATA = ("mystnb", "tags")
CELL_TIMEOUT = 600  # seconds

Notebook = dict[str, Any]
Cell = dict[str, Any]


class NotebookError(Exception):
    """A notebook that cannot be read, run or put into canonical form."""


def read(path: Path) -> Notebook:
    """Read a notebook as plain JSON.

    Raises:
        NotebookError: If it is not a notebook of format 4.5 or later, whose cells have ids.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        version = (notebook["nbformat"], notebook["nbformat_minor"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotebookError(f"{path}: not readable as a notebook: {error!r}") from error
    if version < (4, 5) or version >= (5, 0):
        raise NotebookError(f"{path}: notebook format {version}, expected (4, 5) or later")
    for number, cell in enumerate(notebook["cells"]):
        if not cell.get("id"):
            raise NotebookError(f"{path}: cell {number} has no id")
    return dict(notebook)


def lines(text: str | Sequence[str]) -> list[str]:
    """Return text as the list of lines, with their ends, that the notebook format stores."""
    return (text if isinstance(text, str) else "".join(text)).splitlines(keepends=True)


def is_check(cell: Cell) -> bool:
    """Return whether nbval compares the output of this cell."""
    return cell["cell_type"] == "code" and CHECK_TAG in cell["metadata"].get("tags", [])


def canonical(notebook: Notebook) -> Notebook:
    """Return the notebook in canonical form; the argument is left as it is.

    Code cells lose their outputs and counts, except check cells, which keep the text of their
    outputs and the constant count 1. Of the metadata, the kernel's name, the cells' tags and what
    MyST reads remain.
    """
    result = {
        "cells": [canonical_cell(cell) for cell in notebook["cells"]],
        "metadata": {"kernelspec": dict(KERNEL)},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return copy.deepcopy(result)


def canonical_cell(cell: Cell) -> Cell:
    """Return one cell in canonical form."""
    metadata = {key: cell["metadata"][key] for key in CELL_METADATA if cell["metadata"].get(key)}
    result = {**cell, "metadata": metadata, "source": lines(cell["source"])}
    if cell["cell_type"] == "code":
        checked = is_check(cell)
        result["outputs"] = text_outputs(cell["outputs"]) if checked else []
        result["execution_count"] = 1 if checked else None
    return result


def text_outputs(outputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was printed and the text form of what was shown, in order.

    An error is kept, so that `verify` finds it.
    """
    kept: list[dict[str, Any]] = []
    for output in outputs:
        kind = output["output_type"]
        if kind == "error":
            kept.append(output)
        elif kind == "stream" and output["name"] == "stdout":
            text = lines(output["text"])
            if kept and kept[-1]["output_type"] == "stream":
                text = lines("".join(kept.pop()["text"] + text))
            kept.append({"name": "stdout", "output_type": "stream", "text": text})
        elif "text/plain" in output.get("data", {}):
            shown: dict[str, Any] = {
                "data": {"text/plain": lines(output["data"]["text/plain"])},
                "metadata": {},
                "output_type": kind,
            }
            if kind == "execute_result":
                shown["execution_count"] = 1
            kept.append(shown)
    return kept


def serialised(notebook: Notebook) -> str:
    """Return the one text that stands for this notebook on disk."""
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def write(path: Path, notebook: Notebook) -> bool:
    """Store a notebook, at once or not at all; return whether the file changed."""
    content = serialised(notebook).encode()
    if path.is_file() and path.read_bytes() == content:
        return False
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(content)
    partial.replace(path)
    return True


def executed(path: Path, timeout: int = CELL_TIMEOUT) -> Notebook:
    """Run a notebook from top to bottom in a new kernel, in the notebook's own folder.

    Args:
        path: The notebook.
        timeout: Seconds that one cell may take.

    Returns:
        The notebook with all its outputs, not yet in canonical form.

    Raises:
        NotebookError: If a cell fails or takes too long; the file has not been touched.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = nbformat.reads(serialised(canonical(read(path))), as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name=KERNEL["name"],
        resources={"metadata": {"path": str(path.resolve().parent)}},
        store_widget_state=False,
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise NotebookError(f"{path}: {error}") from error
    return dict(json.loads(nbformat.writes(notebook)))


def problems(path: Path) -> Iterator[str]:
    """Yield one sentence for everything that is wrong with a stored chapter."""
    try:
        notebook = read(path)
    except NotebookError as error:
        yield str(error)
        return
    expected = canonical(notebook)

    for cell, wanted in zip(notebook["cells"], expected["cells"], strict=True):
        where = f"{path}: cell {cell['id']}"
        keys = sorted(k for k in {*cell, *wanted} if cell.get(k) != wanted.get(k))
        if keys:
            yield f"{where} is not in canonical form ({', '.join(keys)}); `make format` mends it"
        if is_check(wanted):
            yield from check_problems(where, wanted)
    if notebook["metadata"] != expected["metadata"]:
        yield f"{path}: metadata beside the kernel's name; `make format` mends it"
    elif path.read_bytes() != serialised(notebook).encode():
        yield f"{path}: the order, the spacing or the line ends differ; `make format` mends it"
    if not any(is_check(cell) for cell in expected["cells"]):
        yield f"{path}: no cell tagged {CHECK_TAG}, so nbval would compare nothing"


def check_problems(where: str, cell: Cell) -> Iterator[str]:
    """Yield what keeps a check cell from checking anything."""
    printed = "".join(
        "".join(output.get("text") or output.get("data", {}).get("text/plain", []))
        for output in cell["outputs"]
    )
    if any(output["output_type"] == "error" for output in cell["outputs"]):
        yield f"{where} is a check cell whose stored output is an error"
    elif not printed.strip():
        yield f"{where} is a check cell without stored output: nbval would compare nothing"
    if not re.search(r"\bcheck", "".join(cell["source"])):
        yield f"{where} is tagged {CHECK_TAG} but calls no check"
    for tag in sorted(set(UNCHECKED_TAGS) & set(cell["metadata"]["tags"])):
        yield f"{where} is a check cell that its tag {tag} switches off"


def execute_command(paths: Sequence[Path]) -> int:
    """Run each notebook and store it in canonical form."""
    for path in paths:
        started = time.perf_counter()
        changed = write(path, canonical(executed(path)))
        seconds = time.perf_counter() - started
        print(f"{path}: {'stored' if changed else 'unchanged'}, {seconds:.0f} s", flush=True)
    return 0


def canonical_command(paths: Sequence[Path]) -> int:
    """Store each notebook in canonical form, without running it."""
    for path in paths:
        if write(path, canonical(read(path))):
            print(f"{path}: stored in canonical form")
    return 0


def verify_command(paths: Sequence[Path]) -> int:
    """Say what is wrong with the notebooks; return 1 if anything is."""
    found = [problem for path in paths for problem in problems(path)]
    print("\n".join(found or [f"{len(paths)} in canonical form"]))
    return 1 if found else 0


COMMANDS = {
    "execute": execute_command,
    "canonical": canonical_command,
    "verify": verify_command,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("notebooks", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    try:
        return COMMANDS[options.command](options.notebooks)
    except NotebookError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
