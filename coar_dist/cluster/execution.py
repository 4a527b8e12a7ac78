"""How independent parts of a computation are run: here, or as tasks of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Execute = Callable[[Callable[[Any, Any], Any], Any, Sequence[Any]], Iterator[Any]]
"""``execute(function, shared, items)`` yields ``function(shared, item)`` for every item, in any order."""


def in_this_process(function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
    """One after the other, here."""
    return (function(shared, item) for item in items)
