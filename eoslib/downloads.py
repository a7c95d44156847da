"""Fetching a public file once, and knowing that it is the right one.

A file is known by its SHA-256, so any mirror will do: the mirrors are tried in turn, a transfer
that broke off is taken up where it stopped (by another mirror if need be, because the bytes are the
same), and a file counts as there only when its checksum is right. It is written under another name
until then, so nobody meets half a file. Processes that want the same file wait for each other.

The folder is the one that the environment variable ``EOSLIB_DATA`` names, otherwise the user's
cache. A file placed there by hand is as good as a downloaded one: see `RemoteFile.instructions`.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from eoslib.progress import ProgressBar

__all__ = [
    "DownloadError",
    "MissingDataError",
    "RemoteFile",
    "check_sha256",
    "data_folder",
    "fetch",
    "locate",
]

_BLOCK = 1 << 16
#: Bytes that an attempt must bring for the mirror to be asked on without end.
_WORTHWHILE = 1 << 20
_NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class MissingDataError(FileNotFoundError):
    """A data set is not on this machine; the message says which file belongs where."""


class DownloadError(MissingDataError):
    """A file could not be fetched; the message says what each mirror did, and what to do."""


@dataclass(frozen=True)
class RemoteFile:
    """A public file that never changes.

    Attributes:
        name: its name in the data folder.
        sha256: its SHA-256, in hexadecimal.
        size: its length in bytes, where it is known.
        mirrors: addresses it can be had from, the first to be tried first.
    """

    name: str
    sha256: str
    size: int | None
    mirrors: tuple[str, ...]

    def instructions(self, folder: Path) -> str:
        """What to do without a network: which file to put where."""
        size = f"{self.size:,} bytes, " if self.size else ""
        return (
            f"Get {self.name} ({size}SHA-256 {self.sha256}) in another way, for instance from "
            f"{self.mirrors[0]} on another machine, and put it at {folder / self.name}; "
            "or set EOSLIB_DATA to a folder that holds it"
        )


def data_folder() -> Path:
    """The folder that data sets are kept in; it need not exist.

    ``EOSLIB_DATA`` where that is set, otherwise ``eoslib`` in the user's cache: ``XDG_CACHE_HOME``
    (``~/.cache``), ``~/Library/Caches`` on macOS, ``LOCALAPPDATA`` on Windows.
    """
    if named := os.environ.get("EOSLIB_DATA"):
        return Path(named).expanduser()
    if sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        variable = "LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME"
        base = os.environ.get(variable) or "~/.cache"
    return Path(base).expanduser() / "eoslib"


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file that is not the one expected.

    Raises:
        ValueError: its SHA-256 is another.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged or another file: its SHA-256 is "
            f"{found}, expected {expected}. In the data folder, remove it and run again to fetch "
            "it anew; a file of your own must be the one that was published"
        )


def fetch(
    remote: RemoteFile,
    folder: Path | None = None,
    *,
    timeout: float = 30,
    attempts: int = 3,
    pause: float = 1,
    slow: float = 200e3,
    patience: float = 15,
) -> Path:
    """Return the path of a file in the data folder, downloading it if it is not there.

    A download shows a bar in Jupyter and a line on a terminal.

    Args:
        remote: what to fetch.
        folder: where to keep it; default `data_folder`.
        timeout: seconds without a single byte after which a connection is given up.
        attempts: how often a mirror may fail, not counting failures after a new megabyte.
        pause: seconds between two attempts at one mirror.
        slow: bytes per second below which, measured over ``patience`` seconds, a mirror is left
            for the next one. When all were slow or failed, the slow ones are taken as they are.
        patience: see ``slow``.

    Raises:
        ValueError: a file of that name is there already, and it is another file.
        DownloadError: no mirror delivered it, the disk is full, or the folder cannot be written
            to. What has been fetched stays beside the target, as ``name.part``, and the next call
            goes on from there; after a full disk it is removed.
    """
    folder = data_folder() if folder is None else folder
    target = folder / remote.name
    if target.exists():  # also in a folder that cannot be written to
        check_sha256(target, remote.sha256)
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder):
            if not target.exists():  # while this process waited, another may have fetched it
                speed = _Speed(slow, patience)
                _Transfer(remote, target, timeout, attempts, pause, speed).run()
    except DownloadError:
        raise
    except OSError as error:  # a file in the folder's place, no right to write, a dying disk
        raise DownloadError(
            f"cannot write to {folder}: {error}. Set EOSLIB_DATA to a folder you may write to. "
            + remote.instructions(folder)
        ) from error
    check_sha256(target, remote.sha256)
    return target


def locate(
    remote: RemoteFile, path: Path | None, find: Callable[[Path], Path | None], formats: str
) -> Path:
    """Where a data set is on this machine, downloading it if need be and if no path was named.

    Args:
        remote: what to download.
        path: a file, taken as it is, or a folder to search. Default: `data_folder`, and if nothing
            is there, the network.
        find: what a folder holds of the data set, or ``None``.
        formats: what `find` looks for, for the message.

    Raises:
        MissingDataError: there is nothing at ``path``, or it cannot be downloaded.
    """
    if path is None:
        folder = data_folder()
        found = find(folder) if folder.is_dir() else None
        return found or fetch(remote, folder)
    if not path.exists():
        raise MissingDataError(f"there is no {path}. {remote.instructions(data_folder())}")
    if not path.is_dir():
        return path
    if (found := find(path)) is None:
        raise MissingDataError(f"{path} holds {formats}. {remote.instructions(path)}")
    return found


@dataclass
class _Speed:
    """When a mirror counts as slow."""

    slow: float
    patience: float


class _MirrorError(Exception):
    """What was wrong with one attempt at one mirror.

    Attributes:
        final: whether there is no use in asking this mirror again.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class _TooSlowError(_MirrorError):
    """The mirror works, but the next one may be faster."""


class _Transfer:
    """One file on its way from its mirrors to its ``.part`` file and then to its place."""

    def __init__(
        self,
        remote: RemoteFile,
        target: Path,
        timeout: float,
        attempts: int,
        pause: float,
        speed: _Speed,
    ) -> None:
        self._remote, self._target = remote, target
        self._part = target.with_name(target.name + ".part")
        self._timeout, self._attempts, self._pause = timeout, attempts, pause
        self._speed = speed
        self._problems: list[str] = []

    def run(self) -> None:
        """Try the mirrors, then once more those that were only slow."""
        if self._size() >= (self._remote.size or 1):  # stopped just before it got its name?
            try:
                check_sha256(self._part, self._remote.sha256)
                self._part.replace(self._target)
            except ValueError:
                if self._remote.size is not None:  # else it may be the beginning
                    self._part.unlink()
        slow = [url for url in self._remote.mirrors if self._try(url, self._speed)]
        if not self._target.exists():
            for url in slow:
                self._try(url, None)
        if self._target.exists():
            return
        done = self._size()
        if not done:
            self._part.unlink(missing_ok=True)
        kept = f" ({done:,} bytes are kept, and the next try goes on from there)" if done else ""
        raise DownloadError(
            f"could not download {self._remote.name}{kept}:\n"
            + "".join(f"  {problem}\n" for problem in self._problems)
            + self._remote.instructions(self._target.parent)
        )

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _try(self, url: str, speed: _Speed | None) -> bool:
        """Fetch from one mirror until it is done or hopeless; tell whether it was too slow."""
        if self._target.exists():
            return False
        failures, furthest = 0, self._size()
        while failures < self._attempts:
            try:
                self._finish(resumed=self._receive(url, speed))
                return False
            except _MirrorError as error:
                reason = str(error)
                if isinstance(error, _TooSlowError):
                    self._problems.append(f"{url}: {reason}")
                    return True
                if error.final:
                    break
            done = self._size()
            failures = 0 if done >= furthest + _WORTHWHILE else failures + 1
            furthest = max(furthest, done)
            if failures < self._attempts:
                time.sleep(self._pause)
        self._problems.append(f"{url}: {reason}")
        return False

    def _finish(self, *, resumed: bool) -> None:
        """Give a complete file its name, if it is the right one."""
        try:
            check_sha256(self._part, self._remote.sha256)
        except ValueError as error:
            size = self._size()
            self._part.unlink()
            # If only the end came from this mirror, the beginning may be what is wrong.
            raise _MirrorError(
                f"sent {size:,} bytes with a wrong SHA-256", final=not resumed
            ) from error
        self._part.replace(self._target)

    def _receive(self, url: str, speed: _Speed | None) -> bool:
        """Append to the ``.part`` file what it lacks; tell whether it had something before."""
        start = self._size()
        with self._open(url, start) as response:
            if response.status != 206:  # the whole file, whatever was asked for
                start = 0
            total = self._announced_size(response, start)
            self._check_space((total or 0) - start)
            with self._part.open("ab" if start else "wb") as file:
                self._copy(response, file, start, total, speed)
                os.fsync(file.fileno())
        return start > 0

    def _open(self, url: str, start: int) -> Any:
        """Ask for the file, from byte ``start`` on."""
        headers = {"User-Agent": "eoslib", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            with self._network_errors():
                request = urllib.request.Request(url, headers=headers)
                return urllib.request.urlopen(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # it has no more than we have; then ours is not its file
                self._part.unlink(missing_ok=True)
            again = error.code in {408, 416, 429} or error.code >= 500
            raise _MirrorError(f"HTTP {error.code} {error.reason}", final=not again) from error

    @contextmanager
    def _network_errors(self) -> Iterator[None]:
        """Whatever a connection can raise, as a `_MirrorError`."""
        try:
            yield
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as error:
            raise _MirrorError(str(error.reason)) from error
        except http.client.HTTPException as error:
            raise _MirrorError(f"{type(error).__name__}: {error}") from error
        except TimeoutError as error:
            raise _MirrorError(f"no data for {self._timeout:g} seconds") from error
        except OSError as error:
            raise _MirrorError(f"the connection broke: {error}") from error

    def _announced_size(self, response: Any, start: int) -> int | None:
        """The length of the whole file as the server tells it, if it does."""
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdecimal() else None
        if response.status == 206:
            given = str(response.headers.get("Content-Range", "")).removeprefix("bytes ")
            if not given.startswith(f"{start}-"):
                self._part.unlink(missing_ok=True)
                raise _MirrorError(f"asked for the bytes from {start} on, it sent {given!r}")
        expected = self._remote.size
        if expected is not None and total is not None and total != expected:
            raise _MirrorError(
                f"offers a file of {total:,} bytes, expected {expected:,}", final=start == 0
            )
        return expected if total is None else total

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self._target.parent).free
        if free < needed:
            raise self._no_space(f"{needed:,} bytes are needed, {free:,} are free")

    def _no_space(self, how: str) -> DownloadError:
        return DownloadError(
            f"no space for {self._remote.name} in {self._target.parent}: {how}. Make room there, "
            "or set EOSLIB_DATA to a folder on a larger disk"
        )

    def _copy(
        self,
        response: Any,
        file: IO[bytes],
        done: int,
        total: int | None,
        speed: _Speed | None,
    ) -> None:
        began, first = time.monotonic(), done
        with _shown_progress(self._remote.name, total) as show:
            while True:
                with self._network_errors():
                    block = response.read1(_BLOCK)
                if not block:
                    break
                try:
                    file.write(block)
                    file.flush()
                except OSError as error:
                    if error.errno in _NO_SPACE:
                        self._part.unlink()
                        raise self._no_space(f"it ended after {done:,} bytes") from error
                    raise
                done += len(block)
                show(done)
                seconds = time.monotonic() - began
                if speed and seconds > speed.patience:
                    rate = (done - first) / seconds
                    if rate < speed.slow:
                        raise _TooSlowError(f"slow: {rate / 1e3:,.1f} kB/s")
                    began, first = time.monotonic(), done
        if total is not None and done != total:
            raise _MirrorError(f"closed the connection after {done:,} of {total:,} bytes")


@contextmanager
def _shown_progress(name: str, total: int | None) -> Iterator[Any]:
    """A function that shows how many bytes are there: a bar in Jupyter, a line on a terminal."""
    terminal = sys.stderr.isatty()
    shown_at = 0.0
    with ExitStack() as stack:
        bar = stack.enter_context(ProgressBar(total, f"downloading {name}")) if total else None

        def show(done: int) -> None:
            nonlocal shown_at
            if bar is not None:
                bar.update(done)
            if terminal and (time.monotonic() - shown_at > 0.2 or done == total):
                shown_at = time.monotonic()
                of = f" of {total / 1e6:,.1f}" if total else ""
                sys.stderr.write(f"\rdownloading {name}: {done / 1e6:,.1f}{of} MB")
                sys.stderr.flush()

        try:
            yield show
        finally:
            if terminal and shown_at:
                sys.stderr.write("\n")


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that one process downloads into it at a time.

    On Windows there is none: two downloads at once would spoil each other's ``.part`` file, which
    the checksum finds out.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if sys.stderr.isatty():
                    sys.stderr.write(f"waiting for another download into {folder}\n")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
