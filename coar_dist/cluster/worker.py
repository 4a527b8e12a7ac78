"""What every actor does, whatever it computes: it says where it runs, collects its log and times its work."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import override

from coar_dist.cluster.ranges import WorkRange
from coar_dist.cluster.shared_value import unpacked
from coar_dist.cluster.visibility import require_run_directory
from coar_dist.cluster.writing import RangeReport, Writer, Written
from coar_dist.store.storage import Storage

LogLines = tuple[tuple[int, str], ...]
"""Level and text of what an actor logged; the driver logs it again where the user sees it."""


@dataclass(frozen=True)
class Address:
    """Where an actor runs.

    Attributes:
        host: for people.
        node_id: Ray's; empty without Ray.
    """

    host: str
    node_id: str


@dataclass(frozen=True)
class StartReport:
    """What an actor answers to ``start``; subclasses add what else it finds out.

    Attributes:
        plan: the plan that every actor is to use.
        log: what was logged meanwhile.
        seconds_per_unit: of a range, about; None where that is not known.
    """

    plan: Any
    log: LogLines
    seconds_per_unit: float | None


@dataclass(frozen=True)
class Answer:
    """What an actor answers to ``run`` and ``flush``.

    Attributes:
        log: what was logged meanwhile.
        written: the ranges whose shards have been written since the last answer.
    """

    log: LogLines
    written: Written


class Worker:
    """Base class of actors: a plain class, so that it can be tested without Ray.

    The driver calls ``address`` and ``setup``; then, if the work has a plan, ``start`` on one actor where that is
    needed and ``use`` on all others; then ``run`` for every range, and ``flush`` when there is none for now. A subclass
    implements what these call: ``prepare``, and as far as its work has a plan and ranges, ``choose``, ``adopt`` and
    ``compute``.

    Attributes:
        overlaps: whether a shard is written while the next range is computed; else it is written when ``run`` returns.
    """

    overlaps = True

    def address(self, storage: Storage | None) -> Address:
        """Where the actor runs; answered as soon as it has started.

        Args:
            storage: the run directory that it must see; None where it writes nothing.

        Raises:
            ClusterError: it does not see the run directory.
        """
        if storage is not None:
            require_run_directory(storage)
        return Address(socket.gethostname(), _node_id())

    def setup(self, task: Any, job: Any, num_threads: int) -> None:
        """Get ready for work on ``num_threads`` threads.

        Raises:
            NotOnThisNodeError: the model or the examples cannot be had on this node, and are to be sent.
        """
        torch.set_num_threads(num_threads)
        self.log = LogCollector.attached()
        self.prepare(unpacked(task), unpacked(job))
        self._writer = Writer()
        self._laps = Laps()

    def start(self, request: Any, num_actors: int, plan: Any) -> StartReport:
        """Find out what all actors need to know."""
        report = self.choose(request, num_actors, plan)
        self._laps = Laps()
        return report

    def use(self, plan: Any) -> float | None:
        """Take over the plan that another actor chose; returns what ``adopt`` does."""
        seconds_per_unit = self.adopt(plan)
        self._laps = Laps()
        return seconds_per_unit

    def run(self, work_range: WorkRange) -> Answer:
        """Compute a range and begin to write its shard, when the one before is written.

        Raises:
            WriteError: the one before could not be written.
        """
        wait_s = self._laps.seconds()
        written = self._writer.written(wait=False)  # an error is told before a range is computed in vain
        write = self.compute(work_range)
        forward_s = self._laps.seconds()

        def report() -> RangeReport:
            writing = Laps()
            write()
            return RangeReport(wait_s, forward_s, writing.seconds(), _gpu_memory_peak())

        if not self.overlaps:
            written = ((work_range, report()),)
            self._laps = Laps()
            return Answer(self.log.drain(), written)
        written += self._writer.written()
        self._writer.begin(work_range, report)
        return Answer(self.log.drain(), written)

    def flush(self) -> Answer:
        """Wait until the last shard is written.

        Raises:
            WriteError: it could not be.
        """
        return Answer(self.log.drain(), self._writer.written())

    def prepare(self, task: Any, job: Any) -> None:
        """Build what the other methods need."""
        raise NotImplementedError

    def choose(self, request: Any, num_actors: int, plan: Any) -> StartReport:
        """Choose the plan, and find out what else the work asks for.

        Args:
            request: what ``SharedPlan`` has.
            num_actors: how many actors will share the work.
            plan: the plan to use; None: choose one.
        """
        raise NotImplementedError

    def adopt(self, plan: Any) -> float | None:
        """Compute by this plan from now on.

        Returns:
            About the seconds of a unit of a range; None where that is not known.
        """
        raise NotImplementedError

    def compute(self, work_range: WorkRange) -> Callable[[], None]:
        """Compute a range; what is returned writes its shard."""
        raise NotImplementedError


class Laps:
    """A clock that says how long it is since it was last asked."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def seconds(self) -> float:
        """Seconds since the last call; since the clock was made, the first time."""
        before, self._at = self._at, time.perf_counter()
        return self._at - before


class LogCollector(logging.Handler):
    """Keeps what this package logs in an actor's process until the driver asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[tuple[int, str]] = []

    @classmethod
    def attached(cls) -> LogCollector:
        """A collector that the package's loggers write to."""
        collector = cls()
        logger = logging.getLogger("coar_dist")
        logger.setLevel(logging.INFO)
        logger.addHandler(collector)
        return collector

    def detach(self) -> None:
        """What is logged from now on is not kept."""
        logging.getLogger("coar_dist").removeHandler(self)

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append((record.levelno, record.getMessage()))

    def drain(self) -> LogLines:
        """What was logged since the last call."""
        assert self.lock is not None
        with self.lock:  # the thread that writes logs, too
            lines, self._lines = tuple(self._lines), []
        return lines


def _node_id() -> str:
    """Ray's id of this node; empty without Ray, which takes seconds to load."""
    ray: Any = sys.modules.get("ray")
    return ray.get_runtime_context().get_node_id() if ray is not None and ray.is_initialized() else ""


def _gpu_memory_peak() -> int | None:
    """Most bytes that tensors of this process have had on one GPU; None without one."""
    if not torch.cuda.is_available():
        return None
    return max(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
