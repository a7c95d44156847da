"""A progress bar for notebooks that leaves one quiet line in the built page.

Other bars write to stderr, which the build treats as an error, or need a kernel to be drawn. This
one is a native ``<progress>`` element, updated in place; when done it is replaced by its label.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["ProgressBar", "progress"]

T = TypeVar("T")


class ProgressBar:
    """A bar that is shown in Jupyter and silent elsewhere.

    Use it as a context manager and call `update` with the work done so far.
    """

    def __init__(self, total: float, label: str) -> None:
        """``total``: the amount of work, > 0; ``label``: what is being done, plain text."""
        if not total > 0:
            raise ValueError(f"a progress bar needs a total above 0, got {total}")
        self._total, self._label = total, label
        self._shown_at = 0.0
        self._handle: Any = None

    def __enter__(self) -> ProgressBar:
        """Show the empty bar, where there is a notebook to show it in."""
        try:
            from IPython import get_ipython
            from IPython.display import HTML, display
        except ImportError:
            return self
        if get_ipython() is not None:
            self._handle = display(HTML(self._bar(0)), display_id=True)  # type: ignore[no-untyped-call]
        return self

    def update(self, done: float) -> None:
        """Say how much of the total is done; redrawn at most five times a second."""
        now = time.monotonic()
        if self._handle is not None and now - self._shown_at > 0.2:
            self._shown_at = now
            self._show(self._bar(done))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the label, and say so when the work was cut short."""
        if self._handle is not None:
            word = "done" if kind is None else "ended early"
            self._show(f"<small>{html.escape(self._label)}: {word}</small>")

    def _bar(self, done: float) -> str:
        share = min(max(done / self._total, 0), 1)
        label = html.escape(self._label)
        return (
            f'<label><small>{label}: {share:.0%}</small> <progress value="{share:.3f}" '
            'style="width: 16em; vertical-align: middle"></progress></label>'
        )

    def _show(self, text: str) -> None:
        from IPython.display import HTML

        self._handle.update(HTML(text))  # type: ignore[no-untyped-call]


def progress(items: Iterable[T], label: str) -> Iterator[T]:
    """Yield the items while a bar shows how many are done.

    Raises:
        ValueError: there are no items.
    """
    work = list(items)
    with ProgressBar(len(work), label) as bar:
        for done, item in enumerate(work):
            bar.update(done)
            yield item
