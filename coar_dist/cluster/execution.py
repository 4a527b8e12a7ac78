"""How independent parts of a computation are run: in this process, or as tasks on a cluster. Nothing here needs Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Execute = Callable[[Callable[[Any, Any], Any], Any, Sequence[Any]], Iterator[Any]]
"""``execute(function, shared, items)`` yields ``function(shared, item)`` for every item, in any order."""


def in_this_process(function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
    """An ``Execute`` that runs the items here, one after the other."""
    return (function(shared, item) for item in items)
