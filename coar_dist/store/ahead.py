"""Reading what comes next while what is there is being used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_T = TypeVar("_T")


def read_ahead(read: Callable[[_Item], _T], items: Iterable[_Item], num: int = 1) -> Iterator[_T]:
    """``read`` of every item, in order, the next ``num`` of them on their way in threads.

    Args:
        read: whatever it raises is raised where its result would come.
        items: what to read.
        num: results that are in memory beside the one in use, and threads.

    Example:
        >>> list(read_ahead(str, [1, 2, 3], 2))
        ['1', '2', '3']
    """
    coming = deque[Future[_T]]()
    with ThreadPoolExecutor(num, thread_name_prefix="reader") as pool:
        try:
            for item in items:
                coming.append(pool.submit(read, item))
                if len(coming) > num:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
