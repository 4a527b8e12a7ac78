"""Which unit of work runs where: a state machine without Ray, so that it can be tested and simulated alone.

A unit is pending, running on one actor, or done. Units of a lost actor go back to the front; a unit that keeps
failing stops the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from coar_dist.errors import ClusterError, RangeFailedError


@dataclass(frozen=True)
class MaskRange:
    """Masks ``start .. stop - 1`` of a design: what one shard holds."""

    design_name: str
    start: int
    stop: int

    @property
    def num_masks(self) -> int:
        """Number of masks."""
        return self.stop - self.start

    def __str__(self) -> str:
        return f"masks {self.start}..{self.stop - 1} of design {self.design_name!r}"


def split_ranges(design_name: str, gaps: Iterable[tuple[int, int]], masks_per_shard: int) -> list[MaskRange]:
    """Cut missing ranges at the multiples of ``masks_per_shard``, so that the same shards arise in every run."""
    ranges = []
    for gap_start, gap_stop in gaps:
        start = gap_start
        while start < gap_stop:
            stop = min((start // masks_per_shard + 1) * masks_per_shard, gap_stop)
            ranges.append(MaskRange(design_name, start, stop))
            start = stop
    return ranges


Unit = TypeVar("Unit", bound=Hashable)


class Schedule(Generic[Unit]):
    """The state of all units.

    Args:
        units: what is to be done, in order.
        max_attempts: failures of one unit after which the run stops.
        max_losses: actors lost in a row, with no unit done in between, after which the run stops.
    """

    def __init__(self, units: Iterable[Unit], max_attempts: int, max_losses: int = 10) -> None:
        self._pending = deque(units)
        self._running: dict[Unit, str] = {}
        self._of_actor: dict[str, set[Unit]] = {}
        self._failed_on: dict[Unit, list[str]] = {}
        self._max_attempts = max_attempts
        self._max_losses = max_losses
        self._losses = 0
        self._num_left = len(self._pending)

    @property
    def is_done(self) -> bool:
        """Whether every unit is done."""
        return self._num_left == 0

    def num_running(self, actor: str) -> int:
        """Units in flight on ``actor``."""
        return len(self._of_actor.get(actor, ()))

    def next_for(self, actor: str, other_actors: bool) -> Unit | None:
        """Hand a pending unit to ``actor``; None where there is none for it.

        Args:
            actor: who asks.
            other_actors: whether there are others; if so, a unit that failed on ``actor`` is left to them.
        """
        for position, unit in enumerate(self._pending):
            if other_actors and actor in self._failed_on.get(unit, ()):
                continue
            del self._pending[position]
            self._running[unit] = actor
            self._of_actor.setdefault(actor, set()).add(unit)
            return unit
        return None

    def done(self, unit: Unit) -> None:
        """The unit's result is safe."""
        self._of_actor[self._running.pop(unit)].remove(unit)
        self._num_left -= 1
        self._losses = 0

    def failed(self, unit: Unit, error: BaseException) -> None:
        """The unit raised; it will be tried again.

        Raises:
            RangeFailedError: it failed ``max_attempts`` times.
        """
        actor = self._running.pop(unit)
        self._of_actor[actor].remove(unit)
        failed_on = self._failed_on.setdefault(unit, [])
        failed_on.append(actor)
        if len(failed_on) >= self._max_attempts:
            raise RangeFailedError(
                f"{unit} failed {len(failed_on)} times, on {', '.join(failed_on)}. The last error was:\n{error}"
            ) from error
        self._pending.appendleft(unit)

    def lost(self, actor: str, reason: str) -> None:
        """The actor is gone; its units go back to the front, in order.

        Raises:
            ClusterError: too many actors were lost in a row without any progress.
        """
        units = self._of_actor.pop(actor, set())
        for unit in units:
            del self._running[unit]
        self._pending.extendleft(sorted(units, key=str, reverse=True))
        self._losses += 1
        if self._losses >= self._max_losses:
            raise ClusterError(
                f"{self._losses} actors died in a row without finishing anything; the last one: {reason}. "
                f"Common causes are too little memory (lower ablation.examples_per_forward) and a broken GPU."
            )
