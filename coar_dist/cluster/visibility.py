"""Whether the driver and the nodes see the same run directory."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from coar_dist.cluster.ranges import WorkRange
from coar_dist.errors import ClusterError, StorageError
from coar_dist.store.record import RUN_FILE
from coar_dist.store.shards import ShardFolder
from coar_dist.store.storage import Storage

_NUM_LOOKS, _BETWEEN_LOOKS_S = 10, 0.5  # network file systems may show a new file late
_WAY_OUT = "Set run.dir to a file system that all nodes share, or to an s3:// or gs:// address."


def require_run_directory(storage: Storage) -> None:
    """Check, on a node, that this process sees the run directory that the driver has made.

    Raises:
        ClusterError: it does not, after some seconds.
    """
    if not _appears(lambda: storage.size(RUN_FILE) is not None):
        raise ClusterError(
            f"node {socket.gethostname()} does not see {storage.where(RUN_FILE)}, which the driver has written: it has "
            f"a directory of its own there, or none. {_WAY_OUT}"
        )


def require_shard(store: ShardFolder, work_range: WorkRange, host: str, on_wait: Callable[[], None]) -> None:
    """Check, in the driver, that this process sees the shard that a node has written.

    Args:
        store: of the shard.
        work_range: what it holds.
        host: the node, for the error.
        on_wait: called between two looks.

    Raises:
        StorageError: it does not, after some seconds.
    """
    start, stop = work_range.start, work_range.stop
    if not _appears(lambda: store.has(start, stop), on_wait):
        raise StorageError(
            f"node {host} computed {work_range}, but {store.storage.where(store.file(start, stop))} is not there for "
            f"the driver: the node wrote to a directory of its own. {_WAY_OUT}"
        )


def _appears(is_there: Callable[[], bool], on_wait: Callable[[], None] = lambda: None) -> bool:
    for _ in range(_NUM_LOOKS):
        if is_there():
            return True
        on_wait()
        time.sleep(_BETWEEN_LOOKS_S)
    return False
