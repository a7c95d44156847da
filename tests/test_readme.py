"""What the README says works: its code runs, its picture and files are there."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_and_saves_what_it_says(tmp_path, monkeypatch, capsys):
    mpl.use("Agg")
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert re.search(r"threshold 5\.0 \| sharpness \d", capsys.readouterr().out)
    assert {path.name for path in tmp_path.iterdir()} == {"run.npz", "run.png"}


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!http)[^)]+)\)|`(\w+\.(?:md|cff))`", README))
def test_files_it_names_exist(path):
    assert (ROOT / "".join(path)).is_file()
