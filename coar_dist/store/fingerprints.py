"""Fingerprints of attributions that many tables are made from: each is read once, of all its example blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class KnownFingerprints:
    """What is known of the attributions of one run, by method, while many tables are read.

    Args:
        remembers: whether it is taken to hold until all of them are; else every table's is read again.
    """

    def __init__(self, remembers: bool = False) -> None:
        self._remembers = remembers
        self._known: dict[str, str] = {}

    def of(self, method: str, read: Callable[[], str]) -> str:
        """The fingerprint of a method's attributions, as known, or else as ``read`` gives it."""
        if not self._remembers:
            return read()
        if method not in self._known:
            self._known[method] = read()
        return self._known[method]

    def tried(self, read: Callable[[], _T | None]) -> _T | None:
        """What ``read`` finds; nothing where fingerprints differ, and then once more with those of now."""
        found = read()
        if found is None and self._known:
            self._known.clear()
            found = read()
        return found
