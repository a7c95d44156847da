"""The extension that executes the chapters of a build several at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_cache import get_cache  # type: ignore[import-untyped]
from nbformat.v4 import new_code_cell, new_notebook

from tests.extensions import load_extension

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


@pytest.fixture(scope="module")
def extension() -> Any:
    return load_extension("parallel_execution")


def notebook(path: Path, source: str) -> Path:
    nbformat.write(new_notebook(cells=[new_code_cell(source)], metadata=KERNEL), path)
    return path


def printed(cache: Any, path: Path) -> str:
    _, merged = cache.merge_match_into_notebook(nbformat.read(path, as_version=4))
    return str(merged.cells[0].outputs[0].text)


def test_what_is_missing_is_executed_at_the_same_time(
    extension: Any, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(extension.os, "cpu_count", lambda: 2)
    # Each waits for the file that the other writes, so one after another they would never end.
    wait = "import pathlib, time\npathlib.Path({mine!r}).touch()\n"
    wait += "while not pathlib.Path({other!r}).exists(): time.sleep(0.01)\nprint({mine!r})"
    paths = [
        notebook(tmp_path / "one.ipynb", wait.format(mine="1", other="2")),
        notebook(tmp_path / "two.ipynb", wait.format(mine="2", other="1")),
    ]
    cache = get_cache(tmp_path / "cache")
    extension.execute_into(cache, paths, timeout=60)
    assert [printed(cache, path) for path in paths] == ["1\n", "2\n"]
    assert all(record.data["execution_seconds"] > 0 for record in cache.list_cache_records())
    said = capsys.readouterr().err
    assert "executing 2 chapters, 2 at a time" in said
    assert "2 of 2" in said

    extension.execute_into(cache, paths, timeout=60)
    assert capsys.readouterr().err == ""


def test_kernels_share_the_cores(extension: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(extension.os, "cpu_count", lambda: 6)
    source = "import os\nprint(os.environ['OMP_NUM_THREADS'], {})"
    paths = [notebook(tmp_path / f"{k}.ipynb", source.format(k)) for k in range(2)]
    cache = get_cache(tmp_path / "cache")
    extension.execute_into(cache, paths, timeout=60)
    assert [printed(cache, path) for path in paths] == ["3 0\n", "3 1\n"]


def test_a_failing_notebook_is_not_cached_and_stops_no_other(
    extension: Any, tmp_path: Path, capsys: Any
) -> None:
    bad = notebook(tmp_path / "bad.ipynb", "raise ValueError('no')")
    good = notebook(tmp_path / "good.ipynb", "print('fine')")
    cache = get_cache(tmp_path / "cache")
    extension.execute_into(cache, [bad, good], timeout=60)
    assert printed(cache, good) == "fine\n"
    with pytest.raises(KeyError):
        cache.match_cache_notebook(nbformat.read(bad, as_version=4))
    assert "bad.ipynb failed" in capsys.readouterr().err
