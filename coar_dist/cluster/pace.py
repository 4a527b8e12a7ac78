"""How much of a shard an actor is given, by the seconds that it takes for a unit: without Ray and without a clock."""

from __future__ import annotations

from collections.abc import Iterator

from coar_dist.cluster.ranges import RangesToDo, WorkRange, num_halvings


class Pace:
    """What actors take for a unit of each store, and what follows for the ranges that they get.

    An actor's first range of a store is cut by what it took for a trial, later ones by what it took for the one before.

    Args:
        ranges: what is to be done.
    """

    def __init__(self, ranges: RangesToDo) -> None:
        self._shard_seconds, self._units_per_shard = ranges.shard_seconds, ranges.units_per_shard
        self._of_trial: dict[str, float] = {}
        self._measured: dict[str, dict[str, float]] = {}  # per actor and store
        self._slowest = 0.0

    def timed(self, actor: str, seconds_per_unit: float) -> None:
        """The actor has taken so many seconds for a unit in a trial."""
        self._of_trial[actor] = seconds_per_unit
        self._slowest = max(self._slowest, seconds_per_unit)

    def measured(self, actor: str, done: WorkRange, seconds: float) -> None:
        """The actor has taken so many seconds for a range."""
        self._measured.setdefault(actor, {})[done.store_name] = seconds / done.num_units

    def left(self, actor: str) -> None:
        """The actor is gone."""
        self._of_trial.pop(actor, None)
        self._measured.pop(actor, None)

    def cut(self, work_range: WorkRange, actor: str) -> tuple[WorkRange, WorkRange | None]:
        """What the actor is to get of a range, and the rest, if any."""
        seconds = self._measured.get(actor, {}).get(work_range.store_name, self._of_trial.get(actor))
        if not seconds or work_range.store_name not in self._shard_seconds:
            return work_range, None
        return work_range.cut(self._shard_seconds[work_range.store_name] / seconds)

    def num_parts(self, store_name: str) -> int:
        """In how many parts the slowest actor of all trials would do a whole shard of the store."""
        if not self._slowest or store_name not in self._shard_seconds:
            return 1
        most_units = self._shard_seconds[store_name] / self._slowest
        return int(2 ** num_halvings(self._units_per_shard[store_name], most_units))


def cut_ranges(ranges: RangesToDo, seconds_per_unit: float) -> Iterator[WorkRange]:
    """The ranges that actors will get which all take so many seconds for a unit."""
    pace, actor = Pace(ranges), "every actor"
    pace.timed(actor, seconds_per_unit)
    for whole in ranges:
        rest: WorkRange | None = whole
        while rest is not None:
            part, rest = pace.cut(rest, actor)
            yield part
