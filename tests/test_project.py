"""The project around the code: what is where, what is pinned, and what the commands do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml

from scripts import fingerprint

ROOT = Path(__file__).resolve().parent.parent
PINS = dict(
    line.split("==")
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

TOP = """.ci/run .gitattributes .gitignore CITATION.cff CONTRIBUTING.md LICENSE LICENSE-prose.md
    Makefile README.md _config.yml _toc.yml book/_ext/offline_book.py book/references.bib
    eoslib/__init__.py eoslib/py.typed pyproject.toml requirements.txt"""

# Written in two parts, so that this file does not name them either.
OUTSIDE_HOSTS = re.compile(
    "|".join(["cdn.js" + "delivr", "unp" + "kg.com", "cdn" + "js.", "fonts.google" + "apis"])
)


def canonical_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL"}}
    command = ["make", *arguments, *(f"{key}={value}" for key, value in variables.items())]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", TOP.split())
def test_top_level_is_there(name: str) -> None:
    assert (ROOT / name).is_file()


# ---- requirements.txt ------------------------------------------------------------------------


def test_every_requirement_is_one_exact_public_version() -> None:
    names = [canonical_name(name) for name in PINS]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in PINS.values())


def test_requirements_name_no_place_to_download_from() -> None:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert not re.search(r"^\s*-|://|@ ", text, flags=re.MULTILINE)


def test_requirements_leave_torch_alone() -> None:
    """Nothing pinned may bring another torch, nor stand in the way of the one with CUDA."""
    assert PINS["torch"] == "2.13.0"
    forbidden = ("torchvision", "torchaudio", "nvidia-", "triton", "cuda-")
    assert not [name for name in PINS if canonical_name(name).startswith(forbidden)]


def test_environment_holds_one_torch_and_what_is_pinned() -> None:
    installed = [(canonical_name(d.metadata["Name"]), d.version) for d in distributions()]
    torches = [version for name, version in installed if name == "torch"]
    assert len(torches) == 1
    assert not [name for name, _ in installed if name in {"torchvision", "torchaudio"}]
    versions = {name: version.partition("+")[0] for name, version in installed}
    other = {n: v for n, v in PINS.items() if versions.get(canonical_name(n), v) != v}
    assert other == {}


def test_every_direct_dependency_is_pinned() -> None:
    listed = PROJECT["project"]["dependencies"]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        listed = listed + extra
    names = {canonical_name(re.split(r"[\[<>=]", entry)[0]) for entry in listed} - {"eoslib"}
    assert names <= {canonical_name(name) for name in PINS}


# ---- Makefile and .ci/run --------------------------------------------------------------------


@pytest.mark.parametrize("target", ["book", "test", "lab", "clean", "notebooks", "format"])
def test_target_exists_and_is_documented(target: str) -> None:
    assert make("--dry-run", target).returncode == 0
    assert f"make {target} " in make("help").stdout


def test_no_recipe_hides_a_failure() -> None:
    assert ".SHELLFLAGS := -eu -o pipefail -c" in MAKEFILE
    recipes = [line for line in MAKEFILE.splitlines() if line.startswith("\t")]
    assert not [line for line in recipes if re.match(r"\t@?-", line) or "|| true" in line]


def test_the_book_is_built_with_warnings_as_errors() -> None:
    commands = make("--dry-run", "book").stdout
    assert "--warningiserror" in commands and "--nitpick" in commands


def test_a_missing_python_is_named() -> None:
    result = make("environment", PYTHON="no-such-python")
    assert result.returncode != 0
    assert "no-such-python" in result.stderr and "3.11" in result.stderr


def test_an_old_python_is_refused_before_anything_else(tmp_path: Path) -> None:
    script = (ROOT / "scripts" / "environment.py").read_text(encoding="utf-8")
    pretended = script.replace("MINIMUM = (3, 11)", "MINIMUM = (9, 9)")
    (tmp_path / "environment.py").write_text(pretended, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "environment.py")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "needs Python 9.9" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["environment.py"]


def test_ci_does_what_make_test_does() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    assert text.rstrip().splitlines()[-1] == "make test"
    subprocess.run(["bash", "-n", str(script)], check=True)


# ---- settings of the book --------------------------------------------------------------------


def test_bibliography_and_toc_name_files_that_exist() -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert all((ROOT / name).is_file() for name in config["bibtex_bibfiles"])
    assert config["execute"]["execute_notebooks"] == "cache"
    assert not config["execute"].get("allow_errors")
    assert not config["sphinx"]["config"].get("suppress_warnings")


def test_code_and_settings_name_no_outside_host() -> None:
    suffixes = {".py", ".js", ".css", ".yml", ".ipynb", ".toml", ".html"}
    folders = [ROOT / name for name in ("book", "eoslib", "scripts", "tests", ".ci")]
    paths = [path for folder in folders for path in folder.rglob("*")] + list(ROOT.iterdir())
    named = [
        str(path.relative_to(ROOT))
        for path in paths
        if path.suffix in suffixes and OUTSIDE_HOSTS.search(path.read_text(encoding="utf-8"))
    ]
    assert named == []


# ---- README ----------------------------------------------------------------------------------


def test_every_command_of_the_readme_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^\$?\s*make ([a-z-]+)", readme, flags=re.MULTILINE))
    targets |= set(re.findall(r"`make ([a-z-]+)`", readme))
    assert "book" in targets
    missing = [target for target in targets if not re.search(rf"^{target}:", MAKEFILE, re.M)]
    assert missing == []


def test_every_local_link_of_the_readme_leads_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / target).exists(), f"{name} links to {target}"


# ---- fingerprint -----------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small copy of what the fingerprint reads."""
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    package = tmp_path / "eoslib" / "widgets"
    package.mkdir(parents=True)
    for name in ("a.py", "a.js", "a.css", "a.npz"):
        (package / name).write_text("1")
    records = tmp_path / "benchmarks" / "results"
    records.mkdir(parents=True)
    (records / "a.json").write_text("1")
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "a.npz").write_text("1")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "requirements.txt",
        "benchmarks/results/a.json",
        "runs/a/a.npz",
        *(f"eoslib/widgets/a.{e}" for e in ("py", "js", "css", "npz")),
    ],
)
def test_fingerprint_changes_with_every_input(tree: Path, name: str) -> None:
    before = fingerprint.execution_fingerprint(tree)
    (tree / name).write_text("2")
    assert fingerprint.execution_fingerprint(tree) != before


def test_fingerprint_changes_with_names_and_with_new_files(tree: Path) -> None:
    seen = {fingerprint.execution_fingerprint(tree)}
    (tree / "eoslib" / "b.py").write_text("")
    seen.add(fingerprint.execution_fingerprint(tree))
    (tree / "eoslib" / "b.py").rename(tree / "eoslib" / "c.py")
    seen.add(fingerprint.execution_fingerprint(tree))
    assert len(seen) == 3


def test_fingerprint_ignores_what_running_leaves_behind(tree: Path) -> None:
    before = fingerprint.execution_fingerprint(tree)
    (tree / "eoslib" / "__pycache__").mkdir()
    (tree / "eoslib" / "__pycache__" / "a.pyc").write_bytes(b"0")
    (tree / "eoslib" / ".DS_Store").write_bytes(b"0")
    (tree / "eoslib" / "widgets" / "a.py").touch()
    assert fingerprint.execution_fingerprint(tree) == before


def test_fingerprint_of_a_missing_input_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fingerprint.execution_fingerprint(tmp_path)
