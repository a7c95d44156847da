"""Checkpoints: what a training run needs to go on after it was cut off.

A checkpoint holds the state at the beginning of a step: the point and the optimizer's state, what
the sharpness tracker remembers, the series so far. A run that goes on from it repeats, on the same
machine and versions, the bits that it would have had. (So tensors are stored with their strides:
a product with a transposed matrix may round otherwise.)

It is written beside its target and then renamed, so that a kill at any moment leaves the old one or
the new one. It is a file of `torch.save`, read with ``weights_only=True``: tensors, numbers, text,
lists and dictionaries, and nothing that would be executed. It also holds the *identity* of its
training, and no other training goes on from it: the settings that determine it, and digests of
what else it is made of, namely the examples, the types of the model's layers, its buffers and its
frozen parameters. (What no digest can tell: the code of a model, a loss or a measurement of one's
own was changed, but not its name.) A file written before there were digests (version 1) is taken by
its settings alone, with a warning, so that no training under way is lost.

    checkpoint = Checkpoint("run.checkpoint")
    with checkpoint.saving_on_signals():  # Ctrl-C ends the run after its next step, saved
        run = train(objective, rule, num_steps=100_000, checkpoint=checkpoint)
    run.save("run.npz")
    checkpoint.remove()
"""

from __future__ import annotations

import io
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from eoslib._arguments import a_number
from eoslib.runs import written_atomically

__all__ = ["Checkpoint", "CheckpointError"]

_FORMAT = "eoslib-checkpoint"
_VERSION = 3
#: Where an identity holds digests, by what they are of. Version 1 had none; in version 2 that of
#: the layers did not know their options.
DIGESTS = "digests"
LAYERS = "layers, buffers and frozen parameters"  # as `Objective.digests` calls them
#: Saving takes at most this share of the time.
_SHARE = 0.05


class CheckpointError(ValueError):
    """A checkpoint is not readable, or belongs to another training."""


class Checkpoint:
    """A file that one training run saves its state to, and goes on from.

    Attributes:
        path: the file.
        interval: seconds from one save to the next; more, where saving would take more than a
            twentieth of the time.
        stop_requested: whether the run is to save at the beginning of its next step, and end.
    """

    def __init__(self, path: str | os.PathLike[str], *, interval: float = 60.0) -> None:
        """Name the file, which need not exist.

        Raises:
            ValueError: the interval is negative or no number.
        """
        if not a_number("interval", interval, advice="; it is in seconds") >= 0:
            raise ValueError(f"interval is a number of seconds, at least 0, got {interval!r}")
        self.path = Path(path)
        self.interval = interval
        self.stop_requested = False
        self._next = time.monotonic() + interval

    def load(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """The state saved, tensors on the CPU; ``None`` if there is no file.

        Args:
            identity: settings that determine the training, plain JSON; under `DIGESTS`, those of
                its data and model.

        Raises:
            CheckpointError: the file is not readable, or of another training; the message says
                which settings differ, or that the data do.

        Warns:
            UserWarning: the file is of version 1, and the data could not be compared.
        """
        try:
            was, state, version = self._read()
        except FileNotFoundError:
            return None
        if version == 1:
            identity = {key: value for key, value in identity.items() if key != DIGESTS}
        if version == 2 and DIGESTS in identity and DIGESTS in was:
            layers = {LAYERS: was[DIGESTS].get(LAYERS)}
            identity = {**identity, DIGESTS: {**identity[DIGESTS], **layers}}
        if was != identity:
            raise CheckpointError(
                f"{self.path} belongs to another training ({_difference(was, identity)}); "
                "choose another file, or remove it to begin again"
            )
        if version == 1:
            warnings.warn(
                f"{self.path} was written by an earlier eoslib, which did not note the data: its "
                "settings are those of this training, but whether inputs and targets are could "
                "not be checked",
                stacklevel=2,
            )
        if version == 2:
            warnings.warn(
                f"{self.path} was written by an earlier eoslib: whether layers, buffers and frozen "
                "parameters are those of this training could not be checked",
                stacklevel=2,
            )
        return dict(state)

    def identity(self) -> dict[str, Any]:
        """Of which training the file holds the state.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the file is not readable.
        """
        return dict(self._read()[0])

    def _read(self) -> tuple[dict[str, Any], dict[str, Any], int]:
        """Identity, state and version."""
        try:
            stored = torch.load(self.path, map_location="cpu", weights_only=True)
            if stored["format"] != _FORMAT or stored["version"] not in range(1, _VERSION + 1):
                raise ValueError(f"format {stored['format']} {stored['version']}")
            return stored["identity"], stored["state"], stored["version"]
        except FileNotFoundError:
            raise
        except Exception as error:  # torch.load raises what the damaged bytes lead it to
            raise CheckpointError(
                f"{self.path} is not a readable checkpoint of this eoslib "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
                "remove it to begin again"
            ) from error

    def offer(self, identity: Mapping[str, Any], state: Callable[[], Mapping[str, Any]]) -> None:
        """Called at the beginning of every step: save the state if it is time to.

        Raises:
            KeyboardInterrupt: a stop was requested; the state is saved.
        """
        if not self.stop_requested and time.monotonic() < self._next:
            return
        started = time.monotonic()
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "identity": identity,
            "state": moved(state(), torch.device("cpu")),
        }
        written = io.BytesIO()  # torch.save would hide that a disk is full
        torch.save(content, written)
        try:
            written_atomically(self.path, lambda file: file.write(written.getbuffer()))
        except OSError as error:
            raise OSError(
                f"the checkpoint {self.path} cannot be written ({error}); the one before is as it "
                "was. Make room, and give the same command again: it goes on from there"
            ) from error
        now = time.monotonic()
        self._next = now + max(self.interval, (now - started) / _SHARE if self.interval else 0)
        if self.stop_requested:
            self.stop_requested = False  # heard; whoever goes on with this object may
            raise KeyboardInterrupt(f"stopped on request; {self.path} holds the state")

    def remove(self) -> None:
        """Delete the file, if there is one: the run it belongs to is safely stored."""
        self.path.unlink(missing_ok=True)

    @contextmanager
    def saving_on_signals(self, note: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Within, the first SIGINT or SIGTERM requests a stop; a second acts as it always does.

        Outside the main thread, where Python allows no signal handlers, this does nothing.

        Args:
            note: told, in words for a person, that the signal was heard.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def heard(number: int, frame: FrameType | None) -> None:
            self.stop_requested = True
            signal.signal(number, before[signal.Signals(number)])
            note("stopping: the state is saved at the end of this step; once more stops at once")

        try:
            for number in before:
                signal.signal(number, heard)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def moved(value: Any, device: torch.device) -> Any:
    """Copy nested dictionaries and lists with their tensors on a device, strides as they are."""
    if isinstance(value, Tensor):
        return value.detach().to(device)
    if isinstance(value, Mapping):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(item, device) for item in value)
    return value


def _difference(was: Any, asked: Any, where: str = "") -> str:
    """The first place where two settings differ, in words; digests say least, so they come last."""
    if isinstance(was, dict) and isinstance(asked, dict):
        for key in sorted(was.keys() | asked.keys(), key=lambda key: (key == DIGESTS, str(key))):
            if was.get(key, math.nan) != asked.get(key, math.nan):
                return _difference(was.get(key), asked.get(key), f"{where}.{key}".strip("."))
    if isinstance(was, list) and isinstance(asked, list) and len(was) == len(asked):
        for index, (old, new) in enumerate(zip(was, asked, strict=True)):
            if old != new:
                return _difference(old, new, f"{where}[{index}]")
    if where.startswith(f"{DIGESTS}."):
        what = where.removeprefix(f"{DIGESTS}.")
        return f"the {what} are not the same: their digest was {was}, now {asked}"
    return f"{where} was {was!r}, now {asked!r}"
