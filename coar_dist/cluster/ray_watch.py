"""Ray's own processes, watched: when one dies, Ray ends the calling process, and no line of Python runs then."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Protocol

import ray

from coar_dist.cluster.interruption import Interruption
from coar_dist.errors import ClusterError

_POLL_S = 0.5
_GRACE_S = 8.0
"""Ray itself ends the process some 12 s after its raylet has died, and 60 s after its control service has."""
_SERVICE_POLL_S = 2.0
_MISSED_CALLS = 3
"""After so many the control service of another's cluster counts as gone; it may come back."""
_TITLES = {"gcs_server": "Ray's control service, the process gcs_server,", "raylet": "Ray's node manager, the raylet,"}
_log = logging.getLogger(__name__)


class Process(Protocol):
    """What is asked of a process, as of ``subprocess.Popen``."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""


class RayWatch:
    """Notices within a second that a process of Ray has died, for the length of a ``with`` block.

    The run's log is told at once, and the work ends with a ``ClusterError`` where it may next be interrupted. Where
    that takes too long, because the calling thread waits for an answer that never comes, the process ends.

    Args:
        processes: of Ray, those that this process has started, by Ray's names.
        logs: the folder of Ray's logs.
        interruption: how the work is told.
        service: ``host:port`` of the control service of a cluster that others started, which may restart it: the log is
            told when it does not answer, and Ray ends the process if that lasts. Empty: there is none.
    """

    def __init__(
        self, processes: Mapping[str, Process], logs: str, interruption: Interruption, service: str = ""
    ) -> None:
        self._processes, self._logs, self._interruption = processes, logs, interruption
        self._service = service
        self._is_over = threading.Event()

    def __enter__(self) -> RayWatch:
        watch = self._watch if self._processes else self._watch_service if self._service else None
        if watch is not None:
            threading.Thread(target=watch, name="Ray's processes", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()

    def _watch(self) -> None:
        while not self._is_over.wait(_POLL_S):
            for name, process in self._processes.items():
                code = process.poll()
                if code is not None:
                    self._tell(died(name, code, self._logs))
                    return

    def _watch_service(self) -> None:
        host, _, port = self._service.rpartition(":")
        num_missed = 0
        while not self._is_over.wait(_SERVICE_POLL_S):
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=_SERVICE_POLL_S).close()
                num_missed = 0
            except OSError as error:
                num_missed += 1
                if num_missed == _MISSED_CALLS:
                    _log.error(
                        "Ray's control service at %s does not answer (%s): the head of the cluster is lost, or its "
                        "process gcs_server. If it is not back within a minute, Ray ends this command. What is "
                        "finished is kept; the same command continues on a cluster that runs.",
                        self._service,
                        error,
                    )

    def _tell(self, error: ClusterError) -> None:
        _log.error("%s", error)  # at once: what is written later may never be
        self._interruption.end_with(error)
        if not self._is_over.wait(_GRACE_S):
            print(f"ClusterError: {error}", file=sys.stderr, flush=True)
            os._exit(1)


def died(name: str, code: int, logs: str) -> ClusterError:
    """The error of a process of Ray that is gone.

    Args:
        name: Ray's, of the process.
        code: its exit code; of a signal, as a negative number.
        logs: the folder of Ray's logs.
    """
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    why = " A machine that runs out of memory does that: see `dmesg`." if code == -9 else ""
    return ClusterError(
        f"{_TITLES[name]} {how}, and without it nothing can go on.{why} Ray's own words are in {logs}/{name}.*. "
        f"What is finished is kept; the same command continues."
    )


def watched_by(interruption: Interruption) -> RayWatch:
    """The watch of the Ray that this process is connected to."""
    node = ray._private.worker._global_node
    if node is None:  # the address was ray://...
        return RayWatch({}, "", interruption)
    processes = {name: started[0].process for name, started in node.all_processes.items() if name in _TITLES}
    service = "" if processes else node.gcs_address
    return RayWatch(processes, node.get_logs_dir_path(), interruption, service)
