"""Writing one shard while the next range is computed, in the process of an actor."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from coar_dist.cluster.ranges import WorkRange


@dataclass(frozen=True)
class RangeReport:
    """Where an actor's time went, of a range whose shard is written.

    Attributes:
        wait_s: seconds for which nothing was computed before this range.
        forward_s: seconds of computing, forward and backward passes above all.
        write_s: seconds of writing the shard, while the next range was computed.
        gpu_memory_bytes: most that tensors of the process have had so far on one GPU; None without a GPU.
    """

    wait_s: float
    forward_s: float
    write_s: float
    gpu_memory_bytes: int | None


Written = tuple[tuple[WorkRange, RangeReport], ...]
"""Ranges whose shards are there, whole."""


class WriteError(Exception):
    """A shard could not be written; raised by a later call than that which computed it.

    Attributes:
        work_range: what the shard holds.
        error: why.
    """

    def __init__(self, work_range: WorkRange, error: Exception) -> None:
        super().__init__(work_range, error)
        self.work_range, self.error = work_range, error

    def __str__(self) -> str:
        return f"{self.work_range} could not be written: {self.error}"


class Writer:
    """Writes one shard at a time, in a thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._under_way: tuple[WorkRange, Future[RangeReport]] | None = None

    def begin(self, work_range: WorkRange, write: Callable[[], RangeReport]) -> None:
        """Begin to write a range's shard; the one before must be written."""
        assert self._under_way is None
        self._under_way = work_range, self._thread.submit(write)

    def written(self, wait: bool = True) -> Written:
        """What is written since the last call; without ``wait``, nothing while it is being written.

        Raises:
            WriteError: it could not be written.
        """
        if self._under_way is None or not (wait or self._under_way[1].done()):
            return ()
        (work_range, future), self._under_way = self._under_way, None
        try:
            return ((work_range, future.result()),)
        except Exception as error:  # whatever a file system raises
            raise WriteError(work_range, error) from error
