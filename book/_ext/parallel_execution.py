"""Sphinx extension: executes the chapters of a build several at a time.

myst-nb executes a notebook when Sphinx comes to read it, one after another, each on one core. So
before Sphinx reads, this extension executes those that the execution cache does not have, as many
at a time as there are cores, and puts the results into the cache, where myst-nb finds them. A
notebook that fails is left to myst-nb, which executes it once more and reports the failure as it
always does.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from jupyter_cache import get_cache  # type: ignore[import-untyped]
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract  # type: ignore[import-untyped]
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

#: At most so many kernels: one with torch takes half a gigabyte or more.
MOST_AT_A_TIME = 8


def execute(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Execute those notebooks among the pages to be read that have no result in the cache."""
    if app.config.nb_execution_mode != "cache":
        return
    cache = get_cache(app.config.nb_execution_cache_path)
    paths = [path for name in docnames if (path := Path(env.doc2path(name))).suffix == ".ipynb"]
    execute_into(cache, paths, timeout=app.config.nb_execution_timeout)


def execute_into(cache: JupyterCacheAbstract, paths: Sequence[Path], timeout: int) -> None:
    """Execute notebooks in their folders, several at a time, and cache those that succeed."""
    notebooks = {path: nbformat.read(path, as_version=4) for path in paths}
    missing = {path: nb for path, nb in notebooks.items() if not _is_cached(cache, nb)}
    if missing:
        asyncio.run(_execute_all(cache, missing, timeout))


async def _execute_all(
    cache: JupyterCacheAbstract, notebooks: Mapping[Path, NotebookNode], timeout: int
) -> None:
    cores = os.cpu_count() or 1
    at_a_time = min(len(notebooks), cores, MOST_AT_A_TIME)
    # Two kernels that use both of two cores wait for each other most of the time.
    environment = {"OMP_NUM_THREADS": str(cores // at_a_time), **os.environ}
    _say(f"executing {len(notebooks)} chapters, {at_a_time} at a time")
    free = asyncio.Semaphore(at_a_time)
    done = 0

    async def execute_one(path: Path, notebook: NotebookNode) -> None:
        nonlocal done
        async with free:
            start = time.perf_counter()
            client = NotebookClient(
                notebook,
                timeout=timeout,
                record_timing=False,  # it would be part of what the cache knows a notebook by
                resources={"metadata": {"path": str(path.parent)}},
            )
            try:
                await client.async_execute(env=environment)
                succeeded = True
            except (CellExecutionError, CellTimeoutError):
                succeeded = False
            seconds = time.perf_counter() - start
        if succeeded:
            bundle = CacheBundleIn(notebook, str(path), data={"execution_seconds": seconds})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
        done += 1
        outcome = "in" if succeeded else "failed after"
        _say(f"  {done} of {len(notebooks)}: {path.name} {outcome} {seconds:.0f} s")

    await asyncio.gather(*(execute_one(path, one) for path, one in notebooks.items()))


def _is_cached(cache: JupyterCacheAbstract, notebook: NotebookNode) -> bool:
    try:
        cache.match_cache_notebook(notebook)
    except KeyError:
        return False
    return True


def _say(words: str) -> None:
    """A build that is told to be quiet says this all the same: it may take minutes."""
    print(words, file=sys.stderr, flush=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the extension to the events of a build."""
    app.connect("env-before-read-docs", execute)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
