"""Which range of masks runs where: a state machine without Ray and without a clock, so that it can be tested and
simulated alone.

A range is pending, running (on one actor, or on two if the first is slow), or done; one that fails for good stops the
run. Every shard is a function of its range alone, so a range that is computed twice does no harm.

Measured (``python -m tests.benchmarks.scale``: 2 cores, AMD EPYC, one used) with 1,000 actors and 1,000,000 ranges:

| case | decisions/s | peak memory, Python included |
|---|---|---|
| nothing happens | 580,000 | 19 MB |
| 1,033 failures, 2,064 actors lost, 1 in 1,000 ranges slow | 550,000 | 19 MB |
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from coar_dist.errors import ClusterError, RangeFailedError

# A range is suspected of killing processes once so many died while they computed it.
_SUSPECT_AFTER = 3
# Losses in a row that are allowed for every actor: a thousand may go at once.
_LOSSES_PER_ACTOR = 2
# A range is slow when it is out for so many times the typical time, the median of the last ranges.
_SLOW_FACTOR = 2.0
_NUM_TIMES, _MIN_TIMES = 50, 5
_MAX_COPIES = 2
_LISTED = 5


@dataclass(frozen=True, order=True, slots=True)
class MaskRange:
    """Masks ``start .. stop - 1`` of a design, or examples of a baseline: what one shard holds."""

    design_name: str
    start: int
    stop: int
    unit: str = "masks"

    @property
    def num_masks(self) -> int:
        """Number of masks."""
        return self.stop - self.start

    def __str__(self) -> str:
        kind = "design" if self.unit == "masks" else "baseline"
        return f"{self.unit} {self.start}..{self.stop - 1} of {kind} {self.design_name!r}"


def default_masks_per_shard(num_examples: int) -> int:
    """Masks that make about 8,192 margins, 64 to 1,024: a function of the run alone, so that shards are the same."""
    return min(max(8192 // num_examples, 64), 1024)


def default_gradient_masks_per_shard(num_examples: int, masks_per_round: int) -> int:
    """Masks, in whole rounds of the design, that make about 16,384 margins of a block of so many examples.

    A gradient shard takes as much room as two attributions of its examples, however many masks it sums.
    """
    return max(16384 // num_examples // masks_per_round, 1) * masks_per_round


@dataclass(frozen=True)
class RangesToDo:
    """What is missing, cut at the multiples of ``masks_per_shard``, so that the same shards arise in every run.

    Ranges are made while they are asked for: a million of them takes no memory.

    Attributes:
        gaps: per design name the missing ranges (start, stop) of masks, in order.
        masks_per_shard: masks of a whole shard.
        masks_per_shard_of: the same for designs where it differs.
        unit: what is counted: ``masks`` of designs, or ``examples`` of baselines.
    """

    gaps: Mapping[str, Sequence[tuple[int, int]]]
    masks_per_shard: int
    masks_per_shard_of: Mapping[str, int] = field(default_factory=dict)
    unit: str = "masks"

    def _size(self, design_name: str) -> int:
        return self.masks_per_shard_of.get(design_name, self.masks_per_shard)

    def __len__(self) -> int:
        sized = ((self._size(name), start, stop) for name, gaps in self.gaps.items() for start, stop in gaps)
        return sum((stop - 1) // size - start // size + 1 for size, start, stop in sized)

    def __iter__(self) -> Iterator[MaskRange]:
        for design_name, gaps in self.gaps.items():
            size = self._size(design_name)
            for start, gap_stop in gaps:
                while start < gap_stop:
                    stop = min((start // size + 1) * size, gap_stop)
                    yield MaskRange(design_name, start, stop, self.unit)
                    start = stop

    @property
    def num_masks(self) -> int:
        """Masks of all ranges."""
        return sum(stop - start for gaps in self.gaps.values() for start, stop in gaps)


class Schedule:
    """The state of all ranges. The caller's clock is given to ``next_for`` and ``done`` as ``now``, in seconds.

    Args:
        ranges: what is to be done, in order.
        max_attempts: how often one range may raise before the run stops.
        max_losses: actors that may be lost in a row, with no range done in between, besides two for every actor.

    Attributes:
        num_done: ranges that are done.
        num_failed: attempts that raised.
        num_retried: ranges handed out again after a failure or a loss; copies of slow ones do not count.
        num_lost: actors that were lost.
    """

    def __init__(self, ranges: RangesToDo, max_attempts: int, max_losses: int = 10) -> None:
        self._fresh = iter(ranges)
        self._again: deque[MaskRange] = deque()  # came back; handed out before the fresh ones
        self._last: deque[MaskRange] = deque()  # suspects that came back; handed out when all others are done
        self._num_left = len(ranges)
        self._num_fresh = len(ranges)
        self._num_copies: dict[MaskRange, int] = {}  # of the running ranges
        self._single: OrderedDict[MaskRange, float] = OrderedDict()  # running once, since when; the oldest first
        self._in_flight: dict[str, dict[MaskRange, float]] = {}  # per actor, since when; the first one is executing
        self._nodes: dict[str, str] = {}
        self._failures: dict[MaskRange, list[tuple[str, str]]] = {}  # actor, node
        self._deaths: dict[MaskRange, list[str]] = {}
        self._suspects: set[MaskRange] = set()
        self._times: deque[float] = deque(maxlen=_NUM_TIMES)
        self._max_attempts = max_attempts
        self._max_losses = max_losses
        self._most_actors = 0
        self._num_losses = 0  # since a range was done
        self._num_suspect_losses = 0  # of these, while a suspect was computed
        self._last_losses: deque[str] = deque(maxlen=_LISTED)
        self.num_done = self.num_failed = self.num_retried = self.num_lost = 0

    @property
    def is_done(self) -> bool:
        """Whether every range is done."""
        return self._num_left == 0

    @property
    def num_left(self) -> int:
        """Ranges that are not done."""
        return self._num_left

    @property
    def num_pending(self) -> int:
        """Ranges that nobody computes at the moment."""
        return self._num_fresh + len(self._again) + len(self._last)

    def num_in_flight(self, actor: str) -> int:
        """Ranges handed to ``actor`` that it has not answered, those included that another has done meanwhile."""
        return len(self._in_flight[actor])

    def executing(self, actor: str) -> MaskRange | None:
        """What the actor computes at the moment; None where that is nothing, or has been done by another."""
        masks = next(iter(self._in_flight.get(actor, ())), None)
        return masks if masks in self._num_copies else None

    def is_running(self, masks: MaskRange) -> bool:
        """Whether some actor computes the range, and none has done it."""
        return masks in self._num_copies

    def joined(self, actor: str, node: str) -> None:
        """The actor's process runs, on ``node``; the node's name is for errors."""
        self._in_flight[actor] = {}
        self._nodes[actor] = node
        self._most_actors = max(self._most_actors, len(self._in_flight))

    def next_for(self, actor: str, now: float) -> MaskRange | None:
        """Hand a pending range, or where there is none a copy of a slow one, to ``actor``; None: nothing for it."""
        masks = self._take_pending(actor) or self._slow_range(actor, now)
        if masks is None:
            return None
        self._num_copies[masks] = self._num_copies.get(masks, 0) + 1
        if self._num_copies[masks] == 1:
            self._single[masks] = now
        elif self._num_copies[masks] == _MAX_COPIES:
            del self._single[masks]
        self._in_flight[actor][masks] = now
        return masks

    def _take_pending(self, actor: str) -> MaskRange | None:
        for position, masks in enumerate(self._again):
            if self._may_run(masks, actor):
                del self._again[position]
                self.num_retried += 1
                return masks
        masks_or_none = next(self._fresh, None)
        if masks_or_none is not None:
            self._num_fresh -= 1
        elif self._last and self._only_suspects_left:
            self.num_retried += 1
            return self._last.popleft()
        return masks_or_none

    def _may_run(self, masks: MaskRange, actor: str) -> bool:
        """A range that failed on an actor is left to others, where there are others on which it has not."""
        failed_on = {name for name, _ in self._failures.get(masks, ())}
        return actor not in failed_on or failed_on.issuperset(self._in_flight)

    def _slow_range(self, actor: str, now: float) -> MaskRange | None:
        if len(self._times) < _MIN_TIMES:
            return None
        slow_since = now - _SLOW_FACTOR * sorted(self._times)[len(self._times) // 2]
        for masks, since in self._single.items():
            if since >= slow_since:
                break
            if masks not in self._in_flight[actor] and self._may_run(masks, actor):
                return masks
        return None

    @property
    def _only_suspects_left(self) -> bool:
        return self._num_left == len(self._suspects)

    def done(self, masks: MaskRange, actor: str, now: float) -> bool:
        """The range's shard is safe.

        Returns:
            Whether this is the first result of the range: the one that counts.
        """
        since = self._in_flight[actor].pop(masks)
        if masks not in self._num_copies:
            return False
        del self._num_copies[masks]
        self._single.pop(masks, None)
        self._failures.pop(masks, None)
        self._deaths.pop(masks, None)
        self._suspects.discard(masks)
        self._num_left -= 1
        self.num_done += 1
        self._times.append(now - since)
        self._num_losses = self._num_suspect_losses = 0
        return True

    def failed(self, masks: MaskRange, actor: str, error: BaseException) -> None:
        """The range raised; it will be tried again.

        Raises:
            RangeFailedError: it failed ``max_attempts`` times.
        """
        del self._in_flight[actor][masks]
        if masks not in self._num_copies:
            return
        self.num_failed += 1
        failures = self._failures.setdefault(masks, [])
        failures.append((actor, self._nodes[actor]))
        if len(failures) >= self._max_attempts:
            where = ", ".join(f"{name} ({node})" for name, node in failures)
            raise RangeFailedError(
                f"{masks} failed {len(failures)} times, on {where}. The last error was:\n{error}"
            ) from error
        self._give_back(masks)

    def left(self, actor: str) -> None:
        """The actor is no more, for a reason that is no loss; its ranges go back to the front, in order."""
        self._nodes.pop(actor, None)
        for masks in reversed(self._in_flight.pop(actor, {})):
            if masks in self._num_copies:
                self._give_back(masks)

    def _give_back(self, masks: MaskRange) -> None:
        self._num_copies[masks] -= 1
        if self._num_copies[masks] > 0:  # it was slow enough for a copy, and is for another
            self._single[masks] = float("-inf")
            self._single.move_to_end(masks, last=False)
            return
        del self._num_copies[masks]
        del self._single[masks]
        if masks in self._suspects:
            self._last.append(masks)
        else:
            self._again.appendleft(masks)

    def lost(self, actor: str, cause: str, node_died: bool) -> None:
        """The actor's process is gone; its ranges go back to the front, a suspect one to the back.

        Raises:
            ClusterError: too many actors were lost without any progress.
        """
        executing = self.executing(actor)
        where = f"{actor} on {self._nodes[actor]}: {cause}" if actor in self._nodes else f"{actor}: {cause}"
        self._num_losses += 1
        self.num_lost += 1
        self._last_losses.append(f"{where} (at {executing or 'no range'})")
        if executing is not None and not node_died:
            deaths = self._deaths.setdefault(executing, [])
            deaths.append(where)
            if len(deaths) >= _SUSPECT_AFTER:
                self._suspects.add(executing)
                self._num_suspect_losses += 1
        self.left(actor)
        if self._only_suspects_left and self._num_suspect_losses >= self._max_losses:
            raise ClusterError(self._about_suspects())
        if self._num_losses > self._max_losses + _LOSSES_PER_ACTOR * self._most_actors:
            raise ClusterError(
                f"{self._num_losses} actors died in a row without finishing anything; the last ones:\n"
                + "\n".join(self._last_losses)
                + "\nCommon causes are too little memory (lower ablation.rows_per_forward) and a broken GPU."
            )

    def _about_suspects(self) -> str:
        lines = []
        for masks in sorted(self._suspects)[:_LISTED]:
            deaths = self._deaths[masks]
            more = f" (the last of {len(deaths)})" if len(deaths) > _LISTED else ""
            lines.append(f"{masks}: every actor that computed it died{more}: {'; '.join(deaths[-_LISTED:])}")
        if len(self._suspects) > _LISTED:
            lines.append(f"and {len(self._suspects) - _LISTED} ranges more")
        return "\n".join(
            [*lines, "All other ranges are done. A common cause is too little memory: lower ablation.rows_per_forward."]
        )
