"""Which range runs where: a state machine without Ray and without a clock, so that it can be tested and simulated
alone.

A range is pending, running (on one actor, or on two if the first is slow), or done; one that fails for good stops the
run. What runs is first computed, then written, while its actor computes the next one. Every shard is a function of its
range alone, so a range that is computed twice does no harm.

Measured (``python -m tests.benchmarks.scale``: 2 cores, AMD EPYC, one used) with 1,000 actors and 1,000,000 ranges:

| case | decisions/s | peak memory, Python included |
|---|---|---|
| nothing happens | 580,000 | 19 MB |
| 1,033 failures, 2,064 actors lost, 1 in 1,000 ranges slow | 550,000 | 19 MB |
"""

from __future__ import annotations

from collections import OrderedDict, deque

from coar_dist.cluster.pace import Pace
from coar_dist.cluster.ranges import RangesToDo, WorkRange
from coar_dist.errors import ClusterError, RangeFailedError, counted

# A range is suspected of killing processes once so many died while they computed it.
_SUSPECT_AFTER = 3
# Losses in a row that are allowed for every actor: a thousand may go at once.
_LOSSES_PER_ACTOR = 2
# A range is slow when it is out for so many times the typical time, the median of the last ranges.
_SLOW_FACTOR = 2.0
_NUM_TIMES, _MIN_TIMES = 50, 5
_MAX_COPIES = 2
_LISTED = 4  # of the last losses, suspects or deaths, so that a message has 6 lines


class Schedule:
    """The state of all ranges. The caller's clock is given as ``now``, in seconds.

    Args:
        ranges: what is to be done, in order.
        max_attempts: how often one range may raise before the run stops.
        max_losses: actors that may be lost in a row, with no range done in between, besides two for every actor.
        memory_key: the configuration key to lower where actors run out of memory; errors name it.

    Attributes:
        pace: what actors take for a unit: fresh ranges are cut by it when they are handed out.
        num_done: ranges that are done.
        num_failed: attempts that raised.
        num_retried: ranges handed out again after a failure or a loss; copies of slow ones do not count.
        num_lost: actors that were lost.
    """

    def __init__(self, ranges: RangesToDo, max_attempts: int, max_losses: int = 10, *, memory_key: str) -> None:
        self.pace = Pace(ranges)
        self._fresh = iter(ranges)
        self._rest: WorkRange | None = None  # of the fresh range that was handed out last
        self._again: deque[WorkRange] = deque()  # came back; handed out before the fresh ones
        self._last: deque[WorkRange] = deque()  # suspects that came back; handed out when all others are done
        self._num_left = len(ranges)
        self._num_fresh = {name: ranges.num_of(name) for name in ranges.gaps}
        self._num_copies: dict[WorkRange, int] = {}  # of the running ranges
        self._single: OrderedDict[WorkRange, float] = OrderedDict()  # running once, since when; the oldest first
        self._in_flight: dict[str, dict[WorkRange, float]] = {}  # per actor, since when; the first one is executing
        self._computed: dict[str, dict[WorkRange, None]] = {}  # per actor, what is perhaps not written yet
        self._nodes: dict[str, str] = {}
        self._failures: dict[WorkRange, list[tuple[str, str]]] = {}  # actor, node
        self._deaths: dict[WorkRange, list[str]] = {}
        self._suspects: set[WorkRange] = set()
        self._times: deque[float] = deque(maxlen=_NUM_TIMES)
        self._max_attempts = max_attempts
        self._max_losses = max_losses
        self._memory_key = memory_key
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
        """Ranges that are not done, about: how the fresh ones will be cut depends on who gets them."""
        return self._num_left + self._num_more

    @property
    def num_pending(self) -> int:
        """Ranges that nobody computes at the moment, about."""
        return sum(self._num_fresh.values()) + self._num_more + len(self._again) + len(self._last)

    @property
    def _num_more(self) -> int:
        """How many more ranges than now the fresh ones will be when they are cut."""
        return sum(count * (self.pace.num_parts(name) - 1) for name, count in self._num_fresh.items())

    def num_in_flight(self, actor: str) -> int:
        """Ranges handed to ``actor`` that it has not computed, even if another actor has done them meanwhile."""
        return len(self._in_flight[actor])

    def unwritten(self, actor: str) -> list[WorkRange]:
        """Ranges that ``actor`` has computed, and whose shards it has not said to be written."""
        return list(self._computed.get(actor, ()))

    def executing(self, actor: str) -> WorkRange | None:
        """What the actor computes at the moment; None if that is nothing, or if another actor has done it."""
        work_range = next(iter(self._in_flight.get(actor, ())), None)
        return work_range if work_range in self._num_copies else None

    def is_running(self, work_range: WorkRange) -> bool:
        """Whether some actor computes the range, and none has done it."""
        return work_range in self._num_copies

    def joined(self, actor: str, node: str) -> None:
        """The actor's process has started on ``node``, a name for errors."""
        self._in_flight[actor], self._computed[actor] = {}, {}
        self._nodes[actor] = node
        self._most_actors = max(self._most_actors, len(self._in_flight))

    def next_for(self, actor: str, now: float) -> WorkRange | None:
        """Hand a pending range to ``actor``, or a copy of a slow one if none is pending; None: nothing for it to do."""
        work_range = self._take_pending(actor) or self._slow_range(actor, now)
        if work_range is None:
            return None
        self._num_copies[work_range] = self._num_copies.get(work_range, 0) + 1
        if self._num_copies[work_range] == 1:
            self._single[work_range] = now
        elif self._num_copies[work_range] == _MAX_COPIES:
            del self._single[work_range]
        self._in_flight[actor][work_range] = now
        return work_range

    def _take_pending(self, actor: str) -> WorkRange | None:
        for position, work_range in enumerate(self._again):
            if self._may_run(work_range, actor):
                del self._again[position]
                self.num_retried += 1
                return work_range
        fresh = self._rest or next(self._fresh, None)
        if fresh is not None:
            fresh, self._rest = self.pace.cut(fresh, actor)
            if self._rest is None:
                self._num_fresh[fresh.store_name] -= 1
            else:
                self._num_left += 1
        elif self._last and self._only_suspects_left:
            self.num_retried += 1
            return self._last.popleft()
        return fresh

    def _may_run(self, work_range: WorkRange, actor: str) -> bool:
        """A range that failed on an actor is left to the others, as long as there is one on which it has not failed."""
        failed_on = {name for name, _ in self._failures.get(work_range, ())}
        return actor not in failed_on or failed_on.issuperset(self._in_flight)

    def _slow_range(self, actor: str, now: float) -> WorkRange | None:
        if len(self._times) < _MIN_TIMES:
            return None
        slow_since = now - _SLOW_FACTOR * sorted(self._times)[len(self._times) // 2]
        for work_range, since in self._single.items():
            if since >= slow_since:
                break
            is_its_own = work_range in self._in_flight[actor] or work_range in self._computed[actor]
            if not is_its_own and self._may_run(work_range, actor):
                return work_range
        return None

    @property
    def _only_suspects_left(self) -> bool:
        return self._num_left == len(self._suspects)

    def computed(self, work_range: WorkRange, actor: str, now: float) -> None:
        """The range is computed, and its shard is being written: it is no longer to blame for the actor's death."""
        since = self._in_flight[actor].pop(work_range)
        self._computed[actor][work_range] = None
        if work_range in self._num_copies:
            self._times.append(now - since)

    def done(self, work_range: WorkRange, actor: str) -> bool:
        """The shard of a range that is computed is written.

        Returns:
            Whether this is the first result of the range: the one that counts.
        """
        del self._computed[actor][work_range]
        if work_range not in self._num_copies:
            return False
        del self._num_copies[work_range]
        self._single.pop(work_range, None)
        self._failures.pop(work_range, None)
        self._deaths.pop(work_range, None)
        self._suspects.discard(work_range)
        self._num_left -= 1
        self.num_done += 1
        self._num_losses = self._num_suspect_losses = 0
        return True

    def failed(self, work_range: WorkRange, actor: str, error: BaseException) -> None:
        """The range raised, or its shard cannot be written; it will be tried again.

        Raises:
            RangeFailedError: it failed ``max_attempts`` times.
        """
        (self._in_flight if work_range in self._in_flight[actor] else self._computed)[actor].pop(work_range)
        if work_range not in self._num_copies:
            return
        self.num_failed += 1
        failures = self._failures.setdefault(work_range, [])
        failures.append((actor, self._nodes[actor]))
        if len(failures) >= self._max_attempts:
            where = ", ".join(f"{name} ({node})" for name, node in failures)
            raise RangeFailedError(
                f"{work_range} failed {counted(len(failures), 'time')}, on {where}. The last error was:\n{error}"
            ) from error
        self._give_back(work_range)

    def left(self, actor: str) -> None:
        """The actor was stopped, which is no loss; its ranges go back to the front, in order."""
        self._nodes.pop(actor, None)
        self.pace.left(actor)
        for work_range in reversed([*self._computed.pop(actor, ()), *self._in_flight.pop(actor, ())]):
            if work_range in self._num_copies:
                self._give_back(work_range)

    def _give_back(self, work_range: WorkRange) -> None:
        self._num_copies[work_range] -= 1
        if self._num_copies[work_range] > 0:  # it was slow enough for a copy, so it may get another
            self._single[work_range] = float("-inf")
            self._single.move_to_end(work_range, last=False)
            return
        del self._num_copies[work_range]
        del self._single[work_range]
        if work_range in self._suspects:
            self._last.append(work_range)
        else:
            self._again.appendleft(work_range)

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
                f"{counted(self._num_losses, 'actor')} died in a row without finishing anything; the last ones:\n"
                + "\n".join(self._last_losses)
                + f"\nCommon causes are too little memory (lower {self._memory_key}) and a broken GPU."
            )

    def _about_suspects(self) -> str:
        lines = []
        for work_range in sorted(self._suspects)[:_LISTED]:
            deaths = self._deaths[work_range]
            more = f" (the last of {len(deaths)})" if len(deaths) > _LISTED else ""
            lines.append(f"{work_range}: every actor that computed it died{more}: {'; '.join(deaths[-_LISTED:])}")
        if len(self._suspects) > _LISTED:
            lines.append(f"and {counted(len(self._suspects) - _LISTED, 'more range')}")
        lines.append(f"All other ranges are done. A common cause is too little memory: lower {self._memory_key}.")
        return "\n".join(lines)
