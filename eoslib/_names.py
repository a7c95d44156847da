"""Looking a name up, and saying which names are near when it is not there."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


def look_up(table: Mapping[str, T], name: str, kind: str) -> T:
    """Return ``table[name]``.

    Raises:
        ValueError: there is no such name; the message suggests the near ones and lists all.
    """
    if name in table:
        return table[name]
    near = get_close_matches(str(name).lower(), table, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"unknown {kind} {name!r}; {hint}known: {', '.join(sorted(table))}")
