"""What the README says works: its code runs, its picture and files are there."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_examples_run_and_save_what_they_say(tmp_path, monkeypatch, capsys):
    mpl.use("Agg")
    one_line, training = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(one_line.strip().splitlines()) <= 6
    assert len(training.strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    exec(compile(one_line, "README.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0
    exec(compile(training, "README.md", "exec"), {})
    assert re.search(r"threshold 5\.0 \| sharpness \d", capsys.readouterr().out)
    assert {path.name for path in tmp_path.iterdir()} == {"run.npz", "run.png"}


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!http)[^)]+)\)|`(\w+\.(?:md|cff))`", README))
def test_files_it_names_exist(path):
    assert (ROOT / "".join(path)).is_file()
