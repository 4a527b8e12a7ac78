"""The parts of one computation, run as tasks on workers that may be lost. Nothing here needs Ray.

A part is a function of its item alone, so one that is lost half-way is simply run again.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from coar_dist.cluster.actors import Loss
from coar_dist.errors import ClusterError, counted

_WAIT_S = 0.5
# A part is blamed once so many processes died while they ran it; the death of a node is not the part's fault.
_MAX_DEATHS = 4
# Losses in a row, with no part finished in between: some, and two for every task that runs at once.
_MAX_LOSSES, _LOSSES_PER_TASK = 10, 2


@dataclass(frozen=True)
class Started:
    """The first answer of a task: a worker runs it."""


@dataclass(frozen=True)
class Result:
    """The last answer of a task: what its part gives."""

    value: Any


class Tasks(ABC):
    """Tasks of one computation, wherever they run. A task answers ``Started``, then ``Result``, or at any time
    ``Loss``."""

    @abstractmethod
    def num_wanted(self, num_left: int) -> int:
        """Tasks to have out at once while ``num_left`` parts are not done; at least 1."""

    @abstractmethod
    def submit(self, item: Any) -> Any:
        """Ask for a part; the task's handle, hashable."""

    @abstractmethod
    def answers(self, tasks: Sequence[Any], wait_s: float) -> Iterator[tuple[Any, Started | Result | Loss]]:
        """Answers of these tasks that are there: one at least, or none within ``wait_s`` seconds.

        Raises:
            Exception: what a part raised.
        """

    @abstractmethod
    def cancel(self, task: Any) -> None:
        """Stop a task, whether it has started or not."""

    @abstractmethod
    def check(self) -> None:
        """Raise KeyboardInterrupt where the user wants to stop."""

    @abstractmethod
    def nothing_runs(self, last_loss: str) -> ClusterError:
        """The error where no task has run for ``start_timeout_s``; ``last_loss`` is why one was lost, or empty."""


def run_parts(tasks: Tasks, items: Sequence[Any], start_timeout_s: float, way_out: str) -> Iterator[Any]:
    """What every part gives, as it comes; a part whose worker is lost goes to the back and is run again.

    Args:
        tasks: run the parts.
        items: one per part.
        start_timeout_s: how long no task may run while parts are left.
        way_out: what to do where workers die of a part; ends the error.

    Raises:
        ClusterError: no task has run for ``start_timeout_s``, or workers keep dying.
        Exception: what a part raised.
    """
    waiting = deque(range(len(items)))
    out: dict[Any, int] = {}  # tasks, and the part of each
    started: set[Any] = set()
    deaths: Counter[int] = Counter()
    num_losses = most_out = 0
    last_loss = ""
    ran_at = time.monotonic()
    try:
        while waiting or out:
            num_wanted = tasks.num_wanted(len(waiting) + len(out))
            while waiting and len(out) < num_wanted:
                part = waiting.popleft()
                out[tasks.submit(items[part])] = part
            most_out = max(most_out, len(out))
            for task, answer in tasks.answers(list(out), _WAIT_S):
                if isinstance(answer, Started):
                    started.add(task)
                    continue
                part = out.pop(task)
                started.discard(task)
                if isinstance(answer, Result):
                    num_losses = 0
                    yield answer.value
                    ran_at = time.monotonic()  # whoever takes the values may take long
                    continue
                last_loss = answer.cause
                waiting.append(part)
                num_losses += 1
                deaths[part] += not answer.node_died
                if deaths[part] >= _MAX_DEATHS:
                    raise ClusterError(f"a worker was lost {_MAX_DEATHS} times at the same part: {last_loss} {way_out}")
                if num_losses > _MAX_LOSSES + _LOSSES_PER_TASK * most_out:
                    raise ClusterError(
                        f"{counted(num_losses, 'worker')} were lost in a row without finishing anything; the last one: "
                        f"{last_loss} {way_out}"
                    )
            tasks.check()
            now = time.monotonic()
            if started:
                ran_at = now
            elif now - ran_at > start_timeout_s:
                raise tasks.nothing_runs(last_loss)
    finally:
        for task in out:  # else they would write to a run that nobody holds any more
            tasks.cancel(task)
