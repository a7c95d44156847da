"""Fingerprints of the files that a build depends on.

A notebook says nothing about the code it imports, so a cache keyed by the notebook alone would keep
showing the numbers of yesterday's library. The book's build puts `execution_fingerprint` into the
cache's path and `page_fingerprint` into the Sphinx configuration (`book/_ext/offline_book.py`).

    python scripts/fingerprint.py            # both, one per line
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: What the result of running a chapter depends on, beside the chapter itself. (The page on costs
#: shows the records of the benchmark by the benchmark's own code; others show stored runs.)
EXECUTION_INPUTS = ("eoslib", "benchmarks", "runs", "requirements.txt")

#: What the look of every page depends on, beside the page itself.
PAGE_INPUTS = ("book/_ext", "_config.yml", "_toc.yml", "runs/index.json")


def files_below(path: Path) -> Iterator[Path]:
    """Yield the files at or below `path`, without caches and hidden files."""
    if path.is_file():
        yield path
        return
    for entry in sorted(path.iterdir()):
        if not entry.name.startswith((".", "__pycache__")):
            yield from files_below(entry)


def fingerprint(inputs: Iterable[str], root: Path = ROOT, extra: str = "") -> str:
    """Return 12 hexadecimal digits that change with the name or content of any input file.

    Args:
        inputs: Files and folders, relative to `root`, with forward slashes.
        root: The top of the repository.
        extra: Anything else that the result depends on.

    Raises:
        FileNotFoundError: If an input does not exist.
    """
    digest = hashlib.sha256(extra.encode())
    for name in inputs:
        for path in files_below(root / name):
            content = path.read_bytes()
            digest.update(f"\n{path.relative_to(root).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:12]


def execution_fingerprint(root: Path = ROOT) -> str:
    """Return the fingerprint of everything an executed chapter depends on beside itself."""
    return fingerprint(EXECUTION_INPUTS, root, extra=f"Python {sys.version_info[:2]}")


def page_fingerprint(root: Path = ROOT) -> str:
    """Return the fingerprint of everything a written page depends on beside its source."""
    return fingerprint(PAGE_INPUTS, root)


if __name__ == "__main__":
    print(f"execution {execution_fingerprint()}\npages {page_fingerprint()}")
