"""Ranges: what one shard holds, and so the unit of work, of failure and of resuming."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, order=True, slots=True)
class WorkRange:
    """Units ``start .. stop - 1`` of a store.

    Attributes:
        store_name: the caller's name of the store that the shard goes to.
        start: first unit.
        stop: the unit after the last one.
        unit: what is counted, e.g. ``masks`` or ``examples``.
        whole: start and stop of the largest shard that could hold it, which may reach beyond the last unit of all;
            None: this range is never cut.
    """

    store_name: str
    start: int
    stop: int
    unit: str
    whole: tuple[int, int] | None = field(default=None, compare=False)

    @property
    def num_units(self) -> int:
        """Units of the range."""
        return self.stop - self.start

    def cut(self, most_units: float) -> tuple[WorkRange, WorkRange | None]:
        """The first part, of about ``most_units`` or fewer but at least one, and the rest; None where nothing is left.

        A whole shard is halved, and halved again. So of two ranges that any two runs cut, one lies within the other, or
        they have nothing in common.
        """
        if self.whole is None:
            return self, None
        start, stop = self.whole
        size = stop - start
        level = num_halvings(size, most_units)
        number = -(-((self.start - start + 1) << level) // size)  # of the first limit behind the first unit
        stop = min(start + (size * number >> level), self.stop)
        return replace(self, stop=stop), replace(self, start=stop) if stop < self.stop else None

    def __str__(self) -> str:
        return f"{self.unit} {self.start}..{self.stop - 1} of {self.store_name!r}"


def num_halvings(size: int, most_units: float) -> int:
    """How often ``size`` units are halved until a part has ``most_units`` or fewer; never to less than one unit."""
    level = 0
    while size / 2**level > most_units and size >> (level + 1):
        level += 1
    return level


@dataclass(frozen=True)
class RangesToDo:
    """What is missing, cut at the multiples of the shard size, so that every run has the same shards.

    Ranges are made as they are asked for: a million of them takes no memory.

    Attributes:
        gaps: per store name the missing ranges (start, stop) of units, in order.
        units_per_shard: per store name the units of a whole shard.
        unit: what is counted, e.g. ``masks`` or ``examples``.
        shard_seconds: per store name the seconds of work after which a shard is cut smaller; the shards of other stores
            are whole, however long they take.
    """

    gaps: Mapping[str, Sequence[tuple[int, int]]]
    units_per_shard: Mapping[str, int]
    unit: str
    shard_seconds: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(self.num_of, self.gaps))

    def num_of(self, store_name: str) -> int:
        """How many ranges one store lacks."""
        size = self.units_per_shard[store_name]
        return sum((stop - 1) // size - start // size + 1 for start, stop in self.gaps[store_name])

    def __iter__(self) -> Iterator[WorkRange]:
        for store_name, gaps in self.gaps.items():
            size = self.units_per_shard[store_name]
            for start, gap_stop in gaps:
                while start < gap_stop:
                    first = start // size * size
                    stop = min(first + size, gap_stop)
                    whole = (first, first + size) if store_name in self.shard_seconds else None
                    yield WorkRange(store_name, start, stop, self.unit, whole)
                    start = stop

    @property
    def num_units(self) -> int:
        """Units of all ranges."""
        return sum(stop - start for gaps in self.gaps.values() for start, stop in gaps)
