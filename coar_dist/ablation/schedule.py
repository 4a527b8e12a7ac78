"""Which range of masks runs where: a state machine without Ray, so that it can be tested and simulated alone.

A range is pending, running on one actor, or done. Ranges of a lost actor go back to the front; a range that keeps
failing stops the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from coar_dist.errors import ClusterError, RangeFailedError


@dataclass(frozen=True, order=True)
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


def default_masks_per_shard(num_examples: int) -> int:
    """Masks that make about 8,192 margins, 64 to 1,024: a function of the run alone, so that shards are the same."""
    return min(max(8192 // num_examples, 64), 1024)


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


class Schedule:
    """The state of all ranges.

    Args:
        ranges: what is to be done, in order.
        max_attempts: failures of one range after which the run stops.
        max_losses: actors lost in a row, with no range done in between, after which the run stops.
    """

    def __init__(self, ranges: Iterable[MaskRange], max_attempts: int, max_losses: int = 10) -> None:
        self._pending = deque(ranges)
        self._of_actor: dict[str, set[MaskRange]] = {}
        self._failed_on: dict[MaskRange, list[str]] = {}
        self._max_attempts = max_attempts
        self._max_losses = max_losses
        self._losses = 0
        self._num_left = len(self._pending)

    @property
    def is_done(self) -> bool:
        """Whether every range is done."""
        return self._num_left == 0

    def num_running(self, actor: str) -> int:
        """Ranges in flight on ``actor``."""
        return len(self._of_actor.get(actor, ()))

    def next_for(self, actor: str, other_actors: bool) -> MaskRange | None:
        """Hand a pending range to ``actor``; None where there is none for it.

        Args:
            actor: who asks.
            other_actors: whether there are others; if so, a range that failed on ``actor`` is left to them.
        """
        for position, masks in enumerate(self._pending):
            if other_actors and actor in self._failed_on.get(masks, ()):
                continue
            del self._pending[position]
            self._of_actor.setdefault(actor, set()).add(masks)
            return masks
        return None

    def done(self, masks: MaskRange, actor: str) -> None:
        """The range's shard is safe."""
        self._of_actor[actor].remove(masks)
        self._num_left -= 1
        self._losses = 0

    def failed(self, masks: MaskRange, actor: str, error: BaseException) -> None:
        """The range raised; it will be tried again.

        Raises:
            RangeFailedError: it failed ``max_attempts`` times.
        """
        self._of_actor[actor].remove(masks)
        failed_on = self._failed_on.setdefault(masks, [])
        failed_on.append(actor)
        if len(failed_on) >= self._max_attempts:
            raise RangeFailedError(
                f"{masks} failed {len(failed_on)} times, on {', '.join(failed_on)}. The last error was:\n{error}"
            ) from error
        self._pending.appendleft(masks)

    def lost(self, actor: str, reason: str) -> None:
        """The actor is gone; its ranges go back to the front, in order.

        Raises:
            ClusterError: too many actors were lost in a row without any progress.
        """
        ranges = self._of_actor.pop(actor, set())
        self._pending.extendleft(sorted(ranges, reverse=True))
        self._losses += 1
        if self._losses >= self._max_losses:
            raise ClusterError(
                f"{self._losses} actors died in a row without finishing anything; the last one: {reason}. "
                f"Common causes are too little memory (lower ablation.rows_per_forward) and a broken GPU."
            )
