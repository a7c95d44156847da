"""Progress: a bar for notebooks that leaves one quiet line in the built page, a line for terminals.

Other bars write to stderr, which the build treats as an error, or need a kernel to be drawn. This
one is a native ``<progress>`` element, updated in place; when done it is replaced by its label.
"""

from __future__ import annotations

import html
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TextIO, TypeVar

__all__ = ["ProgressBar", "ProgressLine", "duration_in_words", "progress"]

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


class ProgressLine:
    """How far a computation is and how long it will take, on stderr.

    In a terminal it is one line, written over; elsewhere (a log file, a cluster) a new line now and
    then.
    """

    def __init__(
        self, label: str, *, stream: TextIO | None = None, interval: float | None = None
    ) -> None:
        """Name the computation.

        Args:
            label: what is being done.
            stream: default: stderr.
            interval: seconds between two lines; default: half a second in a terminal, else 30.
        """
        self._label, self._stream = label, stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._interval = interval if interval is not None else 0.5 if self._terminal else 30.0
        self._began: tuple[float, float] | None = None
        self._shown_at = time.monotonic()
        self._width = 0

    @property
    def due(self) -> bool:
        """Whether the next `update` would be shown: ask before gathering what it says."""
        return self._began is None or time.monotonic() - self._shown_at >= self._interval

    def update(self, done: float, total: float, details: str = "") -> None:
        """Say how much is done; the rest is estimated from the pace since the first call."""
        now = time.monotonic()
        if self._began is None:
            self._began = (now, done)
            return
        if now - self._shown_at < self._interval:
            return
        self._shown_at = now
        since, first = self._began
        pace = (now - since) / (done - first) if done > first else None
        left = "" if pace is None else f", about {duration_in_words(pace * (total - done))} left"
        text = f"{self._label}: {done:,.0f} of {total:,.0f}{details}{left}"
        if self._terminal:
            room = shutil.get_terminal_size().columns - 1
            if len(text) > room:  # a wrapped line could not be overwritten; its end says most
                text = f"…{text[len(text) - room + 1 :]}"
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leave the line."""
        if self._terminal and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0


def duration_in_words(seconds: float) -> str:
    """A length of time to two digits or so: ``"40 s"``, ``"12 min"``, ``"3.5 h"``, ``"6 days"``."""
    for limit, unit, name in ((100, 1, "s"), (6000, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            amount = seconds / unit
            return f"{amount:.1f} {name}" if name == "h" and amount < 10 else f"{amount:.0f} {name}"
    return f"{seconds / 86_400:.0f} days"
