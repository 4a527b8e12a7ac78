"""What every actor has in common: its address, its log, its clock, and what it answers."""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import dataclass

import ray
import torch

from coar_dist.errors import ClusterError
from coar_dist.store.run_directory import RUN_FILE
from coar_dist.store.storage import Storage

_NUM_LOOKS, _BETWEEN_LOOKS_S = 10, 0.5  # network file systems may show a new file late


LogLines = tuple[tuple[int, str], ...]
"""Level and text of what the engine logged; the driver logs it again where the user sees it."""


@dataclass(frozen=True)
class RangeReport:
    """What an actor answers when a range's shard is written.

    Attributes:
        log: what was logged meanwhile.
        wait_s: seconds between the work before and this range.
        forward_s: seconds in making masks and in forward and backward passes.
        write_s: seconds in writing the shard.
        gpu_memory_bytes: most that tensors of the process have had so far on one GPU; None without a GPU.
    """

    log: LogLines
    wait_s: float
    forward_s: float
    write_s: float
    gpu_memory_bytes: int | None


class Laps:
    """A clock that says how long it is since it was last asked."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def seconds(self) -> float:
        """Since the last call, or since it was made."""
        before, self._at = self._at, time.perf_counter()
        return self._at - before


def gpu_memory_peak() -> int | None:
    """Most bytes that tensors of this process have had on one GPU; None without one."""
    if not torch.cuda.is_available():
        return None
    return max(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))


@dataclass(frozen=True)
class Address:
    """Where an actor runs.

    Attributes:
        host: for people.
        node_id: Ray's; empty without Ray.
    """

    host: str
    node_id: str


def own_address() -> Address:
    """Of this process."""
    node_id = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
    return Address(socket.gethostname(), node_id)


def require_visible(storage: Storage) -> None:
    """Check that this process sees the run directory that the driver has made.

    Raises:
        ClusterError: it does not, after some seconds.
    """
    for _ in range(_NUM_LOOKS):
        if storage.size(RUN_FILE) is not None:
            return
        time.sleep(_BETWEEN_LOOKS_S)
    raise ClusterError(
        f"node {socket.gethostname()} does not see {storage.where(RUN_FILE)}, which the driver has written: it has a "
        f"directory of its own there, or none. Set run.dir to a file system that all nodes share, or to an s3:// or "
        f"gs:// address."
    )


class LogCollector(logging.Handler):
    """Keeps what this package logs in an actor's process until the driver asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[tuple[int, str]] = []

    @classmethod
    def attached(cls) -> LogCollector:
        """A collector at work."""
        collector = cls()
        logger = logging.getLogger("coar_dist")
        logger.setLevel(logging.INFO)
        logger.addHandler(collector)
        return collector

    def emit(self, record: logging.LogRecord) -> None:
        """As in ``logging.Handler``."""
        self._lines.append((record.levelno, record.getMessage()))

    def drain(self) -> LogLines:
        """What was logged since the last call."""
        lines, self._lines = tuple(self._lines), []
        return lines
