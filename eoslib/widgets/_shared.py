"""What the book's widgets share on the Python side.

Their programs and style sheets are each joined into one text, their numbers travel in one block of
float32, and what a reader asks the kernel to compute runs in the background, one thing at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eoslib import palette

_HERE = Path(__file__).parent
FLOAT32_MAX = float(np.finfo(np.float32).max)

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+\.js)";\n', flags=re.MULTILINE)

T = TypeVar("T")

#: The palette by theme, for the front ends: the stops of the step-size map, and colours by name.
COLORS: dict[str, dict[str, Any]] = {
    theme: {
        "stops": list(palette.STOPS[theme]),
        "accent": palette.ACCENT[theme],
        "ink": palette.INK[theme],
        "muted": palette.MUTED[theme],
        **palette.STATE_COLORS[theme],
    }
    for theme in palette.STOPS
}


class Progress(Protocol):
    """What a computation tells of itself while it runs; `eoslib.Snapshot` is one."""

    @property
    def step(self) -> int:
        """Steps done."""

    @property
    def num_steps(self) -> int:
        """Steps to do."""


def front_end(name: str) -> tuple[str, str]:
    """Return the program and the style sheet of a widget, those that all widgets share included.

    A page opened as a file may import nothing, so what `<name>.js` imports from files beside it
    stands before it in one text, each file once.

    Args:
        name: of `<name>.js`, and of `<name>.css`, which adds to `common.css`.
    """
    texts: dict[str, str] = {}

    def add(file: str) -> None:
        if file in texts:
            return
        text = _read(file)
        for imported in re.findall(_IMPORT, text):
            add(imported)
        texts[file] = re.sub(_IMPORT, "", text)

    add(f"{name}.js")
    *shared, own = texts.values()
    shared = [re.sub(r"^export ", "", text, flags=re.MULTILINE) for text in shared]
    return "\n".join([*shared, own]), f"{_read('common.css')}\n{_read(f'{name}.css')}"


def _read(file: str) -> str:
    return (_HERE / file).read_text(encoding="utf-8")


class NumberBlock:
    """Numbers on their way to a front end: little-endian float32, equal arrays stored once."""

    def __init__(self) -> None:
        """An empty block."""
        self._blocks: list[bytes] = []
        self._places: dict[bytes, int] = {}
        self._size = 0

    def append(self, numbers: ArrayLike) -> int:
        """Add numbers; return the position of the first one.

        Numbers beyond float32, infinity included, become its largest: a diverging run has such
        numbers, and they lie beyond the edge of any plot. NaN stays NaN.
        """
        wide = np.asarray(numbers, dtype=np.float64)
        block = np.clip(wide, -FLOAT32_MAX, FLOAT32_MAX).astype("<f4").tobytes()
        if block not in self._places:
            self._places[block] = self._size
            self._blocks.append(block)
            self._size += len(block) // 4
        return self._places[block]

    def append_grid(self, numbers: NDArray[Any], name: str) -> dict[str, int | float]:
        """Add numbers that are likely to be evenly spaced, such as steps: those need no room.

        Returns:
            `first` and `every` where number i is exactly `first + i * every`, else the position
            under `name`.
        """
        if not len(numbers):
            return {"first": 0, "every": 1}
        first = numbers[0].item()
        every = (numbers[1] - numbers[0]).item() if len(numbers) > 1 else 1
        if np.array_equal(numbers, first + every * np.arange(len(numbers))):
            return {"first": first, "every": every}
        return {name: self.append(numbers)}

    def to_bytes(self) -> bytes:
        """Return all numbers, in the order in which they were added."""
        return b"".join(self._blocks)


class BackgroundTask:
    """One computation at a time in a background thread, which is asked to stop, never killed.

    Attributes:
        busy: whether a computation is in progress.
        error: the exception that ended the most recent one, if one did.
        later: calls a function in the event loop of whoever started the computation; that loop
            also handles the messages of the page, so nothing is changed from two sides at once.
            Where there is no loop, the function is called at once.
    """

    def __init__(self) -> None:
        """A task that has nothing to do."""
        self.busy = False
        self.error: BaseException | None = None
        self._lock = threading.Lock()
        self._please_stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._reported_at = 0.0
        self.later = _in_loop()

    def start(
        self,
        work: Callable[[], T],
        *,
        before: Callable[[], None],
        done: Callable[[T], None],
        failed: Callable[[BaseException], None],
    ) -> bool:
        """Do `work` in the background, unless something is being done already.

        Args:
            work: runs in the thread.
            before: called at once, before the thread starts.
            done: gets what `work` returned; called by way of `later`.
            failed: gets the exception that `work` raised, whatever it is; called likewise.

        Returns:
            Whether the work was started.
        """
        with self._lock:
            if self.busy:
                return False
            self.busy = True
            self._please_stop.clear()
            self.error = None
            self._reported_at = 0.0
            self.later = _in_loop()

            def run() -> None:
                try:
                    result = work()
                except BaseException as error:  # a page that waits must hear of it
                    self.error = problem = error
                    self.busy = False
                    self.later(lambda: failed(problem))
                else:
                    self.busy = False
                    self.later(lambda: done(result))

            # ipykernel keeps in context variables which cell a message belongs to
            context = contextvars.copy_context()
            self._thread = threading.Thread(target=context.run, args=(run,), daemon=True)
            before()
            self._thread.start()
        return True

    def report_due(self, interval: float) -> bool:
        """Whether the last True of this method is at least `interval` seconds ago."""
        now = time.monotonic()
        if now - self._reported_at < interval:
            return False
        self._reported_at = now
        return True

    @property
    def stopping(self) -> bool:
        """Whether somebody has asked the computation in progress to stop."""
        return self._please_stop.is_set()

    def stop(self) -> None:
        """Ask the computation in progress to stop; it does so at its next report."""
        if self.busy:
            self._please_stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is in progress, at most `timeout` seconds; return whether it is so."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()


def describe_error(error: BaseException) -> str:
    """Return what an exception says, after its kind."""
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _in_loop() -> Callable[[Callable[[], None]], None]:
    """Return a way to call functions in the event loop that runs now; without one, at once."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return lambda function: function()
    context = contextvars.copy_context()

    def later(function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is left to tell
            loop.call_soon_threadsafe(function, context=context)

    return later
