"""Ranges: what one shard holds, and so the unit of work, of failure and of resuming."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True, slots=True)
class WorkRange:
    """Units ``start .. stop - 1`` of a store.

    Attributes:
        store_name: the caller's name of the store that the shard goes to.
        start: first unit.
        stop: the unit after the last one.
        unit: what is counted, e.g. ``masks`` or ``examples``.
    """

    store_name: str
    start: int
    stop: int
    unit: str

    @property
    def num_units(self) -> int:
        """Units of the range."""
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.unit} {self.start}..{self.stop - 1} of {self.store_name!r}"


@dataclass(frozen=True)
class RangesToDo:
    """What is missing, cut at the multiples of the shard size, so that every run has the same shards.

    Ranges are made as they are asked for: a million of them takes no memory.

    Attributes:
        gaps: per store name the missing ranges (start, stop) of units, in order.
        units_per_shard: per store name the units of a whole shard.
        unit: what is counted, e.g. ``masks`` or ``examples``.
    """

    gaps: Mapping[str, Sequence[tuple[int, int]]]
    units_per_shard: Mapping[str, int]
    unit: str

    def __len__(self) -> int:
        sized = ((self.units_per_shard[name], start, stop) for name, gaps in self.gaps.items() for start, stop in gaps)
        return sum((stop - 1) // size - start // size + 1 for size, start, stop in sized)

    def __iter__(self) -> Iterator[WorkRange]:
        for store_name, gaps in self.gaps.items():
            size = self.units_per_shard[store_name]
            for start, gap_stop in gaps:
                while start < gap_stop:
                    stop = min((start // size + 1) * size, gap_stop)
                    yield WorkRange(store_name, start, stop, self.unit)
                    start = stop

    @property
    def num_units(self) -> int:
        """Units of all ranges."""
        return sum(stop - start for gaps in self.gaps.values() for start, stop in gaps)
